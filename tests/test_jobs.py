"""Asynchronous generations as a client on a socket sees them: accepted, polled, ended.

They run twice, as in ``tests/test_contract.py``: in this process, and (marked ``real``) on the
built artifact in Lambda's own runtime.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import pytest

import handlers.generate
from infra.local.functions import LambdaContext
from infra.local.stack import LocalStack
from tests.customer import (
    GENERATE,
    MESSAGES,
    TEXT,
    Customer,
    Reply,
    assert_rate_limited,
    assert_replayed,
    blocked_model,
    bucket_refuses,
    event_of,
    fetch,
    model,
    model_says,
    picture_at,
    positive,
    prompts_sent,
    scripted_stack,
    wait_for_the_model,
    within_one_minute,
)
from tests.stacks import HERE, SLOW_STACKS

HINT = "Prefer: respond-async"


@pytest.fixture(scope="module", params=SLOW_STACKS)
def stack(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    with scripted_stack(request) as running:
        yield running


def assert_accepted(answer: Reply, *, repeated: bool = False) -> None:
    assert answer.status == 202, answer
    body = answer.json()
    assert list(body) == ["id", "status", "imageUrl", "creditsCharged"]
    assert re.fullmatch(r"\d{13}", body["id"])
    assert (body["status"], body["creditsCharged"]) == ("reserved", 5)
    assert answer.headers["location"] == f"/api/v1/generations/{body['id']}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.headers["x-credits-charged"] == ("0" if repeated else "5")
    assert answer.headers.get("idempotent-replayed") == ("true" if repeated else None)


def assert_nothing_happened(customer: Customer, credits_: int = 100) -> None:
    """There is no debit, no generation and no image."""
    assert (customer.balance(), customer.history(), customer.stored()) == (credits_, [], [])


# 202


def test_a_202_comes_before_the_model_has_drawn_anything(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = "Drawn when the test says so"
    with blocked_model(stack, prompt) as released:
        accepted = customer.accept(prompt)
        assert_accepted(accepted)
        wait_for_the_model(stack, prompt)
        meanwhile = customer.get(accepted.headers["location"])
        balance_meanwhile = customer.balance()
        image_meanwhile = fetch(accepted.json()["imageUrl"])
        released.set()
        ended = customer.ending(accepted)

    assert meanwhile.status == 200
    assert meanwhile.json()["status"] == "reserved"
    assert set(meanwhile.json()) == {"id", "status", "createdAt", "prompt", "aspectRatio"}
    assert balance_meanwhile == 95
    assert image_meanwhile.status == 404
    assert ended["status"] == "settled"
    assert customer.balance() == 95


def test_the_image_appears_at_the_url_of_the_202(customer: Customer) -> None:
    before_ms = int(time.time() * 1000)

    accepted = customer.accept("A wide fox", aspectRatio="16:9")
    ended = customer.ending(accepted)

    body = accepted.json()
    path = urlsplit(body["imageUrl"]).path
    name = rf"/images/generated/gemini/{customer.organisation}/{body['id']}\d{{39}}\.png"
    assert re.fullmatch(name, path)
    assert before_ms <= int(body["id"]) <= time.time() * 1000
    created_at = datetime.fromisoformat(ended.pop("createdAt"))
    assert round(created_at.timestamp() * 1000) == int(body["id"])
    assert 0 <= ended.pop("durationMs") <= time.time() * 1000 - before_ms
    assert ended == {
        "id": body["id"],
        "status": "settled",
        "prompt": "A wide fox",
        "aspectRatio": "16:9",
        "imageUrl": body["imageUrl"],
        "creditsCharged": 5,
    }
    width, height = picture_at(body["imageUrl"]).size
    assert width * 9 == height * 16
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_every_generation_that_is_accepted_concurrently_is_made(
    customer: Customer,
) -> None:
    with ThreadPoolExecutor(12) as pool:
        accepted = list(pool.map(lambda n: customer.accept(f"Number {n}"), range(12)))
    assert len({answer.json()["id"] for answer in accepted}) == 12
    for answer in accepted:
        assert_accepted(answer)
        assert customer.ending(answer)["status"] == "settled"
        picture_at(answer.json()["imageUrl"])
    assert (customer.balance(), len(customer.stored())) == (40, 12)


@pytest.mark.slow
def test_a_model_slower_than_the_gateway_still_makes_an_asynchronous_image(
    customer: Customer,
) -> None:
    prompt = "Drawn for longer than API Gateway waits [slow:31]"
    accepted = customer.accept(prompt)
    waited_for = customer.generate(prompt)
    assert waited_for.status == 500
    assert waited_for.json()["message"] == "Image generation timed out"
    assert HINT in waited_for.json()["hint"]
    assert customer.ending(accepted)["status"] == "settled"
    picture_at(accepted.json()["imageUrl"])
    assert (customer.balance(), len(customer.stored())) == (95, 1)


# The synchronous route


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_a_synchronous_timeout_is_refunded_and_its_hint_names_the_header(
    customer: Customer,
) -> None:
    headers = {"authorization": f"Bearer {customer.key}", "content-type": TEXT}
    event = event_of('{"prompt": "A fox [slow:30]"}', is_base64=False, headers=headers)
    seven_seconds: Any = LambdaContext("GenerateFunction", "128", timeout_s=7)

    answer = handlers.generate.handler(event, seven_seconds)

    assert answer["statusCode"] == 500
    assert answer["headers"]["X-Credits-Charged"] == "0"
    body = json.loads(answer["body"])
    assert body["message"] == "Image generation timed out"
    assert HINT in body["hint"]
    assert customer.balance() == 100
    (ended,) = customer.history()
    assert ended["status"] == "refunded"
    assert ended["message"] == "Image generation timed out"


def test_only_a_timeout_carries_the_hint(customer: Customer) -> None:
    for failure in ("safety", "text-only", "quota", "not-found"):
        assert "hint" not in customer.generate(f"A fox [fail:{failure}]").json()


# Failures


def assert_refunded(customer: Customer, accepted: Reply, message: str) -> None:
    ended = customer.ending(accepted)
    requested = {"id", "status", "createdAt", "prompt", "aspectRatio"}
    assert set(ended) == requested | {"message", "creditsRefunded"}
    assert ended["status"] == "refunded"
    assert (ended["message"], ended["creditsRefunded"]) == (message, 5)
    assert customer.balance() == 100
    assert fetch(accepted.json()["imageUrl"]).status == 404


# A worker waits until a quota is free again, which takes longer than a test may.
AT_ONCE = {failure: message for failure, message in MESSAGES.items() if failure != "quota"} | {
    "reset": "The image model is overloaded",
    "wrong-shape": "The model returned no image",
}


@pytest.mark.parametrize(("failure", "message"), AT_ONCE.items(), ids=AT_ONCE)
def test_a_failure_of_the_model_is_refunded_with_its_published_message(
    customer: Customer, failure: str, message: str
) -> None:
    accepted = customer.accept(f"A fox [fail:{failure}]")
    assert_accepted(accepted)
    assert_refunded(customer, accepted, message)


@pytest.mark.parametrize("failure", ["overloaded-once", "reset-once"])
def test_a_fault_that_a_retry_mends_is_invisible(customer: Customer, failure: str) -> None:
    accepted = customer.accept(f"{customer.organisation} [fail:{failure}]")
    assert customer.ending(accepted)["status"] == "settled"
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_an_image_that_cannot_be_stored_is_refunded(stack: LocalStack, customer: Customer) -> None:
    with bucket_refuses(stack, "PutObject"):
        assert_refunded(customer, customer.accept(), "The image could not be stored")
    assert customer.stored() == []


@contextmanager
def without_a_queue(stack: LocalStack) -> Iterator[None]:
    sqs = stack.aws.client("sqs")
    sqs.delete_queue(QueueUrl=sqs.get_queue_url(QueueName="JobsQueue")["QueueUrl"])
    try:
        yield
    finally:
        stack.aws.create_queue("JobsQueue")


def test_a_queue_that_refuses_is_a_500_with_the_credits_already_refunded(
    stack: LocalStack, customer: Customer
) -> None:
    with without_a_queue(stack):
        answer = customer.accept("Refused by the queue", idempotency_key="order-1")
        balance = customer.balance()

    assert answer.status == 500
    assert answer.json() == {
        "error": "Failed to generate image",
        "message": "Image generation is unavailable",
    }
    assert answer.headers["x-credits-charged"] == "0"
    assert balance == 100
    (ended,) = customer.history()
    assert (ended["status"], ended["creditsRefunded"]) == ("refunded", 5)
    assert ended["message"] == "Image generation is unavailable"
    assert customer.stored() == []
    retried = customer.accept("Refused by the queue", idempotency_key="order-1")
    assert_accepted(retried)
    assert customer.ending(retried)["status"] == "settled"
    assert prompts_sent(stack).count("Refused by the queue") == 1


# The header. Source: RFC 7240, section 2.

ASYNCHRONOUS = [
    *("respond-async", "Respond-Async", "RESPOND-ASYNC", "  respond-async  ", "\trespond-async"),
    *("respond-async, wait=10", "respond-async,wait=10", "wait=10, respond-async"),
    *("wait=10 , return=minimal , respond-async", "wait=10; x=1, respond-async"),
    *("respond-async; foo", "respond-async ;foo=bar", 'respond-async; foo="a, b; c"'),
    *('foo="a; b", respond-async', 'foo="a, b", respond-async', r'foo="a \" b", respond-async'),
    *(", ,respond-async,", "respond-async, respond-async"),
    # An empty value is no value.
    *('respond-async=""', 'respond-async = ""'),
]
SYNCHRONOUS = [
    *("", "   ", ",", "wait=10", "wait=0", "return=representation", "handling=lenient; wait=10"),
    *("respond-sync", "respond-asynchronously", "x-respond-async", "respond async"),
    *("respond_async", "respond-async-", "foo=respond-async", "foo; respond-async"),
    *("foo; bar=respond-async", 'foo="respond-async"', 'foo="; respond-async"'),
    *(
        'foo="a, respond-async, b"',
        r'foo="a \", respond-async, b"',
        '"respond-async"',
        "\xe9, \xff",
    ),
]


@pytest.mark.parametrize("prefer", ASYNCHRONOUS)
def test_the_preference_respond_async_is_accepted(customer: Customer, prefer: str) -> None:
    accepted = customer.accept(prefer=prefer)
    assert_accepted(accepted)
    assert customer.ending(accepted)["status"] == "settled"


@pytest.mark.parametrize("prefer", SYNCHRONOUS)
def test_any_other_preference_is_ignored(customer: Customer, prefer: str) -> None:
    answer = customer.accept(prefer=prefer)
    assert answer.status == 200, answer
    assert list(answer.json()) == ["imageUrl", "mimeType", "creditsCharged", "durationMs"]
    picture_at(answer.json()["imageUrl"])


def test_a_preference_may_be_in_the_second_of_two_headers(customer: Customer) -> None:
    headers = [
        ("Authorization", f"Bearer {customer.key}"),
        ("Content-Type", TEXT),
        ("Prefer", "wait=10"),
        ("prefer", "respond-async"),
    ]
    accepted = fetch(customer.stack.url + GENERATE, "POST", b'{"prompt": "A fox"}', headers)
    assert_accepted(accepted)
    assert customer.ending(accepted)["status"] == "settled"


# Refusals


def assert_never_queued(stack: LocalStack, prompt: str) -> None:
    """A job that was accepted later is done, and the model never received this prompt."""
    later = Customer(stack)
    assert later.ending(later.accept())["status"] == "settled"
    assert prompt not in prompts_sent(stack)
    later.leave()


REFUSED: dict[int, tuple[int, dict[str, object], dict[str, str]]] = {
    400: (100, {"aspectRatio": "7:5"}, {}),
    401: (100, {}, {"Authorization": "Bearer no-key"}),
    402: (4, {}, {}),
    413: (100, {"padding": "x" * 64 * 1024}, {}),
}


@pytest.mark.parametrize("status", REFUSED)
def test_a_refused_request_is_not_accepted_and_nothing_is_queued(
    stack: LocalStack, status: int
) -> None:
    credits_, fields, headers = REFUSED[status]
    customer = Customer(stack, credits_)
    body = json.dumps({"prompt": f"Refused {status}", **fields}).encode()
    answer = customer.post(body, headers={"Prefer": "respond-async"} | headers)
    assert answer.status == status
    assert "location" not in answer.headers
    assert_nothing_happened(customer, credits_)
    assert_never_queued(stack, f"Refused {status}")


def test_a_request_over_the_limit_of_the_minute_is_not_accepted(stack: LocalStack) -> None:
    def ask_three_times() -> tuple[Customer, list[Reply]]:
        slow = Customer(stack)
        slow.change_row("ACCOUNT", "SET rateLimit = :value", 2)
        return slow, [slow.accept(), slow.generate(), slow.accept("Refused 429")]

    slow, answers = within_one_minute(ask_three_times)

    assert [answer.status for answer in answers] == [202, 200, 429]
    assert_rate_limited(answers[2], 2)
    assert slow.ending(answers[0])["status"] == "settled"
    assert (slow.balance(), len(slow.history())) == (90, 2)
    assert_never_queued(stack, "Refused 429")


# Idempotency-Key


def test_a_repeated_202_costs_neither_credits_nor_rate(stack: LocalStack) -> None:
    prompt = "Paid with the last credits"

    def ask_three_times() -> tuple[Customer, list[Reply]]:
        poor = Customer(stack, 5)
        poor.change_row("ACCOUNT", "SET rateLimit = :value", 1)
        with blocked_model(stack, prompt):
            return poor, [poor.accept(prompt, idempotency_key="order-1") for _ in range(3)]

    poor, (first, *again) = within_one_minute(ask_three_times)

    assert_accepted(first)
    for answer in again:
        assert_accepted(answer, repeated=True)
        assert answer.body == first.body
        assert answer.headers["location"] == first.headers["location"]
    assert poor.ending(first)["status"] == "settled"
    assert prompts_sent(stack).count(prompt) == 1
    assert (poor.balance(), len(poor.stored())) == (0, 1)


def test_a_settled_generation_replays_the_stored_200(customer: Customer) -> None:
    first = customer.accept(idempotency_key="order-1")
    ended = customer.ending(first)
    asynchronous = customer.accept(idempotency_key="order-1")
    synchronous = customer.generate(idempotency_key="order-1")
    assert list(asynchronous.json()) == ["imageUrl", "mimeType", "creditsCharged", "durationMs"]
    assert asynchronous.json()["imageUrl"] == first.json()["imageUrl"]
    assert asynchronous.json()["durationMs"] == ended["durationMs"]
    assert_replayed(synchronous, asynchronous)
    assert_replayed(asynchronous, synchronous)
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_after_a_refund_the_idempotency_key_is_free(stack: LocalStack, customer: Customer) -> None:
    prompt = "Refused once, asynchronously"
    with model(stack, lambda _: model_says({}, "IMAGE_SAFETY")):
        first = customer.accept(prompt, idempotency_key="order-1")
        assert customer.ending(first)["status"] == "refunded"
    second = customer.accept(prompt, idempotency_key="order-1")
    assert_accepted(second)
    assert second.json()["id"] != first.json()["id"]
    assert customer.ending(second)["status"] == "settled"
    assert customer.ending(first)["status"] == "refunded"
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_an_idempotency_key_reused_with_another_body_is_refused(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = "The body that came first"
    with blocked_model(stack, prompt):
        first = customer.accept(prompt, idempotency_key="order-1")
        while_reserved = [
            customer.accept("Another body", idempotency_key="order-1"),
            customer.accept(prompt, idempotency_key="order-1", aspectRatio="16:9"),
            customer.generate("Another body", idempotency_key="order-1"),
        ]
    assert customer.ending(first)["status"] == "settled"
    when_settled = customer.accept("Another body", idempotency_key="order-1")

    for answer in (*while_reserved, when_settled):
        assert answer.status == 422
        assert answer.headers["x-error-code"] == "idempotency_key_reused"
    assert (customer.balance(), len(customer.history())) == (95, 1)
    assert_never_queued(stack, "Another body")


def test_a_key_of_the_synchronous_route_is_in_flight_on_the_asynchronous_one_and_vice_versa(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = "Requested on both routes"
    with blocked_model(stack, prompt) as released, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(customer.generate, prompt, idempotency_key="order-1")
        wait_for_the_model(stack, prompt)
        accepted = customer.accept(prompt, idempotency_key="order-2")
        in_flight = [
            customer.accept(prompt, idempotency_key="order-1"),
            customer.generate(prompt, idempotency_key="order-2"),
        ]
        released.set()

    for answer in in_flight:
        assert answer.status == 409, answer
        assert set(answer.json()) == {"error"}
        assert answer.headers["x-error-code"] == "generation_in_flight"
        assert positive(answer.headers["retry-after"]) <= 30
    assert waiting.result().status == 200
    assert_replayed(customer.accept(prompt, idempotency_key="order-1"), waiting.result())
    assert customer.ending(accepted)["status"] == "settled"
    replayed = customer.generate(prompt, idempotency_key="order-2")
    assert replayed.headers["idempotent-replayed"] == "true"
    assert replayed.json()["imageUrl"] == accepted.json()["imageUrl"]
    assert (customer.balance(), len(customer.stored())) == (90, 2)


def test_one_of_twelve_concurrent_requests_with_one_key_is_charged(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = "Requested by twelve, asynchronously"
    together = threading.Barrier(12)

    def ask(_: int) -> Reply:
        together.wait(timeout=10)
        return customer.accept(prompt, idempotency_key="order-1")

    with blocked_model(stack, prompt), ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))

    charged = [answer for answer in answers if answer.headers["x-credits-charged"] == "5"]
    assert len(charged) == 1
    assert_accepted(charged[0])
    for answer in answers:
        if answer.status == 409:
            # It came before the first one's job was queued.
            assert answer.headers["x-error-code"] == "generation_in_flight"
        elif answer is not charged[0]:
            assert_accepted(answer, repeated=True)
            assert answer.body == charged[0].body
    assert customer.ending(charged[0])["status"] == "settled"
    assert prompts_sent(stack).count(prompt) == 1
    assert (customer.balance(), len(customer.stored())) == (95, 1)
