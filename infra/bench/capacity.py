"""How many images a second, and what bites first: ``python -m infra.bench.capacity``.

Prints the answers of the capacity model and writes the plot of the operations guide. The model is
in ``capacity_model``, what it assumes is in ``capacity_terms``.
"""

import math
import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from infra.bench.capacity_clients import Machine, closed_loop
from infra.bench.capacity_model import simulate
from infra.bench.capacity_plot import Curve, draw
from infra.bench.capacity_terms import (
    Limit,
    Limits,
    Load,
    Measured,
    ModelLatency,
    Outcome,
    Result,
)
from infra.bench.points import Point
from infra.bench.words import table
from infra.template import PROJECT_ROOT
from lib.ledger.rows import DEFAULT_RATE_LIMIT

__all__ = [
    "PLOT_PATH",
    "Measured",
    "Step",
    "beside_the_measured",
    "bites_from",
    "machine_of",
    "main",
    "plot",
    "report",
    "steps",
]

PLOT_PATH = PROJECT_ROOT / "infra" / "capacity.svg"
RATES = (1, 10, 100, 1000)
PLOTTED_RATES = (1, 2, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000)
ONE_ORGANISATION_RATES = (5, 10, 20, 30, 40, 60, 80)
# The share of images that is enough, and the share of refusals by which a limit is said to bite.
ENOUGH, BITES = 0.99, 0.01
HEADROOM = 1.2
NEW_ACCOUNT = 10
# Below this rate a limit that is counted by the minute takes minutes to see.
SLOW = 30
# Rates to try for where a limit begins to bite: 5 % apart, up to 2,000.
GRID = tuple(1.05**power for power in range(157))
# Standard deviations from the median of a normal distribution to its p99.
P99 = 2.326

_run = cache(simulate)


@dataclass(frozen=True, slots=True)
class Step:
    """The limit that bit most, what it was raised to in words, and the run after that."""

    limit: Limit
    raised_to: str
    limits: Limits
    result: Result


def steps(rate_per_s: float, measured: Measured) -> list[Step]:
    """Raises the limit that bites most, one after the other, until 99 % of the requests succeed.

    How far is 1.2 times the peak of a run without limits. It ends early at a limit that nobody
    can raise.
    """
    load = _load(rate_per_s)
    needs = _run(load, Limits.none(), measured).peaks
    limits = Limits()
    result = _run(load, limits, measured)
    taken: list[Step] = []
    while result.succeed < ENOUGH:
        limit = result.bites_first
        raised = _raised(limits, limit, needs) if limit else None
        if limit is None or raised is None or limit in {step.limit for step in taken}:
            break
        limits, to = raised
        result = _run(load, limits, measured)
        taken.append(Step(limit, to, limits, result))
    return taken


def _raised(
    limits: Limits, limit: Limit, needs: Mapping[Limit, float]
) -> tuple[Limits, str] | None:
    """The limits with that one raised, and how in words; None when nobody can raise it."""
    enough = _with_headroom(needs.get(limit, 0.0))
    match limit:
        case Limit.GATEWAY:
            raised = replace(limits, throttle_rate=enough, throttle_burst=2 * enough)
            return raised, f"`ThrottleRate` {enough:,d}, `ThrottleBurst` {2 * enough:,d}"
        case Limit.CONCURRENCY:
            return replace(limits, concurrency=enough), f"{enough:,d} at once"
        case Limit.TABLE:
            return replace(limits, table_units=enough), f"a warm throughput of {enough:,d}"
        case Limit.HOLDS:
            shards = math.ceil(enough / limits.hold_units)
            return replace(limits, hold_shards=shards), f"`DUE_SHARDS` {shards}"
        case Limit.QUOTA:
            return replace(limits, gemini_per_minute=enough), f"{enough:,d} a minute"
        case _:
            return None


def _with_headroom(need: float) -> int:
    """Two digits are as much as a run can tell."""
    digit: int = 10 ** max(0, math.floor(math.log10(max(1.0, need))) - 1)
    return math.ceil(need * HEADROOM / digit) * digit


