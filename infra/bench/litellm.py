"""LiteLLM's proxy, with its one default worker, in front of the same stand-in for Gemini.

It stores nothing and, without a database, charges nothing. Only its own version is pinned: of all
installations of the project, this one alone resolves dependencies, from a package index.
"""

import json
import os
import secrets
import subprocess
import time
import venv
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import urllib3

from infra.bench.meters import cpu_s, peak_mib, percentile
from infra.bench.tables import section, table
from infra.template import PROJECT_ROOT
from infra.verify.child import Child, free_ports
from infra.verify.tools import TOOLS, ToolMissingError

VERSION = "1.106.2"
MODEL, ROUTE = "gemini-3.1-flash-lite-image", "/v1/chat/completions"
IMAGE, ONCE = {"aspectRatio": "16:9"}, {"num_retries": 0}
CLIENTS, WARM_UP = 64, 10
INSTALLATION_TAKES_S, START_TAKES_S, ANSWER_TAKES_S = 900.0, 120.0, 60.0
# A waiting shell makes the proxy a child of Child's command, whose process id Child tells.
_SHELL = ("sh", "-c", '"$@" & wait "$!"', "sh")
_LOCAL = ("MODEL_COST_MAP", "ANTHROPIC_BETA_HEADERS", "AUTOROUTER_PRESETS", "BLOG_POSTS")
_OFFLINE = {f"LITELLM_LOCAL_{name}": "True" for name in (*_LOCAL, "POLICY_TEMPLATES")}
_SETTINGS = {**_OFFLINE, "HF_HUB_OFFLINE": "1", "NO_PROXY": "*", "LITELLM_LOG": "ERROR"}
# A URL, headers, a body, and the picture of a good answer.
_Request = tuple[str, Mapping[str, str], object, bytes]
_Running = tuple[int, float, _Request]


class LiteLlm(NamedTuple):
    """CPU ms of a request, and the section."""

    cpu_ms: float
    lines: list[str]


def command(*, install: bool) -> Path:
    """The command, in an environment of its own of 740 MB; or raises ToolMissingError."""
    home = TOOLS / f"litellm-{VERSION}"
    if (home / ".installed").exists():
        return home / "bin" / "litellm"
    if not install:
        raise ToolMissingError(f"{home.name} is not installed: `make bench` installs it")
    uv, python = PROJECT_ROOT / ".venv" / "bin" / "uv", str(home / "bin" / "python")
    pip = [str(uv), "pip", "install", "-p", python] if uv.exists() else [python, "-mpip", "install"]
    try:
        venv.create(home, clear=True, with_pip=True)
        resolve = [*pip, "--quiet", f"litellm[proxy]=={VERSION}"]
        subprocess.run(resolve, check=True, timeout=INSTALLATION_TAKES_S)  # noqa: S603 - our own
    except (OSError, subprocess.SubprocessError) as fault:
        raise ToolMissingError(f"LiteLLM {VERSION} can't be installed here") from fault
    (home / ".installed").touch()
    return home / "bin" / "litellm"


