"""How many images a second, and what to raise first: ``python -m infra.bench.capacity``.

Arithmetic, not measurement: each limit over what one image a second needs of it. Sandboxes follow
Little's law: as many are busy as arrive in the time that a request takes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from infra.bench.tables import section, table
from lib.deadline import AFTER_MODEL_S, FUNCTION_TIMEOUT_S, RESPONSE_TAKES_S
from lib.ledger.rows import DEFAULT_RATE_LIMIT, DUE_SHARDS
from lib.picture.gemini import RETRY_NEEDS_S

RATES = (1, 10, 100, 1000)
HEADROOM = 1.2
# The model's published median is 4.2 s; its tail is not published. As in the guide.
REQUEST_S = 6.0
# A used-up quota keeps a request waiting for as long as a retry could still succeed.
QUOTA_WAIT_S = FUNCTION_TIMEOUT_S - RESPONSE_TAKES_S - AFTER_MODEL_S - RETRY_NEEDS_S
IMAGE_USD = 0.0336
TEN_MINUTES_S = 600
USD_A_MONTH = IMAGE_USD * 30 * 86_400
# Google's spend limits in US dollars for any ten minutes and for a month ("Rate limits" and
# "Billing", ai.google.dev, September 2026). A project's tier follows from its billing history.
TIERS = {1: (10, 250), 2: (50, 2_000), 3: (200, 20_000)}
# A guess for AWS: how long a reservation locks its account. DynamoDB refuses the others meanwhile,
# and their retries take turns well only while the account is locked for half of the time.
LOCKED_MS, LOCKED_AT_MOST_MS = 12, 500


@dataclass(frozen=True, slots=True)
class Limit:
    """``amount`` of ``unit`` by default; one image a second needs ``need`` of it.

    ``refusal`` is what customers get beyond it. ``condition`` says when the limit applies, if it
    does not always.
    """

    name: str
    amount: float
    unit: str
    need: float
    refusal: str
    condition: str = ""

    @property
    def images_per_s(self) -> float:
        """The rate at which the limit is used up."""
        return self.amount / self.need

    def enough_for(self, rate_per_s: float) -> str:
        """The amount to raise it to, with headroom, in two digits."""
        enough = rate_per_s * self.need * HEADROOM
        digit = 10 ** max(0, math.floor(math.log10(enough)) - 1)
        return f"{math.ceil(enough / digit) * digit:,} {self.unit}"


OVERLOADED, NO_SANDBOX = "500 `model_overloaded`, refunded", "503 of API Gateway"
BUSY, THROTTLED, UNITS = "429 `busy`", "429 of API Gateway", "write units a second"
SPEND, SANDBOXES, ONE = "Google's spend", "Lambda's concurrency", "one organisation"
ALL = (
    Limit(SPEND, TIERS[3][1], "USD a month", USD_A_MONTH, OVERLOADED, "a whole month"),
    Limit(SPEND, TIERS[3][0], "USD in 10 minutes", IMAGE_USD * TEN_MINUTES_S, OVERLOADED),
    Limit("Gemini's quota", 500, "requests a minute", 60, OVERLOADED),
    Limit("`ThrottleRate`", 100, "requests a second", 1, THROTTLED),
    Limit(SANDBOXES, 1000, "sandboxes", REQUEST_S, NO_SANDBOX),
    Limit(SANDBOXES, 10, "sandboxes", REQUEST_S, NO_SANDBOX, "new account"),
    Limit("`WorkerConcurrency`", 4, "workers", REQUEST_S, "a longer wait", "`respond-async`"),
    # 1,000 at once, and 100 a second until the first requests end.
    Limit("Lambda's growth", 1000 + 100 * REQUEST_S, "sandboxes", REQUEST_S, NO_SANDBOX, "burst"),
    Limit("throughput of a new table", 4000, UNITS, 5, BUSY),
    Limit("the index `Due`", DUE_SHARDS * 1000, UNITS, 3, BUSY),
    Limit("one partition", 1000, UNITS, 5, BUSY, ONE),
    Limit("conflicts on its account", LOCKED_AT_MOST_MS, "ms a second", LOCKED_MS, BUSY, ONE),
    Limit("its rate limit", DEFAULT_RATE_LIMIT, "requests a minute", 60, "429 `rate_limited`", ONE),
    Limit("S3, one prefix", 3500, "PUTs a second", 1, "a longer wait"),
    Limit("API Gateway", 10_000, "requests a second", 1, THROTTLED),
)
LIMITS = sorted(ALL, key=lambda limit: limit.images_per_s)


def exceeded(rate_per_s: float) -> list[Limit]:
    """The unconditional limits below ``rate_per_s``, the first to bite first."""
    return [each for each in LIMITS if not each.condition and each.images_per_s < rate_per_s]


def report() -> Iterator[str]:
    """The section of the results."""
    yield from section(
        "Capacity",
        "Arithmetic: each limit over what one image a second needs of it. A request takes",
        f"{REQUEST_S:g} s. Accounts are seasoned: Google's tier 3, AWS's published defaults. The",
        "raised amounts leave 20 % of headroom.",
    )
    yield from ("### What bites first, and what to raise", "")
    head: tuple[str, ...] = ("images a second", "bites first", "raise, in this order")
    rows: list[tuple[str, ...]] = []
    for rate in RATES:
        limits = exceeded(rate)
        first = f"{limits[0].name}, {limits[0].amount:,g} {limits[0].unit}" if limits else "nothing"
        raised = "; ".join(f"{each.name} to {each.enough_for(rate)}" for each in limits)
        hours = TIERS[3][1] / IMAGE_USD / rate / 3600
        rows.append((f"{rate:,}", first, raised, f"{hours:,.1f} hours"))
    yield from table((*head, f"Google's {TIERS[3][1]:,} USD a month last"), rows)
    yield from ("", "### Every limit", "")
    rows = []
    for each in LIMITS:
        images = f"{each.images_per_s:,.{0 if each.images_per_s > RATES[1] else 1}f}"
        default = f"{each.amount:,g} {each.unit}"
        rows.append((images, each.name, default, each.condition or "always", each.refusal))
    yield from table(("images a second", "limit", "default", "when", "beyond it"), rows)
    yield from ("", "### Google's spend limits", "")
    rows = []
    for tier, (short, month) in TIERS.items():
        per_s = f"{short / IMAGE_USD / TEN_MINUTES_S:.2f}"
        rows.append((str(tier), f"{short}", per_s, f"{month:,}", f"{month / IMAGE_USD:,.0f}"))
    head = ("tier", "USD in 10 minutes", "images a second", "USD a month", "images a month")
    yield from table(head, rows)
    full_from = 1000 / (REQUEST_S + QUOTA_WAIT_S)
    yield from ("", "A used-up quota uses up sandboxes, too: requests wait for it up to")
    yield f"{QUOTA_WAIT_S:g} s, so 1,000 sandboxes are busy from {full_from:.0f} images a second."
    yield "Raise Google's limits before Lambda's. Lambda's growth can't be raised: let a load rise"
    yield "over a minute."


if __name__ == "__main__":
    print("\n".join(report()))
