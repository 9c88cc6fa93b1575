"""Many requests of one organisation at once, which all write the same account.

Each client reserves and settles without calling the model: its seconds would spread the writes, so
this is the worst case. On Lambda each request has its own processor; here all clients and DynamoDB
Local share this machine's. DynamoDB Local serialises conflicting transactions; through
``infra.bench.conflicts`` they are refused, as on AWS.
"""

import ctypes
import multiprocessing
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field

from infra.bench.conflicts import conflicts_at
from infra.bench.meters import percentile
from infra.bench.servers import CREDITS, PROMPT, Servers, credits_table, open_account
from infra.bench.tables import section, table, verdict
from lib.deadline import FUNCTION_TIMEOUT_S, Deadline
from lib.errors import ServiceError
from lib.ledger.accounts import Accounts
from lib.ledger.ledger import Ledger
from lib.ledger.order import CREDITS_PER_IMAGE, Order
from lib.ledger.table import LedgerUnreachable
from lib.picture.aspect_ratio import AspectRatio

__all__ = ["ADDED_P99_TARGET_MS", "Contention", "Crowd", "measure", "report", "reserve_and_settle"]

ADDED_P99_TARGET_MS = 600.0
AUDIT_TAKES_S = 120.0
# Several processes, so that clients wait for the ledger and not for each other's interpreter.
PROCESSES = 8
START_TAKES_S = 0.5
BURSTS = 20
CLIENTS_AND_ORGANISATIONS = ((1, 1), (8, 1), (64, 1), (64, 64))


@dataclass(frozen=True)
class Crowd:
    """So many clients at once, whose conflicting transactions are ``refused`` or wait.

    Percentiles are of reserve and settle together, retries included, errors excluded. ``exact``:
    each success was charged once, and nothing else was.
    """

    clients: int
    organisations: int
    refused: bool
    per_s: float
    p50_ms: float
    p99_ms: float
    conflicts: int
    errors: int
    exact: bool


@dataclass(frozen=True)
class Contention:
    """``alone_ms`` is the median of one client alone, by whether conflicts are refused."""

    bursts: list[Crowd]
    loops: list[Crowd]
    alone_ms: Mapping[bool, float]

    def added_ms(self, crowd: Crowd) -> float:
        """The p99 less what a request takes alone."""
        return crowd.p99_ms - self.alone_ms[crowd.refused]


@dataclass
class _Samples:
    """One client's wall milliseconds of successes, its errors, and when it ended."""

    took_ms: list[float] = field(default_factory=list)
    errors: int = 0
    ended_at: float = 0.0


@dataclass(frozen=True)
class _Share:
    """The work of one process: a thread for each of ``organisations``, ``rounds`` requests each."""

    servers: Servers
    dynamodb_url: str
    organisations: tuple[str, ...]
    rounds: int
    starts_at: float


