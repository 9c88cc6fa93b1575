"""How RESULTS.md shows figures: Markdown sections and tables, spreads, targets."""

import statistics
from collections.abc import Iterable, Iterator, Sequence


def section(title: str, *text: str) -> Iterator[str]:
    """The lines of a section's heading and of its first paragraph, if any."""
    yield from (f"## {title}", "", *text, *([""] if text else []))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def verdict(figure: float, limit: float, form: str = ".2f") -> str:
    """The target, and whether the figure meets it: ``<= 0.30: met``."""
    return f"<= {limit:{form}}: {'met' if figure <= limit else '**missed**'}"


def spread(values: Sequence[float], form: str = ".0f") -> str:
    """The median with the range: ``12 (11 to 19)``."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
