"""Who owns how many credits: reserve, settle, refund, grant, balance, history, audit.

The money protocol is in the conditions of a few writes, each named where it is used:

    reserve   one transaction: the account pays, a generation is put, an idempotency row is put
    settle    one update of the generation; the account is not touched
    refund    one transaction: reserved -> refunded, the account gets its credits back
    take      one update of the generation: the lease is now that of whoever makes the image

A generation leaves ``reserved`` exactly once, so settle and refund can be tried as often as needed,
by the request and by the reconciler at the same time: the first one decides, the other one learns.
"""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from typing import Any

from lib.deadline import LEASE_S, Deadline
from lib.errors import Busy, ServiceUnavailable
from lib.ledger.order import CREDITS_PER_IMAGE, Order
from lib.ledger.reservation import AlreadyAccepted, Attempt, resolve_cancellation
from lib.ledger.rows import (
    DUE_SHARDS,
    Account,
    Generation,
    Item,
    Status,
    account_key,
    due_shard,
    generation_key,
    number,
    string,
)
from lib.ledger.table import ConditionFailed, LedgerUnreachable, Table

__all__ = [
    "AlreadyAccepted",
    "Ledger",
    "LedgerUnreachable",
    "ReservationGone",
]

RESERVE_WITHIN_S = 8.0
BUSY_RETRY_AFTER_S = 2
# Each attempt after the first knows more than the one before; some only a millisecond more.
MAX_ATTEMPTS = 100
DUE_ROWS_PER_PAGE = 100
# The last time that 13 digits of milliseconds can tell.
LAST_MS = 10**13 - 1


class ReservationGone(Exception):
    """The generation is not reserved any more, and not settled: it was refunded."""


