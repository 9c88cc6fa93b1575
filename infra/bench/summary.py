"""The figures that have a target; the README quotes this table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infra.bench.cold import ACCOUNT_TARGET, INIT_TARGET, SIZE_TARGET, Builds, Cold, init_ratio
from infra.bench.contention import BURST_TARGET_MS, STEADY_PER_S, STEADY_TARGET_MS, Contention
from infra.bench.growth import AUDIT_TARGET, Growth
from infra.bench.litellm import LiteLlm
from infra.bench.memory import TARGET_MIB, Memory
from infra.bench.png_encoders import BYTES_TARGET
from infra.bench.start import START_TARGET_S, Stages
from infra.bench.tables import section, table, verdict
from infra.bench.trips import SUCCESS, SUCCESS_TARGET, Trips
from infra.bench.warm import CPU_TARGET, ILLUSTRATION_CPU_TARGET, OWN_CPU_TARGET_MS, Warm
from infra.build.sizes import unzipped_bytes

Row = tuple[str, str, str]


@dataclass(frozen=True)
class Measured:
    """All of a run. Without ``proxy`` or ``start``, it could not be measured."""

    warm: Warm
    trips: Trips
    cold: Cold
    builds: Builds
    memory: Sequence[Memory]
    contention: Contention
    growth: Growth
    proxy: LiteLlm | None
    start: Stages | None


def report(run: Measured) -> Iterator[str]:
    """The section of the results."""
    rows = [*_warm_rows(run.warm)]
    calls = run.trips[SUCCESS][0].total()
    rows.append(("round trips of a success", str(calls), verdict(calls, SUCCESS_TARGET, "d")))
    init, account = (init_ratio(run.cold, each, "generate") for each in ("generate", "account"))
    rows.append(_ratio("INIT of generate / plain build", init, INIT_TARGET))
    rows.append(_ratio("INIT of account / plain build of generate", account, ACCOUNT_TARGET))
    size = unzipped_bytes(run.builds.built) / unzipped_bytes(run.builds.plain)
    rows.append(_ratio("artifact, unzipped / plain build", size, SIZE_TARGET))
    peak, grown = (
        max(getattr(each, name) for each in run.memory) for name in ("peak", "growth_mib")
    )
    rows.append(("peak memory", f"{peak:.0f} MiB", verdict(peak, TARGET_MIB, ".0f")))
    rows.append(("memory added by the second half of the requests", f"{grown:.1f} MiB", ""))
    rows += _contention_rows(run.contention)
    rows.append(_ratio("audit beside 5 images a second / alone", run.growth.audit, AUDIT_TARGET))
    for name, added_mib in (
        ("statement of the largest history", run.growth.statement_mib),
        ("1,000 receipts", run.growth.receipts_mib),
    ):
        rows.append((f"{name}: peak memory added", f"{added_mib:.1f} MiB", ""))
    if run.start is not None:
        seconds = run.start.first_s
        target = verdict(seconds, START_TARGET_S, ".0f")
        rows.append(("first start of a fresh clone, no caches", f"{seconds:.0f} s", target))
    if run.proxy is not None:
        name = "LiteLLM's proxy, which stores and charges nothing: CPU a request, HTTP included"
        rows.append((name, f"{run.proxy.cpu_ms:.0f} ms", ""))
    yield from section("At a glance")
    yield from table(("figure", "measured", "target"), rows)


def _ratio(name: str, ratio: float, target: float) -> Row:
    return name, f"{ratio:.2f}", verdict(ratio, target)


def _warm_rows(warm: Warm) -> Iterator[Row]:
    drawn = [each.cpu for each in warm.pictures if "illustration" in each.picture]
    others = [each.cpu for each in warm.pictures if "illustration" not in each.picture]
    for kind, ratios, target in (
        ("photos and noise", others, CPU_TARGET),
        ("illustrations", drawn, ILLUSTRATION_CPU_TARGET),
    ):
        if ratios:
            name = f"CPU of a paid request / the bare script, {kind}"
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            yield name, spread, verdict(max(ratios), target)
    size = max(each.size for each in warm.pictures)
    yield _ratio("bytes of a PNG / Pillow's default, at most", size, BYTES_TARGET)
    own_ms = warm.own_cpu_ms
    name = "our CPU a request without the PNG"
    yield name, f"{own_ms:.0f} ms", verdict(own_ms, OWN_CPU_TARGET_MS, ".0f")


def _contention_rows(contention: Contention) -> Iterator[Row]:
    crowds = [(f"{STEADY_PER_S} a second", contention.steady, STEADY_TARGET_MS)]
    for kind, measured, target_ms in (
        ("in a burst", contention.bursts, BURST_TARGET_MS),
        ("in a loop", contention.loops, 0.0),
    ):
        of_one = [each for each in measured if each.organisations == 1]
        most = max(of_one, key=lambda each: each.clients)
        crowds.append((f"{most.clients} clients {kind}", most, target_ms))
    for name, crowd, target_ms in crowds:
        added_ms = contention.added_ms(crowd)
        exact = "exact" if crowd.exact else "**not exact**"
        yield (
            f"one organisation, {name}, conflicts refused as on AWS: p99 added",
            f"{added_ms:,.0f} ms, {crowd.errors} errors, charges {exact}",
            verdict(added_ms, target_ms, ".0f") if target_ms else "",
        )
