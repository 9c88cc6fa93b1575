"""From a prompt to picture bytes or one of our errors, over real sockets and the real SDK."""

import base64
import gc
import json
import logging
import re
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.local.gemini_stand_in import FAILURES, GeminiStandIn, ModelRequest, ModelResponse
from lib.deadline import Deadline
from lib.errors import (
    ContentRejected,
    GenerationFailed,
    ModelBudgetExhausted,
    ModelOverloaded,
    ModelTimedOut,
    ModelUnavailable,
    NoImageReturned,
)
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.gemini import Gemini
from lib.picture.transport import MAX_RESPONSE_BYTES, MODEL_CONNECT_S

MODEL = "gemini-3.1-flash-lite-image"
KEY = "AIza-distinctive-key-of-the-operator"
PLENTY_S = 30.0
SHORT_S = 0.3
OVERSHOOT_S = 0.5  # measured: 0.01; the rest is for busy machines

# What becomes of each failure of the stand-in, and how many requests it takes: a GenerationFailed,
# or bytes, which lib.picture.png judges.
OUTCOMES: dict[str, tuple[type[GenerationFailed] | type[bytes], int]] = {
    "blocked-prompt": (ContentRejected, 1),
    "safety": (ContentRejected, 1),
    "recitation": (ContentRejected, 1),
    "blocklist": (ContentRejected, 1),
    "prohibited-content": (ContentRejected, 1),
    "spii": (ContentRejected, 1),
    "image-safety": (ContentRejected, 1),
    "image-prohibited": (ContentRejected, 1),
    "image-recitation": (ContentRejected, 1),
    "safety-with-image": (ContentRejected, 1),
    "text-only": (NoImageReturned, 1),
    "no-image": (NoImageReturned, 1),
    "image-other": (NoImageReturned, 1),
    "other": (NoImageReturned, 1),
    "max-tokens": (NoImageReturned, 1),
    "unknown-finish": (NoImageReturned, 1),
    "numeric-finish": (NoImageReturned, 1),
    "thought-only": (NoImageReturned, 1),
    "empty-body": (NoImageReturned, 1),
    "empty-object": (NoImageReturned, 1),
    "empty-array": (NoImageReturned, 1),
    "not-json": (NoImageReturned, 1),
    "bad-base64": (NoImageReturned, 1),
    "endless": (NoImageReturned, 1),
    "thought-first": (bytes, 1),
    "other-with-image": (bytes, 1),
    "png": (bytes, 1),
    "webp": (bytes, 1),
    "wrong-mime": (bytes, 1),
    "cut-base64": (bytes, 1),
    "cut-image": (bytes, 1),
    "not-an-image": (bytes, 1),
    "wrong-shape": (bytes, 1),
    "bomb": (bytes, 1),
    "bad-key": (ModelUnavailable, 1),
    "unauthorized": (ModelUnavailable, 1),
    "forbidden": (ModelUnavailable, 1),
    "not-found": (ModelUnavailable, 1),
    "no-billing": (ModelUnavailable, 1),
    "bad-request": (NoImageReturned, 1),
    "redirect": (ModelUnavailable, 1),
    "quota": (ModelOverloaded, 1),
    "quota-short": (ModelOverloaded, 2),
    "quota-bare": (ModelOverloaded, 1),
    "quota-sentence": (ModelOverloaded, 2),
    "quota-zero": (ModelBudgetExhausted, 1),
    "spending-cap": (ModelBudgetExhausted, 1),
    "spend-rate": (ModelBudgetExhausted, 1),
    "prepaid-depleted": (ModelBudgetExhausted, 1),
    "payment-required": (ModelBudgetExhausted, 1),
    "unbilled": (ModelUnavailable, 1),
    "cancelled": (ModelOverloaded, 2),
    "aborted": (ModelOverloaded, 2),
    "too-early": (ModelOverloaded, 2),
    "internal": (ModelOverloaded, 2),
    "bad-gateway": (ModelOverloaded, 2),
    "overloaded": (ModelOverloaded, 2),
    "overloaded-once": (bytes, 2),
    "deadline": (ModelTimedOut, 2),
    "slow": (ModelTimedOut, 1),
    "reset": (ModelOverloaded, 2),
    "reset-once": (bytes, 2),
    "hang": (ModelTimedOut, 1),
    "hang-after-headers": (ModelTimedOut, 1),
    "drip": (ModelTimedOut, 1),
    "drip-headers": (ModelTimedOut, 1),
}
NEVER_IN_TIME = ("slow", "hang", "hang-after-headers", "drip", "drip-headers")

Make = Callable[..., Gemini]


@pytest.fixture(scope="module")
def google() -> Iterator[GeminiStandIn]:
    with GeminiStandIn(fixed_picture=True) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed_certificate(tmp_path_factory.mktemp("tls") / "certificate.pem")


@pytest.fixture
def make(google: GeminiStandIn, authority: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes rooms that speak to the stand-in, and closes them."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", google.url)
    # One certificate to trust instead of the system's hundred, which take longer than a test.
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    made: list[Gemini] = []

    def build(
        api_key: Callable[[], str] = lambda: KEY,
        model: str = MODEL,
        sleep: Callable[[float], None] = lambda _: None,
    ) -> Gemini:
        made.append(Gemini(api_key, model, sleep))
        return made[-1]

    yield build
    google.answer_with(None)
    for gemini in made:
        gemini.close()


