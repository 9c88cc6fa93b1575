"""Peak memory of the built generate function in Lambda's own runtime, request after request."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from infra.bench.caller import UnexpectedAnswerError, paid_event
from infra.bench.cold import TIMEOUT_S, Builds
from infra.bench.meters import peak_mib
from infra.bench.servers import Servers
from infra.bench.tables import section, table, verdict
from infra.template import Template
from infra.verify.lambda_runtime import LambdaRuntime, Task

TARGET_MIB = 192


@dataclass(frozen=True)
class Memory:
    """MiB: peaks by the number of requests, the last one, and what the second half added.

    ``function_mb`` is the function's memory in the template.
    """

    kind: str
    peaks: Mapping[int, float]
    peak: float
    growth_mib: float
    function_mb: int


def measure(
    servers: Servers, made: Builds, prompts: Mapping[str, list[str]], requests: int
) -> list[Memory]:
    """Runs a new sandbox for each size: ``requests`` at 1K, a tenth of them at 2K."""
    small = _peaks(servers, made, "1K", prompts["1K"], "16:9", requests)
    large = _peaks(servers, made, "2K", prompts["2K"], "1:1", max(4, requests // 10))
    return [small, large]


def _peaks(
    servers: Servers, made: Builds, kind: str, prompts: list[str], ratio: str, requests: int
) -> Memory:
    functions = {each.handler: each for each in Template.from_file().functions()}
    function = functions["handlers.generate.handler"]
    read_after = sorted({1, requests // 10 or 1, requests // 2 or 1, requests})
    peaks = {}
    task = Task(made.built, (), function.handler, function.timeout_s, function.memory_mb)
    with LambdaRuntime(task, servers.environment) as sandbox:
        for number in range(1, requests + 1):
            prompt = prompts[number % len(prompts)]
            answer = sandbox.invoke(paid_event(servers.api_key, prompt, ratio), TIMEOUT_S)
            if answer["statusCode"] != 200:  # noqa: PLR2004 - OK
                raise UnexpectedAnswerError(f"the sandbox answered {answer['statusCode']}")
            if number in read_after:
                peaks[number] = peak_mib(sandbox.runtime_pid() or 0)
    *_, half, whole = peaks.values()
    return Memory(kind, peaks, whole, whole - half, function.memory_mb)


def report(found: list[Memory]) -> Iterator[str]:
    """The section of the results."""
    yield from section(
        "Memory",
        "Peak resident memory (VmHWM) of the built generate function; the template gives it",
        f"{found[0].function_mb} MB.",
    )
    rows = []
    for each in found:
        peaks = ", ".join(f"{count}: **{peak:.0f}**" for count, peak in each.peaks.items())
        target = verdict(each.peak, TARGET_MIB, ".0f")
        rows.append((each.kind, peaks, target, f"{each.growth_mib:.1f}"))
    head = ("pictures", "requests: peak MiB", "target", "added by the second half, MiB")
    yield from table(head, rows)
