"""A month's statement of an organisation: its lines, and the claims that are signed.

    closing = opening + grants - charges

Opening is what the statement before closed with, or what the history adds up to. The account is
read too, and what has happened since the month's end leads from closing to its credits, or the
statement is refused.
"""

import csv
import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from lib.deadline import Deadline
from lib.ledger.accounts import Accounts
from lib.ledger.ledger import LAST_MS
from lib.ledger.rows import Generation, Status
from lib.receipts.receipt import payload_of, receipt_of

__all__ = [
    "Digest",
    "Line",
    "Month",
    "Statement",
    "StatementRefused",
    "Usage",
    "lines_as_csv",
    "sha256_of",
    "statement_of",
    "totals_of",
    "with_signature",
]

# By then every generation of the month has ended, whatever the clocks and the queue did.
ENDED_AFTER_S = 3600


class StatementRefused(Exception):
    """No statement can be made; the message is one sentence without a full stop."""


@dataclass(frozen=True, slots=True)
class Month:
    """A calendar month in UTC, such as ``2026-11``. Times are in epoch seconds."""

    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> "Month":
        """Reads ``YYYY-MM``.

        Raises:
            ValueError
        """
        found = re.fullmatch(r"(20[0-9]{2})-(0[1-9]|1[0-2])", text)
        if found is None:
            raise ValueError(text)
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.year}-{self.month:02d}"

    @property
    def begins_at(self) -> int:
        """Its first second."""
        return int(datetime(self.year, self.month, 1, tzinfo=UTC).timestamp())

    @property
    def ends_at(self) -> int:
        """The first second after it."""
        return self.next().begins_at

    def next(self) -> "Month":
        """The month after it."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)


@dataclass(frozen=True, slots=True)
class Line:
    """One line. The lines' ``credits`` add up: opening, grants, charges (negative) make closing.

    ``refunds`` counts generations that cost nothing, and ``refunded`` the credits that they held.
    """

    kind: str
    date: str
    key: str = ""
    grant: str = ""
    images: int = 0
    credits: int = 0
    refunds: int = 0
    refunded: int = 0


@dataclass(frozen=True, slots=True)
class Statement:
    """The claims to sign, and the lines whose hash they hold."""

    claims: Mapping[str, Any]
    lines: list[Line]


class Usage:
    """What the receipts of a month add up to, by day and key."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])

    def add(self, claims: Mapping[str, Any]) -> None:
        """Adds one receipt."""
        counted = self._lines[str(claims["createdAt"])[:10], str(claims["key"])]
        settled = claims["outcome"] == Status.SETTLED
        counted[0 if settled else 2] += 1
        counted[1] -= claims["creditsCharged"]
        counted[3] += claims["creditsRefunded"]

    def lines(self) -> list[Line]:
        """One line for each day and key, in order."""
        return [
            Line("usage", date, key, "", *counted)
            for (date, key), counted in sorted(self._lines.items())
        ]


class Digest:
    """The hash of receipts: SHA-256 of their payloads' SHA-256, ordered by generation."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.count = 0

    def add(self, payload: bytes) -> None:
        """Adds the next receipt."""
        self.add_hash(hashlib.sha256(payload).digest())

    def add_hash(self, payload_sha256: bytes) -> None:
        """Adds the next receipt, of whose payload only the hash was kept."""
        self._hash.update(payload_sha256)
        self.count += 1

    def hex(self) -> str:
        """The hash of all that were added, 64 hex digits."""
        return self._hash.hexdigest()


def statement_of(
    accounts: Accounts,
    organisation: str,
    month: Month,
    *,
    issuer: str,
    now_s: float,
    deadline: Deadline,
    previous: Mapping[str, Any] | None = None,
) -> Statement:
    """The organisation's statement for ``month``; memory does not grow with the generations.

    ``previous`` are the claims of the statement before, verified; without them opening is what all
    earlier rows add up to.

    Raises:
        StatementRefused: the month is not over, or the credits do not add up.
        LedgerUnreachable
    """
    if now_s < month.ends_at + ENDED_AFTER_S:
        again = datetime.fromtimestamp(month.ends_at + ENDED_AFTER_S, UTC)
        raise StatementRefused(
            f"{month} is not over yet; repeat this after {again:%Y-%m-%d %H:%M}Z"
        )
    earlier, granted = _grants(accounts, organisation, month, deadline)
    if previous is None:
        before = _in_range(accounts, organisation, 0, month.begins_at * 1000, deadline)
        opening = earlier - sum(each.credits for each in before if each.status is Status.SETTLED)
    else:
        opening = _closing_of(previous, organisation, issuer, month)
    usage, digest = Usage(), Digest()
    first_ms, end_ms = month.begins_at * 1000, month.ends_at * 1000
    for each in _in_range(accounts, organisation, first_ms, end_ms, deadline):
        claims = receipt_of(each, issuer)
        usage.add(claims)
        digest.add(payload_of(claims))
    middle = [*granted, *usage.lines()]
    closing = opening + sum(each.credits for each in middle)
    _check_account(accounts, organisation, month, closing, deadline)
    last_day = datetime.fromtimestamp(month.ends_at - 1, UTC)
    lines = [
        Line("opening", f"{month}-01", credits=opening),
        *middle,
        Line("closing", f"{last_day:%Y-%m-%d}", credits=closing),
    ]
    claims = {
        "iss": issuer,
        "organisation": organisation,
        "month": str(month),
        **totals_of(lines),
        "receipts": digest.count,
        "receiptsSha256": digest.hex(),
        "linesSha256": hashlib.sha256(lines_as_csv(lines)).hexdigest(),
        "previousSha256": None if previous is None else sha256_of(previous),
    }
    return Statement(claims, lines)


def totals_of(lines: Iterable[Line]) -> dict[str, int]:
    """The sums that the claims hold. Closing is what the closing line says, not a sum."""
    by_kind: dict[str, list[Line]] = defaultdict(list)
    for each in lines:
        by_kind[each.kind].append(each)

    def credits_of(kind: str) -> int:
        return sum(each.credits for each in by_kind[kind])

    return {
        "opening": credits_of("opening"),
        "grants": credits_of("grant"),
        "charges": -credits_of("usage"),
        "closing": credits_of("closing"),
        "images": sum(each.images for each in by_kind["usage"]),
        "refunds": sum(each.refunds for each in by_kind["usage"]),
        "refunded": sum(each.refunded for each in by_kind["usage"]),
    }


def sha256_of(claims: Mapping[str, Any]) -> str:
    """The hash by which the next statement names this one: of its payload, 64 hex digits."""
    return hashlib.sha256(payload_of(claims)).hexdigest()


def lines_as_csv(lines: Iterable[Line]) -> bytes:
    """The lines as CSV with a heading; what ``linesSha256`` is the hash of."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(field.name for field in fields(Line))
    writer.writerows(map(astuple, lines))
    return written.getvalue().encode()


