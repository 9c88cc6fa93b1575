"""Many requests of one organisation at once: what its account makes them wait.

All of them write the same item, twice as often as there are images when something fails. Here each
client reserves and settles again and again with nothing between, which is the worst there is: the
model's seconds and the PNG's CPU would only spread them. On Lambda each request has a processor of
its own, here all share this machine's, DynamoDB Local included.

DynamoDB Local makes transactions wait for each other. ``conflicts`` has those that meet refused, as
AWS does; see ``infra.bench.wire``.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from infra.bench.points import Point
from infra.bench.servers import CREDITS, Reach, ledger_at, open_account
from infra.bench.wire import CONFLICTS, counts_at
from infra.bench.words import table, verdict
from lib.deadline import FUNCTION_TIMEOUT_S, Deadline
from lib.errors import ServiceError
from lib.ledger import Ledger, LedgerUnreachable, Order
from lib.models import CREDITS_PER_IMAGE

__all__ = ["Contention", "Measured", "measure", "report"]

ADDED_P99_TARGET_MS = 600.0
AUDIT_TAKES_S = 120.0
PROMPT = "A log cabin by a frozen mountain lake at dusk, smoke rising from the chimney"


@dataclass(frozen=True)
class Measured:
    """A point, and whether every credit is where it should be."""

    point: Point
    exact: bool


@dataclass(frozen=True)
class Contention:
    """All points; wall ms of one request alone, its two calls apart."""

    points: list[Measured]
    reserve_ms: float
    settle_ms: float


@dataclass
class _Client:
    """One thread's requests."""

    reserve_ms: list[float]
    settle_ms: list[float]
    errors: Counter[str]


def measure(reach: Reach, requests: int) -> Contention:
    """``requests`` in all for each point: 1, 8 and 64 clients of one organisation, 64 of 64."""
    points = []
    alone: list[_Client] = []
    for conflicts in (False, True):
        url = reach.conflicting_url if conflicts else reach.dynamodb_url
        ledger = ledger_at(reach, url)
        for clients, organisations in ((1, 1), (8, 1), (64, 1), (64, 64)):
            names = [
                f"crowd-{conflicts:d}-{clients}-{organisations}-{number}"
                for number in range(organisations)
            ]
            for name in names:
                open_account(ledger, name)
            ran, seconds, counted = _run(reach, ledger, names, clients, requests // clients)
            if clients == 1 and not conflicts:
                alone = ran
            point = _point(ran, seconds, counted, (clients, organisations, conflicts))
            points.append(Measured(point, _is_exact(ledger, names, ran)))
    (one,) = alone
    return Contention(points, _median(one.reserve_ms), _median(one.settle_ms))


def _run(
    reach: Reach, ledger: Ledger, names: list[str], clients: int, rounds: int
) -> tuple[list[_Client], float, Counter[str]]:
    ran = [_Client([], [], Counter()) for _ in range(clients)]
    together = threading.Barrier(clients + 1)

    def work(number: int) -> None:
        together.wait()
        for _ in range(rounds):
            _request(ledger, names[number % len(names)], ran[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    before = counts_at(reach.conflicting_url)
    together.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    return ran, seconds, counts_at(reach.conflicting_url) - before


def _request(ledger: Ledger, organisation: str, client: _Client) -> None:
    deadline = Deadline(FUNCTION_TIMEOUT_S)
    began = time.perf_counter()
    try:
        generation = ledger.reserve(Order(organisation, PROMPT, "16:9"), str, deadline)
        reserved = time.perf_counter()
        ledger.settle(generation, 4200, deadline)
    except (ServiceError, LedgerUnreachable) as fault:
        client.errors[type(fault).__name__] += 1
        return
    client.reserve_ms.append((reserved - began) * 1000)
    client.settle_ms.append((time.perf_counter() - reserved) * 1000)


def _point(
    ran: list[_Client], seconds: float, counted: Counter[str], key: tuple[int, int, bool]
) -> Point:
    clients, organisations, conflicts = key
    took_ms = sorted(
        reserve + settle
        for client in ran
        for reserve, settle in zip(client.reserve_ms, client.settle_ms, strict=True)
    )
    calls = counted["TransactWriteItems"] + counted["UpdateItem"]
    return Point(
        clients=clients,
        organisations=organisations,
        conflicts_injected=conflicts,
        throughput_per_s=len(took_ms) / seconds,
        p50_ms=_percentile(took_ms, 50),
        p99_ms=_percentile(took_ms, 99),
        conflicts=counted[CONFLICTS],
        retries=max(0, calls - 2 * len(took_ms)),
        errors=sum(client.errors.total() for client in ran),
    )


def _is_exact(ledger: Ledger, names: list[str], ran: list[_Client]) -> bool:
    """Whether each success was paid once, and nothing else was."""
    reports = [ledger.audit(name, Deadline(AUDIT_TAKES_S)) for name in names]
    paid = sum(CREDITS - report.credits for report in reports)
    successes = sum(len(client.settle_ms) for client in ran)
    drift = sum(abs(report.drift) for report in reports)
    return paid == successes * CREDITS_PER_IMAGE and drift == 0


def _percentile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _median(values: list[float]) -> float:
    return _percentile(sorted(values), 50)


def report(contention: Contention) -> Iterator[str]:
    """The section of the results."""
    alone = next(each.point.p50_ms for each in contention.points)
    yield from ("## Contention", "")
    yield "Reserve and settle again and again with nothing between, on DynamoDB Local. Added is the"
    yield "p99 less what one request alone takes. Where conflicts are refused, they are so"
    yield "as AWS does it, and our own rules try again."
    yield ""
    yield from table(
        (
            "clients",
            "organisations",
            "conflicts",
            "added p99, ms",
            "target",
            "p50 / p99, ms",
            "requests a second",
            "refused as conflicts",
            "tried again",
            "errors",
            "debits exact",
        ),
        (
            (
                str(point.clients),
                str(point.organisations),
                "refused" if point.conflicts_injected else "wait",
                f"**{point.p99_ms - alone:.0f}**",
                verdict(point.p99_ms - alone, ADDED_P99_TARGET_MS, ".0f"),
                f"{point.p50_ms:.0f} / {point.p99_ms:.0f}",
                f"{point.throughput_per_s:.0f}",
                str(point.conflicts),
                str(point.retries),
                str(point.errors),
                "yes" if each.exact else "**no**",
            )
            for each in contention.points
            for point in (each.point,)
        ),
    )
