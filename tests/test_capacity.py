"""The capacity model: laws that any such model must obey, and our own rules in it."""

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from infra.bench.capacity import PLOT_PATH, beside_the_measured, bites_from, machine_of, steps
from infra.bench.capacity_clients import Machine, closed_loop
from infra.bench.capacity_model import simulate
from infra.bench.capacity_plot import Curve, draw
from infra.bench.capacity_terms import Limit, Limits, Load, Measured, ModelLatency, Outcome
from infra.template import TEMPLATE_PATH
from lib.ledger.order import CREDITS_PER_IMAGE

NONE = Limits.none()
STEADY = ModelLatency(median_s=4.0, sigma=0.0)
LOAD = Load(20, organisations=20, seconds=60, ramp_s=20, goes_on_s=15)
SVG = "{http://www.w3.org/2000/svg}"


# Laws


def test_without_limits_every_request_succeeds_and_takes_the_sum_of_its_parts() -> None:
    measured = Measured(reserve_ms=10, settle_ms=5, other_ms=100, init_ms=0)

    result = simulate(LOAD, NONE, measured, STEADY)

    assert result.outcomes == {Outcome.OK: result.offered}
    assert result.p50_s == pytest.approx(4.115)
    assert result.p99_s == pytest.approx(4.115)


def test_requests_come_as_often_as_they_are_said_to() -> None:
    result = simulate(LOAD, NONE)

    assert result.offered == pytest.approx(20 * 60, rel=0.1)


def test_as_many_sandboxes_are_busy_as_littles_law_says() -> None:
    result = simulate(replace(LOAD, seconds=120), NONE, Measured(init_ms=0), STEADY)

    arrivals_per_s = result.offered / 120
    assert result.sandboxes == pytest.approx(arrivals_per_s * result.p50_s, rel=0.02)


def test_one_server_saturates_at_one_over_its_service_time() -> None:
    point = closed_loop(8, 8, Machine(reserve_ms=6, settle_ms=2), conflicts=True)

    assert point.throughput_per_s == pytest.approx(1000 / 8, rel=0.01)
    assert point.p50_ms == pytest.approx(8 * 8, rel=0.05)


def test_two_servers_serve_twice_as_many() -> None:
    point = closed_loop(8, 8, Machine(reserve_ms=6, settle_ms=2, servers=2), conflicts=True)

    assert point.throughput_per_s == pytest.approx(2 * 1000 / 8, rel=0.01)


def test_one_client_alone_waits_for_nobody() -> None:
    point = closed_loop(1, 1, Machine(reserve_ms=6, settle_ms=2, serial=0.3), conflicts=True)

    assert point.throughput_per_s == pytest.approx(1000 / 8)
    assert (point.conflicts, point.errors) == (0, 0)


def test_the_same_seed_gives_the_same_answer_and_another_one_another() -> None:
    assert simulate(LOAD, seed=1) == simulate(LOAD, seed=1)
    assert simulate(LOAD, seed=1) != simulate(LOAD, seed=2)


def test_a_heavier_tail_shows_in_p99_and_not_in_p50() -> None:
    light, heavy = (simulate(LOAD, NONE, latency=ModelLatency(sigma=sigma)) for sigma in (0.2, 0.5))

    assert heavy.p99_s > 1.5 * light.p99_s
    assert heavy.p50_s == pytest.approx(light.p50_s, rel=0.05)


# Limits


def test_the_gateway_refuses_what_is_above_its_rate() -> None:
    result = simulate(LOAD, replace(NONE, throttle_rate=8, throttle_burst=8))

    assert result.succeed_per_s == pytest.approx(8, rel=0.02)
    refused = result.offered - result.outcomes[Outcome.OK]
    assert result.outcomes[Outcome.THROTTLED] == result.refused_by[Limit.GATEWAY] == refused


def test_lambda_refuses_what_finds_no_sandbox() -> None:
    result = simulate(LOAD, replace(NONE, concurrency=10), Measured(0, 0, 0, 0), STEADY)

    assert result.peaks[Limit.CONCURRENCY] == 10
    assert result.succeed_per_s == pytest.approx(10 / 4.0, rel=0.05)
    assert result.bites_first is Limit.CONCURRENCY


