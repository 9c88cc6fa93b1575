"""A customer of the service, and what they see of it: requests over a socket, answers, pictures."""

import base64
import gc
import http.client
import io
import json
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
from PIL import Image

from handlers.dependencies import Dependencies
from infra.local.gemini_stand_in import ModelRequest, ModelResponse
from infra.local.stack import LocalStack
from lib.ledger.rows import listing_key
from lib.settings import Settings
from tests.stacks import new_stack

GENERATE = "/api/v1/models/gemini/generate"
CREDITS = "/api/v1/billing/credits"
USAGE = "/api/v1/billing/usage"
GENERATIONS = "/api/v1/generations"
IMAGES, MODELS = "/v1/images/generations", "/v1/models"
RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
TEXT, BASE64 = "application/json", "application/octet-stream"
SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
SENTENCE = re.compile(r"[A-Z][\w '(),.:;/?\\-]{9,200}")

Headers = Mapping[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """A response, read to its end; header names in lower case."""

    status: int
    headers: Headers
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def fetch(
    url: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Headers | list[tuple[str, str]] | None = None,
) -> Reply:
    address = urlsplit(url)
    pairs = list(headers.items()) if isinstance(headers, Mapping) else headers or []
    connection = http.client.HTTPConnection(address.netloc, timeout=40)
    named = {name.lower() for name, _ in pairs}
    try:
        connection.putrequest(method, url.partition(address.netloc)[2], skip_host="host" in named)
        for name, value in pairs:
            connection.putheader(name, value.encode("latin-1"))
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        received = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, received, response.read())
    finally:
        connection.close()


class Customer:
    """A new organisation, so that tests do not share credits."""

    _numbers = count(1)

    def __init__(self, stack: LocalStack, credits_: int = 100) -> None:
        self.stack = stack
        self.organisation = f"customer{next(self._numbers)}"
        self.key = stack.open_account(self.organisation, credits_)

    def generate(
        self, prompt: str = "A fox", *, idempotency_key: str = "", **fields: object
    ) -> Reply:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self.post(json.dumps({"prompt": prompt, **fields}).encode(), headers=headers)

    def post(self, body: bytes, form: str = TEXT, headers: Headers | None = None) -> Reply:
        all_headers = {"Authorization": f"Bearer {self.key}", "Content-Type": form} | (
            dict(headers) if headers else {}
        )
        answer = fetch(self.stack.url + GENERATE, "POST", body, all_headers)
        assert_well_formed(answer)
        return answer

    def accept(
        self,
        prompt: str = "A fox",
        *,
        idempotency_key: str = "",
        prefer: str = "respond-async",
        **fields: object,
    ) -> Reply:
        """Requests an asynchronous generation."""
        headers = {"Prefer": prefer}
        if idempotency_key:
            headers["Idempotency-Key"] = idempotency_key
        return self.post(json.dumps({"prompt": prompt, **fields}).encode(), headers=headers)

    def get(self, target: str) -> Reply:
        """The response to a GET with this customer's key."""
        return fetch(self.stack.url + target, headers={"Authorization": f"Bearer {self.key}"})

    def ending(self, accepted: Reply) -> Any:
        """The accepted generation once it has ended."""
        read = until(
            lambda: self.get(accepted.headers["location"]),
            lambda answer: answer.json()["status"] != "reserved",
        )
        assert read.status == 200, read
        return read.json()

    def history(self) -> list[Any]:
        """The customer's newest generations."""
        found: list[Any] = self.get(GENERATIONS).json()["generations"]
        return found

    def invoke(self, body: object, *, is_base64: bool, headers: Headers | None = None) -> Reply:
        """The response to an event that no HTTP client could cause."""
        own = {"authorization": f"Bearer {self.key}", "content-type": TEXT}
        event = event_of(body, is_base64=is_base64, headers=own | dict(headers or {}))
        answer = invoke(self.stack, event)
        assert_well_formed(answer)
        return answer

    def balance(self) -> int:
        answer = self.get(CREDITS)
        assert answer.json() == {"credits": answer.json()["credits"], "creditsPerImage": 5}
        credits_: int = answer.json()["credits"]
        return credits_

    def stored(self) -> list[str]:
        """The key of every image that was ever put; a tombstone, which is empty, is none."""
        prefix = f"generated/gemini/{self.organisation}/"
        bucket = self.stack.aws.client("s3")
        listing = bucket.list_object_versions(Bucket=self.stack.bucket, Prefix=prefix)
        return [each["Key"] for each in listing.get("Versions", []) if each["Size"]]

    def change_row(self, sort_key: str, change: str, value: int) -> None:
        """Changes a row of the table directly, to simulate the passing of time."""
        self.stack.aws.client("dynamodb").update_item(
            TableName=self.stack.table,
            Key={"pk": {"S": f"ORG#{self.organisation}"}, "sk": {"S": sort_key}},
            UpdateExpression=change,
            ConditionExpression="attribute_exists(pk)",
            ExpressionAttributeValues={":value": {"N": str(value)}},
        )

    def leave(self) -> None:
        """Removes the customer's rows: moto copies its whole table for every transaction."""
        table = self.stack.aws.client("dynamodb")
        rows: list[Any] = table.query(
            TableName=self.stack.table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": f"ORG#{self.organisation}"}},
            ProjectionExpression="pk, sk",
        )["Items"]
        rows.append(listing_key(self.organisation))
        for start in range(0, len(rows), 25):
            requests: list[Any] = [
                {"DeleteRequest": {"Key": row}} for row in rows[start : start + 25]
            ]
            table.batch_write_item(RequestItems={self.stack.table: requests})


