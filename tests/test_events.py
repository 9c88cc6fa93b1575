"""The sample events: each has the form that AWS sends, and the outcome that its name says."""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from handlers.http import Event
from infra.local.functions import LambdaContext, LocalFunction
from infra.local.gateway import Gateway
from infra.local.http_server import Request
from infra.local.samples import SAMPLE_CREDITS, open_sample_accounts
from infra.local.stack import LocalStack
from infra.template import PROJECT_ROOT, Route, Template
from tests.customer import plain_picture

EVENTS = {path.stem: path for path in (PROJECT_ROOT / "infra" / "events").glob("*.json")}


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0) as running:
        assert running.stand_in is not None
        running.stand_in.answer_with(plain_picture)
        open_sample_accounts(running)
        yield running


def event(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(EVENTS[name].read_text(encoding="utf-8"))
    return found


def invoke(name: str) -> Any:
    """The result of the function that has the event's route, queue or schedule."""
    return invoke_with(event(name))


def invoke_with(found: dict[str, Any]) -> Any:
    """The same, of an event that the caller changed."""
    function = next(
        each
        for each in Template.from_file().functions()
        if found.get("routeKey") in {f"{one.method} {one.path}" for one in each.routes}
        or ("Records" in found and each.queues)
        or (PERIODS_S.get(name_of_rule(found)) in each.schedules_s)
    )
    module, _, attribute = function.handler.rpartition(".")
    handler = getattr(importlib.import_module(module), attribute)
    return LocalFunction(function.name, handler, function.timeout_s).invoke(found)


PERIODS_S = {"every-minute": 60, "every-day": 86_400}


def name_of_rule(found: Mapping[str, Any]) -> str:
    """The rule of EventBridge that sent a scheduled event; empty for any other event."""
    return str(found.get("resources", [""])[0]).rpartition("/")[2]


REFUSED = {
    "message": "Content policy violation",
    "type": "invalid_request_error",
    "param": None,
    "code": "content_policy_violation",
}
OUTCOMES: Mapping[str, tuple[int, Mapping[str, object]]] = {
    "generate": (200, {"mimeType": "image/png", "creditsCharged": 5}),
    "generate-accepted": (202, {"status": "reserved", "creditsCharged": 5}),
    "generate-missing-prompt": (400, {"error": "Missing required field: prompt (string)"}),
    "generate-bad-key": (401, {"error": "Invalid or missing API key"}),
    "generate-insufficient-credits": (402, {"creditsRequired": 5, "creditsRemaining": 0}),
    "generate-refunded": (500, {"message": "Content policy violation"}),
    "images": (200, {"output_format": "png"}),
    "images-refused": (400, {"error": REFUSED}),
    "models": (200, {"object": "list"}),
    "credits-bad-key": (401, {"error": "Invalid or missing API key"}),
    "generation-not-found": (404, {"error": "Not found"}),
    "usage": (200, {"month": "2026-11"}),
    "healthz": (200, {"status": "ok"}),
}


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("name", OUTCOMES)
def test_an_event_has_the_outcome_that_its_name_says(name: str) -> None:
    status, fields = OUTCOMES[name]

    answer = invoke(name)

    assert answer["statusCode"] == status
    assert fields.items() <= json.loads(answer["body"]).items()


@pytest.mark.usefixtures("stack")
def test_an_image_costs_five_of_the_sample_credits_and_appears_in_the_history() -> None:
    before = credits_left()
    assert before <= SAMPLE_CREDITS
    invoke("generate")
    assert credits_left() == before - 5
    assert 1 <= len(json.loads(invoke("history")["body"])["generations"]) <= 2


SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "lower-case": str.lower,
    "Title-Case": str.title,
    "UPPER-CASE": str.upper,
}


@pytest.mark.usefixtures("stack")
def test_header_names_count_in_any_case_and_one_key_charges_once() -> None:
    """``sam local start-api`` sends Title-Case, and a client's retry may come another way."""
    before = credits_left()

    answers = [invoke_with(with_key("order-7", spelling)) for spelling in SPELLINGS.values()]

    assert [answer["statusCode"] for answer in answers] == [200] * len(SPELLINGS)
    assert len({answer["body"] for answer in answers}) == 1
    assert credits_left() == before - 5


def with_key(key: str, spelling: Callable[[str], str]) -> dict[str, Any]:
    """The sample request for an image with an Idempotency-Key, its header names spelled so."""
    found = event("generate")
    headers = {**found["headers"], "idempotency-key": key}
    return {**found, "headers": {spelling(name): value for name, value in headers.items()}}


def credits_left() -> int:
    return int(json.loads(invoke("credits")["body"])["credits"])


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_two_spellings_of_a_header_are_one_header_with_two_values(spelling: str) -> None:
    headers = {SPELLINGS[spelling]("prefer"): "wait=5", "pReFeR": "respond-async"}
    found = with_key(f"order-{spelling}", str.lower)

    answer = invoke_with({**found, "headers": {**found["headers"], **headers}})

    assert answer["statusCode"] == 202


@pytest.mark.usefixtures("stack")
def test_the_events_without_a_route_find_nothing_to_do() -> None:
    assert set(invoke("reconcile").values()) == {0}
    assert invoke("audit") == {"organisations": 3, "findings": 0, "unfinished": 0}
    assert invoke("worker-ended") == {"batchItemFailures": []}


def test_every_event_is_tested() -> None:
    assert set(EVENTS) == {
        *(*OUTCOMES, "credits", "history"),
        *("reconcile", "audit", "worker-ended"),
    }


@pytest.mark.parametrize("name", sorted({*OUTCOMES, "credits", "history"}))
def test_an_event_has_the_fields_that_the_gateway_sends(name: str) -> None:
    sample = event(name)
    received: list[Event] = []

    def remember(real: Event, _context: LambdaContext) -> object:
        received.append(real)
        return {"statusCode": 200, "body": ""}

    route = Route(*sample["routeKey"].split())
    Gateway([(route, LocalFunction("any", remember, 5))]).respond(
        Request(
            method=sample["requestContext"]["http"]["method"],
            target="?".join(filter(None, (sample["rawPath"], sample["rawQueryString"]))),
            headers=tuple(sample["headers"].items()),
            body=sample.get("body", "").encode(),
            source_ip="127.0.0.1",
        )
    )

    assert _shape(received[0]) == _shape(sample)


def _shape(of: Any) -> Any:
    """The names and types of the fields."""
    if isinstance(of, Mapping):
        return {name: _shape(value) for name, value in of.items()}
    return type(of)
