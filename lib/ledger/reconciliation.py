"""The reconciler: ends abandoned reservations after kills, lost writes and failed refunds.

For each due row:

    reserved, a whole PNG is stored   settle: the image exists and its URL could be returned
    reserved, anything else           decide by a tombstone (``endings.py``): settle or refund
    refunded                          second visit: remove the tombstone or whatever else is there
    settled and deleted               remove the image; once more when every writer is dead

The ledger decides by conditions on the row, so any number of reconcilers can race each other, slow
requests and workers.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from lib.deadline import LAST_ROWS_TAKE_S, Deadline
from lib.ledger.deletion import remove_image
from lib.ledger.endings import Ending, Endings
from lib.ledger.ledger import Ledger
from lib.ledger.rows import Generation, Item, Status
from lib.observability import Observation
from lib.picture.check import is_whole_png
from lib.picture.storage import FoundImage, Images, StoredImage

__all__ = ["EXPIRED", "ROWS_IN_PARALLEL", "Reconciled", "Reconciler", "Visit"]

DUE_ROWS_AT_ONCE = 100
ROWS_IN_PARALLEL = 8
EXPIRED = "expired"
"""The failure code of an abandoned reservation."""


class Visit(StrEnum):
    """What one visit to a due row did. Rows that ``failed`` or were ``left`` stay due."""

    SETTLED = "settled"
    REFUNDED = "refunded"
    SWEPT = "swept"
    STALE = "stale"
    FAILED = "failed"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one visit did; ``fault`` is why it failed."""

    visit: Visit
    fault: Exception | None = None


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How many due rows one run ended in each way.

    ``stale``: the index was behind the table, and the row needed nothing any more.
    """

    settled: int = 0
    refunded: int = 0
    swept: int = 0
    stale: int = 0
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
        self._endings = Endings(ledger, images, clock)
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
            outcomes = self._run_all(lambda item: self._visit(item, deadline), batch)
            for item, outcome in zip(batch, outcomes, strict=True):
                tally[outcome.visit] += 1
                if outcome.fault is not None:
                    row = "/".join(str(item[name]["S"]) for name in ("pk", "sk"))
                    observation.warning("a due row can't be reconciled", outcome.fault, row=row)
        return Reconciled(**tally)

    def end(self, generation: Generation, deadline: Deadline) -> Ending:
        """Settles an abandoned reservation if its whole image is stored, refunds it otherwise.

        Raises:
            StorageUnreachable, LedgerUnreachable: it stays as it is, for the next visit.
        """
        stored = self._images.read(generation.image_key)
        if stored is not None and _is_image_of(generation, stored):
            return self._endings.settle(generation, deadline, stored.sha256, stored.stored_at)
        # Whatever is under the key keeps an image from arriving, as a tombstone would.
        ending = self._endings.refund(
            generation,
            EXPIRED,
            deadline,
            in_doubt=stored is None,
            revisit=True,
            frees_place=True,
            only_if_due=True,
        )
        if isinstance(ending, FoundImage):
            return self._endings.settle(generation, deadline, ending.sha256)
        return ending

    def settle_if_stored(self, generation: Generation, deadline: Deadline) -> Ending:
        """Settles a reservation in progress if its whole image is stored.

        Raises:
            StorageUnreachable, LedgerUnreachable: it stays as it is.
        """
        stored = self._images.read(generation.image_key)
        if stored is None or not _is_image_of(generation, stored):
            return Ending.IN_PROGRESS
        return self._endings.settle(generation, deadline, stored.sha256, stored.stored_at)

    def _visit(self, item: Item, deadline: Deadline) -> Outcome:
        if deadline.passed():
            return Outcome(Visit.LEFT)
        try:
            return Outcome(self._end_or_sweep(Generation.from_item(item), deadline))
        except Exception as fault:  # noqa: BLE001 - one bad row must not block the others
            return Outcome(Visit.FAILED, fault)

    def _end_or_sweep(self, listed: Generation, deadline: Deadline) -> Visit:
        # The index may lag by minutes: a worker may have extended the lease since.
        deadline = deadline.at_least(LAST_ROWS_TAKE_S)
        found = self._ledger.generation(listed.organisation, listed.created_ms, deadline)
        if found is None or found.due_at is None or found.due_at > self._clock():
            return Visit.STALE
        if found.status is Status.REFUNDED:
            self._sweep(found, deadline)
            return Visit.SWEPT
        if found.status is Status.SETTLED and found.deleted_at is not None:
            remove_image(self._ledger, self._images, found, int(self._clock()), deadline)
            return Visit.SWEPT
        match self.end(found, deadline):
            case Ending.SETTLED:
                return Visit.SETTLED
            case Ending.REFUNDED:
                return Visit.REFUNDED
            case _:
                return Visit.STALE

    def _sweep(self, generation: Generation, deadline: Deadline) -> None:
        stored = self._images.read(generation.image_key)
        # Another attempt's object stays: this generation has no claim to it.
        if stored is not None and (stored.is_tombstone or _is_own(generation, stored)):
            self._images.delete(generation.image_key)
        self._ledger.clear_due(generation, deadline)


def _is_own(generation: Generation, stored: StoredImage) -> bool:
    return stored.attempt_id == generation.attempt_id


def _is_image_of(generation: Generation, stored: StoredImage) -> bool:
    return _is_own(generation, stored) and is_whole_png(stored.content)
