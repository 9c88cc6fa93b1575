"""The service as a discrete-event model: arrivals, our limits, AWS's and Google's, and our backoff.

What is not modelled: accepted (asynchronous) images, idempotency keys, prompts of more than 1 KB,
the first transaction of a minute (which comes twice), how DynamoDB spreads keys over partitions and
saves up unused units, sandboxes that AWS ends, the other functions, customers who try again. Google
answers a 429 at once.
"""

import math
import random
from collections.abc import Generator, Iterator

from infra.bench.capacity_parts import (
    Account,
    Bucket,
    Clock,
    Database,
    Process,
    Sandboxes,
    Tally,
    Window,
    Write,
)
from infra.bench.capacity_terms import (
    Limit,
    Limits,
    Load,
    Measured,
    ModelLatency,
    Outcome,
    Result,
)
from infra.bench.meters import percentile
from lib.deadline import (
    AFTER_MODEL_S,
    FUNCTION_TIMEOUT_S,
    LEASE_S,
    RESERVE_WITHIN_S,
    RESPONSE_TAKES_S,
)
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.picture.gemini import RETRY_JITTER_S, RETRY_NEEDS_S

__all__ = ["MoneyLostError", "simulate"]

QUOTA_WINDOW_S = 60.0


class MoneyLostError(Exception):
    """The accounts don't add up: a fault of the model."""