@pytest.fixture
def customer(stack: LocalStack) -> Iterator[Customer]:
    """A new organisation with 100 credits, on the stack of the test's module."""
    own = Customer(stack)
    yield own
    own.leave()


def event_of(body: object, *, is_base64: bool, headers: Headers) -> dict[str, object]:
    """API Gateway's event, payload format 2.0, as far as the function reads it."""
    return {
        "version": "2.0",
        "routeKey": f"POST {GENERATE}",
        "rawPath": GENERATE,
        "rawQueryString": "",
        "headers": {"host": "api.example.com", "x-forwarded-proto": "https", **headers},
        "requestContext": {
            "domainName": "api.example.com",
            "http": {"method": "POST", "path": GENERATE, "protocol": "HTTP/1.1"},
            "requestId": "JKJaXmPLvHcESHA=",
        },
        "body": body,
        "isBase64Encoded": is_base64,
    }


def invoke(stack: LocalStack, event: dict[str, object]) -> Reply:
    result: Any = stack.invoke("GenerateFunction", event)
    assert result.get("isBase64Encoded", False) is False
    headers = {name.lower(): str(value) for name, value in result["headers"].items()}
    return Reply(result["statusCode"], headers, result["body"].encode())


def assert_well_formed(answer: Reply) -> None:
    """Checks what every response of the paid route has in common."""
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-request-id"].strip()
    succeeded = answer.status in {200, 202}
    pending = answer.headers.get("x-error-code") == "outcome_pending"
    assert ("location" in answer.headers) == (answer.status == 202 or pending), answer
    assert ("preference-applied" in answer.headers) == (answer.status == 202), answer
    charged = pending or (succeeded and "idempotent-replayed" not in answer.headers)
    assert answer.headers["x-credits-charged"] == ("5" if charged else "0"), answer
    if succeeded:
        assert not {"x-error-code", "x-should-retry"} & answer.headers.keys()
    else:
        assert answer.headers["x-should-retry"] in {"true", "false"}, answer
        assert SNAKE_CASE.fullmatch(answer.headers["x-error-code"]), answer


def assert_bad_request(answer: Reply, *words: str) -> None:
    """A 400 whose body is one sentence that contains ``words``."""
    assert answer.status == 400, answer
    assert set(answer.json()) == {"error"}
    assert SENTENCE.fullmatch(answer.json()["error"]), answer
    for word in words:
        assert word in answer.json()["error"]


def picture_at(url: str) -> Image.Image:
    answer = fetch(url)
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    picture = Image.open(io.BytesIO(answer.body), formats=["PNG"])
    picture.load()
    return picture


def positive(text: str) -> int:
    """The whole seconds of a Retry-After, at least 1."""
    assert re.fullmatch(r"[1-9]\d*", text), text
    return int(text)


