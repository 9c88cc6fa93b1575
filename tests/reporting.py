"""The lines at the end of a test run: how much was tried, and with what result."""

from collections import Counter

__all__ = ["lines", "receive", "report", "tally", "to_send"]

_LINES: list[str] = []
_TALLIES: Counter[str] = Counter()


def report(line: str) -> None:
    """Adds a line to the summary."""
    _LINES.append(line)


def tally(name: str, number: int) -> None:
    """Adds ``number`` to a sum in the summary."""
    _TALLIES[name] += number


def lines() -> list[str]:
    """The summary so far."""
    return [*_LINES, *(f"{name}: {number}" for name, number in sorted(_TALLIES.items()))]


def to_send() -> tuple[list[str], dict[str, int]]:
    """What a worker of a parallel run sends to the process that prints."""
    return list(_LINES), dict(_TALLIES)


def receive(sent: tuple[list[str], dict[str, int]] | None) -> None:
    """Adds what a worker sent; a worker that died sent nothing."""
    if sent is not None:
        _LINES.extend(sent[0])
        _TALLIES.update(sent[1])
