"""The audit: what it finds, at rest and beside requests, and that it always ends."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, cycle
from typing import Any, cast

import pytest

from handlers import audit as handler
from infra.local.functions import LambdaContext
from infra.local.stack import LocalStack
from lib.deadline import Deadline
from lib.errors import ContentRejected
from lib.ledger.accounts import Accounts
from lib.ledger.audit import CAN_CHANGE_S, AuditReport
from lib.ledger.image_audit import ImageReport
from lib.ledger.rows import Generation, Grant, Status, account_key, listing_key
from lib.ledger.table import LedgerUnreachable
from lib.ledger.usage import month_of
from tests.engines import Engine
from tests.world import METER, Call, Network, NewWorld, World

PLENTY = 1_000_000


# For these histories moto is slow; they run on DynamoDB Local, and here for the mutants.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param("moto_engine", marks=pytest.mark.slow),
        pytest.param("real_engine", marks=pytest.mark.real),
    ],
    ids=["moto", "dynamodb-local"],
)
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def world(new_world: NewWorld) -> World:
    """An organisation with old and recent generations in every status, and two grants."""
    world = new_world(credits_=1000, rate_limit=10_000, budget=PLENTY)
    accounts = world.process().accounts
    accounts.grant(world.organisation, Grant("more", PLENTY, "", "ann", 1), world.deadline())
    accounts.grant(world.organisation, Grant("less", -10, "", "ann", 2), world.deadline())
    for age_s in (2 * CAN_CHANGE_S, 0):
        world.request(world.process(), key=f"order-{age_s}")
        world.request(world.process())
        world.request(world.process(failure=ContentRejected()))
        world.clock.sleep(age_s)
    reserve(world)
    return world


def reserve(world: World, key: str | None = None) -> Generation:
    return world.process().ledger.reserve(world.order(key), str, world.deadline())


def requests(world: World) -> Iterator[object]:
    """Requests without end; each step commits one write."""
    ledger = world.process().ledger
    for refunded in cycle([False, True, False]):
        one = reserve(world)
        yield one
        if refunded:
            yield ledger.refund(one, "no_image", world.deadline())
        else:
            ledger.settle(one, 1200, world.deadline())
            yield one


def reservations(world: World) -> Iterator[object]:
    """Reservations without end, each of which changes a counter."""
    while True:
        yield reserve(world)


def audit_beside(
    world: World, writes: Iterator[object], calls_between: int = 1
) -> tuple[AuditReport, int]:
    """An audit, with a write before every so many calls of it; and the number of its calls."""
    numbers = count(1)

    def go_on(_call: Call) -> None:
        world.clock.sleep(0.003)
        if next(numbers) % calls_between == 0:
            next(writes)

    network = Network(before_each=go_on)
    audited = world.process(network).accounts.audit(world.organisation, world.deadline())
    return audited, len(network.calls)


def test_the_books_of_a_busy_organisation_are_proved_to_the_credit(world: World) -> None:
    quiet = world.audit()
    busy, calls = audit_beside(world, requests(world), calls_between=5)

    assert (quiet.healthy, quiet.drift, quiet.slack) == (True, 0, 0)
    assert (busy.healthy, busy.drift, busy.slack) == (True, 0, 0)
    assert (quiet.reserved, quiet.settled, quiet.refunded) == (1, 4, 2)
    assert quiet.granted == 1000 + PLENTY - 10
    assert quiet.credits == quiet.granted - 5 * 5
    assert calls < 40


class SmallPages:
    """A DynamoDB client whose queries answer with two rows at a time."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, operation: str) -> Any:
        method = getattr(self._client, operation)

        def query(**arguments: Any) -> Any:
            return method(**arguments | {"Limit": 2})

        return query if operation == "query" else method


def test_the_drift_of_a_long_busy_history_is_known_to_the_credit(world: World) -> None:
    for _ in range(10):
        reserve(world)
    count_otherwise(world, more="taken", less="credits")
    writes = reservations(world)
    next(writes)
    world.engine = replace(world.engine, dynamodb=cast("Any", SmallPages(world.engine.dynamodb)))
    audited, _ = audit_beside(world, writes, calls_between=6)
    assert (audited.drift, audited.slack) == (-5, 0)


def test_an_audit_ends_beside_a_write_at_every_call_and_says_what_it_can_not_exclude(
    world: World,
) -> None:
    audited, calls = audit_beside(world, reservations(world))
    assert (audited.healthy, audited.slack) == (True, 20)
    assert calls < 50
    for _ in range(4):
        count_otherwise(world, more="taken", less="credits")
    assert audit_beside(world, reservations(world))[0].drift == -15


