"""What a customer is told, and charged, when an ending meets a fault."""

from typing import NoReturn

import pytest

from lib.errors import (
    ContentRejected,
    JobNotQueued,
    OutcomePending,
    ReservationLost,
    UnexpectedFailure,
)
from lib.generation import Finished
from lib.ledger.rows import Status
from tests.world import Call, Fault, Network, NewWorld, World

KEY = "order-1"
# Calls of a request in an open minute.
RESERVE, MODEL, PUT, SETTLE = range(4)
# Calls of an asynchronous one, whose send is tried three times.
SEND, REFUND = 1, 4
NEVER_CONFIRMED = {SEND + 1: Fault.ERROR_BEFORE, SEND + 2: Fault.ERROR_BEFORE}


@pytest.fixture
def world(new_world: NewWorld) -> World:
    return new_world()


def assert_ends(world: World, status: Status) -> None:
    """In the end the one generation has this status, and the books are sound."""
    world.settle_down()
    assert [each.status for each in world.generations()] == [status]
    assert world.balance() == (95 if status is Status.SETTLED else 100)
    assert world.violations() == []


def test_an_image_whose_put_was_not_confirmed_is_charged_if_it_is_there(world: World) -> None:
    lost_too = {PUT + 1: Fault.ERROR_BEFORE, PUT + 2: Fault.ERROR_BEFORE}
    answer = world.request(world.process(Network(PUT, Fault.RESPONSE_LOST, later=lost_too)))
    assert isinstance(answer, Finished)
    assert world.balance() == 95
    assert_ends(world, Status.SETTLED)


def test_while_the_store_may_have_the_image_the_outcome_is_pending(world: World) -> None:
    answer = world.request(world.process(Network(PUT, Fault.LOST_THEN_OUTAGE)))
    assert isinstance(answer, OutcomePending)
    assert answer.credits_charged == 5
    assert_ends(world, Status.SETTLED)


def test_while_the_queue_may_have_the_job_the_outcome_is_pending(world: World) -> None:
    later = NEVER_CONFIRMED | {REFUND: Fault.OUTAGE}
    answer = world.accept(world.process(Network(SEND, Fault.RESPONSE_LOST, later=later)))
    assert isinstance(answer, OutcomePending)
    assert answer.credits_charged == 5
    world.deliver()
    assert_ends(world, Status.SETTLED)


def test_the_image_of_a_job_that_was_refunded_when_queueing_it_is_removed(world: World) -> None:
    def a_worker_dies_before_it_settles(_call: Call) -> None:
        if len(acceptor.calls) == REFUND + 1:
            world.deliver(world.process(Network(SETTLE, Fault.KILLED_BEFORE)))

    acceptor = Network(
        SEND,
        Fault.RESPONSE_LOST,
        later=NEVER_CONFIRMED,
        before_each=a_worker_dies_before_it_settles,
    )
    assert isinstance(world.accept(world.process(acceptor)), JobNotQueued)
    assert len(world.stored_keys()) == 1
    assert_ends(world, Status.REFUNDED)


def test_a_refund_that_fails_is_told_as_the_failure_when_no_image_can_arrive(world: World) -> None:
    refused = ContentRejected()
    ledger_goes_down = Network(MODEL + 1, Fault.OUTAGE)
    assert world.request(world.process(ledger_goes_down, refused)) is refused
    assert refused.credits_charged == 0
    assert_ends(world, Status.REFUNDED)


def test_a_request_that_was_refunded_meanwhile_leaves_no_image(world: World) -> None:
    def refunded_before_the_settle(call: Call) -> None:
        if call.operation == "update_item":
            (reserved,) = world.generations()
            world.process().ledger.refund(reserved, "expired", world.deadline())

    slow = world.process(Network(before_each=refunded_before_the_settle))
    assert isinstance(world.request(slow), ReservationLost)
    assert world.stored_keys() == set()
    assert_ends(world, Status.REFUNDED)


def test_a_settle_that_meets_silence_is_a_200_within_5_s(world: World) -> None:
    assert isinstance(world.request(world.process(Network(SETTLE, Fault.OUTAGE))), Finished)
    assert world.last_request_took_s <= 5
    assert_ends(world, Status.SETTLED)


def test_a_retry_settles_at_once_what_a_dead_request_has_stored(world: World) -> None:
    died = world.process(Network(SETTLE, Fault.KILLED_BEFORE))
    assert world.request(died, KEY) is None
    retried = world.request(world.process(), KEY)
    assert isinstance(retried, Finished)
    assert retried.replayed
    assert_ends(world, Status.SETTLED)


def test_a_bug_in_the_drawing_is_refunded_and_counted(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = world.request(world.process(failure=RuntimeError("a bug")))
    assert isinstance(answer, UnexpectedFailure)
    assert "UnexpectedErrors" in capsys.readouterr().out
    assert_ends(world, Status.REFUNDED)


def test_a_bug_in_the_refund_leaves_the_outcome_open_and_is_counted(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> NoReturn:
        raise RuntimeError

    process = world.process(failure=ContentRejected())
    monkeypatch.setattr(process.ledger, "refund", broken)
    assert isinstance(world.request(process), OutcomePending)
    assert "UnexpectedErrors" in capsys.readouterr().out
    assert_ends(world, Status.REFUNDED)
