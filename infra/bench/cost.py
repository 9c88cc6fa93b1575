"""US dollars per 1,000 images: the guide's prices with measured quantities.

The guide's tables name each price's source. Measured quantities replace the assumed ones. Write
units and log lines stay the guide's, where tests count them; so does what customers decide, such as
downloads.
"""

import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from infra.bench.memory import Memory
from infra.bench.tables import section, table
from infra.bench.trips import SUCCESS, Trips
from infra.bench.warm import Warm
from infra.template import PROJECT_ROOT

GUIDE = PROJECT_ROOT / "infra" / "docs" / "COST-AND-LIMITS.md"
IMAGES = 1000
MODEL_S = 4.2
"""The published median of the default model."""
MODEL_USD = 33.60
# https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html
MB_PER_VCPU = 1769
_ROW = re.compile(
    r"^\| (?P<name>[^|*]+) \| (?P<units>[\d.,]+) \| (?P<usd>[\d.]+) \| (?P<per>[\d,]+) \|"
)

Quantities = Mapping[str, float]
"""Units for 1,000 images, by the beginning of the guide's line."""


@dataclass(frozen=True)
class Line:
    """One line of the guide: ``units``, and US dollars for 1,000 images."""

    name: str
    units: float
    cost: float


def quantities(warm: Warm, trips: Trips, memory: list[Memory]) -> Quantities:
    """What 1,000 images at 1K take.

    Lambda gives a function a share of a processor by its memory; its CPU takes that much longer.
    """
    small = warm.samples("ours", large=False)
    function_mb = memory[0].function_mb
    cpu_ms = statistics.median(small.cpu_ms)
    waits_ms = max(0.0, statistics.median(small.wall_ms) - cpu_ms)
    seconds = MODEL_S + (cpu_ms / min(1.0, function_mb / MB_PER_VCPU) + waits_ms) / 1000
    return {
        "Lambda, GB-seconds": IMAGES * seconds * function_mb / 1024,
        "S3, PUT requests": IMAGES * trips[SUCCESS]["PutObject"],
    }


def bill(measured: Quantities) -> list[Line]:
    """The guide's lines for a synchronous image in S3, with the measured quantities."""
    text = GUIDE.read_text(encoding="utf-8")
    lines = []
    for title in ("| line | units | USD |", "| line, S3 and CloudFront |"):
        rows = text[text.index(title) :].partition("| **sum** |")[0]
        for found in filter(None, map(_ROW.match, rows.splitlines())):
            name, *figures = found.groups()
            units, usd, per = (float(each.replace(",", "")) for each in figures)
            units = next((measured[each] for each in measured if name.startswith(each)), units)
            lines.append(Line(name, units, units * usd / per))
    return lines


def report(measured: Quantities) -> Iterator[str]:
    """The section of the results."""
    lines = bill(measured)
    yield from section(
        "Cost of 1,000 images",
        f"Prices of the [guide](../docs/{GUIDE.name}#cost). The model takes its published median",
        f"of {MODEL_S} s; the measured CPU is divided by Lambda's share of a processor.",
    )
    rows = []
    for line in lines:
        units = f"{line.units:,.4g}" if line.units < IMAGES else f"{line.units:,.0f}"
        source = "measured" if line.name.startswith(tuple(measured)) else "the guide's"
        rows.append((line.name, units, source, f"{line.cost:.4f}"))
    aws = sum(line.cost for line in lines)
    rows.append(("**AWS**", "", "", f"**{aws:.4f}**"))
    rows.append(("Gemini", "1,000", "the guide's", f"{MODEL_USD:.2f}"))
    rows.append(("**total**", "", "", f"**{aws + MODEL_USD:.2f}**"))
    yield from table(("line", "units", "", "USD"), rows)
