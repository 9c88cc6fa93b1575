"""The figures that count beside their targets; the README quotes this table."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infra.bench.cold import ACCOUNT_TARGET, INIT_TARGET, SIZE_TARGET, Builds, Cold
from infra.bench.contention import ADDED_P99_TARGET_MS, Contention
from infra.bench.litellm import CLIENTS, LiteLlm
from infra.bench.memory import TARGET_MIB, Memory
from infra.bench.png_encoders import BYTES_TARGET
from infra.bench.trips import SUCCESS, SUCCESS_TARGET, Trips
from infra.bench.warm import CPU_TARGET, PNG_APART_TARGET_MS, Compared, Warm
from infra.bench.words import table, verdict
from infra.build.sizes import unzipped_bytes

__all__ = ["Measurements", "report"]


@dataclass(frozen=True)
class Measurements:
    """All that has a target. ``litellm`` is None where it can't be installed."""

    warm: Warm
    trips: Trips
    cold: Cold
    builds: Builds
    memory: Sequence[Memory]
    contention: Contention
    litellm: LiteLlm | None


def report(measured: Measurements) -> Iterator[str]:
    """The section of the results."""
    yield from ("## At a glance", "")
    yield from table(("figure", "measured", "target"), _rows(measured))


def _rows(measured: Measurements) -> Iterator[tuple[str, str, str]]:
    yield from _warm_rows(measured.warm)
    if measured.litellm is not None:
        name = "CPU of LiteLLM's proxy a request, HTTP included; it stores and charges nothing"
        yield name, f"{measured.litellm.cpu_ms:.0f} ms", ""
    trips = sum(measured.trips[SUCCESS].values())
    met = "met" if trips <= SUCCESS_TARGET else "**missed**"
    yield "round trips of a success, one after the other", str(trips), f"{SUCCESS_TARGET}: {met}"
    yield from _cold_rows(measured.cold, measured.builds)
    yield from _memory_rows(measured.memory)
    yield from _crowd_rows(measured.contention)
    if measured.litellm is not None:
        proxy = measured.litellm
        name = f"{CLIENTS} clients without a pause, LiteLLM's proxy, whole answers: p99 added"
        yield name, f"{proxy.crowd_p99_ms - proxy.crowd_direct_p99_ms:,.0f} ms", ""


def _memory_rows(memory: Sequence[Memory]) -> Iterator[tuple[str, str, str]]:
    peak = max(each.peak for each in memory)
    grown = max(each.grown_mib for each in memory)
    yield "peak memory, pictures of 1K and 2K", f"{peak:.0f} MiB", _most(peak, TARGET_MIB)
    yield "what the second half of the requests added to it", f"{grown:.1f} MiB", ""


def _crowd_rows(crowd: Contention) -> Iterator[tuple[str, str, str]]:
    """The target is for what DynamoDB Local does by itself; AWS refuses those that meet."""
    for kind, points in (("at once", crowd.bursts), ("without a pause", crowd.loops)):
        most = max(each.point.clients for each in points)
        for each in points:
            point = each.point
            if point.clients < most or point.organisations > 1:
                continue
            added_ms = crowd.added_ms(point)
            has_target = kind == "at once" and not point.conflicts_injected
            how = "refused as on AWS" if point.conflicts_injected else "DynamoDB Local"
            exact = "exact" if each.exact else "**not exact**"
            yield (
                f"{most} requests of one organisation {kind}, ledger alone, {how}: p99 added",
                f"{added_ms:,.0f} ms, {point.errors} errors, debits {exact}",
                _most(added_ms, ADDED_P99_TARGET_MS) if has_target else "",
            )


def _warm_rows(warm: Warm) -> Iterator[tuple[str, str, str]]:
    drawn = [each for each in warm.pictures if "illustration" in each.picture]
    others = [each for each in warm.pictures if each not in drawn]
    for kind, pictures in (("photos and noise", others), ("illustrations", drawn)):
        if pictures:
            name = f"CPU of a paid request / the bare script, {kind}"
            yield name, _range(pictures), verdict(max(each.cpu for each in pictures), CPU_TARGET)
    size = max(each.size for each in warm.pictures)
    yield "bytes of a PNG / Pillow's default, at most", f"{size:.2f}", verdict(size, BYTES_TARGET)
    apart = f"{warm.apart_ms:.0f} ms"
    yield "our own CPU, the PNG apart", apart, _most(warm.apart_ms, PNG_APART_TARGET_MS)


def _cold_rows(cold: Cold, builds: Builds) -> Iterator[tuple[str, str, str]]:
    generate = cold["generate"]
    account = statistics.median(cold["account"].built) / statistics.median(generate.plain)
    size = unzipped_bytes(builds.built) / unzipped_bytes(builds.plain)
    yield (
        "INIT / that of a plain build",
        f"{generate.ratio:.2f}",
        verdict(generate.ratio, INIT_TARGET),
    )
    name = "INIT of the account function / generate's of a plain build"
    yield name, f"{account:.2f}", verdict(account, ACCOUNT_TARGET)
    yield "artifact, unzipped / a plain build", f"{size:.2f}", verdict(size, SIZE_TARGET)


def _range(pictures: Sequence[Compared]) -> str:
    ratios = [each.cpu for each in pictures]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _most(figure: float, most: float) -> str:
    return verdict(figure, most, ".0f")
