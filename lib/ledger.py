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
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

from lib.audit import AuditReport, audit_of
from lib.deadline import LEASE_S, Deadline
from lib.errors import Busy, ServiceUnavailable
from lib.ledger_rows import (
    DEFAULT_RATE_LIMIT,
    HOLD_SHARDS,
    Account,
    Generation,
    Grant,
    Item,
    Status,
    account_key,
    generation_key,
    hold_shard,
    number,
    organisation_of,
    string,
)
from lib.models import CREDITS_PER_IMAGE
from lib.reservation import AlreadyAccepted, Attempt, learn
from lib.table import ConditionFailed, LedgerUnreachable, Reason, Table

__all__ = [
    "AlreadyAccepted",
    "GrantRejectedError",
    "Ledger",
    "LedgerUnreachable",
    "Order",
    "ReservationGone",
]

RESERVE_WITHIN_S = 8.0
BUSY_RETRY_AFTER_S = 2
# Each attempt after the first knows more than the one before; some only a millisecond more.
MAX_ATTEMPTS = 100
HOLDS_PER_PAGE = 100
AUDIT_TRIES = 20
# The last time that 13 digits of milliseconds can tell.
LAST_MS = 10**13 - 1


class ReservationGone(Exception):
    """The generation is not reserved any more, and not settled: it was refunded."""


