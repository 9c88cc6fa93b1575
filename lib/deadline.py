"""The time budget of a request. All durations are seconds.

API Gateway's HTTP APIs give up after 30 s, so the function ends itself at 29 s and the model gets
what is left of that less the time to encode, store and settle or refund.

An accepted generation, a job, waits in a queue and is made by a worker, which has minutes. When the
worker dies, the queue delivers the job again once its visibility timeout has passed. A lease always
ends after the one who holds it: a request's, the queue's, a worker's.
"""

import time
from collections.abc import Callable

__all__ = [
    "AFTER_MODEL_S",
    "FUNCTION_TIMEOUT_S",
    "JOB_WAITS_S",
    "LAST_ROWS_TAKE_S",
    "LEASE_S",
    "REFUND_TAKES_S",
    "RESPONSE_TAKES_S",
    "VISIBILITY_TIMEOUT_S",
    "WORKER_LEASE_S",
    "WORKER_TIMEOUT_S",
    "Deadline",
]

FUNCTION_TIMEOUT_S = 29
# What returning the response takes once it is decided.
RESPONSE_TAKES_S = 0.5
AFTER_MODEL_S = 5.0
LEASE_S = FUNCTION_TIMEOUT_S + 30
# One call to DynamoDB that nobody answers. Nothing is tried again that would leave less.
REFUND_TAKES_S = 3.0

WORKER_TIMEOUT_S = 300
VISIBILITY_TIMEOUT_S = WORKER_TIMEOUT_S + 30
# Until the queue's next delivery, and a minute for the worker that gets it to take over the lease.
WORKER_LEASE_S = VISIBILITY_TIMEOUT_S + 60
# A job that no worker has taken by then is refunded; its message finds that out when it comes. It
# is long enough for a third delivery after two workers that found no ledger.
JOB_WAITS_S = 2 * VISIBILITY_TIMEOUT_S + 240
# What the reconciler needs at most for the rows that it has begun when it stops taking new ones.
LAST_ROWS_TAKE_S = 15.0


class Deadline:
    """A moment on a monotonic clock by which something must have ended."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_at = clock() + seconds

    def remaining_s(self) -> float:
        """Seconds left; never negative."""
        return max(0.0, self._ends_at - self._clock())

    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining_s() <= 0.0

    def within(self, seconds: float) -> "Deadline":
        """A deadline at most ``seconds`` from now, and not after this one."""
        return Deadline(min(seconds, self.remaining_s()), self._clock)

    def sooner_by(self, seconds: float) -> "Deadline":
        """A deadline that ends ``seconds`` before this one."""
        return Deadline(max(0.0, self.remaining_s() - seconds), self._clock)
