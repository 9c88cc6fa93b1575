"""Sandboxes that race for one generation, job or account: every order, a crash anywhere.

Their surroundings fail too: clocks that differ, an index of due rows that lags, a second crash.
"""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from lib.deadline import LEASE_S, QUEUED_WITHIN_S
from lib.errors import (
    ContentRejected,
    GenerationInFlight,
    GenerationReserved,
    ImageDeleted,
    InsufficientCredits,
    KeyBudgetExhausted,
    ServiceError,
)
from lib.generation import Accepted, Finished
from lib.ledger.rows import Status
from lib.ledger.usage import month_of
from tests.engines import Engine
from tests.reporting import Tried, tally
from tests.schedules import Actor, Explorer, Scene
from tests.world import Call, Fault, Network, Sandbox, World

__all__ = ["SCENES", "SWITCHES", "TWO_CRASHES", "WITH_THREE", "explore"]

KEY = "order-1"
# Calls of a request in an open minute: reserve, generate, put, settle.
PUT, SETTLE = 2, 3
# Calls of a deletion: mark, remove the object, plan the next visit.
REMOVE = 1
# Calls of an asynchronous one: reserve, send, extend the lease.
SEND = 1
# Calls of a delivery: extend the lease, generate, put, settle.
MODEL = 1


ask, accept, reconcile = World.request, World.accept, World.reconcile
delete = World.delete
ask_with_key, accept_with_key = partial(ask, key=KEY), partial(accept, key=KEY)


ask_after_rotation = partial(ask, api_key="key_2")


def reconcile_later(world: World, process: Sandbox) -> Any:
    """The leases expire at a moment that the schedule picks, and then the reconciler runs."""
    process.network.call(Call("time", "the leases pass"), world.let_leases_pass)
    return world.reconcile(process)


def reconcile_twice(world: World, process: Sandbox) -> Any:
    """As above, and once more when the lease of a request would have expired."""
    reconcile_later(world, process)
    process.network.call(Call("time", "a minute passes"), lambda: world.clock.sleep(LEASE_S + 1))
    return world.reconcile(process)


def deliver(world: World, process: Sandbox) -> Any:
    """A worker gets the one job."""
    (message,) = world.mailbox.messages
    return world.work(process, message)


def accept_later(world: World, process: Sandbox) -> Any:
    """A retry that comes when an acceptor must have queued its job."""
    wait = partial(world.clock.sleep, QUEUED_WITHIN_S + 1)
    process.network.call(Call("time", "the acceptor is late"), wait)
    return accept_with_key(world, process)


def receive(world: World, process: Sandbox) -> Any:
    """A worker gets what is in the queue at a moment that the schedule picks."""
    messages = process.network.call(Call("sqs", "receive_message"), world.mailbox.messages.copy)
    return [world.work(process, message) for message in messages]


def deliver_and_delete(world: World, process: Sandbox) -> Any:
    """A worker gets the one job, and its customer deletes what it made."""
    deliver(world, process)
    return world.delete(process)


def reconcile_and_delete(world: World, process: Sandbox) -> Any:
    """The reconciler runs when the leases have passed, and the customer deletes what it settled."""
    reconcile_later(world, process)
    return world.delete(process) if world.generations() else False


def urls(world: World, *statuses: Status) -> set[str]:
    """The URLs of the generations that have one of the statuses."""
    found = [each for each in world.generations() if each.status in statuses]
    return {f"https://images.example/{each.image_key}" for each in found}


def sound(world: World, answers: dict[str, Any]) -> None:
    """In the end the books are sound, every 200 is a charged image, and every 0 was final."""
    world.settle_down()
    assert world.violations() == []
    charged = urls(world, Status.SETTLED)
    request = answers.get("request")
    if isinstance(request, ServiceError) and request.credits_charged == 0 and len(answers) == 2:
        assert charged == set(), "the request was told 0 and then charged"
    for name, answer in answers.items():
        if isinstance(answer, Finished):
            assert answer.image_url in charged, f"{name}'s is not charged"


