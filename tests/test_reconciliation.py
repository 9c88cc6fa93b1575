"""How the reconciler ends abandoned reservations."""

import pytest

from lib.generation import Accepted
from lib.ledger.reconciliation import Reconciled
from lib.ledger.rows import Status
from lib.picture.png import to_png
from lib.picture.storage import KeyTaken
from tests.world import Call, Fault, Network, NewWorld, World, small_picture

# Calls of a request in an open minute: reserve, generate, put, settle.
MODEL, PUT, SETTLE = 1, 2, 3
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


def test_an_image_that_is_not_whole_is_refunded_and_removed_a_lease_later(world: World) -> None:
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
    assert world.balance() == 100
    world.let_leases_pass()
    assert world.reconcile(world.process()) == Reconciled(swept=1)
    assert world.violations() == []


def test_no_image_can_arrive_after_the_refund_and_nothing_is_left_a_lease_later(
    world: World,
) -> None:
    abandon(world, MODEL)
    world.let_leases_pass()
    assert world.reconcile(world.process()) == Reconciled(refunded=1)
    (refunded,) = world.generations()
    with pytest.raises(KeyTaken):
        world.process().images.put(
            refunded.image_key, b"late", refunded.attempt_id, world.deadline()
        )
    tombstone = world.process().images.read(refunded.image_key)
    assert tombstone is not None
    assert tombstone.content == b""
    world.let_leases_pass()
    assert world.reconcile(world.process()) == Reconciled(swept=1)
    assert world.violations() == []


def test_a_job_whose_lease_was_extended_is_left_alone_though_the_index_says_it_is_due(
    world: World,
) -> None:
    assert isinstance(world.accept(world.process()), Accepted)
    (queued,) = world.generations()
    world.let_leases_pass()
    late = world.process(index_lags=True)
    # A worker begins the job between the index's answer and the visit.
    world.process().ledger.extend_lease(
        world.organisation, queued.created_ms, 390, world.deadline()
    )
    assert world.reconcile(late) == Reconciled(stale=1)
    world.deliver()
    (ended,) = world.generations()
    assert ended.status is Status.SETTLED


def test_a_job_that_begins_while_it_is_given_up_is_left_to_its_worker(world: World) -> None:
    assert isinstance(world.accept(world.process()), Accepted)
    (queued,) = world.generations()
    world.let_leases_pass()

    def a_worker_begins_before_the_refund(call: Call) -> None:
        if call.operation == "transact_write_items":
            world.process().ledger.extend_lease(
                world.organisation, queued.created_ms, 390, world.deadline()
            )

    slow = world.process(Network(before_each=a_worker_begins_before_the_refund))
    assert world.reconcile(slow) == Reconciled(stale=1)
    assert statuses(world) == [Status.RESERVED]
    world.deliver()
    world.settle_down()
    assert statuses(world) == [Status.REFUNDED]
    assert world.balance() == 100
    assert world.violations() == []


def test_an_image_that_arrives_while_its_request_is_given_up_is_charged(world: World) -> None:
    abandon(world, PUT)
    world.let_leases_pass()
    (reserved,) = world.generations()
    ratio = reserved.aspect_ratio

    def the_slow_request_ends(call: Call) -> None:
        writes = call.operation in {"put_object", "delete_object"}
        if writes and statuses(world) == [Status.RESERVED]:
            request, png = world.process(), to_png(small_picture(ratio), ratio)
            ends = world.deadline()
            sha256 = request.images.put(reserved.image_key, png, reserved.attempt_id, ends)
            request.ledger.settle(reserved, 1200, ends, sha256)

    late = world.process(Network(before_each=the_slow_request_ends))
    assert world.reconcile(late) == Reconciled(settled=1)
    assert statuses(world) == [Status.SETTLED]
    assert world.violations() == []


def test_two_reconcilers_refund_a_reservation_once_and_count_it_once(world: World) -> None:
    abandon(world, MODEL)
    world.let_leases_pass()
    others: list[Reconciled | None] = []

    def another_refunds_first(call: Call) -> None:
        if call.operation == "transact_write_items":
            others.append(world.reconcile(world.process()))

    slow = world.process(Network(before_each=another_refunds_first))
    assert world.reconcile(slow) == Reconciled(stale=1)
    assert others == [Reconciled(refunded=1)]
    assert world.balance() == 100


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
    down = world.process(Network(5, Fault.OUTAGE))
    assert world.reconcile(down) == Reconciled(failed=1)
    assert down.network.calls[5].service == "s3"
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
