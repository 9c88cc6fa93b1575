"""The worker, fed with SQS events, and how often and how late a message may come.

What a message does is shown on a local stack, in this process and (marked ``real``) with the built
artifact in Lambda's own runtime; what time does is shown on a clock that tests own.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

import handlers.worker
from infra.local.functions import LambdaContext
from infra.local.gemini_stand_in import Answer as ModelAnswer
from infra.local.gemini_stand_in import Received
from infra.local.stack import LocalStack, drop_dependencies
from infra.template import Template
from lib.deadline import WORKER_LEASE_S, WORKER_TIMEOUT_S, Deadline
from lib.errors import ContentRejected
from lib.generation import Accepted
from lib.ledger.ledger import Ledger
from lib.ledger.order import Order
from lib.ledger.reconciliation import Reconciled
from lib.ledger.rows import Generation, Status
from lib.ledger.table import Table
from lib.picture.aspect_ratio import AspectRatio
from tests.customer import (
    GENERATIONS,
    Customer,
    fetch,
    model,
    model_says,
    picture_at,
    plain_picture,
    prompts_sent,
    scripted_stack,
    until,
)
from tests.engines import Engine
from tests.stacks import HERE, SLOW_STACKS
from tests.world import Fault, Process, Wire, World

# The calls of a worker: take, generate, put, settle.
TAKE, MODEL, PUT, SETTLE = range(4)
QUEUE = Template.from_file().queue("JobsQueue")
RECEIVES = 3
RECONCILED_EVERY_S = 60


@pytest.fixture(scope="module", params=SLOW_STACKS)
def stack(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    with scripted_stack(request) as running:
        yield running


def reserve(customer: Customer, prompt: str = "A fox") -> Generation:
    """An accepted generation whose message the test delivers itself."""
    stack = customer.stack
    ledger = Ledger(Table(stack.aws.client("dynamodb"), stack.table))
    return ledger.reserve(
        Order(customer.organisation, prompt, AspectRatio.SQUARE, asynchronous=True),
        lambda ms: f"generated/gemini/{customer.organisation}/{ms:013d}.png",
        Deadline(10),
    )


def text(organisation: object, generation: object, **more: object) -> str:
    return json.dumps({"organisation": organisation, "generation": generation, **more})


def message_of(generation: Generation) -> str:
    return text(generation.organisation, generation.id)


def event_of(*messages: str) -> dict[str, object]:
    """What Lambda calls the function with; the n-th message has the id ``message-n``."""
    return {
        "Records": [
            {
                "messageId": f"message-{number}",
                "receiptHandle": "a-handle",
                "body": message,
                "attributes": {"ApproximateReceiveCount": "1"},
                "messageAttributes": {},
                "md5OfBody": "",
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:jobs",
                "awsRegion": "us-east-1",
            }
            for number, message in enumerate(messages)
        ]
    }


def deliver(stack: LocalStack, *messages: str) -> list[int]:
    """Which of the messages the worker wants to come again."""
    answer: Any = stack.invoke("WorkerFunction", event_of(*messages))
    assert set(answer) == {"batchItemFailures"}
    failures = answer["batchItemFailures"]
    assert all(set(failure) == {"itemIdentifier"} for failure in failures)
    return [int(each["itemIdentifier"].removeprefix("message-")) for each in failures]


def read(customer: Customer, generation: Generation) -> Any:
    return customer.get(f"{GENERATIONS}/{generation.id}").json()


def times_drawn(stack: LocalStack, prompt: str) -> int:
    return prompts_sent(stack).count(prompt)


# One message


def test_a_message_makes_the_image_of_its_generation(stack: LocalStack, customer: Customer) -> None:
    job = reserve(customer)

    assert deliver(stack, message_of(job)) == []

    ended = read(customer, job)
    assert ended["status"] == "settled"
    picture_at(ended["imageUrl"])
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_a_message_whose_image_fails_has_done_its_work(
    stack: LocalStack, customer: Customer
) -> None:
    job = reserve(customer, "A fox [fail:safety]")

    assert deliver(stack, message_of(job)) == []

    assert read(customer, job)["message"] == "Content policy violation"
    assert (customer.balance(), customer.stored()) == (100, [])


def test_a_message_that_comes_again_does_nothing(stack: LocalStack, customer: Customer) -> None:
    job = reserve(customer, "Delivered thrice")

    answers = [deliver(stack, message_of(job)) for _ in range(3)]

    assert answers == [[], [], []]
    assert times_drawn(stack, "Delivered thrice") == 1
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_a_message_that_comes_again_after_a_refund_does_nothing(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = "Refused, and delivered again"
    job = reserve(customer, prompt)
    with model(stack, lambda _: model_says({}, "IMAGE_SAFETY")):
        deliver(stack, message_of(job))

    assert deliver(stack, message_of(job)) == []

    assert times_drawn(stack, prompt) == 1
    assert read(customer, job)["status"] == "refunded"
    assert (customer.balance(), customer.stored()) == (100, [])


def test_a_message_that_comes_after_the_reconcilers_refund_does_nothing(
    stack: LocalStack, customer: Customer
) -> None:
    job = reserve(customer, "Too late")
    customer.change_row(f"GEN#{job.id}", "SET dueAt = :value", int(time.time()) - 1)
    reconcile(stack)
    assert read(customer, job)["message"] == "Image generation timed out"

    assert deliver(stack, message_of(job)) == []

    assert times_drawn(stack, "Too late") == 0
    assert read(customer, job)["status"] == "refunded"
    assert (customer.balance(), customer.stored()) == (100, [])


def reconcile(stack: LocalStack) -> None:
    stack.invoke("ReconcileFunction", {})


def test_messages_may_come_in_any_order(stack: LocalStack, customer: Customer) -> None:
    jobs = [reserve(customer, f"Number {n}") for n in range(3)]

    for job in reversed(jobs):
        assert deliver(stack, message_of(job)) == []

    assert [read(customer, job)["status"] for job in jobs] == ["settled"] * 3
    assert (customer.balance(), len(customer.stored())) == (85, 3)


def test_a_message_about_a_generation_that_was_waited_for_does_nothing(
    stack: LocalStack, customer: Customer
) -> None:
    customer.generate("Waited for")
    (settled,) = customer.history()

    assert deliver(stack, text(customer.organisation, settled["id"])) == []

    assert customer.history() == [settled]
    assert times_drawn(stack, "Waited for") == 1
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_a_message_about_nothing_does_nothing(stack: LocalStack, customer: Customer) -> None:
    assert deliver(stack, text(customer.organisation, "1700000000000")) == []
    assert deliver(stack, text("nobody", "1700000000000")) == []

    assert (customer.balance(), customer.history(), customer.stored()) == (100, [], [])
    for organisation in (customer.organisation, "nobody"):
        key = {"pk": {"S": f"ORG#{organisation}"}, "sk": {"S": "GEN#1700000000000"}}
        found = stack.aws.client("dynamodb").get_item(TableName=stack.table, Key=key)
        assert "Item" not in found


# What this service never wrote, all of it about a generation that waits.
WRONG: dict[str, Callable[[str, str], str]] = {
    "empty": lambda _organisation, _id: "",
    "no JSON": lambda _organisation, _id: "fetch me",
    "cut short": lambda organisation, id_: text(organisation, id_)[:-2],
    "something after it": lambda organisation, id_: text(organisation, id_) + "{}",
    "null": lambda _organisation, _id: "null",
    "a number": lambda _organisation, id_: id_,
    "a string": lambda _organisation, id_: json.dumps(id_),
    "a list": lambda organisation, id_: json.dumps([organisation, id_]),
    "nothing in it": lambda _organisation, _id: "{}",
    "no generation": lambda organisation, _id: json.dumps({"organisation": organisation}),
    "no organisation": lambda _organisation, id_: json.dumps({"generation": id_}),
    "other names": lambda organisation, id_: json.dumps({"org": organisation, "id": id_}),
    "a number for an id": lambda organisation, id_: text(organisation, int(id_)),
    "an id in a list": lambda organisation, id_: text(organisation, [id_]),
    "no id": lambda organisation, _id: text(organisation, None),
    "12 digits": lambda organisation, id_: text(organisation, id_[:-1]),
    "14 digits": lambda organisation, id_: text(organisation, id_ + "0"),
    "a line end": lambda organisation, id_: text(organisation, id_ + "\n"),
    "a row": lambda organisation, id_: text(organisation, f"GEN#{id_}"),
    "digits of another script": lambda organisation, id_: text(
        organisation, "".join(chr(0x660 + int(digit)) for digit in id_)
    ),
    "a key of the table": lambda organisation, id_: text(f"ORG#{organisation}", id_),
    "capitals": lambda organisation, id_: text(organisation.upper(), id_),
    "a path": lambda organisation, id_: text(f"../{organisation}", id_),
    "an organisation too long": lambda _organisation, id_: text("x" * 64, id_),
    "too long": lambda organisation, id_: text(organisation, id_, padding="x" * 2_000),
    "deep": lambda _organisation, _id: "[" * 990,
    "very deep": lambda _organisation, _id: "[" * 200_000,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_message_that_this_service_did_not_write_is_left_and_does_nothing(
    stack: LocalStack, customer: Customer, wrong: Callable[[str, str], str]
) -> None:
    prompt = f"Never drawn for {customer.organisation}"
    job = reserve(customer, prompt)

    assert deliver(stack, wrong(customer.organisation, job.id)) == [0]

    assert times_drawn(stack, prompt) == 0
    assert read(customer, job)["status"] == "reserved"
    assert (customer.balance(), customer.stored()) == (95, [])


# Several messages


def test_of_several_messages_those_that_are_wrong_alone_come_again(
    stack: LocalStack, customer: Customer
) -> None:
    drawn, also_drawn = reserve(customer, "First"), reserve(customer, "Last")
    refused = reserve(customer, "A fox [fail:safety]")
    gone = text(customer.organisation, "1700000000000")

    to_come_again = deliver(
        stack,
        "no JSON",
        message_of(drawn),
        gone,
        message_of(refused),
        "{}",
        message_of(drawn),
        message_of(also_drawn),
    )

    assert to_come_again == [0, 4]
    assert read(customer, drawn)["status"] == "settled"
    assert read(customer, also_drawn)["status"] == "settled"
    assert read(customer, refused)["status"] == "refunded"
    assert (customer.balance(), len(customer.stored())) == (90, 2)


def test_a_call_without_messages_is_done(stack: LocalStack) -> None:
    assert deliver(stack) == []


# Two deliveries at once


@contextmanager
def two_at_the_model(
    stack: LocalStack, first: Callable[[Received], ModelAnswer | None]
) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The model keeps both waiting until their events are set, and answers one with ``first``."""
    asked, gates = [0], (threading.Event(), threading.Event())
    lock = threading.Lock()

    def hesitate(request: Received) -> ModelAnswer | None:
        with lock:
            mine = min(asked[0], 1)
            asked[0] += 1
        gates[mine].wait(timeout=20)
        return first(request) if mine == 0 else plain_picture(request)

    with model(stack, hesitate):
        try:
            yield gates
        finally:
            for gate in gates:
                gate.set()