def test_a_load_that_comes_all_at_once_outgrows_lambda_and_one_that_rises_does_not() -> None:
    limits = replace(NONE, growth=20)
    sudden, rising = (simulate(replace(LOAD, ramp_s=ramp_s), limits) for ramp_s in (0, 120))

    assert sudden.refused_by[Limit.GROWTH] > 0
    assert rising.succeed == 1


def test_a_cold_start_is_waited_for_and_a_warm_sandbox_is_not() -> None:
    measured = Measured(0, 0, 0, init_ms=3000)

    result = simulate(replace(LOAD, ramp_s=0), NONE, measured, STEADY)

    assert result.p50_s == pytest.approx(4.0)
    assert result.p99_s == pytest.approx(7.0)
    assert 20 * 4 < result.cold_starts < result.offered / 2


def test_the_quota_refuses_what_is_above_it_and_every_refusal_is_refunded() -> None:
    load = replace(LOAD, seconds=180, ramp_s=120)

    result = simulate(load, replace(NONE, gemini_per_minute=600))

    assert result.peaks[Limit.QUOTA] == 600
    assert result.succeed_per_s == pytest.approx(10, rel=0.1)
    assert result.outcomes[Outcome.OVERLOADED] == result.refused_by[Limit.QUOTA] > 180 * 8
    assert result.credits_taken == CREDITS_PER_IMAGE * result.images


def test_a_quota_that_is_nearly_enough_is_waited_for_by_those_who_have_the_time() -> None:
    load = Load(10, seconds=120, ramp_s=60)
    scarce, plenty = (
        simulate(load, replace(NONE, gemini_per_minute=quota)) for quota in (560, 6000)
    )

    assert scarce.retries > 0
    assert scarce.p99_s > plenty.p99_s + 2


def test_a_model_that_takes_longer_than_it_has_is_refunded() -> None:
    result = simulate(LOAD, NONE, latency=ModelLatency(median_s=60, sigma=0))

    assert result.outcomes == {Outcome.TIMED_OUT: result.offered}
    assert result.credits_taken == 0


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (replace(NONE, table_units=50), Limit.TABLE),
        (replace(NONE, partition_units=50), Limit.PARTITION),
        (replace(NONE, hold_units=30, hold_shards=1), Limit.HOLDS),
    ],
    ids=["table", "partition", "open holds"],
)
def test_write_units_that_are_used_up_make_it_busy(limits: Limits, limit: Limit) -> None:
    result = simulate(replace(LOAD, organisations=1, seconds=30), limits)

    # 5 units of the table an image, and 3 of the index.
    assert result.succeed_per_s == pytest.approx(10, rel=0.15)
    assert result.outcomes[Outcome.BUSY] == result.refused_by[limit] > 0


def test_an_organisation_gets_no_more_than_its_rate_limit() -> None:
    load = replace(LOAD, organisations=2, ramp_s=60)

    result = simulate(load, replace(NONE, organisation_per_minute=150))

    assert result.outcomes[Outcome.OK] == 2 * 150
    assert result.bites_first is Limit.RATE_LIMIT


def test_an_organisation_gets_no_more_than_it_has_credits_for() -> None:
    result = simulate(replace(LOAD, organisations=3, credits=4 * CREDITS_PER_IMAGE + 1), NONE)

    assert (result.images, result.credits_taken) == (3 * 4, 3 * 4 * CREDITS_PER_IMAGE)
    assert result.outcomes[Outcome.NO_CREDITS] == result.offered


# Conflicts


def test_conflicts_rise_with_the_clients_of_one_organisation() -> None:
    machine = Machine(reserve_ms=6, settle_ms=2, serial=0.7)
    points = [closed_loop(n, 1, machine, conflicts=True, pairs=320) for n in (1, 4, 16)]

    few, some, many = (point.conflicts for point in points)
    assert 0 == few < some < many
    assert many == points[-1].retries + points[-1].errors


def test_conflicts_vanish_with_many_organisations() -> None:
    machine = Machine(reserve_ms=6, settle_ms=2, serial=0.7)

    assert closed_loop(16, 16, machine, conflicts=True, pairs=320).conflicts == 0


