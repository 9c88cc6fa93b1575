"""``gemini-generate`` as an operator runs it: the installed program beside a ``make run``."""

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
from tests.test_local_stack import Running, free_port

PROGRAM = Path(sys.executable).with_name("gemini-generate")
TAKES_S = 60
_OWN = ("AWS_", "CREDITS_", "ORG_", "IMAGE_", "STORAGE_", "GEMINI_")


@dataclass(frozen=True)
class Said:
    """What a process left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Operator:
    """Somebody in the directory where ``make run`` was started, or in another."""

    directory: Path
    url: str = ""

    def environment(self, **more: str) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
        return mine | more

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        settings: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": self.environment(),
            # Whoever runs the tests in the background may have Ctrl-C switched off for all below.
            "preexec_fn": partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        }
        return subprocess.Popen(  # noqa: S603 - our own command
            [PROGRAM, *words], cwd=self.directory, text=True, **settings | options
        )

    def run(self, words: str, *more: str, **options: Any) -> Said:
        with self.start(*words.split(), *more, **options) as process:
            out, err = process.communicate(timeout=TAKES_S)
        return Said(process.returncode, out or "", err or "")

    def local(self, words: str, *more: str, **options: Any) -> Said:
        return self.run(f"--local {words}", *more, **options)

    def generate(self, key: str, prompt: str) -> tuple[int, Any]:
        """One image, as a customer asks for it."""
        address = self.url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=30)
        try:
            body = json.dumps({"prompt": prompt})
            path = "/api/v1/models/gemini/generate"
            connection.request("POST", path, body, {"Authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    directory, port = tmp_path_factory.mktemp("run"), free_port()
    with Running(directory, str(port)) as running:
        running.lines_until("Requests:")
        yield Operator(directory, f"http://127.0.0.1:{port}")


def document(said: Said) -> Any:
    assert said.status == 0, said
    return json.loads(said.out)


def assert_refused(said: Said, sentence: str) -> None:
    """One sentence, and no more, on standard error."""
    assert said == Said(1, "", f"error: {sentence}.\n")


def test_the_program_is_installed_and_needs_no_particular_directory(tmp_path: Path) -> None:
    assert_refused(
        Operator(tmp_path).local("org list"),
        "there is no .local/environment.json here; start the local stack with `make run`, or go "
        "to the directory where it was started",
    )


def test_python_m_takes_the_same_words(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "credits", "balance", "acme"],
        cwd=PROJECT_ROOT,
        env=Operator(tmp_path).environment(),
        capture_output=True,
        text=True,
        timeout=TAKES_S,
        check=False,
    )

    assert_refused(
        Said(done.returncode, done.stdout, done.stderr),
        "set CREDITS_TABLE and ORG_SECRET_PREFIX, or give --table and --prefix, or give "
        "--stack-name or --local",
    )


@pytest.mark.real
def test_a_first_customer_is_set_up_and_generates(operator: Operator) -> None:
    assert operator.local("org create acme") == Said(
        0, "acme: 0 credits, 60 requests a minute\n", ""
    )
    granted = operator.local("credits grant acme 100 --id invoice-17 --note", "Paid in November")
    assert granted == Said(0, "acme: 100 credits, with grant invoice-17\n", "")
    issued = operator.local("keys issue acme")
    assert re.fullmatch(r"gg_acme_\w{49}\n", issued.out)
    assert re.fullmatch(r"key_\w+ of acme: the key is not shown again\.\n", issued.err)

    status, body = operator.generate(issued.out.strip(), "a red fox")

    assert (status, body["creditsCharged"]) == (200, 5)
    assert operator.local("credits balance acme") == Said(0, "95\n", "")
    (made,) = document(operator.local("generations list acme --json"))["generations"]
    assert (made["prompt"], made["imageUrl"]) == ("a red fox", body["imageUrl"])


@pytest.mark.real
def test_a_key_that_can_not_be_shown_does_not_stay_alive(operator: Operator) -> None:
    operator.local("org create full")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        said = operator.local("keys issue full", stdout=full)

    assert said.status == 1
    (key_id,) = re.findall(
        r"error: the key could not be shown, so (key_\w+) was revoked at once", said.err
    )
    (record,) = document(operator.local("keys list full --json"))["keys"]
    assert (record["id"], record["live"]) == (key_id, False)


# With a terminal


class Terminal:
    """A terminal with the command in it."""

    def __init__(self, operator: Operator, *words: str) -> None:
        self._screen, inside = pty.openpty()
        streams = {"stdin": inside, "stdout": inside, "stderr": inside}
        environment = operator.environment(TERM="xterm-256color", COLUMNS="100")
        self.process = operator.start("--local", *words, env=environment, **streams)
        os.close(inside)
        self.shown = ""

    def until(self, text: str) -> None:
        while text not in self.shown:
            self.shown += self._read()

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def end(self) -> tuple[int, str]:
        """Exit status, and all that was shown."""
        with suppress(OSError):  # Linux's way to say that nobody has the terminal open any more
            while some := self._read():
                self.shown += some
        os.close(self._screen)
        return self.process.wait(timeout=TAKES_S), self.shown.replace("\r\n", "\n")

    def _read(self) -> str:
        return os.read(self._screen, 65536).decode(errors="replace")


@pytest.mark.real
def test_at_a_terminal_it_asks_and_an_answer_decides(operator: Operator) -> None:
    operator.local("org create asked")
    operator.local("keys issue asked")

    for answer, status, keys in (("n", 1, 1), ("y", 0, 2)):
        terminal = Terminal(operator, "keys", "rotate", "asked", "--grace-hours", "3")
        terminal.until("? [y/N] ")
        terminal.type(f"{answer}\n")
        ended, shown = terminal.end()

        assert ended == status
        assert len(re.findall(r"^gg_asked_\w{49}$", shown, re.MULTILINE)) == status ^ 1
        assert len(document(operator.local("keys list asked --json"))["keys"]) == keys


@pytest.mark.real
def test_at_a_terminal_lists_have_a_bold_head_and_a_sign_of_life(operator: Operator) -> None:
    status, shown = Terminal(operator, "org", "list").end()

    assert status == 0
    assert "Reading the table" in shown
    assert re.search(r"\x1b\[1m *ORGANISATION", shown)
    assert re.search(r"^demo +100 +60$", shown, re.MULTILINE)


@pytest.mark.real
def test_the_sign_of_life_does_not_get_into_a_file(operator: Operator) -> None:
    screen, inside = pty.openpty()
    said = operator.local("org list --json", stderr=inside)
    os.close(inside)
    os.close(screen)

    assert document(said)["complete"] is True


# Every command


UNHAPPY = {
    "org create acme --rate-limit 7": "acme exists already, with 60 requests a minute; "
    "use `org limit` to change that",
    "org show nobody": "there is no organisation nobody; create it first",
    "org limit nobody 5": "there is no organisation nobody; create it first",
    "org limit acme 0": "nothing was done, as there is no terminal to ask on: "
    '"Let acme start no generation any more?"; repeat it with --yes if you want that',
    "keys issue nobody": "there is no organisation nobody; create it first",
    "keys list nobody": "there are no keys of nobody; check the name, or issue its first key",
    "keys rotate nobody --grace-hours 1": "there are no keys of nobody; check the name, or issue "
    "its first key",
    "keys revoke acme key_1 --yes": "acme has no key with that id; list its keys to see the ids",
    "credits grant nobody 5 --id x --note y": "there is no organisation nobody; create it first",
    "credits balance nobody": "there is no organisation nobody; create it first",
    "credits history nobody": "there is no organisation nobody; create it first",
    "generations list nobody": "there is no organisation nobody; create it first",
    "generations show acme 1795402357675": "acme has no generation 1795402357675; "
    "see `generations list`",
    "audit nobody": "there is no organisation nobody; create it first",
}


@pytest.fixture(scope="module")
def beside_acme(operator: Operator) -> Operator:
    """There is an organisation with a key."""
    operator.local("org create acme")
    operator.local("keys issue acme")
    return operator


@pytest.mark.real
@pytest.mark.parametrize("words", UNHAPPY)
def test_what_can_t_be_done_ends_in_one_sentence(beside_acme: Operator, words: str) -> None:
    assert_refused(beside_acme.local(words), UNHAPPY[words])


@pytest.mark.real
def test_every_command_gives_one_json_document(operator: Operator) -> None:
    def told(words: str, *more: str) -> Any:
        return document(operator.local(words, *more, "--json"))

    account = {"organisation": "day", "credits": 0, "requestsPerMinute": 120}
    assert told("org create day --rate-limit 120") == account
    granted = told("credits grant day 50 --id first --note", "Two words")
    assert (granted["credits"], granted["grant"]["note"]) == (50, "Two words")
    issued = told("keys issue day")
    assert operator.generate(issued["key"], "[fail:safety]")[0] == 500
    assert operator.generate(issued["key"], "a red fox")[0] == 200
    assert told("credits balance day") == {"organisation": "day", "credits": 45}
    assert [each["id"] for each in told("credits history day")["grants"]] == ["first"]
    newest, oldest = told("generations list day")["generations"]
    assert (newest["status"], oldest["failureCode"]) == ("settled", "content_rejected")
    assert told(f"generations show day {oldest['id']}") == {"organisation": "day", **oldest}
    rotated = told("keys rotate day --grace-hours 3 --yes")
    assert rotated["rotated"] is True
    assert told("keys rotate day --grace-hours 3 --yes")["key"] is None
    revoked = told(f"keys revoke day {issued['id']} --yes")
    assert (revoked["id"], revoked["live"]) == (issued["id"], False)
    assert {each["id"]: each["live"] for each in told("keys list day")["keys"]} == {
        issued["id"]: False,
        rotated["id"]: True,
    }
    assert told("org limit day 0 --yes")["requestsPerMinute"] == 0
    assert told("org show day")["lastGeneration"]["id"] == newest["id"]
    assert "day" in [each["organisation"] for each in told("org list")["organisations"]]
    assert told("reconcile")["failed"] == 0
    assert told("audit")["healthy"] is True


# When it is interrupted, and where there is nobody


@pytest.mark.real
def test_a_reader_that_goes_away_ends_it_without_a_traceback(operator: Operator) -> None:
    process = operator.start("--local", "org", "list")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()

    assert process.wait(timeout=TAKES_S) == 1
    assert error == (
        "error: nobody reads the output any more; look at what was done, then repeat it.\n"
    )
    process.stderr.close()


@pytest.mark.real
def test_a_full_disk_ends_it_without_a_traceback(operator: Operator) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        said = operator.local("org list", stdout=full)

    assert_refused(said, "No space left on device; look at where the output goes")


@pytest.mark.real
def test_ctrl_c_ends_it_with_a_sentence(operator: Operator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with operator.start("org", "list", env=elsewhere(operator, url)) as process:
            connection, _ = silent.accept()
            with connection:
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=TAKES_S)

    said = Said(process.returncode, out, err)
    assert_refused(said, "interrupted; look at what was done, then repeat it")


UNDECIDED = (
    "DynamoDB came to no decision in time; check the network and the region, then do it again, "
    "which is harmless"
)
UNHEARD = (
    "Secrets Manager failed (EndpointConnectionError); list the keys before you try again, "
    "because the change may have been made"
)
UNANSWERED = (
    "AWS does not answer (EndpointConnectionError); check the network and the region, then repeat "
    "this"
)


@pytest.mark.real
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "credits balance acme",
            UNDECIDED,
        ),
        (
            "keys list acme",
            UNHEARD,
        ),
        (
            "audit --stack-name production",
            UNANSWERED,
        ),
    ],
)
def test_without_a_network_it_says_so(operator: Operator, words: str, sentence: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"

    assert_refused(operator.run(words, env=elsewhere(operator, url)), sentence)


@pytest.mark.real
def test_without_credentials_it_says_so(operator: Operator) -> None:
    variables = elsewhere(operator, operator.url)
    without = {name: value for name, value in variables.items() if not name.endswith("_KEY")}

    assert_refused(
        operator.run("org list", env=without | {"AWS_ACCESS_KEY_ID": ""}),
        "there are no AWS credentials; sign in, or set AWS_PROFILE, then repeat this",
    )


def elsewhere(operator: Operator, url: str) -> dict[str, str]:
    """An environment whose AWS is at ``url``."""
    return operator.environment(
        AWS_ENDPOINT_URL=url,
        AWS_REGION="us-east-1",
        AWS_ACCESS_KEY_ID="somebody",
        AWS_SECRET_ACCESS_KEY="somebody",
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        AWS_EC2_METADATA_DISABLED="true",
        CREDITS_TABLE="credits",
        ORG_SECRET_PREFIX="orgs/",
    )


@pytest.mark.real
def test_the_way_to_the_local_stack_is_private_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".local" / "environment.json"
    with Running(tmp_path, str(free_port())) as running:
        running.lines_until("Requests:")
        assert path.stat().st_mode & 0o777 == 0o600
        running.end(signal.SIGINT)

    assert not path.exists()
