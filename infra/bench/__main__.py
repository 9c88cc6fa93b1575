"""``make bench``: the service beside what a user would have instead, measured in one run.

Writes ``infra/bench/RESULTS.md`` and shows it. It needs no network, but for LiteLLM the first time,
which is left out when it can't be installed. Figures of one run can be compared with each other,
and with another run only as ratios: leave the machine alone while it runs.
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

from infra.bench import capacity, cold, contention, cost, growth, litellm, memory, trips, warm
from infra.bench.png_encoders import pictures
from infra.bench.servers import Reach, running
from infra.template import PROJECT_ROOT
from infra.verify import tools

RESULTS = PROJECT_ROOT / "infra" / "bench" / "RESULTS.md"
PACKAGES = ("google-genai", "boto3", "pillow", "deflate", "pydantic", "aws-lambda-powertools")
HISTORIES = (10, 10_000, 200_000)
HOLDS = 10_000
REQUESTS, STARTS = 200, 9


def main() -> int:
    """Measures, and writes the report."""
    options = argparse.ArgumentParser(prog="python -m infra.bench", description=__doc__)
    options.add_argument("--quick", action="store_true", help="a fiftieth of it, to see it work")
    options.add_argument("--into", type=Path, default=RESULTS, help="where the report goes")
    given = options.parse_args()
    lines: list[str] = []
    for line in _report(quick=given.quick):
        print(line, flush=True)
        lines.append(line)
    given.into.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _report(*, quick: bool) -> Iterator[str]:
    began = time.monotonic()
    yield from _head()
    with running() as reach, cold.builds() as builds:
        for section in _sections(reach, builds, quick=quick):
            yield ""
            yield from section
    yield ""
    yield f"The run took {(time.monotonic() - began) / 60:.0f} minutes."


def _head() -> Iterator[str]:
    yield from ("# Results of the benchmark", "")
    command = (
        "make bench" if len(sys.argv) == 1 else f"python -m infra.bench {' '.join(sys.argv[1:])}"
    )
    machine = f"{os.cpu_count()} processors ({platform.machine()}), {platform.system()}"
    yield f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`, {machine},"
    yield f"Python {platform.python_version()} and 3.13 (sandboxes);"
    yield f"{', '.join(f'{name} {version(name)}' for name in PACKAGES)}."
    yield "Ratios are what counts: milliseconds are those of this machine in that minute."


def _sections(reach: Reach, builds: cold.Builds, *, quick: bool) -> Iterator[Iterable[str]]:
    requests, starts = (8, 1) if quick else (REQUESTS, STARTS)
    drawn = [each for each in pictures() if not quick or "illustration" in each[0]]
    prompts = {
        "1K": [name for name, picture, _ in drawn if picture.width != picture.height],
        "2K": [name for name, picture, _ in drawn if picture.width == picture.height],
    }
    warmth = warm.measure(reach, drawn, requests)
    yield warm.report(warmth)
    made = trips.measure(reach, prompts["1K"][0])
    yield trips.report(made)
    starting = cold.measure(reach, builds, starts)
    yield cold.report(starting)
    yield cold.report_size(builds)
    peaks = memory.measure(reach, builds, prompts, requests)
    yield memory.report(peaks)
    pairs = 128 if quick else 1280
    crowd = contention.measure(reach, pairs)
    yield contention.report(crowd)
    took = _service_times(warmth, starting, crowd)
    points = [each.point for each in crowd.loops]
    if quick:
        yield capacity.beside_the_measured(took, points, pairs)
    else:
        yield capacity.report(took, points, pairs)
        capacity.PLOT_PATH.write_text(capacity.plot(took), encoding="utf-8")
    sizes = [max(10, size // 50) for size in HISTORIES] if quick else list(HISTORIES)
    yield growth.report(growth.measure(reach, sizes, requests, HOLDS // 50 if quick else HOLDS))
    yield _litellm(reach, prompts["1K"][0], requests, install=not quick)
    yield cost.report(cost.quantities(warmth, made, peaks))


def _service_times(
    warmth: warm.Warm, starting: cold.Cold, crowd: contention.Contention
) -> capacity.Measured:
    """What the capacity model is told of a request."""
    wall_ms = warmth.all_of("ours", large=False).wall(50)
    return capacity.Measured(
        reserve_ms=crowd.reserve_ms,
        settle_ms=crowd.settle_ms,
        other_ms=max(0.0, wall_ms - crowd.alone_ms),
        init_ms=median(starting["generate"].built),
    )


def _litellm(reach: Reach, prompt: str, requests: int, *, install: bool) -> Iterator[str]:
    try:
        if install:
            tools.install_litellm()
        found = litellm.measure(reach.environment["GOOGLE_GEMINI_BASE_URL"], prompt, requests)
    except tools.ToolMissingError as missing:
        yield from ("## LiteLLM's proxy", "", f"Not measured: {missing}.")
        return
    yield from litellm.report(found)


if __name__ == "__main__":
    sys.exit(main())