def test_nothing_is_refused_where_transactions_wait() -> None:
    machine = Machine(reserve_ms=6, settle_ms=2, serial=0.7)

    assert closed_loop(16, 1, machine, conflicts=False, pairs=320).conflicts == 0


def test_one_account_is_busy_when_its_transactions_take_longer_than_there_is_time() -> None:
    load = Load(20, organisations=1, seconds=20, ramp_s=20, goes_on_s=10)

    one = simulate(load, replace(NONE, conflicts=True), Measured(reserve_ms=100))
    several = simulate(
        replace(load, organisations=50), replace(NONE, conflicts=True), Measured(reserve_ms=100)
    )

    assert one.outcomes[Outcome.BUSY] == one.refused_by[Limit.CONFLICT] > 20
    assert one.succeed_per_s < 1000 / 100
    assert several.succeed == 1


# The report


def test_the_limits_of_the_model_are_the_templates() -> None:
    template = TEMPLATE_PATH.read_text(encoding="utf-8")

    def default(name: str) -> int:
        found = re.search(
            rf"^  {name}:\n(?:    .*\n)*?    Default: (\d+)\n", template, re.MULTILINE
        )
        assert found
        return int(found[1])

    assert Limits().throttle_rate == default("ThrottleRate")
    assert Limits().throttle_burst == default("ThrottleBurst")


def test_raising_what_bites_ends_in_99_of_100() -> None:
    taken = steps(10, Measured())

    assert [step.limit for step in taken] == [Limit.QUOTA]
    assert taken[-1].limits.gemini_per_minute > 600
    assert taken[-1].result.succeed >= 0.99


def test_a_limit_bites_from_about_its_own_rate_on() -> None:
    limits = replace(NONE, throttle_rate=5, throttle_burst=10)

    assert 4 < bites_from(Limit.GATEWAY, limits, 1, Measured()) < 6


def test_the_machine_is_found_again_from_points_that_it_made() -> None:
    machine = Machine(reserve_ms=6, settle_ms=2, serial=0.6)
    points = [
        closed_loop(clients, clients, machine, conflicts=False, pairs=320) for clients in (1, 8, 64)
    ]

    found = machine_of(Measured(reserve_ms=60, settle_ms=20), points, conflicts=False)

    assert found is not None
    assert (found.reserve_ms, found.settle_ms) == pytest.approx((6, 2))
    assert found.serial == pytest.approx(0.6, rel=0.05)


def test_the_measured_stands_beside_the_simulated() -> None:
    machine = Machine(reserve_ms=6, settle_ms=2, serial=0.6)
    points = [
        closed_loop(clients, 1, machine, conflicts=False, pairs=320) for clients in (1, 8, 64)
    ]

    lines = list(beside_the_measured(Measured(60, 20), points, pairs=320))

    (last,) = (line for line in lines if line.startswith("| 64 |"))
    measured_per_s, simulated_per_s = re.findall(r"\d+", last.split("|")[4])
    assert float(simulated_per_s) == pytest.approx(float(measured_per_s), rel=0.05)


def test_without_measured_points_nothing_is_compared() -> None:
    assert "Nothing was measured" in " ".join(beside_the_measured(Measured(), [], pairs=1))


def test_the_plot_has_a_title_a_description_and_three_lines_of_each_curve() -> None:
    curve = Curve("slow", (1, 1000), (1, 8), (4, 12), (9, 20))

    drawn = ET.fromstring(draw("Load", "What comes of it", [curve, curve]))  # noqa: S314 - our own

    assert drawn.findtext(f"{SVG}title") == "Load"
    assert drawn.findtext(f"{SVG}desc") == "What comes of it"
    assert len(drawn.findall(f"{SVG}polyline")) == 2 * 3


def test_the_plot_of_the_guide_is_small_and_well_formed() -> None:
    text = PLOT_PATH.read_text(encoding="utf-8")

    assert len(text) < 60_000
    assert ET.fromstring(text).tag == f"{SVG}svg"  # noqa: S314 - our own
