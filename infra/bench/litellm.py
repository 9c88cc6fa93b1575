"""What a user would pick instead: LiteLLM's proxy in front of the same stand-in for Gemini.

    python -m infra.bench.litellm

It passes images on. It stores none, and without a database it charges nobody, so it does less than
the service. It runs in an environment of its own, with one worker, as it does by default.
"""

import argparse
import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier
from urllib.parse import urlsplit

from infra.bench.caller import UnexpectedAnswerError
from infra.bench.meters import peak_mib, percentile
from infra.bench.servers import GEMINI_KEY, PROMPT
from infra.bench.words import table
from infra.local.gemini_stand_in import GeminiStandIn
from infra.verify import guard, tools
from infra.verify.child import Child, NotReadyError, free_ports

__all__ = ["CLIENTS", "LiteLlm", "measure", "report"]

MODEL = "gemini-3.1-flash-lite-image"
RATIO = "16:9"
CLIENTS = 64
WARM_UP = 10
START_TAKES_S = 120.0
ANSWER_TAKES_S = 60.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
# A parent that only waits makes the proxy a child's child, which is what `Child` can name.
_SHELL = ("sh", "-c", '"$@" & wait "$!"', "sh")
# What it would fetch from the network otherwise: prices, headers, templates, news, tokenizers.
_OFFLINE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class LiteLlm:
    """Milliseconds of wall time where nothing else is said.

    ``cpu_ms`` is that of all its processes, a request. ``added`` is what it takes beyond
    ``direct``, the same request made to the stand-in itself, with one client and by turns.
    ``crowd`` has ``CLIENTS`` clients at once; ``crowd_direct`` as many at the stand-in itself.
    ``start_s`` ends with its first answer.
    """

    version: str
    requests: int
    start_s: float
    cpu_ms: float
    peak_mib: float
    direct_p50_ms: float
    added_p50_ms: float
    added_p95_ms: float
    added_p99_ms: float
    crowd_requests: int
    crowd_errors: int
    crowd_p50_ms: float
    crowd_p99_ms: float
    crowd_direct_p99_ms: float
    crowd_per_s: float


@dataclass(frozen=True)
class _Question:
    """One request, to the proxy or to the stand-in, and what must be in its answer."""

    address: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def connect(self) -> HTTPConnection:
        return HTTPConnection(self.address, timeout=ANSWER_TAKES_S)


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    wall_ms: float
    version: str


@dataclass(frozen=True)
class _Crowd:
    """The walls of the answers that had the picture, in ms."""

    walls_ms: list[float]
    errors: int
    seconds: float