@cache
def plain_answer(ratio: str) -> ModelResponse:
    width, height = (int(side) for side in ratio.split(":"))
    scale = 256 // max(width, height)
    buffer = io.BytesIO()
    Image.new("RGB", (width * scale, height * scale), "teal").save(buffer, "JPEG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return model_says({"parts": [{"inlineData": {"mimeType": "image/jpeg", "data": data}}]})


def model_says(content: object, finish_reason: str = "STOP", **more: object) -> ModelResponse:
    candidate = {"content": content, "finishReason": finish_reason, "index": 0}
    return ModelResponse(200, json.dumps({"candidates": [candidate], **more}).encode())


def prompt_of(request: ModelRequest) -> str:
    assert isinstance(request.body, dict)
    prompt: str = request.body["contents"][0]["parts"][0]["text"]
    return prompt


def plain_picture(request: ModelRequest) -> ModelResponse | None:
    """One colour in the requested ratio; directives in the prompt are left to the stand-in."""
    if re.search(r"\[(fail|slow):", prompt_of(request)):
        return None
    assert isinstance(request.body, dict)
    return plain_answer(request.body["generationConfig"]["imageConfig"]["aspectRatio"])


@contextmanager
def model(
    stack: LocalStack, script: Callable[[ModelRequest], ModelResponse | None]
) -> Iterator[None]:
    """The model answers with ``script`` inside the block."""
    assert stack.stand_in is not None
    stack.stand_in.answer_with(script)
    try:
        yield
    finally:
        stack.stand_in.answer_with(plain_picture)


def prompts_sent(stack: LocalStack) -> list[str]:
    assert stack.stand_in is not None
    return [prompt_of(request) for request in stack.stand_in.requests]


def assert_replayed(answer: Reply, first: Reply) -> None:
    assert answer.status == 200, answer
    assert answer.json() == first.json()
    assert answer.headers["idempotent-replayed"] == "true"
    assert answer.headers["x-credits-charged"] == "0"


def within_one_minute(act: Callable[[], T]) -> T:
    """What ``act`` returns in a run within one minute."""
    for _ in range(3):
        minute = time.time() // 60
        result = act()
        if time.time() // 60 == minute:
            return result
    raise AssertionError("no run fits into one minute")


def assert_rate_limited(answer: Reply, limit: int) -> None:
    assert answer.status == 429, answer
    assert set(answer.json()) == {"error"}
    assert SENTENCE.fullmatch(answer.json()["error"]), answer
    assert answer.headers["x-error-code"] == "rate_limited"
    retry_after_s = positive(answer.headers["retry-after"])
    assert retry_after_s <= 60
    limited = re.fullmatch(r'("[\w-]+");r=0;t=(\d+)', answer.headers["ratelimit"])
    assert limited, answer
    assert int(limited[2]) == retry_after_s
    assert answer.headers["ratelimit-policy"] == f"{limited[1]};q={limit};w=60"


MESSAGES = {
    "safety": "Content policy violation",
    "blocked-prompt": "Content policy violation",
    "text-only": "The model returned no image",
    "deadline": "Image generation timed out",
    "quota": "The image model is overloaded",
    "overloaded": "The image model is overloaded",
    "bad-key": "Image generation is unavailable",
    "not-found": "Image generation is unavailable",
}


@contextmanager
def scripted_stack(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    """A stack for a fixture with the parameters ``STACKS``; its model draws ``plain_picture``."""
    with new_stack(request) as running:
        assert running.stand_in is not None
        running.stand_in.answer_with(plain_picture)
        # Customer.stored lists every object that was ever put.
        running.aws.client("s3").put_bucket_versioning(
            Bucket=running.bucket, VersioningConfiguration={"Status": "Enabled"}
        )
        yield running


@contextmanager
def blocked_model(stack: LocalStack, prompt: str) -> Iterator[threading.Event]:
    """The model answers requests for ``prompt`` only once the event is set."""
    released = threading.Event()

    def hesitate(request: ModelRequest) -> ModelResponse | None:
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


@contextmanager
def bucket_refuses(stack: LocalStack, operation: str) -> Iterator[None]:
    """The bucket denies ``operation``, such as ``PutObject``, inside the block."""
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": f"s3:{operation}",
        "Resource": f"arn:aws:s3:::{stack.bucket}/*",
    }
    bucket = stack.aws.client("s3")
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    bucket.put_bucket_policy(Bucket=stack.bucket, Policy=policy)
    try:
        yield
    finally:
        bucket.delete_bucket_policy(Bucket=stack.bucket)


@contextmanager
def settings_of(module: ModuleType, **changed: str | None) -> Iterator[None]:
    """The handler of ``module``, in this process, has other settings."""
    chosen = replace(Settings.from_environment(), **changed)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "dependencies", cache(lambda: Dependencies(chosen)))
        yield
    # On Lambda the process ends, and its idle connections with it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def ledger_unreachable(module: ModuleType) -> AbstractContextManager[None]:
    """The handler of ``module``, in this process, uses a table that does not exist."""
    return settings_of(module, credits_table="no-such-table")


def until(read: Callable[[], T], good: Callable[[T], bool], within_s: float = 20) -> T:
    """The first value of ``read`` that is good; fails after ``within_s`` seconds."""
    ends_at = time.monotonic() + within_s
    while not good(found := read()):
        assert time.monotonic() < ends_at, found
        time.sleep(0.05)
    return found
