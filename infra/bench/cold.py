"""INIT of the built artifact in Lambda's own runtime, beside a plain build and an empty handler.

A plain build is what ``sam build`` makes without a build of its own: every package as it is
installed, no bytecode. INIT is what the first request takes longer than the next ones; the requests
are such that call nothing.
"""

import platform
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.bench.servers import Reach
from infra.build import python313
from infra.build.artifact import build
from infra.template import PROJECT_ROOT
from infra.verify import tools
from infra.verify.lambda_runtime import LambdaRuntime, Task

__all__ = ["Cold", "measure", "three_builds"]

ANSWER_S = 60.0
WARM_REQUESTS = 3
_EMPTY = "def handler(event, context):\n    return {}\n"
_HEADERS = {"authorization": "Bearer nobody"}
_CONTEXT = {"requestId": "bench", "domainName": "bench"}
_EVENTS: Mapping[str, Mapping[str, Any]] = {
    "generate": {
        "routeKey": "POST /api/v1/models/gemini/generate",
        "headers": _HEADERS,
        "requestContext": _CONTEXT,
    },
    "account": {"routeKey": "GET /healthz", "headers": _HEADERS, "requestContext": _CONTEXT},
    "worker": {"Records": []},
}


@dataclass(frozen=True)
class Cold:
    """INIT of one function, in milliseconds, once for each repeat."""

    function: str
    built: list[float]
    plain: list[float]
    empty: list[float]

    @property
    def ratio(self) -> float:
        """Built over plain, by their medians."""
        return statistics.median(self.built) / statistics.median(self.plain)


@contextmanager
def three_builds() -> Iterator[tuple[Path, Path, Path]]:
    """The built artifact, the plain one and the empty one."""
    with TemporaryDirectory(prefix="bench-") as scratch:
        built, plain, empty = (Path(scratch, name) for name in ("built", "plain", "empty"))
        machine = "arm64" if platform.machine() in {"arm64", "aarch64"} else "x86_64"
        build(PROJECT_ROOT, machine, built, python313.find())
        no_bytecode = shutil.ignore_patterns("__pycache__", ".installed")
        shutil.copytree(tools.packages(), plain, ignore=no_bytecode)
        for ours in ("handlers", "lib"):
            shutil.copytree(PROJECT_ROOT / ours, plain / ours, ignore=no_bytecode)
        empty.mkdir()
        (empty / "empty.py").write_text(_EMPTY, encoding="utf-8")
        yield built, plain, empty


def measure(reach: Reach, builds: tuple[Path, Path, Path], repeats: int) -> list[Cold]:
    """Starts each function ``repeats`` times from each build, by turns."""
    built, plain, empty = builds
    found = []
    for function, event in _EVENTS.items():
        handler = f"handlers.{function}.handler"
        cold = Cold(function, [], [], [])
        for _ in range(repeats):
            cold.built.append(_init_ms(built, handler, event, reach))
            cold.plain.append(_init_ms(plain, handler, event, reach))
            cold.empty.append(_init_ms(empty, "empty.handler", event, reach))
        found.append(cold)
    return found


def _init_ms(root: Path, handler: str, event: Mapping[str, Any], reach: Reach) -> float:
    # Nobody can write beside the code on Lambda; here the first run would speed up the next.
    environment = {**reach.environment, "PYTHONDONTWRITEBYTECODE": "1"}
    with LambdaRuntime(Task(root, (), handler, timeout_s=60), environment) as sandbox:
        took_ms = []
        for _ in range(1 + WARM_REQUESTS):
            began = time.perf_counter()
            sandbox.invoke(event, ANSWER_S)
            took_ms.append((time.perf_counter() - began) * 1000)
    first, *following = took_ms
    return first - statistics.median(following)