def every_job_ends(world: World, answers: dict[str, Any]) -> None:
    """As above, and every 202 is a generation that ended, also if its message comes later."""
    sound(world, answers)
    world.deliver()
    assert world.violations() == []
    accepted = {name: each for name, each in answers.items() if isinstance(each, Accepted)}
    existing = urls(world, *Status) if accepted else set()
    for name, answer in accepted.items():
        assert answer.image_url in existing, f"{name}'s does not exist"


def no_charge_after_an_error(world: World, answers: dict[str, Any]) -> None:
    """As above, and a customer who was told 0 is not charged."""
    every_job_ends(world, answers)
    acceptor = answers["acceptor"]
    if isinstance(acceptor, ServiceError) and acceptor.credits_charged == 0:
        assert urls(world, Status.SETTLED) == set()
        assert world.balance() == 100


def a_retry_gets_the_one_image(world: World, answers: dict[str, Any]) -> None:
    given = {answer.image_url for answer in answers.values() if isinstance(answer, Finished)}
    retry = world.request(world.process(), KEY)
    assert isinstance(retry, Finished)
    assert given <= {retry.image_url}
    assert world.balance() == 95
    assert world.violations() == []


def one_job_for_the_key(world: World, answers: dict[str, Any]) -> None:
    """There is one reservation, and a retry gets the one image that is charged.

    A request that finds the other one's job not queued yet is told that it is in progress.
    """
    accepted = [each for each in answers.values() if isinstance(each, Accepted)]
    assert len(world.generations()) <= 1
    assert {each.image_url for each in accepted} <= urls(world, *Status)
    refused = [each for each in answers.values() if isinstance(each, GenerationInFlight)]
    assert len(refused) <= 1
    one_image_on_any_route(world, answers)


def one_image_on_any_route(world: World, answers: dict[str, Any]) -> None:
    world.deliver()
    every_job_ends(world, answers)
    a_retry_gets_the_one_image(world, answers)


def one_image_for_the_key(world: World, answers: dict[str, Any]) -> None:
    sound(world, answers)
    a_retry_gets_the_one_image(world, answers)


def at_most_one_got_it(world: World, answers: dict[str, Any]) -> None:
    sound(world, answers)
    counts = Counter(type(each) for each in answers.values())
    assert counts[Finished] <= 1
    assert counts[InsufficientCredits] <= 1
    charged = urls(world, Status.SETTLED)
    assert world.balance() == 5 - 5 * len(charged)
    assert len(charged) <= 1


def within_the_budget(world: World, answers: dict[str, Any]) -> None:
    """The budget pays for one image: who gets none is told so, unless it failed by itself."""
    sound(world, answers)
    charged = urls(world, Status.SETTLED)
    assert len(charged) <= 1
    assert (world.used(), world.balance()) == (5 * len(charged), 100 - 5 * len(charged))
    for answer in answers.values():
        if isinstance(answer, KeyBudgetExhausted):
            assert answer.remaining == (world.budget or 0) - 5


def in_two_months(world: World, answers: dict[str, Any]) -> None:
    """The new month has its own budget, whatever happens to a request of the old one."""
    assert not any(isinstance(each, KeyBudgetExhausted) for each in answers.values())
    sound(world, answers)
    charged = [each.created_ms for each in world.generations() if each.status is Status.SETTLED]
    months = [month_of(each / 1000) for each in charged]
    assert len(months) == len(set(months))
    for month in (month_of(world.clock() - 86_400), month_of(world.clock())):
        assert world.used(month) == 5 * months.count(month)


def what_is_deleted_is_gone(world: World, answers: dict[str, Any]) -> None:
    """In the end what the customer was told to be deleted is deleted, and its money is sound."""
    every_job_ends(world, answers)
    (generation,) = world.generations() or (None,)
    deletions = [each for name, each in answers.items() if name.startswith("customer")]
    if True in deletions:
        assert generation is not None
        assert generation.deleted_at is not None
        assert world.stored_keys() == set()
    assert all(isinstance(each, bool | GenerationReserved | None) for each in deletions)


