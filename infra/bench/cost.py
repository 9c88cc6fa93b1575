"""Lambda's line of the bill for 1,000 images, with the measured CPU.

It is the one line of the guide whose quantity depends on the speed of the code. Tests count the
others from the service's own calls.
"""

import re
import statistics
from collections.abc import Iterator

from infra.bench.memory import Memory
from infra.bench.tables import section
from infra.bench.warm import Warm
from infra.template import PROJECT_ROOT

GUIDE = PROJECT_ROOT / "infra" / "docs" / "COST-AND-LIMITS.md"
IMAGES = 1000
MODEL_S = 4.2
"""The published median of the default model."""
# https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html
MB_PER_VCPU = 1769


def gb_seconds(warm: Warm, memory: list[Memory]) -> float:
    """What 1,000 images at 1K take.

    Lambda gives a function a share of a processor by its memory; its CPU takes that much longer.
    """
    small = warm.samples("ours", large=False)
    function_mb = memory[0].function_mb
    cpu_ms = statistics.median(small.cpu_ms)
    waits_ms = max(0.0, statistics.median(small.wall_ms) - cpu_ms)
    seconds = MODEL_S + (cpu_ms / min(1.0, function_mb / MB_PER_VCPU) + waits_ms) / 1000
    return IMAGES * seconds * function_mb / 1024


def report(measured: float) -> Iterator[str]:
    """The section of the results, for so many GB-seconds."""
    assumed, usd = lambda_line()
    yield from section("Cost of 1,000 images")
    yield from (
        f"Lambda: {measured:,.0f} GB-seconds, {measured * usd:.4f} USD, when the model takes its",
        f"published median of {MODEL_S} s; the measured CPU is divided by Lambda's share of a",
        f"processor. The [guide](../docs/{GUIDE.name}#cost), which has all other lines, counts on",
        f"{assumed:,.0f} GB-seconds, {assumed * usd:.4f} USD.",
    )


def lambda_line() -> tuple[float, float]:
    """The GB-seconds that the guide counts on, and the price of one."""
    found = re.search(
        r"^\| Lambda, GB-seconds \| ([\d,]+) \| ([\d.]+) \| 1 \|",
        GUIDE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    if found is None:
        raise LookupError(f"{GUIDE.name} has no line for Lambda's GB-seconds")
    return float(found[1].replace(",", "")), float(found[2])
