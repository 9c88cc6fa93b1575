"""Many requests of one organisation at once: what its account makes them wait.

All of them write the same item. Here each client reserves and settles with nothing between, which
is the worst there is: the model's seconds would only spread them. On Lambda each request has a
processor of its own, here all share this machine's, DynamoDB Local included.

DynamoDB Local makes transactions wait for each other; behind ``infra.bench.wire`` those that meet
are refused, as on AWS.
"""

import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

from infra.bench.meters import percentile
from infra.bench.points import Point
from infra.bench.servers import CREDITS, PROMPT, Reach, accounts_at, ledger_at, open_account
from infra.bench.wire import CONFLICTS, counts_at
from infra.bench.words import table, verdict
from lib.deadline import FUNCTION_TIMEOUT_S, Deadline
from lib.errors import ServiceError
from lib.ledger.accounts import Accounts
from lib.ledger.ledger import Ledger
from lib.ledger.order import CREDITS_PER_IMAGE, Order
from lib.ledger.table import LedgerUnreachable
from lib.picture.aspect_ratio import AspectRatio

__all__ = ["Contention", "Measured", "measure", "report"]

ADDED_P99_TARGET_MS = 600.0
AUDIT_TAKES_S = 120.0
# More than one, so that the clients wait for the ledger and not for each other's Python.
PROCESSES = 8
ALL_ARE_UP_S = 0.5
BURSTS = 20


@dataclass(frozen=True)
class Measured:
    """A point, and whether every credit is where it should be."""

    point: Point
    exact: bool


@dataclass(frozen=True)
class Contention:
    """``bursts`` and ``loops``, each as points; wall ms of one request's two calls alone.

    ``alone_ms`` is a whole request alone, with and without the server that refuses in between.
    """

    bursts: list[Measured]
    loops: list[Measured]
    reserve_ms: float
    settle_ms: float
    alone_ms: Mapping[bool, float]

    def added_ms(self, point: Point) -> float:
        """The p99 less what a request takes alone on the same way."""
        return point.p99_ms - self.alone_ms[point.conflicts_injected]


@dataclass
class _Client:
    """What one client saw: wall ms of its successes, and its errors."""

    reserve_ms: list[float] = field(default_factory=list)
    settle_ms: list[float] = field(default_factory=list)
    errors: int = 0
    ended_at: float = 0.0


@dataclass(frozen=True)
class _Task:
    """What one process does: a thread for each of ``organisations``, ``rounds`` requests each."""

    reach: Reach
    dynamodb_url: str
    organisations: tuple[str, ...]
    rounds: int
    starts_at: float


def measure(reach: Reach, requests: int) -> Contention:
    """``requests`` in all for each point: 1, 8 and 64 clients of one organisation, 64 of 64."""
    bursts, loops = [], []
    alone: dict[bool, _Client] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, spawn, _end_with, (os.getpid(),)) as processes:
        _warm_up(processes, reach, requests)
        for conflicts in (False, True):
            crowd = _Crowd(processes, reach, conflicts=conflicts)
            for clients, organisations in ((1, 1), (8, 1), (64, 1), (64, 64)):
                rounds = requests // clients
                measured, ran = crowd.meets(clients, organisations, 1, rounds)
                loops.append(measured)
                if clients == 1:
                    (alone[conflicts],) = ran
                if clients > 1:
                    times = min(rounds, BURSTS)
                    bursts.append(crowd.meets(clients, organisations, times, 1)[0])
    reserve_ms = percentile(alone[False].reserve_ms, 50)
    settle_ms = percentile(alone[False].settle_ms, 50)
    alone_ms = {
        conflicts: percentile(client.reserve_ms, 50) + percentile(client.settle_ms, 50)
        for conflicts, client in alone.items()
    }
    return Contention(bursts, loops, reserve_ms, settle_ms, alone_ms)


class _Crowd:
    """Many clients, on DynamoDB Local as it is or with ``conflicts``."""

    def __init__(self, processes: ProcessPoolExecutor, reach: Reach, *, conflicts: bool) -> None:
        self._processes = processes
        self._reach = reach
        self._conflicts = conflicts
        self._url = reach.conflicting_url if conflicts else reach.dynamodb_url
        self._accounts = accounts_at(reach, self._url)
        self._numbers = count(1)

    def meets(
        self, clients: int, organisations: int, times: int, rounds: int
    ) -> tuple[Measured, list[_Client]]:
        """All clients begin at once, so many ``times``, and make ``rounds`` requests each time."""
        names = [f"crowd-{self._conflicts:d}-{next(self._numbers)}" for _ in range(organisations)]
        for name in names:
            open_account(self._accounts, name)
        whose = [names[number % organisations] for number in range(clients)]
        before = counts_at(self._reach.conflicting_url)
        ran: list[_Client] = []
        seconds = 0.0
        for _ in range(times):
            more, took_s = _run(self._processes, self._reach, self._url, whose, rounds)
            ran += more
            seconds += took_s
        counted = counts_at(self._reach.conflicting_url) - before
        point = _point(ran, seconds, counted, (clients, organisations, self._conflicts))
        return Measured(point, _is_exact(self._accounts, names, ran)), ran


