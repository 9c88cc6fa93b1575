"""The question and the answer of the capacity model: a load, what limits it, what became of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from lib.ledger.rows import DUE_SHARDS

__all__ = [
    "Limit",
    "Limits",
    "Load",
    "Measured",
    "ModelLatency",
    "Outcome",
    "Result",
]


class Outcome(StrEnum):
    """What a customer is told."""

    OK = "200"
    THROTTLED = "429 of the gateway"
    NO_SANDBOX = "503 of the gateway"
    RATE_LIMITED = "429 `rate_limited`"
    BUSY = "429 `busy`"
    NO_CREDITS = "402"
    OVERLOADED = "500 `model_overloaded`"
    TIMED_OUT = "500 `model_timeout`"


class Limit(StrEnum):
    """What says no."""

    GATEWAY = "`ThrottleRate`"
    CONCURRENCY = "Lambda's concurrency"
    GROWTH = "Lambda's growth"
    RATE_LIMIT = "the organisation's rate limit"
    CONFLICT = "conflicts on one account"
    PARTITION = "one organisation's partition"
    TABLE = "the table's write units"
    HOLDS = "`Due`"
    QUOTA = "Gemini's quota"
    DEADLINE = "the model's time"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a request costs in wall milliseconds, apart from the model.

    ``other_ms`` is everything else of ours: keys, encoding, the PUT. ``init_ms`` is a cold start.
    The defaults are guesses, for the real figures of AWS are not known; a benchmark gives others.
    """

    reserve_ms: float = 12.0
    settle_ms: float = 6.0
    other_ms: float = 120.0
    init_ms: float = 1300.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What an account allows; ``math.inf`` lifts a limit. The defaults are a seasoned account's.

    ``throttle_rate``, ``throttle_burst``   ``template.yaml``
    ``concurrency``                         of the account ("Lambda quotas"); a new one often has 10
    ``growth``                              new sandboxes in 10 s ("Lambda scaling behavior"),
                                            refilled evenly
    ``organisation_per_minute``             ours; 60 unless an operator gives another
    ``conflicts``                           whether DynamoDB refuses a transaction whose item
                                            another one holds (``TransactionConflict``)
    ``partition_units``                     write units a second of an organisation: one partition
                                            ("DynamoDB quotas")
    ``table_units``                         of a new on-demand table ("on-demand capacity mode")
    ``hold_units``, ``hold_shards``         of each partition of ``Due``, and how many it has
    ``gemini_per_minute``                   requests of one project to one model, as seen in one
                                            ("Gemini API, Rate limits" names none)
    """

    throttle_rate: float = 100
    throttle_burst: float = 200
    concurrency: float = 1000
    growth: float = 1000
    organisation_per_minute: float = math.inf
    conflicts: bool = True
    partition_units: float = 1000
    table_units: float = 4000
    hold_units: float = 1000
    hold_shards: int = DUE_SHARDS
    gemini_per_minute: float = 500

    @classmethod
    def none(cls) -> "Limits":
        """Nothing but the deadlines ever says no."""
        return cls(
            throttle_rate=math.inf,
            throttle_burst=math.inf,
            concurrency=math.inf,
            growth=math.inf,
            conflicts=False,
            partition_units=math.inf,
            table_units=math.inf,
            hold_units=math.inf,
            gemini_per_minute=math.inf,
        )


@dataclass(frozen=True, slots=True)
class ModelLatency:
    """Seconds of the model, lognormal.

    The median is what is published for ``gemini-3.1-flash-lite-image``. Its tail is published
    nowhere: ``sigma`` is an assumption. The widest range that is published for any of the image
    models, 12 to 40 s, has a sigma of 0.37 if it holds nine requests in ten. With it p99 is 9.9 s.
    """

    median_s: float = 4.2
    sigma: float = 0.37


@dataclass(frozen=True, slots=True)
class Load:
    """Poisson arrivals, spread evenly over organisations.

    The rate rises for ``ramp_s`` seconds; what arrives in the ``seconds`` after that is counted.
    Arrivals go on for ``goes_on_s``: the last that count would else have a minute to themselves.
    ``credits`` is what each organisation has.
    """

    rate_per_s: float
    organisations: int = 100
    seconds: float = 60.0
    ramp_s: float = 60.0
    goes_on_s: float = 20.0
    credits: int = 10**9


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the requests that count.

    ``refused_by`` says which limit a failed request failed by, ``said_no`` how often each limit
    said no, also when a retry mended it. ``peaks`` is the most that was needed of what can be
    raised: requests a second, sandboxes, write units a second, model requests a minute.
    ``sandboxes`` is how many were busy on average.
    ``credits_taken`` and ``images`` are those of all requests, also of those that don't count.
    """

    outcomes: Mapping[Outcome, int]
    refused_by: Mapping[Limit, int]
    said_no: Mapping[Limit, int]
    p50_s: float
    p99_s: float
    succeed_per_s: float
    retries: int
    cold_starts: int
    sandboxes: float
    peaks: Mapping[Limit, float]
    credits_taken: int
    images: int

    @property
    def offered(self) -> int:
        """Requests that count."""
        return sum(self.outcomes.values())

    @property
    def succeed(self) -> float:
        """The share of them that got an image."""
        return self.outcomes.get(Outcome.OK, 0) / max(1, self.offered)

    @property
    def bites_first(self) -> Limit | None:
        """The limit by which most of them failed."""
        return max(self.refused_by, key=lambda limit: self.refused_by[limit], default=None)
