"""``gemini-generate`` as an installed program, beside a ``make run``."""

import http.client
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.template import PROJECT_ROOT
from tests.test_cli import Exited, assert_failed
from tests.test_local_stack import Running, free_port

PROGRAM = (str(Path(sys.executable).with_name("gemini-generate")),)
MODULE = (sys.executable, "-m", "infra.cli")
TIMEOUT_S = 60
_SERVICE = ("AWS_", "CREDITS_", "ORG_", "IMAGE_", "STORAGE_", "GEMINI_")


@dataclass(frozen=True)
class Shell:
    """A shell in the directory where ``make run`` was started, or in another."""

    directory: Path
    url: str = ""

    def environment(self, **more: str) -> dict[str, str]:
        return {
            key: value for key, value in os.environ.items() if not key.startswith(_SERVICE)
        } | more

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        settings: dict[str, Any] = {
            "cwd": self.directory,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": self.environment(),
            # A test run in the background may have inherited an ignored SIGINT.
            "preexec_fn": partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        }
        return subprocess.Popen([*words], text=True, **settings | options)  # noqa: S603 - our own

    def run(self, *words: str, **options: Any) -> Exited:
        with self.start(*words, **options) as process:
            out, err = process.communicate(timeout=TIMEOUT_S)
        return Exited(process.returncode, out or "", err or "")

    def local(self, line: str, *more: str, **options: Any) -> Exited:
        return self.run(*PROGRAM, "--local", *line.split(), *more, **options)

    def generate(self, key: str, prompt: str) -> tuple[int, Any]:
        """Status and body of a customer's request."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=30)
        try:
            path = "/api/v1/models/gemini/generate"
            headers = {"Authorization": f"Bearer {key}"}
            connection.request("POST", path, json.dumps({"prompt": prompt}), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    directory, port = tmp_path_factory.mktemp("run"), free_port()
    with Running(directory, str(port)) as running:
        running.lines_until("Requests:")
        yield Shell(directory, f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("program", [PROGRAM, MODULE])
def test_the_program_runs_in_any_directory(program: tuple[str, ...], tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    environment = shell.environment(PYTHONPATH=str(PROJECT_ROOT))

    exited = shell.run(*program, "--local", "org", "list", env=environment)

    assert_failed(exited, "there is no .local/environment.json here; start the local stack")


@pytest.mark.real
def test_an_operators_day_on_the_local_stack(shell: Shell) -> None:
    def document(line: str, *more: str) -> Any:
        exited = shell.local(line, *more, "--json")
        assert exited.status == 0, exited
        found = json.loads(exited.out)
        assert found.pop("target") == "the local stack"
        return found

    account = {"organisation": "day", "credits": 0, "requestsPerMinute": 120, "suspendedAt": None}
    assert document("org create day --rate-limit 120") == account
    granted = document("credits grant day 50 --id first --note", "Two words")
    assert (granted["credits"], granted["grant"]["note"]) == (50, "Two words")
    issued = document("keys issue day")
    assert re.fullmatch(r"gg_day_\w{49}", issued["key"])
    assert shell.generate(issued["key"], "[fail:safety]")[0] == 500
    status, body = shell.generate(issued["key"], "a red fox")
    assert (status, body["creditsCharged"]) == (200, 5)
    assert document("credits balance day") == {"organisation": "day", "credits": 45}
    assert [each["id"] for each in document("credits history day")["grants"]] == ["first"]
    newest, oldest = document("generations list day")["generations"]
    assert (newest["prompt"], newest["imageUrl"]) == ("a red fox", body["imageUrl"])
    assert (newest["status"], oldest["failureCode"]) == ("settled", "content_rejected")
    assert document(f"generations show day {oldest['id']}") == {"organisation": "day", **oldest}
    rotated = document("keys rotate day --grace-hours 3 --yes")
    assert rotated["rotated"] is True
    assert document("keys rotate day --grace-hours 3 --yes")["key"] is None
    revoked = document(f"keys revoke day {issued['id']} --yes")
    assert (revoked["id"], revoked["live"]) == (issued["id"], False)
    live = {each["id"]: each["live"] for each in document("keys list day")["keys"]}
    assert live == {issued["id"]: False, rotated["id"]: True}
    assert document("org limit day 0 --yes")["requestsPerMinute"] == 0
    assert document("org suspend day --yes --reason", "Not paid")["suspendedAt"]
    assert shell.generate(rotated["key"], "a red fox")[0] == 403
    assert document("org resume day")["suspendedAt"] is None
    (used,) = document("usage day")["usage"]
    assert used["key"] == rotated["id"]
    assert (used["images"], used["credits"], used["refunded"]) == (1, 5, 5)
    assert document(f"logs {oldest['id']}")["lines"]
    assert document("doctor")["healthy"] is True
    assert document("org show day")["lastGeneration"]["id"] == newest["id"]
    assert "day" in [each["organisation"] for each in document("org list")["organisations"]]
    assert document("reconcile")["failed"] == 0
    assert document("audit")["healthy"] is True


# At a terminal


class Pty:
    """A terminal in which the command runs."""

    def __init__(self, shell: Shell, line: str) -> None:
        self._screen, inside = pty.openpty()
        streams = {"stdin": inside, "stdout": inside, "stderr": inside}
        environment = shell.environment(TERM="xterm-256color", COLUMNS="100")
        self.process = shell.start(*PROGRAM, "--local", *line.split(), env=environment, **streams)
        os.close(inside)
        self.shown = ""

    def answer(self, question: str, text: str) -> None:
        while question not in self.shown:
            self.shown += os.read(self._screen, 65536).decode(errors="replace")
        os.write(self._screen, f"{text}\n".encode())

    def end(self) -> tuple[int, str]:
        """Exit status, and everything that was shown."""
        with suppress(OSError):  # Linux reports a terminal that no process has open as EIO
            while some := os.read(self._screen, 65536).decode(errors="replace"):
                self.shown += some
        os.close(self._screen)
        return self.process.wait(timeout=TIMEOUT_S), self.shown.replace("\r\n", "\n")


@pytest.mark.real
def test_at_a_terminal_the_answer_decides_whether_keys_are_rotated(shell: Shell) -> None:
    shell.local("org create asked")
    shell.local("keys issue asked")

    for answer, status in (("n", 1), ("y", 0)):
        terminal = Pty(shell, "keys rotate asked --grace-hours 3")
        terminal.answer("? [y/N] ", answer)
        ended, shown = terminal.end()

        assert ended == status
        assert len(re.findall(r"^gg_asked_\w{49}$", shown, re.MULTILINE)) == (answer == "y")


@pytest.mark.real
def test_a_terminal_gets_a_bold_header_and_a_progress_indicator(shell: Shell) -> None:
    status, shown = Pty(shell, "org list").end()

    assert status == 0
    assert "Reading the accounts" in shown
    assert re.search(r"\x1b\[1m *ORGANISATION", shown)
    assert re.search(r"^demo +100 +60 *$", shown, re.MULTILINE)


@pytest.mark.real
def test_the_progress_indicator_stays_out_of_a_redirected_result(shell: Shell) -> None:
    screen, inside = pty.openpty()
    exited = shell.local("org list --json", stderr=inside)
    os.close(inside)
    os.close(screen)

    assert json.loads(exited.out)["complete"] is True


# Interrupted, and without a reader


@pytest.mark.real
def test_a_closed_pipe_ends_the_command_quietly_as_sigpipe_would(shell: Shell) -> None:
    for words, said in (
        (("--local", "org", "list"), "Target: the local stack.\n"),
        (["--help"], ""),
    ):
        with shell.start(*PROGRAM, *words) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            error = process.stderr.read()

        assert (process.returncode, error) == (128 + signal.SIGPIPE, said)


@pytest.mark.real
def test_a_key_that_cannot_be_shown_is_revoked(shell: Shell) -> None:
    shell.local("org create full")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        issued = shell.local("keys issue full", stdout=full)
        listed = shell.local("org list", stdout=full)
    with shell.start(*PROGRAM, "--local", "keys", "issue", "full") as piped:
        assert piped.stdout is not None
        assert piped.stderr is not None
        piped.stdout.close()
        error = piped.stderr.read()

    assert_failed(listed, "No space left on device; check where the output goes")
    assert (issued.status, piped.returncode) == (1, 1)
    revoked = re.findall(r"could not be shown, so (key_\w+) was revoked", issued.err + error)
    keys = json.loads(shell.local("keys list full --json").out)["keys"]
    assert {each["id"]: each["live"] for each in keys} == dict.fromkeys(revoked, False)
    assert len(revoked) == 2


def elsewhere(shell: Shell, url: str) -> dict[str, str]:
    """An environment whose AWS is at ``url``."""
    return shell.environment(
        AWS_ENDPOINT_URL=url,
        AWS_REGION="us-east-1",
        AWS_ACCESS_KEY_ID="id",
        AWS_SECRET_ACCESS_KEY="secret",
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        AWS_EC2_METADATA_DISABLED="true",
        CREDITS_TABLE="credits",
        ORG_SECRET_PREFIX="orgs/",
    )


@pytest.mark.real
def test_ctrl_c_is_reported_in_a_sentence(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = elsewhere(shell, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with shell.start(*PROGRAM, "org", "list", env=environment) as process:
            connection, _ = silent.accept()
            with connection:
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=TIMEOUT_S)

    assert_failed(Exited(process.returncode, out, err), "interrupted; check what was done")


@pytest.mark.real
def test_missing_credentials_are_reported(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    environment = elsewhere(shell, "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del environment[name]

    assert_failed(shell.run(*PROGRAM, "org", "list", env=environment), "no AWS credentials")


@pytest.mark.real
def test_the_file_that_leads_to_the_local_stack_is_private_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".local" / "environment.json"
    with Running(tmp_path, str(free_port())) as running:
        running.lines_until("Requests:")
        assert path.stat().st_mode & 0o777 == 0o600
        running.end(signal.SIGINT)

    assert not path.exists()
