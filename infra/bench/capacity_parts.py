"""What the capacity model is made of: a clock, buckets, sandboxes, and DynamoDB with our backoff.

A process is a generator that yields the seconds until it goes on; a heap orders them.
"""

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field

from infra.bench.capacity_terms import Limit, Limits, Outcome
from lib.deadline import LEDGER_CALL_S as CALL_TAKES_S
from lib.deadline import MAX_TRIES, RATE_WINDOW_S, longest_pause_s
from lib.ledger.table import MAX_TRIES, longest_pause_s

__all__ = [
    "Account",
    "Bucket",
    "Clock",
    "Database",
    "Process",
    "Sandboxes",
    "Tally",
    "Window",
    "Write",
]

GROWTH_S = 10.0
Process = Generator[float, None, None]


class Clock:
    """A heap of processes, each with the second at which it goes on."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Process]] = []
        self._order = itertools.count()

    def start(self, process: Process) -> None:
        """Lets ``process`` begin at once."""
        heapq.heappush(self._heap, (self.now, next(self._order), process))

    def run(self) -> None:
        """Lets all of them go on, in order, until they have ended."""
        heap, order = self._heap, self._order
        while heap:
            self.now, _, process = heap[0]
            # What it starts meanwhile has a later number, so it is still the first.
            pause = next(process, None)
            if pause is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (self.now + pause, next(order), process))


class Window:
    """At most ``limit`` in each period of ``seconds``, and what the peak was."""

    def __init__(self, limit: float, seconds: float) -> None:
        self._limit, self._seconds = limit, seconds
        self._index, self._used = 0, 0.0
        self._peak = 0.0

    def take(self, now: float, units: float = 1) -> bool:
        """Whether there was room; if so, it is used."""
        index = int(now / self._seconds)
        if index != self._index:
            self._peak = self.peak
            self._index, self._used = index, 0.0
        if self._used + units > self._limit:
            return False
        self._used += units
        return True

    @property
    def peak(self) -> float:
        """The most that there were in one period."""
        return max(self._peak, self._used)

    def ends_in_s(self, now: float) -> float:
        """Seconds until the period that was asked of last is over."""
        return (self._index + 1) * self._seconds - now


class Bucket:
    """A token bucket: ``per_s`` tokens a second, and at most ``burst`` saved up."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst, self._is_endless = per_s, burst, math.isinf(per_s)
        self._level, self._at = burst, 0.0

    def has(self, now: float, tokens: float) -> bool:
        """Whether there are so many."""
        if self._is_endless:
            return True
        self._level = min(self._burst, self._level + self._per_s * (now - self._at))
        self._at = now
        return self._level >= tokens

    def spend(self, tokens: float) -> None:
        """Takes tokens of which ``has`` has said that they are there."""
        self._level -= tokens

    def take(self, now: float) -> bool:
        """Whether there was a token; if so, it is spent."""
        enough = self.has(now, 1)
        if enough:
            self.spend(1)
        return enough


@dataclass(frozen=True, slots=True)
class Write:
    """A call that writes: its milliseconds, its units, and whether it is a transaction."""

    takes_ms: float
    table_units: int
    hold_units: int
    locks: bool


class Account:
    """An organisation: its item, its partition and the requests of its minute."""

    def __init__(self, credits_: int, limits: Limits) -> None:
        self.credits = credits_
        self.held = False
        self.minute = Window(limits.organisation_per_minute, RATE_WINDOW_S)
        self.partition = Bucket(limits.partition_units, limits.partition_units)


