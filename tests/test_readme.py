"""The README is true: its commands are run, its answers compared, its tables held to the code."""

import contextlib
import http.client
import io
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from infra.cli import main as operator_command
from infra.local.stack import LocalStack
from infra.template import PROJECT_ROOT, Template
from lib import errors
from lib.deadline import (
    FUNCTION_TIMEOUT_S,
    IDEMPOTENCY_TTL_S,
    JOB_WAITS_S,
    LEASE_S,
    REFUNDED_WITHIN_S,
    WORKER_LEASE_S,
    WORKER_TIMEOUT_S,
)
from lib.http.models import (
    DEFAULT_PAGE,
    MAX_BODY_BYTES,
    MAX_IDEMPOTENCY_KEY_CHARACTERS,
    MAX_PAGE,
    MAX_PROMPT_CHARACTERS,
    GenerateResponse,
    GenerationResponse,
    parse_history_request,
)
from lib.http.request import GenerateRequest, parse_generate_request
from lib.keys.key_ring import MAX_LIVE_KEYS
from lib.keys.verification import CACHE_S
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.ledger.rows import DEFAULT_RATE_LIMIT, Status
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.storage import PNG_MIME_TYPE
from lib.settings import DEFAULT_MODEL

README = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (PROJECT_ROOT / "Makefile").read_text(encoding="utf-8")
LOCAL_URL = "http://127.0.0.1:8000"
KEY_FILE = Path(".local", "api-key")
ASKS_AGAIN = 100
"""How often a reader asks for an image that is still being made."""
ASKS_EVERY_S = 0.1
# What the service gives and the reader hands back: the number of a generation, the next page.
GIVEN = re.compile(r"\b\d{13}\b|(?<=\"nextCursor\":\")[\w-]+")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, and its text without the last line's end."""

    language: str
    text: str


def fenced_blocks() -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in found]


def commands_in(block: Block) -> list[str]:
    return block.text.replace("\\\n", " ").splitlines() if block.language == "sh" else []


def section(title: str) -> str:
    """What stands under a heading, up to the next one."""
    (text,) = re.findall(rf"^#+ {title}\n(.*?)(?=^#|\Z)", README, re.MULTILINE | re.DOTALL)
    return str(text)


def tables_in(title: str) -> list[list[list[str]]]:
    """The tables of a section, each as rows of cells, without headings and ticks around a cell."""
    found = re.findall(r"(?:^\|.*\n)+", section(title), re.MULTILINE)
    return [[_cells(line) for line in table.splitlines()[2:]] for table in found]


def _cells(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip("|").split(" | ")]


# The commands


@dataclass(frozen=True)
class Terminal:
    """What ``make run`` runs, in a directory of its own, on a port that was free."""

    process: "subprocess.Popen[str]"
    url: str
    directory: Path

    def output(self) -> str:
        """What it prints before the first request."""
        lines = []
        for line in self.process.stdout or ():
            lines.append(line)
            if "Requests:" in line:
                break
        return "".join(lines)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
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
        yield Terminal(process, f"http://127.0.0.1:{port}", directory)
        process.send_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def stack(terminal: Terminal) -> Iterator[LocalStack]:
    """Started after the terminal's, so that the two come up at the same time."""
    assert terminal.process.poll() is None
    with LocalStack(latency_s=0) as running:
        yield running


class UnknownCommandError(Exception):
    """The README has a command that no test runs."""


class Agreeing(io.StringIO):
    """The keyboard of a terminal at which somebody says yes."""

    def isatty(self) -> bool:
        return True