class _Service:
    """One run: the requests of a load, and everything that they meet."""

    def __init__(
        self, load: Load, measured: Measured, limits: Limits, latency: ModelLatency, seed: int
    ) -> None:
        self._load, self._measured, self._latency = load, measured, latency
        self._counts = (load.ramp_s, load.ramp_s + load.seconds)
        self._chance = random.Random(seed)  # noqa: S311 - a simulation, which must be repeatable
        self._clock = Clock()
        self._offered = Window(math.inf, 1.0)
        self._gateway = Bucket(limits.throttle_rate, limits.throttle_burst)
        self._lambda = Sandboxes(self._clock, limits, self._counts)
        self._database = Database(self._clock, limits, self._chance)
        self._quota = Window(limits.gemini_per_minute, QUOTA_WINDOW_S)
        self._accounts = [Account(load.credits, limits) for _ in range(load.organisations)]
        # In a transaction every unit counts twice; an open hold is a write to the index as well.
        self._reserve = Write(measured.reserve_ms, table_units=4, hold_units=2, locks=True)
        self._settle = Write(measured.settle_ms, table_units=1, hold_units=1, locks=False)
        self._refund = Write(measured.reserve_ms, table_units=4, hold_units=2, locks=True)
        self._images = 0

    def run(self) -> Result:
        counted, others = Tally(), Tally()
        self._clock.start(self._arrivals(counted, others))
        self._clock.run()
        granted = self._load.credits * self._load.organisations
        taken = granted - sum(account.credits for account in self._accounts)
        if taken != CREDITS_PER_IMAGE * self._images:
            raise MoneyLostError(f"{taken} credits were taken for {self._images} images")
        return Result(
            outcomes=counted.outcomes,
            refused_by=counted.refused_by,
            said_no=counted.said_no,
            p50_s=percentile(counted.latencies_s, 50),
            p99_s=percentile(counted.latencies_s, 99),
            succeed_per_s=counted.outcomes[Outcome.OK] / self._load.seconds,
            retries=counted.retries,
            cold_starts=counted.cold_starts,
            sandboxes=self._lambda.mean(),
            peaks=self._peaks(),
            credits_taken=taken,
            images=self._images,
        )

    def _peaks(self) -> dict[Limit, float]:
        return {
            Limit.GATEWAY: self._offered.peak,
            Limit.CONCURRENCY: self._lambda.peak,
            Limit.TABLE: self._database.table_units.peak,
            Limit.HOLDS: self._database.hold_units.peak,
            Limit.QUOTA: self._quota.peak,
        }

    def _arrivals(self, counted: Tally, others: Tally) -> Process:
        first, last = self._counts
        for at in self._times():
            yield at - self._clock.now
            tally = counted if first <= at < last else others
            self._clock.start(self._request(self._chance.choice(self._accounts), tally))

    def _times(self) -> Iterator[float]:
        """Poisson arrivals: unit steps through the integral of the rate."""
        rate, ramp_s = self._load.rate_per_s, self._load.ramp_s
        in_ramp = rate * ramp_s / 2
        steps, at = 0.0, 0.0
        while at < self._counts[1] + self._load.goes_on_s:
            steps += self._chance.expovariate(1.0)
            if steps < in_ramp:
                at = math.sqrt(2 * ramp_s * steps / rate)
            else:
                at = ramp_s + (steps - in_ramp) / rate
            yield at

    def _request(self, account: Account, tally: Tally) -> Process:
        arrived = self._clock.now
        self._offered.take(arrived)
        if not self._gateway.take(arrived):
            _refused(tally, Outcome.THROTTLED, Limit.GATEWAY)
            return
        no_room, is_new = self._lambda.enter()
        if no_room:
            _refused(tally, Outcome.NO_SANDBOX, no_room)
            return
        if is_new:
            tally.cold_starts += 1
            yield self._measured.init_ms / 1000
        outcome, limit = yield from self._handle(account, tally)
        self._lambda.leave()
        tally.outcomes[outcome] += 1
        if outcome is Outcome.OK:
            tally.latencies_s.append(self._clock.now - arrived)
        elif limit:
            tally.refused_by[limit] += 1

    def _handle(
        self, account: Account, tally: Tally
    ) -> Generator[float, None, tuple[Outcome, Limit | None]]:
        created_s = self._clock.now
        ends_at = created_s + FUNCTION_TIMEOUT_S - RESPONSE_TAKES_S
        refused = yield from self._reserved(account, created_s, ends_at, tally)
        if refused:
            return refused
        failed = yield from self._drawn(ends_at - AFTER_MODEL_S, tally)
        if failed:
            write = self._refund
            unheard = yield from self._database.write(write, account, created_s, ends_at, tally)
            if unheard:
                self._clock.start(self._reconcile(account))
            else:
                account.credits += CREDITS_PER_IMAGE
            return failed
        yield self._measured.other_ms / 1000
        # Should it go unheard, the reconciler settles; the answer is a 200 anyway.
        yield from self._database.write(self._settle, account, created_s, ends_at, tally)
        self._images += 1
        return Outcome.OK, None

    def _reserved(
        self, account: Account, created_s: float, ends_at: float, tally: Tally
    ) -> Generator[float, None, tuple[Outcome, Limit | None] | None]:
        within = min(ends_at, created_s + RESERVE_WITHIN_S)
        write = self._reserve
        refusal = yield from self._database.write(write, account, created_s, within, tally)
        if refusal:
            return Outcome.BUSY, refusal
        if account.credits < CREDITS_PER_IMAGE:
            return Outcome.NO_CREDITS, None
        if not account.minute.take(self._clock.now):
            tally.said_no[Limit.RATE_LIMIT] += 1
            return Outcome.RATE_LIMITED, Limit.RATE_LIMIT
        account.credits -= CREDITS_PER_IMAGE
        return None

    def _drawn(
        self, ends_at: float, tally: Tally
    ) -> Generator[float, None, tuple[Outcome, Limit] | None]:
        """The model, with ``lib.picture.gemini``'s one retry after a quota's 429."""
        if not self._quota.take(self._clock.now):
            tally.said_no[Limit.QUOTA] += 1
            # RetryInfo tells whole seconds.
            delay_s = math.floor(self._quota.ends_in_s(self._clock.now))
            wait_s = delay_s + self._chance.uniform(*RETRY_JITTER_S)
            if ends_at - self._clock.now < wait_s + RETRY_NEEDS_S:
                return Outcome.OVERLOADED, Limit.QUOTA
            yield wait_s
            tally.retries += 1
            if not self._quota.take(self._clock.now):
                tally.said_no[Limit.QUOTA] += 1
                return Outcome.OVERLOADED, Limit.QUOTA
        left_s = ends_at - self._clock.now
        takes_s = self._latency.median_s * self._chance.lognormvariate(0.0, self._latency.sigma)
        yield min(takes_s, left_s)
        if takes_s > left_s:
            tally.said_no[Limit.DEADLINE] += 1
            return Outcome.TIMED_OUT, Limit.DEADLINE
        return None

    def _reconcile(self, account: Account) -> Process:
        yield LEASE_S
        account.credits += CREDITS_PER_IMAGE


def _refused(tally: Tally, outcome: Outcome, limit: Limit) -> None:
    tally.outcomes[outcome] += 1
    tally.refused_by[limit] += 1
    tally.said_no[limit] += 1


def simulate(
    load: Load,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    measured: Measured = Measured(),  # noqa: B008 - frozen
    latency: ModelLatency = ModelLatency(),  # noqa: B008 - frozen
    seed: int = 1,
) -> Result:
    """One run; the same arguments give the same result.

    Raises:
        MoneyLostError: credits were taken for something else than an image.
    """
    return _Service(load, measured, limits, latency, seed).run()