def test_an_item_of_a_transaction_that_is_seen_late_is_no_finding(world: World) -> None:
    numbers = count()

    def half_seen(_call: Call) -> None:
        amount = {1: 5, 4: -5}.get(next(numbers), 0)
        change(world, "ACCOUNT", "ADD credits :value, returned :value", amount)

    process = world.process(Network(before_each=half_seen))
    assert process.accounts.audit(world.organisation, world.deadline()).healthy
    assert next(numbers) > 7


def test_a_key_that_is_used_during_the_audit_is_no_finding(world: World) -> None:
    def use_a_key(_call: Call) -> None:
        # After the generations and the counters have been read, before the keys are.
        if len(network.calls) == 7:
            reserve(world, key="just now")

    network = Network(before_each=use_a_key)
    assert world.process(network).accounts.audit(world.organisation, world.deadline()).healthy


# What it finds


def change(world: World, sort_key: str, update: str, value: object) -> None:
    kind = "N" if isinstance(value, int) else "S"
    table: Any = world.engine.dynamodb
    table.update_item(
        TableName=world.table,
        Key={"pk": {"S": f"ORG#{world.organisation}"}, "sk": {"S": sort_key}},
        UpdateExpression=update,
        ExpressionAttributeValues={":value": {kind: str(value)}},
        **({"ExpressionAttributeNames": {"#status": "status"}} if "#status" in update else {}),
    )


def delete(world: World, key: Any) -> None:
    world.engine.dynamodb.delete_item(TableName=world.table, Key=key)


def put(world: World, item: Any) -> None:
    pk = {"pk": {"S": f"ORG#{world.organisation}"}}
    world.engine.dynamodb.put_item(TableName=world.table, Item=pk | item)


def nth(world: World, number: int, status: Status = Status.SETTLED) -> Generation:
    """The oldest (0) or the newest (-1) generation with this status."""
    return [each for each in world.generations() if each.status is status][number]


def lose(world: World, number: int) -> None:
    delete(world, nth(world, number).key)


def copy(world: World, number: int) -> None:
    """A generation that nothing was taken for, soon after one that was paid."""
    paid = nth(world, number)
    put(world, paid.to_item() | {"sk": {"S": f"GEN#{paid.created_ms + 500}"}})


def end_otherwise(world: World, number: int, status: Status, other: Status) -> None:
    change(world, f"GEN#{nth(world, number, status).id}", "SET #status = :value", other.value)


def count_otherwise(world: World, *, more: str, less: str) -> None:
    change(world, "ACCOUNT", f"ADD {more} :value", 5)
    change(world, "ACCOUNT", f"ADD {less} :value", -5)


def usage_key(world: World) -> str:
    return f"USAGE#{month_of(world.clock())}#{METER}"


def change_usage(world: World, *, more: str, by: int = 5) -> None:
    change(world, usage_key(world), f"ADD {more} :value", 5)
    change(world, usage_key(world), "ADD credits :value", by)


def charge_a_key_twice(world: World) -> None:
    for at in (-1, -2):
        change(world, f"GEN#{nth(world, at).id}", "SET idempotencyKey = :value", "k")


