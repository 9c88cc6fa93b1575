"""How figures are written in the results."""

import statistics
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["least_median_most", "table", "verdict"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def verdict(figure: float, most: float, form: str = ".2f") -> str:
    """The target, and whether the figure meets it."""
    return f"<= {most:{form}}: {'met' if figure <= most else '**missed**'}"


def least_median_most(values: Sequence[float], form: str = ".0f") -> str:
    """For example ``12 (11 to 19)``."""
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"
