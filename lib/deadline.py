"""The time budget of a request and of a job. All durations are seconds.

API Gateway's HTTP APIs give up after 30 s, so the function ends itself a second earlier, and the
model gets what is left less the time to encode, store and settle or refund.

An accepted generation, a job, waits in a queue for a worker, which has minutes. If the worker dies,
the queue redelivers the job once its visibility timeout has passed. A lease always outlives the
process that it is given to: a request, the queue, a worker.
"""

import math
import time
from collections.abc import Callable

__all__ = [
    "AFTER_MODEL_S",
    "AUDIT_ENDS_BEFORE_S",
    "CONNECT_S",
    "FIRST_EXTENSION_WITHIN_S",
    "FUNCTION_TIMEOUT_S",
    "GATEWAY_TIMEOUT_S",
    "IDEMPOTENCY_TTL_S",
    "IN_FLIGHT_RETRY_AFTER_S",
    "JOB_WAITS_S",
    "LAST_EXTENSION_WITHIN_S",
    "LAST_ROWS_TAKE_S",
    "LEASE_S",
    "LEDGER_CALL_S",
    "LEDGER_READ_S",
    "MAX_CLOCK_SKEW_S",
    "MAX_SENDS",
    "QUEUED_WITHIN_S",
    "QUEUE_CALL_S",
    "QUEUE_READ_S",
    "RATE_WINDOW_S",
    "REFUNDED_WITHIN_S",
    "RESERVE_WITHIN_S",
    "RESPONSE_TAKES_S",
    "SECRETS_READ_S",
    "SETTLE_WITHIN_S",
    "SIGNING_READ_S",
    "STORAGE_CALL_S",
    "STORAGE_READ_S",
    "VISIBILITY_TIMEOUT_S",
    "WORKER_LEASE_S",
    "WORKER_TIMEOUT_S",
    "Deadline",
]

# One call, as the clients bound it: connecting, and one read. No service retries by itself, so a
# retry starts only if a whole call still fits before the deadline.
CONNECT_S = 1
LEDGER_READ_S = 2
SECRETS_READ_S = 2
QUEUE_READ_S = 2
SIGNING_READ_S = 2
STORAGE_READ_S = 3
LEDGER_CALL_S = float(CONNECT_S + LEDGER_READ_S)
# A PUT waits a second more for ``100 Continue``.
STORAGE_CALL_S = float(CONNECT_S + STORAGE_READ_S + 1)
QUEUE_CALL_S = CONNECT_S + QUEUE_READ_S + 0.5

# A request.
GATEWAY_TIMEOUT_S = 30
FUNCTION_TIMEOUT_S = GATEWAY_TIMEOUT_S - 1
# What returning the response takes once it is decided.
RESPONSE_TAKES_S = 0.5
RESERVE_WITHIN_S = 8.0
# Encode, store, and settle or refund.
AFTER_MODEL_S = 5.0
# A settle that takes longer is left to the reconciler: the image is stored, and the customer waits.
SETTLE_WITHIN_S = 5.0
LEASE_S = FUNCTION_TIMEOUT_S + 30

# A job. The worker's lease lasts until the queue's next delivery, and a minute for that worker to
# extend it.
WORKER_TIMEOUT_S = 300
VISIBILITY_TIMEOUT_S = WORKER_TIMEOUT_S + 30
WORKER_LEASE_S = VISIBILITY_TIMEOUT_S + 60
# A job that no worker has begun by then is refunded, and its message finds it so. This leaves room
# for a third delivery after two workers that could not reach the ledger.
JOB_WAITS_S = 2 * VISIBILITY_TIMEOUT_S + 240
# A worker that cannot reach the ledger makes room for the next; the queue redelivers the job.
FIRST_EXTENSION_WITHIN_S = 10.0
# The customer waits for this extension alone once the job is queued.
LAST_EXTENSION_WITHIN_S = 4.0
MAX_SENDS = 3
# The longest from a request's reservation until its job is queued and has the longer lease; the
# second is for the pauses between the sends.
QUEUED_WITHIN_S = math.ceil(
    RESERVE_WITHIN_S + MAX_SENDS * QUEUE_CALL_S + LAST_EXTENSION_WITHIN_S + 1
)

# The reconciler, which runs every minute. The promise leaves it two runs after a request's lease.
RECONCILER_PERIOD_S = 60
REFUNDED_WITHIN_S = 3 * RECONCILER_PERIOD_S
# The longest that it needs for the rows it has begun, once it starts no new ones.
LAST_ROWS_TAKE_S = 15.0

# The daily audit stops so long before its function's timeout: one call, and its metrics.
AUDIT_ENDS_BEFORE_S = 5.0

# The contract.
RATE_WINDOW_S = 60
# How far the clocks of two sandboxes are expected to differ at most.
MAX_CLOCK_SKEW_S = 15 * RATE_WINDOW_S
IDEMPOTENCY_TTL_S = 24 * 60 * 60
IN_FLIGHT_RETRY_AFTER_S = 3


class Deadline:
    """A moment on a monotonic clock by which an operation must have ended."""

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

    def at_least(self, seconds: float) -> "Deadline":
        """A deadline at least ``seconds`` from now, and not before this one."""
        return Deadline(max(seconds, self.remaining_s()), self._clock)

    def sooner_by(self, seconds: float) -> "Deadline":
        """A deadline that ends ``seconds`` before this one."""
        return Deadline(max(0.0, self.remaining_s() - seconds), self._clock)
