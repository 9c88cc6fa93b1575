"""Deletes the image and the prompt of a generation. Its money stays as it is.

    settled    mark the row: the prompt goes, and the row is due; then remove the object
    refunded   the prompt goes; there is no image, and what its refund left to be swept stays due
    reserved   refuse: the image does not exist yet

If the removal fails, or the process dies before it, the reconciler finds the row due and removes
the object. What can race:

    customer       |--mark--|  remove  |--visit later--|     settled
    request or worker    |--settle--|                        still_reserved (``ledger.py``)
    late worker                   |--put--| |--settle--|     it may not stay: the worker removes it
    late, killed                                  |--put--|  the later visit removes it
    reconciler                 |--remove--|                  both remove the same object

A row that was settled a lease ago has no writers left, and needs no later visit.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from lib.deadline import IN_FLIGHT_RETRY_AFTER_S, STORAGE_CALL_S, WORKER_LEASE_S, Deadline
from lib.errors import GenerationReserved, NotFound
from lib.ledger.ledger import Ledger
from lib.ledger.rows import Generation, Status, due_shard, generation_key, number, string
from lib.ledger.table import ConditionFailed, LedgerUnreachable, Table
from lib.picture.storage import Images

__all__ = ["Deletions", "remove_image"]


class Deletions:
    """Deletes generations. ``clock`` gives epoch seconds."""

    def __init__(
        self, table: Table, ledger: Ledger, images: Images, clock: Callable[[], float] = time.time
    ) -> None:
        self._table = table
        self._ledger = ledger
        self._images = images
        self._clock = clock

    def delete(self, organisation: str, created_ms: int, deadline: Deadline) -> Generation:
        """Deletes the image and the prompt of a generation that has ended; safe to repeat.

        Returns:
            The generation, without its prompt.

        Raises:
            NotFound, GenerationReserved: nothing was changed.
            LedgerUnreachable: nothing was changed, or the row is marked.
            StorageUnreachable: the row is marked. The reconciler removes the image.
        """
        now_s = int(self._clock())
        key = generation_key(organisation, created_ms)
        in_time = deadline.sooner_by(STORAGE_CALL_S)
        try:
            generation = self._mark(key, due_shard(created_ms), now_s, in_time)
        except ConditionFailed as fault:
            if fault.item is None:
                raise NotFound from fault
            if Generation.from_item(fault.item).status is Status.RESERVED:
                raise GenerationReserved(IN_FLIGHT_RETRY_AFTER_S) from fault
            return self._forget_prompt(key, now_s, in_time)
        # Without the ledger the image is removed all the same: the row stays due.
        with contextlib.suppress(LedgerUnreachable):
            remove_image(self._ledger, self._images, generation, now_s, deadline)
        return generation

    def _mark(
        self, key: dict[str, dict[str, str]], shard: str, now_s: int, deadline: Deadline
    ) -> Generation:
        # Race: a settle or a refund in progress. Without the condition, a worker would draw without
        # a prompt, and its settle would take the row out of ``Due`` while its image stays.
        settled = "#status = :settled"
        update: dict[str, Any] = {
            "Key": key,
            "ConditionExpression": settled,
            # A later visit that is planned already stays planned.
            "UpdateExpression": (
                "SET deletedAt = if_not_exists(deletedAt, :now), dueShard = :shard,"
                " dueAt = if_not_exists(dueAt, :now) REMOVE prompt"
            ),
            "ExpressionAttributeNames": {"#status": "status"},
            "ExpressionAttributeValues": {
                ":settled": string(Status.SETTLED),
                ":now": number(now_s),
                ":shard": string(shard),
            },
            "ReturnValues": "ALL_NEW",
        }
        return Generation.from_item(self._table.update(update, deadline))

    def _forget_prompt(
        self, key: dict[str, dict[str, str]], now_s: int, deadline: Deadline
    ) -> Generation:
        """It needs no condition: a refunded generation stays refunded."""
        update: dict[str, Any] = {
            "Key": key,
            "UpdateExpression": "SET deletedAt = if_not_exists(deletedAt, :now) REMOVE prompt",
            "ExpressionAttributeValues": {":now": number(now_s)},
            "ReturnValues": "ALL_NEW",
        }
        return Generation.from_item(self._table.update(update, deadline))


def remove_image(
    ledger: Ledger, images: Images, generation: Generation, now_s: int, deadline: Deadline
) -> None:
    """Removes the object of a deleted generation, and plans the next visit; safe to repeat.

    ``now_s`` is in epoch seconds, read before the call.

    Raises:
        StorageUnreachable, LedgerUnreachable: the row stays due.
    """
    images.delete(generation.image_key)
    # What began before it was settled has ended by then: no lease is longer than a worker's.
    writers_end = (generation.settled_at or 0) + WORKER_LEASE_S
    if now_s < writers_end:
        ledger.revisit(generation, writers_end, deadline)
    else:
        ledger.clear_due(generation, deadline)
