"""The figures that count beside their targets; the README quotes this table."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infra.bench.cold import ACCOUNT_TARGET, INIT_TARGET, SIZE_TARGET, Builds, Cold
from infra.bench.contention import ADDED_P99_TARGET_MS, Contention
from infra.bench.litellm import LiteLlm
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
        shown = f"{measured.litellm.cpu_ms:.0f} ms"
        yield "the same of LiteLLM's proxy, which stores and charges nothing", shown, ""
    trips = sum(measured.trips[SUCCESS].values())
    met = "met" if trips <= SUCCESS_TARGET else "**missed**"
    yield "round trips of a success, one after the other", str(trips), f"{SUCCESS_TARGET}: {met}"
    yield from _cold_rows(measured.cold, measured.builds)
    peak = max(each.peak for each in measured.memory)
    yield "peak memory, pictures of 1K and 2K", f"{peak:.0f} MiB", _most(peak, TARGET_MIB)
    (burst,) = (
        each
        for each in measured.contention.bursts
        if not each.point.conflicts_injected
        and each.point.clients > each.point.organisations
        and each.point.clients == max(other.point.clients for other in measured.contention.bursts)
    )
    added_ms = burst.point.p99_ms - measured.contention.alone_ms
    name = f"{burst.point.clients} requests of one organisation at once: p99 added by the ledger"
    yield name, f"{added_ms:.0f} ms", _most(added_ms, ADDED_P99_TARGET_MS)
    exact = "exact" if burst.exact else "**not exact**"
    yield "their errors, and debits", f"{burst.point.errors}, {exact}", "0, exact"
    if measured.litellm is not None:
        shown = f"{measured.litellm.crowd_p99_ms - measured.litellm.direct_p50_ms:.0f} ms"
        yield "p99 added by LiteLLM's proxy, 64 clients", shown, ""


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
    yield "INIT / a plain build's", f"{generate.ratio:.2f}", verdict(generate.ratio, INIT_TARGET)
    yield "INIT of the account function / that", f"{account:.2f}", verdict(account, ACCOUNT_TARGET)
    yield "artifact, unzipped / a plain build's", f"{size:.2f}", verdict(size, SIZE_TARGET)


def _range(pictures: Sequence[Compared]) -> str:
    ratios = [each.cpu for each in pictures]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _most(figure: float, most: float) -> str:
    return verdict(figure, most, ".0f")
