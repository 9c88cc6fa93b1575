"""Peak memory of the built generate function in Lambda's own runtime, request after request."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from infra.bench.caller import UnexpectedAnswerError, paid_event
from infra.bench.cold import Builds
from infra.bench.meters import peak_mib
from infra.bench.servers import Reach
from infra.bench.words import table, verdict
from infra.template import Template
from infra.verify.lambda_runtime import LambdaRuntime, Task

__all__ = ["Memory", "measure", "report"]

TARGET_MIB = 256
ANSWER_S = 60.0


@dataclass(frozen=True)
class Memory:
    """The peak in MiB after so many requests, and what the template gives the function, in MB."""

    kind: str
    peaks: Mapping[int, float]
    function_mb: int

    @property
    def peak(self) -> float:
        """After the last request."""
        return max(self.peaks.values())

    @property
    def grown_mib(self) -> float:
        """What the second half of the requests added."""
        *_, half, whole = self.peaks.values()
        return whole - half


def measure(
    reach: Reach, made: Builds, prompts: Mapping[str, list[str]], requests: int
) -> list[Memory]:
    """A new sandbox for each kind of picture: ``requests`` at 1K, a tenth of them at 2K."""
    small = _peaks(reach, made, "1K", prompts["1K"], "16:9", requests)
    large = _peaks(reach, made, "2K", prompts["2K"], "1:1", max(4, requests // 10))
    return [small, large]


def _peaks(
    reach: Reach, made: Builds, kind: str, prompts: list[str], ratio: str, requests: int
) -> Memory:
    (function,) = (
        each
        for each in Template.from_file().functions()
        if each.handler.startswith("handlers.generate")
    )
    looks = sorted({1, requests // 10 or 1, requests // 2 or 1, requests})
    peaks = {}
    task = Task(made.built, (), function.handler, function.timeout_s, function.memory_mb)
    with LambdaRuntime(task, reach.environment) as sandbox:
        for number in range(1, requests + 1):
            prompt = prompts[number % len(prompts)]
            answer = sandbox.invoke(paid_event(reach.api_key, prompt, ratio), ANSWER_S)
            if answer["statusCode"] != 200:  # noqa: PLR2004 - OK
                raise UnexpectedAnswerError(f"the sandbox answered {answer['statusCode']}")
            if number in looks:
                peaks[number] = peak_mib(sandbox.runtime_pid() or 0)
    return Memory(kind, peaks, function.memory_mb)


def report(found: list[Memory]) -> Iterator[str]:
    """The section of the results."""
    yield from ("## Memory", "")
    yield f"Peak resident memory (VmHWM) of the built function; it has {found[0].function_mb} MB."
    yield ""
    yield from table(
        ("pictures", "peak MiB after so many requests", "target", "added by the second half, MiB"),
        (
            (
                each.kind,
                ", ".join(f"{count}: **{peak:.0f}**" for count, peak in each.peaks.items()),
                verdict(each.peak, TARGET_MIB, ".0f"),
                f"{each.grown_mib:.1f}",
            )
            for each in found
        ),
    )