def measure(stand_in_url: str, prompt: str, requests: int) -> LiteLlm:
    """Starts the proxy, asks ``requests`` times from one client, then from ``CLIENTS`` at once.

    The stand-in is to answer at once, always with the same picture, and with ``usageMetadata`` as
    Google does: LiteLLM refuses an answer without. Each of the crowd asks ``requests`` / 20 times.

    Raises:
        ToolMissingError: LiteLLM is not installed.
        NotReadyError: it does not come up.
        UnexpectedAnswerError: the picture does not come.
    """
    direct = _direct(stand_in_url, prompt)
    with closing(direct.connect()) as connection:
        picture = _google_picture(_ask(connection, direct))
    each = max(1, requests // 20)
    direct_crowd = _crowd(direct, picture, each)
    began = time.perf_counter()
    with _proxy(stand_in_url) as (child, proxy):
        start_s = time.perf_counter() - began
        proxied = proxy.question(prompt)
        version = _warmed_up(proxied, picture)
        processes = _processes(child)
        before_s = _cpu_s(processes)
        directs_ms, walls_ms = _by_turns(direct, proxied, picture, requests)
        cpu_ms = (_cpu_s(processes) - before_s) * 1000 / requests
        crowd = _crowd(proxied, picture, each)
        peak = sum(peak_mib(pid) for pid in processes)
    added_ms = [wall - alone for wall, alone in zip(walls_ms, directs_ms, strict=True)]
    return LiteLlm(
        version=version,
        requests=requests,
        start_s=start_s,
        cpu_ms=cpu_ms,
        peak_mib=peak,
        direct_p50_ms=statistics.median(directs_ms),
        added_p50_ms=percentile(added_ms, 50),
        added_p95_ms=percentile(added_ms, 95),
        added_p99_ms=percentile(added_ms, 99),
        crowd_requests=len(crowd.walls_ms) + crowd.errors,
        crowd_errors=crowd.errors,
        crowd_p50_ms=percentile(crowd.walls_ms, 50),
        crowd_p99_ms=percentile(crowd.walls_ms, 99),
        crowd_direct_p99_ms=percentile(direct_crowd.walls_ms, 99),
        crowd_per_s=len(crowd.walls_ms) / crowd.seconds,
    )


def report(found: LiteLlm) -> Iterator[str]:
    """The section of the results."""
    yield from ("## LiteLLM's proxy", "")
    yield f"LiteLLM {found.version}, one worker, no database, the same stand-in: it passes pictures"
    yield "on as they come, stores none and charges nobody. Its CPU has HTTP in it, on both sides;"
    yield "that of the service's handler is without API Gateway's and Lambda's."
    yield ""
    one = f"one client, {found.requests} requests"
    added = f"**{found.added_p50_ms:.0f}** / {found.added_p95_ms:.0f} / {found.added_p99_ms:.0f}"
    all_at_once = f"{CLIENTS} clients, {found.crowd_requests} requests"
    crowd_wall = f"{found.crowd_p50_ms:.0f} / **{found.crowd_p99_ms:.0f} ms**"
    crowd_wall += f" (p99 of the stand-in alone: {found.crowd_direct_p99_ms:.0f})"
    yield from table(
        ("what", "figure"),
        (
            (f"CPU a request, {one}", f"**{found.cpu_ms:.1f} ms**"),
            (
                f"added wall, {one}, p50 / p95 / p99",
                f"{added} ms (the stand-in alone: {found.direct_p50_ms:.0f})",
            ),
            (
                f"wall, {all_at_once}, p50 / p99",
                crowd_wall,
            ),
            (f"answers a second, {all_at_once}", f"{found.crowd_per_s:.0f}"),
            (f"errors, {all_at_once}", f"{found.crowd_errors}"),
            ("peak memory (VmHWM)", f"{found.peak_mib:.0f} MiB"),
            ("start", f"{found.start_s:.1f} s"),
        ),
    )


@dataclass(frozen=True)
class _Proxy:
    """Where it listens, and the key that it asks for."""

    address: str
    key: str

    def is_up(self) -> bool:
        """Whether it answers."""
        with closing(HTTPConnection(self.address, timeout=ANSWER_TAKES_S)) as connection:
            try:
                connection.request("GET", "/health/liveliness")
                return connection.getresponse().status == HTTPStatus.OK
            except (OSError, HTTPException):
                return False

    def question(self, prompt: str) -> _Question:
        """A chat that asks for a picture: its route for images asks for text too."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": prompt}],
            "modalities": ["image"],
            "imageConfig": {"aspectRatio": RATIO},
        }
        headers = {"Authorization": f"Bearer {self.key}"}
        return _question(self.address, "/v1/chat/completions", headers, body)


@contextmanager
def _proxy(stand_in_url: str) -> Iterator[tuple[Child, _Proxy]]:
    """The proxy on a free port of 127.0.0.1, until the block ends."""
    command = tools.litellm()
    (port,) = free_ports(1)
    proxy = _Proxy(f"127.0.0.1:{port}", f"sk-{secrets.token_hex(32)}")
    with TemporaryDirectory(prefix="litellm-") as scratch:
        directory = Path(scratch)
        settings = directory / "config.yaml"
        settings.write_text(json.dumps(_settings(stand_in_url)), encoding="utf-8")
        child = Child(
            [
                *(*_SHELL, str(command), "--config", str(settings)),
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            _environment(directory, proxy.key),
            directory,
            directory / "log",
        )
        try:
            child.wait_until(proxy.is_up, START_TAKES_S)
            yield child, proxy
        finally:
            child.stop()


def _settings(stand_in_url: str) -> dict[str, object]:
    """One model, and one try each, so that a failure is counted as one.

    For Gemini 3 it adds a temperature that the image models refuse with a 400. What drops one of
    its own additions takes a path, and a path needs a dot to be taken for one (1.106,
    ``is_nested_path``).
    """
    model = {
        "model": f"gemini/{MODEL}",
        "api_base": f"{stand_in_url}/v1beta",
        "api_key": GEMINI_KEY,
        "additional_drop_params": [".temperature"],
    }
    return {
        "model_list": [{"model_name": MODEL, "litellm_params": model}],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "litellm_settings": {"num_retries": 0, "request_timeout": ANSWER_TAKES_S},
    }


def _environment(home: Path, key: str) -> dict[str, str]:
    """All its variables: none of ours, a proxy's address least of all, reach it."""
    return {
        "PATH": os.defpath,
        "HOME": str(home),
        "TMPDIR": str(home),
        "NO_PROXY": "*",
        # As its guide to production has it: no debug log, no .env file.
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_MASTER_KEY": key,
        **_OFFLINE,
    }


def _direct(stand_in_url: str, prompt: str) -> _Question:
    body = {
        "contents": [{"parts": [{"text": prompt}], "role": "user"}],
        "generationConfig": {
            "responseModalities": ["IMAGE"],
            "imageConfig": {"aspectRatio": RATIO},
        },
    }
    path = f"/v1beta/models/{MODEL}:generateContent"
    return _question(urlsplit(stand_in_url).netloc, path, {"x-goog-api-key": GEMINI_KEY}, body)


def _question(
    address: str, path: str, headers: Mapping[str, str], body: Mapping[str, object]
) -> _Question:
    as_json = {"Content-Type": "application/json"}
    return _Question(address, path, {**headers, **as_json}, json.dumps(body).encode())


def _ask(connection: HTTPConnection, question: _Question) -> _Answer:
    """The answer, whatever it is; the connection stays open for the next."""
    began = time.perf_counter()
    try:
        connection.request("POST", question.path, question.body, dict(question.headers))
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES)
    except (OSError, HTTPException) as fault:
        connection.close()
        raise UnexpectedAnswerError("no answer came") from fault
    wall_ms = (time.perf_counter() - began) * 1000
    return _Answer(response.status, body, wall_ms, response.getheader("x-litellm-version", ""))