def deliver_to_two(stack: LocalStack, job: Generation) -> "tuple[ThreadPoolExecutor, list[Any]]":
    pool = ThreadPoolExecutor(2)
    deliveries = [pool.submit(deliver, stack, message_of(job)) for _ in range(2)]
    until(lambda: times_drawn(stack, job.prompt), lambda drawn: drawn == len(deliveries))
    return pool, deliveries


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_deliveries_at_once_are_one_image_and_one_charge(
    stack: LocalStack, customer: Customer, order: tuple[int, int]
) -> None:
    job = reserve(customer, f"Two at once {order}")
    with two_at_the_model(stack, plain_picture) as gates:
        pool, deliveries = deliver_to_two(stack, job)
        with pool:
            gates[order[0]].set()
            until(lambda: read(customer, job), lambda seen: seen["status"] == "settled")
            gates[order[1]].set()

    assert [delivery.result() for delivery in deliveries] == [[], []]
    ended = read(customer, job)
    assert ended["status"] == "settled"
    picture_at(ended["imageUrl"])
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def refusal(_request: Received) -> ModelAnswer:
    return model_says({}, "IMAGE_SAFETY")


def test_when_one_of_two_deliveries_has_made_the_image_the_others_failure_takes_nothing_away(
    stack: LocalStack, customer: Customer
) -> None:
    job = reserve(customer, "Drawn, then refused")
    with two_at_the_model(stack, refusal) as (refused, drawn):
        pool, _ = deliver_to_two(stack, job)
        with pool:
            drawn.set()
            until(lambda: read(customer, job), lambda seen: seen["status"] != "reserved")
            refused.set()

    ended = read(customer, job)
    assert ended["status"] == "settled"
    picture_at(ended["imageUrl"])
    assert customer.balance() == 95


