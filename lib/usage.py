"""A month's usage by API key: the ledger's meters with the keys' names and budgets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from lib.keys.records import KeyRecord
from lib.ledger.usage import Usage

__all__ = ["KeyUsage", "by_key"]


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What a key and those that it replaced used, under the id and the name of the newest.

    ``credits`` and ``images`` are charged or in progress; ``returned`` are credits that were
    refunded.
    """

    id: str
    name: str | None
    credits: int
    images: int
    returned: int
    monthly_budget: int | None


def by_key(usage: Iterable[Usage], records: Sequence[KeyRecord], now: datetime) -> list[KeyUsage]:
    """One entry for every live key and for every meter that counted, most credits first.

    Of the keys of a meter a live one gives the entry its id and name, or else the newest. A meter
    whose records are gone has its own id.
    """
    newest: dict[str, KeyRecord] = {}
    for record in sorted(records, key=lambda each: (each.is_live(now), each.created_at)):
        newest[record.meter] = record
    counted = {each.meter: each for each in usage}
    live = {meter for meter, record in newest.items() if record.is_live(now)}
    entries = [
        _entry(meter, newest.get(meter), counted.get(meter)) for meter in live | counted.keys()
    ]
    return sorted(entries, key=lambda each: (-each.credits, each.id))


def _entry(meter: str, record: KeyRecord | None, usage: Usage | None) -> KeyUsage:
    return KeyUsage(
        id=meter if record is None else record.id,
        name=None if record is None else record.name,
        credits=0 if usage is None else usage.credits,
        images=0 if usage is None else usage.images,
        returned=0 if usage is None else usage.returned,
        monthly_budget=None if record is None else record.monthly_budget,
    )