def _google_picture(answer: _Answer) -> bytes:
    """The picture of Google's answer, as base64."""
    _expect(answer, b"")
    try:
        (candidate,) = json.loads(answer.body)["candidates"]
        data: str = candidate["content"]["parts"][-1]["inlineData"]["data"]
    except (ValueError, LookupError, TypeError) as fault:
        raise UnexpectedAnswerError("the stand-in's answer has no picture") from fault
    return data.encode()


def _expect(answer: _Answer, picture: bytes) -> None:
    if answer.status != HTTPStatus.OK or picture not in answer.body:
        raise UnexpectedAnswerError(f"an answer, {answer.status}, does not have the picture")


def _warmed_up(proxied: _Question, picture: bytes) -> str:
    """Its version; the first answer has the picture and nothing else, byte by byte."""
    with closing(proxied.connect()) as connection:
        answers = [_ask(connection, proxied) for _ in range(WARM_UP)]
    for answer in answers:
        _expect(answer, picture)
    try:
        (image,) = json.loads(answers[0].body)["choices"][0]["message"]["images"]
        url: str = image["image_url"]["url"]
    except (ValueError, LookupError, TypeError) as fault:
        raise UnexpectedAnswerError("the proxy's answer has no picture") from fault
    if url.partition(";base64,")[2].encode() != picture:
        raise UnexpectedAnswerError("the proxy's picture is not the stand-in's")
    return answers[0].version


def _by_turns(
    direct: _Question, proxied: _Question, picture: bytes, requests: int
) -> tuple[list[float], list[float]]:
    """The walls in ms of both, each on a connection that stays open."""
    directs_ms, walls_ms = [], []
    with closing(direct.connect()) as to_google, closing(proxied.connect()) as to_proxy:
        for _ in range(requests):
            alone, by_proxy = _ask(to_google, direct), _ask(to_proxy, proxied)
            _expect(alone, picture)
            _expect(by_proxy, picture)
            directs_ms.append(alone.wall_ms)
            walls_ms.append(by_proxy.wall_ms)
    return directs_ms, walls_ms


def _crowd(question: _Question, picture: bytes, requests_each: int) -> _Crowd:
    """``CLIENTS`` threads that begin together."""
    start = Barrier(CLIENTS + 1)

    def work(_number: int) -> list[float | None]:
        with closing(question.connect()) as connection:
            start.wait()
            return [_wall_ms(connection, question, picture) for _ in range(requests_each)]

    with ThreadPoolExecutor(CLIENTS) as threads:
        working = [threads.submit(work, number) for number in range(CLIENTS)]
        start.wait()
        began = time.perf_counter()
        walls_ms = [wall_ms for each in working for wall_ms in each.result()]
        seconds = time.perf_counter() - began
    good = [wall_ms for wall_ms in walls_ms if wall_ms is not None]
    if not good:
        raise UnexpectedAnswerError("none of many clients got an answer")
    return _Crowd(good, len(walls_ms) - len(good), seconds)


def _wall_ms(connection: HTTPConnection, proxied: _Question, picture: bytes) -> float | None:
    """None for an error; a connection that broke opens again by itself."""
    try:
        answer = _ask(connection, proxied)
        _expect(answer, picture)
    except UnexpectedAnswerError:
        return None
    return answer.wall_ms


def _processes(child: Child) -> list[int]:
    """The proxy's process and all that it started."""
    found = child.children()
    if not found:
        raise UnexpectedAnswerError("the proxy has no process")
    everybody = list(guard.session(os.getsid(found[0])))
    # Grows while it is walked: children are looked at in their turn.
    for pid in found:
        found.extend(each.pid for each in everybody if each.parent == pid)
    return found


def _cpu_s(processes: list[int]) -> float:
    """User and system time so far (proc(5), ``stat``)."""
    ticks = 0
    for pid in processes:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Installs the proxy unless it is there, and prints the figures; 1 if there are none."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--requests", type=int, default=200, help="of one client (default 200)")
    requests = max(1, options.parse_args().requests)
    try:
        tools.install_litellm()
        with GeminiStandIn(fixed_picture=True) as stand_in:
            found = measure(stand_in.url, PROMPT, requests)
            seen = {received.path for received in stand_in.requests}
    except (tools.ToolMissingError, NotReadyError, UnexpectedAnswerError) as fault:
        print(fault, file=sys.stderr)
        return 1
    print(*report(found), sep="\n")
    print(f"\nThe stand-in was asked for: {', '.join(sorted(seen))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
