"""What a request gets whose idempotency key stands for a reservation.

    queued, both asynchronous    the same 202 again
    image stored                 settle at once, and replay the 200
    abandoned                    end it; once it is refunded, the key is free for a new reservation
    anything else                409: it is in progress

An abandoned reservation is never adopted: its first request may have answered that nothing was
charged.
"""

import time
from collections.abc import Callable
from enum import StrEnum

from lib.deadline import IN_FLIGHT_RETRY_AFTER_S, LEASE_S, QUEUED_WITHIN_S, Deadline
from lib.errors import GenerationInFlight
from lib.ledger.endings import Ending
from lib.ledger.reconciliation import Reconciler
from lib.ledger.rows import Generation
from lib.ledger.table import LedgerUnreachable
from lib.picture.storage import StorageUnreachable

__all__ = ["Replay", "Replays"]


class Replay(StrEnum):
    """What the earlier reservation turned out to be."""

    ACCEPTED = "accepted"
    SETTLED = "settled"
    KEY_FREE = "key free"


class Replays:
    """Decides about reservations that a repeated request finds. ``clock`` gives epoch seconds."""

    def __init__(self, reconciler: Reconciler, clock: Callable[[], float] = time.time) -> None:
        self._reconciler = reconciler
        self._clock = clock

    def resolve(self, earlier: Generation, deadline: Deadline, *, asynchronous: bool) -> Replay:
        """What to do about ``earlier``, the reservation under the key of a repeated request.

        Raises:
            GenerationInFlight: it is in progress, or its state could not be read.
        """
        created_s, due_at = earlier.created_ms // 1000, earlier.due_at or 0
        # The lease is extended once the job is queued, and again once a worker begins it.
        is_queued = earlier.asynchronous and due_at - created_s > LEASE_S
        may_wait_until = due_at
        if earlier.asynchronous and not is_queued:
            may_wait_until = created_s + QUEUED_WITHIN_S
        is_abandoned = self._clock() > may_wait_until
        if is_queued and asynchronous and not is_abandoned:
            return Replay.ACCEPTED
        try:
            ending = self._end(earlier, deadline, is_abandoned=is_abandoned)
        except (StorageUnreachable, LedgerUnreachable) as fault:
            raise GenerationInFlight(IN_FLIGHT_RETRY_AFTER_S) from fault
        if ending.is_charged:
            return Replay.SETTLED
        if ending is Ending.IN_PROGRESS:
            raise GenerationInFlight(IN_FLIGHT_RETRY_AFTER_S)
        return Replay.KEY_FREE

    def _end(self, earlier: Generation, deadline: Deadline, *, is_abandoned: bool) -> Ending:
        if is_abandoned:
            return self._reconciler.end(earlier, deadline)
        return self._reconciler.settle_if_stored(earlier, deadline)
