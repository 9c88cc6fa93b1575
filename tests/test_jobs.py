"""Asynchronous generations, as a client on a socket sees them: asked for, waited for, ended.

Twice, as in ``tests/test_contract.py``: in this process, and (marked ``real``) the built artifact
in Lambda's own runtime.
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
from infra.local.gemini_stand_in import Answer as ModelAnswer
from infra.local.gemini_stand_in import Received
from infra.local.stack import LocalStack
from tests.customer import (
    GENERATE,
    MESSAGES,
    TEXT,
    Answer,
    Customer,
    assert_bad_request,
    assert_rate_limited,
    assert_replayed,
    event_of,
    fetch,
    full_bucket,
    model,
    model_says,
    picture_at,
    plain_picture,
    positive,
    prompt_of,
    prompts_sent,
    scripted_stack,
    until,
    within_one_minute,
)
from tests.stacks import HERE, SLOW_STACKS

HINT = "Prefer: respond-async"
UPSTREAM = "upstream-words-91d4"
# On a machine that is busy with other tests a new sandbox takes seconds to start.
AT_ONCE_S = 4
SLOWER_THAN_THAT_S = 6


@pytest.fixture(scope="module", params=SLOW_STACKS)
def stack(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    with scripted_stack(request) as running:
        yield running


@contextmanager
def model_that_waits(stack: LocalStack, prompt: str) -> Iterator[threading.Event]:
    """The model keeps everyone who asks for ``prompt`` waiting, until the event is set."""
    released = threading.Event()

    def hesitate(request: Received) -> ModelAnswer | None:
        if prompt_of(request) == prompt:
            released.wait(timeout=20)
        return plain_picture(request)

    with model(stack, hesitate):
        try:
            yield released
        finally:
            released.set()


def wait_for_the_model(stack: LocalStack, prompt: str) -> None:
    until(lambda: prompts_sent(stack), lambda prompts: prompt in prompts)


def assert_accepted(answer: Answer, *, repeated: bool = False) -> None:
    assert answer.status == 202, answer
    body = answer.json()
    assert list(body) == ["id", "status", "imageUrl", "creditsCharged"]
    assert re.fullmatch(r"\d{13}", body["id"])
    assert (body["status"], body["creditsCharged"]) == ("reserved", 5)
    assert answer.headers["location"] == f"/api/v1/generations/{body['id']}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.headers["x-credits-charged"] == ("0" if repeated else "5")
    assert answer.headers.get("idempotent-replayed") == ("true" if repeated else None)


def assert_nothing_is_left(customer: Customer, credits_: int = 100) -> None:
    """No debit, no generation, no image."""
    assert (customer.balance(), customer.history(), customer.stored()) == (credits_, [], [])


# 202


def test_the_answer_comes_before_the_model_has_drawn_anything(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = "Drawn when the test says so"
    with model_that_waits(stack, prompt) as released:
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


def test_a_model_that_takes_its_time_keeps_nobody_waiting(customer: Customer) -> None:
    began = time.monotonic()

    accepted = customer.accept(f"A fox [slow:{SLOWER_THAN_THAT_S}]")

    assert time.monotonic() - began < AT_ONCE_S
    assert_accepted(accepted)
    ended = customer.ending(accepted)
    assert ended["status"] == "settled"
    assert ended["durationMs"] >= SLOWER_THAN_THAT_S * 1000


def test_the_image_is_found_where_the_202_said_that_it_would_be(customer: Customer) -> None:
    before_ms = int(time.time() * 1000)

    accepted = customer.accept("A wide fox", aspectRatio="16:9")
    ended = customer.ending(accepted)

    body = accepted.json()
    path = urlsplit(body["imageUrl"]).path
    assert path == f"/images/generated/gemini/{customer.organisation}/{body['id']}.png"
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


def test_what_is_accepted_at_once_by_one_organisation_is_all_made(customer: Customer) -> None:
    with ThreadPoolExecutor(12) as pool:
        accepted = list(pool.map(lambda n: customer.accept(f"Number {n}"), range(12)))

    assert len({answer.json()["id"] for answer in accepted}) == 12
    for answer in accepted:
        assert_accepted(answer)
        assert customer.ending(answer)["status"] == "settled"
        picture_at(answer.json()["imageUrl"])
    assert (customer.balance(), len(customer.stored())) == (40, 12)


@pytest.mark.slow
def test_a_model_slower_than_the_gateway_makes_its_image_for_those_who_do_not_wait(
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
def test_a_wait_that_was_too_long_is_told_what_to_send_and_costs_nothing(
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


def test_only_a_time_out_is_pointed_to_the_asynchronous_route(customer: Customer) -> None:
    for failure in ("safety", "text-only", "quota", "not-found"):
        assert "hint" not in customer.generate(f"A fox [fail:{failure}]").json()


# Failures


def assert_refunded(customer: Customer, accepted: Answer, message: str) -> None:
    ended = customer.ending(accepted)
    assert set(ended) == {
        "id",
        "status",
        "createdAt",
        "prompt",
        "aspectRatio",
        "message",
        "creditsRefunded",
    }
    assert ended["status"] == "refunded"
    assert (ended["message"], ended["creditsRefunded"]) == (message, 5)
    assert customer.balance() == 100
    assert fetch(accepted.json()["imageUrl"]).status == 404


def test_a_refused_prompt_is_refunded_and_the_resource_says_why(customer: Customer) -> None:
    accepted = customer.accept("A fox [fail:safety]")

    assert_accepted(accepted)
    assert_refunded(customer, accepted, "Content policy violation")
    assert customer.stored() == []


# A worker has the time to wait until a quota is free again: that takes longer than a test may.
AT_ONCE = {failure: message for failure, message in MESSAGES.items() if failure != "quota"} | {
    "quota-bare": "The image model is overloaded",
    "reset": "The image model is overloaded",
    "internal": "The image model is overloaded",
    "recitation": "Content policy violation",
    "thought-only": "The model returned no image",
    "not-an-image": "The model returned no image",
    "wrong-shape": "The model returned no image",
    "bomb": "The model returned no image",
    "forbidden": "Image generation is unavailable",
}


@pytest.mark.parametrize(("failure", "message"), AT_ONCE.items(), ids=AT_ONCE)
def test_each_failure_of_the_model_has_its_published_message(
    customer: Customer, failure: str, message: str
) -> None:
    accepted = customer.accept(f"A fox [fail:{failure}]")

    assert_accepted(accepted)
    assert_refunded(customer, accepted, message)


@pytest.mark.parametrize("failure", ["overloaded-once", "reset-once"])
def test_a_fault_that_a_retry_mends_is_not_seen(customer: Customer, failure: str) -> None:
    accepted = customer.accept(f"{customer.organisation} [fail:{failure}]")

    assert customer.ending(accepted)["status"] == "settled"
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_nothing_that_the_model_said_is_shown(stack: LocalStack, customer: Customer) -> None:
    detail = {"@type": UPSTREAM, "reason": UPSTREAM, "metadata": {"key": UPSTREAM}}
    error = {"code": 400, "message": UPSTREAM, "status": UPSTREAM, "details": [detail]}
    said = {
        "a refusal": ModelAnswer(400, json.dumps({"error": error}).encode()),
        "a page": ModelAnswer(500, UPSTREAM.encode(), {"Content-Type": "text/html"}),
        "a reason": model_says({}, UPSTREAM),
        "a sentence": model_says({"parts": [{"text": UPSTREAM}]}, modelVersion=UPSTREAM),
    }

    with model(stack, lambda request: said.get(prompt_of(request))):
        for prompt in said:
            accepted = customer.accept(prompt)
            assert customer.ending(accepted)["message"] in MESSAGES.values()
            shown = customer.get(accepted.headers["location"])
            assert UPSTREAM not in shown.body.decode() + repr(shown.headers)

    assert UPSTREAM.encode() not in customer.get("/api/v1/generations").body
    assert customer.balance() == 100


def test_an_image_that_cant_be_stored_is_refunded(stack: LocalStack, customer: Customer) -> None:
    with full_bucket(stack):
        accepted = customer.accept()
        assert_refunded(customer, accepted, "The image could not be stored")

    assert customer.stored() == []


@contextmanager
def without_a_queue(stack: LocalStack) -> Iterator[None]:
    sqs = stack.aws.client("sqs")
    sqs.delete_queue(QueueUrl=sqs.get_queue_url(QueueName="JobsQueue")["QueueUrl"])
    try:
        yield
    finally:
        stack.aws.create_queue("JobsQueue")


def test_a_queue_that_refuses_is_a_500_whose_credits_are_back_already(
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
    "respond-async",
    "Respond-Async",
    "RESPOND-ASYNC",
    "  respond-async  ",
    "\trespond-async",
    "respond-async, wait=10",
    "respond-async,wait=10",
    "wait=10, respond-async",
    "wait=10 , return=minimal , respond-async",
    "wait=10; x=1, respond-async",
    "respond-async; foo",
    "respond-async ;foo=bar",
    'respond-async; foo="a, b; c"',
    'foo="a; b", respond-async',
    'foo="a, b", respond-async',
    r'foo="a \" b", respond-async',
    ", ,respond-async,",
    "respond-async, respond-async",
    # An empty value is none.
    'respond-async=""',
    'respond-async = ""',
]
SYNCHRONOUS = [
    "",
    "   ",
    ",",
    "wait=10",
    "wait=0",
    "return=representation",
    "handling=lenient; wait=10",
    "respond-sync",
    "respond-asynchronously",
    "x-respond-async",
    "respond async",
    "respond_async",
    "respond-async-",
    "foo=respond-async",
    "foo; respond-async",
    "foo; bar=respond-async",
    'foo="respond-async"',
    'foo="; respond-async"',
    'foo="a, respond-async, b"',
    r'foo="a \", respond-async, b"',
    '"respond-async"',
    "\xe9, \xff",
]


@pytest.mark.parametrize("prefer", ASYNCHRONOUS)
def test_whoever_prefers_respond_async_does_not_wait(customer: Customer, prefer: str) -> None:
    accepted = customer.accept(prefer=prefer)

    assert_accepted(accepted)
    assert customer.ending(accepted)["status"] == "settled"


@pytest.mark.parametrize("prefer", SYNCHRONOUS)
def test_any_other_preference_is_ignored(customer: Customer, prefer: str) -> None:
    answer = customer.accept(prefer=prefer)

    assert answer.status == 200, answer
    assert list(answer.json()) == ["imageUrl", "mimeType", "creditsCharged", "durationMs"]
    picture_at(answer.json()["imageUrl"])


def test_a_preference_may_stand_in_the_second_of_two_headers(customer: Customer) -> None:
    headers = [
        ("Authorization", f"Bearer {customer.key}"),
        ("Content-Type", TEXT),
        ("Prefer", "wait=10"),
        ("prefer", "respond-async"),
    ]

    accepted = fetch(customer.stack.url + GENERATE, "POST", b'{"prompt": "A fox"}', headers)

    assert_accepted(accepted)
    assert customer.ending(accepted)["status"] == "settled"


def test_a_page_of_any_origin_may_prefer_and_may_read_where_to_look(
    stack: LocalStack, customer: Customer
) -> None:
    origin = ("Origin", "https://shop.example")
    asks = [
        origin,
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization, content-type, prefer"),
    ]
    headers = {"Origin": origin[1], "Prefer": "respond-async"}

    allowed = fetch(stack.url + GENERATE, "OPTIONS", headers=asks).headers
    accepted = customer.post(b'{"prompt": "A fox"}', headers=headers)

    assert "prefer" in allowed["access-control-allow-headers"].lower()
    exposed = accepted.headers["access-control-expose-headers"].lower()
    assert {"location", "preference-applied"} <= set(exposed.split(","))
    assert customer.ending(accepted)["status"] == "settled"


# What is refused


def assert_never_queued(stack: LocalStack, prompt: str) -> None:
    """A job that was accepted later is made, and the model was not asked for this one."""
    later = Customer(stack)
    assert later.ending(later.accept())["status"] == "settled"
    assert prompt not in prompts_sent(stack)
    later.leave()


def test_a_bad_request_is_a_bad_request_and_nothing_is_queued(
    stack: LocalStack, customer: Customer
) -> None:
    missing = customer.accept("")
    assert (missing.status, missing.json()["error"]) == (
        400,
        "Missing required field: prompt (string)",
    )
    assert_bad_request(customer.accept("Refused 400", aspectRatio="7:5"), "aspectRatio")
    assert_bad_request(customer.accept("Refused 400", idempotency_key="k" * 256))

    assert_nothing_is_left(customer)
    assert_never_queued(stack, "Refused 400")


def test_without_a_key_nothing_is_accepted(stack: LocalStack, customer: Customer) -> None:
    body = b'{"prompt": "Refused 401"}'
    headers = {"Prefer": "respond-async", "Content-Type": TEXT}

    without = fetch(stack.url + GENERATE, "POST", body, headers)
    wrong = customer.post(body, headers=headers | {"Authorization": f"Bearer {customer.key}0"})

    for answer in (without, wrong):
        assert answer.status == 401
        assert answer.json() == {"error": "Invalid or missing API key"}
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "location" not in answer.headers
    assert_nothing_is_left(customer)
    assert_never_queued(stack, "Refused 401")


def test_without_credits_nothing_is_accepted(stack: LocalStack) -> None:
    poor = Customer(stack, 4)

    answer = poor.accept("Refused 402")

    assert answer.status == 402
    assert answer.json() == {
        "error": "Insufficient credits",
        "creditsRequired": 5,
        "creditsRemaining": 4,
    }
    assert_nothing_is_left(poor, 4)
    assert_never_queued(stack, "Refused 402")


def test_a_body_over_64_kib_is_not_accepted(customer: Customer) -> None:
    padding = "x" * 64 * 1024
    body = json.dumps({"prompt": "Refused 413", "padding": padding}).encode()

    answer = customer.post(body, headers={"Prefer": "respond-async"})

    assert answer.status == 413
    assert_nothing_is_left(customer)
    assert_never_queued(customer.stack, "Refused 413")


def test_over_the_limit_of_the_minute_nothing_is_accepted(stack: LocalStack) -> None:
    def ask_thrice() -> tuple[Customer, list[Answer]]:
        slow = Customer(stack)
        slow.change_row("ACCOUNT", "SET rateLimit = :value", 2)
        return slow, [slow.accept(), slow.generate(), slow.accept("Refused 429")]

    slow, answers = within_one_minute(ask_thrice)

    assert [answer.status for answer in answers] == [202, 200, 429]
    assert_rate_limited(answers[2], 2)
    assert slow.ending(answers[0])["status"] == "settled"
    assert (slow.balance(), len(slow.history())) == (90, 2)
    assert_never_queued(stack, "Refused 429")


# Idempotency-Key


def test_a_repeated_202_needs_neither_credits_nor_a_place_in_the_minute(
    stack: LocalStack,
) -> None:
    prompt = "Asked for with the last credits"

    def ask_twice() -> tuple[Customer, list[Answer]]:
        poor = Customer(stack, 5)
        poor.change_row("ACCOUNT", "SET rateLimit = :value", 1)
        with model_that_waits(stack, prompt):
            return poor, [poor.accept(prompt, idempotency_key="order-1") for _ in range(2)]

    poor, (first, again) = within_one_minute(ask_twice)

    assert_accepted(first)
    assert_accepted(again, repeated=True)
    assert poor.ending(first)["status"] == "settled"
    assert poor.balance() == 0


def test_a_key_that_comes_again_repeats_its_202_and_costs_nothing(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = "Asked for thrice, asynchronously"
    with model_that_waits(stack, prompt):
        first = customer.accept(prompt, idempotency_key="order-1")
        again = [customer.accept(prompt, idempotency_key="order-1") for _ in range(2)]
        balance_meanwhile = customer.balance()

    assert_accepted(first)
    for answer in again:
        assert_accepted(answer, repeated=True)
        assert answer.body == first.body
        assert answer.headers["location"] == first.headers["location"]
    assert balance_meanwhile == 95
    assert customer.ending(first)["status"] == "settled"
    assert prompts_sent(stack).count(prompt) == 1
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_a_settled_generation_answers_its_key_with_the_stored_200(customer: Customer) -> None:
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


def test_an_image_that_was_waited_for_answers_its_key_on_the_asynchronous_route(
    customer: Customer,
) -> None:
    first = customer.generate(idempotency_key="order-1")

    assert_replayed(customer.accept(idempotency_key="order-1"), first)
    assert customer.balance() == 95


def test_after_a_refund_the_key_is_free_for_another_job(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = "Refused once, asynchronously"
    with model(stack, lambda request: refusal_of(request, prompt)):
        first = customer.accept(prompt, idempotency_key="order-1")
        assert customer.ending(first)["status"] == "refunded"

    second = customer.accept(prompt, idempotency_key="order-1")

    assert_accepted(second)
    assert second.json()["id"] != first.json()["id"]
    assert customer.ending(second)["status"] == "settled"
    assert customer.ending(first)["status"] == "refunded"
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def refusal_of(request: Received, prompt: str) -> ModelAnswer | None:
    refused = prompt_of(request) == prompt
    return model_says({}, "IMAGE_SAFETY") if refused else plain_picture(request)


def test_a_key_that_comes_again_with_another_body_is_refused(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = "The body that came first"
    with model_that_waits(stack, prompt):
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


def test_a_key_that_somebody_waits_for_is_in_flight_on_the_asynchronous_route(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = "Somebody waits for it"
    with model_that_waits(stack, prompt) as released, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(customer.generate, prompt, idempotency_key="order-1")
        wait_for_the_model(stack, prompt)
        meanwhile = customer.accept(prompt, idempotency_key="order-1")
        released.set()

    assert_in_flight(meanwhile)
    assert waiting.result().status == 200
    assert_replayed(customer.accept(prompt, idempotency_key="order-1"), waiting.result())
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_a_key_that_nobody_waits_for_is_in_flight_on_the_synchronous_route(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = "Nobody waits for it"
    with model_that_waits(stack, prompt):
        accepted = customer.accept(prompt, idempotency_key="order-1")
        meanwhile = customer.generate(prompt, idempotency_key="order-1")

    assert_in_flight(meanwhile)
    assert customer.ending(accepted)["status"] == "settled"
    replayed = customer.generate(prompt, idempotency_key="order-1")
    assert replayed.headers["idempotent-replayed"] == "true"
    assert replayed.json()["imageUrl"] == accepted.json()["imageUrl"]
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def assert_in_flight(answer: Answer) -> None:
    assert answer.status == 409, answer
    assert set(answer.json()) == {"error"}
    assert answer.headers["x-error-code"] == "generation_in_flight"
    assert positive(answer.headers["retry-after"]) <= 30


def test_of_twelve_requests_at_once_with_one_key_one_is_charged(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = "Wanted by twelve, asynchronously"
    together = threading.Barrier(12)

    def ask(_: int) -> Answer:
        together.wait(timeout=10)
        return customer.accept(prompt, idempotency_key="order-1")

    with model_that_waits(stack, prompt), ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))

    charged = [answer for answer in answers if answer.headers["x-credits-charged"] == "5"]
    assert len(charged) == 1
    assert_accepted(charged[0])
    for answer in answers:
        if answer is not charged[0]:
            assert_accepted(answer, repeated=True)
            assert answer.body == charged[0].body
    assert customer.ending(charged[0])["status"] == "settled"
    assert prompts_sent(stack).count(prompt) == 1
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_two_organisations_may_use_the_same_key(stack: LocalStack) -> None:
    one, other = Customer(stack), Customer(stack)

    accepted = [each.accept(idempotency_key="order-1") for each in (one, other)]

    for each, answer in zip((one, other), accepted, strict=True):
        assert_accepted(answer)
        assert each.organisation in answer.json()["imageUrl"]
        assert each.ending(answer)["status"] == "settled"
        assert each.balance() == 95
