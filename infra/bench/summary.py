"""The figures that have a target; the README quotes this table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infra.bench.cold import ACCOUNT_TARGET, INIT_TARGET, SIZE_TARGET, Builds, Cold, account_ratio
from infra.bench.contention import ADDED_P99_TARGET_MS, Contention
from infra.bench.litellm import CLIENTS, LiteLlm
from infra.bench.memory import TARGET_MIB, Memory
from infra.bench.png_encoders import BYTES_TARGET
from infra.bench.tables import section, table, verdict
from infra.bench.trips import SUCCESS, SUCCESS_TARGET, Trips
from infra.bench.warm import CPU_TARGET, OWN_CPU_TARGET_MS, Warm
from infra.build.sizes import unzipped_bytes

__all__ = ["Measurements", "report"]

Row = tuple[str, str, str]


@dataclass(frozen=True)
class Measurements:
    """``litellm`` is None where it can't be installed."""

    warm: Warm
    trips: Trips
    cold: Cold
    builds: Builds
    memory: Sequence[Memory]
    contention: Contention
    litellm: LiteLlm | None


def report(measured: Measurements) -> Iterator[str]:
    """The section of the results."""
    yield from section("At a glance")
    yield from table(("figure", "measured", "target"), _rows(measured))


def _rows(measured: Measurements) -> Iterator[Row]:
    proxy, cold, builds = measured.litellm, measured.cold, measured.builds
    yield from _warm_rows(measured.warm)
    if proxy is not None:
        yield (
            "CPU a request of LiteLLM's proxy, which stores and charges nothing; HTTP included",
            f"{proxy.cpu_ms:.0f} ms",
            "",
        )
    trips = measured.trips[SUCCESS].total()
    yield "round trips of a success", str(trips), verdict(trips, SUCCESS_TARGET, "d")
    yield _ratio("INIT / plain build, generate", cold["generate"].ratio, INIT_TARGET)
    yield _ratio("INIT of account / plain generate", account_ratio(cold), ACCOUNT_TARGET)
    size = unzipped_bytes(builds.built) / unzipped_bytes(builds.plain)
    yield _ratio("artifact, unzipped / plain build", size, SIZE_TARGET)
    peak = max(each.peak for each in measured.memory)
    yield "peak memory, 1K and 2K pictures", f"{peak:.0f} MiB", verdict(peak, TARGET_MIB, ".0f")
    grown = max(each.growth_mib for each in measured.memory)
    yield "memory added by the second half of the requests", f"{grown:.1f} MiB", ""
    yield from _contention_rows(measured.contention)
    if proxy is not None:
        name = f"{CLIENTS} clients in a loop, LiteLLM's proxy: p99 added"
        yield name, f"{proxy.crowd_added_ms:,.0f} ms", ""


def _ratio(name: str, ratio: float, target: float) -> Row:
    return name, f"{ratio:.2f}", verdict(ratio, target)


def _warm_rows(warm: Warm) -> Iterator[Row]:
    drawn = [each.cpu for each in warm.pictures if "illustration" in each.picture]
    others = [each.cpu for each in warm.pictures if "illustration" not in each.picture]
    for kind, ratios in (("photos and noise", others), ("illustrations", drawn)):
        if ratios:
            name = f"CPU of a paid request / the bare script, {kind}"
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            yield name, spread, verdict(max(ratios), CPU_TARGET)
    size = max(each.size for each in warm.pictures)
    yield _ratio("bytes of a PNG / Pillow's default, at most", size, BYTES_TARGET)
    own_ms = warm.own_cpu_ms
    name = "our CPU a request without the PNG"
    yield name, f"{own_ms:.0f} ms", verdict(own_ms, OWN_CPU_TARGET_MS, ".0f")


def _contention_rows(contention: Contention) -> Iterator[Row]:
    """The target is for DynamoDB Local by itself."""
    for kind, crowds in (("in a burst", contention.bursts), ("in a loop", contention.loops)):
        most = max(each.clients for each in crowds)
        for each in crowds:
            if each.clients < most or each.organisations > 1:
                continue
            added_ms = contention.added_ms(each)
            has_target = crowds is contention.bursts and not each.refused
            how = "conflicts refused as on AWS" if each.refused else "DynamoDB Local"
            exact = "exact" if each.exact else "**not exact**"
            yield (
                f"{most} clients of one organisation {kind}, ledger only, {how}: p99 added",
                f"{added_ms:,.0f} ms, {each.errors} errors, charges {exact}",
                verdict(added_ms, ADDED_P99_TARGET_MS, ".0f") if has_target else "",
            )
