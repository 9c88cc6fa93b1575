"""The README is true: its commands are run in order, and their output is the one it shows."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infra.cli import main as operator_command
from infra.docs.markdown import Fence, Markdown
from infra.template import PROJECT_ROOT, Template
from lib.deadline import (
    FUNCTION_TIMEOUT_S,
    IDEMPOTENCY_TTL_S,
    JOB_WAITS_S,
    LEASE_S,
    REFUNDED_WITHIN_S,
    WORKER_LEASE_S,
)
from lib.http.contract import OPERATIONS
from lib.http.guide import JOB_REFUNDED_WITHIN_MIN
from lib.http.models import MAX_PROMPT_CHARACTERS
from lib.http.openapi import openapi
from lib.http.outcomes import outcomes
from lib.keys.verification import CACHE_S
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.settings import DEFAULT_MODEL
from tests.guides import Agreeing

README = Markdown.read(PROJECT_ROOT / "README.md")
MAKEFILE = (PROJECT_ROOT / "Makefile").read_text(encoding="utf-8")
RESULTS = (PROJECT_ROOT / "infra" / "bench" / "RESULTS.md").read_text(encoding="utf-8")
LOCAL_URL = "http://127.0.0.1:8000"
GENERATION = re.compile(r"\b\d{13,52}\b")
POLLS, POLL_EVERY_S = 100, 0.2


@dataclass(frozen=True)
class Terminal:
    """``make run`` in a directory of its own, on a free port, and what it printed."""

    url: str
    directory: Path
    printed: str

    def here(self, text: str) -> str:
        """A text of the README with this stack's URL and key in it."""
        key = (self.directory / ".local" / "api-key").read_text(encoding="utf-8").strip()
        return text.replace(LOCAL_URL, self.url).replace("gg_demo_EXAMPLE", key)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "PORT": str(port)}
    environment.pop("GEMINI_API_KEY", None)
    directory = tmp_path_factory.mktemp("terminal")
    with subprocess.Popen(
        [sys.executable, "-m", "infra.local"],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Requests:" in line:
                break
        yield Terminal(f"http://127.0.0.1:{port}", directory, "".join(lines))
        process.send_signal(signal.SIGINT)


class UnknownCommandError(Exception):
    """The README has a command that no test runs."""


@dataclass
class Reader:
    """Follows the README from its first command to its last, in the terminal's directory."""

    terminal: Terminal
    monkeypatch: pytest.MonkeyPatch
    output: Callable[[], str]
    key_id: str = ""
    generations: dict[str, str] = field(default_factory=dict)
    """The ids that the README shows, and those of this run."""

    def run(self, command: str) -> str:
        """Runs one command; returns what it prints."""
        match shlex.split(command):
            case ["curl", *_]:
                return self._poll(command) if "/generations/" in command else self._curl(command)
            case [".venv/bin/gemini-generate", "--stack-name", "gemini-generate", *arguments]:
                return self._operate(arguments)
            case [".venv/bin/gemini-generate", "verify", *arguments]:
                assert "settled, 5 credits charged" in self._operate(["verify", *arguments])
            case ["make", target]:
                assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"no make {target}"
            case ["aws", "secretsmanager", "put-secret-value", "--secret-id", _, *value]:
                assert value == ["--secret-string", "file://gemini-api-key.txt"]
            case ["sam", "build"] | ["sam", "deploy"]:
                pass  # tests/test_build.py and tests/test_deployment.py run these.
            case _:
                raise UnknownCommandError(command)
        return ""

    def compare(self, shown: str, printed: str) -> None:
        """Checks an output against the README's, ids, times and some headers apart."""
        for theirs, ours in zip(
            GENERATION.findall(shown), GENERATION.findall(printed), strict=True
        ):
            assert self.generations.setdefault(theirs, ours) == ours, theirs
        (status, headers, body), (real_status, real_headers, real_body) = map(
            comparable, (shown, printed)
        )
        assert (status, body) == (real_status, real_body)
        assert headers <= real_headers

    def _poll(self, command: str) -> str:
        for theirs, ours in self.generations.items():
            command = command.replace(theirs, ours)
        printed = ""
        for _ in range(POLLS):
            printed = self._curl(command)
            if '"reserved"' not in printed:
                return printed
            time.sleep(POLL_EVERY_S)
        pytest.fail(f"still reserved: {printed}")

    def _curl(self, command: str) -> str:
        run = subprocess.run(  # noqa: S603 - the README's own line, for this machine's server
            ["/bin/sh", "-euc", command.replace(LOCAL_URL, self.terminal.url)],
            cwd=self.terminal.directory,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    def _operate(self, arguments: list[str]) -> str:
        """Acts on the local stack instead of a deployed one."""
        self.monkeypatch.chdir(self.terminal.directory)
        self.monkeypatch.setattr(sys, "stdin", Agreeing("y\n"))
        named = [self.key_id if each == "KEY_ID" else each for each in arguments]
        status = operator_command(["--local", *named])
        printed = self.output()
        assert status == 0, printed
        self.key_id = next(iter(re.findall(r"\bkey_\w+", printed)), self.key_id)
        return printed


def comparable(text: str) -> tuple[str, set[str], Any]:
    """Status line, headers and body as curl prints them; without -i there is only a body."""
    same = re.sub(r'("durationMs":)\d+', r"\1 1", GENERATION.sub("*", text))
    same = re.sub(r"http://127\.0\.0\.1:\d+|[\d-]{10}T[\d:.]{12}Z", "*", same)
    head, _, body = same.replace("\r\n", "\n").strip().rpartition("\n\n")
    status, *headers = head.splitlines() or [""]
    return status.strip(), set(headers), json.loads(body)


@pytest.fixture
def reader(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Reader:
    # boto3's session keeps the credentials of the first test that made a client.
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    return Reader(terminal, monkeypatch, output=lambda: capsys.readouterr().out)


@pytest.mark.real
def test_every_command_works_in_order_and_prints_what_is_shown(reader: Reader) -> None:
    outputs = [each for each in README.fences if each.language in {"json", "http"}]
    compared = []

    for fence, following in zip(README.fences, [*README.fences[1:], Fence("", "")], strict=True):
        for command in fence.commands():
            printed = reader.run(command)
            if following in outputs and command.startswith("curl"):
                reader.compare(following.text, printed)
                compared.append(following)

    assert compared == outputs, "an output is shown without its command"


def test_make_run_begins_as_shown_and_prints_the_first_request(terminal: Terminal) -> None:
    (beginning,) = (each.text for each in README.fences if each.language == "text")
    first = next(each for fence in README.fences for each in fence.commands() if "curl" in each)

    assert terminal.printed.startswith(terminal.here(beginning))
    key = terminal.here("gg_demo_EXAMPLE")
    printed = [each for each in terminal.printed.splitlines() if each.startswith("  curl ")]
    assert shlex.split(printed[0]) == shlex.split(
        terminal.here(first).replace("$(cat .local/api-key)", key)
    )


def test_a_command_of_another_kind_is_rejected(reader: Reader) -> None:
    for command in ("rm -rf .local", "python -m infra.cli audit", "aws s3 ls"):
        with pytest.raises(UnknownCommandError):
            reader.run(command)
    assert {each.language for each in README.fences} == {"sh", "json", "http", "text", "python"}


def test_the_routes_are_those_of_the_contract() -> None:
    rows, _ = README.section("The API").tables

    assert {row[0] for row in rows[1:]} == {f"{each.method} {each.path}" for each in OPERATIONS}


def test_the_costs_of_outcomes_are_those_of_the_reference() -> None:
    _, (_, *rows) = README.section("The API").tables
    costs = {row[0]: row[1] for row in rows}
    all_outcomes = outcomes(openapi("https://here"))

    held = {each.code for each in all_outcomes if "held" in each.credits_charged and each.code}
    unknown = {each.status for each in all_outcomes if each.credits_charged == "unknown"}
    assert held == {"outcome_pending"}
    assert costs["500 `outcome_pending"] == f"{CREDITS_PER_IMAGE}, held"
    assert unknown == {"500", "503", "none"}
    assert costs["500, 503 of API Gateway itself; no response"] == "unknown"
    assert [cost for cost in costs.values() if cost == "0"] == ["0", "0"]


def test_its_figures_are_those_of_the_code() -> None:
    for phrase in (
        f"{CREDITS_PER_IMAGE} credits are charged if and only if",
        f"exactly once, within {REFUNDED_WITHIN_S // 60} minutes",
        f"settled or refunded within {JOB_REFUNDED_WITHIN_MIN}.",
        f"up to {MAX_PROMPT_CHARACTERS:,} characters",
        f"within {IDEMPOTENCY_TTL_S // 3600} hours",
        f"longer than {FUNCTION_TIMEOUT_S} seconds",
        f"dead within {CACHE_S:.0f} seconds",
        f"the default model, `{DEFAULT_MODEL}`",
    ):
        assert phrase in README.words, phrase


def test_an_asynchronous_request_ends_within_the_promise() -> None:
    deliveries = Template.from_file().queue("JobsQueue").receives or 0
    reconciled_within_s = REFUNDED_WITHIN_S - LEASE_S
    leases_s = JOB_WAITS_S + deliveries * WORKER_LEASE_S

    ends_within_s = leases_s + (1 + deliveries) * reconciled_within_s
    assert JOB_REFUNDED_WITHIN_MIN * 60 - 300 < ends_within_s <= JOB_REFUNDED_WITHIN_MIN * 60


def test_the_figures_of_its_speed_are_those_of_the_last_results() -> None:
    quoted = [line for line in README.section("Speed").text.splitlines() if line.startswith("|")]

    assert len(quoted) == 2 + 3
    assert set(quoted) <= set(RESULTS.splitlines())
