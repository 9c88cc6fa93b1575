"""The whole service on this machine, as the person who starts it and their clients see it."""

import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
from PIL import Image

from infra.local.aws import EmbeddedAws
from infra.local.gemini_stand_in import FAILURES, GeminiStandIn, ModelResponse
from infra.local.stack import LocalStack
from infra.template import PROJECT_ROOT, TEMPLATE_PATH, Template, parse
from lib.picture.aspect_ratio import AspectRatio

GENERATE = "/api/v1/models/gemini/generate"
CREDITS = "/api/v1/billing/credits"
SUCCESS = "success"
# None of these is over within the 2.5 s that the test of them leaves to the model.
TOO_LONG = ("hang", "hang-after-headers", "drip", "drip-headers", "slow")
# What a customer gets for each way in which the stand-in can misbehave.
OUTCOMES = {
    SUCCESS: (
        "thought-first",
        "other-with-image",
        "png",
        "webp",
        "wrong-mime",
        "overloaded-once",
        "reset-once",
    ),
    "Content policy violation": (
        "blocked-prompt",
        "safety",
        "recitation",
        "blocklist",
        "prohibited-content",
        "spii",
        "image-safety",
        "image-prohibited",
        "image-recitation",
        "safety-with-image",
    ),
    "The model returned no image": (
        "text-only",
        "no-image",
        "image-other",
        "other",
        "max-tokens",
        "unknown-finish",
        "numeric-finish",
        "thought-only",
        "empty-body",
        "empty-object",
        "empty-array",
        "not-json",
        "bad-base64",
        "endless",
        "cut-base64",
        "cut-image",
        "not-an-image",
        "wrong-shape",
        "bomb",
        "bad-request",
    ),
    "The image model is overloaded": (
        "quota",
        "quota-short",
        "quota-bare",
        "internal",
        "bad-gateway",
        "overloaded",
        "reset",
    ),
    "Image generation is unavailable": (
        "bad-key",
        "unauthorized",
        "forbidden",
        "not-found",
        "no-billing",
        "redirect",
    ),
    "Image generation timed out": ("deadline", *TOO_LONG),
}
AT_ONCE = [
    (name, message) for message, names in OUTCOMES.items() for name in names if name not in TOO_LONG
]


