"""The whole service on this machine, as its user and their clients see it."""

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
from pathlib import Path
from typing import Any, Self

import pytest
from PIL import Image

from infra.local.aws import CREDENTIALS, EmbeddedAws
from infra.local.gemini_stand_in import FAILURES, GeminiStandIn
from infra.local.stack import LocalStack
from infra.template import PROJECT_ROOT, TEMPLATE_PATH, Template, parse
from lib.picture.aspect_ratio import AspectRatio
from tests.customer import GENERATE, Customer, fetch, plain_picture

SUCCESS = "success"
# None of these ends within the 2.5 s that their test leaves to the model.
TOO_LONG = ("hang", "hang-after-headers", "drip", "drip-headers", "slow")
# What a customer gets for each failure of the stand-in.
OUTCOMES = {
    SUCCESS: "thought-first other-with-image png webp wrong-mime overloaded-once reset-once",
    "Content policy violation": """
        blocked-prompt safety recitation blocklist prohibited-content spii image-safety
        image-prohibited image-recitation safety-with-image""",
    "The model returned no image": """
        text-only no-image image-other other max-tokens unknown-finish numeric-finish thought-only
        empty-body empty-object empty-array not-json bad-base64 endless cut-base64 cut-image
        not-an-image wrong-shape bomb bad-request""",
    "The image model is overloaded": """
        quota quota-short quota-bare quota-sentence internal bad-gateway overloaded reset
        cancelled aborted too-early""",
    "Image generation is unavailable": """
        bad-key unauthorized forbidden not-found no-billing redirect unbilled payment-required
        quota-zero spending-cap spend-rate prepaid-depleted""",
    "Image generation timed out": "deadline " + " ".join(TOO_LONG),
}
OUTCOME_OF = {name: message for message, names in OUTCOMES.items() for name in names.split()}
IMMEDIATE = [name for name in OUTCOME_OF if name not in TOO_LONG]


def assert_refunded(customer: Customer, answer: Any, message: str) -> None:
    assert answer.status == 500, answer.body
    expected = {"error": "Failed to generate image", "message": message}
    if answer.headers["x-error-code"] == "model_timeout":
        expected["hint"] = "Send the header `Prefer: respond-async` to give a slow model minutes"
    assert answer.json() == expected
    assert answer.headers["x-credits-charged"] == "0"
    assert customer.balance() == 100
    assert customer.stored() == []


def assert_picture(url: str, ratio: str) -> None:
    answer = fetch(url)
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    picture = Image.open(io.BytesIO(answer.body), formats=["PNG"])
    picture.load()
    wanted = AspectRatio(ratio).width_over_height
    assert picture.width / picture.height == pytest.approx(wanted, rel=0.06)


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0) as running:
        yield running


@pytest.fixture
def quick_model(stack: LocalStack) -> Iterator[None]:
    """A model that sends one plain picture, for tests that are about credits."""
    assert stack.stand_in is not None
    stack.stand_in.answer_with(plain_picture)
    yield
    stack.stand_in.answer_with(None)


# What a customer sees


def test_an_image_costs_five_credits_and_is_a_png_of_the_requested_shape(
    stack: LocalStack, customer: Customer
) -> None:
    answer = customer.generate("A cabin in the snow", aspectRatio="16:9")

    assert answer.status == 200
    body = answer.json()
    assert set(body) == {"imageUrl", "mimeType", "creditsCharged", "durationMs"}
    assert (body["mimeType"], body["creditsCharged"]) == ("image/png", 5)
    assert isinstance(body["durationMs"], int)
    prefix = f"{stack.url}/images/generated/gemini/{customer.organisation}/"
    assert re.fullmatch(rf"{prefix}\d{{52}}\.png", body["imageUrl"])
    assert answer.headers["x-credits-charged"] == "5"
    assert_picture(body["imageUrl"], "16:9")
    assert customer.balance() == 95


