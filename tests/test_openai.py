"""OpenAI's Images API: what a request may say, what it gets, and what it costs."""

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from handlers.dependencies import Dependencies
from handlers.generate import respond
from handlers.http import failure_of, success
from infra.local.stack import LocalStack
from lib.deadline import STORAGE_CALL_S, Deadline
from lib.errors import (
    BodyTooLarge,
    Busy,
    ContentRejected,
    GenerationInFlight,
    IdempotencyKeyReused,
    ImageDeleted,
    InsufficientCredits,
    KeyBudgetExhausted,
    ModelOverloaded,
    ModelTimedOut,
    ModelUnavailable,
    NoImageReturned,
    OrganisationSuspended,
    OutcomePending,
    RateLimited,
    ServiceError,
    ServiceUnavailable,
    StorageFailed,
    Unauthorized,
)
from lib.generation import Finished
from lib.http.openai import MAX_INLINE_PNG_BYTES, image_of, images_body
from lib.http.openai_request import parse_images_request
from lib.settings import DEFAULT_MODEL, Settings
from tests.customer import (
    IMAGES,
    MODELS,
    Customer,
    Reply,
    assert_replayed,
    bucket_refuses,
    fetch,
    picture_at,
    prompts_sent,
    scripted_stack,
)
from tests.engines import Engine
from tests.stacks import STACKS
from tests.world import World

LAMBDA_RESPONSE_BYTES = 6 * 1024 * 1024