def draw(gemini: Gemini, prompt: str = "A red fox", seconds: float = PLENTY_S) -> bytes:
    return gemini.generate(prompt, AspectRatio.LANDSCAPE_16_9, Deadline(seconds))


def prompts(google: GeminiStandIn) -> list[str]:
    """The text of every request that arrived, oldest first."""
    bodies = [request.body for request in google.requests if isinstance(request.body, dict)]
    return [body["contents"][0]["parts"][0]["text"] for body in bodies]


def always(answer: ModelResponse) -> Callable[[ModelRequest], ModelResponse]:
    return lambda _: answer


def refusal(code: int, body: object) -> ModelResponse:
    return ModelResponse(code, json.dumps(body).encode())


def answer_of(*parts: object, finish_reason: str = "STOP") -> ModelResponse:
    candidate = {"content": {"parts": list(parts)}, "finishReason": finish_reason}
    return refusal(200, {"candidates": [candidate]})


def picture_part(data: bytes, **more: object) -> dict[str, object]:
    encoded = base64.b64encode(data).decode()
    return {"inlineData": {"mimeType": "image/jpeg", "data": encoded}} | more


def test_every_failure_that_the_stand_in_knows_is_classified_here() -> None:
    assert set(OUTCOMES) == set(FAILURES)


@pytest.mark.parametrize("name", [name for name in OUTCOMES if name not in NEVER_IN_TIME])
def test_a_failure_ends_as_its_error_after_so_many_requests(
    make: Make, google: GeminiStandIn, name: str
) -> None:
    kind, requests = OUTCOMES[name]
    prompt = f"Outcome of [fail:{name}]"

    if issubclass(kind, GenerationFailed):
        with pytest.raises(GenerationFailed) as failed:
            draw(make(), prompt)
        assert type(failed.value) is kind
    else:
        assert draw(make(), prompt)

    assert prompts(google).count(prompt) == requests


def test_a_picture_is_handed_on_as_the_bytes_that_came(make: Make, google: GeminiStandIn) -> None:
    google.answer_with(always(answer_of(picture_part(b"\x89PNG and so on", thoughtSignature="A"))))

    assert draw(make()) == b"\x89PNG and so on"


def test_the_last_picture_that_is_no_thought_is_taken(make: Make, google: GeminiStandIn) -> None:
    parts = (
        picture_part(b"first thought", thought=True),
        {"text": "Here it is."},
        {"text": 7},
        picture_part(b"first"),
        picture_part(b"last", thought=False),
        picture_part(b"afterthought", thought=True),
        {"inlineData": {"mimeType": "image/png", "data": ""}},
    )
    google.answer_with(always(answer_of(*parts)))

    assert draw(make()) == b"last"


@pytest.mark.parametrize("ratio", list(AspectRatio))
def test_the_request_on_the_wire_is_exactly_this(
    make: Make, google: GeminiStandIn, ratio: AspectRatio
) -> None:
    make().generate("A red fox: ünïcode 🦊", ratio, Deadline(21.5))

    received = google.requests[-1]
    assert received.path == f"/v1beta/models/{MODEL}:generateContent"
    assert received.body == {
        "contents": [{"parts": [{"text": "A red fox: ünïcode 🦊"}], "role": "user"}],
        "generationConfig": {
            "responseModalities": ["IMAGE"],
            "imageConfig": {"aspectRatio": ratio.value},
        },
    }
    headers = received.headers
    assert headers["x-goog-api-key"] == KEY
    assert headers["content-type"] == "application/json"
    assert headers["x-server-timeout"] == "22"
    assert headers["accept-encoding"] == "identity"
    assert "cookie" not in headers
    assert "authorization" not in headers


def test_google_is_never_told_a_timeout_that_it_finds_too_short(
    make: Make, google: GeminiStandIn
) -> None:
    assert draw(make(), seconds=3)

    assert google.requests[-1].headers["x-server-timeout"] == "10"


@pytest.mark.parametrize("model", ["gemini-2.0-flash-preview-image-generation"])
def test_a_model_without_an_image_config_is_told_the_ratio_in_the_prompt(
    make: Make, google: GeminiStandIn, model: str
) -> None:
    assert draw(make(model=model), "A red fox")

    assert prompts(google)[-1].startswith("A red fox\n\n")
    assert "16:9" in prompts(google)[-1]


def test_a_model_that_is_not_known_is_sent_an_image_config(
    make: Make, google: GeminiStandIn
) -> None:
    assert draw(make(model="gemini-9-image"), "A red fox")

    assert '"imageConfig": {"aspectRatio": "16:9"}' in json.dumps(google.requests[-1].body)


@pytest.mark.parametrize("model", ["", "models/x", "../x", "a?b", "a b", "a" * 200])
def test_what_can_not_be_a_models_id_is_refused_when_the_room_is_made(
    make: Make, model: str
) -> None:
    with pytest.raises(ValueError, match="model's id"):
        make(model=model)


