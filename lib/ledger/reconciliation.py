"""Ends every reservation that nobody ended: killed functions, lost writes, refunds that failed.

For each hold past its lease:

    reserved, a whole PNG is stored   settle: the image was made, its URL could be returned
    reserved, anything else           refund, then remove what may be stored
    refunded                          a second visit after a refund: remove what came late

The ledger decides first, by conditions on the row; the store is touched only after a refund. So any
number of reconcilers and a slow worker can do this at once.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from lib.deadline import Deadline
from lib.ledger.ledger import Ledger, ReservationGone
from lib.ledger.rows import Generation, Item, Status
from lib.observability import Observation
from lib.picture.check import is_whole_png
from lib.picture.storage import Images, StoredImage

__all__ = ["ROWS_IN_PARALLEL", "Ending", "Outcome", "Reconciled", "Reconciler"]

DUE_ROWS_AT_ONCE = 100
ROWS_IN_PARALLEL = 8
EXPIRED = "expired"
"""The failure code of a reservation that nobody ended."""


class Ending(StrEnum):
    """What became of one hold. What ``failed`` or was ``left`` is there again in the next run."""

    SETTLED = "settled"
    REFUNDED = "refunded"
    SWEPT = "swept"
    FAILED = "failed"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one hold ended, and why not if it did not."""

    ending: Ending
    fault: Exception | None = None


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How many holds one run ended in which way."""

    settled: int = 0
    refunded: int = 0
    swept: int = 0
    failed: int = 0
    left: int = 0


RunAll = Callable[[Callable[[Item], Outcome], Iterable[Item]], Iterable[Outcome]]


class Reconciler:
    """Settles or refunds what expired. ``clock`` gives epoch seconds.

    ``run_all`` applies a function to many holds: ``map`` one by one, an executor's at once.
    """

    def __init__(
        self,
        ledger: Ledger,
        images: Images,
        clock: Callable[[], float] = time.time,
        run_all: RunAll = map,
    ) -> None:
        self._ledger = ledger
        self._images = images
        self._clock = clock
        self._run_all = run_all

    def run(self, deadline: Deadline, observation: Observation) -> Reconciled:
        """Works through expired holds until there are none, or until the deadline.

        A hold that can't be ended is passed over and stays for the next run.

        Raises:
            LedgerUnreachable: the list of holds can't be read.
        """
        holds = self._ledger.due_rows(deadline)
        tally: Counter[str] = Counter()
        while not deadline.passed():
            some = list(islice(holds, DUE_ROWS_AT_ONCE))
            if not some:
                break
            outcomes = self._run_all(lambda item: self._end(item, deadline), some)
            for item, outcome in zip(some, outcomes, strict=True):
                tally[outcome.ending] += 1
                if outcome.fault is not None:
                    hold = "/".join(str(item[name]["S"]) for name in ("pk", "sk"))
                    observation.warning("a hold can't be reconciled", outcome.fault, hold=hold)
        return Reconciled(**tally)

    def _end(self, item: Item, deadline: Deadline) -> Outcome:
        if deadline.passed():
            return Outcome(Ending.LEFT)
        try:
            hold = Generation.from_item(item)
            if hold.status is Status.REFUNDED:
                return Outcome(self._sweep(hold, deadline))
            return Outcome(self._decide(hold, deadline))
        except Exception as fault:  # noqa: BLE001 - no hold may keep the others from their end
            return Outcome(Ending.FAILED, fault)

    def _decide(self, hold: Generation, deadline: Deadline) -> Ending:
        stored = self._images.read(hold.image_key)
        is_own = stored is not None and stored.attempt_id == hold.attempt_id
        if stored is not None and is_own and is_whole_png(stored.content):
            return self._settle(hold, stored, deadline)
        revisit_at = int(self._clock()) + hold.lease_s
        if self._ledger.refund(hold, EXPIRED, deadline, revisit_at) is Status.SETTLED:
            return Ending.SETTLED
        self._delete(hold, stored)
        return Ending.REFUNDED

    def _settle(self, hold: Generation, stored: StoredImage, deadline: Deadline) -> Ending:
        duration_ms = max(0, round(stored.stored_at * 1000) - hold.created_ms)
        try:
            self._ledger.settle(hold, duration_ms, deadline)
        except ReservationGone:
            self._delete(hold, stored)
            return Ending.REFUNDED
        return Ending.SETTLED

    def _sweep(self, hold: Generation, deadline: Deadline) -> Ending:
        self._delete(hold, self._images.read(hold.image_key))
        self._ledger.clear_due(hold, deadline)
        return Ending.SWEPT

    def _delete(self, hold: Generation, stored: StoredImage | None) -> None:
        """Removes what was seen of a refunded generation, unless it is somebody else's."""
        if stored is None or stored.attempt_id == hold.attempt_id:
            self._images.delete(hold.image_key)