class Ledger:
    """The credits table. ``clock`` gives epoch seconds.

    Every method may raise ``LedgerUnreachable``: no decision in time.
    """

    def __init__(self, table: Table, clock: Callable[[], float] = time.time) -> None:
        self._table = table
        self._clock = clock

    def reserve(
        self,
        order: Order,
        image_key: Callable[[int], str],
        deadline: Deadline,
        lease_s: int = LEASE_S,
    ) -> Generation:
        """Takes the price from the account and opens a generation.

        ``image_key`` gives the object key for a creation time in milliseconds.

        Returns:
            A ``reserved`` generation that is this caller's to work on, or the ``settled`` one that
            the order's idempotency key already stands for.

        Raises:
            InsufficientCredits, RateLimited, GenerationInFlight, IdempotencyKeyReused, Busy:
                nothing was debited.
            AlreadyAccepted: nothing was debited; the order was accepted before.
            ServiceUnavailable: no decision in time. Should the debit have happened unheard, its
                lease runs out and the reconciler refunds it; until then its idempotency key is
                in flight.
        """
        deadline = deadline.within(RESERVE_WITHIN_S)
        now_ms = self._now_ms()
        generation = Generation(
            organisation=order.organisation,
            created_ms=now_ms,
            status=Status.RESERVED,
            credits=CREDITS_PER_IMAGE,
            attempt_id=str(uuid.uuid4()),
            image_key=image_key(now_ms),
            prompt=order.prompt,
            aspect_ratio=order.aspect_ratio,
            request_hash=order.request_hash,
            idempotency_key=order.idempotency_key,
            asynchronous=order.asynchronous,
            due_at=now_ms // 1000 + lease_s,
        )
        attempt = Attempt(generation, now_s=now_ms // 1000)
        try:
            for _ in range(MAX_ATTEMPTS):
                if deadline.passed():
                    break
                reasons = self._table.transact(attempt.writes(), deadline)
                if not reasons:
                    return attempt.generation
                learned = resolve_cancellation(
                    attempt,
                    reasons,
                    lambda ms: self.generation(order.organisation, ms, deadline),
                    image_key,
                    self._now_ms(),
                )
                if isinstance(learned, Generation):
                    return learned
                attempt = learned
        except LedgerUnreachable as fault:
            if fault.maybe_done or fault.hopeless:
                raise ServiceUnavailable from fault
            raise Busy(BUSY_RETRY_AFTER_S) from fault
        raise Busy(BUSY_RETRY_AFTER_S)

    def extend_lease(
        self, organisation: str, created_ms: int, lease_s: int, deadline: Deadline
    ) -> Generation | None:
        """Lets the lease of a reservation end ``lease_s`` seconds from now; harmless to repeat.

        Returns:
            The reservation, or None when the generation has ended, or never was.
        """
        still_reserved = "#status = :reserved"
        update: dict[str, Any] = {
            "Key": generation_key(organisation, created_ms),
            "ConditionExpression": still_reserved,
            "UpdateExpression": "SET dueAt = :until",
            "ExpressionAttributeNames": {"#status": "status"},
            "ExpressionAttributeValues": {
                ":reserved": string(Status.RESERVED),
                ":until": number(self._now_s() + lease_s),
            },
            "ReturnValues": "ALL_NEW",
        }
        try:
            return Generation.from_item(self._table.update(update, deadline))
        except ConditionFailed:
            return None

    def settle(self, generation: Generation, duration_ms: int, deadline: Deadline) -> None:
        """Makes the charge final. Harmless to repeat; when unreachable, the reconciler settles.

        Raises:
            ReservationGone: it was refunded; whoever holds its image must remove it.
        """
        still_reserved = "#status = :reserved AND attemptId = :attemptId"
        update: dict[str, Any] = {
            "Key": generation.key,
            "ConditionExpression": still_reserved,
            "UpdateExpression": (
                "SET #status = :settled, settledAt = :now, durationMs = :durationMs"
                " REMOVE dueShard, dueAt"
            ),
            "ExpressionAttributeNames": {"#status": "status"},
            "ExpressionAttributeValues": {
                ":reserved": string(Status.RESERVED),
                ":settled": string(Status.SETTLED),
                ":attemptId": string(generation.attempt_id),
                ":now": number(self._now_s()),
                ":durationMs": number(duration_ms),
            },
        }
        try:
            self._table.update(update, deadline)
        except ConditionFailed as fault:
            status = _status_of(fault.item)
            if status is Status.REFUNDED:
                raise ReservationGone from fault
            if status is not Status.SETTLED:
                raise LedgerUnreachable(maybe_done=False, hopeless=True) from fault

    def refund(
        self,
        generation: Generation,
        failure_code: str,
        deadline: Deadline,
        revisit_at: int | None = None,
    ) -> Status:
        """Gives the credits back, exactly once, however often it is tried.

        With ``revisit_at`` (epoch seconds) the row stays in ``Due`` until then, so that the
        reconciler removes an image that reaches the store after the refund. When the ledger is
        unreachable, the reconciler refunds.

        Returns:
            What the generation is now: ``refunded``, or ``settled`` when somebody settled it first.
        """
        account_exists = "attribute_exists(pk)"
        pay_back: dict[str, Any] = {
            "Key": account_key(generation.organisation),
            "ConditionExpression": account_exists,
            "UpdateExpression": "SET credits = credits + :price",
            "ExpressionAttributeValues": {":price": number(generation.credits)},
        }
        release = self._release(generation, failure_code, revisit_at)
        reasons = self._table.transact([{"Update": release}, {"Update": pay_back}], deadline)
        if not reasons:
            return Status.REFUNDED
        status = _status_of(reasons[0].get("Item"))
        if status in (Status.SETTLED, Status.REFUNDED):
            return status
        raise LedgerUnreachable(maybe_done=False, hopeless=True)

    def _release(
        self, generation: Generation, failure_code: str, revisit_at: int | None
    ) -> dict[str, Any]:
        still_reserved = "#status = :reserved AND attemptId = :attemptId"
        values = {
            ":reserved": string(Status.RESERVED),
            ":refunded": string(Status.REFUNDED),
            ":attemptId": string(generation.attempt_id),
            ":now": number(self._now_s()),
            ":code": string(failure_code),
        }
        update = "SET #status = :refunded, refundedAt = :now, failureCode = :code"
        if revisit_at is None:
            update += " REMOVE dueShard, dueAt"
        else:
            update += ", dueShard = :hold, dueAt = :revisitAt"
            values[":hold"] = string(due_shard(generation.created_ms))
            values[":revisitAt"] = number(revisit_at)
        return {
            "Key": generation.key,
            "ConditionExpression": still_reserved,
            "UpdateExpression": update,
            "ExpressionAttributeNames": {"#status": "status"},
            "ExpressionAttributeValues": values,
        }

    def due_rows(self, deadline: Deadline) -> Iterator[Item]:
        """The rows whose lease ran out, as ``Due`` carries them, in turn from each partition.

        In a partition those that wait longest come first. The index may lag, so a row's own status
        decides and not this list. Prompts and request hashes are not in it.
        """
        now = number(self._now_s())
        partitions = [
            self._table.query(
                {
                    "IndexName": "Due",
                    "KeyConditionExpression": "dueShard = :shard AND dueAt <= :now",
                    "ExpressionAttributeValues": {":shard": string(str(shard)), ":now": now},
                    "Limit": DUE_ROWS_PER_PAGE,
                },
                deadline,
            )
            for shard in range(DUE_SHARDS)
        ]
        for abreast in zip_longest(*partitions):
            yield from (item for item in abreast if item is not None)

    def clear_due(self, generation: Generation, deadline: Deadline) -> None:
        """Takes a refunded generation out of ``Due``: nothing of it is left in the store."""
        refunded = "#status = :refunded"
        update: dict[str, Any] = {
            "Key": generation.key,
            "ConditionExpression": refunded,
            "UpdateExpression": "REMOVE dueShard, dueAt",
            "ExpressionAttributeNames": {"#status": "status"},
            "ExpressionAttributeValues": {":refunded": string(Status.REFUNDED)},
        }
        with contextlib.suppress(ConditionFailed):
            self._table.update(update, deadline)

    def generation(
        self, organisation: str, created_ms: int, deadline: Deadline
    ) -> Generation | None:
        """One generation of the organisation, as it is now."""
        item = self._table.get(generation_key(organisation, created_ms), deadline)
        return Generation.from_item(item) if item else None

    def history(
        self, organisation: str, limit: int, before_ms: int | None, deadline: Deadline
    ) -> list[Generation]:
        """The organisation's newest generations, at most ``limit``, newest first.

        With ``before_ms`` only those that were created before that time.
        """
        last_ms = LAST_MS if before_ms is None else before_ms - 1
        query: dict[str, Any] = {
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ExpressionAttributeValues": {
                ":pk": account_key(organisation)["pk"],
                ":first": generation_key(organisation, 0)["sk"],
                ":last": generation_key(organisation, max(0, last_ms))["sk"],
            },
            "ConsistentRead": True,
            "ScanIndexForward": False,
            "Limit": limit,
        }
        found = islice(self._table.query(query, deadline), limit)
        return [Generation.from_item(item) for item in found]

    def balance(self, organisation: str, deadline: Deadline) -> int:
        """The credits of the organisation; 0 when it has no account."""
        account = self.account(organisation, deadline)
        return account.credits if account else 0

    def account(self, organisation: str, deadline: Deadline) -> Account | None:
        """The organisation's account as it is now, if there is one."""
        item = self._table.get(account_key(organisation), deadline)
        return Account.from_item(item) if item else None

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _now_s(self) -> int:
        return int(self._clock())


def _status_of(item: Item | None) -> Status | None:
    return Status(item["status"]["S"]) if item else None
