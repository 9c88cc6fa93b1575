"""A closed loop of clients at one DynamoDB Local: the part of the capacity model to be measured.

The clients reserve and settle without a pause, as those of the benchmark do, with the backoff and
the conflicts of the model.
"""

import heapq
import random
from dataclasses import dataclass, replace

from infra.bench.capacity_parts import Account, Clock, Database, Process, Tally, Write
from infra.bench.capacity_terms import Limit, Limits, Outcome
from infra.bench.meters import percentile
from infra.bench.points import Point
from lib.deadline import FUNCTION_TIMEOUT_S, RESERVE_WITHIN_S

__all__ = ["Machine", "closed_loop"]


@dataclass(frozen=True, slots=True)
class Machine:
    """DynamoDB Local and its clients on one computer.

    The milliseconds are those of one client alone, medians of a lognormal of width ``spread``. A
    call first takes the clients' one processor, then, for the share ``serial``, one of ``servers``
    of DynamoDB Local, and waits for both. Only from the second wait on it holds its items, so what
    is refused has cost the processor alone. Of four ways to place the waits and the hold this one
    was kept for it came closest to a measured run, so that run is no proof of it.
    """

    reserve_ms: float
    settle_ms: float
    serial: float = 1.0
    servers: int = 1
    spread: float = 0.0


class _OneComputer(Database):
    """Two queues, first come, first served."""

    def __init__(self, clock: Clock, limits: Limits, chance: random.Random, of: Machine) -> None:
        super().__init__(clock, limits, chance)
        self._machine = of
        self._free_at = [0.0] * of.servers
        self._processor_free_at = [0.0]

    def reaches_in_s(self, write: Write) -> float:
        return self._queue(self._processor_free_at, write, 1 - self._machine.serial)

    def answers_in_s(self, write: Write) -> float:
        return self._queue(self._free_at, write, self._machine.serial)

    def refuses_in_s(self, write: Write) -> float:  # noqa: ARG002 - whatever it is
        return 0.0

    def _queue(self, free_at: list[float], write: Write, share: float) -> float:
        """Seconds of that share of a call, with the wait for the first server that is free."""
        noise = self._chance.lognormvariate(0.0, self._machine.spread)
        ends = max(self._clock.now, free_at[0]) + write.takes_ms / 1000 * share * noise
        heapq.heapreplace(free_at, ends)
        return ends - self._clock.now


def closed_loop(
    clients: int,
    organisations: int,
    machine: Machine,
    *,
    conflicts: bool,
    pairs: int = 1280,
    seed: int = 1,
) -> Point:
    """``pairs`` of a reserve and a settle, of all ``clients`` together, as fast as they can."""
    clock = Clock()
    limits = replace(Limits.none(), conflicts=conflicts)
    chance = random.Random(seed)  # noqa: S311 - a simulation, which must be repeatable
    database = _OneComputer(clock, limits, chance, machine)
    accounts = [Account(0, limits) for _ in range(organisations)]
    reserve = Write(machine.reserve_ms, table_units=4, hold_units=2, locks=True)
    settle = Write(machine.settle_ms, table_units=1, hold_units=1, locks=False)
    tally = Tally()

    def client(account: Account) -> Process:
        for _ in range(pairs // clients):
            began = clock.now
            within, ends_at = began + RESERVE_WITHIN_S, began + FUNCTION_TIMEOUT_S
            if (yield from database.write(reserve, account, began, within, tally)):
                tally.outcomes[Outcome.BUSY] += 1
                continue
            if (yield from database.write(settle, account, began, ends_at, tally)):
                tally.outcomes[Outcome.BUSY] += 1
                continue
            tally.latencies_s.append(clock.now - began)

    for number in range(clients):
        clock.start(client(accounts[number % organisations]))
    clock.run()
    return Point(
        clients=clients,
        organisations=organisations,
        conflicts_injected=conflicts,
        throughput_per_s=len(tally.latencies_s) / clock.now,
        p50_ms=percentile(tally.latencies_s, 50) * 1000,
        p99_ms=percentile(tally.latencies_s, 99) * 1000,
        conflicts=tally.said_no[Limit.CONFLICT],
        retries=tally.retries,
        errors=tally.outcomes[Outcome.BUSY],
    )
