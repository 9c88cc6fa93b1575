"""``make bench``: the service beside what a user would have instead, measured in one run.

Prints a report and writes it to ``infra/bench/RESULTS.md``. No network is needed. The figures of
one run can be compared with each other, and with another run only as ratios.
"""

import argparse
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from infra.bench import cold, warm
from infra.bench.servers import running
from infra.build.sizes import unzipped_bytes, zipped_bytes
from infra.template import PROJECT_ROOT

RESULTS = PROJECT_ROOT / "infra" / "bench" / "RESULTS.md"
PACKAGES = ("google-genai", "boto3", "pillow", "deflate", "pydantic", "aws-lambda-powertools")
MEGABYTE = 1_000_000
PNG_APART_MS = 18
CPU_TARGET, INIT_TARGET, SIZE_TARGET = 0.30, 0.42, 0.5


def main() -> int:
    """Measures and writes the report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--requests", type=int, default=25, help="per picture and arm")
    options.add_argument("--starts", type=int, default=5, help="per function and build")
    given = options.parse_args()
    began = time.monotonic()
    lines: list[str] = []
    for line in _report(given.requests, given.starts):
        print(line, flush=True)
        lines.append(line)
    lines += ["", f"The run took {time.monotonic() - began:.0f} s."]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _report(requests: int, starts: int) -> Iterator[str]:
    yield "# Benchmark results"
    yield ""
    words = " ".join(["python -m infra.bench", *sys.argv[1:]])
    yield f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{words}`, {platform.machine()},"
    yield f"Python {platform.python_version()}; {', '.join(f'{p} {version(p)}' for p in PACKAGES)}."
    yield "Compare ratios: milliseconds are those of this machine at that minute."
    with running() as reach, cold.three_builds() as builds:
        yield from _warm(warm.measure(reach, requests), requests)
        yield from _rooms(warm.measure_rooms(reach, requests))
        yield from _cold(cold.measure(reach, builds, starts), starts)
        yield from _size(*builds[:2])


def _warm(found: list[warm.Compared], requests: int) -> Iterator[str]:
    yield from ("", "## A warm request, beside the bare script", "")
    yield f"CPU of this process, median of {requests} requests each, by turns; DynamoDB Local."
    yield ""
    yield "| picture | ours, ms | bare, ms | ours / bare | target | wall p50 / p95 / p99, ms |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for each in found:
        walls = " / ".join(f"{each.ours.wall_ms(percent):.0f}" for percent in (50, 95, 99))
        ours, bare = each.ours.cpu_ms(), each.bare.cpu_ms()
        yield (
            f"| {each.picture} | {ours:.0f} | {bare:.0f} | {each.cpu:.2f} | {CPU_TARGET:.2f}"
            f" | {walls} |"
        )


def _rooms(spent: Mapping[str, float]) -> Iterator[str]:
    yield from ("", "## Where the CPU goes", "", "| room | ms |", "| --- | --- |")
    for room, spent_ms in spent.items():
        yield f"| {room} | {spent_ms:.1f} |"
    apart = sum(spent_ms for room, spent_ms in spent.items() if room != "png")
    yield f"| all but the PNG (target {PNG_APART_MS}) | {apart:.1f} |"


def _cold(found: list[cold.Cold], starts: int) -> Iterator[str]:
    yield from ("", "## INIT", "")
    yield f"In Lambda's own runtime, median (least to most) of {starts} starts each, by turns."
    yield ""
    yield "| function | built, ms | plain, ms | empty, ms | built / plain | target |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for each in found:
        shown = " | ".join(
            f"{median(times):.0f} ({min(times):.0f} to {max(times):.0f})"
            for times in (each.built, each.plain, each.empty)
        )
        yield f"| {each.function} | {shown} | {each.ratio:.2f} | {INIT_TARGET} |"


def _size(built: Path, plain: Path) -> Iterator[str]:
    yield from ("", "## Size", "", "| | built, MB | plain, MB | built / plain | target |")
    yield "| --- | --- | --- | --- | --- |"
    for name, bytes_of in (("unzipped", unzipped_bytes), ("zipped", zipped_bytes)):
        ours, theirs = bytes_of(built) / MEGABYTE, bytes_of(plain) / MEGABYTE
        yield f"| {name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} | {SIZE_TARGET} |"


if __name__ == "__main__":
    sys.exit(main())