@pytest.fixture(scope="module", params=STACKS)
def stack(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    with scripted_stack(request) as running:
        yield running


def draw(customer: Customer, key: str = "", /, **fields: object) -> Reply:
    headers = {"Authorization": f"Bearer {customer.key}", "Content-Type": "application/json"}
    if key:
        headers["Idempotency-Key"] = key
    body = json.dumps({"prompt": "A fox", **fields}).encode()
    return fetch(customer.stack.url + IMAGES, "POST", body, headers)


def png_of(answer: Reply) -> bytes:
    ((name, text),) = answer.json()["data"][0].items()
    assert name == "b64_json"
    return base64.b64decode(text, validate=True)


def said(answer: Reply) -> dict[str, Any]:
    """The error of an answer in OpenAI's form."""
    error: dict[str, Any] = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    return error


SIZES = {
    "1024x1024": "1:1",
    "256x256": "1:1",
    "1792x1024": "16:9",
    "1024x1792": "9:16",
    "1536x1024": "3:2",
    "1024x1536": "2:3",
    "3840x2160": "16:9",
    "2560x1080": "21:9",
    "106x100": "1:1",
    "1x1": "1:1",
    "auto": "1:1",
}


@pytest.mark.parametrize(("size", "ratio"), SIZES.items())
def test_a_size_chooses_the_nearest_ratio(size: str, ratio: str) -> None:
    body = json.dumps({"prompt": "A fox", "size": size}).encode()
    assert parse_images_request(body).aspect_ratio == ratio


REFUSED: list[tuple[str, object]] = [
    *(("size", size) for size in ("107x100", "100x300", "0x10", "1024", "1024X1024", "big", 7, "")),
    *(("n", n) for n in (0, 2, 1.5, "1", True)),
    *(("response_format", form) for form in ("jpeg", "", 7)),
    *(("output_format", form) for form in ("webp", "jpeg", "gif", "svg")),
    *(
        ("stream", True),
        ("stream", 0),
        ("background", "transparent"),
        ("seed", 7),
        ("partial_images", 1),
    ),
    *(("output_compression", 50), ("aspect_ratio", "16:9"), ("prompt", ""), ("prompt", 7)),
    *((name, 7) for name in ("model", "quality", "style", "moderation", "user")),
]


def test_a_field_that_would_change_the_picture_is_refused_by_name(customer: Customer) -> None:
    drawn = len(prompts_sent(customer.stack))
    for name, value in REFUSED:
        answer = draw(customer, **{name: value})
        assert answer.status == 400, (name, value)
        assert said(answer)["param"] == name
        assert name in said(answer)["message"]
        assert said(answer)["type"] == "invalid_request_error"
        assert answer.headers["x-credits-charged"] == "0"
        assert answer.headers["x-should-retry"] == "false"
    assert customer.balance() == 100
    assert len(prompts_sent(customer.stack)) == drawn


IGNORED = {
    "n": 1,
    "output_format": "png",
    "background": "opaque",
    "stream": False,
    "user": "u-1",
    "quality": "hd",
    "style": "vivid",
    "moderation": "low",
    "safety_identifier": "s-1",
}


@pytest.mark.parametrize("fields", [IGNORED, dict.fromkeys([*IGNORED, "size", "model"])], ids=str)
def test_fields_of_openai_that_change_nothing_are_accepted(
    customer: Customer, fields: dict[str, object]
) -> None:
    answer = draw(customer, **fields)

    assert answer.status == 200, answer
    assert set(answer.json()) == {"created", "data", "output_format"}
    assert picture_at(answer.json()["data"][0]["url"]).size[0] > 0
    assert answer.headers["x-credits-charged"] == "5"
    assert answer.headers["x-request-id"]
    generation = customer.get("/api/v1/generations").json()["generations"][0]
    assert answer.json()["created"] == int(generation["id"]) // 1000
    assert customer.balance() == 95


@pytest.mark.parametrize(
    ("model", "asked", "form"),
    [
        (None, None, "url"),
        ("dall-e-3", None, "url"),
        ("gpt-image-2", None, "b64_json"),
        ("gpt-image-2", "url", "url"),
        ("dall-e-3", "b64_json", "b64_json"),
    ],
)
def test_the_model_s_name_decides_the_form_unless_the_request_does(
    customer: Customer, model: object, asked: str | None, form: str
) -> None:
    answer = draw(customer, model=model, response_format=asked)
    assert list(answer.json()["data"][0]) == [form]


def test_a_retry_with_a_key_replays_in_either_form_and_charges_once(customer: Customer) -> None:
    first = draw(customer, "a", response_format="b64_json")
    again = draw(customer, "a", response_format="b64_json")
    as_url = draw(customer, "a", response_format="url")
    natively = customer.generate("A fox", idempotency_key="a")

    assert_replayed(again, first)
    stored = fetch(as_url.json()["data"][0]["url"])
    assert stored.body == png_of(first)
    assert natively.json()["imageUrl"] == as_url.json()["data"][0]["url"]
    assert customer.balance() == 95
    assert draw(customer, "a", prompt="Another fox").status == 422


def test_a_retry_whose_image_was_deleted_is_refused_in_either_form(customer: Customer) -> None:
    first = draw(customer, "a")
    created = customer.get("/api/v1/generations").json()["generations"][0]["id"]
    path = f"{customer.stack.url}/api/v1/generations/{created}"
    assert fetch(path, "DELETE", None, {"Authorization": f"Bearer {customer.key}"}).status == 204

    for form in ("url", "b64_json"):
        answer = draw(customer, "a", response_format=form)
        assert (answer.status, said(answer)["code"]) == (422, "image_deleted")
    assert first.status == 200


def test_a_replay_that_can_not_read_the_image_costs_nothing_and_may_be_retried(
    customer: Customer,
) -> None:
    first = draw(customer, "a", response_format="b64_json")
    with bucket_refuses(customer.stack, "GetObject"):
        failed = draw(customer, "a", response_format="b64_json")
    again = draw(customer, "a", response_format="b64_json")

    assert (failed.status, said(failed)["code"]) == (500, "service_unavailable")
    assert failed.headers["x-should-retry"] == "true"
    assert failed.headers["x-credits-charged"] == "0"
    assert_replayed(again, first)
    assert customer.balance() == 95


def test_a_replay_without_the_time_to_read_the_image_may_be_retried(moto_engine: Engine) -> None:
    with World(moto_engine) as world, world.observe() as observation:
        paid = world.request(world.process(), "a")
        order = replace(world.order("a"), wants_png=True)
        process = world.process()
        with pytest.raises(ServiceUnavailable):
            process.generations.generate(order, world.deadline(STORAGE_CALL_S - 1), observation)
        assert {call.service for call in process.network.calls} == {"dynamodb"}
        again = process.generations.generate(order, world.deadline(), observation)

        assert isinstance(paid, Finished)
        assert isinstance(again, Finished)
        assert (again.image_url, again.replayed) == (paid.image_url, True)
        assert again.png == paid.png
        assert world.balance() == 95


def test_a_replay_whose_object_expired_is_no_longer_there(customer: Customer) -> None:
    """A bucket may delete old images by itself; a URL would then lead nowhere."""
    draw(customer, "a")
    (stored,) = (
        each["Key"]
        for each in customer.stack.aws.client("s3").list_objects_v2(
            Bucket=customer.stack.bucket, Prefix=f"generated/gemini/{customer.organisation}/"
        )["Contents"]
    )
    customer.stack.aws.client("s3").delete_object(Bucket=customer.stack.bucket, Key=stored)

    answer = draw(customer, "a", response_format="b64_json")

    assert (answer.status, said(answer)["code"]) == (422, "image_deleted")


def test_this_route_knows_no_preference_for_an_answer_later(customer: Customer) -> None:
    headers = {"Authorization": f"Bearer {customer.key}", "Prefer": "respond-async"}
    answer = fetch(customer.stack.url + IMAGES, "POST", b'{"prompt": "A fox"}', headers)
    assert answer.status == 200
    assert "preference-applied" not in answer.headers


def test_the_largest_image_in_base64_fits_into_lambda_s_response_and_a_larger_one_is_its_url() -> (
    None
):
    largest = image_of("https://images.example/a.png", bytes(MAX_INLINE_PNG_BYTES), as_base64=True)
    headers = {"X-Credits-Charged": "5", "Idempotent-Replayed": "true"}
    response = success(200, images_body(1_795_390_356, largest), "r" * 36, headers)
    larger = bytes(MAX_INLINE_PNG_BYTES + 1)

    assert len(json.dumps(response)) <= LAMBDA_RESPONSE_BYTES
    assert list(largest) == ["b64_json"]
    shown = image_of("https://images.example/a.png", larger, as_base64=True)
    assert shown == {"url": "https://images.example/a.png"}


ERRORS: list[tuple[ServiceError, int, str, str, str | None]] = [
    (Unauthorized(), 401, "invalid_api_key", "false", None),
    (InsufficientCredits(5, 2), 402, "insufficient_quota", "false", None),
    (KeyBudgetExhausted(5, 2), 402, "insufficient_quota", "false", None),
    (OrganisationSuspended(), 403, "organisation_suspended", "false", None),
    (GenerationInFlight(3), 409, "generation_in_flight", "true", "10"),
    (BodyTooLarge(65_536), 413, "body_too_large", "false", None),
    (IdempotencyKeyReused(), 422, "idempotency_key_reused", "false", None),
    (ImageDeleted(), 422, "image_deleted", "false", None),
    (RateLimited(60, 30), 429, "rate_limit_exceeded", "true", "30"),
    (Busy(2), 429, "rate_limit_exceeded", "true", "2"),
    (ContentRejected(), 400, "content_policy_violation", "false", None),
    (NoImageReturned(), 500, "no_image", "false", None),
    (ModelTimedOut(), 500, "model_timeout", "true", None),
    (ModelOverloaded(7), 503, "model_overloaded", "true", "7"),
    (ModelUnavailable(), 500, "model_unavailable", "false", None),
    (StorageFailed(), 500, "storage_failed", "true", None),
    (ServiceUnavailable(), 500, "service_unavailable", "true", None),
    (OutcomePending("1795390356254"), 500, "outcome_pending", "false", "60"),
]


def test_an_error_has_the_status_that_makes_the_sdks_do_the_right_thing() -> None:
    for error, status, code, should_retry, retry_after in ERRORS:
        answer = failure_of({"routeKey": f"POST {IMAGES}"})(error, "a-request", {})
        told = json.loads(answer["body"])["error"]
        assert (answer["statusCode"], told["code"]) == (status, code)
        assert answer["headers"]["X-Should-Retry"] == should_retry
        assert answer["headers"].get("Retry-After") == retry_after
        assert answer["headers"]["X-Error-Code"] == error.code
        assert told["param"] is None
        assert "respond-async" not in answer["body"]
    assert "2 are left" in failure_of({"routeKey": f"POST {IMAGES}"})(ERRORS[1][0], "", {})["body"]


def test_the_key_is_checked_before_the_body(stack: LocalStack) -> None:
    stranger = fetch(stack.url + IMAGES, "POST", b"{", {"Authorization": "Bearer no"})
    assert (stranger.status, said(stranger)["code"]) == (401, "invalid_api_key")


def test_a_bug_says_nothing_about_itself() -> None:
    class Broken:
        def verify(self, _authorization: str | None) -> None:
            raise RuntimeError("a secret detail")

    service = Dependencies(Settings("table", "bucket", "https://here", "orgs/", "gemini-key"))
    service.__dict__["key_verifier"] = Broken()
    with service.telemetry.observe("a-request") as observation:
        event = {"routeKey": f"POST {IMAGES}", "headers": {}}
        answer = respond(service, event, Deadline(10), observation)

    assert answer["statusCode"] == 500
    assert json.loads(answer["body"])["error"]["type"] == "server_error"
    assert "secret" not in answer["body"]
    assert answer["headers"]["X-Credits-Charged"] == "0"


def test_the_configured_model_is_listed_and_no_other(customer: Customer) -> None:
    model = {"id": DEFAULT_MODEL, "object": "model", "created": 0, "owned_by": "google"}

    assert customer.get(MODELS).json() == {"object": "list", "data": [model]}
    assert customer.get(f"{MODELS}/{DEFAULT_MODEL}").json() == model
    for path in (f"{MODELS}/dall-e-3", "/v1/chat/completions"):
        answer = customer.get(path)
        assert (answer.status, said(answer)["code"]) == (404, "not_found")
    stranger = fetch(customer.stack.url + MODELS)
    assert (stranger.status, said(stranger)["code"]) == (401, "invalid_api_key")


def test_a_wrong_method_is_a_405_in_openai_s_form(stack: LocalStack) -> None:
    answer = fetch(stack.url + IMAGES)
    assert (answer.status, said(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