@pytest.mark.parametrize("name", NEVER_IN_TIME)
def test_the_deadline_holds_and_leaves_no_thread_and_no_connection(
    make: Make, google: GeminiStandIn, name: str
) -> None:
    gemini = make()
    draw(gemini)
    gc.collect()
    before = threading.active_count()

    kind, requests = OUTCOMES[name]
    assert issubclass(kind, GenerationFailed)
    prompt = f"Too late [fail:{name}]"

    began = time.monotonic()
    with pytest.raises(kind):
        draw(gemini, prompt, SHORT_S)

    assert SHORT_S <= time.monotonic() - began < SHORT_S + OVERSHOOT_S
    assert prompts(google).count(prompt) == requests
    assert eventually(lambda: threading.active_count() <= before)
    assert eventually(lambda: google.open_connections == 0)


def eventually(condition: Callable[[], bool]) -> bool:
    ends_at = time.monotonic() + 2
    while not condition() and time.monotonic() < ends_at:
        time.sleep(0.01)
    return condition()


def test_a_deadline_that_has_passed_sends_nothing(make: Make, google: GeminiStandIn) -> None:
    with pytest.raises(ModelTimedOut):
        draw(make(), "Passed already", 0)

    assert "Passed already" not in prompts(google)


def test_the_deadline_holds_against_a_handshake_that_hangs(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"https://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(ModelTimedOut):
            draw(make(), seconds=SHORT_S)

    assert time.monotonic() - began < SHORT_S + OVERSHOOT_S


def test_nothing_is_retried_with_less_than_ten_seconds_left(
    make: Make, google: GeminiStandIn
) -> None:
    waited: list[float] = []
    with pytest.raises(ModelOverloaded):
        draw(make(sleep=waited.append), "No time for two [fail:overloaded]", 10.1)

    assert prompts(google).count("No time for two [fail:overloaded]") == 1
    assert waited == []


@pytest.mark.parametrize(
    ("name", "least_s", "most_s"), [("overloaded", 0.2, 1.0), ("quota-short", 1.2, 2.0)]
)
def test_the_wait_before_the_retry_is_short_or_what_google_asks_for(
    make: Make, name: str, least_s: float, most_s: float
) -> None:
    waited: list[float] = []
    with pytest.raises(ModelOverloaded):
        draw(make(sleep=waited.append), f"[fail:{name}]")

    assert len(waited) == 1
    assert least_s <= waited[0] <= most_s


@pytest.mark.parametrize(("delay", "waits"), [("59s", 1), ("61s", 0)])
def test_nobody_waits_for_more_than_the_quota_of_a_minute(
    make: Make, google: GeminiStandIn, delay: str, waits: int
) -> None:
    google.answer_with(always(refusal(429, {"error": {"details": [{"retryDelay": delay}]}})))
    waited: list[float] = []

    with pytest.raises(ModelOverloaded):
        draw(make(sleep=waited.append), seconds=300)

    assert len(waited) == waits


@pytest.mark.parametrize(
    ("details", "retry_after_s"),
    [
        ([{"retryDelay": "34.28s"}], 35),
        ([{"reason": "RATE_LIMIT"}, {"retryDelay": "0s"}], 1),
        ([{"retryDelay": "999999s"}], 3600),
        ([{"retryDelay": "-5s"}], 60),
        ([{"retryDelay": "soon"}], 60),
        ([{"retryDelay": 34}], 60),
        ("34s", 60),
        ([], 60),
    ],
)
def test_a_quota_says_when_to_come_back(
    make: Make, google: GeminiStandIn, details: object, retry_after_s: int
) -> None:
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": details}}
    google.answer_with(always(refusal(429, body)))

    with pytest.raises(ModelOverloaded) as failed:
        draw(make(), seconds=9)

    assert failed.value.headers()["Retry-After"] == str(retry_after_s)


QUOTA = "You exceeded your current quota, please check your plan and billing details."
NO_BILLING = "generate_content_free_tier_requests"


def quota_of(limit: str) -> dict[str, object]:
    """A 429's body as discuss.ai.google.dev has it, for one metric with this limit."""
    sentence = f"{QUOTA}\n* Quota exceeded for metric: x/{NO_BILLING}, limit: {limit}, model: y"
    violation = {"quotaMetric": f"x/{NO_BILLING}", "quotaId": "PerDayPerProject-FreeTier"}
    details: list[object] = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "10s"},
    ]
    return {"message": f"{sentence}\nPlease retry in 10.689924287s.", "details": details}


BUDGETS: list[tuple[int, dict[str, object], str]] = [
    (429, quota_of("0"), "quota_zero"),
    (429, {"message": "limit: 0."}, "quota_zero"),
    (429, {"message": QUOTA, "details": [{"violations": [{"quotaValue": "0"}]}]}, "quota_zero"),
    (429, {"details": [{"violations": [7, {}, {"quotaValue": 0}]}, None]}, "quota_zero"),
    (429, {"details": [{"metadata": {"quota_limit_value": "0"}}]}, "quota_zero"),
    (429, {"message": "Your project has exceeded its monthly spending cap."}, "spend_limit"),
    (
        429,
        {"message": "Your billing account has exceeded its monthly spending cap. Retry in 5s."},
        "spend_limit",
    ),
    (
        429,
        {"message": "You exceeded your spend-based rate limit. Your spending rate"},
        "spend_limit",
    ),
    (429, {"message": "The spend limit of the tier is reached."}, "spend_limit"),
    (429, {"details": [{"reason": "SPENDING_LIMIT_EXCEEDED"}]}, "spend_limit"),
    (429, {"details": [{"reason": ["OTHER", "SPEND_CAP"]}]}, "spend_limit"),
    (429, {"message": "Your prepayment credits are depleted. Go on."}, "prepayment_depleted"),
    (429, {"message": "Your prepaid balance is exhausted."}, "prepayment_depleted"),
    (402, {"message": "Your prepayment credits are depleted."}, "payment_required"),
    (402, {"status": "RESOURCE_EXHAUSTED"}, "payment_required"),
    (402, {}, "payment_required"),
]


