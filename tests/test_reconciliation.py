"""How the reconciler ends abandoned reservations."""

import pytest

from lib.ledger.reconciliation import Reconciled
from lib.ledger.rows import Status
from tests.world import Call, Fault, Network, NewWorld, World

# Calls of a request in an open minute: reserve, generate, put, settle.
MODEL, SETTLE = 1, 3
PROMISED_S = 180
SCHEDULE_S = 60
A_WHOLE_RUN_S = 60


@pytest.fixture
def world(new_world: NewWorld) -> World:
    return new_world(rate_limit=10_000)


def abandon(world: World, before: int) -> None:
    """Kills a request before its call number ``before``."""
    world.clock.sleep(0.01)
    assert world.request(world.process(Network(before, Fault.KILLED_BEFORE))) is None


def statuses(world: World) -> list[Status]:
    return [each.status for each in world.generations()]


@pytest.mark.parametrize("until_first_run_s", range(0, SCHEDULE_S, 7))
def test_a_killed_request_is_refunded_within_three_minutes(
    world: World, until_first_run_s: int
) -> None:
    killed_at = world.clock.now_s
    abandon(world, MODEL)
    world.clock.sleep(until_first_run_s)
    while statuses(world) == [Status.RESERVED]:
        world.reconcile(world.process())
        world.clock.sleep(SCHEDULE_S)
    assert world.clock.now_s - SCHEDULE_S - killed_at <= PROMISED_S - A_WHOLE_RUN_S
    assert world.balance() == 100


def test_a_lease_that_has_not_expired_is_left_alone(world: World) -> None:
    abandon(world, MODEL)
    world.clock.sleep(30)
    assert world.reconcile(world.process()) == Reconciled()
    assert statuses(world) == [Status.RESERVED]


def test_a_stored_image_is_settled_with_its_duration(world: World) -> None:
    abandon(world, SETTLE)
    world.let_leases_pass()
    assert world.reconcile(world.process()) == Reconciled(settled=1)
    (settled,) = world.generations()
    assert settled.status is Status.SETTLED
    assert settled.duration_ms is not None
    assert world.balance() == 95
    assert world.violations() == []


def test_an_image_that_is_not_whole_is_refunded_and_removed(world: World) -> None:
    abandon(world, SETTLE)
    (key,) = world.stored_keys()
    whole = world.process().images.read(key)
    assert whole is not None
    world.engine.s3.put_object(
        Bucket=world.engine.bucket,
        Key=key,
        Body=whole.content[: len(whole.content) // 2],
        Metadata={"attempt": whole.attempt_id or ""},
    )
    world.let_leases_pass()
    assert world.reconcile(world.process()) == Reconciled(refunded=1)
    assert world.stored_keys() == set()
    assert world.balance() == 100


def test_an_image_that_arrives_after_the_refund_is_removed_a_lease_later(world: World) -> None:
    abandon(world, MODEL)
    world.let_leases_pass()
    world.reconcile(world.process())
    (refunded,) = world.generations()
    world.process().images.put(refunded.image_key, b"late", refunded.attempt_id, world.deadline())
    world.let_leases_pass()
    assert world.reconcile(world.process()) == Reconciled(swept=1)
    assert world.violations() == []


def test_an_image_of_another_attempt_is_neither_charged_nor_removed(world: World) -> None:
    abandon(world, SETTLE)
    (key,) = world.stored_keys()
    foreign = world.engine.s3.get_object(Bucket=world.engine.bucket, Key=key)["Body"].read()
    world.engine.s3.put_object(
        Bucket=world.engine.bucket, Key=key, Body=foreign, Metadata={"attempt": "another"}
    )
    world.settle_down()
    assert world.balance() == 100
    assert world.stored_keys() == {key}


def test_an_unreadable_row_does_not_stop_the_others(world: World) -> None:
    abandon(world, MODEL)
    nonsense = {
        "pk": {"S": f"ORG#{world.organisation}"},
        "sk": {"S": "GEN#0000000000000"},
        "status": {"S": "misplaced"},
        "dueShard": {"S": "0"},
        "dueAt": {"N": "1"},
    }
    world.engine.dynamodb.put_item(TableName=world.table, Item=nonsense)
    world.let_leases_pass()
    assert world.reconcile(world.process()) == Reconciled(refunded=1, failed=1)
    assert world.balance() == 100


def test_without_the_store_nothing_is_decided_until_the_next_run(world: World) -> None:
    abandon(world, SETTLE)
    world.let_leases_pass()
    down = world.process(Network(4, Fault.OUTAGE))
    assert [call.service for call in down.network.calls] == []
    assert world.reconcile(down) == Reconciled(failed=1)
    assert down.network.calls[4].service == "s3"
    assert world.reconcile(world.process()) == Reconciled(settled=1)


def test_many_due_rows_take_several_runs(new_world: NewWorld) -> None:
    world = new_world(credits_=150, rate_limit=10_000)
    for _ in range(30):
        abandon(world, MODEL)
    world.let_leases_pass()

    def takes_a_while(_call: Call) -> None:
        world.clock.sleep(0.01)

    first = world.reconcile(world.process(Network(before_each=takes_a_while)), ends_after_s=0.6)
    assert first is not None
    assert 0 < first.refunded < 30
    assert first.left > 0
    world.settle_down()
    assert world.balance() == 150
    assert world.violations() == []
