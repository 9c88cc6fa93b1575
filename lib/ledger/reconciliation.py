"""The reconciler: ends abandoned reservations after kills, lost writes and failed refunds.

For each due row:

    reserved, a whole PNG is stored   settle: the image exists and its URL could be returned
    reserved, anything else           refund, then remove what may be stored
    refunded                          second visit: remove an image that arrived late

The ledger decides first, by conditions on the row, and the store is touched only after a refund. So
any number of reconcilers can race each other and a slow worker.
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
"""The failure code of an abandoned reservation."""


class Ending(StrEnum):
    """How one due row ended. Rows that ``failed`` or were ``left`` stay due for the next run."""

    SETTLED = "settled"
    REFUNDED = "refunded"
    SWEPT = "swept"
    FAILED = "failed"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one due row ended; ``fault`` is why it failed."""

    ending: Ending
    fault: Exception | None = None


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How many due rows one run ended in each way."""

    settled: int = 0
    refunded: int = 0
    swept: int = 0
    failed: int = 0
    left: int = 0


RunAll = Callable[[Callable[[Item], Outcome], Iterable[Item]], Iterable[Outcome]]


class Reconciler:
    """Settles or refunds due reservations. ``clock`` gives epoch seconds.

    ``run_all`` applies a function to many rows: ``map`` one by one, an executor's ``map`` at once.
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
        """Works through the due rows until none is left, or until the deadline.

        A row that fails is skipped and stays due for the next run.

        Raises:
            LedgerUnreachable: the due rows can't be read.
        """
        rows = self._ledger.due_rows(deadline)
        tally: Counter[str] = Counter()
        while not deadline.passed():
            batch = list(islice(rows, DUE_ROWS_AT_ONCE))
            if not batch:
                break
            outcomes = self._run_all(lambda item: self._end(item, deadline), batch)
            for item, outcome in zip(batch, outcomes, strict=True):
                tally[outcome.ending] += 1
                if outcome.fault is not None:
                    row = "/".join(str(item[name]["S"]) for name in ("pk", "sk"))
                    observation.warning("a due row can't be reconciled", outcome.fault, row=row)
        return Reconciled(**tally)

    def _end(self, item: Item, deadline: Deadline) -> Outcome:
        if deadline.passed():
            return Outcome(Ending.LEFT)
        try:
            generation = Generation.from_item(item)
            if generation.status is Status.REFUNDED:
                return Outcome(self._sweep(generation, deadline))
            return Outcome(self._decide(generation, deadline))
        except Exception as fault:  # noqa: BLE001 - one bad row must not block the others
            return Outcome(Ending.FAILED, fault)

    def _decide(self, generation: Generation, deadline: Deadline) -> Ending:
        stored = self._images.read(generation.image_key)
        is_own = stored is not None and stored.attempt_id == generation.attempt_id
        if stored is not None and is_own and is_whole_png(stored.content):
            return self._settle(generation, stored, deadline)
        revisit_at = int(self._clock()) + generation.lease_s
        if self._ledger.refund(generation, EXPIRED, deadline, revisit_at) is Status.SETTLED:
            return Ending.SETTLED
        self._delete(generation, stored)
        return Ending.REFUNDED

    def _settle(self, generation: Generation, stored: StoredImage, deadline: Deadline) -> Ending:
        duration_ms = max(0, round(stored.stored_at * 1000) - generation.created_ms)
        try:
            self._ledger.settle(generation, duration_ms, deadline)
        except ReservationGone:
            self._delete(generation, stored)
            return Ending.REFUNDED
        return Ending.SETTLED

    def _sweep(self, generation: Generation, deadline: Deadline) -> Ending:
        self._delete(generation, self._images.read(generation.image_key))
        self._ledger.clear_due(generation, deadline)
        return Ending.SWEPT

    def _delete(self, generation: Generation, stored: StoredImage | None) -> None:
        """Removes what was seen of a refunded generation, unless another attempt stored it."""
        if stored is None or stored.attempt_id == generation.attempt_id:
            self._images.delete(generation.image_key)