def bites_from(limit: Limit, limits: Limits, organisations: int, measured: Measured) -> float:
    """From which rate on ``limit`` fails one request in a hundred; NaN if not up to 2,000."""

    def bites(rate_per_s: float) -> bool:
        load = _short_load(rate_per_s, organisations, ramp_s=0 if limit is Limit.GROWTH else 10)
        result = _run(load, limits, measured)
        return result.refused_by.get(limit, 0) >= BITES * result.offered

    found = bisect_left(GRID, True, key=bites)  # noqa: FBT003 - what is looked for
    return GRID[found] if found < len(GRID) else math.nan


def _load(rate_per_s: float) -> Load:
    """Whole minutes, as quotas are, and requests enough for a p99."""
    minutes = max(1, math.ceil(3000 / rate_per_s / 60))
    return Load(rate_per_s, seconds=60 * minutes)


def _short_load(rate_per_s: float, organisations: int, ramp_s: float) -> Load:
    """Minutes at a low rate, for quotas are counted by the minute; then requests enough for 1 %."""
    seconds = 300.0 if rate_per_s < SLOW else max(15.0, 3000 / rate_per_s)
    goes_on_s = 20.0 if rate_per_s < SLOW else 0.0
    return Load(rate_per_s, organisations, seconds, ramp_s, goes_on_s)


def report(measured: Measured, points: Sequence[Point], pairs: int = 1280) -> list[str]:
    """The answers as a section in Markdown, line by line.

    ``points`` are what was measured, each with so many ``pairs`` of a reserve and a settle.
    """
    about = (
        f"Ours, in milliseconds: reserve {measured.reserve_ms:.1f}, settle "
        f"{measured.settle_ms:.1f}, all else {measured.other_ms:.0f}, a cold start "
        f"{measured.init_ms:.0f}; those of AWS are not known, and the model's "
        f"{ModelLatency().median_s} s outweigh them. Poisson arrivals for "
        f"{Load(1).organisations} organisations; the rate rises for a minute before anything is "
        "counted."
    )
    sections = [
        _by_default(measured),
        _what_to_change(measured),
        _where_each_bites(measured),
        _one_organisation(measured),
        _other_worlds(measured),
        beside_the_measured(measured, points, pairs),
    ]
    lines = ["## Capacity, simulated", "", about]
    for section in sections:
        lines += ["", *section]
    return lines


def _by_default(measured: Measured) -> Iterator[str]:
    yield "### With the limits of a seasoned account"
    yield ""
    rows = []
    for rate in RATES:
        result = _run(_load(rate), Limits(), measured)
        others = [
            f"{_share(count, result)} {outcome}"
            for outcome, count in sorted(result.outcomes.items(), key=lambda item: -item[1])
            if outcome is not Outcome.OK
        ]
        rows.append([f"{rate:,d}", *_figures(result), ", ".join(others) or "none"])
    yield from table(["a second", "200s", "200s a second", "p50", "p99", "all else"], rows)


def _what_to_change(measured: Measured) -> Iterator[str]:
    yield "### What bites first, and what to raise"
    yield ""
    rows = []
    for rate in RATES:
        taken = steps(rate, measured)
        if not taken:
            enough = _run(_load(rate), Limits(), measured)
            rows.append([f"{rate:,d}", "", "nothing", "", *_figures(enough)])
        for number, step in enumerate(taken, 1):
            about = [f"{rate:,d}", str(number), step.limit, step.raised_to]
            rows.append([*about, *_figures(step.result)])
    head = [
        "a second",
        "step",
        "bites most",
        "raised to",
        "then 200s",
        "200s a second",
        "p50",
        "p99",
    ]
    yield from table(head, rows)


def _where_each_bites(measured: Measured) -> Iterator[str]:
    """Each limit alone, all others lifted."""
    yield "### From which rate on each limit refuses one in a hundred, were it the only one"
    yield ""
    rows = []
    for limit, value, organisations, fields in _alone():
        limits = replace(Limits.none(), **fields)
        rows.append([limit, value, _rate(bites_from(limit, limits, organisations, measured))])
    yield from table(["limit", "of", "bites from, a second"], rows)
    yield ""
    yield (
        "In runs of 15 to 100 s, of 300 s below 30 a second: what is saved up, and what is tried "
        "again until it works, lets a limit bite a little above its own rate."
    )


