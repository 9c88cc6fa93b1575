"""Real clients of OpenAI's Images API, changed in nothing but ``base_url`` and the key.

Each runs in an environment of its own and calls the service through a proxy that counts its
requests and can lose an answer on the way back. What each got is compared with the table in
``infra/docs/OPENAI.md``; ``UPDATE_TABLE=1`` writes it.
"""

import base64
import http.client
import io
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from infra.docs.markdown import Markdown, table
from infra.local.stack import LocalStack
from infra.template import PROJECT_ROOT
from infra.verify import tools
from tests.customer import Customer, picture_at, plain_picture, prompts_sent, until
from tests.servers import QuietHandler, Serving

pytestmark = pytest.mark.real

README = PROJECT_ROOT / "README.md"
GUIDE = PROJECT_ROOT / "infra" / "docs" / "OPENAI.md"
SECTION = "What each client got"
DRIVERS = Path(tools.OPENAI_CLIENTS)
ENDED_WITHIN_S = 40.0
NOT_TRIED = "-"
# LiteLLM would fetch lists of its own.
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
SHAPES = {"1792x1024": 16 / 9, "1024x1024": 1.0, "1024x1536": 2 / 3, "auto": 1.0}

Bodies = Mapping[str, Mapping[str, object]]
_WIDE = {"model": "dall-e-3", "size": "1792x1024"}
BOTH: Bodies = {form: {**_WIDE, "response_format": form} for form in ("url", "b64_json")}
URL_ONLY: Bodies = {"url": _WIDE}
_GPT_IMAGE = {"model": "gpt-image-1", "size": "1024x1536"}
# LiteLLM sends no response format to OpenAI: the model's name decides.
BY_MODEL: Bodies = {"url": _WIDE, "b64_json": _GPT_IMAGE}
# The AI SDK sends none either. It downloads a URL, but never from this machine.
BASE64_ONLY: Bodies = {"b64_json": _GPT_IMAGE}
LIBRECHAT: Bodies = {
    # Source: github.com/danny-avila/LibreChat, api/app/clients/tools/structured: DALLE3.js,
    # OpenAIImageTools.js at 00b3bc32.
    "url": {
        "model": "dall-e-3",
        "quality": "standard",
        "style": "vivid",
        "size": "1024x1024",
        "n": 1,
    },
    "b64_json": {
        "model": "gpt-image-1",
        "n": 1,
        "background": "auto",
        "output_format": "png",
        "quality": "auto",
        "size": "auto",
    },
}
OPEN_WEBUI: Bodies = {
    # It asks for base64 of every model but gpt-image, and takes what it gets.
    "b64_json": {"model": "dall-e-3", "n": 1, "size": "1024x1024", "response_format": "b64_json"},
}


@dataclass(frozen=True)
class Client:
    """A client: its driver, the major version of the library for Python, what it asks for."""

    label: str
    driver: str
    python: int | None = None
    bodies: Bodies = field(default_factory=lambda: BOTH)
    sends_key: bool = True
    retries: bool = True

    def __str__(self) -> str:
        return self.label

    @property
    def form(self) -> str:
        """The form in which it asks for an image where both would do."""
        return next(iter(self.bodies))

    def command(self) -> tuple[list[str], Path]:
        """The driver, and the directory to run it in."""
        if self.python is not None:
            python = tools.openai_python(self.python)
            return [str(python), str(DRIVERS / "client.py"), self.driver], python.parent
        node, home = tools.openai_clients()
        return [str(node), str(DRIVERS / "client.mjs"), self.driver], home


CLIENTS = [
    Client("openai for Python", "openai0", 0, sends_key=False, retries=False),
    Client("openai for Python", "openai", 1),
    Client("openai for Python", "openai", 2),
    Client("openai for Python", "openai", 3),
    Client("LangChain for Python", "langchain", 3, bodies=URL_ONLY),
    Client("LiteLLM", "litellm", 3, bodies=BY_MODEL),
    Client("openai for Node", "openai3", retries=False),
    Client("openai for Node", "openai4"),
    Client("openai for Node", "openai5"),
    Client("openai for Node", "openai6"),
    Client("openai for Node", "openai7"),
    Client("LangChain for Node", "langchain"),
    Client("Vercel AI SDK", "ai-sdk", bodies=BASE64_ONLY),
    # Their requests as they send them: LibreChat through the library, Open WebUI through aiohttp.
    Client("LibreChat", "openai5", bodies=LIBRECHAT, sends_key=False),
    Client("Open WebUI", "open-webui", 3, bodies=OPEN_WEBUI, sends_key=False, retries=False),
]


