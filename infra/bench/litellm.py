"""LiteLLM's proxy in front of the same stand-in for Gemini.

It passes images on; it stores none, and without a database it charges nothing. It runs with one
worker, its default. Only its own version is pinned: of all installations of the project this one
resolves dependencies, and so needs a package index.
"""

import json
import math
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import urllib3

from infra.bench.meters import cpu_s, peak_mib, percentile
from infra.bench.servers import GEMINI_KEY
from infra.bench.tables import section, table
from infra.template import PROJECT_ROOT
from infra.verify.child import Child, free_ports
from infra.verify.tools import TOOLS, ToolMissingError

__all__ = ["CLIENTS", "LiteLlm", "command", "measure", "report"]

VERSION = "1.106.2"
MODEL = "gemini-3.1-flash-lite-image"
GOOGLE_HEADERS = {"x-goog-api-key": GEMINI_KEY}
IMAGE = {"aspectRatio": "16:9"}
CLIENTS, WARM_UP = 64, 10
INSTALLATION_TAKES_S, START_TAKES_S, ANSWER_TAKES_S = 900.0, 120.0, 60.0
# A waiting shell makes the proxy a child of Child's command, whose process id Child tells.
_SHELL = ("sh", "-c", '"$@" & wait "$!"', "sh")
_LOCAL = ("MODEL_COST_MAP", "ANTHROPIC_BETA_HEADERS", "AUTOROUTER_PRESETS", "BLOG_POSTS")
_OFFLINE = {f"LITELLM_LOCAL_{name}": "True" for name in (*_LOCAL, "POLICY_TEMPLATES")}
_SETTINGS = {**_OFFLINE, "HF_HUB_OFFLINE": "1", "NO_PROXY": "*", "LITELLM_LOG": "ERROR"}
Ask = Callable[[], float]


@dataclass(frozen=True)
class LiteLlm:
    """Wall ms of one client and of ``CLIENTS``; the ``direct`` ones asked the stand-in itself."""

    start_s: float
    cpu_ms: float
    peak_mib: float
    direct_ms: list[float]
    one_ms: list[float]
    crowd_direct_ms: list[float]
    crowd_ms: list[float]
    crowd_s: float
    errors: int


def command(*, install: bool) -> Path:
    """The ``litellm`` command in an environment of its own, about 740 MB.

    Raises:
        ToolMissingError: it is not there, or can't be installed.
    """
    home = TOOLS / f"litellm-{VERSION}"
    if (home / ".installed").exists():
        return home / "bin" / "litellm"
    if not install:
        raise ToolMissingError(f"{home.name} is not installed: `make bench` installs it")
    uv, python = PROJECT_ROOT / ".venv" / "bin" / "uv", str(home / "bin" / "python")
    with_pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    resolve = [str(uv), "pip", "install", "--python", python] if uv.exists() else with_pip
    resolve += ["--quiet", f"litellm[proxy]=={VERSION}"]
    try:
        for step in ([sys.executable, "-m", "venv", "--clear", str(home)], resolve):
            subprocess.run(step, check=True, timeout=INSTALLATION_TAKES_S)  # noqa: S603 - our own
    except (OSError, subprocess.SubprocessError) as fault:
        raise ToolMissingError(f"LiteLLM {VERSION} can't be installed here") from fault
    (home / ".installed").touch()
    return home / "bin" / "litellm"


