"""SnapStart: initialisation before the snapshot, and a restored copy, in Lambda's own runtime loop.

Lambda's Python client asks its runtime API for each step. Here that API is a server of the test,
which simulates the snapshot: it blocks the process, inspects it, and restores it.
"""

import gc
import json
import os
import queue
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import snapshot_restore_py

from handlers.initialization import initialize
from infra.local.stack import LocalStack
from infra.template import PROJECT_ROOT
from infra.verify import tools

STEP_S = 30.0
# A copy loads these when it first connects.
LOADED_BY_A_CONNECTION = {"encodings.idna", "stringprep"}


class Tripwire:
    """Forwards connections to ``port`` and counts them."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            there = socket.create_connection(("127.0.0.1", self._target))
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=_pour, args=(one, other), daemon=True).start()


def _pour(source: socket.socket, target: socket.socket) -> None:
    with source, target:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            return


@dataclass
class RuntimeApi:
    """Lambda's runtime API, which blocks each step until the test releases it."""

    restores: "queue.Queue[None]" = field(default_factory=queue.Queue)
    events: "queue.Queue[Mapping[str, Any]]" = field(default_factory=queue.Queue)
    reached: "queue.Queue[str]" = field(default_factory=queue.Queue)
    answers: "queue.Queue[Any]" = field(default_factory=queue.Queue)

    def wait_for(self, step: str) -> None:
        assert self.reached.get(timeout=STEP_S) == step

    def restore(self) -> None:
        self.restores.put(None)

    def invoke(self, event: Mapping[str, Any]) -> Any:
        self.events.put(event)
        return self.answers.get(timeout=STEP_S)