@pytest.mark.real
def test_each_ratio_gives_its_shape_and_the_default_is_square(customer: Customer) -> None:
    ratios = [ratio.value for ratio in AspectRatio]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda r: customer.generate("Ten", aspectRatio=r), ratios))
    for ratio, answer in zip(ratios, answers, strict=True):
        assert_picture(answer.json()["imageUrl"], ratio)
    assert_picture(customer.generate("Default").json()["imageUrl"], "1:1")

    assert customer.balance() == 100 - 11 * 5


@pytest.mark.real
@pytest.mark.usefixtures("quick_model")
@pytest.mark.parametrize("at_once", [1, 30])
def test_of_thirty_requests_exactly_the_twenty_that_are_paid_for_succeed(
    customer: Customer, at_once: int
) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(lambda n: customer.generate(f"Number {n}"), range(30)))

    assert sorted(answer.status for answer in answers) == [200] * 20 + [402] * 10
    refused = next(answer for answer in answers if answer.status == 402)
    expected = {"error": "Insufficient credits", "creditsRequired": 5, "creditsRemaining": 0}
    assert refused.json() == expected
    urls = {answer.json()["imageUrl"] for answer in answers if answer.status == 200}
    assert len(urls) == len(customer.stored()) == 20
    assert customer.balance() == 0


@pytest.fixture(scope="module")
def failures(stack: LocalStack) -> dict[str, tuple[Customer, Any]]:
    """What each failure that ends by itself led to, each for its own customer."""

    def provoke(name: str) -> tuple[Customer, Any]:
        customer = Customer(stack)
        return customer, customer.generate(f"A fox [fail:{name}]")

    with ThreadPoolExecutor(8) as pool:
        return dict(zip(IMMEDIATE, pool.map(provoke, IMMEDIATE), strict=True))


@pytest.mark.real
@pytest.mark.parametrize("failure", IMMEDIATE)
def test_every_failure_of_the_model_ends_with_an_image_or_a_refund(
    failures: dict[str, tuple[Customer, Any]], failure: str
) -> None:
    customer, answer = failures[failure]

    if OUTCOME_OF[failure] == SUCCESS:
        assert answer.status == 200, answer.body
        assert_picture(answer.json()["imageUrl"], "1:1")
        assert customer.balance() == 95
    else:
        assert_refunded(customer, answer, OUTCOME_OF[failure])


def test_every_failure_of_the_stand_in_has_an_outcome_above() -> None:
    assert set(OUTCOME_OF) == set(FAILURES)


@pytest.mark.real
def test_a_model_that_takes_too_long_is_stopped_in_time_and_the_credits_are_refunded() -> None:
    # A timeout of 8 s instead of 29 leaves the model 2.5 s: the same path without the wait.
    text = TEMPLATE_PATH.read_text(encoding="utf-8").replace("Timeout: 29", "Timeout: 8")
    with LocalStack(latency_s=0, template=Template(parse(text))) as impatient:
        customers = {name: Customer(impatient) for name in TOO_LONG}
        started_at = time.monotonic()
        with ThreadPoolExecutor(len(TOO_LONG)) as pool:
            answers = pool.map(lambda name: customers[name].generate(f"[fail:{name}]"), customers)
            for name, answer in zip(customers, answers, strict=True):
                assert_refunded(customers[name], answer, "Image generation timed out")
        assert time.monotonic() - started_at < 7


@pytest.mark.parametrize("path", ["", "none.png", "../template.yaml", "%2e%2e/x"])
def test_only_images_of_the_service_are_served(stack: LocalStack, path: str) -> None:
    answer = fetch(f"{stack.url}/images/{path}")

    assert (answer.status, answer.json()) == (404, {"message": "Not Found"})


