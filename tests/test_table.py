"""The pauses between retries of a DynamoDB call, and the pages of a query."""

from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from lib.deadline import Deadline
from lib.ledger.table import LedgerUnreachable, Table

CONFLICT = "TransactionConflict"
THROTTLED = "ThrottlingError"


class Refusing:
    """A DynamoDB client that cancels the first ``times`` transactions for these reasons."""

    def __init__(self, times: int, *codes: str) -> None:
        self._left = times
        self._codes = codes

    def transact_write_items(self, **_arguments: object) -> dict[str, object]:
        if self._left == 0:
            return {}
        self._left -= 1
        response: Any = {
            "Error": {"Code": "TransactionCanceledException"},
            "CancellationReasons": [{"Code": code} for code in self._codes],
        }
        raise ClientError(response, "TransactWriteItems")


def pauses_of(times: int, *codes: str, seconds: float = 1000) -> list[float]:
    """The upper limit of each pause."""
    pauses: list[float] = []
    client = cast("Any", Refusing(times, *codes))
    table = Table(client, "credits", sleep=pauses.append, jitter=lambda: 1.0)
    table.transact([], Deadline(seconds, clock=lambda: 0.0))
    return pauses


def test_pauses_after_conflicts_grow_to_a_fifth_of_a_second_and_shrink_for_those_who_lose() -> None:
    pauses = pauses_of(60, CONFLICT, "None")

    assert pauses[:6] == [0.025, 0.05, 0.1, 0.2, 0.2, 0.2]
    assert pauses[5:] == sorted(pauses[5:], reverse=True)
    assert pauses[20] == pytest.approx(0.041, abs=0.001)
    assert pauses[-1] == 0.01


@pytest.mark.parametrize("codes", [(THROTTLED,), (CONFLICT, THROTTLED)])
def test_pauses_after_throttling_grow_to_four_fifths_of_a_second(codes: tuple[str, ...]) -> None:
    assert pauses_of(7, *codes) == [0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 0.8]


def test_a_retry_that_does_not_fit_into_the_deadline_is_not_made() -> None:
    with pytest.raises(LedgerUnreachable) as unreachable:
        pauses_of(6, CONFLICT, seconds=3.0)
    assert not unreachable.value.maybe_done


class Rows:
    """A DynamoDB client with ``count`` rows, which a query without a limit returns at once."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.pages: list[int] = []

    def query(self, **arguments: Any) -> dict[str, Any]:
        first = int(arguments.get("ExclusiveStartKey", {"sk": {"N": "0"}})["sk"]["N"])
        last = min(self._count, first + arguments.get("Limit", self._count))
        self.pages.append(last - first)
        more = {"LastEvaluatedKey": {"sk": {"N": str(last)}}} if last < self._count else {}
        return {"Items": [{"sk": {"N": str(each)}} for each in range(first, last)], **more}


def test_a_query_reads_all_rows_in_pages_that_fit_into_one_call() -> None:
    client = Rows(1_200)

    found = Table(cast("Any", client), "credits").query({}, Deadline(10))

    assert [int(row["sk"]["N"]) for row in found] == list(range(1_200))
    assert max(client.pages) <= 500
