"""Processes that meet at one generation, job or account, in every order, one crash anywhere."""

from collections.abc import Callable
from typing import Any

import pytest

from lib.deadline import LEASE_S
from lib.errors import (
    ContentRejected,
    GenerationInFlight,
    InsufficientCredits,
    ServiceError,
)
from lib.generation import Accepted, Finished
from lib.ledger.rows import Status
from tests.engines import Engine
from tests.reporting import tally
from tests.schedules import Actor, Explorer, Scene
from tests.world import Call, Fault, Process, Wire, World

KEY = "order-1"
# The calls of a request in a minute that has begun: reserve, generate, put, settle.
PUT, SETTLE = 2, 3
# Those of an asynchronous one: reserve, send, take.
SEND = 1
# Those of a delivery: take, generate, put, settle.
MODEL = 1


def ask(world: World, process: Process) -> Any:
    return world.request(process)


def ask_with_key(world: World, process: Process) -> Any:
    return world.request(process, KEY)


def reconcile_later(world: World, process: Process) -> Any:
    """Time passes at a moment that the schedule picks, and then the reconciler comes by."""
    process.wire.call(Call("time", "the leases pass"), world.let_leases_pass)
    return world.reconcile(process)


def reconcile(world: World, process: Process) -> Any:
    return world.reconcile(process)


def reconcile_twice(world: World, process: Process) -> Any:
    """As above, and once more when the lease of a request would have passed."""
    reconcile_later(world, process)
    process.wire.call(Call("time", "a minute passes"), lambda: world.clock.sleep(LEASE_S + 1))
    return world.reconcile(process)


def accept(world: World, process: Process) -> Any:
    return world.accept(process)


def accept_with_key(world: World, process: Process) -> Any:
    return world.accept(process, KEY)


def deliver(world: World, process: Process) -> Any:
    """The one job comes to a worker."""
    (message,) = world.mailbox.messages
    return world.work(process, message)


def receive(world: World, process: Process) -> Any:
    """What the queue holds at a moment that the schedule picks comes to a worker."""
    messages = process.wire.call(Call("sqs", "receive_message"), world.mailbox.messages.copy)
    return [world.work(process, message) for message in messages]


def nobody_paid_for_nothing(world: World, answers: dict[str, Any]) -> None:
    """Once everything is over: sound books, and every 200 is a charged image that is there."""
    world.settle_down()
    assert world.violations() == []
    for name, answer in answers.items():
        if isinstance(answer, Finished):
            told = answer.image_url
            assert told in urls(world, Status.SETTLED), f"{name} was given what is not charged"


def every_job_ends(world: World, answers: dict[str, Any]) -> None:
    """As above, and every 202 is a generation that ended; its message may come after that."""
    nobody_paid_for_nothing(world, answers)
    world.deliver()
    assert world.violations() == []
    for name, answer in answers.items():
        if isinstance(answer, Accepted):
            assert answer.image_url in urls(world, *Status), f"{name} was accepted for nothing"


def no_charge_but_for_an_answer(world: World, answers: dict[str, Any]) -> None:
    """As above, and a customer who was told of a failure is not charged."""
    every_job_ends(world, answers)
    if isinstance(answers["acceptor"], ServiceError):
        assert urls(world, Status.SETTLED) == set()
        assert world.balance() == 100


def one_job_for_the_key(world: World, answers: dict[str, Any]) -> None:
    """One reservation, whoever asked first, and a retry gets the one image that is charged."""
    told = [each for each in answers.values() if isinstance(each, Accepted)]
    assert len(world.generations()) <= 1
    assert {each.image_url for each in told} <= urls(world, *Status)
    assert not any(isinstance(each, GenerationInFlight) for each in answers.values())
    world.deliver()
    every_job_ends(world, answers)
    a_retry_gets_the_one_image(world, answers)


def one_image_whoever_made_it(world: World, answers: dict[str, Any]) -> None:
    world.deliver()
    every_job_ends(world, answers)
    a_retry_gets_the_one_image(world, answers)


