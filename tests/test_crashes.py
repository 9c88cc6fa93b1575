"""Every fault at every call of every path, and the money adds up.

Each path is run once to record its calls. Then it is run again for every call and every fault that
the call can meet. Nothing here lists the calls: one added tomorrow is struck tomorrow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from lib.deadline import FUNCTION_TIMEOUT_S
from lib.errors import (
    ContentRejected,
    GenerationFailed,
    GenerationInFlight,
    ModelOverloaded,
    ModelTimedOut,
    ModelUnavailable,
    NoImageReturned,
    RequestRejected,
    ServiceError,
)
from lib.generation import Accepted, Finished
from lib.ledger.rows import Status
from tests.engines import Engine
from tests.reporting import tally
from tests.world import Fault, Process, Wire, World

KEY = "order-1"
# The calls of a request in a minute that has begun: reserve, generate, put, settle.
MODEL, SETTLE = 1, 3
Answer = Finished | Accepted | ServiceError | None


def nothing(_world: World) -> None:
    """No history."""


@dataclass(frozen=True)
class Path:
    """A way through the service: what came before it, and what a process then does."""

    name: str
    act: Callable[[World, Process], Answer]
    prepare: Callable[[World], None] = nothing
    failure: Exception | None = None
    credits: int = 100
    rate_limit: int = 60
    key: str | None = None
    expected: type = field(default=Finished)

    def __str__(self) -> str:
        return self.name

    def world(self, engine: Engine) -> World:
        """The world as it is before the path."""
        world = World(engine, self.credits, self.rate_limit)
        self.prepare(world)
        return world


def ask(world: World, process: Process) -> Answer:
    return world.request(process)


def ask_with_key(world: World, process: Process) -> Answer:
    return world.request(process, KEY)


def accept(world: World, process: Process) -> Answer:
    return world.accept(process)


def accept_with_key(world: World, process: Process) -> Answer:
    return world.accept(process, KEY)


def work(world: World, process: Process) -> Answer:
    (message,) = world.mailbox.messages
    world.work(process, message)
    return None


def reconcile(world: World, process: Process) -> Answer:
    world.let_leases_pass()
    world.reconcile(process)
    return None


def settled_before(world: World) -> None:
    assert isinstance(world.request(world.process(), KEY), Finished)


def refunded_before(world: World) -> None:
    failed = world.request(world.process(failure=ContentRejected()), KEY)
    assert isinstance(failed, ContentRejected)


def in_flight(world: World) -> None:
    died_at_the_model = Wire(strikes_at=MODEL, fault=Fault.KILLED_BEFORE)
    assert world.request(world.process(died_at_the_model), KEY) is None


def abandoned_with_image(world: World) -> None:
    died_at_settling = Wire(strikes_at=SETTLE, fault=Fault.KILLED_BEFORE)
    assert world.request(world.process(died_at_settling)) is None
    assert len(world.stored_keys()) == 1


def refunded_by_the_reconciler(world: World) -> None:
    in_flight(world)
    world.let_leases_pass()
    world.reconcile(world.process())


def accepted_before(world: World) -> None:
    assert isinstance(world.accept(world.process(), KEY), Accepted)


def settled_by_a_worker(world: World) -> None:
    accepted_before(world)
    world.deliver()
    assert [each.status for each in world.generations()] == [Status.SETTLED]


def refunded_by_a_worker(world: World) -> None:
    accepted_before(world)
    world.deliver(world.process(failure=ContentRejected()))
    assert [each.status for each in world.generations()] == [Status.REFUNDED]


def never_taken(world: World) -> None:
    accepted_before(world)
    world.let_leases_pass()
    world.reconcile(world.process())
    assert [each.status for each in world.generations()] == [Status.REFUNDED]


def swept(world: World) -> None:
    never_taken(world)
    world.let_leases_pass()
    world.reconcile(world.process())
    assert [each.due_at for each in world.generations()] == [None]


def a_request_before(world: World) -> None:
    assert isinstance(world.request(world.process()), Finished)


def a_minute_passes(world: World) -> None:
    world.clock.sleep(60)


FAILURES: tuple[Exception, ...] = (
    ContentRejected(),
    RuntimeError("a bug of ours"),
)
# Their calls are those of ContentRejected.
FAILURES_ALIKE: tuple[Exception, ...] = (
    NoImageReturned(),
    ModelTimedOut(),
    ModelOverloaded(),
    ModelUnavailable(),
)

PATHS = [
    Path("success", ask),
    Path("success in a taken millisecond", ask, a_request_before),
    Path("success in a new minute", ask, a_minute_passes),
    Path("success with a key", ask_with_key, key=KEY),
    Path("replay", ask_with_key, settled_before, key=KEY),
    Path("same key in flight", ask_with_key, in_flight, key=KEY, expected=GenerationInFlight),
    Path("key free again after a refund", ask_with_key, refunded_before, key=KEY),
    Path("no credits", ask, credits=4, expected=RequestRejected),
    Path("rate limited", ask, a_request_before, rate_limit=1, expected=RequestRejected),
    *(
        Path(
            f"failure: {type(failure).__name__}",
            ask_with_key,
            failure=failure,
            key=KEY,
            expected=GenerationFailed,
        )
        for failure in (*FAILURES, *FAILURES_ALIKE)
    ),
    Path("reconciler refunds", reconcile, in_flight, expected=type(None)),
    Path("reconciler settles", reconcile, abandoned_with_image, expected=type(None)),
    Path("reconciler sweeps", reconcile, refunded_by_the_reconciler, expected=type(None)),
    Path("accept", accept, expected=Accepted),
    Path("accept with a key", accept_with_key, key=KEY, expected=Accepted),
    Path("accept again", accept_with_key, accepted_before, key=KEY, expected=Accepted),
    Path("accept what is settled", accept_with_key, settled_by_a_worker, key=KEY),
    Path("work", work, accepted_before, key=KEY, expected=type(None)),
    Path("work that fails", work, accepted_before, ContentRejected(), expected=type(None)),
    Path("work that is done", work, settled_by_a_worker, key=KEY, expected=type(None)),
    Path("work that was refunded", work, refunded_by_a_worker, expected=type(None)),
    Path("work that comes too late", work, never_taken, expected=type(None)),
    Path("work that comes after the sweep", work, swept, expected=type(None)),
    Path("reconciler refunds a job", reconcile, accepted_before, expected=type(None)),
]


SLOW_ON_MOTO = {
    "success",
    "replay",
    "same key in flight",
    "reconciler refunds",
    "reconciler settles",
    "work that fails",
    "success in a taken millisecond",
    "success in a new minute",
    "key free again after a refund",
    "reconciler sweeps",
    "failure: RuntimeError",
    "accept with a key",
    "accept again",
    "accept what is settled",
    "work",
    "work that is done",
    "work that was refunded",
    "work that comes too late",
    "work that comes after the sweep",
    "reconciler refunds a job",
    *(f"failure: {type(failure).__name__}" for failure in FAILURES_ALIKE),
}
ON_MOTO = [
    pytest.param(path, marks=[pytest.mark.slow] if path.name in SLOW_ON_MOTO else [], id=path.name)
    for path in PATHS
]


@pytest.mark.parametrize("path", ON_MOTO)
def test_no_fault_at_any_call_loses_or_invents_a_credit_on_moto(
    path: Path, moto_engine: Engine
) -> None:
    strike_everywhere(path, moto_engine)


@pytest.mark.real
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_no_fault_at_any_call_loses_or_invents_a_credit(path: Path, real_engine: Engine) -> None:
    strike_everywhere(path, real_engine)


def strike_everywhere(path: Path, engine: Engine) -> None:
    """Records the path's calls, and then meets each of them with each fault that it can meet."""
    with path.world(engine) as world:
        healthy = world.process(failure=path.failure)
        assert isinstance(path.act(world, healthy), path.expected)
        world.settle_down()
        assert world.violations() == []

    points = [
        (number, fault) for number, call in enumerate(healthy.wire.calls) for fault in call.faults
    ]
    assert points
    for number, fault in points:
        where = f"{path}, call {number} ({healthy.wire.calls[number]}): {fault}"
        with path.world(engine) as world:
            _strike(path, world, Wire(number, fault), where)
    tally(f"crash points covered on {engine.name}, each sound", len(points))


