"""The operator's side of the ledger: accounts, grants and the audit of an organisation."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from lib.deadline import Deadline
from lib.ledger.audit import AuditReport, audit_of
from lib.ledger.rows import (
    DEFAULT_RATE_LIMIT,
    Account,
    Grant,
    Item,
    account_key,
    generation_key,
    number,
    organisation_of,
    string,
)
from lib.ledger.table import ConditionFailed, LedgerUnreachable, Reason, Table
from lib.ledger.usage import Usage, added_up

__all__ = ["Accounts", "GrantRejectedError"]

AUDIT_TRIES = 20


class GrantRejectedError(Exception):
    """A grant is not possible; the message says why."""


class Accounts:
    """The accounts of all organisations. ``clock`` gives epoch seconds.

    Every method may raise ``LedgerUnreachable``: no decision in time.
    """

    def __init__(self, table: Table, clock: Callable[[], float] = time.time) -> None:
        self._table = table
        self._clock = clock

    def account(self, organisation: str, deadline: Deadline) -> Account | None:
        """The organisation's account as it is now; None if it does not exist."""
        item = self._table.get(account_key(organisation), deadline)
        return Account.from_item(item) if item else None

    def create(
        self, organisation: str, deadline: Deadline, rate_limit: int = DEFAULT_RATE_LIMIT
    ) -> None:
        """Opens an account with 0 credits; an existing account stays as it is."""
        item = account_key(organisation) | {
            "credits": number(0),
            "createdAt": number(self._now_s()),
            "rateLimit": number(rate_limit),
        }
        # Race: two operators create it, and the first one grants. Without the condition, the second
        # would reset the balance to 0.
        not_there_yet = "attribute_not_exists(pk)"
        with contextlib.suppress(ConditionFailed):
            self._table.put({"Item": item, "ConditionExpression": not_there_yet}, deadline)

    def set_rate_limit(
        self, organisation: str, rate_limit: int, actor: str, deadline: Deadline
    ) -> Account | None:
        """Limits the organisation to ``rate_limit`` generations a minute; 0 stops it.

        Returns:
            The account afterwards; None if the organisation does not exist.
        """
        values = {":limit": number(rate_limit), ":actor": string(actor)}
        return self._change(
            organisation, "SET rateLimit = :limit, rateLimitBy = :actor", values, deadline
        )

    def suspend(
        self, organisation: str, reason: str, actor: str, deadline: Deadline
    ) -> Account | None:
        """Refuses the organisation's generations from the next debit on; returns as above.

        Accepted jobs go on, and reads still work. Suspended again, it keeps its first
        ``suspended_at``.
        """
        update = (
            "SET suspendedAt = if_not_exists(suspendedAt, :now), suspension = :reason,"
            " suspendedBy = :actor"
        )
        values = {
            ":now": number(self._now_s()),
            ":reason": string(reason),
            ":actor": string(actor),
        }
        return self._change(organisation, update, values, deadline)

    def resume(self, organisation: str, deadline: Deadline) -> Account | None:
        """Ends the suspension, if there is one; returns as above."""
        update = "REMOVE suspendedAt, suspension, suspendedBy"
        return self._change(organisation, update, {}, deadline)

    def _change(
        self, organisation: str, update: str, values: Item, deadline: Deadline
    ) -> Account | None:
        # Not a race: without the condition, a mistyped name would become an account.
        account_exists = "attribute_exists(pk)"
        write: dict[str, Any] = {
            "Key": account_key(organisation),
            "ConditionExpression": account_exists,
            "UpdateExpression": update,
            "ReturnValues": "ALL_NEW",
        }
        if values:
            write["ExpressionAttributeValues"] = values
        try:
            return Account.from_item(self._table.update(write, deadline))
        except ConditionFailed:
            return None

    def grant(self, organisation: str, grant: Grant, deadline: Deadline) -> None:
        """Adds ``grant.credits`` (negative: takes them), once per ``grant_id``.

        After ``LedgerUnreachable``, repeat it with the same id.

        Raises:
            GrantRejectedError: no such account, too few credits to take, or the id was used for
                another amount.
        """
        # Race: the same grant, repeated after its response was lost. Without the condition, it
        # would count twice.
        never_used = "attribute_not_exists(pk)"
        # Race: a reservation spends the credits that are being taken. Without the condition, the
        # balance would go below 0.
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
        """The names of all organisations with an account, sorted; it scans the whole table."""
        scan: dict[str, Any] = {
            "FilterExpression": "sk = :account",
            "ExpressionAttributeValues": {":account": string("ACCOUNT")},
            "ProjectionExpression": "pk",
        }
        return sorted(map(organisation_of, self._table.scan(scan, deadline)))

    def all(self, deadline: Deadline) -> Iterator[tuple[str, Account]]:
        """All organisations and their accounts, in the table's order, page by page.

        It scans the whole table and keeps one page in memory.
        """
        scan: dict[str, Any] = {
            "FilterExpression": "sk = :account",
            "ExpressionAttributeValues": {":account": string("ACCOUNT")},
        }
        for item in self._table.scan(scan, deadline):
            yield organisation_of(item), Account.from_item(item)

    def grants(self, organisation: str, deadline: Deadline) -> Iterator[Grant]:
        """The organisation's grants, ordered by id, page by page."""
        query: dict[str, Any] = {
            "KeyConditionExpression": "pk = :pk AND begins_with(sk, :grant)",
            "ExpressionAttributeValues": {
                ":pk": account_key(organisation)["pk"],
                ":grant": string("GRANT#"),
            },
            "ConsistentRead": True,
        }
        return map(Grant.from_item, self._table.query(query, deadline))

    def usage(self, organisation: str, first_ms: int, last_ms: int, deadline: Deadline) -> Usage:
        """What the organisation used in a time, of which both ends (epoch milliseconds) count."""
        query: dict[str, Any] = {
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ExpressionAttributeNames": {"#status": "status"},
            "ExpressionAttributeValues": {
                ":pk": account_key(organisation)["pk"],
                ":first": generation_key(organisation, first_ms)["sk"],
                ":last": generation_key(organisation, last_ms)["sk"],
            },
            "ProjectionExpression": "#status, credits",
            "ConsistentRead": True,
        }
        return added_up(self._table.query(query, deadline))

    def audit(self, organisation: str, deadline: Deadline) -> AuditReport:
        """Recomputes the organisation's money from its rows; see ``lib.ledger.audit``.

        The rows cannot be read at one instant while requests go on, so they are read again until
        the account is the same before and after; an account that keeps changing counts as
        unreachable.
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

    def _now_s(self) -> int:
        return int(self._clock())


def _check_granted(organisation: str, grant: Grant, reasons: list[Reason]) -> None:
    """Returns if this grant was made before; otherwise raises why it is not possible."""
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