def test_when_one_of_two_deliveries_was_refunded_no_free_image_is_left_by_the_other(
    stack: LocalStack, customer: Customer
) -> None:
    job = reserve(customer, "Refused, then drawn")
    with two_at_the_model(stack, refusal) as (refused, drawn):
        pool, _ = deliver_to_two(stack, job)
        with pool:
            refused.set()
            until(lambda: read(customer, job), lambda seen: seen["status"] != "reserved")
            drawn.set()

    assert read(customer, job)["status"] == "refunded"
    assert customer.balance() == 100
    assert fetch(f"{stack.url}/images/{job.image_key}").status == 404


# A worker that can't reach the ledger


def build_the_worker_anew() -> None:
    drop_dependencies()


@contextmanager
def ledger_out_of_reach() -> Iterator[None]:
    """The worker in this process looks for a table that isn't there."""
    table = os.environ["CREDITS_TABLE"]
    os.environ["CREDITS_TABLE"] = "no-such-table"
    build_the_worker_anew()
    os.environ["CREDITS_TABLE"] = table
    try:
        yield
    finally:
        build_the_worker_anew()


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_a_message_that_finds_no_ledger_comes_again_and_then_makes_the_image(
    stack: LocalStack, customer: Customer
) -> None:
    jobs = [reserve(customer, f"Number {n}") for n in range(2)]
    messages = [message_of(job) for job in jobs]

    with ledger_out_of_reach():
        while_away = deliver(stack, *messages)
        statuses = [read(customer, job)["status"] for job in jobs]
    later = deliver(stack, *messages)

    assert (while_away, later) == ([0, 1], [])
    assert statuses == ["reserved", "reserved"]
    assert [read(customer, job)["status"] for job in jobs] == ["settled", "settled"]
    assert (customer.balance(), len(customer.stored())) == (90, 2)


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_a_worker_with_no_time_left_refunds_or_leaves_the_message(
    stack: LocalStack, customer: Customer
) -> None:
    job = reserve(customer, "No time left")
    one_second: Any = LambdaContext("WorkerFunction", "1024", timeout_s=1)

    answer = handlers.worker.handler(event_of(message_of(job)), one_second)

    assert answer == {"batchItemFailures": []}
    assert read(customer, job)["message"] == "Image generation timed out"
    assert times_drawn(stack, "No time left") == 0
    assert (customer.balance(), customer.stored()) == (100, [])


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_after_three_receives_a_message_is_a_dead_letter_and_the_lease_brings_the_credits_back(
    stack: LocalStack, customer: Customer
) -> None:
    sqs = stack.aws.client("sqs")
    jobs, dead = (
        sqs.get_queue_url(QueueName=name)["QueueUrl"] for name in ("JobsQueue", "DeadJobs")
    )
    sqs.set_queue_attributes(QueueUrl=jobs, Attributes={"VisibilityTimeout": "1"})
    try:
        with ledger_out_of_reach():
            accepted = customer.accept("Never begun")
            letters = until(lambda: dead_letters(stack, dead), bool)
    finally:
        as_before = str(QUEUE.visibility_timeout_s)
        sqs.set_queue_attributes(QueueUrl=jobs, Attributes={"VisibilityTimeout": as_before})

    (letter,) = letters
    identity = accepted.json()["id"]
    assert json.loads(letter) == {
        "organisation": customer.organisation,
        "generation": identity,
    }
    assert customer.get(f"{GENERATIONS}/{identity}").json()["status"] == "reserved"
    customer.change_row(f"GEN#{identity}", "SET dueAt = :value", int(time.time()) - 1)
    reconcile(stack)
    ended = customer.get(f"{GENERATIONS}/{identity}").json()
    assert (ended["status"], ended["creditsRefunded"]) == ("refunded", 5)
    assert ended["message"] == "Image generation timed out"
    assert times_drawn(stack, "Never begun") == 0
    assert (customer.balance(), customer.stored()) == (100, [])