@pytest.mark.parametrize(("code", "error", "reason"), BUDGETS)
def test_a_budget_that_is_used_up_is_for_the_operator_and_not_waited_for(
    make: Make, google: GeminiStandIn, code: int, error: dict[str, object], reason: str
) -> None:
    google.answer_with(always(refusal(code, {"error": error})))
    before = len(google.requests)

    with pytest.raises(ModelBudgetExhausted) as failed:
        draw(make(sleep=pytest.fail), seconds=300)

    assert len(google.requests) == before + 1
    told = failed.value
    assert told.body()["message"] == "Image generation is unavailable"
    assert told.headers()["X-Error-Code"] == "model_budget_exhausted"
    assert told.headers()["X-Should-Retry"] == "false"
    assert "Retry-After" not in told.headers()
    assert not told.counts_against_limit
    assert told.log_fields() == {"reason": reason}


@pytest.mark.parametrize(
    "error",
    [
        quota_of("10"),
        quota_of("0.5"),
        quota_of("01"),
        {"message": QUOTA},
        {"details": [{"violations": [{"quotaValue": "250"}]}]},
        {"details": [{"violations": "0"}, {"violations": [{"quotaValue": None}]}]},
        {"message": "Resource has been exhausted (e.g. check quota)."},
    ],
)
def test_a_rate_that_is_used_up_is_no_budget(
    make: Make, google: GeminiStandIn, error: dict[str, object]
) -> None:
    google.answer_with(always(refusal(429, {"error": error})))

    with pytest.raises(ModelOverloaded):
        draw(make(), seconds=9)


@pytest.mark.parametrize(
    ("sentence", "details", "waits_s"),
    [
        ("Please retry in 7.65s.", [], 7.65),
        ("Quota exceeded.\nplease Retry in 650ms.", [], 0.65),
        ("Please retry in 11.767792953s.", [{"retryDelay": "11s"}], 11.767792953),
        ("Please retry in 5s.", [None, {"retryDelay": "6s"}], 6),
        ("Please retry in 0m59s.", None, 59),
        ("Please retry in 1m1s.", [], None),
        ("Please retry in 11h33m30.007739569s.", [], None),
        ("Please retry soon.", [], None),
        ("Please retry in s.", [], None),
    ],
)
def test_a_delay_that_stands_in_the_sentence_alone_is_read(
    make: Make, google: GeminiStandIn, sentence: str, details: object, waits_s: float | None
) -> None:
    google.answer_with(always(refusal(429, {"error": {"message": sentence, "details": details}})))
    waited: list[float] = []

    with pytest.raises(ModelOverloaded):
        draw(make(sleep=waited.append), seconds=300)

    if waits_s is None:
        assert waited == []
    else:
        assert waits_s + 0.2 <= waited[0] <= waits_s + 1.0


@pytest.mark.parametrize(
    ("sentence", "retry_after_s"),
    [("Please retry in 7.65s.", 8), ("Please retry in 11h33m30s.", 3600), ("Retry later.", 60)],
)
def test_a_sentence_says_when_to_come_back(
    make: Make, google: GeminiStandIn, sentence: str, retry_after_s: int
) -> None:
    google.answer_with(always(refusal(429, {"error": {"message": sentence}})))

    with pytest.raises(ModelOverloaded) as failed:
        draw(make(), seconds=9)

    assert failed.value.headers()["Retry-After"] == str(retry_after_s)


KEY_INVALID = {"reason": "API_KEY_INVALID"}