def measure(litellm: Path, stand_in_url: str, prompt: str, requests: int) -> LiteLlm:
    """Sends ``requests`` from one client, then ``requests`` / 20 from each of ``CLIENTS``.

    Raises:
        NotReadyError: the proxy does not start, or answers without the picture.
        MeterError: the proxy's process has ended.
    """
    url = f"{stand_in_url}/v1beta/models/{MODEL}:generateContent"
    asked = {"responseModalities": ["IMAGE"], "imageConfig": IMAGE}
    body = {"contents": [{"parts": [{"text": prompt}]}], "generationConfig": asked}
    answer = urllib3.request("POST", url, json=body, headers=GOOGLE_HEADERS).json()
    picture: str = answer["candidates"][0]["content"]["parts"][-1]["inlineData"]["data"]
    direct = _asker(url, GOOGLE_HEADERS, body, picture.encode())
    each = max(1, requests // 20)
    direct_ms, crowd_direct_ms = _loop(direct, 1, requests)[0], _loop(direct, CLIENTS, each)[0]
    with _running(litellm, stand_in_url, prompt, picture.encode()) as (pid, start_s, ask):
        _loop(ask, 1, WARM_UP)
        before_s = cpu_s(pid)
        one_ms, _ = _loop(ask, 1, requests)
        cpu_ms = (cpu_s(pid) - before_s) * 1000 / requests
        crowd_ms, crowd_s = _loop(ask, CLIENTS, each)
        errors = requests + CLIENTS * each - len(one_ms) - len(crowd_ms)
        walls_ms = (direct_ms, one_ms, crowd_direct_ms, crowd_ms)
        return LiteLlm(start_s, cpu_ms, peak_mib(pid), *walls_ms, crowd_s, errors)


def _asker(url: str, headers: Mapping[str, str], body: object, picture: bytes) -> Ask:
    """Makes the request: its wall ms, or NaN if no answer with ``picture`` comes."""
    pool = urllib3.PoolManager(maxsize=CLIENTS, retries=False, timeout=ANSWER_TAKES_S)

    def ask() -> float:
        began = time.perf_counter()
        try:
            answer = pool.request("POST", url, headers=headers, json=body)
        except urllib3.exceptions.HTTPError:
            return math.nan
        return (time.perf_counter() - began) * 1000 if picture in answer.data else math.nan

    return ask


def _loop(ask: Ask, clients: int, each: int) -> tuple[list[float], float]:
    """The wall ms of the successes of ``clients`` threads, and the seconds of all."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        loops = threads.map(lambda _: [ask() for _ in range(each)], range(clients))
        took_ms = [ms for loop in loops for ms in loop if not math.isnan(ms)]
    return took_ms, time.perf_counter() - began


@contextmanager
def _running(
    litellm: Path, stand_in_url: str, prompt: str, picture: bytes
) -> Iterator[tuple[int, float, Ask]]:
    """Runs the proxy; yields its process id, the seconds to its first answer, and how to ask."""
    (port,) = free_ports(1)
    key = f"sk-{secrets.token_hex(32)}"
    # It adds a temperature that image models refuse; what drops it takes paths, hence the dot.
    model = {"model": f"gemini/{MODEL}", "api_base": f"{stand_in_url}/v1beta"}
    model_settings = {**model, "api_key": GEMINI_KEY, "additional_drop_params": [".temperature"]}
    once = {"num_retries": 0}
    config: dict[str, object] = {
        "model_list": [{"model_name": MODEL, "litellm_params": model_settings}]
    }
    config |= {"router_settings": once | {"disable_cooldowns": True}, "litellm_settings": once}
    # Its route for images asks for text too, so this is a chat.
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "imageConfig": IMAGE}
    body |= {"modalities": ["image"]}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    ask = _asker(url, {"Authorization": f"Bearer {key}"}, body, picture)
    with TemporaryDirectory(prefix="litellm-") as home:
        path = Path(home, "config.yaml")
        path.write_text(json.dumps(config), encoding="utf-8")
        options = ["--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
        environment = {"PATH": os.defpath, "HOME": home, "LITELLM_MASTER_KEY": key, **_SETTINGS}
        began = time.perf_counter()
        child = Child([*_SHELL, str(litellm), *options], environment, Path(home), Path(home, "log"))
        try:
            child.wait_until(lambda: not math.isnan(ask()), START_TAKES_S)
            yield child.children()[0], time.perf_counter() - began, ask
        finally:
            child.stop()


def report(found: LiteLlm) -> Iterator[str]:
    """The section of the results."""
    yield from section(
        "LiteLLM's proxy",
        f"LiteLLM {VERSION}, one worker, no database, the same stand-in. It stores and charges",
        "nothing. Its CPU includes HTTP on both sides; our handler's excludes API Gateway and",
        "Lambda.",
    )
    walls = (found.one_ms, found.direct_ms), (found.crowd_ms, found.crowd_direct_ms)
    rows = [("CPU a request, one client", f"**{found.cpu_ms:.1f} ms**")]
    for clients, both in zip((1, CLIENTS), walls, strict=True):
        p50s, p99s = ([f"{percentile(each, rank):.0f}" for each in both] for rank in (50, 99))
        name = f"wall ms, {clients} clients, {len(both[0])} requests, p50 / p99"
        figure = f"**{p50s[0]}** / {p99s[0]} (the stand-in alone: {p50s[1]} / {p99s[1]})"
        rows.append((name, figure))
    per_s = len(found.crowd_ms) / found.crowd_s
    rows.append((f"answers a second, {CLIENTS} clients; errors", f"{per_s:.0f}; {found.errors}"))
    rows.append(("peak memory (VmHWM); start", f"{found.peak_mib:.0f} MiB; {found.start_s:.1f} s"))
    yield from table(("what", "figure"), rows)