def a_retry_gets_the_one_image(world: World, answers: dict[str, Any]) -> None:
    given = {answer.image_url for answer in answers.values() if isinstance(answer, Finished)}
    retry = world.request(world.process(), KEY)
    assert isinstance(retry, Finished)
    assert given <= {retry.image_url}
    assert world.balance() == 95
    assert world.violations() == []


def urls(world: World, *statuses: Status) -> set[str]:
    """The URLs of the generations that are in one of the statuses."""
    found = [each for each in world.generations() if each.status in statuses]
    return {f"https://images.example/{each.image_key}" for each in found}


def one_image_for_the_key(world: World, answers: dict[str, Any]) -> None:
    nobody_paid_for_nothing(world, answers)
    a_retry_gets_the_one_image(world, answers)


def at_most_one_got_it(world: World, answers: dict[str, Any]) -> None:
    nobody_paid_for_nothing(world, answers)
    finished = [each for each in answers.values() if isinstance(each, Finished)]
    refused = [each for each in answers.values() if isinstance(each, InsufficientCredits)]
    assert len(finished) <= 1
    assert len(refused) <= 1
    charged = [each for each in world.generations() if each.status is Status.SETTLED]
    assert world.balance() == 5 - 5 * len(charged)
    assert len(charged) <= 1


def abandoned(world: World, *, with_image: bool) -> None:
    dies_at = SETTLE if with_image else PUT
    assert world.request(world.process(Wire(dies_at, Fault.KILLED_BEFORE))) is None
    world.let_leases_pass()


def refunded_before(world: World) -> None:
    failed = world.request(world.process(failure=ContentRejected()), KEY)
    assert isinstance(failed, ContentRejected)


def accepted_before(world: World) -> None:
    assert isinstance(world.accept(world.process()), Accepted)


def _scene(
    actors: tuple[Actor, ...],
    check: Callable[[World, dict[str, Any]], None] = nobody_paid_for_nothing,
    prepare: Callable[[World], None] = lambda _world: None,
    credits_: int = 100,
    *,
    new_minute: bool = False,
) -> Callable[[Engine], Scene]:
    def scene(engine: Engine) -> Scene:
        def world() -> World:
            made = World(engine, credits_)
            if new_minute:
                made.clock.sleep(60)
            prepare(made)
            return made

        return Scene(world, actors, check)

    return scene