def no_second_image(world: World, answers: dict[str, Any]) -> None:
    """As above, and a retry with the key of a deleted image is refused, not charged again."""
    what_is_deleted_is_gone(world, answers)
    assert isinstance(answers["retry"], Finished | ImageDeleted | None)
    assert world.balance() == 95


def abandoned(world: World, *, with_image: bool, key: str | None = None) -> None:
    dies_at = SETTLE if with_image else PUT
    assert world.request(world.process(Network(dies_at, Fault.KILLED_BEFORE)), key) is None
    world.let_leases_pass()


def abandoned_at_the_months_end(world: World) -> None:
    now = datetime.fromtimestamp(world.clock(), UTC)
    begins = now.replace(day=1, hour=0, minute=0) + timedelta(days=32)
    world.clock.now_s = begins.replace(day=1).timestamp() - 1
    assert world.request(world.process(Network(PUT, Fault.KILLED_BEFORE))) is None
    world.clock.sleep(2)


def refunded_before(world: World) -> None:
    failed = world.request(world.process(failure=ContentRejected()), KEY)
    assert isinstance(failed, ContentRejected)


def accepted_before(world: World) -> None:
    assert isinstance(world.accept(world.process()), Accepted)


def settled_before(world: World) -> None:
    assert isinstance(world.request(world.process(), KEY), Finished)


def deleted_in_part(world: World) -> None:
    settled_before(world)
    assert world.delete(world.process(Network(REMOVE, Fault.KILLED_BEFORE))) is False


