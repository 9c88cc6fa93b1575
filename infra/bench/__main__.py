"""``make bench``: the service beside what a user would have instead, measured in one run.

Writes ``infra/bench/RESULTS.md`` and shows it. Once the tools are there it needs no network, but
for LiteLLM the first time, which is left out when it can't be installed. Figures of one run can be
compared with each other, and with another run only as ratios: leave the machine alone meanwhile.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from infra.bench import (
    capacity,
    cold,
    contention,
    cost,
    growth,
    litellm,
    memory,
    summary,
    trips,
    warm,
)
from infra.bench.caller import UnexpectedAnswerError
from infra.bench.meters import MeterError
from infra.bench.png_encoders import pictures
from infra.bench.servers import Reach, running
from infra.template import PROJECT_ROOT
from infra.verify import tools
from infra.verify.child import NotReadyError

RESULTS = PROJECT_ROOT / "infra" / "bench" / "RESULTS.md"
PACKAGES = ("google-genai", "boto3", "pillow", "deflate", "pydantic", "aws-lambda-powertools")
HISTORIES = (10, 10_000, 200_000)
HOLDS = 10_000
REQUESTS, STARTS = 200, 9
NO_LITELLM = (
    "## LiteLLM's proxy",
    "",
    "Not measured: it is not on this machine, or did not answer.",
)


def main() -> int:
    """Measures, and writes the report."""
    options = argparse.ArgumentParser(prog="python -m infra.bench", description=__doc__)
    options.add_argument("--quick", action="store_true", help="little of it, to see it work")
    options.add_argument("--into", type=Path, default=RESULTS, help="where the report goes")
    given = options.parse_args()
    began = time.monotonic()
    first = list(_head())
    sections: list[list[str]] = []
    try:
        with running() as reach, cold.builds() as builds:
            measured = _measured(reach, builds, sections, quick=given.quick)
            first += ["", *summary.report(measured)]
    finally:
        # The figures of a long run are not to be lost to a fault in the last minute.
        minutes = (time.monotonic() - began) / 60
        lines = [line for section in (first, *sections) for line in (*section, "")]
        text = "\n".join([*lines, f"The run took {minutes:.0f} minutes.", ""])
        given.into.write_text(text, encoding="utf-8")
    print("\n".join(first))
    return 0


def _head() -> Iterator[str]:
    yield from ("# Results of the benchmark", "")
    command = " ".join(["python -m infra.bench", *sys.argv[1:]])
    command = "make bench" if len(sys.argv) == 1 else command
    machine = f"{os.cpu_count()} processors ({platform.machine()}), {platform.system()}"
    yield f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`, {machine},"
    yield f"Python {platform.python_version()} and 3.13 (sandboxes);"
    yield f"{', '.join(f'{name} {version(name)}' for name in PACKAGES)}."
    yield "Ratios are what counts: milliseconds are those of this machine in that minute."


def _measured(
    reach: Reach, builds: cold.Builds, sections: list[list[str]], *, quick: bool
) -> summary.Measurements:
    """Measures all; adds each section to ``sections`` as soon as it is known, and shows it."""

    def add(section: Iterable[str]) -> None:
        lines = list(section)
        print("\n".join(lines), end="\n\n", flush=True)
        sections.append(lines)

    requests, starts = (8, 1) if quick else (REQUESTS, STARTS)
    drawn = [each for each in pictures() if not quick or "illustration" in each[0]]
    prompts = {
        "1K": [name for name, picture, _ in drawn if picture.width != picture.height],
        "2K": [name for name, picture, _ in drawn if picture.width == picture.height],
    }
    warmth = warm.measure(reach, drawn, requests)
    add(warm.report(warmth))
    made = trips.measure(reach, prompts["1K"][0])
    add(trips.report(made))
    starting = cold.measure(reach, builds, starts)
    add(cold.report(starting))
    add(cold.report_size(builds))
    peaks = memory.measure(reach, builds, prompts, requests)
    add(memory.report(peaks))
    pairs = 128 if quick else 1280
    crowd = contention.measure(reach, pairs)
    add(contention.report(crowd))
    proxy = _litellm(reach, prompts["1K"][0], requests, install=not quick)
    add(NO_LITELLM if proxy is None else litellm.report(proxy))
    sizes = [max(10, size // 50) for size in HISTORIES] if quick else list(HISTORIES)
    add(growth.report(growth.measure(reach, sizes, requests, HOLDS // 50 if quick else HOLDS)))
    add(cost.report(cost.quantities(warmth, made, peaks)))
    took = _service_times(warmth, starting, crowd)
    points = [each.point for each in crowd.loops]
    if quick:
        add(capacity.beside_the_measured(took, points, pairs))
    else:
        add(capacity.report(took, points, pairs))
    return summary.Measurements(warmth, made, starting, builds, peaks, crowd, proxy)


def _service_times(
    warmth: warm.Warm, starting: cold.Cold, crowd: contention.Contention
) -> capacity.Measured:
    """What the capacity model is told of a request."""
    wall_ms = warmth.all_of("ours", large=False).wall(50)
    return capacity.Measured(
        reserve_ms=crowd.reserve_ms,
        settle_ms=crowd.settle_ms,
        other_ms=max(0.0, wall_ms - crowd.alone_ms[False]),
        init_ms=median(starting["generate"].built),
    )


def _litellm(reach: Reach, prompt: str, requests: int, *, install: bool) -> litellm.LiteLlm | None:
    try:
        if install:
            tools.install_litellm()
        return litellm.measure(reach.environment["GOOGLE_GEMINI_BASE_URL"], prompt, requests)
    except (tools.ToolMissingError, NotReadyError, UnexpectedAnswerError, MeterError) as fault:
        print(fault, file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
