"""Lines that a test run ends with: how much was tried, and what came of it."""

from collections import Counter

__all__ = ["lines", "report", "tally"]

_LINES: list[str] = []
_TALLIES: Counter[str] = Counter()


def report(line: str) -> None:
    """Adds one line to the summary at the end of the run."""
    _LINES.append(line)


def tally(name: str, number: int) -> None:
    """Adds ``number`` to a sum in the summary."""
    _TALLIES[name] += number


def lines() -> list[str]:
    """What was reported so far."""
    return [*_LINES, *(f"{name}: {number}" for name, number in sorted(_TALLIES.items()))]