def _scene(
    actors: tuple[Actor, ...],
    check: Callable[[World, dict[str, Any]], None] = sound,
    prepare: Callable[[World], None] = lambda _world: None,
    credits_: int = 100,
    *,
    new_minute: bool = False,
    budget: int = 1_000,
) -> Callable[[Engine], Scene]:
    def scene(engine: Engine) -> Scene:
        def world() -> World:
            made = World(engine, credits_, budget=budget)
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
    "two requests for the last of a budget": _scene(
        (Actor("first", ask), Actor("second", ask)), within_the_budget, budget=9, new_minute=True
    ),
    "a key and the one that replaces it, for the last of their budget": _scene(
        (Actor("old", ask_with_key), Actor("new", ask_after_rotation)), within_the_budget, budget=5
    ),
    "a refund and a request on one budget": _scene(
        (Actor("fails", ask, MODEL, Fault.ERROR_BEFORE), Actor("second", ask)),
        within_the_budget,
        budget=5,
    ),
    "the reconciler's refund and a request on one budget": _scene(
        (Actor("reconciler", reconcile), Actor("request", ask)),
        within_the_budget,
        prepare=lambda world: abandoned(world, with_image=False),
        budget=5,
    ),
    "a refund after the month's end and a request of the new month": _scene(
        (Actor("reconciler", reconcile_later), Actor("second", ask)),
        in_two_months,
        prepare=abandoned_at_the_months_end,
        budget=5,
    ),
    "a slow request and the reconciler": _scene(
        (Actor("request", ask), Actor("reconciler", reconcile_later))
    ),
    "a slow request with a key and the reconciler": _scene(
        (Actor("request", ask_with_key), Actor("reconciler", reconcile_later)),
        one_image_for_the_key,
    ),
    "a refund and the reconciler's settle": _scene(
        (Actor("request", ask, PUT, Fault.LOST_THEN_OUTAGE), Actor("reconciler", reconcile_later))
    ),
    "a refund in doubt and the reconciler's settle": _scene(
        (
            # There is no time left to ask the store whether the image arrived.
            Actor("request", ask, PUT, Fault.RESPONSE_LOST, model_takes_s=25.5),
            Actor("reconciler", reconcile_later),
        )
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
        (Actor("acceptor", accept), Actor("worker", receive)), no_charge_after_an_error
    ),
    "an acceptor and a worker that fails": _scene(
        (Actor("acceptor", accept), Actor("worker", receive, 1 + MODEL, Fault.ERROR_BEFORE)),
        no_charge_after_an_error,
    ),
    "an acceptor in doubt about its message and a worker": _scene(
        (Actor("acceptor", accept, SEND, Fault.LOST_THEN_OUTAGE), Actor("worker", receive)),
        no_charge_after_an_error,
    ),
    "a slow acceptor and the reconciler": _scene(
        (Actor("acceptor", accept), Actor("reconciler", reconcile_later)), no_charge_after_an_error
    ),
    "two deliveries of one job": _scene(
        (Actor("first", deliver), Actor("second", deliver)), every_job_ends, prepare=accepted_before
    ),
    "two deliveries of one job, one of which fails": _scene(
        (Actor("first", deliver, MODEL, Fault.ERROR_BEFORE), Actor("second", deliver)),
        every_job_ends,
        prepare=accepted_before,
    ),
    "a late delivery and the reconciler": _scene(
        (Actor("worker", deliver), Actor("reconciler", reconcile_later)),
        every_job_ends,
        prepare=accepted_before,
    ),
    "a late delivery and the reconciler, which runs again": _scene(
        (Actor("worker", deliver), Actor("reconciler", reconcile_twice)),
        every_job_ends,
        prepare=accepted_before,
    ),
    "two asynchronous requests with one key": _scene(
        (Actor("first", accept_with_key), Actor("second", accept_with_key)), one_job_for_the_key
    ),
    "a slow acceptor and its retry": _scene(
        (Actor("first", accept_with_key), Actor("retry", accept_later)), one_image_on_any_route
    ),
    "a synchronous and an asynchronous request with one key": _scene(
        (Actor("first", ask_with_key), Actor("second", accept_with_key)), one_image_on_any_route
    ),
    "a request and a reconciler whose clock is 90 s ahead": _scene(
        (Actor("request", ask), Actor("reconciler", reconcile, clock_ahead_s=90))
    ),
    "a request whose clock is 90 s ahead and the reconciler": _scene(
        (Actor("request", ask, clock_ahead_s=90), Actor("reconciler", reconcile_later))
    ),
    "a request and its retry, whose clock is 90 s ahead": _scene(
        (Actor("first", ask_with_key), Actor("retry", ask_with_key, clock_ahead_s=90)),
        one_image_for_the_key,
    ),
    "a delivery and a reconciler whose clock is 90 s ahead": _scene(
        (Actor("worker", deliver), Actor("reconciler", reconcile_later, clock_ahead_s=90)),
        every_job_ends,
        prepare=accepted_before,
    ),
    "a delivery whose clock is 90 s behind and the reconciler": _scene(
        (Actor("worker", deliver, clock_ahead_s=-90), Actor("reconciler", reconcile_later)),
        every_job_ends,
        prepare=accepted_before,
    ),
    "a late delivery and a reconciler whose index lags": _scene(
        (Actor("worker", deliver), Actor("reconciler", reconcile_later, index_lags=True)),
        every_job_ends,
        prepare=accepted_before,
    ),
    "two reconcilers, of which one has an index that lags": _scene(
        (Actor("one", reconcile_twice), Actor("other", reconcile_later, index_lags=True)),
        every_job_ends,
        prepare=accepted_before,
    ),
    "a retry and a reconciler whose index lags": _scene(
        (Actor("retry", ask_with_key), Actor("reconciler", reconcile, index_lags=True)),
        one_image_for_the_key,
        prepare=lambda world: abandoned(world, with_image=True, key=KEY),
    ),
    "a deletion and a delivery": _scene(
        (Actor("customer", delete), Actor("worker", deliver)),
        what_is_deleted_is_gone,
        prepare=accepted_before,
    ),
    "a deletion and a late delivery": _scene(
        (Actor("customer", deliver_and_delete), Actor("worker", deliver)),
        what_is_deleted_is_gone,
        prepare=accepted_before,
    ),
    "a deletion and the reconciler": _scene(
        (Actor("customer", deliver_and_delete), Actor("reconciler", reconcile_later)),
        what_is_deleted_is_gone,
        prepare=accepted_before,
    ),
    "a deletion and a slow request": _scene(
        (Actor("customer", reconcile_and_delete), Actor("slow", ask)), what_is_deleted_is_gone
    ),
    "two deletions": _scene(
        (Actor("customer", delete), Actor("customer's retry", delete)),
        what_is_deleted_is_gone,
        prepare=settled_before,
    ),
    "a repeated deletion and the reconciler": _scene(
        (Actor("customer", delete), Actor("reconciler", reconcile)),
        what_is_deleted_is_gone,
        prepare=deleted_in_part,
    ),
    "a deletion and a retry of the request": _scene(
        (Actor("customer", delete), Actor("retry", ask_with_key)),
        no_second_image,
        prepare=settled_before,
    ),
}
# The limit of preemptions where all orders would take minutes.
SWITCHES = {
    "a refund after the month's end and a request of the new month": 1,
    "an acceptor in doubt about its message and a worker": 2,
    "a late delivery and the reconciler": 2,
    "a late delivery and the reconciler, which runs again": 2,
    "a delivery and a reconciler whose clock is 90 s ahead": 1,
    "a delivery whose clock is 90 s behind and the reconciler": 1,
    "a late delivery and a reconciler whose index lags": 2,
    "two reconcilers, of which one has an index that lags": 1,
    "a deletion and a late delivery": 1,
    "a deletion and the reconciler": 1,
    "a deletion and a slow request": 1,
    "a deletion and a delivery": 2,
    "two deletions": 2,
    "a repeated deletion and the reconciler": 2,
    "a deletion and a retry of the request": 2,
    "a slow acceptor and its retry": 2,
    "a request and its retry, whose clock is 90 s ahead": 2,
    "a retry and a reconciler whose index lags": 2,
}
# Two crashes, with one preemption.
TWO_CRASHES = (
    "a refund and a request on one budget",
    "two requests with one key",
    "a slow request with a key and the reconciler",
    "a refund in doubt and the reconciler's settle",
    "an acceptor and a worker",
    "two deliveries of one job",
    "a late delivery and the reconciler, which runs again",
)

