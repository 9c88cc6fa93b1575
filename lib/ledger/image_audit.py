"""The audit of one organisation's images: what its rows say is stored, against what is.

    settled                  an object that is not empty
    settled, and deleted     no object, once nothing is due
    refunded, nothing due    no object, or an empty one: a tombstone, which shows nothing
    reserved, or still due   anything: a request or the reconciler is yet to decide
    no row                   no object that is not empty

Rows and objects both come in the order of time, so they are merged page by page, and memory does
not grow with them. A generation may end between the two reads: what disagrees is looked at again,
the row first and then the object, before it is a finding.
"""

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from lib.deadline import Deadline
from lib.ledger.rows import Item, Status, account_key, generation_key, string
from lib.ledger.table import Table
from lib.picture.storage import Images

__all__ = ["ImageReport", "audit_images"]

MAX_FINDINGS = 1000
_TIME = re.compile(r".*/([0-9]{13})[^/]*")


@dataclass(frozen=True, slots=True)
class ImageReport:
    """``stored`` objects that are not empty, and the findings: the first ``MAX_FINDINGS``."""

    stored: int
    findings: tuple[str, ...]


class _Row(NamedTuple):
    key: str
    created_ms: int
    status: Status
    is_due: bool
    is_deleted: bool


class _Found(NamedTuple):
    key: str
    row: _Row | None
    size_bytes: int


def audit_images(
    table: Table, images: Images, organisation: str, deadline: Deadline, kept_since_ms: int = 0
) -> ImageReport:
    """Compares the organisation's rows with its objects.

    Images from before ``kept_since_ms`` need not be there: a lifecycle rule may delete them.

    Raises:
        LedgerUnreachable, StorageUnreachable: they could not be read in time.
    """
    stored = 0
    findings: list[str] = []
    objects = images.stored(f"generated/gemini/{organisation}/", deadline)
    merged = heapq.merge(
        (_Found(row.key, row, 0) for row in _rows(table, organisation, deadline)),
        (_Found(key, None, size_bytes) for key, size_bytes in objects),
        key=attrgetter("key"),
    )
    for key, group in groupby(merged, key=attrgetter("key")):
        both = list(group)
        row = next((each.row for each in both if each.row), None)
        size_bytes = sum(each.size_bytes for each in both)
        stored += size_bytes > 0
        if size_bytes == 0 and row is not None and row.created_ms < kept_since_ms:
            continue
        if _disagreement(key, row, size_bytes):
            row = _row_again(table, organisation, key, row, deadline)
            again = next(images.stored(key, deadline), ("", 0))
            finding = _disagreement(key, row, again[1] if again[0] == key else 0)
            if finding and len(findings) < MAX_FINDINGS:
                findings.append(finding)
    return ImageReport(stored, tuple(findings))


def _disagreement(key: str, row: _Row | None, size_bytes: int) -> str | None:
    is_stored = size_bytes > 0
    if row is None:
        return f"{key} is stored, and belongs to no generation" if is_stored else None
    if row.is_due or row.status is Status.RESERVED:
        return None
    if (row.status is Status.SETTLED and not row.is_deleted) == is_stored:
        return None
    status = "deleted" if row.is_deleted else row.status
    state = "is stored" if is_stored else "is not stored"
    return f"generation {row.created_ms} is {status}, and its image {key} {state}"


def _row_again(
    table: Table, organisation: str, key: str, row: _Row | None, deadline: Deadline
) -> _Row | None:
    named = _TIME.fullmatch(key)
    created_ms = row.created_ms if row else int(named[1]) if named else None
    if created_ms is None:
        return None
    item = table.get(generation_key(organisation, created_ms), deadline)
    found = _row(item) if item else None
    return found if found and found.key == key else None


def _rows(table: Table, organisation: str, deadline: Deadline) -> Iterator[_Row]:
    query: dict[str, Any] = {
        "KeyConditionExpression": "pk = :pk AND begins_with(sk, :generation)",
        "ExpressionAttributeValues": {
            ":pk": account_key(organisation)["pk"],
            ":generation": string("GEN#"),
        },
        "ProjectionExpression": "sk, #status, imageKey, dueAt, deletedAt",
        "ExpressionAttributeNames": {"#status": "status"},
        "ConsistentRead": True,
    }
    return map(_row, table.query(query, deadline))


def _row(item: Item) -> _Row:
    return _Row(
        key=item["imageKey"]["S"],
        created_ms=int(item["sk"]["S"].removeprefix("GEN#")),
        status=Status(item["status"]["S"]),
        is_due="dueAt" in item,
        is_deleted="deletedAt" in item,
    )
