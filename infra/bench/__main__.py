"""``make bench``: the service beside the alternatives, measured in one run.

Writes ``infra/bench/RESULTS.md``. It needs the network for what it installs, LiteLLM once and the
packages of a fresh clone each time; if that fails, these figures are left out. Compare figures of
one run with each other, and runs only by their ratios; leave the machine idle meanwhile.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from infra.bench import (
    cold,
    contention,
    cost,
    growth,
    litellm,
    memory,
    start,
    summary,
    trips,
    warm,
)
from infra.bench.png_encoders import pictures
from infra.bench.servers import Servers, running
from infra.template import PROJECT_ROOT
from infra.verify.child import NotReadyError
from infra.verify.tools import ToolMissingError

RESULTS = PROJECT_ROOT / "infra" / "bench" / "RESULTS.md"
PACKAGES = ("google-genai", "boto3", "pillow", "deflate", "pydantic", "aws-lambda-powertools")
HISTORIES = (10, 10_000, 200_000)
DUE = 10_000
REQUESTS, STARTS, PAIRS = 200, 9, 1280
NO_START = ("## First start of a fresh clone", "", "Not measured: it did not start.")
NO_LITELLM = ("## LiteLLM's proxy", "", "Not measured: it can't be installed, or did not answer.")


def main() -> int:
    """Measures, and writes the report."""
    options = argparse.ArgumentParser(prog="python -m infra.bench", description=__doc__)
    options.add_argument("--quick", action="store_true", help="a small run, to see that it works")
    options.add_argument("--into", type=Path, default=RESULTS, help="where to write the report")
    given = options.parse_args()
    began = time.monotonic()
    sections = [list(_head())]
    try:
        with running() as servers, cold.builds() as builds:
            sections.insert(1, _measure(servers, builds, sections, quick=given.quick))
            print("\n".join(sections[1]))
    finally:
        # A fault in the last minute must not lose the figures of a long run.
        sections.append([f"The run took {(time.monotonic() - began) / 60:.0f} minutes."])
        text = "\n\n".join("\n".join(lines) for lines in sections)
        given.into.write_text(f"{text}\n", encoding="utf-8")
    return 0


def _head() -> Iterator[str]:
    yield from ("# Benchmark results", "")
    command = " ".join(["python -m infra.bench", *sys.argv[1:]])
    command = "make bench" if len(sys.argv) == 1 else command
    machine = f"{os.cpu_count()} processors ({platform.machine()}), {platform.system()}"
    yield f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`, {machine},"
    yield f"Python {platform.python_version()} and 3.13 (sandboxes);"
    yield f"{', '.join(f'{name} {version(name)}' for name in PACKAGES)}."
    yield "Compare ratios: the milliseconds are those of this machine at that time."


def _measure(
    servers: Servers, builds: cold.Builds, sections: list[list[str]], *, quick: bool
) -> list[str]:
    """Adds each section to ``sections`` as soon as it is measured; returns the summary."""

    def add(section: Iterable[str]) -> None:
        lines = list(section)
        print("\n".join(lines), end="\n\n", flush=True)
        sections.append(lines)

    requests, starts, pairs, due = (8, 1, 128, 200) if quick else (REQUESTS, STARTS, PAIRS, DUE)
    sizes = [10, 200, 4_000] if quick else HISTORIES
    drawn = [each for each in pictures() if not quick or "illustration" in each[0]]
    prompts: dict[str, list[str]] = {"1K": [], "2K": []}
    for name, picture, _ in drawn:
        prompts["2K" if picture.width == picture.height else "1K"].append(name)
    warmth = warm.measure(servers, drawn, requests)
    add(warm.report(warmth))
    counted = trips.measure(servers, prompts["1K"][0])
    add(trips.report(counted))
    starting = cold.measure(servers, builds, starts)
    add(cold.report(starting))
    add(cold.report_size(builds))
    peaks = memory.measure(servers, builds, prompts, requests)
    add(memory.report(peaks))
    crowds = contention.measure(servers, pairs)
    add(contention.report(crowds))
    proxy = _litellm(servers, prompts["1K"][0], requests, install=not quick)
    add(NO_LITELLM if proxy is None else proxy.lines)
    grown = growth.measure(servers, sizes, requests, due)
    add(grown.lines)
    started = _start()
    add(NO_START if started is None else start.report(started))
    add(cost.report(cost.gb_seconds(warmth, peaks)))
    run = summary.Measured(warmth, counted, starting, builds, peaks, crowds, grown, proxy, started)
    return [*summary.report(run)]


def _start() -> start.Stages | None:
    try:
        return start.measure()
    except (NotReadyError, OSError, subprocess.SubprocessError) as fault:
        print(fault, file=sys.stderr)
        return None


def _litellm(
    servers: Servers, prompt: str, requests: int, *, install: bool
) -> litellm.LiteLlm | None:
    try:
        stand_in_url = servers.environment["GOOGLE_GEMINI_BASE_URL"]
        return litellm.measure(litellm.command(install=install), stand_in_url, prompt, requests)
    except (ToolMissingError, NotReadyError, OSError) as fault:
        print(fault, file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