def dead_letters(stack: LocalStack, queue_url: str) -> list[str]:
    answer = stack.aws.client("sqs").receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10)
    return [message["Body"] for message in answer.get("Messages", [])]


# What is in a log, and what is in a message


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_the_log_of_a_worker_says_how_it_ended_and_nothing_of_what_was_asked_for(
    stack: LocalStack,
    customer: Customer,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    drawn = reserve(customer, "A vermilion fox")
    refused = reserve(customer, "A vermilion fox [fail:safety]")

    deliver(stack, message_of(drawn), message_of(refused), '{"prompt": "A vermilion fox"}')

    lines = [f"{record.getMessage()} {vars(record)!r}" for record in caplog.records]
    written = "\n".join([*capsys.readouterr(), *lines])
    for identity in (drawn.id, refused.id, "content_rejected", "message-2"):
        assert identity in written
    assert "vermilion" not in written


def test_a_message_tells_whose_and_which_and_nothing_of_what_was_asked_for(
    moto_engine: Engine,
) -> None:
    with World(moto_engine) as world:
        accepted = world.accept(world.process(), "order-1")

        assert isinstance(accepted, Accepted)
        (message,) = world.mailbox.messages
        assert json.loads(message) == {
            "organisation": world.organisation,
            "generation": accepted.generation_id,
        }
        assert {"fox", "16:9", "order-1"}.isdisjoint(message.split('"'))


def test_a_repeated_202_sends_no_second_message(moto_engine: Engine) -> None:
    with World(moto_engine) as world:
        for _ in range(3):
            assert isinstance(world.accept(world.process(), "order-1"), Accepted)

        assert len(world.mailbox.messages) == 1


# Time: the queue delivers once a visibility timeout, the reconciler comes by every minute.


def test_the_queue_delivers_a_job_three_times_before_it_gives_up() -> None:
    assert (QUEUE.receives, QUEUE.dead_letters) == (RECEIVES, "DeadJobs")
    assert QUEUE.visibility_timeout_s > WORKER_TIMEOUT_S


def pass_minutes(world: World, seconds: float) -> Reconciled:
    """The reconciler's runs while ``seconds`` pass, added up."""
    ended = Reconciled()
    ends_at = world.clock() + seconds
    while world.clock() < ends_at:
        world.clock.sleep(min(RECONCILED_EVERY_S, ends_at - world.clock()))
        run = world.reconcile(world.process())
        assert run is not None
        ended = Reconciled(
            settled=ended.settled + run.settled, refunded=ended.refunded + run.refunded
        )
    return ended


def accept(world: World) -> str:
    assert isinstance(world.accept(world.process()), Accepted)
    (message,) = world.mailbox.messages
    return message


def dying_at(world: World, call: int) -> Process:
    return world.process(Wire(call, Fault.KILLED_BEFORE))


def test_a_job_that_waits_ten_minutes_in_the_queue_is_still_made(moto_engine: Engine) -> None:
    with World(moto_engine) as world:
        message = accept(world)
        waited = pass_minutes(world, 9.5 * 60)

        assert world.work(world.process(), message)

        assert waited == Reconciled()
        assert [each.status for each in world.generations()] == [Status.SETTLED]
        assert world.balance() == 95
        world.settle_down()
        assert world.violations() == []


def test_a_job_that_no_worker_takes_is_refunded_and_its_message_comes_too_late(
    moto_engine: Engine,
) -> None:
    with World(moto_engine) as world:
        message = accept(world)
        waited = pass_minutes(world, 17 * 60)
        assert (waited.refunded, world.balance()) == (1, 100)
        late = world.process()

        assert world.work(late, message)

        assert "model.generate" not in [str(call) for call in late.wire.calls]
        world.settle_down()
        assert world.violations() == []
        assert world.balance() == 100


@pytest.mark.parametrize("call", [MODEL, PUT, SETTLE], ids=["model", "put", "settle"])
def test_a_worker_that_dies_twice_leaves_the_job_to_the_third_delivery(
    moto_engine: Engine, call: int
) -> None:
    with World(moto_engine) as world:
        message = accept(world)
        for _ in range(2):
            assert not world.work(dying_at(world, call), message)
            between = pass_minutes(world, QUEUE.visibility_timeout_s)
            assert between.refunded == 0

        assert world.work(world.process(), message)

        assert [each.status for each in world.generations()] == [Status.SETTLED]
        assert (world.balance(), len(world.stored_keys())) == (95, 1)
        world.settle_down()
        assert world.violations() == []


def test_a_job_whose_workers_all_die_is_refunded_after_the_last_ones_lease(
    moto_engine: Engine,
) -> None:
    with World(moto_engine) as world:
        message = accept(world)
        for delivery in range(RECEIVES):
            assert not world.work(dying_at(world, MODEL), message)
            if delivery < RECEIVES - 1:
                assert pass_minutes(world, QUEUE.visibility_timeout_s).refunded == 0
        after_the_last = pass_minutes(world, WORKER_LEASE_S + RECONCILED_EVERY_S + 1)

        assert after_the_last.refunded == 1
        (ended,) = world.generations()
        assert (ended.status, world.balance()) == (Status.REFUNDED, 100)
        world.settle_down()
        assert world.violations() == []


def test_a_worker_that_finds_no_ledger_leaves_the_message_and_the_next_delivery_makes_the_image(
    moto_engine: Engine,
) -> None:
    with World(moto_engine) as world:
        message = accept(world)
        assert not world.work(world.process(Wire(TAKE, Fault.OUTAGE)), message)
        pass_minutes(world, QUEUE.visibility_timeout_s)

        assert world.work(world.process(), message)

        assert [each.status for each in world.generations()] == [Status.SETTLED]
        world.settle_down()
        assert world.violations() == []


def test_a_job_whose_first_two_deliveries_find_no_ledger_is_made_by_the_third(
    moto_engine: Engine,
) -> None:
    with World(moto_engine) as world:
        message = accept(world)
        for _ in range(RECEIVES - 1):
            assert not world.work(world.process(Wire(TAKE, Fault.OUTAGE)), message)
            pass_minutes(world, QUEUE.visibility_timeout_s)

        assert world.work(world.process(), message)

        assert [each.status for each in world.generations()] == [Status.SETTLED]
        world.settle_down()
        assert world.violations() == []


def test_an_accepted_request_that_dies_before_it_is_queued_is_refunded_within_three_minutes(
    moto_engine: Engine,
) -> None:
    with World(moto_engine) as world:
        died = Wire(strikes_at=1, fault=Fault.KILLED_BEFORE)
        assert world.accept(world.process(died)) is None
        assert world.mailbox.messages == []

        passed = pass_minutes(world, 3 * 60)

        assert (passed.refunded, world.balance()) == (1, 100)
        world.settle_down()
        assert world.violations() == []


def test_a_retry_queues_what_the_request_before_it_died_with(moto_engine: Engine) -> None:
    with World(moto_engine) as world:
        died_before_the_send = Wire(strikes_at=1, fault=Fault.KILLED_BEFORE)
        assert world.accept(world.process(died_before_the_send), "order-1") is None
        world.clock.sleep(21)

        repeated = world.accept(world.process(), "order-1")

        assert isinstance(repeated, Accepted)
        assert repeated.replayed
        world.deliver()
        assert [each.status for each in world.generations()] == [Status.SETTLED]
        assert world.balance() == 95


def test_the_image_of_a_worker_that_died_is_gone_when_the_next_one_refunds(
    moto_engine: Engine,
) -> None:
    with World(moto_engine) as world:
        message = accept(world)
        assert not world.work(dying_at(world, SETTLE), message)
        assert len(world.stored_keys()) == 1

        assert world.work(world.process(failure=ContentRejected()), message)

        assert (world.balance(), world.stored_keys()) == (100, set())
        world.settle_down()
        assert world.violations() == []


def test_a_refund_by_a_worker_that_nobody_hears_of_is_made_once(moto_engine: Engine) -> None:
    with World(moto_engine) as world:
        message = accept(world)
        unheard = world.process(Wire(MODEL + 1, Fault.LOST_THEN_OUTAGE), failure=ContentRejected())

        world.work(unheard, message)
        world.work(world.process(), message)
        world.settle_down()

        assert world.balance() == 100
        assert world.violations() == []


def test_a_ledger_that_fails_once_the_job_is_queued_keeps_the_202_back_for_a_moment_only(
    moto_engine: Engine,
) -> None:
    with World(moto_engine) as world:
        queued = Wire(strikes_at=2, fault=Fault.OUTAGE)

        answer = world.accept(world.process(queued))

        assert [str(call) for call in queued.calls][:3] == [
            "dynamodb.transact_write_items",
            "sqs.send_message",
            "dynamodb.update_item",
        ]
        assert isinstance(answer, Accepted)
        assert world.last_request_took_s <= 5
