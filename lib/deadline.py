"""The time budget of a request. All durations are seconds.

API Gateway's HTTP APIs give up after 30 s, so the function ends itself at 29 s and the model gets
what is left of that less the time to encode, store and settle or refund.
"""

import time
from collections.abc import Callable

__all__ = ["AFTER_MODEL_S", "FUNCTION_TIMEOUT_S", "LEASE_S", "Deadline"]

FUNCTION_TIMEOUT_S = 29
AFTER_MODEL_S = 5.0
LEASE_S = FUNCTION_TIMEOUT_S + 30


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
