"""Lines that a test run ends with: how much was tried, and what came of it."""

from collections import Counter

__all__ = ["lines", "receive", "report", "tally", "to_send"]

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


def to_send() -> tuple[list[str], dict[str, int]]:
    """What a worker of a parallel run hands to the process that prints."""
    return list(_LINES), dict(_TALLIES)


def receive(sent: tuple[list[str], dict[str, int]] | None) -> None:
    """Takes in what a worker sent; a worker that died sent nothing."""
    if sent is None:
        return
    more_lines, tallies = sent
    _LINES.extend(more_lines)
    _TALLIES.update(tallies)
