"""US dollars per 1,000 images, with the prices of the deployment guide and measured quantities.

The guide's tables name each price's source. What is measured here takes the place of the quantities
that they assume. Write units and log lines stay the guide's, where tests count them; so does what
customers decide, such as downloads.
"""

import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from infra.bench.memory import Memory
from infra.bench.trips import SUCCESS, Trips
from infra.bench.warm import Warm
from infra.bench.words import table
from infra.template import PROJECT_ROOT

__all__ = ["Line", "Quantities", "bill", "quantities", "report"]

GUIDE = PROJECT_ROOT / "infra" / "DEPLOY.md"
IMAGES = 1000
MODEL_S = 4.2
"""The median of the default model, as published; nothing here can measure Google."""
MODEL_USD = 33.60
# https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html
MB_OF_ONE_VCPU = 1769
_ROW = re.compile(
    r"^\| (?P<name>[^|*]+) \| (?P<units>[\d.,]+) \| (?P<usd>[\d.]+) \| (?P<per>[\d,]+) \|"
)


@dataclass(frozen=True)
class Line:
    """One line of the guide: ``units`` cost ``usd`` for each ``per``."""

    name: str
    units: float
    usd: float
    per: float

    @property
    def cost(self) -> float:
        """US dollars for 1,000 images."""
        return self.units * self.usd / self.per


Quantities = Mapping[str, float]
"""Units for 1,000 images, by the beginning of the guide's line."""


def quantities(warm: Warm, trips: Trips, memory: list[Memory]) -> Quantities:
    """What 1,000 images at 1K take.

    On Lambda the function has a part of a processor, by its memory: its CPU takes that much longer.
    """
    small = warm.all_of("ours", large=False)
    share = min(1.0, memory[0].function_mb / MB_OF_ONE_VCPU)
    cpu_ms = statistics.median(small.cpu_ms)
    waits_ms = max(0.0, statistics.median(small.wall_ms) - cpu_ms)
    seconds = MODEL_S + (cpu_ms / share + waits_ms) / 1000
    calls = trips[SUCCESS]
    return {
        "Lambda, GB-seconds": IMAGES * seconds * memory[0].function_mb / 1024,
        "S3, PUT requests": IMAGES * calls["PutObject"],
    }


def bill(measured: Quantities) -> list[Line]:
    """The guide's lines for an image that is waited for, in S3, with what was measured put in."""
    text = GUIDE.read_text(encoding="utf-8")
    lines = []
    for title in ("| line | units | USD |", "| line, S3 and CloudFront |"):
        after = text[text.index(title) :]
        for row in after[: after.index("| **sum** |")].splitlines():
            found = _ROW.match(row)
            if found is None:
                continue
            name = found["name"]
            units = next(
                (value for start, value in measured.items() if name.startswith(start)),
                _number(found["units"]),
            )
            lines.append(Line(name, units, _number(found["usd"]), _number(found["per"])))
    return lines


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def report(measured: Quantities) -> Iterator[str]:
    """The section of the results."""
    lines = bill(measured)
    yield from ("## Cost of 1,000 images", "")
    yield "Prices of the [deployment guide](../DEPLOY.md#cost); the model takes its median of"
    yield f"{MODEL_S} s; the measured CPU is taken to stretch by Lambda's share of a processor."
    yield ""
    rows = [
        (
            line.name,
            f"{line.units:,.4g}" if line.units < IMAGES else f"{line.units:,.0f}",
            "measured" if line.name.startswith(tuple(measured)) else "the guide's",
            f"{line.cost:.4f}",
        )
        for line in lines
    ]
    ours = sum(line.cost for line in lines)
    yield from table(
        ("line", "units", "", "USD"),
        [
            *rows,
            ("**AWS**", "", "", f"**{ours:.4f}**"),
            ("Gemini", "1,000", "the guide's", f"{MODEL_USD:.2f}"),
            ("**all**", "", "", f"**{ours + MODEL_USD:.2f}**"),
        ],
    )
