"""The money adds up after any fault at any call of any path.

Each path runs once to record its calls, and then once more for every call and every fault that can
strike it. No call is listed here, so a new one is covered as soon as it exists.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from lib.deadline import FUNCTION_TIMEOUT_S, WORKER_LEASE_S
from lib.errors import (
    ContentRejected,
    GenerationFailed,
    GenerationInFlight,
    GenerationReserved,
    ImageDeleted,
    KeyBudgetExhausted,
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
from tests.reporting import Tried, tally
from tests.world import Fault, Network, Sandbox, World

KEY, PRICE = "order-1", 5
# Calls of a request in an open minute: reserve, generate, put, settle.
MODEL, SETTLE = 1, 3
NONE = type(None)


@dataclass(frozen=True)
class Path:
    """A way through the service: what came before, and what one sandbox then does."""

    name: str
    act: Callable[[World, Sandbox], object]
    prepare: Callable[[World], object] = lambda _world: None
    failure: Exception | None = None
    credits: int = 100
    rate_limit: int = 60
    budget: int = 1_000
    key: str | None = None
    expected: type = Finished

    def __str__(self) -> str:
        return self.name

    def world(self, engine: Engine) -> World:
        """The world before the path: with an idempotency key, the budget pays for one image."""
        budget = self.budget if self.key is None else PRICE
        world = World(engine, self.credits, self.rate_limit, budget)
        self.prepare(world)
        return world


ask, accept, delete = World.request, World.accept, World.delete
ask_with_key, accept_with_key = partial(ask, key=KEY), partial(accept, key=KEY)
images_with_key = partial(World.images, key=KEY)


def work(world: World, process: Sandbox) -> None:
    (message,) = world.mailbox.messages
    world.work(process, message)


def reconcile(world: World, process: Sandbox) -> None:
    world.let_leases_pass()
    world.reconcile(process)


def settled_before(world: World) -> None:
    assert isinstance(world.request(world.process(), KEY), Finished)


def refunded_before(world: World) -> None:
    failed = world.request(world.process(failure=ContentRejected()), KEY)
    assert isinstance(failed, ContentRejected)


def in_flight(world: World) -> None:
    died_at_the_model = Network(strikes_at=MODEL, fault=Fault.KILLED_BEFORE)
    assert world.request(world.process(died_at_the_model), KEY) is None


def abandoned_with_image(world: World) -> None:
    died_at_settling = Network(strikes_at=SETTLE, fault=Fault.KILLED_BEFORE)
    assert world.request(world.process(died_at_settling)) is None
    assert len(world.stored_keys()) == 1


def refunded_by_the_reconciler(world: World) -> None:
    in_flight(world)
    reconcile(world, world.process())


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


def never_delivered(world: World) -> None:
    accepted_before(world)
    reconcile(world, world.process())
    assert [each.status for each in world.generations()] == [Status.REFUNDED]


def swept(world: World) -> None:
    never_delivered(world)
    reconcile(world, world.process())
    assert [each.due_at for each in world.generations()] == [None]


def deleted_before(world: World) -> None:
    settled_before(world)
    assert world.delete(world.process()) is True


def deleted_later(world: World) -> None:
    settled_by_a_worker(world)
    world.clock.sleep(WORKER_LEASE_S)


def deleted_in_part(world: World) -> None:
    settled_before(world)
    died_at_the_object = Network(strikes_at=1, fault=Fault.KILLED_BEFORE)
    assert world.delete(world.process(died_at_the_object)) is False
    assert len(world.stored_keys()) == 1


def a_request_before(world: World) -> None:
    assert isinstance(world.request(world.process()), Finished)


FAILURES = (
    *(ContentRejected(), RuntimeError("a bug"), NoImageReturned()),
    *(ModelTimedOut(), ModelOverloaded(), ModelUnavailable()),
)

PATHS = [
    Path("success", ask),
    Path("success in a taken millisecond", ask, a_request_before),
    Path("success in a new minute", ask, lambda world: world.clock.sleep(60)),
    Path("success with a key", ask_with_key, key=KEY),
    Path("replay", ask_with_key, settled_before, key=KEY),
    Path("same key in flight", ask_with_key, in_flight, key=KEY, expected=GenerationInFlight),
    Path("key free again after a refund", ask_with_key, refunded_before, key=KEY),
    Path("no credits", ask, credits=4, expected=RequestRejected),
    Path("no budget", ask, budget=4, expected=KeyBudgetExhausted),
    Path("budget used up", ask, a_request_before, budget=9, expected=KeyBudgetExhausted),
    Path("rate limited", ask, a_request_before, rate_limit=1, expected=RequestRejected),
    *(
        Path(
            f"failure: {type(failure).__name__}",
            ask_with_key,
            failure=failure,
            key=KEY,
            expected=GenerationFailed,
        )
        for failure in FAILURES
    ),
    # OpenAI's route, through the handler, with the image in base64: a replay reads it.
    Path("OpenAI: success", images_with_key, key=KEY),
    Path("OpenAI: replay", images_with_key, settled_before, key=KEY),
    Path("OpenAI: same key in flight", images_with_key, in_flight, key=KEY, expected=ServiceError),
    Path("OpenAI: key free again after a refund", images_with_key, refunded_before, key=KEY),
    Path("OpenAI: no credits", World.images, credits=4, expected=ServiceError),
    Path("OpenAI: same key deleted", images_with_key, deleted_before, expected=ServiceError),
    *(
        Path(
            f"OpenAI: failure: {type(failure).__name__}",
            images_with_key,
            failure=failure,
            key=KEY,
            expected=ServiceError,
        )
        for failure in (ContentRejected(), RuntimeError("a bug"), ModelOverloaded())
    ),
    Path("reconciler refunds", reconcile, in_flight, expected=NONE),
    Path("reconciler settles", reconcile, abandoned_with_image, expected=NONE),
    Path("reconciler sweeps", reconcile, refunded_by_the_reconciler, expected=NONE),
    Path("accept", accept, expected=Accepted),
    Path("accept with a key", accept_with_key, key=KEY, expected=Accepted),
    Path("accept again", accept_with_key, accepted_before, key=KEY, expected=Accepted),
    Path("accept what is settled", accept_with_key, settled_by_a_worker, key=KEY),
    Path("work", work, accepted_before, key=KEY, expected=NONE),
    Path("work that fails", work, accepted_before, ContentRejected(), expected=NONE),
    Path("work that is done", work, settled_by_a_worker, key=KEY, expected=NONE),
    Path("work that was refunded", work, refunded_by_a_worker, expected=NONE),
    Path("work that comes too late", work, never_delivered, expected=NONE),
    Path("work that comes after the sweep", work, swept, expected=NONE),
    Path("reconciler refunds a job", reconcile, accepted_before, expected=NONE),
    Path("delete", delete, settled_before, expected=bool),
    Path("delete later", delete, deleted_later, expected=bool),
    Path("delete twice", delete, deleted_before, expected=bool),
    Path("delete what is refunded", delete, refunded_by_the_reconciler, expected=bool),
    Path("delete what is reserved", delete, in_flight, expected=GenerationReserved),
    Path("same key deleted", ask_with_key, deleted_before, expected=ImageDeleted),
    Path("reconciler deletes", reconcile, deleted_in_part, expected=NONE),
]


FAST = {"success with a key", "failure: ContentRejected"}


@pytest.mark.parametrize(
    "path",
    [pytest.param(each, marks=() if each.name in FAST else pytest.mark.slow) for each in PATHS],
    ids=str,
)
def test_no_fault_at_any_call_loses_or_creates_a_credit_on_moto(
    path: Path, moto_engine: Engine
) -> None:
    strike_everywhere(path, moto_engine)


@pytest.mark.real
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_no_fault_at_any_call_loses_or_creates_a_credit(path: Path, real_engine: Engine) -> None:
    strike_everywhere(path, real_engine)


# The paths on which a second fault can meet the handling of the first one.
DOUBLE = [
    each
    for each in PATHS
    if each.name
    in {
        *("success with a key", "failure: ContentRejected", "accept with a key"),
        *("work", "work that fails", "reconciler refunds", "reconciler settles"),
        *("OpenAI: success", "OpenAI: replay"),
        "reconciler refunds a job",
    }
]
FIRST = (Fault.RESPONSE_LOST, Fault.ERROR_BEFORE, Fault.OUTAGE)
SECOND = (Fault.OUTAGE, Fault.LOST_THEN_OUTAGE)


@pytest.mark.slow
@pytest.mark.parametrize("path", DOUBLE, ids=str)
def test_no_second_fault_loses_or_creates_a_credit_on_moto(path: Path, moto_engine: Engine) -> None:
    strike_twice_everywhere(path, moto_engine)


@pytest.mark.real
@pytest.mark.parametrize("path", DOUBLE, ids=str)
def test_no_second_fault_loses_or_creates_a_credit(path: Path, real_engine: Engine) -> None:
    strike_twice_everywhere(path, real_engine)


def strike_twice_everywhere(path: Path, engine: Engine) -> None:
    """Strikes each pair of calls: one fault, and then an outage while it is being handled."""
    pairs = 0
    for fault, outage in itertools.product(FIRST, SECOND):
        for first in itertools.count():
            struck = _strike_each_later_call(path, engine, first, (fault, outage))
            if struck is None:
                break
            pairs += struck
    assert pairs
    if not engine.is_moto:
        tally(Tried.DOUBLE_FAULTS, pairs)


def _strike_each_later_call(
    path: Path, engine: Engine, first: int, faults: tuple[Fault, Fault]
) -> int | None:
    """Strikes call ``first``, and each call after it in turn; None if there is no such call."""
    for second in itertools.count(first + 1):
        with path.world(engine) as world:
            network = Network(first, faults[0], later={second: faults[1]})
            where = f"{path}, {faults[0]} at call {first}, {faults[1]} at call {second}"
            _strike(path, world, network, where)
        if len(network.calls) <= first:
            return None
        if len(network.calls) <= second:
            return second - first - 1
    raise AssertionError  # ``count`` does not end.


def strike_everywhere(path: Path, engine: Engine) -> None:
    """Records the calls of the path, and then strikes each of them with each possible fault."""
    with path.world(engine) as world:
        healthy = world.process(failure=path.failure)
        assert isinstance(path.act(world, healthy), path.expected)
        world.settle_down()
        assert world.violations() == []

    calls = healthy.network.calls
    points = [(number, fault) for number, call in enumerate(calls) for fault in call.faults]
    assert points
    for number, fault in points:
        where = f"{path}, call {number} ({calls[number]}): {fault}"
        with path.world(engine) as world:
            _strike(path, world, Network(number, fault), where)
    if not engine.is_moto:
        tally(Tried.CRASH_POINTS, len(points))


def _strike(path: Path, world: World, network: Network, where: str) -> None:
    before = {each.id for each in world.generations()}
    answer = path.act(world, world.process(network, path.failure))
    assert world.last_request_took_s <= FUNCTION_TIMEOUT_S, where
    if path.key is not None and isinstance(answer, Finished | None):
        world.request(world.process(), path.key)
    world.deliver()
    world.settle_down()
    # A message may be delivered when everything has ended.
    world.deliver()

    assert world.violations() == [], where
    if answer is True:
        assert [each.deleted_at is None for each in world.generations()] == [False], where
    settled = [each for each in world.generations() if each.status is Status.SETTLED]
    if isinstance(answer, Finished):
        urls = [f"https://images.example/{each.image_key}" for each in settled]
        assert answer.image_url in urls, where
    elif isinstance(answer, Accepted):
        ended = {f"https://images.example/{each.image_key}" for each in world.generations()}
        assert answer.image_url in ended, where
    elif isinstance(answer, ServiceError) and answer.credits_charged == 0:
        assert [each for each in settled if each.id not in before] == [], where
    if path.key is not None:
        _the_retry_gets_one_image(world, path.key, where)


def _the_retry_gets_one_image(world: World, key: str, where: str) -> None:
    retried = world.request(world.process(), key)
    assert isinstance(retried, Finished), where
    (charged,) = (each for each in world.generations() if each.status is Status.SETTLED)
    assert charged.idempotency_key == key, where
    assert retried.image_url.endswith(charged.image_key), where
    assert world.balance() == 95, where
    assert world.used() == PRICE, where