SCENES = {
    "two requests with one key": _scene(
        (Actor("first", ask_with_key), Actor("second", ask_with_key)), one_image_for_the_key
    ),
    "two requests for the last credits": _scene(
        (Actor("first", ask), Actor("second", ask)), at_most_one_got_it, credits_=5, new_minute=True
    ),
    "a slow request and the reconciler": _scene(
        (Actor("request", ask), Actor("reconciler", reconcile_later)),
    ),
    "a slow request with a key and the reconciler": _scene(
        (Actor("request", ask_with_key), Actor("reconciler", reconcile_later)),
        one_image_for_the_key,
    ),
    "a refund and the reconciler's settle": _scene(
        (
            Actor("request", ask, PUT, Fault.LOST_THEN_OUTAGE),
            Actor("reconciler", reconcile_later),
        ),
    ),
    "a refund in doubt and the reconciler's settle": _scene(
        (
            # No time is left to ask the store again whether the image got there.
            Actor("request", ask, PUT, Fault.RESPONSE_LOST, model_takes_s=25.5),
            Actor("reconciler", reconcile_later),
        ),
    ),
    "two retries after a refund": _scene(
        (Actor("first", ask_with_key), Actor("second", ask_with_key)),
        one_image_for_the_key,
        prepare=refunded_before,
    ),
    "two reconcilers and an abandoned image": _scene(
        (Actor("one", reconcile), Actor("other", reconcile)),
        prepare=lambda world: abandoned(world, with_image=True),
    ),
    "two reconcilers and an abandoned reservation": _scene(
        (Actor("one", reconcile), Actor("other", reconcile)),
        prepare=lambda world: abandoned(world, with_image=False),
    ),
    "an acceptor and a worker": _scene(
        (Actor("acceptor", accept), Actor("worker", receive)), no_charge_but_for_an_answer
    ),
    "an acceptor and a worker that fails": _scene(
        (
            Actor("acceptor", accept),
            Actor("worker", receive, 1 + MODEL, Fault.ERROR_BEFORE),
        ),
        no_charge_but_for_an_answer,
    ),
    "an acceptor that doesn't know what it sent and a worker": _scene(
        (Actor("acceptor", accept, SEND, Fault.LOST_THEN_OUTAGE), Actor("worker", receive)),
        no_charge_but_for_an_answer,
    ),
    "a slow acceptor and the reconciler": _scene(
        (Actor("acceptor", accept), Actor("reconciler", reconcile_later)),
        no_charge_but_for_an_answer,
    ),
    "two deliveries of one job": _scene(
        (Actor("first", deliver), Actor("second", deliver)),
        every_job_ends,
        prepare=accepted_before,
    ),
    "two deliveries of one job, one of which fails": _scene(
        (
            Actor("first", deliver, MODEL, Fault.ERROR_BEFORE),
            Actor("second", deliver),
        ),
        every_job_ends,
        prepare=accepted_before,
    ),
    "a late delivery and the reconciler": _scene(
        (Actor("worker", deliver), Actor("reconciler", reconcile_later)),
        every_job_ends,
        prepare=accepted_before,
    ),
    "a late delivery and the reconciler, who comes again": _scene(
        (Actor("worker", deliver), Actor("reconciler", reconcile_twice)),
        every_job_ends,
        prepare=accepted_before,
    ),
    "two asynchronous requests with one key": _scene(
        (Actor("first", accept_with_key), Actor("second", accept_with_key)),
        one_job_for_the_key,
    ),
    "a synchronous and an asynchronous request with one key": _scene(
        (Actor("first", ask_with_key), Actor("second", accept_with_key)),
        one_image_whoever_made_it,
    ),
}
# How often the turn may be taken from an actor, where all orders would take minutes.
SWITCHES = {
    "an acceptor that doesn't know what it sent and a worker": 2,
    "a late delivery and the reconciler": 3,
    "a late delivery and the reconciler, who comes again": 2,
}

WITH_THREE = {
    "a slow request, its retry and the reconciler": _scene(
        (
            Actor("request", ask_with_key),
            Actor("retry", ask_with_key),
            Actor("reconciler", reconcile_later),
        ),
        one_image_for_the_key,
    ),
    "a slow request and two reconcilers": _scene(
        (
            Actor("request", ask),
            Actor("one", reconcile_later),
            Actor("other", reconcile),
        ),
    ),
    "two deliveries of one job and the reconciler": _scene(
        (
            Actor("first", deliver),
            Actor("second", deliver),
            Actor("reconciler", reconcile_later),
        ),
        every_job_ends,
        prepare=accepted_before,
    ),
    "an acceptor, a worker and the reconciler": _scene(
        (
            Actor("acceptor", accept),
            Actor("worker", receive),
            Actor("reconciler", reconcile_later),
        ),
        no_charge_but_for_an_answer,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_in_every_order_the_books_are_sound_on_moto(
    name: str, moto_engine: Engine, schedule: list[int] | None
) -> None:
    explore(SCENES[name], moto_engine, schedule, SWITCHES.get(name))


@pytest.mark.real
@pytest.mark.parametrize("name", SCENES)
def test_in_every_order_the_books_are_sound(
    name: str, real_engine: Engine, schedule: list[int] | None
) -> None:
    explore(SCENES[name], real_engine, schedule, SWITCHES.get(name))


@pytest.mark.real
@pytest.mark.parametrize("name", WITH_THREE)
def test_with_three_and_one_switch_the_books_are_sound(
    name: str, real_engine: Engine, schedule: list[int] | None
) -> None:
    explore(WITH_THREE[name], real_engine, schedule, switches=1)


def explore(
    scene: Callable[[Engine], Scene],
    engine: Engine,
    schedule: list[int] | None,
    switches: int | None = None,
) -> None:
    """Walks through every schedule of the scene, or replays the one that was asked for."""
    explorer = Explorer(scene(engine), switches)
    if schedule is not None:
        explorer.replay(schedule)
        return
    tally(f"interleavings explored on {engine.name}, each sound", explorer.explore())
