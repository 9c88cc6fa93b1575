"""Limits on what costs a customer nothing: reads, refusals, replays.

The rate limit of an organisation is decided inside the debit's own write, and so covers what is
paid for. These limits are kept in the process: they add no round trip, and each of Lambda's
sandboxes counts for itself. Their memory is bounded.
"""

import math
import threading
import time
from collections.abc import Callable

from lib.errors import RateLimited

__all__ = ["OrganisationLimit", "TokenBuckets", "read_limit", "unpaid_limit"]

MAX_NAMES = 10_000
READS_PER_S = 10
READS_AT_ONCE = 120
UNPAID_PER_S = 5
UNPAID_AT_ONCE = 60


class TokenBuckets:
    """One token bucket for each name. Thread-safe.

    A bucket holds ``burst`` tokens at most and gains ``per_s`` a second. The buckets that were used
    longest ago are forgotten beyond ``MAX_NAMES``. ``clock`` gives epoch seconds; a monotonic clock
    may stop while Lambda freezes the process.
    """

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.time) -> None:
        self.per_s = per_s
        self.burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> bool:
        """Takes a token of ``name``; False if there is none."""
        with self._lock:
            tokens, now = self._refilled(name)
            has_token = tokens >= 1
            self._buckets.pop(name, None)
            self._buckets[name] = (tokens - 1 if has_token else tokens, now)
            if len(self._buckets) > MAX_NAMES:
                del self._buckets[next(iter(self._buckets))]
            return has_token

    def wait_s(self, name: str) -> float:
        """Seconds until ``name`` has a token; 0 if it has one."""
        with self._lock:
            tokens, _ = self._refilled(name)
            return max(0.0, (1 - tokens) / self.per_s)

    def _refilled(self, name: str) -> tuple[float, float]:
        now = self._clock()
        tokens, filled_at = self._buckets.get(name, (float(self.burst), now))
        return min(float(self.burst), tokens + max(0.0, now - filled_at) * self.per_s), now


class OrganisationLimit:
    """A limit for each organisation, or each of its keys, by name.

    ``policy`` is the limit's name in ``RateLimit-Policy``.
    """

    def __init__(self, policy: str, buckets: TokenBuckets) -> None:
        self._policy = policy
        self._buckets = buckets

    def admit(self, name: str) -> None:
        """Counts a request.

        Raises:
            RateLimited: the limit is used up; the request is not counted.
        """
        if not self._buckets.take(name):
            raise self._refusal(name)

    def check(self, name: str) -> None:
        """Lets a request pass without counting it.

        Raises:
            RateLimited: as above.
        """
        if self._buckets.wait_s(name) > 0:
            raise self._refusal(name)

    def count(self, name: str) -> None:
        """Counts a request that has passed."""
        self._buckets.take(name)

    def _refusal(self, name: str) -> RateLimited:
        per_minute = round(self._buckets.per_s * 60)
        retry_after_s = max(1, math.ceil(self._buckets.wait_s(name)))
        return RateLimited(per_minute, retry_after_s, self._policy)


def read_limit(clock: Callable[[], float] = time.time) -> OrganisationLimit:
    """The limit on reads."""
    return OrganisationLimit("reads", TokenBuckets(READS_PER_S, READS_AT_ONCE, clock))


def unpaid_limit(clock: Callable[[], float] = time.time) -> OrganisationLimit:
    """The limit on a key's generate requests that buy nothing: refusals and replays."""
    return OrganisationLimit("unpaid", TokenBuckets(UNPAID_PER_S, UNPAID_AT_ONCE, clock))
