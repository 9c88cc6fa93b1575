"""How a reservation ends: the ledger decides, and the store is asked by writing to it.

A PUT whose response was lost may be stored, or may still arrive. Reading cannot settle that, since
the answer can change a moment later. So a tombstone is put under the image's own key, if that key
is free (``If-None-Match: *``):

    accepted         no image can arrive under the key any more: refund
    taken, image     the image is there: settle
    taken, other     a tombstone, or another attempt's object: no image can arrive: refund
    no response      the outcome is open; the reservation stays for the reconciler

A refunded row is due once more, a lease later, when every writer is dead: then the reconciler
removes the tombstone and whatever else is under the key.
"""

import time
from collections.abc import Callable
from enum import StrEnum

from lib.deadline import LEDGER_CALL_S, STORAGE_CALL_S, Deadline
from lib.ledger.ledger import Ledger, Refund, ReservationGone
from lib.ledger.rows import Generation
from lib.ledger.table import LedgerUnreachable
from lib.picture.storage import FoundImage, Images, StorageUnreachable

__all__ = ["Ending", "Endings"]


class Ending(StrEnum):
    """How a generation ended, and whether this call ended it."""

    SETTLED = "settled"
    REFUNDED = "refunded"
    ALREADY_SETTLED = "already settled"
    ALREADY_REFUNDED = "already refunded"
    IN_PROGRESS = "in progress"

    @property
    def is_charged(self) -> bool:
        """Whether the customer pays for the generation."""
        return self in (Ending.SETTLED, Ending.ALREADY_SETTLED)


class Endings:
    """Ends reservations that have no confirmed image. ``clock`` gives epoch seconds."""

    def __init__(
        self, ledger: Ledger, images: Images, clock: Callable[[], float] = time.time
    ) -> None:
        self._ledger = ledger
        self._images = images
        self._clock = clock

    def refund(
        self,
        generation: Generation,
        failure_code: str,
        deadline: Deadline,
        *,
        in_doubt: bool,
        revisit: bool = False,
        frees_place: bool = False,
        only_if_due: bool = False,
    ) -> Ending | FoundImage:
        """Refunds the reservation, unless its image turns out to be stored.

        ``in_doubt``: an image may be stored or may still arrive, so a tombstone decides.
        ``revisit``: something under the key may have to be removed later; implied by ``in_doubt``.
        ``frees_place``: the attempt does not count against the rate limit.
        ``only_if_due``: leave the reservation alone if its lease was extended.

        Returns:
            An image that was found leaves it to the caller to settle.

        Raises:
            StorageUnreachable: the doubt could not be resolved; nothing was decided.
            LedgerUnreachable: no refund in time, but no image can arrive any more.
        """
        if in_doubt:
            if deadline.remaining_s() < STORAGE_CALL_S:
                raise StorageUnreachable
            found = self._images.put_tombstone(
                generation.image_key, generation.attempt_id, deadline
            )
            if found is not None:
                return found
            if deadline.remaining_s() < LEDGER_CALL_S:
                raise LedgerUnreachable(maybe_done=False)
        now_s = int(self._clock())
        revisit_at = now_s + generation.lease_s
        # Past its lease, the reconciler may be putting a tombstone at this moment.
        revisit = revisit or in_doubt or now_s >= (generation.due_at or 0)
        made = self._ledger.refund(
            generation,
            failure_code,
            deadline,
            revisit_at=revisit_at if revisit else None,
            frees_place=frees_place,
            only_if_due=only_if_due,
        )
        if in_doubt and made in (Refund.MADE_BEFORE, Refund.SETTLED):
            # The earlier refund may not have known of this tombstone. Nor may a deletion: only the
            # image of a deleted generation is settled and not in the way of a tombstone.
            self._ledger.revisit(generation, revisit_at, deadline)
        return {
            Refund.MADE: Ending.REFUNDED,
            Refund.MADE_BEFORE: Ending.ALREADY_REFUNDED,
            Refund.SETTLED: Ending.ALREADY_SETTLED,
            Refund.NOT_DUE: Ending.IN_PROGRESS,
        }[made]

    def settle(
        self,
        generation: Generation,
        deadline: Deadline,
        image_sha256: str | None,
        stored_at: float | None = None,
    ) -> Ending:
        """Settles a reservation whose image is stored since ``stored_at``, in epoch seconds.

        Raises:
            LedgerUnreachable: no decision in time; the reservation stays for the reconciler.
        """
        ended_at = self._clock() if stored_at is None else stored_at
        duration_ms = max(0, round(ended_at * 1000) - generation.created_ms)
        try:
            self._ledger.settle(generation, duration_ms, deadline, image_sha256)
        except ReservationGone:
            return Ending.ALREADY_REFUNDED
        return Ending.SETTLED
