"""The metrics that dashboards and alarms use, and what a logged fault contains."""

import json
from typing import Any

import pytest

from lib.errors import ContentRejected, ModelUnavailable
from lib.generation import Finished
from lib.observability import describe_fault
from tests.world import Fault, Network, NewWorld, World


@pytest.fixture
def world(new_world: NewWorld) -> World:
    return new_world()


def metrics(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines in CloudWatch's embedded metric format."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if "_aws" in line]


def test_a_success_counts_the_charge_and_times_each_step(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.request(world.process())
    (line,) = metrics(capsys)
    assert line["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "GeminiGenerate"
    assert line["service"] == "gemini-generate"
    assert (line["Generations"], line["CreditsCharged"]) == ([1.0], [5.0])
    assert {"ModelMs", "EncodeMs", "StoreMs", "LedgerMs"} <= set(line)
    assert len(line["LedgerMs"]) == 2


@pytest.mark.parametrize(
    ("failure", "strikes_at", "counted", "code"),
    [
        (ContentRejected(), None, ["Refunds"], "content_rejected"),
        (ModelUnavailable(), 2, ["RefundFailures"], "model_unavailable"),
        (None, 3, ["Generations", "SettlesLeftToReconciler"], None),
    ],
    ids=["a refund", "a failed refund", "a lost settle"],
)
def test_an_ending_has_its_own_metrics(
    world: World,
    capsys: pytest.CaptureFixture[str],
    failure: Exception | None,
    strikes_at: int | None,
    counted: list[str],
    code: str | None,
) -> None:
    answer = world.request(world.process(Network(strikes_at, Fault.OUTAGE), failure))
    assert (failure is None) == isinstance(answer, Finished)
    totals, *by_code = metrics(capsys)
    for name in ("Refunds", "RefundFailures", "Generations", "SettlesLeftToReconciler"):
        assert totals.get(name) == ([1.0] if name in counted else None), name
    assert [(line["code"], line["FailuresByCode"]) for line in by_code] == (
        [] if code is None else [(code, [1.0])]
    )


def fail_twice() -> None:
    try:
        int("the customer's own words")
    except ValueError as fault:
        raise RuntimeError("what upstream said") from fault


def test_a_fault_is_described_by_types_and_places_without_its_messages() -> None:
    with pytest.raises(RuntimeError) as caught:
        fail_twice()
    described = describe_fault(caught.value)
    assert [part.split(" at ")[0] for part in described] == ["RuntimeError", "ValueError"]
    assert all("test_observability.py:" in part for part in described)
    assert "words" not in str(described)
    assert "said" not in str(described)
