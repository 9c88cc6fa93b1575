"""The figures that have a target; the README quotes this table."""

from collections.abc import Iterator, Sequence

from infra.bench.cold import ACCOUNT_TARGET, INIT_TARGET, SIZE_TARGET, Builds, Cold, init_ratio
from infra.bench.contention import ADDED_P99_TARGET_MS, Contention
from infra.bench.litellm import CLIENTS, LiteLlm
from infra.bench.memory import TARGET_MIB, Memory
from infra.bench.png_encoders import BYTES_TARGET
from infra.bench.tables import section, table, verdict
from infra.bench.trips import SUCCESS, SUCCESS_TARGET, Trips
from infra.bench.warm import CPU_TARGET, ILLUSTRATION_CPU_TARGET, OWN_CPU_TARGET_MS, Warm
from infra.build.sizes import unzipped_bytes

Row = tuple[str, str, str]


def report(
    warm: Warm,
    trips: Trips,
    cold: Cold,
    builds: Builds,
    memory: Sequence[Memory],
    contention: Contention,
    proxy: LiteLlm | None,
) -> Iterator[str]:
    """The section of the results."""
    rows = [*_warm_rows(warm)]
    calls = trips[SUCCESS].total()
    rows.append(("round trips of a success", str(calls), verdict(calls, SUCCESS_TARGET, "d")))
    init, account = (init_ratio(cold, each, "generate") for each in ("generate", "account"))
    rows.append(_ratio("INIT of generate / plain build", init, INIT_TARGET))
    rows.append(_ratio("INIT of account / plain build of generate", account, ACCOUNT_TARGET))
    size = unzipped_bytes(builds.built) / unzipped_bytes(builds.plain)
    rows.append(_ratio("artifact, unzipped / plain build", size, SIZE_TARGET))
    peak, grown = (max(getattr(each, name) for each in memory) for name in ("peak", "growth_mib"))
    rows.append(("peak memory", f"{peak:.0f} MiB", verdict(peak, TARGET_MIB, ".0f")))
    rows.append(("memory added by the second half of the requests", f"{grown:.1f} MiB", ""))
    rows += _contention_rows(contention)
    if proxy is not None:
        name = "LiteLLM's proxy, which stores and charges nothing: CPU a request, HTTP included"
        rows.append((name, f"{proxy.cpu_ms:.0f} ms", ""))
        added = f"{proxy.crowd_added_ms:,.0f} ms"
        rows.append((f"LiteLLM's proxy, {CLIENTS} clients in a loop: p99 added", added, ""))
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
