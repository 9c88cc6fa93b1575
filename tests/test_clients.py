"""The clients as an operator configures them: secrets, R2's credentials, and dead connections."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, Self

import pytest

from handlers.dependencies import Dependencies
from infra.local.aws import EmbeddedAws
from infra.local.gemini_stand_in import GeminiStandIn
from lib.clients import dynamodb, secrets_manager, sqs, storage
from lib.deadline import LEDGER_READ_S, QUEUE_READ_S, SECRETS_READ_S, STORAGE_READ_S, Deadline
from lib.errors import ModelUnavailable, StorageFailed
from lib.jobs import Job, JobQueue
from lib.ledger.table import Table
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.storage import REREAD_AFTER_S, Images, ObjectStore, StorageUnreachable
from lib.settings import Settings
from tests.servers import QuietHandler, Serving

BUCKET = "pictures"
SECRET = "r2-credentials"
BASE_URL = "https://images.example"
KEY = "AIza-distinctive-key"
# How long botocore waits for "100 Continue" before it sends an object's bytes all the same.
CONTINUE_S = 1
OVERSHOOT_S = 1.0  # measured: 0.1; the rest is for busy machines


_numbers = count()


def unique(name: str) -> str:
    return f"{name}-{next(_numbers)}"


@pytest.fixture(scope="module")
def aws() -> Iterator[EmbeddedAws]:
    with EmbeddedAws() as running:
        running.create_bucket(BUCKET)
        running.accept(access_key="r2-id")
        pair = {"accessKeyId": "r2-id", "secretAccessKey": "r2-secret"}
        running.create_secret(SECRET, json.dumps(pair))
        running.create_secret("gemini-key", KEY)
        yield running


def settings(
    *, gemini: str = "gemini-key", url: str | None = None, secret: str | None = None
) -> Settings:
    return Settings(
        "credits",
        BUCKET,
        BASE_URL,
        "orgs/",
        gemini,
        storage_endpoint_url=url,
        storage_credentials_secret=secret,
        # Powertools keeps one logger per name, with the standard output that it began with.
        service_name=unique("service"),
    )


def store(aws: EmbeddedAws, secret: str) -> ObjectStore:
    return ObjectStore(settings(url=aws.url, secret=secret), aws.client("secretsmanager"))


def log_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


# R2


def test_r2_gets_its_own_credentials_the_region_auto_and_no_trailing_checksum(
    aws: EmbeddedAws,
) -> None:
    made = store(aws, SECRET)
    sent: list[Any] = []
    made().meta.events.register(
        "before-send.s3.PutObject", lambda request, **_: sent.append(dict(request.headers))
    )
    images = Images(made, BUCKET, BASE_URL)
    images.put("generated/one.png", b"bytes", "attempt-1", Deadline(10))
    found = images.read("generated/one.png")
    assert found is not None
    assert found.content == b"bytes"
    (headers,) = ({name.lower(): _text(value) for name, value in each.items()} for each in sent)
    assert "Credential=r2-id/" in headers["authorization"]
    assert "/auto/s3/aws4_request" in headers["authorization"]
    assert headers["if-none-match"] == "*"
    assert not [name for name in headers if "checksum" in name or "trailer" in name]
    assert "aws-chunked" not in headers.get("content-encoding", "")


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{}",
        "[]",
        "null",
        "plain text",
        "[" * 10_000,
        '{"accessKeyId": "id"}',
        '{"access_key_id": "id", "secret_access_key": "a-distinctive-secret"}',
        '{"accessKeyId": 7, "secretAccessKey": "a-distinctive-secret"}',
        '{"accessKeyId": "", "secretAccessKey": "a-distinctive-secret"}',
        '{"accessKeyId": "id", "secretAccessKey": ["a-distinctive-secret"]}',
    ],
)
def test_credentials_that_can_not_be_used_name_their_setting_and_no_value(
    aws: EmbeddedAws,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
) -> None:
    use(aws, monkeypatch)
    name = unique("r2")
    if text is not None:
        aws.create_secret(name, text or " ")
    images = Dependencies(settings(url=aws.url, secret=name)).images

    with pytest.raises(StorageUnreachable):
        images.prepare()
    with pytest.raises(StorageFailed):
        images.put("generated/two.png", b"bytes", "attempt-1", Deadline(10))

    lines = log_lines(capsys)
    message = "the secret in STORAGE_CREDENTIALS_SECRET holds no usable credentials"
    assert [line["message"] for line in lines] == [message, message]
    assert "distinctive" not in json.dumps(lines)


def use(aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws.environment().items():
        monkeypatch.setenv(name, value)


class StrictStore(Serving):
    """A store that refuses every access key but ``valid``, as R2 does; it holds no objects."""

    def __init__(self, valid: str, status: int, code: str) -> None:
        self.valid = valid
        self.refusals = 0
        self.used: list[str] = []
        outer = self

        class Handler(QuietHandler):
            def respond(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                found = re.search(r"Credential=([^/]+)/", self.headers["Authorization"])
                used = found[1] if found else ""
                outer.used.append(used)
                status_, body = 200, b""
                if used != outer.valid:
                    outer.refusals += 1
                    status_ = status
                    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                elif self.command in {"GET", "HEAD"}:
                    status_, body = 404, b"<Error><Code>NoSuchKey</Code></Error>"
                body = b"" if self.command == "HEAD" else body
                self.send_response(status_)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_PUT = do_GET = do_HEAD = do_DELETE = respond  # noqa: N815 - http.server's names

        super().__init__(Handler)


class Rotating:
    """R2's secret, rotated by a test, in the Secrets Manager of ``aws``."""

    def __init__(self, aws: EmbeddedAws) -> None:
        self.name = unique("rotating")
        self._secrets = aws.client("secretsmanager")
        aws.create_secret(self.name, self._pair("old"))

    def rotate(self, key: str) -> None:
        self._secrets.put_secret_value(SecretId=self.name, SecretString=self._pair(key))

    def spoil(self) -> None:
        self._secrets.put_secret_value(SecretId=self.name, SecretString="{}")

    @staticmethod
    def _pair(key: str) -> str:
        return json.dumps({"accessKeyId": key, "secretAccessKey": f"{key}-secret"})

    def images(self, store_url: str, clock: "Clock") -> tuple[Images, list[str]]:
        warned: list[str] = []
        configured = settings(url=store_url, secret=self.name)
        made = ObjectStore(configured, self._secrets, warned.append, clock)
        return Images(made, BUCKET, BASE_URL, sleep=lambda _: None), warned


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


