"""The audit of one organisation: its rows against its account, beside any number of requests.

    credits = granted - taken + returned, in every read of the account; and by the rows
    granted = the grants that added credits
    taken = the price of every generation, and the grants that took credits
    returned = the price of every refunded generation

so grants = credits + the price of every reserved and settled generation. In each usage row, too,
credits = taken - returned, and by the rows

    taken = the price of every generation of its meter and month
    returned = the price of every refunded one of these

Besides,

    credits never go below 0
    a generation ends settled or refunded, two minutes after its lease at the latest
    an idempotency key has at most one settled generation in its 24 hours
    an organisation that has rows has an account, and is listed

The rows of a busy account can't be read at one instant. The audit reads old generations once, and
then *windows*: the account and the usage rows (``before``), the rows that can still change, the
account and the usage rows (``after``).

Old is what was created ``CAN_CHANGE_S`` before the audit began. No reservation gets such a time any
more: clocks differ by ``MAX_CLOCK_SKEW_S`` at most, and a reservation commits within seconds of the
time in its key. An old generation that has ended is final; one that is reserved belongs to the
windows, and so does every grant.

Reserve, refund and grant change counters and a row in one transaction, and no row is deleted. So
the rows, read after ``before``, hold all that it counts; and read before ``after``, nothing that it
does not count. For each counter and the sum over the rows:

    before <= rows <= after, that is  rows - after <= 0 <= rows - before

If both reads are equal, nothing was counted between them, because counters only grow, and the rows
must agree to the credit. Otherwise a drift, which requests do not change, is at least
``rows - after`` and at most ``rows - before``, in this window and in every other: in the
intersection. What happens during a window happens mostly to the newest rows. Read oldest first,
they come last, and ``rows`` lacks only what came after them, so ``rows - after`` is nearly the
drift; read newest first, ``rows - before`` is. So windows alternate, and two of them usually leave
one figure, at any load. ``AuditReport.slack`` is what ``MAX_WINDOWS`` of them leave open.

A reader outside a transaction may see one item of it a moment before the other ("Amazon DynamoDB
Transactions: How it works", read-committed isolation). So a disagreement is believed once
``MAX_SERIES`` series of windows have found one.
"""

from array import array
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from lib.deadline import (
    IDEMPOTENCY_TTL_S,
    LEASE_S,
    MAX_CLOCK_SKEW_S,
    REFUNDED_WITHIN_S,
    RESERVE_WITHIN_S,
    Deadline,
)
from lib.ledger.rows import (
    Account,
    Item,
    Status,
    account_key,
    generation_key,
    listing_key,
    string,
)
from lib.ledger.table import Table
from lib.ledger.usage import Usage, month_of

__all__ = ["AuditReport", "Auditor", "audit_of"]

