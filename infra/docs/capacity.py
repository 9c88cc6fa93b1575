"""How many images a second, and what to raise first: ``python -m infra.docs.capacity``.

Arithmetic, not measurement: each limit over what one image a second needs of it. Sandboxes follow
Little's law: as many are busy as arrive in the time that a request takes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lib.deadline import AFTER_MODEL_S, FUNCTION_TIMEOUT_S, RESPONSE_TAKES_S
from lib.ledger.rows import DUE_SHARDS
from lib.picture.gemini import RETRY_NEEDS_S

# 57.9 a second is the peak of a million images a day: five times their average.
RATES, HEADROOM = (1, 10, 57.9, 100, 1000), 1.2
# The model's published median is 4.2 s; its tail is not published. As in the guide.
REQUEST_S = 6.0
# A used-up quota keeps a request waiting for as long as a retry could still succeed.
QUOTA_WAIT_S = FUNCTION_TIMEOUT_S - RESPONSE_TAKES_S - AFTER_MODEL_S - RETRY_NEEDS_S
IMAGE_USD = 0.0336
TEN_MINUTES_S = 600
# Google's spend limits in US dollars for any ten minutes and for a month ("Rate limits" and
# "Billing", ai.google.dev, September 2026). A project's tier follows from its billing history.
TIERS = {1: (10, 250), 2: (50, 2_000), 3: (200, 20_000)}


@dataclass(frozen=True, slots=True)
class Limit:
    """``amount`` of ``unit`` by default; one image a second needs ``need`` of it."""

    name: str
    amount: float
    unit: str
    need: float

    @property
    def images_per_s(self) -> float:
        """The rate at which the limit is used up."""
        return self.amount / self.need

    def enough_for(self, rate_per_s: float) -> str:
        """The amount to raise it to, with headroom, in two digits."""
        enough = rate_per_s * self.need * HEADROOM
        digit = 10 ** max(0, math.floor(math.log10(enough)) - 1)
        return f"{math.ceil(enough / digit) * digit:,} {self.unit}"


ALL = (
    Limit("Google's spend", TIERS[3][0], "USD in 10 minutes", IMAGE_USD * TEN_MINUTES_S),
    Limit("Gemini's quota", 500, "requests a minute", 60),
    Limit("`ThrottleRate`", 100, "requests a second", 1),
    Limit("Lambda's concurrency", 1000, "sandboxes", REQUEST_S),
    Limit("throughput of a new table", 4000, "write units a second", 7),
    Limit("the index `Due`", DUE_SHARDS * 1000, "write units a second", 3),
    Limit("S3, one prefix", 3500, "PUTs a second", 1),
    Limit("API Gateway", 10_000, "requests a second", 1),
)
LIMITS = sorted(ALL, key=lambda limit: limit.images_per_s)


def exceeded(rate_per_s: float) -> list[Limit]:
    """The limits below ``rate_per_s``, the first to bite first."""
    return [each for each in LIMITS if each.images_per_s < rate_per_s]


def report() -> Iterator[str]:
    """The lines of the guide: for each rate what bites first, and what else to raise."""
    last = f"Google's {TIERS[3][1]:,} USD a month last"
    yield f"| images a second | bites first | raise, in this order | {last} |"
    yield "| --- | --- | --- | --- |"
    for rate in RATES:
        limits = exceeded(rate)
        first = f"{limits[0].name}, {limits[0].amount:,g} {limits[0].unit}" if limits else "nothing"
        raised = "; ".join(f"{each.name} to {each.enough_for(rate)}" for each in limits)
        hours = TIERS[3][1] / IMAGE_USD / rate / 3600
        yield f"| {rate:,} | {first} | {raised} | {hours:,.1f} hours |"
    full_from = 1000 / (REQUEST_S + QUOTA_WAIT_S)
    yield from ("", "A used-up quota uses up sandboxes, too: requests wait for it up to")
    yield f"{QUOTA_WAIT_S:g} s, so 1,000 sandboxes are busy from {full_from:.0f} images a second."
    yield "Raise Google's limits before Lambda's. Lambda's growth can't be raised: let a load rise"
    yield "over a minute."


if __name__ == "__main__":
    print("\n".join(report()))
