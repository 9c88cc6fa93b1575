"""Many requests of one organisation at once, which all write the same account.

Each client reserves and settles without calling the model: its seconds would spread the writes, so
this is the worst case. On Lambda each request has its own processor; here all clients and DynamoDB
Local share this machine's. DynamoDB Local serialises conflicting transactions; here
``infra.verify.conflicts`` refuses them, as AWS does.
"""

import ctypes
import multiprocessing
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

from infra.bench.meters import percentile
from infra.bench.servers import CREDITS, PROMPT, Servers, credits_table, open_account
from infra.bench.tables import section, table, verdict
from infra.verify.conflicts import conflicts_at
from lib.deadline import FUNCTION_TIMEOUT_S, Deadline
from lib.errors import ServiceError
from lib.ledger.accounts import Accounts
from lib.ledger.ledger import Ledger
from lib.ledger.order import CREDITS_PER_IMAGE, Order, Spender
from lib.ledger.table import LedgerUnreachable
from lib.picture.aspect_ratio import AspectRatio

BURST_TARGET_MS = 1000.0
STEADY_TARGET_MS = 100.0
STEADY_PER_S = 10
STEADY_LASTS_S = 60
AUDIT_TAKES_S = 120.0
# Several processes, so that clients wait for the ledger and not for each other's interpreter.
PROCESSES = 8
START_TAKES_S = 0.5
BURSTS = 20
SPENDER = Spender("k", "k")
CLIENTS_AND_ORGANISATIONS = ((1, 1), (8, 1), (64, 1), (64, 64))


@dataclass(frozen=True)
class Crowd:
    """So many clients at once. Conflicting transactions are refused.

    Percentiles are of reserve and settle together, retries included, errors excluded. ``exact``:
    each success was charged once, and nothing else was.
    """

    clients: int
    organisations: int
    per_s: float
    p50_ms: float
    p99_ms: float
    conflicts: int
    errors: int
    exact: bool


@dataclass(frozen=True)
class Contention:
    """``alone_ms`` is the median of one client alone; ``steady`` are ``STEADY_PER_S`` requests."""

    steady: Crowd
    bursts: list[Crowd]
    loops: list[Crowd]
    alone_ms: float

    def added_ms(self, crowd: Crowd) -> float:
        """The p99 less what a request takes alone."""
        return crowd.p99_ms - self.alone_ms


