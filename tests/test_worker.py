"""The worker: SQS events, and messages that are delivered late, repeatedly or concurrently.

Messages are delivered on a local stack, in this process and (marked ``real``) to the built artifact
in Lambda's own runtime; the passing of time is tested on a simulated clock.
"""

import json
import string
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any, NoReturn

import pytest

import handlers.worker
from infra.local.functions import LambdaContext
from infra.local.gemini_stand_in import ModelRequest, ModelResponse
from infra.local.stack import LocalStack
from infra.template import Template
from lib.deadline import QUEUED_WITHIN_S, WORKER_LEASE_S, WORKER_TIMEOUT_S, Deadline
from lib.errors import ContentRejected, GenerationInFlight, ReservationLost, StorageFailed
from lib.generation import Accepted
from lib.ledger.ledger import Ledger
from lib.ledger.order import Order
from lib.ledger.rows import Generation, Status
from lib.ledger.table import Table
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.storage import Images, StorageUnreachable
from tests.customer import (
    GENERATIONS,
    Customer,
    fetch,
    ledger_unreachable,
    model,
    model_says,
    picture_at,
    plain_answer,
    plain_picture,
    prompts_sent,
    scripted_stack,
    until,
)
from tests.engines import Engine
from tests.stacks import HERE, SLOW_STACKS
from tests.world import Call, Fault, Killed, Network, Sandbox, World

# The calls of a worker, in order.
EXTEND_LEASE, MODEL, PUT, SETTLE = range(4)
QUEUE = Template.from_file().queue("JobsQueue")
RECEIVES = 3
RECONCILED_EVERY_S = 60