WITH_THREE = {
    "a slow request, its retry and the reconciler": _scene(
        (
            Actor("request", ask_with_key),
            Actor("retry", ask_with_key),
            Actor("reconciler", reconcile_later),
        ),
        one_image_for_the_key,
    ),
    "a key, the one that replaces it and the reconciler on one budget": _scene(
        (
            Actor("old", ask_with_key),
            Actor("new", ask_after_rotation),
            Actor("reconciler", reconcile),
        ),
        within_the_budget,
        prepare=lambda world: abandoned(world, with_image=False),
        budget=5,
    ),
    "a slow request and two reconcilers": _scene(
        (Actor("request", ask), Actor("one", reconcile_later), Actor("other", reconcile))
    ),
    "two deliveries of one job and the reconciler": _scene(
        (Actor("first", deliver), Actor("second", deliver), Actor("reconciler", reconcile_later)),
        every_job_ends,
        prepare=accepted_before,
    ),
    "an acceptor, a worker and the reconciler": _scene(
        (Actor("acceptor", accept), Actor("worker", receive), Actor("reconciler", reconcile_later)),
        no_charge_after_an_error,
    ),
}


def explore(
    scene: Callable[[Engine], Scene],
    engine: Engine,
    schedule: list[int] | None,
    switches: int | None = None,
    crashes: int = 1,
) -> None:
    """Runs every schedule of the scene, or replays the one of ``--schedule``."""
    explorer = Explorer(scene(engine), switches, crashes)
    if schedule is not None:
        explorer.replay(schedule)
        return
    explored = explorer.explore()
    if not engine.is_moto:
        tally(Tried.INTERLEAVINGS, explored)