UNROUTED = {
    ("HEAD", "/"): (200, None),
    ("HEAD", "/healthz"): (200, None),
    ("HEAD", "/openapi.json"): (200, None),
    ("POST", "/healthz"): (405, "GET, HEAD"),
    ("GET", "/api/v1/models/gemini/generate"): (405, "POST"),
    ("PUT", "/api/v1/generations"): (405, "GET"),
    ("PATCH", "/api/v1/generations/1795390356254"): (405, "DELETE, GET"),
    ("GET", "/api/v1/generations/"): (404, None),
    ("GET", "/api/v1/models"): (404, None),
    ("POST", "/$default"): (404, None),
}


@pytest.mark.parametrize(("method", "path"), UNROUTED, ids=lambda each: each)
def test_a_request_that_no_route_matches_gets_a_response_in_our_own_form(
    stack: LocalStack, method: str, path: str
) -> None:
    status, allowed = UNROUTED[method, path]
    answer = fetch(f"{stack.url}{path}", method)
    assert (answer.status, answer.headers.get("allow")) == (status, allowed)
    assert "x-request-id" in answer.headers
    if method == "HEAD":
        assert answer.body == b""
    else:
        code = {404: "not_found", 405: "method_not_allowed"}[status]
        assert answer.headers["x-error-code"] == code
        assert answer.headers["x-credits-charged"] == "0"
        assert set(answer.json()) == {"error"}


# Isolation

OWN_SETTINGS = {
    "AWS_PROFILE": "no-such-profile",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "GOOGLE_GENAI_USE_VERTEXAI": "true",
    "GOOGLE_API_KEY": "not-mine",
}
"""What a developer's shell may hold that would lead away from this machine."""


@pytest.mark.real
def test_the_users_own_cloud_settings_are_ignored_and_the_environment_is_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in OWN_SETTINGS.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)

    with LocalStack(latency_s=0) as own:
        assert Customer(own).generate("A fox").status == 200

    assert dict(os.environ) == before


def test_with_the_users_gemini_key_the_real_address_is_called_with_that_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with GeminiStandIn() as google:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", google.url)
        monkeypatch.setenv("GEMINI_MODEL", "gemini-3-pro-image")
        with LocalStack(gemini_api_key="the-users-key") as own:
            assert own.stand_in is None
            assert Customer(own).generate("A fox").status == 200
            assert "the-users-key" not in stored_secrets(own.aws)
        (request,) = google.requests

    assert request.path == "/v1beta/models/gemini-3-pro-image:generateContent"
    assert request.headers["x-goog-api-key"] == "the-users-key"


def stored_secrets(aws: EmbeddedAws) -> set[str]:
    """What a process with the embedded AWS's credentials can read."""
    client = aws.client("secretsmanager")
    names = [each["ARN"] for each in client.list_secrets()["SecretList"]]
    assert names
    return {client.get_secret_value(SecretId=each)["SecretString"] for each in names}


def signed(access_key: str) -> dict[str, str]:
    scope = f"{access_key}/20261126/us-east-1/secretsmanager/aws4_request"
    signature = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"
    return {"Authorization": signature}