class Lossy(Serving):
    """A proxy to the service that counts requests for images, and loses answers when told."""

    def __init__(self, upstream_url: str) -> None:
        self.to_lose = self.requests = 0
        outer, address = self, urlsplit(upstream_url).netloc

        class Handler(QuietHandler):
            def forward(self) -> None:
                outer.requests += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                lost, outer.to_lose = outer.to_lose > 0, max(0, outer.to_lose - 1)
                upstream = http.client.HTTPConnection(address, timeout=ENDED_WITHIN_S)
                upstream.request("POST", self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                content = answer.read()
                upstream.close()
                if lost:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                with suppress(OSError):  # The client may have given up.
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)

            do_POST = forward  # noqa: N815 - http.server's name

        super().__init__(Handler)


class Session:
    """A running client, and the customer whose key it has."""

    def __init__(self, client: Client, process: "subprocess.Popen[str]", proxy: Lossy) -> None:
        self.client = client
        self.proxy = proxy
        self._process = process
        self.version = self._read()["version"]

    def ask(self, key: str, prompt: str, form: str, **options: Any) -> dict[str, Any]:
        """What the client got for one image; ``form`` is what it asks for."""
        body = {**self.client.bodies[form], "prompt": prompt}
        asked = {"baseUrl": f"{self.proxy.url}/v1", "apiKey": key, "body": body, "headers": {}}
        self._write({**asked, "retries": 2, "timeoutS": 30.0, **options})
        return self._read()

    def _write(self, asked: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the client died: its last words are above"
        told: dict[str, Any] = json.loads(line)
        return told


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0) as running:
        assert running.stand_in is not None
        running.stand_in.answer_with(plain_picture)
        yield running