REFUSED = [
    (403, "InvalidAccessKeyId"),
    (403, "SignatureDoesNotMatch"),
    (403, "AccessDenied"),
    (401, "Unauthorized"),
    (400, "ExpiredToken"),
    (400, "InvalidToken"),
    (400, "InvalidArgument"),
    (403, ""),
]


@pytest.mark.parametrize(("status", "code"), REFUSED)
def test_rotated_credentials_are_read_again_and_the_call_succeeds(
    aws: EmbeddedAws, status: int, code: str
) -> None:
    secret = Rotating(aws)
    with StrictStore("old", status, code) as r2:
        images, warned = secret.images(r2.url, Clock())
        images.put("generated/a.png", b"bytes", "attempt-1", Deadline(10))
        secret.rotate("new")
        r2.valid = "new"

        images.put("generated/b.png", b"bytes", "attempt-2", Deadline(10))
        images.put("generated/c.png", b"bytes", "attempt-3", Deadline(10))

    assert r2.used == ["old", "old", "new", "new"]
    assert warned == ["read rotated credentials from the secret in STORAGE_CREDENTIALS_SECRET"]


@pytest.mark.parametrize("operation", ["put", "read", "delete", "put_tombstone"])
def test_every_operation_survives_a_rotation(aws: EmbeddedAws, operation: str) -> None:
    secret = Rotating(aws)
    with StrictStore("old", 403, "InvalidAccessKeyId") as r2:
        images, _ = secret.images(r2.url, Clock())
        images.prepare()
        secret.rotate("new")
        r2.valid = "new"
        calls: dict[str, Callable[[], object]] = {
            "put": lambda: images.put("a.png", b"bytes", "attempt-1", Deadline(10)),
            "read": lambda: images.read("a.png"),
            "delete": lambda: images.delete("a.png"),
            "put_tombstone": lambda: images.put_tombstone("a.png", "attempt-1", Deadline(10)),
        }

        calls[operation]()

    assert r2.used == ["old", "new"]


