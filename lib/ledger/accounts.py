"""The operator's side of the ledger: accounts, grants and the audit of an organisation."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lib.deadline import Deadline
from lib.ledger.audit import Auditor, AuditReport
from lib.ledger.rows import (
    DEFAULT_RATE_LIMIT,
    Account,
    Generation,
    Grant,
    Item,
    account_key,
    generation_key,
    listed_organisation,
    listing_key,
    number,
    string,
)
from lib.ledger.table import ConditionFailed, Reason, Table
from lib.ledger.usage import Usage, usage_of_month

if TYPE_CHECKING:
    from lib.ledger.image_audit import ImageReport
    from lib.picture.storage import Images

__all__ = ["Accounts", "GrantRejectedError"]

# What a generation's row holds, but for what the customer wrote.
_WITHOUT_PROMPT = (
    *("pk", "sk", "status", "credits", "attemptId", "imageKey", "aspectRatio", "requestHash"),
    *("keyId", "model", "settledAt", "refundedAt", "failureCode", "imageSha256"),
)


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

    def exists(self, organisation: str, deadline: Deadline) -> bool:
        """Whether it has an account, is listed, or has left any row."""
        keys = (account_key(organisation), listing_key(organisation))
        if any(self._table.get(key, deadline) for key in keys):
            return True
        query: dict[str, Any] = {
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": account_key(organisation)["pk"]},
            "ConsistentRead": True,
            "Limit": 1,
        }
        return next(self._table.query(query, deadline), None) is not None

    def create(
        self, organisation: str, deadline: Deadline, rate_limit: int = DEFAULT_RATE_LIMIT
    ) -> None:
        """Opens an account with 0 credits, and lists it; an existing account stays as it is."""
        item = account_key(organisation) | {
            "credits": number(0),
            "createdAt": number(self._now_s()),
            "rateLimit": number(rate_limit),
            "granted": number(0),
            "taken": number(0),
            "returned": number(0),
        }
        # Race: two operators create it, and the first one grants. Without the condition, the second
        # would reset the balance to 0.
        not_there_yet = "attribute_not_exists(pk)"
        account = {"Item": item, "ConditionExpression": not_there_yet}
        listing = {"Item": listing_key(organisation)}
        if self._table.transact([{"Put": account}, {"Put": listing}], deadline):
            # The account may have lost its place in the list.
            self._table.put(listing, deadline)

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
        # Counters only grow: credits that a grant takes count like those that a reservation takes.
        counter = "granted" if grant.credits > 0 else "taken"
        add: dict[str, Any] = {
            "Key": account_key(organisation),
            "ConditionExpression": stays_above_zero,
            "UpdateExpression": f"ADD {counter} :amount SET credits = credits + :credits",
            "ExpressionAttributeValues": {
                ":credits": number(grant.credits),
                ":amount": number(abs(grant.credits)),
                ":floor": number(max(0, -grant.credits)),
            },
        }
        reasons = self._table.transact([{"Put": put}, {"Update": add}], deadline)
        if reasons:
            _check_granted(organisation, grant, reasons)

    def organisations(self, deadline: Deadline) -> list[str]:
        """The names of all organisations, sorted, from the partition that lists them."""
        return list(self._listed(deadline))

    def all(self, deadline: Deadline) -> Iterator[tuple[str, Account | None]]:
        """All organisations by name, one read each; None for one whose account is missing."""
        for organisation in self._listed(deadline):
            yield organisation, self.account(organisation, deadline)

    def _listed(self, deadline: Deadline) -> Iterator[str]:
        query: dict[str, Any] = {
            "KeyConditionExpression": "pk = :orgs",
            "ExpressionAttributeValues": {":orgs": listing_key("")["pk"]},
            "ConsistentRead": True,
        }
        return map(listed_organisation, self._table.query(query, deadline))

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

    def generations(
        self, organisation: str, first_ms: int, end_ms: int, deadline: Deadline
    ) -> Iterator[Generation]:
        """The generations created from ``first_ms`` until before ``end_ms``, oldest first.

        Times are in epoch milliseconds. It keeps one page in memory; prompts are not read.
        """
        names = {f"#{at}": name for at, name in enumerate(_WITHOUT_PROMPT)}
        query: dict[str, Any] = {
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ProjectionExpression": ", ".join(names),
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": {
                ":pk": account_key(organisation)["pk"],
                ":first": generation_key(organisation, first_ms)["sk"],
                ":last": generation_key(organisation, end_ms - 1)["sk"],
            },
            "ConsistentRead": True,
        }
        return map(Generation.from_item, self._table.query(query, deadline))

    def usage(self, organisation: str, month: str, deadline: Deadline) -> Iterator[Usage]:
        """What the organisation's API keys spent in a month such as ``2026-11``."""
        return usage_of_month(self._table, organisation, month, deadline)

    def audit(self, organisation: str, deadline: Deadline) -> AuditReport:
        """Compares the organisation's rows with its account; see ``lib.ledger.audit``."""
        return Auditor(self._table, self._clock).audit(organisation, deadline)

    def audit_images(
        self, organisation: str, images: "Images", deadline: Deadline, kept_since_ms: int = 0
    ) -> "ImageReport":
        """Compares the organisation's rows with its objects; see ``lib.ledger.image_audit``.

        Raises:
            StorageUnreachable
        """
        from lib.ledger.image_audit import audit_images  # noqa: PLC0415 - only an operator's

        return audit_images(self._table, images, organisation, deadline, kept_since_ms)

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