SETTLED, REFUNDED, RESERVED = Status.SETTLED, Status.REFUNDED, Status.RESERVED
# What happens to the rows, the drift, and what the audit says.
CORRUPTIONS: dict[str, tuple[Callable[[World], None], int, str]] = {
    "credits from nowhere": (
        lambda world: change(world, "ACCOUNT", "ADD credits :value", 10),
        10,
        "but granted - taken + returned is",
    ),
    "lost credits": (
        lambda world: change(world, "ACCOUNT", "ADD credits :value", -5),
        -5,
        "but granted - taken + returned is",
    ),
    "a negative balance": (
        lambda world: change(world, "ACCOUNT", "SET credits = :value", -5),
        5 * 5 - 1000 - PLENTY + 10 - 5,
        "the balance is -5",
    ),
    "an old generation lost": (lambda world: lose(world, 0), -5, "5 credits fewer taken"),
    "a recent generation lost": (lambda world: lose(world, -1), -5, "5 credits fewer taken"),
    "an old generation unpaid": (lambda world: copy(world, 1), 5, "5 credits more taken"),
    "a recent generation unpaid": (lambda world: copy(world, -1), 5, "5 credits more taken"),
    "taken without a generation": (
        lambda world: count_otherwise(world, more="taken", less="credits"),
        -5,
        "5 credits fewer taken",
    ),
    "returned without a refund": (
        lambda world: count_otherwise(world, more="returned", less="credits"),
        -5,
        "but granted - taken + returned is",
    ),
    "an old refund not paid back": (
        lambda world: end_otherwise(world, 0, SETTLED, REFUNDED),
        -5,
        "5 credits more returned",
    ),
    "a recent refund not paid back": (
        lambda world: end_otherwise(world, -1, SETTLED, REFUNDED),
        -5,
        "5 credits more returned",
    ),
    "an old charge that was paid back": (
        lambda world: end_otherwise(world, 0, REFUNDED, SETTLED),
        5,
        "5 credits fewer returned",
    ),
    "a grant lost": (
        lambda world: delete(world, grant_key(world, "more")),
        PLENTY,
        f"{PLENTY} credits fewer granted",
    ),
    "credits taken by no grant": (
        lambda world: delete(world, grant_key(world, "less")),
        -10,
        "10 credits fewer taken",
    ),
    "a grant that did not count": (
        lambda world: put(world, {"sk": {"S": "GRANT#x"}, "credits": {"N": "7"}}),
        -7,
        "7 credits more granted",
    ),
    "usage that nothing was taken for": (
        lambda world: change_usage(world, more="taken"),
        0,
        "5 credits fewer taken than the usage of key_0 in ",
    ),
    "usage returned without a refund": (
        lambda world: change_usage(world, more="returned", by=-5),
        0,
        "5 credits fewer returned than the usage of key_0 in ",
    ),
    "usage of a key that made nothing": (
        lambda world: put(
            world,
            {"sk": {"S": "USAGE#2026-11#key_9"}, "credits": {"N": "5"}, "taken": {"N": "5"}},
        ),
        0,
        "5 credits fewer taken than the usage of key_9 in 2026-11",
    ),
    "usage that does not add up": (
        lambda world: change(world, usage_key(world), "ADD credits :value", 5),
        0,
        "but taken - returned is",
    ),
    "usage lost": (
        lambda world: delete(world, grant_key(world, "") | {"sk": {"S": usage_key(world)}}),
        0,
        "credits more taken than the usage of key_0 in ",
    ),
    "a usage row edited by hand": (
        lambda world: put(world, {"sk": {"S": "USAGE#2026-11"}}),
        0,
        "the row USAGE#2026-11 is malformed",
    ),
    "no account": (
        lambda world: delete(world, grant_key(world, "more") | {"sk": {"S": "ACCOUNT"}}),
        5 * 5 - 1000 - PLENTY + 10,
        "the account is missing",
    ),
    "no place in the list": (
        lambda world: delete(world, listing_key(world.organisation)),
        0,
        "it is not listed",
    ),
    "an old reservation without a lease": (
        lambda world: end_otherwise(world, 0, SETTLED, RESERVED),
        0,
        "is reserved without a lease",
    ),
    "a reservation that is overdue": (
        lambda world: change(
            world,
            f"GEN#{nth(world, 0, RESERVED).id}",
            "SET dueAt = :value",
            int(world.clock()) - 122,
        ),
        0,
        "(reserved) was due 122 s ago",
    ),
    "a key charged twice": (charge_a_key_twice, 0, "were charged for one idempotency key"),
    "a key that stands for nothing": (
        lambda world: change(world, "IDEM#order-0", "SET generation = :value", 1_600_000_000_000),
        0,
        "names generation 1600000000000, which does not exist",
    ),
    "a row edited by hand": (
        lambda world: change(world, f"GEN#{nth(world, 0).id}", "SET #status = :value", "paid"),
        -5,
        "is malformed",
    ),
}


def grant_key(world: World, grant: str) -> dict[str, Any]:
    return {"pk": {"S": f"ORG#{world.organisation}"}, "sk": {"S": f"GRANT#{grant}"}}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_what_the_audit_finds_at_rest_it_finds_beside_requests(world: World, kind: str) -> None:
    corrupt, drift, sentence = CORRUPTIONS[kind]
    corrupt(world)

    audits = [world.audit()]
    if kind not in {"no account", "a negative balance"}:
        audits.append(audit_beside(world, requests(world), calls_between=5)[0])
    for report in audits:
        assert not report.healthy
        assert any(sentence in each for each in report.findings), report.findings
        assert report.drift == drift


def test_of_very_many_findings_the_first_are_shown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.ledger.audit.MAX_FINDINGS", 2)
    for number in range(4):
        put(world, {"sk": {"S": f"GEN#{1_600_000_000_000 + number}"}})
    *shown, rest = world.audit().findings
    assert ([each.startswith("the row GEN#") for each in shown], rest) == ([True] * 2, "2 more")


# The images


def remove_image(world: World) -> str:
    """The newest settled generation loses its object."""
    lost = nth(world, -1)
    world.process().images.delete(lost.image_key)
    return lost.image_key


def delete_image(world: World) -> str:
    """The customer deletes the newest image, and every visit that is planned has been."""
    key = nth(world, -1).image_key
    assert world.delete(world.process(), nth(world, -1).created_ms) is True
    world.settle_down()
    return key


def store_something(world: World, key: str) -> str:
    world.process().images.put(key, b"a picture", "another", world.deadline())
    return key