def _alone() -> list[tuple[Limit, str, int, dict[str, Any]]]:
    """Each limit, its value in words, for how many organisations, and as fields of ``Limits``."""
    default, many, new, ours = Limits(), Load(1).organisations, NEW_ACCOUNT, DEFAULT_RATE_LIMIT

    def fields(*names: str) -> dict[str, Any]:
        return {name: getattr(default, name) for name in names}

    return [
        (
            Limit.RATE_LIMIT,
            f"{ours} a minute, one organisation",
            1,
            {"organisation_per_minute": ours},
        ),
        (Limit.CONCURRENCY, f"{new}, a new account", many, {"concurrency": new}),
        (Limit.QUOTA, "500 a minute", many, fields("gemini_per_minute")),
        (Limit.CONFLICT, "one organisation", 1, fields("conflicts")),
        (Limit.GATEWAY, "100", many, fields("throttle_rate", "throttle_burst")),
        (Limit.PARTITION, "1,000 units, one organisation", 1, fields("partition_units")),
        (Limit.CONCURRENCY, "1,000", many, fields("concurrency")),
        (Limit.GROWTH, "1,000 in 10 s, all at once", many, fields("growth")),
        (Limit.TABLE, "4,000 units", many, fields("table_units")),
        (Limit.HOLDS, "4 times 1,000 units", many, fields("hold_units", "hold_shards")),
    ]


def _one_organisation(measured: Measured) -> Iterator[str]:
    """The account's item and its partition, all else lifted."""
    yield "### One organisation alone"
    yield ""
    limits = replace(Limits.none(), conflicts=True, partition_units=Limits().partition_units)
    rows = []
    for rate in ONE_ORGANISATION_RATES:
        result = _run(Load(rate, 1, ramp_s=15, goes_on_s=10), limits, measured)
        conflicts = result.said_no.get(Limit.CONFLICT, 0) / result.offered
        rows.append([f"{rate:,d}", *_figures(result), f"{conflicts:.2f}"])
    head = ["a second", "200s", "200s a second", "p50", "p99", "conflicts a request"]
    yield from table(head, rows)


def _other_worlds(measured: Measured) -> Iterator[str]:
    """A heavier tail, and a load that comes all at once."""
    load, plain = _load(10), ModelLatency()
    heavy = replace(plain, sigma=2 * plain.sigma)
    mild, wild = (_run(load, Limits.none(), measured, tail) for tail in (plain, heavy))
    taken = steps(RATES[-1], measured)
    limits = taken[-1].limits if taken else Limits()
    sudden = _run(replace(_load(RATES[-1]), ramp_s=0), limits, measured)
    yield (
        f"The model's tail is an assumption (sigma {plain.sigma}). Were it twice as heavy, p99 at "
        f"10 a second would be {wild.p99_s:.1f} s instead of {mild.p99_s:.1f} s, "
        f"{_share(wild.outcomes.get(Outcome.TIMED_OUT, 0), wild)} of the requests would end in "
        f"{Outcome.TIMED_OUT} and be refunded, and {wild.sandboxes:.0f} sandboxes would be busy "
        f"instead of {mild.sandboxes:.0f}."
    )
    yield ""
    yield (
        f"Should {RATES[-1]:,d} a second come all at once and not over a minute, then in the "
        f"first minute, even with all these limits raised, "
        f"{_share(sudden.refused_by.get(Limit.GROWTH, 0), sudden)} are a {Outcome.NO_SANDBOX}: "
        f"{Limit.GROWTH}, which nobody can raise."
    )


def machine_of(measured: Measured, points: Sequence[Point], *, conflicts: bool) -> Machine | None:
    """DynamoDB Local as the points with or without ``conflicts`` show it; None without one client.

    One client alone tells how long calls take, and the smallest crowd that met no conflict how much
    of that is the slower part, taken for DynamoDB Local's. All other points are predicted.
    """
    alike = [point for point in points if point.conflicts_injected == conflicts]
    alone = next((point for point in alike if point.clients == 1), None)
    if alone is None:
        return None
    peaceful = [point for point in alike if point.clients > 1 and not point.conflicts]
    crowd = min(peaceful, key=lambda point: point.clients, default=alone)
    reserve_share = measured.reserve_ms / (measured.reserve_ms + measured.settle_ms)
    return Machine(
        reserve_ms=alone.p50_ms * reserve_share,
        settle_ms=alone.p50_ms * (1 - reserve_share),
        serial=min(1.0, max(0.5, alone.throughput_per_s / crowd.throughput_per_s)),
        spread=math.log(max(1.0, alone.p99_ms / alone.p50_ms)) / P99,
    )