def _strike(path: Path, world: World, wire: Wire, where: str) -> None:
    before = {each.id for each in world.generations()}
    answer = path.act(world, world.process(wire, path.failure))
    assert world.last_request_took_s <= FUNCTION_TIMEOUT_S, where
    if path.key is not None and isinstance(answer, Finished | None):
        world.request(world.process(), path.key)
    world.deliver()
    world.settle_down()
    # Messages may come when all is over.
    world.deliver()

    assert world.violations() == [], where
    settled = [each for each in world.generations() if each.status is Status.SETTLED]
    if isinstance(answer, Finished):
        urls = [f"https://images.example/{each.image_key}" for each in settled]
        assert answer.image_url in urls, where
    elif isinstance(answer, Accepted):
        ended = {f"https://images.example/{each.image_key}" for each in world.generations()}
        assert answer.image_url in ended, where
    elif answer is not None:
        told_of_no_charge = [each for each in settled if each.id not in before]
        assert told_of_no_charge == [], where
    if path.key is not None:
        _the_retry_gets_one_image(world, path.key, where)


def _the_retry_gets_one_image(world: World, key: str, where: str) -> None:
    retried = world.request(world.process(), key)
    assert isinstance(retried, Finished), where
    (charged,) = (each for each in world.generations() if each.status is Status.SETTLED)
    assert charged.idempotency_key == key, where
    assert retried.image_url.endswith(charged.image_key), where
    assert world.balance() == 95, where