@pytest.fixture(params=CLIENTS, ids=str)
def session(request: pytest.FixtureRequest, stack: LocalStack) -> Iterator[Session]:
    client: Client = request.param
    command, directory = client.command()
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "NO_PROXY": "*", **QUIET}
    with (
        Lossy(stack.url) as proxy,
        subprocess.Popen(  # noqa: S603 - our own command
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            yield Session(client, process, proxy)
        finally:
            process.kill()


def test_a_client_works_by_changing_base_url(session: Session, stack: LocalStack) -> None:
    """A picture in each form; failures that are not retried; one charge for a lost answer."""
    row = [str(session.client), session.version]
    row += [_picture(session, stack, form) for form in ("url", "b64_json")]
    row += [
        _refused_prompt(session, stack),
        _no_credits(session, stack),
        _bad_key(session, stack),
        _timeout(session, stack),
        _lost_answer(session, stack),
    ]
    if os.environ.get("UPDATE_TABLE"):
        _write_row(row)
    (shown,) = (each for each in Markdown.read(GUIDE).section(SECTION).tables)
    assert row in shown


def test_the_programs_of_the_guides_run_as_written(stack: LocalStack, tmp_path: Path) -> None:
    """The five lines of the README leave a file; the others print the URL of a picture."""
    customer = Customer(stack)
    (tmp_path / ".local").mkdir()
    (tmp_path / ".local" / "api-key").write_text(f"{customer.key}\n", encoding="utf-8")
    for program in (
        *(each.text for each in Markdown.read(README).fences if each.language == "python"),
        *(each.text for each in Markdown.read(GUIDE).fences if each.language == "python"),
    ):
        here = re.sub(r"https://api\.example\.com|http://127\.0\.0\.1:8000", stack.url, program)
        ran = subprocess.run(  # noqa: S603 - the documents' own programs
            [str(tools.openai_python(3)), "-c", here.replace("gg_...", customer.key)],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            check=True,
        )
        if ran.stdout:
            picture_at(ran.stdout.strip())
    with Image.open(tmp_path / "fox.png", formats=["PNG"]) as picture:
        assert picture.width / picture.height == pytest.approx(1.5, rel=0.02)
    assert customer.balance() == 90


def _picture(session: Session, stack: LocalStack, form: str) -> str:
    if form not in session.client.bodies:
        return NOT_TRIED
    customer = Customer(stack)
    got = session.ask(customer.key, "A fox", form)
    assert not got.keys() - {form}, got
    picture = _decoded(got)
    body = session.client.bodies[form]
    assert picture.width / picture.height == pytest.approx(SHAPES[str(body["size"])], rel=0.02)
    assert customer.balance() == 95
    return "picture, 5 credits"


def _decoded(got: Mapping[str, str]) -> Image.Image:
    if "url" in got:
        return picture_at(got["url"])
    picture = Image.open(io.BytesIO(base64.b64decode(got["b64_json"])), formats=["PNG"])
    picture.load()
    return picture


def _refused_prompt(session: Session, stack: LocalStack) -> str:
    """One model call, where three would be a client that retries."""
    customer, prompt = Customer(stack), f"{session.client} {session.version} [fail:safety]"
    got = _failed(session, customer.key, prompt)
    assert prompts_sent(stack).count(prompt) == 1
    assert got["status"] == 400
    assert customer.balance() == 100
    return f"400 {got['error']}, 1 request, 0 credits"


def _no_credits(session: Session, stack: LocalStack) -> str:
    customer = Customer(stack, credits_=4)
    got = _failed(session, customer.key, "A fox")
    assert customer.balance() == 4
    return f"402 {got['error']}, 1 request"


def _bad_key(session: Session, stack: LocalStack) -> str:
    customer = Customer(stack)
    got = _failed(session, customer.key[:-1] + ("a" if customer.key[-1] != "a" else "b"), "A fox")
    return f"401 {got['error']}, 1 request"


def _failed(session: Session, key: str, prompt: str) -> dict[str, Any]:
    before = session.proxy.requests
    got = session.ask(key, prompt, session.client.form)
    assert "error" in got, got
    assert session.proxy.requests == before + 1
    return got


def _timeout(session: Session, stack: LocalStack) -> str:
    """The client gives up first: what it asked for is made, charged, and in the history."""
    customer = Customer(stack)
    prompt = "A fox [slow:2]"
    got = session.ask(customer.key, prompt, session.client.form, timeoutS=1.0, retries=0)
    assert "error" in got, got
    ended = until(
        lambda: customer.get("/api/v1/generations").json()["generations"],
        lambda found: [each["status"] for each in found] == ["settled"],
    )
    assert ended[0]["prompt"] == prompt
    assert customer.balance() == 95
    return f"{got['error']}; the history has it, 5 credits"


def _lost_answer(session: Session, stack: LocalStack) -> str:
    """The image is made and charged, its answer is lost, and the client repeats by itself."""
    customer = Customer(stack)
    prompt = f"{session.client} {session.version} lost"
    before, session.proxy.to_lose = session.proxy.requests, 1
    headers = {"Idempotency-Key": "order-1"} if session.client.sends_key else {}
    got = session.ask(customer.key, prompt, session.client.form, headers=headers)
    requests = session.proxy.requests - before
    drawn = prompts_sent(stack).count(prompt)
    assert customer.balance() == 100 - 5 * drawn
    if not session.client.retries:
        assert ("error" in got, requests, drawn) == (True, 1, 1)
        return f"{got['error']}: no retry, 5 credits"
    _decoded(got)
    assert requests == 2
    if not session.client.sends_key:
        assert drawn == 2
        return "a second picture, 10 credits"
    assert drawn == 1
    return "the same picture, 5 credits"


def _write_row(row: list[str]) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    (shown,) = Markdown(text).section(SECTION).tables
    rows = [each for each in shown[1:] if each[:2] != row[:2]] + [row]
    order = [str(client) for client in CLIENTS]
    rows.sort(key=lambda each: (order.index(each[0]), [int(n) for n in each[1].split(".")]))
    begin = text.index("\n| client |", text.index(f"## {SECTION}")) + 1
    end = text.find("\n\n", begin)
    written = text[:begin] + table(shown[0], rows) + (text[end:] if end > 0 else "\n")
    GUIDE.write_text(written, encoding="utf-8")