@pytest.mark.parametrize(
    ("status", "details", "kind"),
    [
        ("FAILED_PRECONDITION", None, ModelUnavailable),
        ("FAILED_PRECONDITION", [{"reason": ["LOCATION"]}], ModelUnavailable),
        ("FAILED_PRECONDITION", ["a sentence", 7, None, [], {"reason": 7}], ModelUnavailable),
        ("FAILED_PRECONDITION", {"reason": "LOCATION"}, ModelUnavailable),
        ("FAILED_PRECONDITION", "LOCATION", ModelUnavailable),
        (["INVALID_ARGUMENT"], [KEY_INVALID], ModelUnavailable),
        (None, [None, 7, "x", KEY_INVALID], ModelUnavailable),
        (7, [{"retryDelay": 7}, KEY_INVALID], ModelUnavailable),
        ("INVALID_ARGUMENT", [{"reason": ["OTHER", "API_KEY_EXPIRED"]}], ModelUnavailable),
        (
            "INVALID_ARGUMENT",
            [{"fieldViolations": [{"field": "generation_config.image_config"}]}],
            ModelUnavailable,
        ),
        (
            "INVALID_ARGUMENT",
            [{"fieldViolations": [7, {"field": "contents[0].parts[0]"}]}],
            NoImageReturned,
        ),
        ("INVALID_ARGUMENT", None, NoImageReturned),
        ("INVALID_ARGUMENT", [{"reason": None}, "API_KEY_INVALID"], NoImageReturned),
    ],
)
def test_one_odd_detail_does_not_hide_what_the_others_say(
    make: Make,
    google: GeminiStandIn,
    status: object,
    details: object,
    kind: type[GenerationFailed],
) -> None:
    body = {"error": {"code": 400, "status": status, "message": ["odd"], "details": details}}
    google.answer_with(always(refusal(400, body)))

    with pytest.raises(GenerationFailed) as failed:
        draw(make(), seconds=9)

    assert type(failed.value) is kind


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("Imagen API is only accessible to billed users at this time.", ModelUnavailable),
        ("User location is not supported for the API use.", ModelUnavailable),
        ("API key expired. Please renew the API key.", ModelUnavailable),
        ("Aspect ratio is not enabled for models/gemini-x", ModelUnavailable),
        ("Model does not support the requested response modalities: image", ModelUnavailable),
        ('Invalid JSON payload received. Unknown name "imageConfig"', ModelUnavailable),
        (
            "Manually set deadline 1s is too short. Minimum allowed deadline is 10s.",
            ModelUnavailable,
        ),
        ("Unable to process the prompt.", NoImageReturned),
        ("The prompt is empty.", NoImageReturned),
    ],
)
def test_a_bad_request_is_the_customers_unless_it_says_otherwise(
    make: Make, google: GeminiStandIn, sentence: str, kind: type[GenerationFailed]
) -> None:
    google.answer_with(
        always(refusal(400, {"error": {"status": "INVALID_ARGUMENT", "message": sentence}}))
    )

    with pytest.raises(GenerationFailed) as failed:
        draw(make(), seconds=9)

    assert type(failed.value) is kind
    assert failed.value.counts_against_limit is (kind is NoImageReturned)


@pytest.mark.parametrize("code", [405, 406, 410, 411, 413, 415, 418, 422, 428, 431, 451, 501])
def test_a_refusal_that_is_not_known_is_the_operators(
    make: Make, google: GeminiStandIn, code: int
) -> None:
    google.answer_with(always(refusal(code, {"error": {"code": code, "status": "NEW"}})))

    with pytest.raises(ModelUnavailable) as failed:
        draw(make(sleep=pytest.fail))

    assert failed.value.log_fields() == {"reason": f"http_{code}"}


@pytest.mark.parametrize("code", [408, 409, 425, 499, 500, 502, 503, 504])
def test_a_fault_that_passes_is_retried_once_while_there_is_time(
    make: Make, google: GeminiStandIn, code: int
) -> None:
    picture = answer_of(picture_part(b"a picture"))
    first, later = iter([ModelResponse(code, b"")]), iter([ModelResponse(code, b"")])

    google.answer_with(lambda _: next(first, picture))
    assert draw(make()) == b"a picture"

    google.answer_with(lambda _: next(later, picture))
    with pytest.raises(ModelTimedOut if code in {408, 504} else ModelOverloaded) as failed:
        draw(make(sleep=pytest.fail), seconds=9)
    assert failed.value.headers()["X-Should-Retry"] == "true"
    assert ("Retry-After" in failed.value.headers()) is (code not in {408, 504})


# Why there is no picture, for the operator's log.
REASONS = {
    "text-only": "text_only",
    "no-image": "finish_no_image",
    "image-other": "finish_image_other",
    "other": "finish_other",
    "max-tokens": "finish_max_tokens",
    "unknown-finish": "finish_unknown",
    "numeric-finish": "unreadable",
    "thought-only": "thought_only",
    "empty-body": "empty_body",
    "empty-object": "no_candidates",
    "empty-array": "unreadable",
    "not-json": "unreadable",
    "bad-base64": "unreadable",
    "endless": "too_large",
    "bad-request": "request_refused",
}


def test_every_answer_without_a_picture_has_a_reason_here() -> None:
    assert set(REASONS) == {name for name, (kind, _) in OUTCOMES.items() if kind is NoImageReturned}


