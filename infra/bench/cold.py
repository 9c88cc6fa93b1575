"""INIT and size of the built artifact beside a plain build and an empty handler.

A plain build is ``sam build`` without our build step: every package as installed, no bytecode. INIT
is how much longer the first request takes than the next ones, in Lambda's own runtime; the requests
make no calls.
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

from infra.bench.caller import ROUTE
from infra.bench.servers import Servers
from infra.bench.tables import section, spread, table, verdict
from infra.build import python313
from infra.build.artifact import OURS, build
from infra.build.faults import BuildError
from infra.build.sizes import largest_parts, unzipped_bytes, zipped_bytes
from infra.template import PROJECT_ROOT
from infra.verify import tools
from infra.verify.lambda_runtime import LambdaRuntime, Task

INIT_TARGET, ACCOUNT_TARGET, SIZE_TARGET = 0.38, 0.13, 0.38
TIMEOUT_S = 60
WARM_REQUESTS = 3
MEGABYTE = 1_000_000
_EMPTY = "def handler(event, context):\n    return {}\n"
_NOT_DEPLOYED = shutil.ignore_patterns("__pycache__", ".installed")
_HTTP = {
    "headers": {"authorization": "Bearer unknown"},
    "requestContext": {"requestId": "bench", "domainName": "bench"},
}
_EVENTS: Mapping[str, Mapping[str, Any]] = {
    "generate": {"routeKey": ROUTE, **_HTTP},
    "account": {"routeKey": "GET /healthz", **_HTTP},
    "worker": {"Records": []},
    "reconcile": {},
}


@dataclass(frozen=True)
class Builds:
    """Directories to deploy: our build, a plain ``sam build``, a handler that does nothing."""

    built: Path
    plain: Path
    empty: Path


Cold = Mapping[str, Mapping[str, list[float]]]
"""INIT in milliseconds of each start, by the function's module and by the field of ``Builds``."""


@contextmanager
def builds() -> Iterator[Builds]:
    """Makes all three; raises BuildError if one fails, or without a Python 3.13."""
    with TemporaryDirectory(prefix="bench-") as scratch:
        made = Builds(*(Path(scratch, name) for name in ("built", "plain", "empty")))
        machine = "arm64" if platform.machine() in {"arm64", "aarch64"} else "x86_64"
        missing = build(PROJECT_ROOT, machine, made.built, python313.find())
        if missing:
            raise BuildError(" ".join(missing))
        shutil.copytree(tools.packages(), made.plain, ignore=_NOT_DEPLOYED)
        for ours in OURS:
            shutil.copytree(PROJECT_ROOT / ours, made.plain / ours, ignore=_NOT_DEPLOYED)
        made.empty.mkdir()
        (made.empty / "empty.py").write_text(_EMPTY, encoding="utf-8")
        yield made


def measure(servers: Servers, made: Builds, starts: int) -> Cold:
    """Starts each function ``starts`` times from each build, alternating."""
    found: dict[str, dict[str, list[float]]]
    found = {function: {"built": [], "plain": [], "empty": []} for function in _EVENTS}
    for _ in range(starts):
        for function, event in _EVENTS.items():
            for name, took_ms in found[function].items():
                handler = "empty.handler" if name == "empty" else f"handlers.{function}.handler"
                took_ms.append(_init_ms(getattr(made, name), handler, event, servers))
    return found


def _init_ms(root: Path, handler: str, event: Mapping[str, Any], servers: Servers) -> float:
    # Lambda's file system is read-only; here the first start would cache bytecode for the next.
    environment = {**servers.environment, "PYTHONDONTWRITEBYTECODE": "1"}
    with LambdaRuntime(Task(root, (), handler, timeout_s=TIMEOUT_S), environment) as sandbox:
        took_ms = []
        for _ in range(1 + WARM_REQUESTS):
            began = time.perf_counter()
            sandbox.invoke(event, TIMEOUT_S)
            took_ms.append((time.perf_counter() - began) * 1000)
    return took_ms[0] - statistics.median(took_ms[1:])


def init_ratio(cold: Cold, function: str, plain: str) -> float:
    """The median INIT of a built function over that of a plain one."""
    return statistics.median(cold[function]["built"]) / statistics.median(cold[plain]["plain"])


def report(cold: Cold) -> Iterator[str]:
    """The section of the results."""
    account = init_ratio(cold, "account", "generate")
    yield from section(
        "Cold start: INIT",
        f"In Lambda's own runtime, median (min to max) of {len(cold['generate']['built'])} starts",
        "each, alternating. `plain` is `sam build` without our build step. The account function is",
        "also compared with the plain generate function, which loads the whole artifact:",
        f"**{account:.2f}** ({verdict(account, ACCOUNT_TARGET)}).",
    )
    rows = []
    for function, times in cold.items():
        ratio = init_ratio(cold, function, function)
        target = verdict(ratio, INIT_TARGET)
        rows.append((function, f"**{ratio:.2f}**", target, *map(spread, times.values())))
    head = ("function", "built / plain", "target", "built, ms", "plain, ms", "empty handler, ms")
    yield from table(head, rows)


def report_size(made: Builds) -> Iterator[str]:
    """The section of the results."""
    yield from ("## Size of the artifact", "")
    rows = []
    for name, bytes_of in (("unzipped", unzipped_bytes), ("zipped", zipped_bytes)):
        ours, theirs = bytes_of(made.built) / MEGABYTE, bytes_of(made.plain) / MEGABYTE
        ratio = ours / theirs
        target = verdict(ratio, SIZE_TARGET)
        rows.append((name, f"**{ratio:.2f}**", target, f"{ours:.1f}", f"{theirs:.1f}"))
    yield from table(("", "built / plain", "target", "built, MB", "plain, MB"), rows)
    yield from ("", "The ten largest parts:", "")
    parts = ((f"`{part}`", f"{size / MEGABYTE:.2f}") for part, size in largest_parts(made.built))
    yield from table(("part", "MB"), parts)
