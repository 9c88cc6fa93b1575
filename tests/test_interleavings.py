"""Processes that meet at one generation or one account, in every order, one crash anywhere."""

from collections.abc import Callable
from typing import Any

import pytest

from lib.errors import ContentRejected, InsufficientCredits
from lib.generation import Finished
from lib.ledger_rows import Status
from tests.engines import Engine
from tests.reporting import tally
from tests.schedules import Actor, Explorer, Scene
from tests.world import Call, Fault, Process, Wire, World

KEY = "order-1"
# The calls of a request in a minute that has begun: reserve, generate, put, settle.
PUT, SETTLE = 2, 3


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


def nobody_paid_for_nothing(world: World, answers: dict[str, Any]) -> None:
    """Once everything is over: sound books, and every 200 is a charged image that is there."""
    world.settle_down()
    assert world.violations() == []
    charged = {
        f"https://images.example/{each.image_key}"
        for each in world.generations()
        if each.status is Status.SETTLED
    }
    for name, answer in answers.items():
        if isinstance(answer, Finished):
            assert answer.image_url in charged, f"{name} was given an image that is not charged"


def one_image_for_the_key(world: World, answers: dict[str, Any]) -> None:
    nobody_paid_for_nothing(world, answers)
    urls = {answer.image_url for answer in answers.values() if isinstance(answer, Finished)}
    retry = world.request(world.process(), KEY)
    assert isinstance(retry, Finished)
    assert urls <= {retry.image_url}
    assert world.balance() == 95
    assert world.violations() == []


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
}


QUICK = {"two reconcilers and an abandoned image"}
ON_MOTO = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in SCENES]


@pytest.mark.parametrize("name", ON_MOTO)
def test_in_every_order_the_books_are_sound_on_moto(
    name: str, moto_engine: Engine, schedule: list[int] | None
) -> None:
    explore(SCENES[name], moto_engine, schedule)


@pytest.mark.real
@pytest.mark.parametrize("name", SCENES)
def test_in_every_order_the_books_are_sound(
    name: str, real_engine: Engine, schedule: list[int] | None
) -> None:
    explore(SCENES[name], real_engine, schedule)


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
