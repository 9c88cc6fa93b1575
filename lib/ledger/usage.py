"""What API keys spend: one row for each month and meter, changed in the money's own transactions.

    reserve   credits + price, taken + price       with the debit, if the key's budget allows it
    refund    credits - price, returned + price    with the refund

``credits`` is what is reserved or settled, so that ``credits = taken - returned``; the two others
only grow, as those of the account do, which lets the audit prove them beside requests.

A *meter* counts for a key and for those that replaced it by rotation: it has the id of the first of
them. The month, in UTC, is that of the generation's creation time: a refund after the month's end
goes to the row that counted the generation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lib.deadline import Deadline
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.ledger.rows import Generation, Item, account_key, number, string
from lib.ledger.table import Table

__all__ = ["Usage", "count", "month_of", "take_back", "usage_of_month"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a meter counted in a month such as ``2026-11``, in credits."""

    month: str
    meter: str
    credits: int
    taken: int
    returned: int

    @classmethod
    def from_item(cls, item: Item) -> "Usage":
        """Reads a stored row.

        Raises:
            KeyError, ValueError: it is malformed.
        """
        _, month, meter = str(item["sk"]["S"]).split("#", 2)
        credits_, taken, returned = (
            int(item.get(name, {"N": "0"})["N"]) for name in ("credits", "taken", "returned")
        )
        return cls(month, meter, credits_, taken, returned)

    @property
    def images(self) -> int:
        """The images that are made, or in progress."""
        return self.credits // CREDITS_PER_IMAGE


def month_of(epoch_s: float) -> str:
    """The month in UTC, such as ``2026-11``."""
    return f"{datetime.fromtimestamp(epoch_s, UTC):%Y-%m}"


def usage_of_month(
    table: Table, organisation: str, month: str, deadline: Deadline
) -> Iterator[Usage]:
    """The organisation's usage rows of a month, however many generations these count.

    Raises:
        LedgerUnreachable
    """
    query: dict[str, Any] = {
        "KeyConditionExpression": "pk = :pk AND begins_with(sk, :month)",
        "ExpressionAttributeValues": {
            ":pk": account_key(organisation)["pk"],
            ":month": string(f"USAGE#{month}#"),
        },
        "ConsistentRead": True,
    }
    return map(Usage.from_item, table.query(query, deadline))


def count(generation: Generation, monthly_budget: int | None) -> list[dict[str, Any]]:
    """The write that counts a reservation; none if it has no meter.

    Its condition is false if the month's credits would exceed ``monthly_budget``.
    """
    update = _change(generation, "ADD credits :price, taken :price")
    if update is None:
        return []
    if monthly_budget is not None:
        room = monthly_budget - generation.credits
        # Race: two requests for the last credits of a budget. Without it, both pass, and the key
        # spends more than its budget.
        within_budget = "credits <= :room"
        if room >= 0:
            within_budget += " OR attribute_not_exists(credits)"
        update["ConditionExpression"] = within_budget
        update["ExpressionAttributeValues"][":room"] = number(room)
    return [{"Update": update}]


def take_back(generation: Generation) -> list[dict[str, Any]]:
    """The write that counts a refund; none if the generation was not counted.

    It needs no condition: it commits with the refund, which happens once.
    """
    update = _change(generation, "ADD credits :less, returned :price")
    if update is None:
        return []
    update["ExpressionAttributeValues"][":less"] = number(-generation.credits)
    return [{"Update": update}]


def _change(generation: Generation, expression: str) -> dict[str, Any] | None:
    if generation.meter is None:
        return None
    month = month_of(generation.created_ms // 1000)
    return {
        "Key": {
            "pk": account_key(generation.organisation)["pk"],
            "sk": string(f"USAGE#{month}#{generation.meter}"),
        },
        "UpdateExpression": expression,
        "ExpressionAttributeValues": {":price": number(generation.credits)},
    }
