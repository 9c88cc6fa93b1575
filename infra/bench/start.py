"""From a fresh clone to the first answer of ``make run``, without caches; and CI, by stage.

The clone is of what is committed. Packages come from the index that this machine is configured for.
"""

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from infra.bench.tables import section, table, verdict
from infra.template import PROJECT_ROOT
from infra.verify.child import Child, free_ports

START_TARGET_S = 15.0
START_TAKES_S = 300.0
CI_STAGES = PROJECT_ROOT / ".build" / "ci-stages.txt"
# What is printed when a stage ends: the first line of uv, then two of our own.
STAGES = (
    ("virtual environment, and uv by pip", "Downloading"),
    ("all packages, by uv", "Starting ..."),
    ("the stack", "URL  "),
)


class Stages(NamedTuple):
    """Seconds of each stage of the first start, and of a second one."""

    first: list[tuple[str, float]]
    second_s: float

    @property
    def first_s(self) -> float:
        """The seconds of the whole first start."""
        return sum(seconds for _, seconds in self.first)


def measure() -> Stages:
    """Clones what is committed, and starts it twice.

    Raises:
        NotReadyError: it does not start.
        CalledProcessError: there is no clone.
    """
    dropped = re.compile("MAKE|MFLAGS|VIRTUAL_ENV|PYTHON")
    kept = {name: value for name, value in os.environ.items() if not dropped.match(name)}
    with TemporaryDirectory(prefix="start-") as scratch:
        clone, log = Path(scratch, "clone"), Path(scratch, "log")
        subprocess.run(["git", "clone", "-q", PROJECT_ROOT, clone], check=True)  # noqa: S603, S607 - our own
        (port,) = free_ports(1)
        caches = {"UV_CACHE_DIR": f"{scratch}/uv", "PIP_CACHE_DIR": f"{scratch}/pip"}
        environment = {**kept, **caches, "PORT": str(port), "PYTHONUNBUFFERED": "1"}
        first = _started(STAGES, environment, clone, log)
        ((_, second_s),) = _started((("", STAGES[-1][1]),), environment, clone, log)
    return Stages(first, second_s)


def _started(
    stages: Sequence[tuple[str, str]], environment: Mapping[str, str], clone: Path, log: Path
) -> list[tuple[str, float]]:
    """Starts the service and stops it; the seconds of each stage."""
    log.write_bytes(b"")
    found, began = [], time.monotonic()
    child = Child(["make", "run"], environment, clone, log)
    try:
        for stage, ends_with in stages:
            child.wait_until(partial(_has, log, ends_with), START_TAKES_S)
            found.append((stage, time.monotonic() - began))
            began = time.monotonic()
    finally:
        child.stop()
    return found


def _has(log: Path, text: str) -> bool:
    return text in log.read_text("utf-8")


def report(start: Stages) -> Iterator[str]:
    """The section of the results."""
    yield from section(
        "First start of a fresh clone",
        "`make run` until the service answers, without caches:",
        f"**{start.first_s:.0f} s** ({verdict(start.first_s, START_TARGET_S, '.0f')}).",
    )
    rows = [*start.first, ("a second start", start.second_s)]
    yield from table(("stage", "seconds"), ((stage, f"{took:.1f}") for stage, took in rows))
    if CI_STAGES.exists():
        yield from ("", "The last `.ci/run` in this checkout:", "", "```text")
        yield from (*CI_STAGES.read_text("utf-8").splitlines(), "```")