def measure(servers: Servers, requests: int) -> Contention:
    """Measures each crowd twice: ``requests`` in a loop, and in at most ``BURSTS`` bursts."""
    bursts, loops = [], []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, spawn, _die_with_the_parent) as pool:
        crowd = partial(_crowd, pool, servers)
        # A young JVM is several times slower than one that has served some thousand requests.
        crowd(PROCESSES, 1, 1, requests // PROCESSES)
        for clients, organisations in CLIENTS_AND_ORGANISATIONS:
            rounds = requests // clients
            loops.append(crowd(clients, organisations, 1, rounds))
            if clients > 1:
                bursts.append(crowd(clients, organisations, min(rounds, BURSTS), 1))
        lasts_s = min(STEADY_LASTS_S, requests // STEADY_PER_S)
        rounds = STEADY_PER_S * lasts_s // PROCESSES
        steady = crowd(PROCESSES, 1, 1, rounds, every_s=PROCESSES / STEADY_PER_S)
    return Contention(steady, bursts, loops, alone_ms=loops[0].p50_ms)


def _die_with_the_parent() -> None:
    # prctl(2), PR_SET_PDEATHSIG: the pool's processes would outlive a killed benchmark.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _crowd(
    pool: ProcessPoolExecutor,
    servers: Servers,
    clients: int,
    organisations: int,
    bursts: int,
    rounds: int,
    *,
    every_s: float = 0.0,
) -> Crowd:
    """Lets all clients start at once, ``bursts`` times, with ``rounds`` requests each time.

    ``every_s`` is the mean pause of a client before each request.
    """
    accounts = Accounts(credits_table(servers, servers.conflicting_url))
    names = [f"crowd-{uuid4()}" for _ in range(organisations)]
    for name in names:
        open_account(accounts, name)
    of_clients = names * (clients // organisations)
    shares = [of_clients[first::PROCESSES] for first in range(min(clients, PROCESSES))]
    took_ms: list[float] = []
    before, seconds = conflicts_at(servers.conflicting_url), 0.0
    for _ in range(bursts):
        starts_at = time.time() + START_TAKES_S
        work = partial(_run_clients, servers, starts_at, rounds, every_s)
        done = list(pool.map(work, shares))
        took_ms += [ms for share_ms, _ in done for ms in share_ms]
        seconds += max(ended_at for _, ended_at in done) - starts_at
    return Crowd(
        clients,
        organisations,
        per_s=len(took_ms) / seconds,
        p50_ms=percentile(took_ms, 50),
        p99_ms=percentile(took_ms, 99),
        conflicts=conflicts_at(servers.conflicting_url) - before,
        errors=clients * bursts * rounds - len(took_ms),
        exact=_is_exact(accounts, names, len(took_ms)),
    )


def _is_exact(accounts: Accounts, names: list[str], successes: int) -> bool:
    reports = [accounts.audit(name, Deadline(AUDIT_TAKES_S)) for name in names]
    charged = sum(CREDITS - report.credits for report in reports)
    return charged == successes * CREDITS_PER_IMAGE and not any(each.drift for each in reports)


def _run_clients(
    servers: Servers, starts_at: float, rounds: int, every_s: float, organisations: list[str]
) -> tuple[list[float], float]:
    """One process: a thread for each organisation; wall ms of successes, and when all ended."""
    ledger = Ledger(credits_table(servers, servers.conflicting_url))
    took_ms: list[float] = []

    def run(organisation: str) -> None:
        time.sleep(max(0.0, starts_at - time.time()))
        for _ in range(rounds):
            time.sleep(random.expovariate(1 / every_s) if every_s else 0)
            began = time.perf_counter()
            with suppress(ServiceError, LedgerUnreachable):
                reserve_and_settle(ledger, organisation, FUNCTION_TIMEOUT_S)
                took_ms.append((time.perf_counter() - began) * 1000)

    with ThreadPoolExecutor(len(organisations)) as threads:
        list(threads.map(run, organisations))
    return took_ms, time.time()


def reserve_and_settle(
    ledger: Ledger, organisation: str, within_s: float, spender: Spender | None = SPENDER
) -> None:
    """The ledger's part of a paid request; raises what ``reserve`` and ``settle`` raise."""
    deadline = Deadline(within_s)
    order = Order(organisation, PROMPT, AspectRatio.LANDSCAPE_16_9, spender=spender)
    ledger.settle(ledger.reserve(order, str, deadline), 4200, deadline)


def report(contention: Contention) -> Iterator[str]:
    """The section of the results."""
    yield from section(
        "Contention",
        "Reserve and settle for one organisation or for many, on DynamoDB Local. Conflicting",
        "transactions are refused as on AWS and retried by the service. The p99 added is the",
        f"p99 less what a request takes alone, {contention.alone_ms:.0f} ms. Requests that give up",
        "after 8 s count as errors and are in no percentile.",
    )
    yield from (f"At {STEADY_PER_S} requests a second, from {PROCESSES} clients:", "")
    steady = _row(contention.steady, contention, STEADY_TARGET_MS)
    yield from table(_HEAD, [steady])
    yield from ("", "In bursts, each after the last one has ended:", "")
    yield from table(_HEAD, (_row(each, contention, BURST_TARGET_MS) for each in contention.bursts))
    yield from ("", "In loops, each client without a pause:", "")
    yield from table(_HEAD, (_row(each, contention) for each in contention.loops))


_HEAD = (
    *("clients", "organisations", "added p99, ms", "p50 / p99, ms"),
    *("requests a second", "refused", "errors", "charges exact"),
)


def _row(crowd: Crowd, contention: Contention, target_ms: float = 0.0) -> tuple[object, ...]:
    """The target is for one organisation."""
    added_ms = contention.added_ms(crowd)
    added = f"**{added_ms:.0f}**"
    if target_ms and crowd.clients > crowd.organisations == 1:
        added += f" ({verdict(added_ms, target_ms, '.0f')})"
    times = f"{crowd.p50_ms:.0f} / {crowd.p99_ms:.0f}"
    exact = "yes" if crowd.exact else "**no**"
    head = (crowd.clients, crowd.organisations, added, times, f"{crowd.per_s:.0f}")
    return (*head, crowd.conflicts, crowd.errors, exact)
