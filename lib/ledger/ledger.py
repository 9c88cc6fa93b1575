"""The money protocol: reserve, extend the lease, settle, refund; and an organisation's own reads.

    reserve       one transaction: debit the account, put the generation, put the idempotency row,
                  count the price in the usage of the API key
    extend lease  one update of the generation: the process that draws it has until then
    settle        one update of the generation; the account is not touched
    refund        one transaction: reserved -> refunded, and the account and the usage get the
                  credits back

A generation leaves ``reserved`` exactly once, by a conditional write, so settle and refund are safe
to repeat and to race: the first one decides, and the other one reads what was decided.

    request     |--reserve--|  draw, store   |--settle--|      still_reserved
    worker                |--extend lease--|                   still_reserved
    reconciler                                   |--refund--|  still_reserved
    request or worker                         |--refund--|     still_reserved

``reservation.py`` has the timeline of reserve.
"""

import time
from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from typing import Any

from lib.deadline import LEASE_S, RESERVE_WITHIN_S, Deadline
from lib.errors import Busy, ServiceUnavailable
from lib.ledger.order import Order
from lib.ledger.reservation import (
    Attempt,
    KeyInFlight,
    failed,
    rate_window,
    resolve_cancellation,
)
from lib.ledger.rows import (
    DUE_SHARDS,
    Account,
    Generation,
    Item,
    Refund,
    Status,
    account_key,
    due_shard,
    generation_key,
    number,
    string,
)
from lib.ledger.table import ConditionFailed, LedgerUnreachable, Reason, Table
from lib.ledger.usage import take_back

__all__ = ["KeyInFlight", "Ledger", "LedgerUnreachable", "Refund", "ReservationGone"]

BUSY_RETRY_AFTER_S = 2
# Each attempt after the first starts from what refused the one before.
MAX_ATTEMPTS = 100
DUE_ROWS_PER_PAGE = 100
# The last time that 13 digits of milliseconds can express.
LAST_MS = 10**13 - 1


class ReservationGone(Exception):
    """The generation was refunded, so it cannot be settled."""