OURS = CREDENTIALS["aws_access_key_id"]
STRANGERS = {
    "another user's program": {},
    "one that guesses the credentials": signed("local"),
    "a page of another origin": signed(OURS) | {"Origin": "https://attacker.example"},
    "a sandboxed page": signed(OURS) | {"Origin": "null"},
    "a page whose name resolves to 127.0.0.1": signed(OURS) | {"Host": "attacker.example"},
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_the_embedded_cloud_serves_only_this_run(stranger: str) -> None:
    with EmbeddedAws() as aws:
        aws.create_secret("secret", "for this run")
        form = {"Content-Type": "application/x-amz-json-1.1"}
        ask = form | {"X-Amz-Target": "secretsmanager.GetSecretValue"}
        body = b'{"SecretId": "secret"}'
        theirs = fetch(aws.url, "POST", body, ask | STRANGERS[stranger])
        ours = fetch(aws.url, "POST", body, ask | signed(OURS))

    assert (ours.status, ours.json()["SecretString"]) == (200, "for this run")
    assert (theirs.status, theirs.body) == (403, b"Forbidden")
    assert "access-control-allow-origin" not in theirs.headers


@pytest.mark.parametrize("headers", [{}, signed(OURS)], ids=["a page", "this run"])
def test_the_embedded_cloud_has_no_interface_of_its_own(
    headers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto's shows all that is stored, and writes files into the working directory."""
    monkeypatch.chdir(tmp_path)
    with EmbeddedAws() as aws:
        for method, path in (
            ("GET", "data.json"),
            ("POST", "reset"),
            ("POST", "recorder/upload-recording"),
        ):
            body = b"written" if method == "POST" else None
            assert fetch(f"{aws.url}/moto-api/{path}", method, body, headers).status == 403

    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.real
def test_two_embedded_clouds_share_no_data() -> None:
    with EmbeddedAws() as one, EmbeddedAws() as other:
        one.create_table("credits")
        one.create_secret("secret", "of one")
        one.client("sqs").create_queue(QueueName="jobs")

        assert other.client("dynamodb").list_tables()["TableNames"] == []
        assert other.client("secretsmanager").list_secrets()["SecretList"] == []
        assert "QueueUrls" not in other.client("sqs").list_queues()


# `python -m infra.local`


class Running:
    """The command as a user starts it, in its own directory."""

    def __init__(self, directory: Path, port: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "PORT": port}
        environment |= OWN_SETTINGS
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

    def has_children(self) -> bool:
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


def shell(line: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(  # noqa: S603 - the line is what our own command printed
        ["/bin/sh", "-c", line], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout


@pytest.mark.real
def test_the_printed_commands_work_and_ctrl_c_stops_everything(tmp_path: Path) -> None:
    port = free_port()
    files = tmp_path / ".local"
    with Running(tmp_path, str(port)) as running:
        lines = running.lines_until("Requests:")
        key = (files / "api-key").read_text(encoding="utf-8").strip()
        generate, balance = (line for line in lines if line.startswith("curl "))

        assert f"http://127.0.0.1:{port}" in " ".join(lines)
        assert f"API key       {key}" in lines
        assert (files / "api-key").stat().st_mode & 0o777 == 0o600
        assert files.stat().st_mode & 0o777 == 0o700

        assert_picture(json.loads(shell(generate))["imageUrl"], "16:9")
        assert json.loads(shell(balance)) == {"credits": 95, "creditsPerImage": 5}
        assert re.fullmatch(rf"POST {GENERATE} 200 \d+ ms", running.lines_until("POST")[-1])
        assert '"GeminiGenerate"' in (files / "service.log").read_text(encoding="utf-8")

        hanging = threading.Thread(target=shell, args=(generate.replace("cabin", "[fail:hang]"),))
        hanging.start()
        time.sleep(0.3)
        status, errors, took_s = running.end(signal.SIGINT)
        hanging.join()

        assert (status, errors) == (0, "")
        assert took_s < 10
        assert not running.has_children()
        assert not (files / "api-key").exists()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_signal_during_the_start_ends_it_quietly(tmp_path: Path) -> None:
    with Running(tmp_path, str(free_port())) as running:
        running.lines_until("Starting")
        status, errors, _ = running.end(signal.SIGTERM)

    assert (status, errors) == (0, "")
    assert not (tmp_path / ".local" / "api-key").exists()


@pytest.mark.parametrize("port", ["taken", "http", "0", "65536", "-1", ""])
def test_an_unusable_port_is_one_clear_sentence(tmp_path: Path, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sentence = f"PORT must be a number from 1 to 65535, not {port!r}."
        if port == "taken":
            port = str(taken.getsockname()[1])
            sentence = f"Port {port} is in use; stop what uses it, or choose another with PORT=..."
        with Running(tmp_path, port) as running:
            output, errors = running.process.communicate(timeout=20)

    assert (running.process.returncode, output, errors) == (1, "", sentence + "\n")