@pytest.mark.parametrize(("name", "reason"), REASONS.items())
def test_an_answer_without_a_picture_says_why_in_a_constant(
    make: Make, name: str, reason: str
) -> None:
    with pytest.raises(NoImageReturned) as failed:
        draw(make(), f"Why [fail:{name}]")

    assert failed.value.log_fields() == {"reason": reason}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answer_of(), "no_parts"),
        (answer_of({"text": ""}), "no_parts"),
        (answer_of({"text": "Sorry."}, finish_reason="NO_IMAGE"), "finish_no_image"),
        (answer_of({"text": "Hm.", "thought": True}), "thought_only"),
        (refusal(200, {"candidates": [{}]}), "no_parts"),
        (refusal(200, {"candidates": []}), "no_candidates"),
        (ModelResponse(200, b" \n"), "empty_body"),
        (ModelResponse(204, b""), "no_content"),
    ],
)
def test_the_siblings_of_an_answer_without_a_picture_say_why_too(
    make: Make, google: GeminiStandIn, answer: ModelResponse, reason: str
) -> None:
    google.answer_with(always(answer))

    with pytest.raises(NoImageReturned) as failed:
        draw(make())

    assert failed.value.log_fields() == {"reason": reason}


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (204, b"", NoImageReturned),
        (206, b"{}", NoImageReturned),
        (301, b"", ModelUnavailable),
        (400, b'{"error": "a sentence"}', NoImageReturned),
        (400, b"[1, 2]", NoImageReturned),
        (400, b"null", NoImageReturned),
        (400, b'[{"error": {"details": [{"reason": "API_KEY_INVALID"}]}}]', ModelUnavailable),
        (400, b'{"error": {"details": [{"reason": "API_KEY_EXPIRED"}]}}', ModelUnavailable),
        (408, b"{}", ModelTimedOut),
        (413, b"too large", ModelUnavailable),
        (418, b"{}", ModelUnavailable),
        (500, b"\xff\xfe", ModelOverloaded),
        (500, b"[" * 100_000, ModelOverloaded),
        (500, b"9" * 10_000, ModelOverloaded),
        (599, b"{}", ModelOverloaded),
        (200, b"[" * 100_000, NoImageReturned),
        (200, b'{"candidates": null}', NoImageReturned),
        (200, b'{"candidates": [{}]}', NoImageReturned),
        (200, b'{"candidates": [{"content": {"parts": null}}]}', NoImageReturned),
        (200, b'{"candidates": [{"content": {"parts": [7]}}]}', NoImageReturned),
        (200, b'{"promptFeedback": {"blockReason": "OTHER"}}', ContentRejected),
        (200, b'{"promptFeedback": {"blockReason": "NEW"}, "candidates": []}', ContentRejected),
        (200, b'{"candidates": [{"finishReason": "IMAGE_JAILBREAK"}]}', ContentRejected),
        (200, b'{"candidates": [{"finishReason": "MODEL_ARMOR"}]}', ContentRejected),
        (200, b"\x1f\x8b compressed though we asked for nothing of the kind", NoImageReturned),
    ],
)
def test_an_odd_answer_is_an_error_of_ours_too(
    make: Make, google: GeminiStandIn, code: int, body: bytes, kind: type[GenerationFailed]
) -> None:
    google.answer_with(always(ModelResponse(code, body)))

    with pytest.raises(GenerationFailed) as failed:
        draw(make(), seconds=9)

    assert type(failed.value) is kind


@pytest.mark.parametrize(("bytes_over", "kind"), [(0, bytes), (1, NoImageReturned)])
def test_an_answer_may_be_large_but_not_too_large(
    make: Make, google: GeminiStandIn, bytes_over: int, kind: type[GenerationFailed] | type[bytes]
) -> None:
    answer = answer_of(picture_part(b"a picture")).body
    google.answer_with(always(ModelResponse(200, answer.ljust(MAX_RESPONSE_BYTES + bytes_over))))

    if issubclass(kind, GenerationFailed):
        with pytest.raises(kind):
            draw(make())
    else:
        assert draw(make()) == b"a picture"


def test_an_answer_that_asks_to_be_continued_is_not_followed(
    make: Make, google: GeminiStandIn
) -> None:
    candidate = {"finishReason": "CONTINUATION", "continuationToken": "AAAA"}
    google.answer_with(always(refusal(200, {"candidates": [candidate]})))

    with pytest.raises(NoImageReturned):
        draw(make(), "To be continued")

    assert prompts(google).count("To be continued") == 1


def test_a_redirect_does_not_take_the_key_to_another_host(
    make: Make, google: GeminiStandIn
) -> None:
    with pytest.raises(ModelUnavailable):
        draw(make(), "[fail:redirect]")

    assert google.requests_elsewhere == []


def test_a_cookie_is_not_kept(make: Make, google: GeminiStandIn) -> None:
    gemini = make()
    picture = answer_of(picture_part(b"a picture"))
    google.answer_with(always(ModelResponse(200, picture.body, {"Set-Cookie": "a=b; Path=/"})))

    assert draw(gemini) == draw(gemini) == b"a picture"
    assert "cookie" not in google.requests[-1].headers


def test_a_connection_that_google_closed_meanwhile_costs_nothing(
    make: Make, google: GeminiStandIn
) -> None:
    gemini = make(sleep=pytest.fail)
    draw(gemini, "Before")
    google.close_idle_connections()

    assert draw(gemini, "After")
    assert prompts(google).count("After") == 1


def test_each_call_has_a_connection_of_its_own_and_leaves_none_open(
    make: Make, google: GeminiStandIn
) -> None:
    gemini = make()
    before = google.connections_made

    for _ in range(3):
        draw(gemini)
        assert eventually(lambda: google.open_connections == 0)

    assert google.connections_made == before + 3


@pytest.mark.parametrize("good_for", [1, 2, 5])
def test_a_connection_that_dies_silently_after_use_costs_the_next_call_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, good_for: int
) -> None:
    picture = answer_of(picture_part(b"a picture")).body
    with serving_then_silent(picture, good_for) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        gemini = make(sleep=pytest.fail)
        for _ in range(good_for):
            draw(gemini)
        began = time.monotonic()

        assert draw(gemini, seconds=3) == b"a picture"

    assert time.monotonic() - began < OVERSHOOT_S