class GrantRejectedError(Exception):
    """An operator's grant can't be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a customer asks for."""

    organisation: str
    prompt: str
    aspect_ratio: str
    idempotency_key: str | None = None
    asynchronous: bool = False

    @property
    def request_hash(self) -> str:
        """SHA-256 of what makes two requests the same: the aspect ratio and the prompt."""
        return hashlib.sha256(f"{self.aspect_ratio}\n{self.prompt}".encode()).hexdigest()


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
            lease_expires_at=now_ms // 1000 + lease_s,
        )
        attempt = Attempt(generation, now_s=now_ms // 1000)
        try:
            for _ in range(MAX_ATTEMPTS):
                if deadline.passed():
                    break
                reasons = self._table.transact(attempt.writes(), deadline)
                if not reasons:
                    return attempt.generation
                learned = learn(
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

    def take(
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
            "UpdateExpression": "SET leaseExpiresAt = :until",
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
                " REMOVE openHold, leaseExpiresAt"
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

        With ``revisit_at`` (epoch seconds) the row stays in ``OpenHolds`` until then, so that the
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
            update += " REMOVE openHold, leaseExpiresAt"
        else:
            update += ", openHold = :hold, leaseExpiresAt = :revisitAt"
            values[":hold"] = string(hold_shard(generation.created_ms))
            values[":revisitAt"] = number(revisit_at)
        return {
            "Key": generation.key,
            "ConditionExpression": still_reserved,
            "UpdateExpression": update,
            "ExpressionAttributeNames": {"#status": "status"},
            "ExpressionAttributeValues": values,
        }

    def expired_holds(self, deadline: Deadline) -> Iterator[Item]:
        """The rows whose lease ran out, as ``OpenHolds`` carries them, in turn from each partition.

        In a partition those that wait longest come first. The index may lag, so a row's own status
        decides and not this list. Prompts and request hashes are not in it.
        """
        now = number(self._now_s())
        partitions = [
            self._table.query(
                {
                    "IndexName": "OpenHolds",
                    "KeyConditionExpression": "openHold = :shard AND leaseExpiresAt <= :now",
                    "ExpressionAttributeValues": {":shard": string(str(shard)), ":now": now},
                    "Limit": HOLDS_PER_PAGE,
                },
                deadline,
            )
            for shard in range(HOLD_SHARDS)
        ]
        for abreast in zip_longest(*partitions):
            yield from (item for item in abreast if item is not None)

    def close_hold(self, generation: Generation, deadline: Deadline) -> None:
        """Takes a refunded generation out of ``OpenHolds``: nothing of it is left in the store."""
        refunded = "#status = :refunded"
        update: dict[str, Any] = {
            "Key": generation.key,
            "ConditionExpression": refunded,
            "UpdateExpression": "REMOVE openHold, leaseExpiresAt",
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

    def create_account(
        self, organisation: str, deadline: Deadline, rate_limit: int = DEFAULT_RATE_LIMIT
    ) -> None:
        """Opens an account with no credits; one that exists stays as it is."""
        item = account_key(organisation) | {
            "credits": number(0),
            "createdAt": number(self._now_s()),
            "rateLimit": number(rate_limit),
        }
        not_there_yet = "attribute_not_exists(pk)"
        with contextlib.suppress(ConditionFailed):
            self._table.put({"Item": item, "ConditionExpression": not_there_yet}, deadline)

    def set_rate_limit(self, organisation: str, rate_limit: int, deadline: Deadline) -> bool:
        """Lets the organisation start ``rate_limit`` generations a minute; 0 closes it.

        Returns:
            Whether there is such an organisation.
        """
        account_exists = "attribute_exists(pk)"
        update: dict[str, Any] = {
            "Key": account_key(organisation),
            "ConditionExpression": account_exists,
            "UpdateExpression": "SET rateLimit = :limit",
            "ExpressionAttributeValues": {":limit": number(rate_limit)},
        }
        try:
            self._table.update(update, deadline)
        except ConditionFailed:
            return False
        return True

    def grant(self, organisation: str, grant: Grant, deadline: Deadline) -> None:
        """Adds ``grant.credits`` (negative: takes them), once for each ``grant_id``.

        When the ledger is unreachable, repeat it with the same id.

        Raises:
            GrantRejectedError: no such account, fewer credits than are to be taken, or the id was
                used for another amount.
        """
        never_used = "attribute_not_exists(pk)"
        stays_above_zero = "credits >= :floor"
        put: dict[str, Any] = {
            "Item": grant.to_item(organisation),
            "ConditionExpression": never_used,
        }
        add: dict[str, Any] = {
            "Key": account_key(organisation),
            "ConditionExpression": stays_above_zero,
            "UpdateExpression": "SET credits = credits + :credits",
            "ExpressionAttributeValues": {
                ":credits": number(grant.credits),
                ":floor": number(max(0, -grant.credits)),
            },
        }
        reasons = self._table.transact([{"Put": put}, {"Update": add}], deadline)
        if reasons:
            _check_granted(organisation, grant, reasons)

    def organisations(self, deadline: Deadline) -> list[str]:
        """Every organisation with an account, by name. It reads the whole table."""
        scan: dict[str, Any] = {
            "FilterExpression": "sk = :account",
            "ExpressionAttributeValues": {":account": string("ACCOUNT")},
            "ProjectionExpression": "pk",
        }
        return sorted(map(organisation_of, self._table.scan(scan, deadline)))

    def accounts(self, deadline: Deadline) -> Iterator[tuple[str, Account]]:
        """Every organisation and its account, in the table's own order, page by page.

        It reads the whole table, and holds one page of it at a time.
        """
        scan: dict[str, Any] = {
            "FilterExpression": "sk = :account",
            "ExpressionAttributeValues": {":account": string("ACCOUNT")},
        }
        for item in self._table.scan(scan, deadline):
            yield organisation_of(item), Account.from_item(item)

    def grants(self, organisation: str, deadline: Deadline) -> Iterator[Grant]:
        """All grants of the organisation, in the order of their ids, page by page."""
        query: dict[str, Any] = {
            "KeyConditionExpression": "pk = :pk AND begins_with(sk, :grant)",
            "ExpressionAttributeValues": {
                ":pk": account_key(organisation)["pk"],
                ":grant": string("GRANT#"),
            },
            "ConsistentRead": True,
        }
        return map(Grant.from_item, self._table.query(query, deadline))

    def audit(self, organisation: str, deadline: Deadline) -> AuditReport:
        """Recomputes the organisation's money from its rows; see ``lib.audit``.

        The rows can't be read at one instant while requests go on, so they are read again until
        the account was the same before and after; an account that never is counts as unreachable.
        """
        query: dict[str, Any] = {
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": account_key(organisation)["pk"]},
            "ConsistentRead": True,
        }
        for _ in range(AUDIT_TRIES):
            before = self.account(organisation, deadline)
            items = list(self._table.query(query, deadline))
            if self.account(organisation, deadline) == before:
                return audit_of(organisation, before, items, self._now_s())
        raise LedgerUnreachable(maybe_done=False)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _now_s(self) -> int:
        return int(self._clock())


def _status_of(item: Item | None) -> Status | None:
    return Status(item["status"]["S"]) if item else None


def _check_granted(organisation: str, grant: Grant, reasons: list[Reason]) -> None:
    """Returns when the grant had been made before; otherwise says why it can't be."""
    earlier = reasons[0].get("Item")
    if earlier:
        if Grant.from_item(earlier).credits != grant.credits:
            raise GrantRejectedError(f"the grant id {grant.grant_id} was used for another amount")
        return
    account = reasons[1].get("Item")
    if not account:
        raise GrantRejectedError(f"there is no organisation {organisation}; create it first")
    has = Account.from_item(account).credits
    raise GrantRejectedError(f"{organisation} has {has} credits; {-grant.credits} can't be taken")