class Ledger:
    """The credits table. ``clock`` gives epoch seconds.

    Every method may raise ``LedgerUnreachable``: DynamoDB made no decision in time.
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
        """Debits the price and opens a generation.

        ``image_key`` maps a creation time in milliseconds to the object's key.

        Returns:
            A ``reserved`` generation that this caller is to fulfil, or the ``settled`` one that
            the order's idempotency key already stands for.

        Raises:
            RequestRejected: nothing was debited; a condition failed, or the account is busy.
            KeyInFlight: nothing was debited; the idempotency key stands for a reservation.
            ServiceUnavailable: no decision in time. If the debit committed but its response was
                lost, the lease expires and the reconciler refunds it; until then the idempotency
                key is in flight.
        """
        deadline = deadline.within(RESERVE_WITHIN_S)
        now_ms = self._now_ms()
        generation = Generation.reserved(
            order, now_ms, image_key(now_ms), due_at=now_ms // 1000 + lease_s
        )
        budget = order.spender.monthly_budget if order.spender else None
        attempt = Attempt(generation, now_s=now_ms // 1000, monthly_budget=budget)
        try:
            for _ in range(MAX_ATTEMPTS):
                if deadline.passed():
                    break
                reasons = self._table.transact(attempt.writes(), deadline)
                if not reasons:
                    return attempt.generation
                resolved = resolve_cancellation(
                    attempt,
                    reasons,
                    lambda ms: self.generation(order.organisation, ms, deadline),
                    image_key,
                    self._now_ms(),
                )
                if isinstance(resolved, Generation):
                    return resolved
                attempt = resolved
        except LedgerUnreachable as fault:
            # A throttled table is the operator's to mend, and must not pass for a busy customer.
            if fault.contended and not (fault.maybe_done or fault.hopeless):
                raise Busy(BUSY_RETRY_AFTER_S) from fault
            raise ServiceUnavailable from fault
        raise Busy(BUSY_RETRY_AFTER_S)

    def extend_lease(
        self, organisation: str, created_ms: int, lease_s: int, deadline: Deadline
    ) -> Generation | None:
        """Moves the end of a job's lease to ``lease_s`` seconds from now; safe to repeat.

        Returns:
            The reservation, or the generation as it has ended; None if it does not exist, or is
            reserved and not asynchronous.
        """
        # Race: the reconciler refunds the expired reservation first, and is to sweep the store
        # soon. Without the condition, a late delivery would postpone that.
        still_reserved = "#status = :reserved"
        # Race: a message that this service did not send names a synchronous reservation whose
        # request is drawing it. Without the condition, a worker would draw it too, and a request
        # that dies would be refunded minutes late.
        is_job = "asynchronous = :true"
        update: dict[str, Any] = {
            "Key": generation_key(organisation, created_ms),
            "ConditionExpression": f"{still_reserved} AND {is_job}",
            "UpdateExpression": "SET dueAt = :until",
            "ExpressionAttributeNames": {"#status": "status"},
            "ExpressionAttributeValues": {
                ":reserved": string(Status.RESERVED),
                ":until": number(self._now_s() + lease_s),
                ":true": {"BOOL": True},
            },
            "ReturnValues": "ALL_NEW",
        }
        try:
            return Generation.from_item(self._table.update(update, deadline))
        except ConditionFailed as failed:
            found = None if failed.item is None else Generation.from_item(failed.item)
            return found if found and found.status is not Status.RESERVED else None

    def settle(
        self,
        generation: Generation,
        duration_ms: int,
        deadline: Deadline,
        image_sha256: str | None = None,
    ) -> bool:
        """Makes the charge final; safe to repeat. If it fails, the reconciler settles.

        ``image_sha256`` is of the stored object, 64 hex digits; None if it is not known.

        Returns:
            Whether the image may stay: not once its customer has deleted it.

        Raises:
            ReservationGone: it was refunded; the caller must remove the image.
        """
        # Race: the reconciler refunds an expired reservation while its request stores the image.
        # Without the condition, the image would be free.
        still_reserved = "#status = :reserved"
        update: dict[str, Any] = {
            "Key": generation.key,
            "ConditionExpression": still_reserved,
            "UpdateExpression": (
                "SET #status = :settled, settledAt = :now, durationMs = :durationMs,"
                " imageSha256 = :sha256 REMOVE dueShard, dueAt"
            ),
            "ExpressionAttributeNames": {"#status": "status"},
            "ExpressionAttributeValues": {
                ":reserved": string(Status.RESERVED),
                ":settled": string(Status.SETTLED),
                ":now": number(self._now_s()),
                ":durationMs": number(duration_ms),
                ":sha256": string(image_sha256 or ""),
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
            return "deletedAt" not in (fault.item or {})
        return True

    def refund(
        self,
        generation: Generation,
        failure_code: str,
        deadline: Deadline,
        *,
        revisit_at: int | None = None,
        frees_place: bool = False,
        only_if_due: bool = False,
    ) -> Refund:
        """Returns the credits, exactly once however often it is tried.

        With ``revisit_at`` (epoch seconds) the row is due again at that time, so that the
        reconciler cleans up the store. ``frees_place`` returns the attempt's place in the rate
        limit, if its minute is not over. ``only_if_due`` refunds only under the lease that
        ``generation`` shows.
        """
        release = self._release(generation, failure_code, revisit_at, only_if_due=only_if_due)
        usage = take_back(generation)
        window = rate_window(generation.created_ms // 1000)
        if frees_place and window == rate_window(self._now_s()):
            pay_back = self._pay_back(generation, freed_window=window)
            writes = [{"Update": release}, {"Update": pay_back}, *usage]
            reasons = self._table.transact(writes, deadline)
            if not failed(reasons, 1):
                return self._refunded(generation, reasons)
        writes = [{"Update": release}, {"Update": self._pay_back(generation)}, *usage]
        return self._refunded(generation, self._table.transact(writes, deadline))

    @staticmethod
    def _refunded(generation: Generation, reasons: list[Reason]) -> Refund:
        if not reasons:
            return Refund.MADE
        item = reasons[0].get("Item")
        match _status_of(item):
            case Status.SETTLED:
                return Refund.SETTLED
            case Status.REFUNDED:
                return Refund.MADE_BEFORE
            case Status.RESERVED if Generation.from_item(item or {}).due_at != generation.due_at:
                return Refund.NOT_DUE
        raise LedgerUnreachable(maybe_done=False, hopeless=True)

    @staticmethod
    def _pay_back(generation: Generation, freed_window: int | None = None) -> dict[str, Any]:
        update: dict[str, Any] = {
            "Key": account_key(generation.organisation),
            "UpdateExpression": "ADD returned :price SET credits = credits + :price",
            "ExpressionAttributeValues": {":price": number(generation.credits)},
        }
        if freed_window is not None:
            # Race: another request opens the next minute's window. Without the condition, the place
            # would be returned to a minute that it was not taken from.
            same_window = "rateWindow = :window AND rateUsed > :zero"
            update["ConditionExpression"] = same_window
            update["UpdateExpression"] += ", rateUsed = rateUsed - :one"
            update["ExpressionAttributeValues"] |= {
                ":window": number(freed_window),
                ":zero": number(0),
                ":one": number(1),
            }
        return update

    def _release(
        self,
        generation: Generation,
        failure_code: str,
        revisit_at: int | None,
        *,
        only_if_due: bool,
    ) -> dict[str, Any]:
        # Race: a settle, or another refund of the same reservation. Without the condition, a
        # delivered image would be free, or the credits would come back twice.
        condition = still_reserved = "#status = :reserved"
        values = {
            ":reserved": string(Status.RESERVED),
            ":refunded": string(Status.REFUNDED),
            ":now": number(self._now_s()),
            ":code": string(failure_code),
        }
        if only_if_due and generation.due_at is not None:
            # Race: a worker extends the lease after the reconciler or a retry has read the row.
            # Without the condition, a job would be refunded that its worker has just begun.
            same_lease = "dueAt = :seen"
            condition = f"{still_reserved} AND {same_lease}"
            values[":seen"] = number(generation.due_at)
        update = "SET #status = :refunded, refundedAt = :now, failureCode = :code"
        if revisit_at is None:
            update += " REMOVE dueShard, dueAt"
        else:
            update += ", dueShard = :shard, dueAt = :revisitAt"
            values[":shard"] = string(due_shard(generation.created_ms))
            values[":revisitAt"] = number(revisit_at)
        return {
            "Key": generation.key,
            "ConditionExpression": condition,
            "UpdateExpression": update,
            "ExpressionAttributeNames": {"#status": "status"},
            "ExpressionAttributeValues": values,
        }

    def due_rows(self, deadline: Deadline) -> Iterator[Item]:
        """The rows that are due, as the index ``Due`` projects them, from each partition in turn.

        Within a partition the longest overdue come first. The index may lag behind the table, so
        the conditions of settle and refund decide, not this list. Prompts are not projected.
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
        for row_of_each in zip_longest(*partitions):
            yield from (item for item in row_of_each if item is not None)

    def revisit(self, generation: Generation, at: int, deadline: Deadline) -> None:
        """Makes an ended generation due again at ``at``, in epoch seconds.

        It needs no condition: a visit that finds nothing to remove does no harm.
        """
        values = {":shard": string(due_shard(generation.created_ms)), ":at": number(at)}
        update: dict[str, Any] = {
            "Key": generation.key,
            "UpdateExpression": "SET dueShard = :shard, dueAt = :at",
            "ExpressionAttributeValues": values,
        }
        self._table.update(update, deadline)

    def clear_due(self, generation: Generation, deadline: Deadline) -> None:
        """Takes an ended generation out of ``Due``, once nothing of it is left in the store.

        It needs no condition: every process that could put something there has ended by then.
        """
        update = {"Key": generation.key, "UpdateExpression": "REMOVE dueShard, dueAt"}
        self._table.update(update, deadline)

    def generation(
        self, organisation: str, created_ms: int, deadline: Deadline
    ) -> Generation | None:
        """One generation of the organisation, read consistently; None if it does not exist."""
        item = self._table.get(generation_key(organisation, created_ms), deadline)
        return Generation.from_item(item) if item else None

    def history(
        self, organisation: str, limit: int, before_ms: int | None, deadline: Deadline
    ) -> list[Generation]:
        """The organisation's latest generations, newest first, at most ``limit``.

        ``before_ms`` restricts them to those created before that time (epoch milliseconds).
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
        """The organisation's credits; 0 if it has no account."""
        return account.credits if (account := self.account(organisation, deadline)) else 0

    def account(self, organisation: str, deadline: Deadline) -> Account | None:
        """The organisation's account, read consistently; None if it does not exist."""
        item = self._table.get(account_key(organisation), deadline)
        return Account.from_item(item) if item else None

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _now_s(self) -> int:
        return int(self._clock())


def _status_of(item: Item | None) -> Status | None:
    return Status(item["status"]["S"]) if item else None