def test_a_handshake_that_hangs_leaves_time_for_another_connection(
    make: Make, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = answer_of(picture_part(b"a picture")).body
    with serving_tls(authority, picture, [], silent_connections=1) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        began = time.monotonic()

        assert draw(make()) == b"a picture"

    assert MODEL_CONNECT_S <= time.monotonic() - began < MODEL_CONNECT_S + OVERSHOOT_S


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://127.0.0.1:1", ModelOverloaded),
        ("ftp://127.0.0.1", ModelUnavailable),
        ("127.0.0.1", ModelUnavailable),
        ("http://127.0.0.1:notaport", ModelUnavailable),
    ],
)
def test_nobody_at_the_base_url_is_an_error_of_ours(
    make: Make, monkeypatch: pytest.MonkeyPatch, url: str, kind: type[GenerationFailed]
) -> None:
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)

    with pytest.raises(GenerationFailed) as failed:
        draw(make())

    assert type(failed.value) is kind


def test_an_address_that_does_not_answer_is_passed_over(
    make: Make, google: GeminiStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where this name has an IPv6 address too, that one comes first, and nobody listens there.
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", google.url.replace("127.0.0.1", "localhost"))

    assert draw(make(sleep=pytest.fail))


def test_making_the_room_asks_for_no_key_and_opens_no_connection(
    make: Make, google: GeminiStandIn
) -> None:
    before = google.connections_made
    make(api_key=pytest.fail)

    assert google.connections_made == before


def test_the_key_is_asked_for_once_however_many_threads_begin_at_once(make: Make) -> None:
    asked: list[str] = []

    def api_key() -> str:
        time.sleep(0.05)
        asked.append(KEY)
        return f"{KEY}\n"

    gemini = make(api_key)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: draw(gemini, f"Fox {number}"), range(8)))

    assert len(asked) == 1


@pytest.mark.parametrize("name", ["bad-key", "unauthorized", "forbidden"])
def test_a_key_that_google_refuses_is_asked_for_again_at_the_next_request(
    make: Make, google: GeminiStandIn, name: str
) -> None:
    keys = iter(["the-old-key", "the-new-key"])
    gemini = make(lambda: next(keys))

    with pytest.raises(ModelUnavailable):
        draw(gemini, f"[fail:{name}]")
    assert draw(gemini, "Rotated")
    assert draw(gemini, "Rotated")

    used = [request.headers["x-goog-api-key"] for request in google.requests[-3:]]
    assert used == ["the-old-key", "the-new-key", "the-new-key"]


@pytest.mark.parametrize(
    "error",
    [
        {"message": "API key not valid. Please pass a valid API key.", "details": [7]},
        {"details": [None, {"reason": ["API_KEY_SERVICE_BLOCKED"]}]},
    ],
)
def test_a_key_is_asked_for_again_however_oddly_google_refuses_it(
    make: Make, google: GeminiStandIn, error: dict[str, object]
) -> None:
    keys = iter(["the-old-key", "the-new-key"])
    gemini = make(lambda: next(keys))
    google.answer_with(always(refusal(400, {"error": error})))
    with pytest.raises(ModelUnavailable) as failed:
        draw(gemini)
    assert failed.value.log_fields() == {"reason": "key_refused"}
    google.answer_with(None)

    assert draw(gemini, "Rotated")

    assert google.requests[-1].headers["x-goog-api-key"] == "the-new-key"


@pytest.mark.parametrize("name", ["not-found", "quota", "overloaded", "bad-request", "redirect"])
def test_a_key_that_is_not_at_fault_is_kept(make: Make, name: str) -> None:
    keys = iter([KEY])
    gemini = make(lambda: next(keys))

    with pytest.raises(GenerationFailed):
        draw(gemini, f"[fail:{name}]")

    assert draw(gemini)


class SecretUnreadableError(Exception):
    pass


def test_what_the_provider_of_the_key_raises_passes_through_and_is_asked_again(make: Make) -> None:
    answers: list[str] = []

    def api_key() -> str:
        if not answers:
            answers.append(KEY)
            raise SecretUnreadableError
        return answers[0]

    gemini = make(api_key)
    with pytest.raises(SecretUnreadableError):
        draw(gemini)

    assert draw(gemini)


@pytest.mark.parametrize("key", ["", " \n", "two words", "ключ", "a\r\nX-Evil: 1", "auth_tokens/x"])
def test_a_key_that_can_not_be_one_is_never_sent(
    make: Make, google: GeminiStandIn, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "key-from-the-environment")
    before = len(google.requests)

    with pytest.raises(ModelUnavailable):
        draw(make(lambda: key))

    assert len(google.requests) == before


def test_other_variables_of_the_environment_change_nothing(
    make: Make, google: GeminiStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "GOOGLE_API_KEY": "key-from-the-environment",
        "GEMINI_API_KEY": "another-key-from-the-environment",
        "GOOGLE_GENAI_USE_VERTEXAI": "true",
        "GOOGLE_GENAI_USE_ENTERPRISE": "true",
        "GOOGLE_CLOUD_PROJECT": "somebody-elses",
        "GOOGLE_GENAI_API_VERSION": "v1",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "ALL_PROXY": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)

    assert draw(make(), "Undisturbed")
    assert google.requests[-1].path.startswith("/v1beta/models/")
    assert google.requests[-1].headers["x-goog-api-key"] == KEY


