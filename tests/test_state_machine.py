"""Any history of grants, requests, jobs, failures, crashes, retries, deletions and reconciles.

Hypothesis generates the history, and this module keeps a plain account of it: the credits, and the
fate of each open reservation. The service must agree after every step. Any message that was ever
sent may be delivered at any time, and again.
"""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lib.deadline import JOB_WAITS_S, LEASE_S, QUEUED_WITHIN_S, WORKER_LEASE_S
from lib.errors import (
    ContentRejected,
    GenerationFailed,
    GenerationInFlight,
    GenerationReserved,
    ImageDeleted,
    InsufficientCredits,
    JobNotQueued,
    KeyBudgetExhausted,
)
from lib.generation import Accepted, Finished
from lib.ledger.rows import Grant, Status
from lib.ledger.usage import month_of
from tests.engines import Engine
from tests.reporting import Tried, tally
from tests.world import Fault, Network, World

PRICE = 5
KEYS = st.sampled_from(["k1", "k2", "k3"])
# Calls of a request in an open minute.
RESERVE, MODEL, PUT, SETTLE = range(4)
# Calls of an asynchronous one.
SEND, EXTEND_FOR_THE_QUEUE = 1, 2
# The first call of a delivery; the others are those of a request.
EXTEND = 0
# Calls of a deletion: mark, remove the object, plan the next visit.
MARK, VISIT = 0, 2
DEATHS = st.sampled_from([Fault.KILLED_BEFORE, Fault.KILLED_AFTER])


@dataclass
class Open:
    """An open reservation of a job or of a dead sandbox. When its lease has expired, the reconciler
    settles it if its image is ``stored``, and refunds it if not."""

    created_at: int
    expires_at: float
    stored: bool
    key: str | None
    asynchronous: bool = False
    message: str | None = None

    @property
    def queued(self) -> bool:
        """Whether its lease shows that a job is in the queue, or with a worker."""
        return self.asynchronous and self.expires_at - self.created_at > LEASE_S

    @property
    def waits_until(self) -> float:
        """When a repeated request may end it."""
        if self.asynchronous and not self.queued:
            return self.created_at + QUEUED_WITHIN_S
        return self.expires_at