def beside_the_measured(measured: Measured, points: Sequence[Point], pairs: int) -> Iterator[str]:
    """Each point beside the closed loop of the model, as a table with its title."""
    yield "### Simulated beside measured"
    yield ""
    machines = {kind: machine_of(measured, points, conflicts=kind) for kind in (False, True)}
    rows = []
    for was in points:
        machine = machines[was.conflicts_injected]
        if machine is not None:
            refused = was.conflicts_injected
            told = closed_loop(
                was.clients, was.organisations, machine, conflicts=refused, pairs=pairs
            )
            rows.append(
                [
                    str(was.clients),
                    str(was.organisations),
                    "refused" if refused else "wait",
                    f"{was.throughput_per_s:.0f} / {told.throughput_per_s:.0f}",
                    f"{was.p50_ms:.0f} / {told.p50_ms:.0f}",
                    f"{was.p99_ms:.0f} / {told.p99_ms:.0f}",
                    f"{was.conflicts / pairs:.2f} / {told.conflicts / pairs:.2f}",
                    f"{was.errors} / {told.errors}",
                ]
            )
    if not rows:
        yield "Nothing was measured in this run, so nothing is compared."
        return
    yield (
        "Threads that reserve and settle without a pause, on one DynamoDB Local. Of each kind the "
        "one client, and the smallest crowd that met no conflict, tell the model how long calls "
        "take and how much of that is one at a time; the other rows are predictions. Pairs are a "
        "reserve and a settle. Each cell: measured / simulated."
    )
    yield ""
    head = ["clients", "organisations", "conflicts", "pairs a second", "p50 ms", "p99 ms"]
    yield from table([*head, "conflicts a pair", "given up"], rows)


def _figures(result: Result) -> list[str]:
    return [
        _share(result.outcomes.get(Outcome.OK, 0), result),
        f"{result.succeed_per_s:,.1f}",
        f"{result.p50_s:.1f} s",
        f"{result.p99_s:.1f} s",
    ]


def _share(count: int, result: Result) -> str:
    share = count / max(1, result.offered)
    if 0 < share < 0.0005:  # noqa: PLR2004 - what would be written as nothing
        return "under 0.1 %"
    return f"{share:.1%}".replace("100.0%", "100%").replace("%", " %")


def _rate(rate_per_s: float) -> str:
    """Two digits: the grid is no finer."""
    return "never" if math.isnan(rate_per_s) else f"{float(f'{rate_per_s:.2g}'):,g}"


def plot(measured: Measured) -> str:
    """The SVG of the operations guide."""
    taken = steps(RATES[-1], measured)
    raised = taken[-1].limits if taken else Limits()
    names = ("a seasoned account", "limits raised")
    curves = [
        _curve(f"{name}: Gemini's {limits.gemini_per_minute:,.0f} a minute", limits, measured)
        for name, limits in zip(names, (Limits(), raised), strict=True)
    ]
    told = [
        f"{curve.name}: of {rate:,d} a second {succeed:,.1f} succeed"
        for curve in curves
        for rate, succeed in zip(PLOTTED_RATES, curve.succeed, strict=True)
        if rate in RATES
    ]
    description = "; ".join(told)
    return draw("Images a second, asked for and made (simulated)", description, curves)


def _curve(name: str, limits: Limits, measured: Measured) -> Curve:
    results = [_run(_load(rate), limits, measured) for rate in PLOTTED_RATES]
    return Curve(
        name,
        offered=PLOTTED_RATES,
        succeed=[result.succeed_per_s for result in results],
        p50_s=[result.p50_s for result in results],
        p99_s=[result.p99_s for result in results],
    )


def main() -> int:
    """Prints the section and writes the plot; AWS's times are guesses here."""
    print("\n".join(report(Measured(), [])))
    PLOT_PATH.write_text(plot(Measured()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