class Answer:
    """A response, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)


def fetch(
    url: str, method: str = "GET", body: object = None, headers: dict[str, str] | None = None
) -> Answer:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=40)
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, address.path, data, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


class Customer:
    """An organisation of its own, so that tests don't spend each other's credits."""

    _numbers = count(1)

    def __init__(self, stack: LocalStack, credits_: int = 100) -> None:
        self._stack = stack
        self.organisation = f"org{next(self._numbers)}"
        self.key = stack.open_account(self.organisation, credits_)

    def generate(self, prompt: str, **fields: str) -> Answer:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        return fetch(self._stack.url + GENERATE, "POST", {"prompt": prompt, **fields}, headers)

    def balance(self) -> int:
        headers = {"Authorization": f"Bearer {self.key}"}
        credits_: int = fetch(self._stack.url + CREDITS, headers=headers).json()["credits"]
        return credits_

    def stored(self) -> list[str]:
        prefix = f"generated/gemini/{self.organisation}/"
        bucket = self._stack.aws.client("s3")
        listing = bucket.list_objects_v2(Bucket=self._stack.bucket, Prefix=prefix)
        return [found["Key"] for found in listing.get("Contents", [])]


def assert_refunded(customer: Customer, answer: Answer, message: str) -> None:
    assert answer.status == 500, answer.body
    expected = {"error": "Failed to generate image", "message": message}
    if answer.headers["x-error-code"] == "model_timeout":
        expected["hint"] = "Send the header `Prefer: respond-async` to give a slow model minutes"
    assert answer.json() == expected
    assert answer.headers["x-credits-charged"] == "0"
    assert customer.balance() == 100
    assert customer.stored() == []


def picture_at(url: str) -> Image.Image:
    answer = fetch(url)
    assert answer.status == 200
    assert answer.headers["content-type"] == "image/png"
    picture = Image.open(io.BytesIO(answer.body), formats=["PNG"])
    picture.load()
    return picture


def assert_shape(picture: Image.Image, ratio: str) -> None:
    width, height = picture.size
    wanted = AspectRatio(ratio).width_over_height
    assert abs(width / height / wanted - 1) <= 0.06, (picture.size, ratio)


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0) as running:
        yield running


@pytest.fixture
def quick_model(stack: LocalStack) -> Iterator[None]:
    """A model that sends one plain picture, where the test is about credits alone."""
    buffer = io.BytesIO()
    Image.new("RGB", (1024, 1024), "teal").save(buffer, "JPEG")
    data = base64.b64encode(buffer.getvalue()).decode()
    parts = [{"inlineData": {"mimeType": "image/jpeg", "data": data}}]
    candidate = {"content": {"parts": parts, "role": "model"}, "finishReason": "STOP"}
    answer = ModelResponse(200, json.dumps({"candidates": [candidate]}).encode())
    assert stack.stand_in is not None
    stack.stand_in.answer_with(lambda _request: answer)
    yield
    stack.stand_in.answer_with(None)


# What a customer sees


def test_an_image_costs_five_credits_and_is_a_png_of_the_shape_asked_for(
    stack: LocalStack,
) -> None:
    customer = Customer(stack)

    answer = customer.generate("A cabin in the snow", aspectRatio="16:9")

    assert answer.status == 200
    body = answer.json()
    assert set(body) == {"imageUrl", "mimeType", "creditsCharged", "durationMs"}
    assert (body["mimeType"], body["creditsCharged"]) == ("image/png", 5)
    assert isinstance(body["durationMs"], int)
    assert re.fullmatch(
        rf"{stack.url}/images/generated/gemini/{customer.organisation}/\d{{13}}\.png",
        body["imageUrl"],
    )
    assert answer.headers["x-credits-charged"] == "5"
    assert_shape(picture_at(body["imageUrl"]), "16:9")
    assert customer.balance() == 95


@pytest.mark.real
def test_all_ten_ratios_come_out_in_shape_and_none_at_all_is_a_square(stack: LocalStack) -> None:
    customer = Customer(stack)

    with ThreadPoolExecutor(4) as pool:
        asked = [ratio.value for ratio in AspectRatio]
        answers = list(pool.map(lambda r: customer.generate("Ten", aspectRatio=r), asked))
    for ratio, answer in zip(asked, answers, strict=True):
        assert_shape(picture_at(answer.json()["imageUrl"]), ratio)
    assert_shape(picture_at(customer.generate("Default").json()["imageUrl"]), "1:1")

    assert customer.balance() == 100 - 11 * 5


@pytest.mark.real
@pytest.mark.usefixtures("quick_model")
def test_twenty_images_use_a_hundred_credits_up_and_the_next_is_refused(
    stack: LocalStack,
) -> None:
    customer = Customer(stack)

    for _ in range(20):
        assert customer.generate("One of twenty").status == 200
    refused = customer.generate("One too many")

    assert refused.status == 402
    assert refused.json() == {
        "error": "Insufficient credits",
        "creditsRequired": 5,
        "creditsRemaining": 0,
    }
    assert customer.balance() == 0
    assert len(customer.stored()) == 20


@pytest.mark.real
@pytest.mark.usefixtures("quick_model")
def test_of_thirty_requests_at_once_exactly_the_twenty_that_are_paid_succeed(
    stack: LocalStack,
) -> None:
    customer = Customer(stack)

    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda n: customer.generate(f"Number {n}"), range(30)))

    statuses = sorted(answer.status for answer in answers)
    assert statuses == [200] * 20 + [402] * 10
    urls = {answer.json()["imageUrl"] for answer in answers if answer.status == 200}
    assert len(urls) == len(customer.stored()) == 20
    assert customer.balance() == 0


@pytest.fixture(scope="module")
def misbehaviour(stack: LocalStack) -> dict[str, tuple[Customer, Answer]]:
    """What came of each misbehaviour that ends by itself, each for a customer of its own."""
    customers = {name: Customer(stack) for name, _ in AT_ONCE}

    def provoke(name: str) -> Answer:
        return customers[name].generate(f"A fox [fail:{name}]")

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(provoke, customers)
        return {
            name: (customers[name], answer) for name, answer in zip(customers, answers, strict=True)
        }


@pytest.mark.real
@pytest.mark.parametrize(("failure", "message"), AT_ONCE)
def test_the_models_misbehaviour_ends_in_an_image_or_in_a_refund(
    misbehaviour: dict[str, tuple[Customer, Answer]], failure: str, message: str
) -> None:
    customer, answer = misbehaviour[failure]

    if message == SUCCESS:
        assert answer.status == 200, answer.body
        assert_shape(picture_at(answer.json()["imageUrl"]), "1:1")
        assert customer.balance() == 95
    else:
        assert_refunded(customer, answer, message)


def test_every_misbehaviour_of_the_stand_in_has_an_outcome_above() -> None:
    assert {name for names in OUTCOMES.values() for name in names} == set(FAILURES)


def test_a_model_that_takes_too_long_is_ended_in_time_and_the_credits_come_back() -> None:
    # 8 s instead of 29 leave 2.5 s to the model: the same path without the wait.
    text = TEMPLATE_PATH.read_text(encoding="utf-8").replace("Timeout: 29", "Timeout: 8")
    with LocalStack(latency_s=0, template=Template(parse(text))) as impatient:
        customers = {name: Customer(impatient) for name in TOO_LONG}
        started_at = time.monotonic()
        with ThreadPoolExecutor(len(TOO_LONG)) as pool:
            answers = pool.map(lambda name: customers[name].generate(f"[fail:{name}]"), customers)
            for name, answer in zip(customers, answers, strict=True):
                assert_refunded(customers[name], answer, "Image generation timed out")
        assert time.monotonic() - started_at < 7


def test_nothing_is_served_that_is_not_an_image_of_the_service(stack: LocalStack) -> None:
    for path in ("/images/", "/images/none.png", "/images/../template.yaml", "/images/%2e%2e/x"):
        answer = fetch(stack.url + path)
        assert (answer.status, answer.json()) == (404, {"message": "Not Found"})


# What it does to the process that starts it


def test_nothing_of_the_users_own_cloud_gets_in_and_the_environment_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_API_KEY", "not-mine")
    before = dict(os.environ)

    with LocalStack(latency_s=0) as own:
        assert Customer(own).generate("A fox").status == 200

    assert dict(os.environ) == before


def test_with_a_key_of_ones_own_the_real_address_is_called_with_that_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with GeminiStandIn() as google:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", google.url)
        monkeypatch.setenv("GEMINI_MODEL", "gemini-3-pro-image")
        with LocalStack(gemini_api_key="a-key-of-my-own") as own:
            assert own.stand_in is None
            assert Customer(own).generate("A fox").status == 200
        (request,) = google.requests

    assert request.path == "/v1beta/models/gemini-3-pro-image:generateContent"
    assert request.headers["x-goog-api-key"] == "a-key-of-my-own"


def test_a_hundred_conditional_debits_from_64_threads_are_exact() -> None:
    with EmbeddedAws() as aws:
        aws.create_table("credits")
        client = aws.client("dynamodb")
        key = {"pk": {"S": "ORG#a"}, "sk": {"S": "ACCOUNT"}}
        client.put_item(TableName="credits", Item={**key, "credits": {"N": "100"}})

        def debit(_: int) -> bool:
            try:
                client.update_item(
                    TableName="credits",
                    Key=key,
                    UpdateExpression="SET credits = credits - :one",
                    ConditionExpression="credits >= :one",
                    ExpressionAttributeValues={":one": {"N": "1"}},
                )
            except client.exceptions.ConditionalCheckFailedException:
                return False
            return True

        with ThreadPoolExecutor(64) as pool:
            taken = sum(pool.map(debit, range(192)))
        left = client.get_item(TableName="credits", Key=key)["Item"]["credits"]["N"]

    assert (taken, left) == (100, "0")


def test_two_embedded_clouds_know_nothing_of_each_other() -> None:
    with EmbeddedAws() as one, EmbeddedAws() as other:
        one.create_table("credits")
        one.create_secret("secret", "of one")
        one.client("sqs").create_queue(QueueName="jobs")

        assert other.client("dynamodb").list_tables()["TableNames"] == []
        assert other.client("secretsmanager").list_secrets()["SecretList"] == []
        assert "QueueUrls" not in other.client("sqs").list_queues()


# `python -m infra.local`


class Running:
    """The command as a person starts it, in a directory of its own."""

    def __init__(self, directory: Path, port: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "PORT": port}
        environment.pop("GEMINI_API_KEY", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infra.local"],
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def lines_until(self, last: str) -> list[str]:
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line.strip())
            if last in line:
                return lines
        raise AssertionError(self.process.communicate())

    def end(self, number: signal.Signals) -> tuple[int, str, float]:
        """Exit status, stderr, and how long it took."""
        started_at = time.monotonic()
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors, time.monotonic() - started_at

    def left_behind(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def paste(line: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shell = ["/bin/sh", "-c", line]
    done = subprocess.run(  # noqa: S603 - the line is what our own command printed
        shell, capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout


@pytest.mark.real
def test_the_printed_lines_work_when_pasted_and_ctrl_c_ends_it_all(tmp_path: Path) -> None:
    port = free_port()
    with Running(tmp_path, str(port)) as running:
        lines = running.lines_until("Requests:")
        key_file = tmp_path / ".local" / "api-key"
        key = key_file.read_text(encoding="utf-8").strip()
        generate, balance = (line for line in lines if line.startswith("curl "))

        assert f"http://127.0.0.1:{port}" in " ".join(lines)
        assert f"API key       {key}" in lines
        assert key_file.stat().st_mode & 0o777 == 0o600
        assert key_file.parent.stat().st_mode & 0o777 == 0o700

        image = json.loads(paste(generate))
        assert_shape(picture_at(image["imageUrl"]), "16:9")
        assert json.loads(paste(balance)) == {"credits": 95, "creditsPerImage": 5}
        assert re.fullmatch(rf"POST {GENERATE} 200 \d+ ms", running.lines_until("POST")[-1])
        service_log = (tmp_path / ".local" / "service.log").read_text(encoding="utf-8")
        assert '"GeminiGenerate"' in service_log

        hanging = generate.replace("cabin", "cabin [fail:hang]")
        hung = threading.Thread(target=paste, args=(hanging,))
        hung.start()
        time.sleep(0.3)
        status, errors, took_s = running.end(signal.SIGINT)
        hung.join()

        assert (status, errors) == (0, "")
        assert took_s < 5
        assert not running.left_behind()
        assert not key_file.exists()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_an_end_while_it_starts_is_as_quiet(tmp_path: Path) -> None:
    with Running(tmp_path, str(free_port())) as running:
        running.lines_until("Starting")
        status, errors, _ = running.end(signal.SIGTERM)

    assert (status, errors) == (0, "")
    assert not (tmp_path / ".local" / "api-key").exists()


def test_a_taken_port_is_one_clear_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Running(tmp_path, str(port)) as running:
            output, errors = running.process.communicate(timeout=20)

    assert running.process.returncode == 1
    assert output == ""
    assert errors == (
        f"Port {port} is in use; stop what uses it, or choose another with PORT=...\n"
    )


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", ""])
def test_a_bad_port_is_one_clear_sentence(tmp_path: Path, port: str) -> None:
    with Running(tmp_path, port) as running:
        output, errors = running.process.communicate(timeout=20)

    assert running.process.returncode == 1
    assert output == ""
    assert errors == f"PORT must be a number from 1 to 65535, not {port!r}.\n"
