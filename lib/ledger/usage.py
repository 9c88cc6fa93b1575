"""What an organisation used, added up from its generations."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lib.ledger.rows import Item, Status

__all__ = ["Usage", "added_up"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Images are settled generations, refunds are refunded ones; the rest is in credits.

    ``held`` are the credits of generations in progress.
    """

    images: int
    charged: int
    held: int
    refunds: int
    refunded: int


def added_up(items: Iterable[Item]) -> Usage:
    """The usage that the rows of generations show, of which ``status`` and ``credits`` count."""
    many: Counter[Status] = Counter()
    credits_: Counter[Status] = Counter()
    for item in items:
        status = Status(item["status"]["S"])
        many[status] += 1
        credits_[status] += int(item["credits"]["N"])
    return Usage(
        images=many[Status.SETTLED],
        charged=credits_[Status.SETTLED],
        held=credits_[Status.RESERVED],
        refunds=many[Status.REFUNDED],
        refunded=credits_[Status.REFUNDED],
    )