def store_refunded(world: World, *, due: bool = False) -> str:
    """A refunded generation has an object, perhaps one that the reconciler is to remove."""
    refunded = nth(world, 0, Status.REFUNDED)
    store_something(world, refunded.image_key)
    if due:
        change(world, f"GEN#{refunded.id}", "SET dueAt = :value", int(world.clock()) + 59)
    return refunded.image_key


def leave_tombstone(world: World) -> None:
    key = nth(world, 0, Status.REFUNDED).image_key
    world.process().images.put_tombstone(key, "any", world.deadline())


@pytest.mark.parametrize(
    ("happens", "finding"),
    [
        (lambda _world: None, None),
        (remove_image, "is settled, and its image {key} is not stored"),
        (store_refunded, "is refunded, and its image {key} is stored"),
        (delete_image, None),
        (
            lambda world: store_something(world, delete_image(world)),
            "and its image {key} is stored",
        ),
        (lambda world: store_refunded(world, due=True), None),
        (leave_tombstone, None),
        (
            lambda world: store_something(world, f"{folder(world)}/1600000000000.png"),
            "1600000000000.png is stored, and belongs to no generation",
        ),
    ],
    ids=[
        "nothing",
        "lost",
        "refunded",
        "deleted",
        "not deleted",
        "still due",
        "a tombstone",
        "without a row",
    ],
)
def test_images_that_are_missing_or_should_not_be_there_are_found(
    world: World, happens: Callable[[World], str | None], finding: str | None
) -> None:
    key = happens(world)
    found = audit_images(world)

    if finding is None:
        assert found.findings == ()
        return
    (said,) = found.findings
    assert said.endswith(finding.format(key=key))


def test_a_generation_that_ends_while_its_image_is_looked_for_is_no_finding(world: World) -> None:
    process, numbers = world.process(), count()
    late = process.ledger.reserve(
        world.order(), lambda ms: f"{folder(world)}/{ms}.png", world.deadline()
    )

    def settle(_call: Call) -> None:
        # The objects have been listed, and two rows of many have been read.
        if next(numbers) == 2:
            process.images.put(late.image_key, b"a picture", late.attempt_id, world.deadline())
            process.ledger.settle(late, 1200, world.deadline())

    world.engine = replace(world.engine, dynamodb=cast("Any", SmallPages(world.engine.dynamodb)))
    assert audit_images(world, Network(before_each=settle)).findings == ()
    assert next(numbers) > 5


def folder(world: World) -> str:
    return f"generated/gemini/{world.organisation}"


def audit_images(world: World, network: Network | None = None) -> ImageReport:
    process = world.process(network)
    return process.accounts.audit_images(world.organisation, process.images, world.deadline())


# Every day


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0) as running:
        yield running


def run_daily(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, int], dict[str, Any]]:
    """What the function returns, and its metrics."""
    context: Any = LambdaContext("AuditFunction", "1024", timeout_s=900)
    capsys.readouterr()
    answer = handler.handler({}, context)
    lines = [json.loads(each) for each in capsys.readouterr().out.splitlines()]
    (metrics,) = (line for line in lines if "_aws" in line)
    names = ("AuditDrift", "AuditsUnfinished", "AuditsEnded")
    return answer, {name: value for name in names for value in metrics[name]}


@pytest.mark.real
def test_the_daily_audit_reports_drift_and_what_it_did_not_reach(
    stack: LocalStack,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    healthy = run_daily(capsys)
    stack.open_account("slow", 0)
    stack.aws.client("dynamodb").update_item(
        TableName=stack.table,
        Key=account_key(stack.organisation),
        UpdateExpression="ADD credits :five",
        ExpressionAttributeValues={":five": {"N": "5"}},
    )
    audit = Accounts.audit

    def out_of_time(accounts: Accounts, organisation: str, deadline: Deadline) -> AuditReport:
        if organisation == "slow":
            raise LedgerUnreachable(maybe_done=False)
        return audit(accounts, organisation, deadline)

    monkeypatch.setattr(Accounts, "audit", out_of_time)
    drifted = run_daily(capsys)

    assert healthy == (
        {"organisations": 1, "findings": 0, "unfinished": 0},
        {"AuditDrift": 0, "AuditsUnfinished": 0, "AuditsEnded": 1},
    )
    assert drifted == (
        {"organisations": 2, "findings": 1, "unfinished": 1},
        {"AuditDrift": 1, "AuditsUnfinished": 1, "AuditsEnded": 0},
    )
    logged = {each.message: vars(each) for each in caplog.records}
    books = logged["the books do not add up"]
    assert (books["organisation"], books["drift"]) == (stack.organisation, 5)
    assert logged["the time was too short to audit all"]["not_audited"] == ["slow"]