def with_signature(statement: Statement, token: str, *, as_csv: bool) -> bytes:
    """The file that the customer gets: CSV whose last line is the signature, or JSON."""
    if as_csv:
        return lines_as_csv(statement.lines) + f"signature,,,,,,,{token}\n".encode()
    document = {
        "statement": statement.claims,
        "lines": [asdict(each) for each in statement.lines],
        "jws": token,
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def _grants(
    accounts: Accounts, organisation: str, month: Month, deadline: Deadline
) -> tuple[int, list[Line]]:
    """The credits granted before the month, and a line for each grant in it."""
    earlier, lines = 0, []
    for each in accounts.grants(organisation, deadline):
        if each.created_at < month.begins_at:
            earlier += each.credits
        elif each.created_at < month.ends_at:
            date = f"{datetime.fromtimestamp(each.created_at, UTC):%Y-%m-%d}"
            lines.append(Line("grant", date, grant=each.grant_id, credits=each.credits))
    return earlier, sorted(lines, key=lambda line: (line.date, line.grant))


def _in_range(
    accounts: Accounts, organisation: str, first_ms: int, end_ms: int, deadline: Deadline
) -> Iterator[Generation]:
    """The generations of a time that is over.

    Raises:
        StatementRefused: one has not ended.
    """
    if first_ms >= end_ms:
        return
    for each in accounts.generations(organisation, first_ms, end_ms, deadline):
        if each.status is Status.RESERVED:
            raise StatementRefused(
                f"generation {each.id} is still reserved; run `audit {organisation}`"
            )
        yield each


def _closing_of(previous: Mapping[str, Any], organisation: str, issuer: str, month: Month) -> int:
    of_whom = (previous["iss"], previous["organisation"])
    if of_whom != (issuer, organisation) or Month.parse(previous["month"]).next() != month:
        raise StatementRefused(
            f"the statement before is of {previous['organisation']} for {previous['month']}; pass "
            f"that of {organisation} for the month before {month}"
        )
    return int(previous["closing"])


@dataclass(frozen=True, slots=True)
class _Since:
    """What has happened since the month's end. ``taken`` and ``returned`` only grow."""

    granted: int
    taken: int
    returned: int


def _check_account(
    accounts: Accounts, organisation: str, month: Month, closing: int, deadline: Deadline
) -> None:
    """Leads from ``closing`` to the account's credits, at any load.

    The rows are read before and after the account, which lies between: exactly on them when nothing
    happens meanwhile.

    Raises:
        StatementRefused: it does not.
    """
    before = _since(accounts, organisation, month, deadline)
    account = accounts.account(organisation, deadline)
    after = _since(accounts, organisation, month, deadline)
    found = account.credits if account else 0
    granted = sorted((before.granted, after.granted))
    least = closing + granted[0] - after.taken + before.returned
    most = closing + granted[1] - before.taken + after.returned
    if not least <= found <= most:
        raise StatementRefused(
            f"{month} would close with {closing} credits, from which the rows since lead to "
            f"{most}, but the account has {found}; run `audit {organisation}`"
        )


def _since(accounts: Accounts, organisation: str, month: Month, deadline: Deadline) -> _Since:
    granted = sum(
        each.credits
        for each in accounts.grants(organisation, deadline)
        if each.created_at >= month.ends_at
    )
    taken = returned = 0
    end_ms = month.ends_at * 1000
    for each in accounts.generations(organisation, end_ms, LAST_MS + 1, deadline):
        taken += each.credits
        returned += each.credits if each.status is Status.REFUNDED else 0
    return _Since(granted, taken, returned)