# Twice the time that a reservation may take, for the calls that are under way at its end.
CAN_CHANGE_S = MAX_CLOCK_SKEW_S + 2 * RESERVE_WITHIN_S
MAX_WINDOWS = 8
MAX_SERIES = 3
MAX_FINDINGS = 1000
_NO_ACCOUNT = Account(0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The figures and findings.

    ``granted`` is what grants added, less what they took. ``drift`` is in credits; above 0, credits
    came from nowhere. ``slack`` is how many credits of drift, of the account or of a usage row,
    could still be hidden, because more requests than could be told apart came in during the audit;
    0 on all but the busiest accounts.
    """

    organisation: str
    credits: int
    granted: int
    reserved: int
    settled: int
    refunded: int
    drift: int
    slack: int
    findings: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is no drift and no finding."""
        return self.drift == 0 and not self.findings


class Seen(NamedTuple):
    """A generation as it was at ``seen_at``, in epoch seconds."""

    created_ms: int
    status: Status
    credits: int
    idempotency_key: str | None
    due_at: int | None
    seen_at: float
    meter: str | None


@dataclass(slots=True)
class Books:
    """Sums over generations, and what is wrong with single ones. Memory: 8 bytes for each."""

    counts: Counter[Status] = field(default_factory=Counter)
    credits: Counter[Status] = field(default_factory=Counter)
    counters: "Counters" = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    _times_ms: "array[int]" = field(default_factory=lambda: array("q"))
    _charged_ms: dict[str, int] = field(default_factory=dict)
    _forget_at_ms: int = 0

    def add(self, row: Seen) -> None:
        """Counts a generation. Call it in the order of their creation."""
        self.counts[row.status] += 1
        self.credits[row.status] += row.credits
        _count(self.counters, row)
        insort(self._times_ms, row.created_ms)
        if row.status is Status.SETTLED and row.idempotency_key is not None:
            self._charge(row.idempotency_key, row.created_ms)
        if row.status is Status.RESERVED and row.due_at is None:
            self.findings.append(f"generation {row.created_ms} is reserved without a lease")
        overdue_s = 0 if row.due_at is None else int(row.seen_at) - row.due_at
        if overdue_s > REFUNDED_WITHIN_S - LEASE_S:
            self.findings.append(
                f"generation {row.created_ms} ({row.status}) was due {overdue_s} s ago"
            )

    def knows(self, created_ms: int) -> bool:
        """Whether the generation was counted."""
        at = bisect_left(self._times_ms, created_ms)
        return at < len(self._times_ms) and self._times_ms[at] == created_ms

    def _charge(self, key: str, created_ms: int) -> None:
        ttl_ms = IDEMPOTENCY_TTL_S * 1000
        if created_ms >= self._forget_at_ms:
            recent_ms = created_ms - ttl_ms
            self._charged_ms = {k: ms for k, ms in self._charged_ms.items() if ms > recent_ms}
            self._forget_at_ms = created_ms + ttl_ms
        earlier_ms = self._charged_ms.get(key)
        if earlier_ms is not None and abs(created_ms - earlier_ms) < ttl_ms:
            self.findings.append(
                f"generations {earlier_ms} and {created_ms} were charged for one idempotency key"
            )
        self._charged_ms[key] = created_ms


@dataclass(slots=True)
class Standing:
    """The account and the usage rows, by month and meter, each as it was at one instant."""

    account: Account | None
    usage: dict[str, Usage] = field(default_factory=dict)
    malformed: list[str] = field(default_factory=list)

    def add(self, item: Item) -> None:
        """Takes in a usage row."""
        try:
            usage = Usage.from_item(item)
        except (KeyError, ValueError):
            self.malformed.append(_malformed(item))
        else:
            self.usage[_counted_by(usage.month, usage.meter)] = usage

    def counters(self) -> "Counters":
        """The counters that only grow."""
        account = self.account or _NO_ACCOUNT
        counters: Counters = Counter()
        counters["granted", ACCOUNT] = account.granted
        counters["taken", ACCOUNT] = account.taken
        counters["returned", ACCOUNT] = account.returned
        for owner, usage in self.usage.items():
            counters["taken", owner] = usage.taken
            counters["returned", owner] = usage.returned
        return counters


@dataclass(slots=True)
class Window:
    """The rows that can still change, and what counts them before and after they were read."""

    before: Standing
    after: Standing
    generations: list[Seen] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    grants_added: int = 0
    grants_took: int = 0

    def add(self, item: Item, now_s: float) -> None:
        """Takes in a row: a generation or a grant."""
        kind = str(item["sk"]["S"]).partition("#")[0]
        try:
            if kind == "GEN":
                self.generations.append(_seen(item, now_s))
            elif kind == "GRANT":
                amount = int(item["credits"]["N"])
                self.grants_added += max(0, amount)
                self.grants_took += max(0, -amount)
        except (KeyError, ValueError):
            self.malformed.append(_malformed(item))

    def counters(self, ended: Books) -> "Counters":
        """The counters as these rows and those that had ``ended`` say."""
        counters = ended.counters.copy()
        counters["granted", ACCOUNT] += self.grants_added
        counters["taken", ACCOUNT] += self.grants_took
        for each in self.generations:
            _count(counters, each)
        return counters


@dataclass(slots=True)
class Difference:
    """What the rows hold more than a counter, in credits: between ``least`` and ``most``."""

    least: int
    most: int

    @property
    def certain(self) -> int:
        """The part of it that is certain: 0 if there may be none."""
        return self.least if self.least > 0 else min(self.most, 0)


ACCOUNT = "the account"
Counters = Counter[tuple[str, str]]
"""Credits by counter, such as ``taken``, and by what has it: the account, or a usage row."""
Differences = dict[tuple[str, str], Difference]


class Auditor:
    """Audits organisations. ``clock`` gives epoch seconds, as precisely as those of the service.

    Every method may raise ``LedgerUnreachable``: the rows could not be read in time.
    """

    def __init__(self, table: Table, clock: Callable[[], float]) -> None:
        self._table = table
        self._clock = clock

    def audit(self, organisation: str, deadline: Deadline) -> AuditReport:
        """The report on one organisation.

        It keeps the generations of the last quarter of an hour, and 8 bytes of each older one.
        """
        since_ms = int((self._clock() - CAN_CHANGE_S) * 1000)
        ended, reserved = self._ended(organisation, since_ms, deadline)
        read = partial(self._series, organisation, since_ms, ended, reserved, deadline)
        window, found = read()
        series = 1
        while series < MAX_SERIES and any(each.certain for each in found.values()):
            window, found = read()
            series += 1
        _close(ended, window)
        ended.findings += self._lost_claims(organisation, ended, deadline)
        listed = self._table.get(listing_key(organisation), deadline) is not None
        return _report(organisation, ended, window, found, listed=listed)

    def _ended(
        self, organisation: str, since_ms: int, deadline: Deadline
    ) -> tuple[Books, list[int]]:
        """The old generations that have ended, and the times of those that are reserved."""
        ended, reserved = Books(), []
        first, last = _sort_key(0), _sort_key(since_ms - 1)
        for item in self._rows(organisation, first, last, deadline):
            try:
                row = _seen(item, self._clock())
            except (KeyError, ValueError):
                ended.findings.append(_malformed(item))
                continue
            if row.status is Status.RESERVED:
                reserved.append(row.created_ms)
            else:
                ended.add(row)
        return ended, reserved

    def _series(
        self,
        organisation: str,
        since_ms: int,
        ended: Books,
        reserved: list[int],
        deadline: Deadline,
    ) -> tuple[Window, Differences]:
        """The last of some windows, and the differences that all of them allow."""
        found: Differences = {}
        for number in count(1):
            before = self._standing(organisation, deadline, account_last=True)
            window = Window(before, before)
            for item in self._rows(
                organisation, _sort_key(since_ms), "GRANT$", deadline, newest_first=number % 2 == 0
            ):
                window.add(item, self._clock())
            for created_ms in reserved:
                again = self._table.get(generation_key(organisation, created_ms), deadline)
                if again is not None:
                    window.add(again, self._clock())
            window.after = self._standing(organisation, deadline, account_last=False)
            _narrow(found, window, ended)
            if number == MAX_WINDOWS or all(each.least >= each.most for each in found.values()):
                return window, found
        raise AssertionError  # ``count`` does not end.

    def _lost_claims(self, organisation: str, books: Books, deadline: Deadline) -> Iterator[str]:
        """The idempotency rows without their generation, which came into being with them."""
        for item in self._rows(organisation, "IDEM#", "IDEM$", deadline):
            created_ms = int(item["generation"]["N"])
            key = generation_key(organisation, created_ms)
            if not books.knows(created_ms) and self._table.get(key, deadline) is None:
                yield f"an idempotency row names generation {created_ms}, which does not exist"

    def _standing(self, organisation: str, deadline: Deadline, *, account_last: bool) -> Standing:
        # The account is read next to the rows, so that least happens between the two.
        standing = Standing(None if account_last else self._account(organisation, deadline))
        for item in self._rows(organisation, "USAGE#", "USAGE$", deadline):
            standing.add(item)
        if account_last:
            standing.account = self._account(organisation, deadline)
        return standing

    def _account(self, organisation: str, deadline: Deadline) -> Account | None:
        item = self._table.get(account_key(organisation), deadline)
        return Account.from_item(item) if item else None

    def _rows(
        self,
        organisation: str,
        first: str,
        last: str,
        deadline: Deadline,
        *,
        newest_first: bool = False,
    ) -> Iterator[Item]:
        """The rows with these sort keys, without prompts."""
        query: dict[str, Any] = {
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ExpressionAttributeValues": {
                ":pk": account_key(organisation)["pk"],
                ":first": string(first),
                ":last": string(last),
            },
            "ProjectionExpression": (
                "sk, #status, credits, idempotencyKey, dueAt, generation, meter, taken, returned"
            ),
            "ExpressionAttributeNames": {"#status": "status"},
            "ConsistentRead": True,
            "ScanIndexForward": not newest_first,
        }
        return self._table.query(query, deadline)