def measure(servers: Servers, requests: int) -> Contention:
    """Measures each crowd twice: ``requests`` in a loop, and in at most ``BURSTS`` bursts."""
    bursts, loops, alone_ms = [], [], {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, spawn, _die_with_the_parent) as processes:
        for refused in (False, True):
            clients = _Clients(processes, servers, refused=refused)
            # A young JVM is several times slower than one that has served some thousand requests.
            clients.crowd("warm-up", PROCESSES, 1, bursts=1, rounds=requests // PROCESSES)
            for number, organisations in CLIENTS_AND_ORGANISATIONS:
                rounds = requests // number
                crowd = clients.crowd("loop", number, organisations, bursts=1, rounds=rounds)
                loops.append(crowd)
                if number == 1:
                    alone_ms[refused] = crowd.p50_ms
                else:
                    times = min(rounds, BURSTS)
                    crowd = clients.crowd("burst", number, organisations, bursts=times, rounds=1)
                    bursts.append(crowd)
    return Contention(bursts, loops, alone_ms)


def _die_with_the_parent() -> None:
    # prctl(2), PR_SET_PDEATHSIG: the pool's processes would outlive a killed benchmark.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class _Clients:
    """Clients in several processes; their conflicting transactions wait or are ``refused``."""

    def __init__(self, processes: ProcessPoolExecutor, servers: Servers, *, refused: bool) -> None:
        self._processes, self._servers, self._refused = processes, servers, refused
        self._url = servers.conflicting_url if refused else servers.dynamodb_url
        self._accounts = Accounts(credits_table(servers, self._url))

    def crowd(
        self, kind: str, clients: int, organisations: int, *, bursts: int, rounds: int
    ) -> Crowd:
        """Lets all clients start at once, ``bursts`` times, with ``rounds`` requests each time."""
        prefix = f"{kind}-{self._refused:d}-{clients}-{organisations}"
        names = [f"{prefix}-{number}" for number in range(organisations)]
        for name in names:
            open_account(self._accounts, name)
        before = conflicts_at(self._servers.conflicting_url)
        samples, seconds = [], 0.0
        for _ in range(bursts):
            ran, took_s = self._run(names * (clients // organisations), rounds)
            samples += ran
            seconds += took_s
        took_ms = [each for client in samples for each in client.took_ms]
        return Crowd(
            clients,
            organisations,
            self._refused,
            per_s=len(took_ms) / seconds,
            p50_ms=percentile(took_ms, 50),
            p99_ms=percentile(took_ms, 99),
            conflicts=conflicts_at(self._servers.conflicting_url) - before,
            errors=sum(client.errors for client in samples),
            exact=self._is_exact(names, len(took_ms)),
        )

    def _run(self, organisations: list[str], rounds: int) -> tuple[list[_Samples], float]:
        """Runs a client for each of ``organisations``; the seconds until the last one ended."""
        starts_at = time.time() + START_TAKES_S
        shares = [tuple(organisations[first::PROCESSES]) for first in range(PROCESSES)]
        work = [
            _Share(self._servers, self._url, share, rounds, starts_at) for share in shares if share
        ]
        ran = [client for clients in self._processes.map(_run_share, work) for client in clients]
        return ran, max(client.ended_at for client in ran) - starts_at

    def _is_exact(self, names: list[str], successes: int) -> bool:
        reports = [self._accounts.audit(name, Deadline(AUDIT_TAKES_S)) for name in names]
        charged = sum(CREDITS - report.credits for report in reports)
        return charged == successes * CREDITS_PER_IMAGE and not any(each.drift for each in reports)


def _run_share(share: _Share) -> list[_Samples]:
    ledger = Ledger(credits_table(share.servers, share.dynamodb_url))

    def run(organisation: str) -> _Samples:
        samples = _Samples()
        time.sleep(max(0.0, share.starts_at - time.time()))
        for _ in range(share.rounds):
            began = time.perf_counter()
            try:
                reserve_and_settle(ledger, organisation, FUNCTION_TIMEOUT_S)
            except (ServiceError, LedgerUnreachable):
                samples.errors += 1
            else:
                samples.took_ms.append((time.perf_counter() - began) * 1000)
        samples.ended_at = time.time()
        return samples

    with ThreadPoolExecutor(len(share.organisations)) as threads:
        return list(threads.map(run, share.organisations))


def reserve_and_settle(ledger: Ledger, organisation: str, within_s: float) -> None:
    """The ledger's part of a paid request.

    Raises:
        ServiceError, LedgerUnreachable: as ``Ledger.reserve`` and ``Ledger.settle``.
    """
    deadline = Deadline(within_s)
    order = Order(organisation, PROMPT, AspectRatio.LANDSCAPE_16_9)
    ledger.settle(ledger.reserve(order, str, deadline), 4200, deadline)


def report(contention: Contention) -> Iterator[str]:
    """The section of the results."""
    alone = " and ".join(f"{alone_ms:.0f}" for alone_ms in contention.alone_ms.values())
    yield from section(
        "Contention",
        "Reserve and settle for one organisation or for many, on DynamoDB Local. Conflicting",
        "transactions wait, or are refused as on AWS and retried by the service. The p99 added is",
        f"the p99 less what a request takes alone, {alone} ms. Requests that give up after 8 s",
        "count as errors and are in no percentile.",
    )
    yield from ("In bursts, each after the last one has ended:", "")
    yield from table(_HEAD, (_row(each, contention, has_target=True) for each in contention.bursts))
    yield from ("", "In loops, each client without a pause:", "")
    yield from table(_HEAD, (_row(each, contention, has_target=False) for each in contention.loops))


_HEAD = (
    *("clients", "organisations", "conflicts", "added p99, ms", "p50 / p99, ms"),
    *("requests a second", "refused", "errors", "charges exact"),
)


def _row(crowd: Crowd, contention: Contention, *, has_target: bool) -> tuple[object, ...]:
    """Only DynamoDB Local by itself has a target."""
    added_ms = contention.added_ms(crowd)
    judged = has_target and not crowd.refused and crowd.clients > crowd.organisations
    return (
        crowd.clients,
        crowd.organisations,
        "are refused" if crowd.refused else "wait",
        f"**{added_ms:.0f}**"
        + (f" ({verdict(added_ms, ADDED_P99_TARGET_MS, '.0f')})" if judged else ""),
        f"{crowd.p50_ms:.0f} / {crowd.p99_ms:.0f}",
        f"{crowd.per_s:.0f}",
        crowd.conflicts if crowd.refused else "",
        crowd.errors,
        "yes" if crowd.exact else "**no**",
    )
