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
from itertools import islice

from lib.deadline import LEASE_S, Deadline
from lib.ledger import Ledger, ReservationGone
from lib.ledger_rows import Generation, Item, Status
from lib.observability import Observation
from lib.png import is_whole_png
from lib.storage import Images, StorageUnreachable, StoredImage
from lib.table import LedgerUnreachable

__all__ = ["Outcome", "Reconciled", "Reconciler"]

HOLDS_AT_ONCE = 100
EXPIRED = "expired"
"""The failure code of a reservation that nobody ended."""

Mapped = Callable[[Callable[[Item], "Outcome"], Iterable[Item]], Iterable["Outcome"]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one hold ended: ``settled``, ``refunded``, ``swept``, or ``failed`` and left as it is."""

    name: str
    fault: Exception | None = None


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How many holds one run ended in which way."""

    settled: int = 0
    refunded: int = 0
    swept: int = 0
    failed: int = 0


class Reconciler:
    """Settles or refunds what expired. ``clock`` gives epoch seconds.

    ``run_all`` applies a function to many holds: ``map`` one by one, an executor's at once.
    """

    def __init__(
        self,
        ledger: Ledger,
        images: Images,
        clock: Callable[[], float] = time.time,
        run_all: Mapped = map,
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
        holds = self._ledger.expired_holds(deadline)
        tally: Counter[str] = Counter()
        while not deadline.passed():
            some = list(islice(holds, HOLDS_AT_ONCE))
            if not some:
                break
            for outcome in self._run_all(lambda item: self._end(item, deadline), some):
                tally[outcome.name] += 1
                if outcome.fault is not None:
                    observation.warning("a hold could not be reconciled", outcome.fault)
        return Reconciled(**tally)

    def _end(self, item: Item, deadline: Deadline) -> Outcome:
        try:
            hold = Generation.from_item(item)
            if hold.status is Status.REFUNDED:
                return self._sweep(hold, deadline)
            return self._decide(hold, deadline)
        except (LedgerUnreachable, StorageUnreachable, KeyError, ValueError) as fault:
            return Outcome("failed", fault)

    def _decide(self, hold: Generation, deadline: Deadline) -> Outcome:
        stored = self._images.read(hold.image_key)
        if stored is not None and is_whole_png(stored.content):
            return self._settle(hold, stored, deadline)
        revisit_at = int(self._clock()) + LEASE_S
        if self._ledger.refund(hold, EXPIRED, deadline, revisit_at) is Status.SETTLED:
            return Outcome("settled")
        self._images.delete(hold.image_key)
        return Outcome("refunded")

    def _settle(self, hold: Generation, stored: StoredImage, deadline: Deadline) -> Outcome:
        duration_ms = max(0, round(stored.stored_at * 1000) - hold.created_ms)
        try:
            self._ledger.settle(hold, duration_ms, deadline)
        except ReservationGone:
            self._images.delete(hold.image_key)
            return Outcome("refunded")
        return Outcome("settled")

    def _sweep(self, hold: Generation, deadline: Deadline) -> Outcome:
        self._images.delete(hold.image_key)
        self._ledger.close_hold(hold, deadline)
        return Outcome("swept")
