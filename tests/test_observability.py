"""What an operator's dashboards and alarms can count on."""

import json
from typing import Any

import pytest

from lib.errors import ContentRejected, ModelUnavailable
from lib.observability import describe_fault
from tests.world import Fault, Network, NewWorld, World


@pytest.fixture
def world(new_world: NewWorld) -> World:
    return new_world()


def metrics(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines in CloudWatch's embedded metric format."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if "_aws" in line]


def test_a_success_counts_what_was_charged_and_how_long_each_room_took(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.request(world.process())
    (line,) = metrics(capsys)
    assert line["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "GeminiGenerate"
    assert line["service"] == "gemini-generate"
    assert (line["Generations"], line["CreditsCharged"]) == ([1.0], [5.0])
    assert {"ModelMs", "EncodeMs", "StoreMs", "LedgerMs"} <= set(line)
    assert len(line["LedgerMs"]) == 2


def test_a_failure_is_counted_by_its_code_and_as_a_refund(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.request(world.process(failure=ContentRejected()))
    totals, by_code = metrics(capsys)
    assert (totals["Failures"], totals["Refunds"]) == ([1.0], [1.0])
    assert "CreditsCharged" not in totals
    assert (by_code["code"], by_code["FailuresByCode"]) == ("content_rejected", [1.0])


def test_a_refund_that_fails_is_counted_and_answered_all_the_same(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    refund_is_down = world.process(Network(2, Fault.OUTAGE), ModelUnavailable())
    assert isinstance(world.request(refund_is_down), ModelUnavailable)
    totals, _ = metrics(capsys)
    assert totals["RefundFailures"] == [1.0]
    assert "Refunds" not in totals


def test_a_settle_that_goes_unheard_is_counted(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.request(world.process(Network(3, Fault.OUTAGE)))
    (line,) = metrics(capsys)
    assert line["SettlesLeftToReconciler"] == [1.0]


def fail_twice() -> None:
    try:
        int("the customer's own words")
    except ValueError as fault:
        raise RuntimeError("what upstream said") from fault


def test_a_fault_is_named_by_types_and_places_and_never_by_its_words() -> None:
    with pytest.raises(RuntimeError) as caught:
        fail_twice()
    told = describe_fault(caught.value)
    assert [part.split(" at ")[0] for part in told] == ["RuntimeError", "ValueError"]
    assert all("test_observability.py:" in part for part in told)
    assert "words" not in str(told)
    assert "said" not in str(told)