@pytest.fixture(scope="module", params=SLOW_STACKS)
def stack(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    with scripted_stack(request) as running:
        yield running


def reserve(customer: Customer, prompt: str = "A fox") -> Generation:
    """An accepted generation whose message is delivered by the test."""
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
    """The event of a batch; the n-th message has the id ``message-n``."""
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
    """Delivers one batch; returns the numbers of the messages that the worker did not process."""
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


def test_a_redelivered_message_does_nothing(stack: LocalStack, customer: Customer) -> None:
    job = reserve(customer, "Delivered three times")
    assert [deliver(stack, message_of(job)) for _ in range(3)] == [[], [], []]
    ended = read(customer, job)
    assert ended["status"] == "settled"
    picture_at(ended["imageUrl"])
    assert times_drawn(stack, job.prompt) == 1
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_a_message_redelivered_after_a_refund_does_nothing(
    stack: LocalStack, customer: Customer
) -> None:
    job = reserve(customer, "Refused, and redelivered")
    with model(stack, lambda _: model_says({}, "IMAGE_SAFETY")):
        assert deliver(stack, message_of(job)) == []
    assert deliver(stack, message_of(job)) == []
    assert times_drawn(stack, job.prompt) == 1
    assert read(customer, job)["message"] == "Content policy violation"
    assert (customer.balance(), customer.stored()) == (100, [])


def expire(customer: Customer, generation_id: str) -> None:
    """Ends the lease, and runs the reconciler."""
    customer.change_row(f"GEN#{generation_id}", "SET dueAt = :value", int(time.time()) - 1)
    customer.stack.invoke("ReconcileFunction", {})


def test_a_message_delivered_after_the_reconcilers_refund_does_nothing(
    stack: LocalStack, customer: Customer
) -> None:
    job = reserve(customer, "Too late")
    expire(customer, job.id)
    assert read(customer, job)["message"] == "Image generation timed out"
    assert deliver(stack, message_of(job)) == []
    assert times_drawn(stack, "Too late") == 0
    assert read(customer, job)["status"] == "refunded"
    assert (customer.balance(), customer.stored()) == (100, [])


def test_a_message_about_a_settled_synchronous_generation_does_nothing(
    stack: LocalStack, customer: Customer
) -> None:
    customer.generate("Synchronous")
    (settled,) = customer.history()
    assert deliver(stack, text(customer.organisation, settled["id"])) == []
    assert customer.history() == [settled]
    assert times_drawn(stack, "Synchronous") == 1
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_a_message_about_an_unknown_generation_does_nothing(
    stack: LocalStack, customer: Customer
) -> None:
    for organisation in (customer.organisation, "unknown"):
        assert deliver(stack, text(organisation, "1700000000000")) == []
        key = {"pk": {"S": f"ORG#{organisation}"}, "sk": {"S": "GEN#1700000000000"}}
        found = stack.aws.client("dynamodb").get_item(TableName=stack.table, Key=key)
        assert "Item" not in found
    assert (customer.balance(), customer.history(), customer.stored()) == (100, [], [])


# Messages that this service never wrote, most of them about a reserved generation.
OURS = '{"organisation": "$org", "generation": "$id"}'
# Messages that this service never wrote, most of them about a reserved generation.
FOREIGN = [
    *("", "fetch me", OURS[:-2], OURS + "{}", "null", "$id", '"$id"', '["$org", "$id"]', "{}"),
    *('{"organisation": "$org"}', '{"generation": "$id"}', '{"org": "$org", "id": "$id"}'),
    *(OURS.replace('"$id"', each) for each in ("$id", '["$id"]', "null", '"${id}0"', '"GEN#$id"')),
    *(OURS.replace("$id", each) for each in ("170000000000", "$id\\n", "\u0661" * 13)),
    *(OURS.replace("$org", each) for each in ("ORG#$org", "../$org", "x" * 64, "$capitals")),
    *(OURS[:-1] + ', "padding": "' + "x" * 2_000 + '"}', "[" * 990, "[" * 200_000),
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda text: ascii(text[:60]))
def test_a_foreign_message_stays_in_the_queue_and_does_nothing(
    stack: LocalStack, customer: Customer, foreign: str
) -> None:
    job = reserve(customer, f"Never drawn for {customer.organisation}")
    names = {"org": customer.organisation, "capitals": customer.organisation.upper()}
    message = string.Template(foreign).substitute(names, id=job.id)

    assert deliver(stack, message) == [0]
    assert times_drawn(stack, job.prompt) == 0
    assert read(customer, job)["status"] == "reserved"
    assert (customer.balance(), customer.stored()) == (95, [])


# Several messages


def test_only_the_foreign_messages_of_a_batch_are_redelivered(
    stack: LocalStack, customer: Customer
) -> None:
    first, last = reserve(customer, "First"), reserve(customer, "Last")
    refused = reserve(customer, "A fox [fail:safety]")
    unknown = text(customer.organisation, "1700000000000")
    ours = [unknown, *map(message_of, (last, refused, last, first))]
    assert deliver(stack) == []
    assert deliver(stack, "no JSON", *ours, "{}") == [0, 6]
    statuses = [read(customer, each)["status"] for each in (first, last, refused)]
    assert statuses == ["settled", "settled", "refunded"]
    assert (customer.balance(), len(customer.stored())) == (90, 2)


# Concurrent deliveries


@contextmanager
def two_deliveries(
    stack: LocalStack, job: Generation, first: Callable[[ModelRequest], ModelResponse | None]
) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Two concurrent deliveries of the job, each blocked at the model until its event is set.

    The first of them to reach the model gets the answer of ``first``, the other one a picture.
    """
    numbers, gates = count(), (threading.Event(), threading.Event())

    def answer(request: ModelRequest) -> ModelResponse | None:
        mine = min(next(numbers), 1)
        gates[mine].wait(timeout=20)
        return first(request) if mine == 0 else plain_picture(request)

    with model(stack, answer), ThreadPoolExecutor(2) as pool:
        deliveries = [pool.submit(deliver, stack, message_of(job)) for _ in gates]
        try:
            until(lambda: times_drawn(stack, job.prompt), lambda drawn: drawn == len(gates))
            yield gates
        finally:
            for gate in gates:
                gate.set()
    assert [delivery.result() for delivery in deliveries] == [[], []]


@pytest.mark.parametrize("refuses", [False, True], ids=["both draw", "the first is refused"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "the second ends first"])
def test_two_concurrent_deliveries_end_as_the_first_of_them_to_end(
    stack: LocalStack, customer: Customer, order: tuple[int, int], *, refuses: bool
) -> None:
    job = reserve(customer, f"Two at once {order} {refuses}")
    refusal = model_says({}, "IMAGE_SAFETY")
    with two_deliveries(stack, job, lambda _: refusal if refuses else plain_answer("1:1")) as gates:
        gates[order[0]].set()
        until(lambda: read(customer, job), lambda seen: seen["status"] != "reserved")
        gates[order[1]].set()

    ended = read(customer, job)
    if refuses and order == (0, 1):
        assert (ended["status"], customer.balance()) == ("refunded", 100)
        assert fetch(f"{stack.url}/images/{job.image_key}").status == 404
    else:
        assert (ended["status"], customer.balance()) == ("settled", 95)
        picture_at(ended["imageUrl"])
        assert len(customer.stored()) == 1


# A worker without a ledger or without time


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_a_message_that_meets_an_unreachable_ledger_is_redelivered_and_then_done(
    stack: LocalStack, customer: Customer
) -> None:
    jobs = [reserve(customer, f"Number {n}") for n in range(2)]
    messages = [message_of(job) for job in jobs]
    with ledger_unreachable(handlers.worker):
        during_outage = deliver(stack, *messages)
        statuses = [read(customer, job)["status"] for job in jobs]
    later = deliver(stack, *messages)
    assert (during_outage, later) == ([0, 1], [])
    assert statuses == ["reserved", "reserved"]
    assert [read(customer, job)["status"] for job in jobs] == ["settled", "settled"]
    assert (customer.balance(), len(customer.stored())) == (90, 2)


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_a_job_whose_image_may_be_stored_is_redelivered_and_charged(
    stack: LocalStack, customer: Customer
) -> None:
    job = reserve(customer, "In doubt")
    put = Images.put

    def put_unheard(*arguments: Any) -> NoReturn:
        put(*arguments)
        raise StorageFailed(may_be_stored=True)

    def unreachable(*_: object) -> NoReturn:
        raise StorageUnreachable

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Images, "put", put_unheard)
        patch.setattr(Images, "put_tombstone", unreachable)
        assert deliver(stack, message_of(job)) == [0]
    assert read(customer, job)["status"] == "reserved"
    assert deliver(stack, message_of(job)) == []
    assert read(customer, job)["status"] == "settled"
    assert (customer.balance(), len(customer.stored())) == (95, 1)


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_a_worker_without_time_refunds_at_once(stack: LocalStack, customer: Customer) -> None:
    job = reserve(customer, "No time left")
    one_second: Any = LambdaContext("WorkerFunction", "1024", timeout_s=1)
    answer = handlers.worker.handler(event_of(message_of(job)), one_second)
    assert answer == {"batchItemFailures": []}
    assert read(customer, job)["message"] == "Image generation timed out"
    assert times_drawn(stack, "No time left") == 0
    assert (customer.balance(), customer.stored()) == (100, [])


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_a_message_received_three_times_is_a_dead_letter_and_its_lease_is_refunded(
    stack: LocalStack, customer: Customer
) -> None:
    sqs = stack.aws.client("sqs")
    jobs, dead = (
        sqs.get_queue_url(QueueName=name)["QueueUrl"] for name in ("JobsQueue", "DeadJobs")
    )
    sqs.set_queue_attributes(QueueUrl=jobs, Attributes={"VisibilityTimeout": "1"})
    try:
        with ledger_unreachable(handlers.worker):
            accepted = customer.accept("Never begun")
            letters = until(lambda: dead_letters(stack, dead), bool)
    finally:
        as_before = str(QUEUE.visibility_timeout_s)
        sqs.set_queue_attributes(QueueUrl=jobs, Attributes={"VisibilityTimeout": as_before})

    (letter,) = letters
    identity = accepted.json()["id"]
    assert json.loads(letter) == {"organisation": customer.organisation, "generation": identity}
    assert customer.get(f"{GENERATIONS}/{identity}").json()["status"] == "reserved"
    expire(customer, identity)
    ended = customer.get(f"{GENERATIONS}/{identity}").json()
    assert (ended["status"], ended["creditsRefunded"]) == ("refunded", 5)
    assert ended["message"] == "Image generation timed out"
    assert times_drawn(stack, "Never begun") == 0
    assert (customer.balance(), customer.stored()) == (100, [])


def dead_letters(stack: LocalStack, queue_url: str) -> list[str]:
    answer = stack.aws.client("sqs").receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10)
    return [message["Body"] for message in answer.get("Messages", [])]


# Logs and messages


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_the_log_of_a_worker_names_the_outcome_and_omits_the_prompt(
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


@pytest.fixture
def world(moto_engine: Engine) -> Iterator[World]:
    with World(moto_engine) as made:
        yield made


def test_a_message_names_the_generation_and_a_repeated_202_sends_no_second_one(
    world: World,
) -> None:
    accepted = [world.accept(world.process(), "order-1") for _ in range(3)]
    assert isinstance(accepted[0], Accepted)
    (message,) = world.mailbox.messages
    expected = {"organisation": world.organisation, "generation": accepted[0].generation_id}
    assert json.loads(message) == expected


# Time: the queue redelivers after its visibility timeout; the reconciler runs every minute.


def test_the_queue_delivers_a_job_three_times_and_waits_longer_than_the_worker_runs() -> None:
    assert (QUEUE.receives, QUEUE.dead_letters) == (RECEIVES, "DeadJobs")
    assert QUEUE.visibility_timeout_s > WORKER_TIMEOUT_S


def refunds_within(world: World, seconds: float) -> int:
    """Lets the time pass; returns what the reconciler refunds meanwhile. It settles nothing."""
    refunded = 0
    ends_at = world.clock() + seconds
    while world.clock() < ends_at:
        world.clock.sleep(min(RECONCILED_EVERY_S, ends_at - world.clock()))
        run = world.reconcile(world.process())
        assert run is not None
        assert run.settled == 0
        refunded += run.refunded
    return refunded


def accept(world: World) -> str:
    assert isinstance(world.accept(world.process()), Accepted)
    (message,) = world.mailbox.messages
    return message


def dying_at(world: World, call: int) -> Sandbox:
    return world.process(Network(call, Fault.KILLED_BEFORE))


def assert_ended(world: World, status: Status) -> None:
    """The one generation has this status, also in the end, and the books are sound."""
    assert [each.status for each in world.generations()] == [status]
    world.settle_down()
    assert [each.status for each in world.generations()] == [status]
    assert world.balance() == (95 if status is Status.SETTLED else 100)
    assert world.violations() == []


def test_a_job_that_waits_ten_minutes_in_the_queue_is_still_done(world: World) -> None:
    message = accept(world)
    assert refunds_within(world, 9.5 * 60) == 0
    assert world.work(world.process(), message)
    assert_ended(world, Status.SETTLED)


def test_a_job_that_is_not_delivered_in_time_is_refunded_and_not_done_later(world: World) -> None:
    message = accept(world)
    assert refunds_within(world, 17 * 60) == 1
    (refunded,) = world.generations()
    late = world.process()
    assert world.work(late, message)
    assert "model.generate" not in [str(call) for call in late.network.calls]
    assert world.generations() == [refunded], "the store's next sweep was postponed"
    assert_ended(world, Status.REFUNDED)


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        *((call, Fault.KILLED_BEFORE) for call in (MODEL, PUT, SETTLE)),
        (EXTEND_LEASE, Fault.OUTAGE),
    ],
    ids=["dies at the model", "dies at the put", "dies at the settle", "finds no ledger"],
)
def test_a_worker_that_fails_twice_leaves_the_job_to_the_third_delivery(
    world: World, call: int, fault: Fault
) -> None:
    message = accept(world)
    for _ in range(RECEIVES - 1):
        assert not world.work(world.process(Network(call, fault)), message)
        assert refunds_within(world, QUEUE.visibility_timeout_s) == 0
    assert world.work(world.process(), message)
    assert_ended(world, Status.SETTLED)


def test_a_job_whose_workers_all_die_is_refunded_after_the_last_lease(world: World) -> None:
    message = accept(world)
    for delivery in range(RECEIVES):
        assert not world.work(dying_at(world, MODEL), message)
        if delivery < RECEIVES - 1:
            assert refunds_within(world, QUEUE.visibility_timeout_s) == 0
    assert refunds_within(world, WORKER_LEASE_S + RECONCILED_EVERY_S + 1) == 1
    assert_ended(world, Status.REFUNDED)


def test_a_request_that_dies_before_it_queues_its_job_is_refunded_within_three_minutes(
    world: World,
) -> None:
    def dies_at_the_queue(call: Call) -> None:
        if call.service == "sqs":
            raise Killed

    assert world.accept(world.process(Network(before_each=dies_at_the_queue))) is None
    assert world.mailbox.messages == []
    assert refunds_within(world, 3 * 60) == 1
    assert_ended(world, Status.REFUNDED)


def test_a_retry_refunds_the_reservation_of_a_request_that_died_and_makes_a_new_one(
    world: World,
) -> None:
    assert world.accept(dying_at(world, 1), "order-1") is None
    too_soon = world.accept(world.process(), "order-1")
    assert isinstance(too_soon, GenerationInFlight)
    world.clock.sleep(QUEUED_WITHIN_S + 1)
    repeated = world.accept(world.process(), "order-1")
    assert isinstance(repeated, Accepted)
    assert not repeated.replayed
    world.deliver()
    world.settle_down()
    assert [each.status for each in world.generations()] == [Status.REFUNDED, Status.SETTLED]
    assert world.balance() == 95
    assert world.violations() == []


def test_a_retry_leaves_no_tombstone_of_the_retry_that_died_before_it(world: World) -> None:
    assert world.accept(dying_at(world, 1), "order-1") is None
    world.clock.sleep(QUEUED_WITHIN_S + 1)
    dying = Network(4, Fault.KILLED_BEFORE)
    assert world.accept(world.process(dying), "order-1") is None
    assert [str(call) for call in dying.calls[-2:]] == [
        "s3.put_object",
        "dynamodb.transact_write_items",
    ]

    assert isinstance(world.accept(world.process(), "order-1"), Accepted)
    world.deliver()
    world.settle_down()

    assert [each.status for each in world.generations()] == [Status.REFUNDED, Status.SETTLED]
    assert len(world.stored_keys()) == 1
    assert world.violations() == []


def test_an_acceptor_that_a_retry_took_for_dead_answers_that_nothing_is_charged(
    world: World,
) -> None:
    retries: list[object] = []

    def a_retry_comes(call: Call) -> None:
        if call.operation == "send_message" and not retries:
            world.clock.sleep(QUEUED_WITHIN_S + 1)
            retries.append(world.accept(world.process(), "order-1"))

    answer = world.accept(world.process(Network(before_each=a_retry_comes)), "order-1")

    assert isinstance(answer, ReservationLost)
    world.deliver()
    world.settle_down()
    (retried,) = retries
    assert isinstance(retried, Accepted)
    assert [each.id for each in world.generations() if each.status is Status.SETTLED] == [
        retried.generation_id
    ]
    assert world.balance() == 95
    assert world.violations() == []


def test_the_image_that_a_dead_worker_stored_is_charged_and_not_drawn_again(world: World) -> None:
    message = accept(world)
    assert not world.work(dying_at(world, SETTLE), message)
    assert len(world.stored_keys()) == 1
    again = world.process(failure=ContentRejected())
    assert world.work(again, message)
    assert "model.generate" not in map(str, again.network.calls)
    assert_ended(world, Status.SETTLED)


def test_a_second_message_whose_image_fails_refunds_the_job_and_the_stored_image_is_swept(
    world: World,
) -> None:
    message = accept(world)
    assert not world.work(dying_at(world, SETTLE), message)
    # The queue got the job twice: this message has not been delivered before.
    world.deliveries.clear()
    assert world.work(world.process(failure=ContentRejected()), message)
    world.settle_down()
    assert_ended(world, Status.REFUNDED)


def test_a_retry_after_a_job_was_given_up_makes_a_new_one(world: World) -> None:
    assert isinstance(world.accept(world.process(), "order-1"), Accepted)
    world.let_leases_pass()
    repeated = world.accept(world.process(), "order-1")
    assert isinstance(repeated, Accepted)
    assert not repeated.replayed
    world.deliver()
    world.settle_down()
    assert [each.status for each in world.generations()] == [Status.REFUNDED, Status.SETTLED]
    assert world.balance() == 95
    assert world.violations() == []


def test_a_refund_whose_response_was_lost_is_made_once(world: World) -> None:
    message = accept(world)
    in_doubt = world.process(Network(MODEL + 1, Fault.LOST_THEN_OUTAGE), failure=ContentRejected())
    world.work(in_doubt, message)
    world.work(world.process(), message)
    assert_ended(world, Status.REFUNDED)


def test_an_outage_of_the_ledger_after_the_job_is_queued_delays_the_202_by_at_most_5_s(
    world: World,
) -> None:
    network = Network(strikes_at=2, fault=Fault.OUTAGE)
    answer = world.accept(world.process(network))
    assert [str(call) for call in network.calls][:3] == [
        "dynamodb.transact_write_items",
        "sqs.send_message",
        "dynamodb.update_item",
    ]
    assert isinstance(answer, Accepted)
    assert world.last_request_took_s <= 5
