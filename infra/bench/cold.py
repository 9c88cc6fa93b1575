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
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.bench.caller import ROUTE
from infra.bench.servers import Reach
from infra.bench.words import least_median_most, table, verdict
from infra.build import python313
from infra.build.artifact import OURS, build
from infra.build.faults import BuildError
from infra.build.sizes import largest_parts, unzipped_bytes, zipped_bytes
from infra.template import PROJECT_ROOT
from infra.verify import tools
from infra.verify.lambda_runtime import LambdaRuntime, Task

__all__ = ["Builds", "Cold", "Start", "builds", "measure", "report", "report_size"]

INIT_TARGET, ACCOUNT_TARGET, SIZE_TARGET = 0.42, 0.15, 0.5
ANSWER_S = 60.0
WARM_REQUESTS = 3
MEGABYTE = 1_000_000
_EMPTY = "def handler(event, context):\n    return {}\n"
_NOT_DEPLOYED = shutil.ignore_patterns("__pycache__", ".installed")
_NOBODY = {"authorization": "Bearer nobody"}
_CONTEXT = {"requestId": "bench", "domainName": "bench"}
_EVENTS: Mapping[str, Mapping[str, Any]] = {
    "generate": {"routeKey": ROUTE, "headers": _NOBODY, "requestContext": _CONTEXT},
    "account": {"routeKey": "GET /healthz", "headers": _NOBODY, "requestContext": _CONTEXT},
    "worker": {"Records": []},
    "reconcile": {},
}


@dataclass(frozen=True)
class Builds:
    """What is deployed: ours, a plain ``sam build``'s, and a handler that does nothing."""

    built: Path
    plain: Path
    empty: Path


@dataclass
class Start:
    """INIT of one function in milliseconds, once for each start."""

    built: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    empty: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Built over plain, by their medians."""
        return statistics.median(self.built) / statistics.median(self.plain)


Cold = Mapping[str, Start]
"""By the function's module."""


@contextmanager
def builds() -> Iterator[Builds]:
    """Makes all three.

    Raises:
        BuildError: a build fails, or there is no Python 3.13 to make bytecode with.
    """
    with TemporaryDirectory(prefix="bench-") as scratch:
        found = Builds(*(Path(scratch, name) for name in ("built", "plain", "empty")))
        machine = "arm64" if platform.machine() in {"arm64", "aarch64"} else "x86_64"
        missing = build(PROJECT_ROOT, machine, found.built, python313.find())
        if missing:
            raise BuildError(" ".join(missing))
        shutil.copytree(tools.packages(), found.plain, ignore=_NOT_DEPLOYED)
        for ours in OURS:
            shutil.copytree(PROJECT_ROOT / ours, found.plain / ours, ignore=_NOT_DEPLOYED)
        found.empty.mkdir()
        (found.empty / "empty.py").write_text(_EMPTY, encoding="utf-8")
        yield found


def measure(reach: Reach, made: Builds, starts: int) -> Cold:
    """Starts each function ``starts`` times from each build, by turns."""
    found: dict[str, Start] = {function: Start() for function in _EVENTS}
    for _ in range(starts):
        for function, event in _EVENTS.items():
            handler = f"handlers.{function}.handler"
            start = found[function]
            start.built.append(_init_ms(made.built, handler, event, reach))
            start.plain.append(_init_ms(made.plain, handler, event, reach))
            start.empty.append(_init_ms(made.empty, "empty.handler", event, reach))
    return found


def _init_ms(root: Path, handler: str, event: Mapping[str, Any], reach: Reach) -> float:
    # Nobody can write beside the code on Lambda; here the first start would speed up the next.
    environment = {**reach.environment, "PYTHONDONTWRITEBYTECODE": "1"}
    with LambdaRuntime(Task(root, (), handler, timeout_s=60), environment) as sandbox:
        took_ms = []
        for _ in range(1 + WARM_REQUESTS):
            began = time.perf_counter()
            sandbox.invoke(event, ANSWER_S)
            took_ms.append((time.perf_counter() - began) * 1000)
    first, *following = took_ms
    return first - statistics.median(following)


def report(cold: Cold) -> Iterator[str]:
    """The section of the results."""
    starts = len(cold["generate"].built)
    generate_plain = statistics.median(cold["generate"].plain)
    account = statistics.median(cold["account"].built) / generate_plain
    yield from ("## Cold start: INIT", "")
    yield f"In Lambda's own runtime, median (least to most) of {starts} starts of each, by turns."
    yield "`plain` is a `sam build` without ours. The account function is also held against the"
    yield "plain generate function, which loads all that the artifact has:"
    yield f"**{account:.2f}** ({verdict(account, ACCOUNT_TARGET)})."
    yield ""
    yield from table(
        ("function", "built / plain", "target", "built, ms", "plain, ms", "empty handler, ms"),
        (
            (
                function,
                f"**{start.ratio:.2f}**",
                verdict(start.ratio, INIT_TARGET),
                *(least_median_most(each) for each in (start.built, start.plain, start.empty)),
            )
            for function, start in cold.items()
        ),
    )


def report_size(made: Builds) -> Iterator[str]:
    """The section of the results."""
    yield from ("## Size of the artifact", "")
    rows = []
    for name, bytes_of in (("unzipped", unzipped_bytes), ("zipped", zipped_bytes)):
        ours, theirs = bytes_of(made.built), bytes_of(made.plain)
        ratio = ours / theirs
        figures = (f"{each / MEGABYTE:.1f}" for each in (ours, theirs))
        rows.append((name, f"**{ratio:.2f}**", verdict(ratio, SIZE_TARGET), *figures))
    yield from table(("", "built / plain", "target", "built, MB", "plain, MB"), rows)
    yield from ("", "Its ten largest parts:", "")
    parts = largest_parts(made.built)
    yield from table(
        ("part", "MB"), ((f"`{part}`", f"{size / MEGABYTE:.2f}") for part, size in parts)
    )