class Money(RuleBasedStateMachine):
    """The plain account beside the service."""

    engine: ClassVar[Engine]
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.engine, credits_=0, rate_limit=1_000_000, budget=None)
        self.minute = self.minute_now()
        self.credits = 0
        self.granted = 0
        self.used: Counter[str] = Counter()
        self.open: list[Open] = []
        self.urls: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.freed: set[str | None] = set()

    def teardown(self) -> None:
        self.world.settle_down()
        assert self.world.violations() == []
        self.world.close()

    def minute_now(self) -> int:
        return int(self.world.clock.now_s) // 60

    def extra_calls(self, key: str | None = None) -> int:
        """The calls that the next debit spends on a new minute or on a freed key.

        A little time passes, so that no two requests share a millisecond.
        """
        self.world.clock.sleep(0.01)
        if key in self.freed:
            return 2
        return 0 if self.minute_now() == self.minute else 1

    def in_flight(self, key: str | None) -> bool:
        return self.opened(key) is not None

    def opened(self, key: str | None) -> Open | None:
        """The open reservation of the key."""
        found = [each for each in self.open if key is not None and each.key == key]
        return found[0] if found else None

    def sent(self, which: int) -> tuple[str, Open | None]:
        """One of all messages, and its job if that is open."""
        messages = self.world.mailbox.messages
        message = messages[which % len(messages)]
        jobs = [each for each in self.open if each.message == message]
        return message, jobs[0] if jobs else None

    def now_s(self) -> int:
        return int(self.world.clock.now_s)

    def charge(self) -> None:
        """Records a debit."""
        self.credits -= PRICE
        self.used[month_of(self.world.clock())] += PRICE

    def give_back(self, ended: Open) -> None:
        """Records a refund, in the month of the reservation."""
        self.credits += PRICE
        self.used[month_of(ended.created_at)] -= PRICE

    @property
    def used_this_month(self) -> int:
        return self.used[month_of(self.world.clock())]

    @property
    def left(self) -> int:
        """What the budget has left; it may have been set below what is used."""
        budget = self.world.budget
        return self.credits if budget is None else max(0, budget - self.used_this_month)

    def affordable(self) -> bool:
        """Whether the balance and the budget pay for an image."""
        return min(self.credits, self.left) >= PRICE

    def refused(self, answer: object) -> bool:
        """Whether no image is affordable; the balance refuses before the budget."""
        if self.credits < PRICE:
            assert type(answer) is InsufficientCredits
            assert answer.remaining == self.credits
        elif self.left < PRICE:
            assert type(answer) is KeyBudgetExhausted
            assert answer.remaining == self.left
        return not self.affordable()

    def reserved(self, minute: int, job: Open) -> None:
        """Records a debit in that minute, for a job."""
        self.minute = minute
        self.charge()
        self.freed.discard(job.key)
        self.open.append(job)

    def met(self, key: str | None, *, asynchronous: bool) -> str:
        """What a request finds under its key; an earlier reservation may end by that."""
        earlier = self.opened(key)
        if earlier is None:
            return "free"
        over = self.world.clock.now_s > earlier.waits_until
        if asynchronous and earlier.queued and not over:
            return "accepted"
        if not (earlier.stored or over):
            return "in flight"
        self.open.remove(earlier)
        if earlier.stored:
            return "settled"
        self.give_back(earlier)
        return "ended"

    def settled(self, ended: Open) -> None:
        self.open.remove(ended)
        if ended.key is not None:
            replay = self.world.request(self.world.process(), ended.key)
            assert isinstance(replay, Finished)
            self.urls[ended.key] = replay.image_url

    def replayed(self, key: str | None, answer: object) -> None:
        """Records the image that a repeated request found stored, and settled."""
        assert isinstance(answer, Finished)
        assert answer.replayed
        assert key is not None
        self.urls[key] = answer.image_url

    def refunded(self, ended: Open) -> None:
        self.open.remove(ended)
        self.give_back(ended)
        if ended.key is not None:
            self.freed.add(ended.key)

    @rule(amount=st.integers(1, 40))
    def grant(self, amount: int) -> None:
        self.granted += 1
        grant = Grant(f"g{self.granted}", amount, "", "test", int(self.world.clock.now_s))
        accounts = self.world.process().accounts
        accounts.grant(self.world.organisation, grant, self.world.deadline())
        accounts.grant(self.world.organisation, grant, self.world.deadline())
        self.credits += amount

    @rule(budget=st.none() | st.integers(0, 30))
    def set_budget(self, budget: int | None) -> None:
        self.world.budget = budget

    @rule(key=st.none() | KEYS)
    def ask(self, key: str | None) -> None:
        spent = self.extra_calls(key)
        process = self.world.process()
        met = self.met(key, asynchronous=False)
        answer = self.world.request(process, key)
        if key in self.deleted:
            assert isinstance(answer, ImageDeleted)
        elif key in self.urls:
            assert isinstance(answer, Finished)
            assert (answer.replayed, answer.image_url) == (True, self.urls[key])
        elif met == "settled":
            self.replayed(key, answer)
        elif met == "in flight":
            assert isinstance(answer, GenerationInFlight)
        elif not self.refused(answer):
            assert isinstance(answer, Finished)
            if met == "free":
                assert len(process.network.calls) == SETTLE + 1 + spent
            self.minute = self.minute_now()
            self.charge()
            if key is not None:
                self.urls[key] = answer.image_url
                self.freed.discard(key)

    @precondition(affordable)
    @rule(key=st.none() | KEYS)
    def fail(self, key: str | None) -> None:
        if key in self.urls or self.in_flight(key):
            return
        self.extra_calls()
        answer = self.world.request(self.world.process(failure=ContentRejected()), key)
        self.minute = self.minute_now()
        assert isinstance(answer, GenerationFailed)
        if key is not None:
            self.freed.add(key)

    @precondition(affordable)
    @rule(
        key=st.none() | KEYS,
        call=st.integers(RESERVE, SETTLE),
        fault=DEATHS,
    )
    def die(self, key: str | None, call: int, fault: Fault) -> None:
        if key in self.urls or self.in_flight(key):
            return
        network = Network(call + self.extra_calls(key), fault)
        expires_at = int(self.world.clock.now_s) + LEASE_S
        assert self.world.request(self.world.process(network), key) is None
        done = call + (1 if fault is Fault.KILLED_AFTER else 0)
        if done <= RESERVE:
            return
        self.minute = self.minute_now()
        self.freed.discard(key)
        self.charge()
        if done <= SETTLE:
            created_at = expires_at - LEASE_S
            self.open.append(Open(created_at, expires_at, stored=done > PUT, key=key))
        elif key is not None:
            replay = self.world.request(self.world.process(), key)
            assert isinstance(replay, Finished)
            self.urls[key] = replay.image_url

    @precondition(affordable)
    @rule(
        call=st.integers(RESERVE, SETTLE),
        fault=st.sampled_from([Fault.RESPONSE_LOST, Fault.ERROR_BEFORE, Fault.THROTTLED]),
    )
    def stumble(self, call: int, fault: Fault) -> None:
        if call == MODEL:
            return
        network = Network(call + self.extra_calls(), fault)
        answer = self.world.request(self.world.process(network))
        assert isinstance(answer, Finished)
        self.minute = self.minute_now()
        self.charge()

    @rule(key=st.none() | KEYS)
    def accept(self, key: str | None) -> None:
        self.extra_calls(key)
        met = self.met(key, asynchronous=True)
        answer = self.world.accept(self.world.process(), key)
        if key in self.deleted:
            assert isinstance(answer, ImageDeleted)
        elif key in self.urls:
            assert isinstance(answer, Finished)
            assert (answer.replayed, answer.image_url) == (True, self.urls[key])
        elif met == "settled":
            self.replayed(key, answer)
        elif met == "accepted":
            assert isinstance(answer, Accepted)
            assert answer.replayed
        elif met == "in flight":
            assert isinstance(answer, GenerationInFlight)
        elif not self.refused(answer):
            assert isinstance(answer, Accepted)
            assert not answer.replayed
            message = self.world.mailbox.messages[-1]
            now_s, stored = self.now_s(), False
            job = Open(now_s, now_s + JOB_WAITS_S, stored, key, asynchronous=True, message=message)
            self.reserved(self.minute_now(), job)

    @precondition(affordable)
    @rule(key=st.none() | KEYS, call=st.integers(RESERVE, EXTEND_FOR_THE_QUEUE), fault=DEATHS)
    def die_accepting(self, key: str | None, call: int, fault: Fault) -> None:
        if key in self.urls or self.in_flight(key):
            return
        network = Network(call + self.extra_calls(key), fault)
        assert self.world.accept(self.world.process(network), key) is None
        done = call + (1 if fault is Fault.KILLED_AFTER else 0)
        if done <= RESERVE:
            return
        lease_s = JOB_WAITS_S if done > EXTEND_FOR_THE_QUEUE else LEASE_S
        message = self.world.mailbox.messages[-1] if done > SEND else None
        now_s, stored = self.now_s(), False
        job = Open(now_s, now_s + lease_s, stored, key, asynchronous=True, message=message)
        self.reserved(self.minute_now(), job)

    @precondition(affordable)
    @rule(key=st.none() | KEYS, fault=st.sampled_from([Fault.OUTAGE, Fault.LOST_THEN_OUTAGE]))
    def fail_to_queue(self, key: str | None, fault: Fault) -> None:
        """The credits are refunded at once, although the message may be in the queue."""
        if key in self.urls or self.in_flight(key):
            return
        network = Network(SEND + self.extra_calls(key), fault)
        minute = self.minute_now()
        assert isinstance(self.world.accept(self.world.process(network), key), JobNotQueued)
        self.minute = minute
        if key is not None:
            self.freed.add(key)

    @precondition(lambda self: self.world.mailbox.messages)
    @rule(which=st.integers(0, 7), fails=st.booleans())
    def deliver(self, which: int, fails: bool) -> None:  # noqa: FBT001 - Hypothesis names it
        message, job = self.sent(which)
        process = self.world.process(failure=ContentRejected() if fails else None)
        assert self.world.work(process, message)
        if job is None:
            assert len(process.network.calls) == EXTEND + 1
        elif fails and not job.stored:
            self.refunded(job)
        else:
            self.settled(job)

    @precondition(lambda self: self.world.mailbox.messages)
    @rule(which=st.integers(0, 7), call=st.integers(EXTEND, SETTLE), fault=DEATHS)
    def die_working(self, which: int, call: int, fault: Fault) -> None:
        message, job = self.sent(which)
        # A redelivery looks into the store first, and twice if there is something.
        looks = 1 if self.world.deliveries[message] else 0
        self.world.work(self.world.process(Network(call, fault)), message)
        done = call + (1 if fault is Fault.KILLED_AFTER else 0)
        if job is None or done <= EXTEND:
            return
        job.expires_at = self.now_s() + WORKER_LEASE_S
        if done > SETTLE + (0 if job.stored else looks):
            self.settled(job)
        elif done > PUT + looks:
            job.stored = True

    @precondition(lambda self: self.world.generations())
    @rule(which=st.integers(0, 7), call=st.integers(MARK, VISIT), fault=st.none() | DEATHS)
    def delete(self, which: int, call: int, fault: Fault | None) -> None:
        """The money does not change, whatever is deleted, and wherever the sandbox dies."""
        generations = self.world.generations()
        found = generations[which % len(generations)]
        network = Network() if fault is None else Network(call, fault)
        answer = self.world.delete(self.world.process(network), found.created_ms)
        if found.status is Status.RESERVED:
            assert answer is False or isinstance(answer, GenerationReserved)
            return
        assert isinstance(answer, bool)
        after = next(each for each in self.world.generations() if each.id == found.id)
        assert fault is not None or (answer and after.deleted_at is not None)
        if after.deleted_at is not None and after.status is Status.SETTLED:
            self.deleted |= {key for key, url in self.urls.items() if url.endswith(after.image_key)}

    @rule(seconds=st.sampled_from([1, 30, 70, WORKER_LEASE_S, JOB_WAITS_S]))
    def time_passes(self, seconds: int) -> None:
        self.world.clock.sleep(seconds)

    @rule()
    def reconcile(self) -> None:
        self.world.reconcile(self.world.process())
        over = [each for each in self.open if each.expires_at <= self.now_s()]
        for each in over:
            if each.stored:
                self.settled(each)
            else:
                self.refunded(each)

    @invariant()
    def the_service_agrees(self) -> None:
        type(self).steps += 1
        assert self.world.balance() == self.credits
        assert self.world.used() == self.used_this_month
        audited = self.world.audit()
        assert audited.drift == 0
        assert not [each for each in audited.findings if "usage" in each]


@pytest.mark.real
def test_the_service_agrees_with_a_plain_account_after_any_history(engine: Engine) -> None:
    class OnEngine(Money):
        pass

    OnEngine.engine = engine
    chosen = settings(
        max_examples=30 if engine.is_moto else 100,
        stateful_step_count=12,
        deadline=None,
        derandomize=True,
        # Shrinking takes minutes and adds little.
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(OnEngine, settings=chosen)
    if not engine.is_moto:
        tally(Tried.HISTORY_STEPS, OnEngine.steps)