def measure(litellm: Path, stand_in_url: str, prompt: str, requests: int) -> LiteLlm:
    """Sends ``requests`` from one client, then ``requests`` / 20 from each of ``CLIENTS``.

    Raises NotReadyError or OSError if the proxy does not start, has no picture, or has ended.
    """
    url, headers = f"{stand_in_url}/v1beta/models/{MODEL}:generateContent", {"x-goog-api-key": "k"}
    asked = {"responseModalities": ["IMAGE"], "imageConfig": IMAGE}
    body = {"contents": [{"parts": [{"text": prompt}]}], "generationConfig": asked}
    answer = urllib3.request("POST", url, json=body, headers=headers).json()
    picture = answer["candidates"][0]["content"]["parts"][-1]["inlineData"]["data"].encode()
    direct = (url, headers, body, picture)
    each = max(1, requests // 20)
    direct_ms, crowd_direct_ms = _loop(direct, 1, requests)[0], _loop(direct, CLIENTS, each)[0]
    with _running(litellm, stand_in_url, prompt, picture) as (pid, start_s, proxied):
        _loop(proxied, 1, WARM_UP)
        before_s = cpu_s(pid)
        one_ms, _ = _loop(proxied, 1, requests)
        cpu_ms = (cpu_s(pid) - before_s) * 1000 / requests
        crowd_ms, crowd_s = _loop(proxied, CLIENTS, each)
        peak = f"{peak_mib(pid):.0f} MiB; {start_s:.1f} s"
    loops_ms = (one_ms, direct_ms, crowd_ms, crowd_direct_ms)
    walls = [" / ".join(f"{percentile(ms, p):.0f}" for p in (50, 95, 99)) for ms in loops_ms]
    errors, per_s = CLIENTS * each - len(crowd_ms), len(crowd_ms) / crowd_s
    rows = [
        (f"CPU a request, one client, {requests} requests", f"**{cpu_ms:.1f} ms**"),
        ("wall ms, one client, p50 / p95 / p99", f"**{walls[0]}** (stand-in: {walls[1]})"),
        (f"wall ms, {CLIENTS} clients", f"**{walls[2]}** (stand-in: {walls[3]})"),
        (f"answers a second, {CLIENTS} clients; errors", f"{per_s:.0f}; {errors}"),
        ("peak memory (VmHWM); start", peak),
    ]
    about = f"LiteLLM {VERSION}, one worker, no database, the same stand-in. It stores and charges"
    more = "nothing. Its CPU includes HTTP; our handler's excludes API Gateway and Lambda."
    lines = [*section("LiteLLM's proxy", about, more), *table(("what", "figure"), rows)]
    return LiteLlm(cpu_ms, lines)


def _loop(request: _Request, clients: int, each: int) -> tuple[list[float], float]:
    """The wall ms of the successes of ``clients`` threads, and the seconds of all."""
    url, headers, body, picture = request
    pool = urllib3.PoolManager(maxsize=CLIENTS, retries=False, timeout=ANSWER_TAKES_S)
    took_ms: list[float] = []

    def client(_number: int) -> None:
        for _ in range(each):
            began = time.perf_counter()
            with suppress(urllib3.exceptions.HTTPError):
                if picture in pool.request("POST", url, headers=headers, json=body).data:
                    took_ms.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(client, range(clients)))
    return took_ms, time.perf_counter() - began


@contextmanager
def _running(litellm: Path, google: str, prompt: str, picture: bytes) -> Iterator[_Running]:
    """Runs the proxy; yields its process id, the seconds to its first answer, and a request."""
    (port,), key = free_ports(1), f"sk-{secrets.token_hex(32)}"
    # It adds a temperature that image models refuse; what drops it takes paths, hence the dot.
    model: dict[str, object] = {"model": f"gemini/{MODEL}", "api_base": f"{google}/v1beta"}
    model |= {"api_key": "k", "additional_drop_params": [".temperature"]}
    models = [{"model_name": MODEL, "litellm_params": model}]
    router = {**ONCE, "disable_cooldowns": True}
    config = {"model_list": models, "router_settings": router, "litellm_settings": ONCE}
    # Its route for images asks for text too, so this is a chat.
    chat = [{"role": "user", "content": prompt}]
    body = {"model": MODEL, "messages": chat, "modalities": ["image"], "imageConfig": IMAGE}
    url, headers = f"http://127.0.0.1:{port}{ROUTE}", {"Authorization": f"Bearer {key}"}
    request = (url, headers, body, picture)
    with TemporaryDirectory(prefix="litellm-") as home:
        Path(home, "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        options = ["--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
        environment = {"PATH": os.defpath, "HOME": home, "LITELLM_MASTER_KEY": key, **_SETTINGS}
        began = time.perf_counter()
        child = Child([*_SHELL, str(litellm), *options], environment, Path(home), Path(home, "log"))
        try:
            child.wait_until(lambda: bool(_loop(request, 1, 1)[0]), START_TAKES_S)
            yield child.children()[0], time.perf_counter() - began, request
        finally:
            child.stop()