def test_a_denial_that_is_no_rotation_is_neither_a_storm_of_reads_nor_of_calls(
    aws: EmbeddedAws,
) -> None:
    secret = Rotating(aws)
    read: list[str] = []
    secrets: Any = aws.client("secretsmanager")
    secrets.meta.events.register(
        "before-send.secrets-manager.GetSecretValue", lambda **_: read.append("read")
    )
    with StrictStore("another", 403, "AccessDenied") as r2:
        clock = Clock()
        images, _ = secret.images(r2.url, clock)
        images.prepare()
        read.clear()
        for _ in range(10):
            with pytest.raises(StorageFailed):
                images.put("a.png", b"bytes", "attempt-1", Deadline(10))
        assert len(read) == 1
        assert r2.refusals == 10
        clock.now_s += REREAD_AFTER_S
        with pytest.raises(StorageFailed):
            images.put("a.png", b"bytes", "attempt-1", Deadline(10))

    assert len(read) == 2


def test_a_rotation_to_a_secret_that_can_not_be_used_keeps_the_old_credentials(
    aws: EmbeddedAws,
) -> None:
    secret = Rotating(aws)
    with StrictStore("old", 403, "AccessDenied") as r2:
        clock = Clock()
        images, warned = secret.images(r2.url, clock)
        images.prepare()
        secret.spoil()
        r2.valid = "new"
        with pytest.raises(StorageFailed):
            images.put("a.png", b"bytes", "attempt-1", Deadline(10))
        assert warned == ["the secret in STORAGE_CREDENTIALS_SECRET holds no usable credentials"]
        secret.rotate("new")
        clock.now_s += REREAD_AFTER_S

        images.put("a.png", b"bytes", "attempt-1", Deadline(10))

    assert r2.used == ["old", "old", "new"]


@pytest.mark.parametrize(("status", "code"), [(404, "NoSuchBucket"), (503, "SlowDown")])
def test_a_refusal_that_is_not_about_credentials_reads_no_secret(
    aws: EmbeddedAws, status: int, code: str
) -> None:
    secret = Rotating(aws)
    with StrictStore("another", status, code) as r2:
        images, warned = secret.images(r2.url, Clock())
        images.prepare()
        secret.rotate("another")
        with pytest.raises(StorageFailed):
            images.put("a.png", b"bytes", "attempt-1", Deadline(10))

    assert set(r2.used) == {"old"}
    assert warned == []


# Gemini's key


@pytest.fixture(scope="module")
def google() -> Iterator[GeminiStandIn]:
    with GeminiStandIn(fixed_picture=True) as stand_in:
        yield stand_in