def _server(api: RuntimeApi) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            step = self.path.removeprefix("/2018-06-01/runtime/")
            api.reached.put(step)
            if step == "restore/next":
                api.restores.get(timeout=STEP_S)
                self._answer(200, b"")
                return
            event = api.events.get(timeout=STEP_S)
            self._answer(200, json.dumps(event).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            api.answers.put(json.loads(body))
            self._answer(202, b"")

        def log_message(self, *_arguments: object) -> None:
            pass

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("Lambda-Runtime-Trace-Id", "Root=1-0-0;Parent=0;Sampled=0")
            self.send_header("Lambda-Runtime-Aws-Request-Id", "a-request")
            self.send_header("Lambda-Runtime-Deadline-Ms", str(round((time.time() + 29) * 1000)))
            self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:::function:f")
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@dataclass(frozen=True)
class Copy:
    """A process that was started for a snapshot, and all that it can reach."""

    api: RuntimeApi
    stack: LocalStack
    wires: tuple[Tripwire, ...]
    log: Path

    def connections(self) -> int:
        return sum(wire.connections for wire in self.wires)

    def imported(self) -> list[str]:
        """The modules that it has loaded so far."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time")]

    def ask(self, route: str, prompt: str | None = None) -> tuple[int, dict[str, Any]]:
        answer = self.api.invoke(
            {
                "version": "2.0",
                "routeKey": route,
                "headers": {"authorization": f"Bearer {self.stack.api_key}"},
                "requestContext": {"requestId": "a-request"},
                "body": json.dumps({"prompt": prompt}),
                "isBase64Encoded": False,
            }
        )
        return answer["statusCode"], json.loads(answer["body"])


@contextmanager
def copy_of(handler: str, log: Path) -> Iterator[Copy]:
    """The handler in Lambda's own loop, as SnapStart starts it."""
    with ExitStack() as undo:
        stack = undo.enter_context(LocalStack(latency_s=0))
        assert stack.stand_in is not None
        aws, gemini = (
            undo.enter_context(closing(Tripwire(int(url.rpartition(":")[2]))))
            for url in (stack.aws.url, stack.stand_in.url)
        )
        stack.aws.accept(url=aws.url)
        api = RuntimeApi()
        server = undo.enter_context(_server(api))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        undo.callback(server.shutdown)
        services = ("DYNAMODB", "S3", "SECRETS_MANAGER")
        process = subprocess.Popen(  # noqa: S603 - our own handler
            [str(tools.python313()), "-X", "importtime", "-m", "awslambdaric", handler],
            cwd=PROJECT_ROOT,
            env={
                **os.environ,
                **{f"AWS_ENDPOINT_URL_{service}": aws.url for service in services},
                "GOOGLE_GEMINI_BASE_URL": gemini.url,
                "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT), str(tools.packages())]),
                "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{server.server_address[1]}",
                "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start",
                "AWS_LAMBDA_FUNCTION_NAME": "restored",
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
                "AWS_LAMBDA_LOG_GROUP_NAME": "here",
                "AWS_LAMBDA_LOG_STREAM_NAME": "here",
            },
            stdout=undo.enter_context(log.open("wb")),
            stderr=subprocess.STDOUT,
        )
        undo.callback(process.wait)
        undo.callback(process.kill)
        yield Copy(api, stack, (aws, gemini), log)


@pytest.mark.real
@pytest.mark.parametrize(
    ("handler", "route", "prompt", "expected"),
    [
        ("generate", "POST /api/v1/models/gemini/generate", "A hut", ("creditsCharged", 5)),
        ("account", "GET /api/v1/billing/credits", None, ("credits", 100)),
    ],
)
def test_a_snapshot_has_no_connection_and_all_modules_and_a_copy_answers(
    tmp_path: Path, handler: str, route: str, prompt: str | None, expected: tuple[str, object]
) -> None:
    with copy_of(f"handlers.{handler}.handler", tmp_path / "log") as copy:
        copy.api.wait_for("restore/next")
        before = copy.imported()
        assert copy.connections() == 0

        copy.api.restore()
        copy.api.wait_for("invocation/next")
        assert copy.connections() == 0
        status, body = copy.ask(route, prompt)

        assert status == 200
        assert expected in body.items()
        assert copy.connections() > 0
        assert set(copy.imported()) - set(before) <= LOADED_BY_A_CONNECTION
        assert any(name.startswith("google") for name in before) == (handler == "generate")


@pytest.fixture
def no_hooks() -> Iterator[None]:
    """The hooks of this process, empty before and after; and its garbage is collected again."""
    lists = (snapshot_restore_py.get_before_snapshot(), snapshot_restore_py.get_after_restore())
    for hooks in lists:
        hooks.clear()
    yield
    gc.unfreeze()
    for hooks in lists:
        hooks.clear()


def calls_when_started(how: str | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    name = "AWS_LAMBDA_INITIALIZATION_TYPE"
    if how is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, how)
    initialize(lambda: calls.append("build"), lambda: calls.append("prime"))
    return calls


@pytest.mark.usefixtures("no_hooks")
@pytest.mark.parametrize(
    ("how", "at_once", "before_the_snapshot"),
    [(None, [], []), ("on-demand", ["build"], []), ("snap-start", ["build"], ["prime"])],
)
def test_a_function_builds_when_it_starts_and_primes_before_a_snapshot(
    monkeypatch: pytest.MonkeyPatch,
    how: str | None,
    at_once: list[str],
    before_the_snapshot: list[str],
) -> None:
    calls = calls_when_started(how, monkeypatch)
    assert calls == at_once
    for hook, arguments, named in snapshot_restore_py.get_before_snapshot():
        hook(*arguments, **named)
    assert calls == at_once + before_the_snapshot


STARTS = """
import gc
from handlers.initialization import initialize

collected = []
gc.callbacks.append(lambda phase, _: collected.append(phase))

def build():
    made = [[] for _ in range(100_000)]
    assert not collected
    return made

initialize(build)
[[] for _ in range(100_000)]
assert collected
"""


def test_garbage_is_collected_when_a_function_has_started_and_not_before() -> None:
    environment = {**os.environ, "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand"}
    command = [sys.executable, "-c", STARTS]
    subprocess.run(command, cwd=PROJECT_ROOT, env=environment, check=True)  # noqa: S603 - our own


@pytest.mark.usefixtures("no_hooks")
def test_two_copies_of_a_snapshot_draw_different_random_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls_when_started("snap-start", monkeypatch)
    snapshot = random.getstate()

    def first_number_of_a_copy() -> float:
        random.setstate(snapshot)
        for hook, arguments, named in snapshot_restore_py.get_after_restore():
            hook(*arguments, **named)
        return random.random()  # noqa: S311 - it is what is under test

    assert first_number_of_a_copy() != first_number_of_a_copy()