def audit_of(
    organisation: str, account: Account | None, items: Iterable[Item], now_s: int, *, listed: bool
) -> AuditReport:
    """The report on an organisation that is at rest, from all items under its partition key."""
    standing = Standing(account)
    window, ended, claims = Window(standing, standing), Books(), []
    for item in items:
        window.add(item, now_s)
        kind = str(item["sk"]["S"]).partition("#")[0]
        if kind == "IDEM":
            claims.append(int(item["generation"]["N"]))
        elif kind == "USAGE":
            standing.add(item)
    found: Differences = {}
    _narrow(found, window, ended)
    _close(ended, window)
    ended.findings += [
        f"an idempotency row names generation {each}, which does not exist"
        for each in claims
        if not ended.knows(each)
    ]
    return _report(organisation, ended, window, found, listed=listed)


def _narrow(found: Differences, window: Window, ended: Books) -> None:
    """Takes into ``found`` what the window says about each difference."""
    rows = window.counters(ended)
    before, after = window.before.counters(), window.after.counters()
    for name in rows.keys() | after.keys():
        least, most = rows[name] - after[name], rows[name] - before[name]
        known = found.setdefault(name, Difference(least, most))
        known.least, known.most = max(known.least, least), min(known.most, most)


def _close(books: Books, window: Window) -> None:
    """Adds the window's generations to those that had ended before it."""
    for row in sorted(window.generations):
        books.add(row)
    books.findings += [*window.malformed, *window.after.malformed]