@dataclass(slots=True)
class Tally:
    """What is counted of some requests."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    refused_by: Counter[Limit] = field(default_factory=Counter)
    said_no: Counter[Limit] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    retries: int = 0
    cold_starts: int = 0


class Database:
    """DynamoDB's answers, and how ``lib.ledger.table`` insists on a better one."""

    def __init__(self, clock: Clock, limits: Limits, chance: random.Random) -> None:
        self._clock, self._chance = clock, chance
        self._conflicts = limits.conflicts
        self._table = Bucket(limits.table_units, limits.table_units)
        self._holds = [
            Bucket(limits.hold_units, limits.hold_units) for _ in range(limits.hold_shards)
        ]
        self.table_units, self.hold_units = Window(math.inf, 1.0), Window(math.inf, 1.0)

    def write(
        self, write: Write, account: Account, created_s: float, ends_at: float, tally: Tally
    ) -> Generator[float, None, Limit | None]:
        """Returns None when it is done, or the limit that refused the last try."""
        refusal: Limit | None = None
        for tries in range(MAX_TRIES):
            tally.retries += tries > 0
            reaches_in_s = self.reaches_in_s(write)
            if reaches_in_s:
                yield reaches_in_s
            refusal = self._refusal(write, account, created_s)
            if refusal is None:
                account.held = account.held or write.locks
                yield self.answers_in_s(write)
                account.held = account.held and not write.locks
                return None
            tally.said_no[refusal] += 1
            refused_in_s = self.refuses_in_s(write)
            after_conflict = refusal is Limit.CONFLICT
            pause_s = self._chance.random() * longest_pause_s(tries, after_conflict=after_conflict)
            left_s = ends_at - self._clock.now - refused_in_s
            if left_s <= pause_s + CALL_TAKES_S:
                yield refused_in_s
                break
            yield refused_in_s + pause_s
        return refusal

    def reaches_in_s(self, write: Write) -> float:  # noqa: ARG002 - whatever it is
        """How long a call takes before it holds anything."""
        return 0.0

    def answers_in_s(self, write: Write) -> float:
        """How long a call that is done takes from there on; it holds its items meanwhile."""
        return write.takes_ms / 1000

    def refuses_in_s(self, write: Write) -> float:
        """How long a call that is refused takes from there on: it comes back like any other."""
        return write.takes_ms / 1000

    def _refusal(self, write: Write, account: Account, created_s: float) -> Limit | None:
        now = self._clock.now
        shard = self._holds[int(created_s * 1000) % len(self._holds)]
        if write.locks and self._conflicts and account.held:
            return Limit.CONFLICT
        if not account.partition.has(now, write.table_units):
            return Limit.PARTITION
        if not self._table.has(now, write.table_units):
            return Limit.TABLE
        if not shard.has(now, write.hold_units):
            return Limit.HOLDS
        account.partition.spend(write.table_units)
        self._table.spend(write.table_units)
        shard.spend(write.hold_units)
        self.table_units.take(now, write.table_units)
        self.hold_units.take(now, write.hold_units)
        return None


class Sandboxes:
    """Sandboxes: warm ones first, new ones within the account's limits."""

    def __init__(self, clock: Clock, limits: Limits, counts: tuple[float, float]) -> None:
        self._clock, self._limit, self._counts = clock, limits.concurrency, counts
        self._growth = Bucket(limits.growth / GROWTH_S, limits.growth)
        self._idle = self._busy = 0
        self._since, self._busy_s = 0.0, 0.0
        self.peak = 0

    def enter(self) -> tuple[Limit | None, bool]:
        """What refuses a request, if anything does, and whether its sandbox is new."""
        if self._busy >= self._limit:
            return Limit.CONCURRENCY, False
        is_new = not self._idle
        if is_new and not self._growth.take(self._clock.now):
            return Limit.GROWTH, False
        self._idle -= not is_new
        self._count(1)
        self.peak = max(self.peak, self._busy)
        return None, is_new

    def leave(self) -> None:
        """A request has ended; its sandbox is warm for another one."""
        self._idle += 1
        self._count(-1)

    def mean(self) -> float:
        """Sandboxes busy on average while requests were counted."""
        self._count(0)
        first, last = self._counts
        return self._busy_s / (last - first)

    def _count(self, change: int) -> None:
        first, last = self._counts
        now = self._clock.now
        self._busy_s += self._busy * max(0.0, min(now, last) - max(self._since, first))
        self._since = now
        self._busy += change