def _end_with(parent: int) -> None:
    """Lets this process end when ``parent`` has died, whose pool would keep it for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _warm_up(processes: ProcessPoolExecutor, reach: Reach, requests: int) -> None:
    """A young JVM is several times slower than one that has seen some thousand requests."""
    open_account(accounts_at(reach, reach.dynamodb_url), "warm-up")
    for url in (reach.dynamodb_url, reach.conflicting_url):
        _run(processes, reach, url, ["warm-up"] * PROCESSES, requests // PROCESSES)


def _run(
    processes: ProcessPoolExecutor, reach: Reach, url: str, whose: list[str], rounds: int
) -> tuple[list[_Client], float]:
    """All clients at once, spread over the processes; and the seconds until the last has ended."""
    starts_at = time.time() + ALL_ARE_UP_S
    shares = [tuple(whose[first::PROCESSES]) for first in range(PROCESSES)]
    tasks = [_Task(reach, url, share, rounds, starts_at) for share in shares if share]
    ran = [client for clients in processes.map(_clients, tasks) for client in clients]
    return ran, max(client.ended_at for client in ran) - starts_at


def _clients(task: _Task) -> list[_Client]:
    """The work of one process."""
    ledger = ledger_at(task.reach, task.dynamodb_url)

    def work(organisation: str) -> _Client:
        client = _Client()
        time.sleep(max(0.0, task.starts_at - time.time()))
        for _ in range(task.rounds):
            _request(ledger, organisation, client)
        client.ended_at = time.time()
        return client

    with ThreadPoolExecutor(len(task.organisations)) as threads:
        return list(threads.map(work, task.organisations))


def _request(ledger: Ledger, organisation: str, client: _Client) -> None:
    deadline = Deadline(FUNCTION_TIMEOUT_S)
    began = time.perf_counter()
    try:
        generation = ledger.reserve(
            Order(organisation, PROMPT, AspectRatio.LANDSCAPE_16_9), str, deadline
        )
        reserved = time.perf_counter()
        ledger.settle(generation, 4200, deadline)
    except (ServiceError, LedgerUnreachable):
        client.errors += 1
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
    errors = sum(client.errors for client in ran)
    return Point(
        clients=clients,
        organisations=organisations,
        conflicts_injected=conflicts,
        throughput_per_s=len(took_ms) / seconds,
        p50_ms=percentile(took_ms, 50),
        p99_ms=percentile(took_ms, 99),
        conflicts=counted[CONFLICTS],
        retries=max(0, calls - 2 * len(took_ms) - errors),
        errors=errors,
    )


def _is_exact(accounts: Accounts, names: list[str], ran: list[_Client]) -> bool:
    """Whether each success was paid once, and nothing else was."""
    reports = [accounts.audit(name, Deadline(AUDIT_TAKES_S)) for name in names]
    paid = sum(CREDITS - report.credits for report in reports)
    successes = sum(len(client.settle_ms) for client in ran)
    drift = sum(abs(report.drift) for report in reports)
    return paid == successes * CREDITS_PER_IMAGE and drift == 0


def report(contention: Contention) -> Iterator[str]:
    """The section of the results."""
    yield from ("## Contention", "")
    yield "Reserve and settle of one organisation, or of many, on DynamoDB Local. Those that meet"
    yield "wait, or are refused, as AWS does it, and our own rules try again. Added is the"
    alone = " and ".join(f"{alone_ms:.0f}" for alone_ms in contention.alone_ms.values())
    yield f"p99 less what a request takes alone on the same way, {alone} ms. Who gives up after 8 s"
    yield "is an error, and in no percentile."
    yield from ("", "All at once, again when all have ended:", "")
    yield from table(_HEAD, (_row(each, contention, is_target=True) for each in contention.bursts))
    yield from (
        "",
        "All at once, and each again as soon as it has ended, with nothing between:",
        "",
    )
    yield from table(_HEAD, (_row(each, contention, is_target=False) for each in contention.loops))


_HEAD = (
    "clients",
    "organisations",
    "those that meet",
    "added p99, ms",
    "p50 / p99, ms",
    "requests a second",
    "refused as conflicts",
    "tried again",
    "errors",
    "debits exact",
)


def _row(measured: Measured, contention: Contention, *, is_target: bool) -> tuple[str, ...]:
    """The target is for what DynamoDB Local does by itself."""
    point = measured.point
    added_ms = contention.added_ms(point)
    judged = is_target and not point.conflicts_injected and point.clients > point.organisations
    met = f" ({verdict(added_ms, ADDED_P99_TARGET_MS, '.0f')})" if judged else ""
    return (
        str(point.clients),
        str(point.organisations),
        "are refused" if point.conflicts_injected else "wait",
        f"**{added_ms:.0f}**{met}",
        f"{point.p50_ms:.0f} / {point.p99_ms:.0f}",
        f"{point.throughput_per_s:.0f}",
        str(point.conflicts) if point.conflicts_injected else "",
        str(point.retries) if point.conflicts_injected else "",
        str(point.errors),
        "yes" if measured.exact else "**no**",
    )