def _report(
    organisation: str, books: Books, window: Window, found: Differences, *, listed: bool
) -> AuditReport:
    account = window.after.account or _NO_ACCOUNT
    counted = account.granted - account.taken + account.returned
    granted, taken, returned = (
        found[name, ACCOUNT].certain for name in ("granted", "taken", "returned")
    )
    findings = [*_account_findings(window.after.account, counted, listed=listed), *books.findings]
    findings += _usage_findings(window.after.usage)
    for (name, owner), difference in sorted(found.items()):
        if certain := difference.certain:
            more = "more" if certain > 0 else "fewer"
            findings.append(f"the rows hold {abs(certain)} credits {more} {name} than {owner}")
    left = len(findings) - MAX_FINDINGS
    return AuditReport(
        organisation=organisation,
        credits=account.credits,
        granted=window.grants_added - window.grants_took,
        reserved=books.counts[Status.RESERVED],
        settled=books.counts[Status.SETTLED],
        refunded=books.counts[Status.REFUNDED],
        drift=account.credits - counted - granted + taken - returned,
        slack=_slack(found),
        findings=(*findings[:MAX_FINDINGS], *([f"{left} more"] if left > 0 else [])),
    )


def _slack(found: Differences) -> int:
    slack: Counter[str] = Counter()
    for (_, owner), each in found.items():
        slack[owner] += max(0, each.most - each.least)
    return max(slack.values())


def _account_findings(account: Account | None, counted: int, *, listed: bool) -> Iterator[str]:
    if account is None:
        yield "the account is missing"
    elif account.credits < 0:
        yield f"the balance is {account.credits}"
    if account is not None and account.credits != counted:
        yield f"the balance is {account.credits}, but granted - taken + returned is {counted}"
    if not listed:
        yield "it is not listed, so an audit of all organisations leaves it out"


def _usage_findings(usage: Mapping[str, Usage]) -> Iterator[str]:
    for owner, each in usage.items():
        counted = each.taken - each.returned
        if each.credits != counted:
            yield f"{owner} is {each.credits}, but taken - returned is {counted}"
        elif each.credits < 0:
            yield f"{owner} is {each.credits}"


def _counted_by(month: str, meter: str) -> str:
    return f"the usage of {meter} in {month}"


def _count(counters: Counters, row: Seen) -> None:
    owners = (ACCOUNT,) if row.meter is None else (ACCOUNT, row.meter)
    for owner in owners:
        counters["taken", owner] += row.credits
        if row.status is Status.REFUNDED:
            counters["returned", owner] += row.credits


def _sort_key(created_ms: int) -> str:
    return f"GEN#{created_ms:013d}"


def _seen(item: Item, now_s: float) -> Seen:
    """Raises ``KeyError`` or ``ValueError`` if the row is malformed."""
    due_at, key, meter = item.get("dueAt"), item.get("idempotencyKey"), item.get("meter")
    created_ms = int(item["sk"]["S"].removeprefix("GEN#"))
    return Seen(
        created_ms=created_ms,
        status=Status(item["status"]["S"]),
        credits=int(item["credits"]["N"]),
        idempotency_key=None if key is None else str(key["S"]),
        due_at=None if due_at is None else int(due_at["N"]),
        seen_at=now_s,
        meter=None if meter is None else _counted_by(month_of(created_ms // 1000), meter["S"]),
    )


def _malformed(item: Item) -> str:
    return f"the row {item['sk']['S']} is malformed"