def generate_with_secret(
    aws: EmbeddedAws, google: GeminiStandIn, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> bytes:
    use(aws, monkeypatch)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", google.url)
    name = unique("gemini")
    if text is not None:
        aws.create_secret(name, text)
    model = Dependencies(settings(gemini=name)).model
    return model.generate("A fox", AspectRatio.SQUARE, Deadline(20))


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f"  {KEY}\r\n",
        f'"{KEY}"',
        f"'{KEY}'\n",
        f"\ufeff{KEY}",
        f' \ufeff"{KEY}" ',
        f"`{KEY}`",
        json.dumps({"GEMINI_API_KEY": KEY}),
        json.dumps({"key": f" {KEY}\n"}),
        json.dumps({"apiKey": KEY, "version": 2, "tags": [], "note": None}, indent=2),
        f'\ufeff{{"key": "{KEY}"}}\n',
    ],
)
def test_the_gemini_secret_may_be_written_as_operators_write_it(
    aws: EmbeddedAws, google: GeminiStandIn, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    assert generate_with_secret(aws, google, monkeypatch, text)

    assert google.requests[-1].headers["x-goog-api-key"] == KEY


@pytest.mark.parametrize(
    "text",
    [
        " ",
        '""',
        "{}",
        "null",
        "[]",
        "12",
        f'["{KEY}"]',
        f'{{"a": "{KEY}", "b": "{KEY}"}}',
        f'{{"a": {{"b": "{KEY}"}}}}',
        f'{{"a": "{KEY}"',
        f"{{'a': '{KEY}'}}",
        '{"a": ""}',
        '{"a": 7}',
        "two distinctive words",
        "distinctive-ключ",
        "auth_tokens/distinctive",
        "[" * 10_000,
        "distinctive" * 100,
    ],
)
def test_a_gemini_secret_without_a_usable_key_is_one_log_line_and_no_request(
    aws: EmbeddedAws,
    google: GeminiStandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
) -> None:
    before = len(google.requests)

    with pytest.raises(ModelUnavailable) as failed:
        generate_with_secret(aws, google, monkeypatch, text)

    lines = log_lines(capsys)
    assert [line["message"] for line in lines] == ["the Gemini secret holds no usable key"]
    assert "distinctive" not in json.dumps(lines)
    assert failed.value.log_fields() == {"reason": "secret_unusable"}
    assert len(google.requests) == before


def test_a_gemini_secret_that_can_not_be_read_is_one_log_line_too(
    aws: EmbeddedAws,
    google: GeminiStandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ModelUnavailable):
        generate_with_secret(aws, google, monkeypatch, None)

    (line,) = log_lines(capsys)
    assert line["message"] == "the Gemini secret cannot be read"
    assert "ResourceNotFoundException" in json.dumps(line["fault"])


# Connections that died while they were idle


class DyingConnections:
    """A proxy in front of ``upstream_url`` whose connections die silently when told.

    A dead connection accepts what is sent and never responds, as behind a NAT that forgot it or
    after a freeze. New connections work.
    """

    def __init__(self, upstream_url: str) -> None:
        host, _, port = upstream_url.removeprefix("http://").rpartition(":")
        self._upstream = (host, int(port))
        self._dead: set[int] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self.opened = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def kill_open(self) -> None:
        """Every connection that is open now is dead from here on."""
        self._dead = set(range(self.opened))

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
                self._sockets += [client, server]
                number, self.opened = self.opened, self.opened + 1
                for source, target in ((client, server), (server, client)):
                    arguments = (number, source, target)
                    threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(self, number: int, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if number not in self._dead:
                    target.sendall(data)


@contextmanager
def dying(aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch) -> Iterator[DyingConnections]:
    use(aws, monkeypatch)
    with DyingConnections(aws.url) as proxy:
        aws.accept(url=proxy.url)
        for service in ("DYNAMODB", "S3", "SECRETS_MANAGER", "SQS"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", proxy.url)
        yield proxy


@pytest.mark.real
@pytest.mark.parametrize("service", ["dynamodb", "s3", "sqs", "secretsmanager"])
def test_a_dead_pooled_connection_costs_one_read_timeout_and_then_a_fresh_one_succeeds(
    aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    table = unique("table")
    aws.create_table(table)
    queue_url = aws.client("sqs").create_queue(QueueName=unique("queue"))["QueueUrl"]
    picture = bytes(3_000_000)  # More than the kernel buffers: the sending blocks too.
    with dying(aws, monkeypatch) as proxy:
        rows, s3 = Table(dynamodb(), table), storage()
        images = Images(lambda: s3, BUCKET, BASE_URL)
        queue = JobQueue(sqs(), queue_url.replace(aws.url, proxy.url))
        secrets = secrets_manager()
        key = {"pk": {"S": "ORG#a"}, "sk": {"S": "ACCOUNT"}}
        calls: dict[str, Callable[[], object]] = {
            "dynamodb": lambda: rows.get(key, Deadline(20)),
            "s3": lambda: images.put(unique("a.png"), picture, "attempt-1", Deadline(20)),
            "sqs": lambda: queue.put(Job("acme", 1), Deadline(20)),
            "secretsmanager": lambda: secrets.get_secret_value(SecretId=SECRET),
        }
        read_s = {
            "dynamodb": LEDGER_READ_S,
            "s3": STORAGE_READ_S + CONTINUE_S,
            "sqs": QUEUE_READ_S,
            "secretsmanager": SECRETS_READ_S,
        }[service]
        calls[service]()
        opened = proxy.opened
        proxy.kill_open()
        began = time.monotonic()

        calls[service]()

    took_s = time.monotonic() - began
    assert read_s <= took_s < read_s + OVERSHOOT_S
    assert proxy.opened == opened + 1


@pytest.mark.real
def test_several_dead_connections_cost_one_call_no_more_than_one(
    aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the reconciler's threads leave them: urllib3 retries on a new one, not on the next."""
    table = unique("table")
    aws.create_table(table)
    key = {"pk": {"S": "ORG#a"}, "sk": {"S": "ACCOUNT"}}
    with dying(aws, monkeypatch) as proxy:
        rows = Table(dynamodb(), table)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: rows.get(key, Deadline(20)), range(16)))
        assert proxy.opened > 1
        proxy.kill_open()
        began = time.monotonic()

        rows.get(key, Deadline(20))

    assert LEDGER_READ_S <= time.monotonic() - began < LEDGER_READ_S + OVERSHOOT_S