def test_thirty_two_threads_get_each_its_own_picture(make: Make, google: GeminiStandIn) -> None:
    def echo(request: ModelRequest) -> ModelResponse:
        time.sleep(0.02)
        assert isinstance(request.body, dict)
        prompt = request.body["contents"][0]["parts"][0]["text"]
        return answer_of(picture_part(prompt.encode() * 1000))

    google.answer_with(echo)
    gemini = make()
    with ThreadPoolExecutor(32) as threads:
        pictures = list(threads.map(lambda number: draw(gemini, f"<{number}>"), range(128)))

    assert pictures == [f"<{number}>".encode() * 1000 for number in range(128)]


UPSTREAM = "distinctive words of Googles"


@pytest.mark.parametrize(
    "answer",
    [
        refusal(400, {"error": {"code": 400, "message": UPSTREAM, "status": UPSTREAM}}),
        refusal(403, {"error": {"code": 403, "message": UPSTREAM}}),
        refusal(429, {"error": {"message": UPSTREAM, "details": [{"retryDelay": UPSTREAM}]}}),
        ModelResponse(500, UPSTREAM.encode() + b"\xff"),
        ModelResponse(503, UPSTREAM.encode(), {"Content-Type": UPSTREAM, "Server": UPSTREAM}),
        ModelResponse(302, b"", {"Location": f"http://{UPSTREAM.replace(' ', '.')}/"}),
        ModelResponse(200, UPSTREAM.encode()),
        answer_of({"text": UPSTREAM}),
        answer_of(finish_reason=UPSTREAM),
        answer_of({"inlineData": {"mimeType": UPSTREAM, "data": UPSTREAM}}),
        refusal(200, {"promptFeedback": {"blockReason": UPSTREAM}}),
    ],
)
def test_no_word_of_googles_and_no_key_and_no_prompt_is_told_to_anybody(
    make: Make,
    google: GeminiStandIn,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    answer: ModelResponse,
) -> None:
    gemini = make()
    for name in ("", "httpx2", "httpcore2", "httpcore2.http11", "google_genai", "asyncio"):
        caplog.set_level(logging.DEBUG, name)
    google.answer_with(always(answer))

    with warnings.catch_warnings(record=True, action="always") as warned:  # noqa: SIM117 - one call
        with pytest.raises(GenerationFailed) as failed:
            draw(gemini, "a distinctive prompt of a customer")

    told = [str(failed.value), repr(failed.value), json.dumps(failed.value.body())]
    told += [*failed.value.headers().values(), caplog.text, *capfd.readouterr()]
    told += [str(warning.message) for warning in warned]
    told.append(json.dumps(failed.value.log_fields()))
    assert "distinctive" not in " ".join(told)
    assert caplog.records == []


def test_it_speaks_tls_to_whom_it_trusts_and_to_nobody_else(
    make: Make, authority: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stranger = self_signed_certificate(tmp_path / "stranger.pem")
    picture = answer_of(picture_part(b"a picture")).body
    told_stranger: list[bytes] = []
    told_google: list[bytes] = []

    with serving_tls(stranger, picture, told_stranger) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        with pytest.raises(ModelOverloaded):
            draw(make())
    with serving_tls(authority, picture, told_google) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        assert draw(make()) == b"a picture"

    assert told_stranger == []
    assert KEY.encode() in b"".join(told_google)


def self_signed_certificate(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1))
    builder = builder.not_valid_after(now + timedelta(days=1)).add_extension(host, critical=False)
    text = serialization.Encoding.PEM
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    signed = builder.sign(key, hashes.SHA256()).public_bytes(text)
    path.write_bytes(key.private_bytes(text, pkcs8, plain) + signed)
    return path


def whole_request(connection: socket.socket) -> bytes:
    """Head and body: to hang up before all is read would take the answer from the client."""
    request = b""
    while True:
        head, _, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length is not None and len(body) >= int(length[1]):
            return request
        more = connection.recv(65536)
        if not more:
            return request
        request += more


@contextmanager
def serving_then_silent(body: bytes, good_for: int) -> Iterator[str]:
    """Responds with ``body`` to ``good_for`` requests of a connection, then only reads from it."""
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            for _ in range(good_for):
                if not whole_request(connection):
                    return
                connection.sendall(response)
            while connection.recv(65536):
                pass

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def serving_tls(
    certificate: Path, body: bytes, heard: list[bytes], silent_connections: int = 0
) -> Iterator[str]:
    """Answers one request a connection with ``body``, until the block ends.

    The first ``silent_connections`` are accepted and then left alone.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"

    def serve(listener: socket.socket) -> None:
        with suppress(OSError), ExitStack() as ignored:
            for _ in range(silent_connections):
                ignored.enter_context(listener.accept()[0])
            while True:
                connection, _ = listener.accept()
                with connection, suppress(ssl.SSLError):
                    encrypted = context.wrap_socket(connection, server_side=True)
                    with encrypted:
                        heard.append(whole_request(encrypted))
                        encrypted.sendall(head.encode() + body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