@dataclass
class Reader:
    """Somebody who follows the README from its first command to its last, in one directory."""

    stack: LocalStack
    directory: Path
    environment: pytest.MonkeyPatch
    shown: Callable[[], str]
    key_id: str = ""
    given: dict[str, str] = field(default_factory=dict)

    def run(self, command: str) -> str:
        """Does what ``command`` says, and returns what it writes."""
        words = shlex.split(command)
        match words:
            case ["curl", *_]:
                return self._curl(command)
            case [".venv/bin/gemini-generate", *rest]:
                return self._operate(rest)
            case ["export", setting]:
                self._export(*setting.split("=", 1))
            case ["make", target]:
                assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"no make {target}"
            case ["aws", "secretsmanager", "put-secret-value", "--secret-id", _, *rest]:
                _check_secret(rest)
            case ["sam", "local", "invoke", function, *rest]:
                _check_invocation(function, rest)
            case ["sam", "build"] | ["sam", "deploy", "--guided"]:
                pass  # tests/test_build.py runs the first; the second needs an account.
            case ["sudo", "sysctl" | "iptables", *_]:
                pass  # They are for the reader's own machine, not for one that tests.
            case _:
                raise UnknownCommandError(command)
        return ""

    def note(self, example: str, answer: str) -> None:
        """What the reader was given where the README has an example's: the same each time."""
        for theirs, mine in zip(GIVEN.findall(example), GIVEN.findall(answer), strict=True):
            assert self.given.setdefault(theirs, mine) == mine, theirs

    def _curl(self, command: str) -> str:
        """Asks again for a generation that is still being made, as the README says."""
        for mine in self.given.items():
            command = command.replace(*mine)
        answer = self._ask(command)
        for _ in range(ASKS_AGAIN):
            if " -d " in command or f'"status":"{Status.RESERVED}"' not in answer:
                break
            time.sleep(ASKS_EVERY_S)
            answer = self._ask(command)
        return answer

    def _ask(self, command: str) -> str:
        done = subprocess.run(  # noqa: S603 - the README's own line, for this machine's server
            ["/bin/sh", "-euc", command.replace(LOCAL_URL, self.stack.url)],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _operate(self, words: Sequence[str]) -> str:
        self.environment.setattr(sys, "stdin", Agreeing("y\n"))
        status = operator_command([self.key_id if word == "KEY_ID" else word for word in words])
        said = self.shown()
        assert status == 0, said
        self.key_id = next(iter(re.findall(r"^key_\w+", said, re.MULTILINE)), self.key_id)
        return said

    def _export(self, name: str, value: str) -> None:
        self.environment.setenv(name, value)
        if name == "CREDITS_TABLE":
            self.stack.aws.create_table(value)


def _check_secret(options: Sequence[str]) -> None:
    name, value = options
    assert name == "--secret-string"
    assert value.startswith("file://"), "a key on the command line stays in the shell's history"


def _check_invocation(function: str, options: Sequence[str]) -> None:
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert set(given) == {"-t", "-e", "--add-host"}
    assert json.loads((PROJECT_ROOT / given["-e"]).read_text(encoding="utf-8"))["routeKey"]
    assert function in {each.name for each in Template.from_file().functions()}


@dataclass(frozen=True)
class Answer:
    """What curl writes, without what differs from run to run; ``-i`` brings the first two."""

    status: str
    headers: frozenset[str]
    body: Any

    @classmethod
    def of(cls, text: str) -> "Answer":
        same = re.sub(r'("durationMs":)\d+', r'\1"a whole number"', GIVEN.sub("*", text))
        same = re.sub(r"http://127\.0\.0\.1:\d+|[\d-]{10}T[\d:.]{12}Z", "*", same)
        head, _, body = same.replace("\r\n", "\n").strip().rpartition("\n\n")
        status, *headers = head.splitlines() or [""]
        return cls(status.strip(), frozenset(headers), json.loads(body))


def parameter_default(name: str) -> str | None:
    return Template.from_file().literal({"Ref": name})


@pytest.fixture
def reader(
    stack: LocalStack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Reader:
    (tmp_path / KEY_FILE).parent.mkdir()
    (tmp_path / KEY_FILE).write_text(stack.api_key + "\n", encoding="utf-8")
    return Reader(stack, tmp_path, monkeypatch, shown=lambda: capsys.readouterr().out)


def test_every_command_works_in_its_order_and_every_answer_is_the_one_shown(
    reader: Reader,
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    blocks = fenced_blocks()
    compared = []

    for block, following in zip(blocks, [*blocks[1:], Block("", "")], strict=True):
        for command in commands_in(block):
            written = reader.run(command)
            if command.startswith("curl"):
                real, shown = Answer.of(written), Answer.of(following.text)
                assert (real.status, real.body) == (shown.status, shown.body)
                assert shown.headers <= real.headers
                reader.note(following.text, written)
                compared.append(following)

    answers = [block for block in blocks if block.language in {"json", "http"}]
    assert compared == answers, "an answer stands without its command"


def test_a_command_that_nobody_runs_is_not_let_through(reader: Reader) -> None:
    for command in ("rm -rf .local", "python -m infra.cli audit", "aws s3 ls"):
        with pytest.raises(UnknownCommandError):
            reader.run(command)


def test_every_block_is_of_a_kind_that_is_checked_here() -> None:
    assert README.count("\n```") == 2 * len(fenced_blocks())
    assert {block.language for block in fenced_blocks()} == {"sh", "json", "http", "text"}
    outside = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^(?: {4}|\t)", outside, re.MULTILINE)


def test_make_run_begins_as_shown_and_prints_the_first_two_requests(terminal: Terminal) -> None:
    (beginning,) = (block.text for block in fenced_blocks() if block.language == "text")
    curls = [each for block in fenced_blocks() for each in commands_in(block) if "curl" in each]

    printed = terminal.output()
    key = (terminal.directory / KEY_FILE).read_text(encoding="utf-8").strip()

    def here(text: str) -> str:
        keys = ("gg_demo_EXAMPLE", f"$(cat {KEY_FILE})")
        return text.replace(LOCAL_URL, terminal.url).replace(keys[0], key).replace(keys[1], key)

    assert printed.startswith(here(beginning))
    requests = [line.strip() for line in printed.splitlines() if line.startswith("  curl ")]
    assert [shlex.split(line) for line in requests] == [
        shlex.split(here(each)) for each in curls[:2]
    ]


# The tables


def test_the_routes_are_the_deployed_ones() -> None:
    deployed = {
        f"{route.method} {route.path}"
        for function in Template.from_file().functions()
        for route in function.routes
    }

    (rows,) = tables_in("The API")

    assert {route for route, _ in rows} == deployed


def test_the_fields_are_those_of_the_models() -> None:
    asked, headers = tables_in("Request")
    (answered,), (told,) = tables_in("Response"), tables_in("Without waiting")

    assert [row[0] for row in asked] == list(GenerateRequest.model_fields)
    assert asked[1][2] == f"default `{GenerateRequest(prompt='x').aspectRatio}"
    assert [row[0] for row in answered] == [each.name for each in fields(GenerateResponse)]
    assert PNG_MIME_TYPE in answered[1][2]
    assert answered[2][2].endswith(f" {CREDITS_PER_IMAGE}")
    assert f"costs {CREDITS_PER_IMAGE} credits" in section("Price")
    assert {row[0].lower() for row in headers} | {"content-type"} == set(
        Template.from_file().cors().headers
    )
    assert [row[0] for row in told] == [each.name for each in fields(GenerationResponse)]
    assert {row[1] for row in told} == {"all", Status.SETTLED, Status.REFUNDED}
    for name in ("creditsCharged", "creditsRefunded"):
        (meaning,) = (row[2] for row in told if row[0] == name)
        assert meaning.endswith(f" {CREDITS_PER_IMAGE}")


def test_the_ratios_are_the_ten_and_each_has_the_shape_it_is_said_to_have() -> None:
    (rows,) = tables_in("Aspect ratios")

    assert [ratio for ratio, _, _ in rows] == [ratio.value for ratio in AspectRatio]
    for ratio, shape, use in rows:
        wide = AspectRatio(ratio).width_over_height
        assert shape == ("square" if wide == 1 else "landscape" if wide > 1 else "portrait")
        assert use


def test_the_limits_are_the_code_s() -> None:
    (rows,) = tables_in("Limits")

    assert [figures_in(limit) for _, limit in rows] == [
        [MAX_PROMPT_CHARACTERS],
        [MAX_BODY_BYTES // 1024],
        [DEFAULT_RATE_LIMIT],
        [1, MAX_IDEMPOTENCY_KEY_CHARACTERS, IDEMPOTENCY_TTL_S // 3600],
        [FUNCTION_TIMEOUT_S],
        [REFUNDED_WITHIN_S // 60, JOB_ENDS_WITHIN_M],
        [JOB_WAITS_S // 60],
        [WORKER_TIMEOUT_S // 60, DELIVERIES],
        [1, MAX_PAGE, DEFAULT_PAGE],
        [MAX_LIVE_KEYS],
    ]
    assert figures_in(section("Without waiting").rpartition("| `creditsRefunded`")[2])[1:] == [
        JOB_WAITS_S // 60,
        WORKER_TIMEOUT_S // 60,
        JOB_ENDS_WITHIN_M,
    ]
    beginning = " ".join(section("Gemini Generate").split())
    assert f"refunded within {REFUNDED_WITHIN_S // 60} minutes" in beginning
    assert f"again and again, within {JOB_ENDS_WITHIN_M}." in beginning
    assert f"within {CACHE_S:.0f} seconds" in section("Operate")
    for value in errors.RateLimited(DEFAULT_RATE_LIMIT, 30).headers().values():
        assert value in section("Rate limit") or value in {"rate_limited", "30"}


JOB_ENDS_WITHIN_M = 45
DELIVERIES = Template.from_file().queue("JobsQueue").receives or 0


def test_an_accepted_image_has_ended_by_the_time_that_is_promised() -> None:
    leases_s = JOB_WAITS_S + DELIVERIES * WORKER_LEASE_S
    reconciler_comes_within_s = REFUNDED_WITHIN_S - LEASE_S

    ends_after_s = leases_s + (1 + DELIVERIES) * reconciler_comes_within_s
    assert JOB_ENDS_WITHIN_M * 60 - 300 < ends_after_s <= JOB_ENDS_WITHIN_M * 60


def figures_in(text: str) -> list[int]:
    return [int(figure) for figure in re.findall(r"\d+", text.replace(",", ""))]


def test_the_model_is_the_default_one() -> None:
    assert parameter_default("GeminiModel") == DEFAULT_MODEL
    assert f"`GeminiModel`: `{DEFAULT_MODEL}`" in section("Deploy")
    assert "`OrgSecretPrefix`" in section("Deploy")
    assert f"ORG_SECRET_PREFIX={parameter_default('OrgSecretPrefix')}\n" in section("Deploy")


# The errors


REFUSALS = [
    errors.Unauthorized(),
    errors.InsufficientCredits(CREDITS_PER_IMAGE, 2),
    errors.NotFound(),
    errors.GenerationInFlight(3),
    errors.BodyTooLarge(MAX_BODY_BYTES),
    errors.IdempotencyKeyReused(),
    errors.RateLimited(DEFAULT_RATE_LIMIT, 30),
    errors.Busy(2),
]
FAILURES = [
    errors.ContentRejected(),
    errors.NoImageReturned(),
    errors.ModelTimedOut(),
    errors.ModelOverloaded(),
    errors.StorageFailed(),
    errors.JobNotQueued(),
    errors.ModelUnavailable(),
    errors.ReservationLost(),
    errors.UnexpectedFailure(),
    errors.ServiceUnavailable(),
]
# In the order of the table.
UNREADABLE = (
    b"{}",
    json.dumps({"prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)}).encode(),
    b'{"prompt": "x", "aspectRatio": "7:5"}',
    b"",
    b"[]",
    b"\xff",
)
UNREADABLE_QUERIES = ({"limit": str(MAX_PAGE + 1)}, {"cursor": "page 2"})


def test_every_refusal_is_in_the_table_with_its_status_code_and_sentence(
    stack: LocalStack,
) -> None:
    rows, _ = tables_in("Errors")

    documented = [(int(status), code, sentence) for status, code, sentence, _ in rows]

    real = [refusal_of(parse_generate_request, body) for body in UNREADABLE]
    real += [refusal_of_a_long_idempotency_key(stack)]
    real += [refusal_of(parse_history_request, query) for query in UNREADABLE_QUERIES]
    real += [(each.status, each.code, each.error) for each in REFUSALS]
    assert documented == real
    for row, refusal in zip(rows[-len(REFUSALS) :], REFUSALS, strict=True):
        assert ("`Retry-After`" in row[3]) == ("Retry-After" in refusal.headers())
        assert all(name in row[3] for name in refusal.body() if name != "error")


def refusal_of(parse: Callable[[Any], object], given: object) -> tuple[int, str, str]:
    with pytest.raises(errors.RequestRejected) as refused:
        parse(given)
    return refused.value.status, refused.value.code, refused.value.error


def refusal_of_a_long_idempotency_key(stack: LocalStack) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(urlsplit(stack.url).netloc, timeout=30)
    headers = {
        "Authorization": f"Bearer {stack.api_key}",
        "Idempotency-Key": "k" * (MAX_IDEMPOTENCY_KEY_CHARACTERS + 1),
    }
    with contextlib.closing(connection):
        connection.request("POST", "/api/v1/models/gemini/generate", b"{}", headers)
        answer = connection.getresponse()
        error = json.loads(answer.read())["error"]
        return answer.status, answer.headers["X-Error-Code"], error


def test_every_failure_is_in_the_table_with_its_message_and_code() -> None:
    _, rows = tables_in("Errors")

    assert [(message, code) for message, code, _ in rows] == [
        (each.body()["message"], each.code) for each in FAILURES
    ]
    assert {(each.status, each.error) for each in FAILURES} == {(500, "Failed to generate image")}
    for row, failure in zip(rows, FAILURES, strict=True):
        assert ("`Retry-After`" in row[2]) == ("Retry-After" in failure.headers())
        assert all(f"`{name}`" in row[2] for name in failure.body().keys() - {"error", "message"})


def test_no_error_of_the_tree_is_left_out() -> None:
    listed = [getattr(errors, name) for name in errors.__all__]
    classes = [each for each in listed if isinstance(each, type)]
    tree = {each.__name__ for each in classes if not each.__subclasses__()}

    documented = {type(each).__name__ for each in (*REFUSALS, *FAILURES)} | {"InvalidRequest"}

    assert tree <= documented


# What it points to


def test_what_it_links_to_and_the_files_it_names_are_there() -> None:
    headings = {
        "#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    links = set(re.findall(r"\]\(([^)]+)\)", README)) - headings
    paths = re.findall(r"`((?:handlers|lib|infra|tests)/[^`]*|\w+\.yaml)`", README)

    assert links
    assert paths
    files = [path.partition("#")[0] for path in [*links, *paths]]
    assert [path for path in files if not (PROJECT_ROOT / path).exists()] == []
    for document, _, anchor in (link.partition("#") for link in links if ".md#" in link):
        titles = re.findall(
            r"^#+ (.+)$", (PROJECT_ROOT / document).read_text("utf-8"), re.MULTILINE
        )
        assert anchor in {title.lower().replace(" ", "-") for title in titles}


def test_the_figures_of_its_speed_are_those_of_the_last_results() -> None:
    results = (PROJECT_ROOT / "infra" / "bench" / "RESULTS.md").read_text(encoding="utf-8")
    quoted = [line for line in section("How fast it is").splitlines() if line.startswith("|")]

    assert len(quoted) > 10
    assert set(quoted) <= set(results.splitlines())


def test_every_make_target_it_speaks_of_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z]+)`", README))

    assert named >= {"run", "test", "check", "verify"}
    assert named <= set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
