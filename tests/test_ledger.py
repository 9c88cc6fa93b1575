"""The decisions of the ledger and of the operator's accounts, on each engine."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from lib.errors import (
    Busy,
    ContentRejected,
    GenerationFailed,
    GenerationInFlight,
    IdempotencyKeyReused,
    InsufficientCredits,
    KeyBudgetExhausted,
    ModelOverloaded,
    OrganisationSuspended,
    RateLimited,
    RequestRejected,
    ServiceUnavailable,
)
from lib.generation import Finished
from lib.ledger.accounts import GrantRejectedError
from lib.ledger.ledger import KeyInFlight, Refund, ReservationGone
from lib.ledger.order import Order, Spender
from lib.ledger.rows import Generation, Grant, Status, listing_key
from lib.ledger.usage import month_of
from lib.picture.aspect_ratio import AspectRatio
from tests.world import METER, Call, Fault, Network, NewWorld, World


@pytest.fixture
def world(new_world: NewWorld) -> World:
    return new_world()


def reserve(world: World, network: Network | None = None, order: Order | None = None) -> Generation:
    """Reserves as a request does."""
    return world.process(network).ledger.reserve(
        order or world.order(), lambda ms: f"generated/gemini/{ms}.png", world.deadline()
    )


def test_a_reservation_debits_five_credits_and_opens_a_generation(new_world: NewWorld) -> None:
    world = new_world(credits_=12)
    reserved = reserve(world)
    assert world.balance() == 7
    (stored,) = world.generations()
    assert stored == reserved
    assert stored.status is Status.RESERVED
    assert stored.credits == 5
    assert stored.due_at == int(world.clock()) + 59


def test_without_five_credits_nothing_is_written_and_the_balance_is_reported(
    new_world: NewWorld,
) -> None:
    world = new_world(credits_=4)
    with pytest.raises(InsufficientCredits) as refused:
        reserve(world)
    assert refused.value.body() == {
        "error": "Insufficient credits",
        "creditsRequired": 5,
        "creditsRemaining": 4,
    }
    assert world.generations() == []
    with pytest.raises(InsufficientCredits) as refused:
        reserve(world, order=Order("unknown", "a red fox", AspectRatio.SQUARE))
    assert refused.value.remaining == 0


def test_a_suspension_refuses_the_debit_itself_and_leaves_what_was_accepted(
    new_world: NewWorld,
) -> None:
    world = new_world(credits_=15)
    process, deadline = world.process(), world.deadline()
    paid = world.order("paid")
    first, running = reserve(world, order=paid), reserve(world)
    process.ledger.settle(first, 1200, deadline)

    def suspend(_call: Call) -> None:
        process.accounts.suspend(world.organisation, "unpaid", "an operator", deadline)

    # The request has been authenticated, and its debit is about to be written.
    with pytest.raises(OrganisationSuspended) as refused:
        reserve(world, Network(before_each=suspend))
    assert refused.value.status == 403
    assert refused.value.body() == {"error": "This organisation is suspended"}
    assert refused.value.headers() == {
        "X-Error-Code": "organisation_suspended",
        "X-Should-Retry": "false",
    }
    assert world.balance() == 5
    assert reserve(world, order=paid).id == first.id
    assert process.ledger.refund(running, "no_image", deadline) is Refund.MADE
    process.accounts.resume(world.organisation, deadline)
    assert reserve(world).status is Status.RESERVED


@pytest.mark.parametrize(("budget", "images"), [(0, 0), (4, 0), (5, 1), (12, 2)])
def test_a_key_spends_its_budget_and_no_credit_more(
    new_world: NewWorld, budget: int, images: int
) -> None:
    world = new_world(budget=budget)
    paid = [reserve(world, order=world.order(f"paid {number}")) for number in range(images)]
    with pytest.raises(KeyBudgetExhausted) as refused:
        reserve(world)
    assert refused.value.status == 402
    assert refused.value.body() == {
        "error": "The monthly budget of this API key is used up",
        "creditsRequired": 5,
        "creditsRemaining": budget - 5 * images,
    }
    assert refused.value.headers() == {
        "X-Error-Code": "key_budget_exhausted",
        "X-Should-Retry": "false",
    }
    assert (world.balance(), world.used()) == (100 - 5 * images, 5 * images)
    assert world.generations() == paid
    for number, each in enumerate(paid):
        world.process().ledger.settle(each, 1, world.deadline())
        assert reserve(world, order=world.order(f"paid {number}")).id == each.id
    assert world.audit().healthy


def test_a_refused_budget_comes_after_every_refusal_of_the_account(new_world: NewWorld) -> None:
    world = new_world(credits_=4, rate_limit=0, budget=0)
    accounts, deadline = world.process().accounts, world.deadline()
    accounts.suspend(world.organisation, "unpaid", "ann", deadline)
    refusals: list[type[Exception]] = []
    steps: list[Callable[[], object]] = [
        lambda: accounts.resume(world.organisation, deadline),
        lambda: accounts.grant(world.organisation, Grant("g", 5, "", "ann", 1), deadline),
        lambda: accounts.set_rate_limit(world.organisation, 60, "ann", deadline),
        lambda: world.clock.sleep(60),
    ]
    for resolve in steps:
        with pytest.raises(RequestRejected) as refused:
            reserve(world)
        refusals.append(refused.type)
        resolve()
    expected = [OrganisationSuspended, InsufficientCredits, RateLimited, KeyBudgetExhausted]
    assert refusals == expected
    with pytest.raises(KeyBudgetExhausted):
        reserve(world)


def test_keys_have_budgets_of_their_own_and_rotated_ones_share_one(new_world: NewWorld) -> None:
    world = new_world(budget=5)
    first = reserve(world, order=world.order(api_key="old"))
    with pytest.raises(KeyBudgetExhausted):
        reserve(world, order=world.order(api_key="new"))
    other = replace(world.order(), spender=Spender("other", "other", 5))
    free = replace(world.order(), spender=Spender("free", "free"))
    by_hand = replace(world.order(), spender=None)
    for order in (other, free, free, by_hand):
        reserve(world, order=order)
    world.process().ledger.refund(first, "no_image", world.deadline())
    assert reserve(world, order=world.order(api_key="new")).key_id == "new"
    month = month_of(world.clock())
    usage = world.process().accounts.usage(world.organisation, month, world.deadline())
    assert {each.meter: (each.credits, each.images) for each in usage} == {
        METER: (5, 1),
        "other": (5, 1),
        "free": (10, 2),
    }
    assert world.audit().healthy


def test_a_request_counts_in_the_month_of_its_creation_wherever_it_ends(
    new_world: NewWorld,
) -> None:
    world = new_world(budget=5)
    world.clock.now_s = datetime(2026, 11, 30, 23, 59, 59, 998_000, UTC).timestamp()
    november = reserve(world)
    with pytest.raises(KeyBudgetExhausted):
        reserve(world, order=world.order("k"))
    world.clock.sleep(0.002)
    december = reserve(world, order=world.order("k"))
    assert (world.used("2026-11"), world.used("2026-12")) == (5, 5)
    for each in (november, december):
        with pytest.raises(KeyBudgetExhausted):
            reserve(world)
        world.process().ledger.refund(each, "no_image", world.deadline())
    assert (world.used("2026-11"), world.used("2026-12")) == (0, 0)
    assert world.audit().healthy


def test_a_request_that_moves_into_the_next_month_spends_from_that_months_budget(
    new_world: NewWorld,
) -> None:
    world = new_world(budget=5)
    world.clock.now_s = datetime(2026, 11, 30, 23, 59, 59, 999_000, UTC).timestamp()
    reserve(world)
    # The last millisecond of November is taken, and so is its budget.
    moved = reserve(world, Network(before_each=lambda _call: world.clock.sleep(0.001)))
    assert moved.created_ms == int(datetime(2026, 12, 1, tzinfo=UTC).timestamp() * 1000)
    assert (world.used("2026-11"), world.used("2026-12")) == (5, 5)


def test_a_row_that_was_never_counted_is_refunded_without_its_usage(world: World) -> None:
    earlier = reserve(world)
    table: Any = world.engine.dynamodb
    table.update_item(TableName=world.table, Key=earlier.key, UpdateExpression="REMOVE meter")
    world.let_leases_pass()
    world.reconcile(world.process())
    assert (world.balance(), world.used()) == (100, 5)


def test_generations_of_one_millisecond_get_different_ids(world: World) -> None:
    made = [reserve(world).created_ms for _ in range(4)]
    assert made == [made[0], made[0] + 1, made[0] + 2, made[0] + 3]
    assert [each.image_key for each in world.generations()] == [
        f"generated/gemini/{ms}.png" for ms in made
    ]


def test_a_debit_whose_response_was_lost_is_not_repeated(world: World) -> None:
    reserved = reserve(world, Network(0, Fault.RESPONSE_LOST))
    assert world.balance() == 95
    assert world.generations() == [reserved]


class Refusing(Network):
    """Every call of DynamoDB meets ``fault``."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._fault = fault

    def call(self, call: Call, effect: Callable[[], object]) -> object:
        return Network(0, self._fault).call(call, effect)


def test_conflicts_until_the_deadline_are_a_429_without_a_debit(world: World) -> None:
    with pytest.raises(Busy) as refused:
        reserve(world, Refusing(Fault.CONFLICT))
    assert refused.value.status == 429
    assert int(refused.value.headers()["Retry-After"]) >= 1
    assert world.balance() == 100
    assert world.generations() == []


def test_a_table_that_throttles_until_the_deadline_is_our_fault_and_not_the_customers(
    world: World,
) -> None:
    with pytest.raises(ServiceUnavailable):
        reserve(world, Refusing(Fault.THROTTLED))
    assert world.balance() == 100
    assert world.generations() == []


@pytest.mark.parametrize(("fault", "balance"), [(Fault.OUTAGE, 100), (Fault.LOST_THEN_OUTAGE, 95)])
def test_an_outage_at_the_debit_is_a_500_and_the_reconciler_refunds_what_was_debited(
    world: World, fault: Fault, balance: int
) -> None:
    with pytest.raises(ServiceUnavailable):
        reserve(world, Network(0, fault))
    assert world.balance() == balance
    world.settle_down()
    assert world.balance() == 100
    assert world.violations() == []


def test_a_repeated_refund_pays_back_once(world: World) -> None:
    ledger = world.process().ledger
    reserved = reserve(world)
    assert ledger.refund(reserved, "no_image", world.deadline()) is Refund.MADE
    assert ledger.refund(reserved, "no_image", world.deadline()) is Refund.MADE_BEFORE
    (stored,) = world.generations()
    assert (stored.status, stored.failure_code) == (Status.REFUNDED, "no_image")
    assert world.balance() == 100


def test_a_settled_generation_stays_settled(world: World) -> None:
    ledger = world.process().ledger
    reserved = reserve(world)
    ledger.settle(reserved, 1200, world.deadline())
    ledger.settle(reserved, 3400, world.deadline())
    assert ledger.refund(reserved, "no_image", world.deadline()) is Refund.SETTLED
    (stored,) = world.generations()
    assert (stored.status, stored.duration_ms) == (Status.SETTLED, 1200)
    assert world.balance() == 95


def test_a_refunded_generation_cannot_be_settled(world: World) -> None:
    ledger = world.process().ledger
    reserved = reserve(world)
    ledger.refund(reserved, "no_image", world.deadline())
    with pytest.raises(ReservationGone):
        ledger.settle(reserved, 1200, world.deadline())
    assert world.balance() == 100


def test_an_idempotency_key_in_flight_is_refused_and_a_settled_one_is_replayed_without_credits(
    new_world: NewWorld,
) -> None:
    world = new_world(credits_=5)
    first = reserve(world, order=world.order("k"))
    in_flight = world.request(world.process(), "k")
    assert isinstance(in_flight, GenerationInFlight)
    assert int(in_flight.headers()["Retry-After"]) >= 1
    world.process().ledger.settle(first, 1200, world.deadline())
    replay = reserve(world, order=world.order("k"))
    assert (replay.created_ms, replay.status) == (first.created_ms, Status.SETTLED)
    assert world.balance() == 0


def test_an_idempotency_key_with_another_body_is_refused(world: World) -> None:
    reserve(world, order=world.order("k"))
    with pytest.raises(IdempotencyKeyReused):
        reserve(world, order=world.order("k", prompt="a blue fox"))
    assert world.balance() == 95


def test_after_a_refund_the_idempotency_key_is_free_for_any_body(world: World) -> None:
    ledger = world.process().ledger
    first = reserve(world, order=world.order("k"))
    ledger.refund(first, "no_image", world.deadline())
    second = reserve(world, order=world.order("k", prompt="a blue fox"))
    assert second.created_ms != first.created_ms
    with pytest.raises(KeyInFlight):
        reserve(world, order=world.order("k", prompt="a blue fox"))
    assert world.balance() == 95


def test_an_idempotency_key_expires_after_24_hours_although_its_row_remains(world: World) -> None:
    first = reserve(world, order=world.order("k"))
    world.process().ledger.settle(first, 1200, world.deadline())
    (row,) = (each for each in world.rows() if each["sk"]["S"] == "IDEM#k")
    assert int(row["expiresAt"]["N"]) == int(world.clock()) + 24 * 60 * 60
    world.clock.sleep(24 * 60 * 60 - 1)
    assert reserve(world, order=world.order("k")).created_ms == first.created_ms
    world.clock.sleep(1)
    assert reserve(world, order=world.order("k")).status is Status.RESERVED


def test_two_organisations_may_use_the_same_idempotency_key(new_world: NewWorld) -> None:
    one = new_world()
    other = new_world()
    reserve(one, order=one.order("k"))
    assert reserve(other, order=other.order("k")).status is Status.RESERVED


def test_the_limit_of_a_minute_holds_and_the_next_minute_resets_it(new_world: NewWorld) -> None:
    world = new_world(credits_=100, rate_limit=3)
    for _ in range(3):
        reserve(world)
    world.clock.sleep(20)
    with pytest.raises(RateLimited) as refused:
        reserve(world)
    assert refused.value.headers() == {
        "X-Error-Code": "rate_limited",
        "X-Should-Retry": "true",
        "Retry-After": "40",
        "RateLimit": '"default";r=0;t=40',
        "RateLimit-Policy": '"default";q=3;w=60',
    }
    assert world.balance() == 85
    world.clock.sleep(40)
    reserve(world)
    assert world.balance() == 80


@pytest.mark.parametrize("behind_s", [60, 90, 800])
def test_a_clock_that_is_minutes_behind_does_not_reopen_the_minute(
    new_world: NewWorld, behind_s: int
) -> None:
    world = new_world(rate_limit=2)
    reserve(world)
    reserve(world)
    world.clock.sleep(-behind_s)
    with pytest.raises(RateLimited) as refused:
        reserve(world)
    assert 1 <= refused.value.retry_after_s <= 60


def test_sandboxes_whose_clocks_differ_by_minutes_share_one_limit(new_world: NewWorld) -> None:
    world = new_world(credits_=500, rate_limit=10)
    admitted = 0
    for number in range(40):
        ahead_s = -90 if number % 2 else 90
        world.clock.sleep(ahead_s)
        try:
            reserve(world)
            admitted += 1
        except RateLimited:
            pass
        world.clock.sleep(-ahead_s)
    assert admitted == 10


@pytest.mark.parametrize("ahead_s", [0, 90])
def test_a_minute_that_another_request_opened_meanwhile_is_not_opened_again(
    new_world: NewWorld, ahead_s: int
) -> None:
    world = new_world(rate_limit=1)
    world.clock.sleep(60)

    def another_opens_it(_call: Call) -> None:
        if len(mine.calls) == 2:
            world.clock.sleep(ahead_s)
            reserve(world)
            world.clock.sleep(-ahead_s)

    mine = Network(before_each=another_opens_it)
    with pytest.raises(RateLimited):
        reserve(world, mine)
    assert world.balance() == 95


def test_a_minute_that_no_clock_can_have_opened_yet_is_replaced(new_world: NewWorld) -> None:
    world = new_world(rate_limit=1)
    world.clock.sleep(24 * 60 * 60)
    reserve(world)
    world.clock.sleep(-24 * 60 * 60)
    reserve(world)
    with pytest.raises(RateLimited):
        reserve(world)


@pytest.mark.parametrize(
    ("failure", "limited"), [(ModelOverloaded(), False), (ContentRejected(), True)], ids=repr
)
def test_only_a_failure_that_is_not_the_prompts_gives_its_place_in_the_minute_back(
    new_world: NewWorld, failure: GenerationFailed, *, limited: bool
) -> None:
    world = new_world(rate_limit=2)
    for _ in range(2):
        assert world.request(world.process(failure=failure)) is failure
    assert isinstance(world.request(world.process()), RateLimited if limited else Finished)


@pytest.mark.parametrize("half", ["generation", "account"])
def test_the_audit_finds_a_restored_table_that_holds_half_of_a_reservation(
    world: World, half: str
) -> None:
    table, before = world.engine.dynamodb, world.rows()
    reserve(world)
    (row,) = (each for each in world.rows() if each["sk"]["S"].startswith("GEN#"))
    if half == "generation":
        (account,) = (each for each in before if each["sk"]["S"] == "ACCOUNT")
        table.put_item(TableName=world.table, Item=account)
    else:
        table.delete_item(TableName=world.table, Key={name: row[name] for name in ("pk", "sk")})
    assert world.audit().drift == (5 if half == "generation" else -5)
    # The reconciler neither hides it nor adds to it.
    world.settle_down()
    assert world.audit().drift == (5 if half == "generation" else -5)


@pytest.mark.parametrize("behind_s", [0, 60])
def test_a_place_is_not_given_back_to_a_later_minute(new_world: NewWorld, behind_s: int) -> None:
    world = new_world(rate_limit=1)
    slow = reserve(world)
    world.clock.sleep(60)
    reserve(world)
    world.clock.sleep(-behind_s)
    refund = world.process().ledger.refund
    assert refund(slow, "model_timeout", world.deadline(), frees_place=True) is Refund.MADE
    world.clock.sleep(behind_s)
    with pytest.raises(RateLimited):
        reserve(world)
    assert world.audit().healthy


def test_a_limit_of_zero_refuses_every_request(new_world: NewWorld) -> None:
    world = new_world(rate_limit=0)
    with pytest.raises(RateLimited):
        reserve(world)
    assert world.balance() == 100


def test_an_account_without_a_limit_has_the_default_of_60(world: World) -> None:
    key = {"pk": {"S": "ORG#byhand"}, "sk": {"S": "ACCOUNT"}}
    world.engine.dynamodb.put_item(TableName=world.table, Item={**key, "credits": {"N": "1000"}})
    order = Order("byhand", "a red fox", AspectRatio.SQUARE)
    reserve(world, order=order)
    world.engine.dynamodb.update_item(
        TableName=world.table,
        Key=key,
        UpdateExpression="SET rateUsed = rateUsed + :more",
        ExpressionAttributeValues={":more": {"N": "58"}},
    )
    reserve(world, order=order)
    with pytest.raises(RateLimited):
        reserve(world, order=order)


def test_a_repeated_grant_counts_once(new_world: NewWorld) -> None:
    world = new_world(credits_=0)
    accounts = world.process().accounts
    grant = Grant("invoice-7", 50, "May", "ann", 1)
    accounts.grant(world.organisation, grant, world.deadline())
    accounts.grant(world.organisation, grant, world.deadline())
    assert world.balance() == 50
    with pytest.raises(GrantRejectedError, match="another amount"):
        accounts.grant(
            world.organisation, Grant("invoice-7", 60, "May", "ann", 1), world.deadline()
        )


def test_a_grant_that_is_rejected_says_why(new_world: NewWorld) -> None:
    world = new_world(credits_=10)
    accounts = world.process().accounts
    with pytest.raises(GrantRejectedError, match="has 10 credits"):
        accounts.grant(world.organisation, Grant("fix", -11, "", "ann", 1), world.deadline())
    with pytest.raises(GrantRejectedError, match="create it first"):
        accounts.grant("unknown", Grant("g", 5, "", "ann", 1), world.deadline())
    accounts.grant(world.organisation, Grant("fix-2", -10, "", "ann", 1), world.deadline())
    assert world.balance() == 0
    assert world.audit().healthy


def test_an_account_is_listed_and_creating_it_again_changes_nothing(new_world: NewWorld) -> None:
    world = new_world(credits_=10, rate_limit=7)
    accounts = world.process().accounts
    accounts.create("neighbour", world.deadline())
    # An account that has lost its place in the list is listed again.
    world.engine.dynamodb.delete_item(TableName=world.table, Key=listing_key(world.organisation))
    accounts.create(world.organisation, world.deadline(), rate_limit=99)
    reserve(world)
    account = accounts.account(world.organisation, world.deadline())
    assert account is not None
    assert (account.credits, account.rate_limit) == (5, 7)
    assert accounts.account("unknown", world.deadline()) is None
    every = dict(accounts.all(world.deadline()))
    assert every[world.organisation] == account
    assert every.keys() == {world.organisation, "neighbour"}
    assert sorted(every) == accounts.organisations(world.deadline())


def test_grants_are_listed_by_organisation(new_world: NewWorld) -> None:
    world = new_world(credits_=0)
    accounts = world.process().accounts
    accounts.create("neighbour", world.deadline())
    given = [Grant("a", 50, "May", "ann", 1), Grant("b", -20, "June", "bob", 2)]
    for grant in given:
        accounts.grant(world.organisation, grant, world.deadline())
    accounts.grant("neighbour", Grant("c", 5, "", "ann", 3), world.deadline())
    reserve(world)
    found = [
        each for each in accounts.grants(world.organisation, world.deadline()) if each in given
    ]
    assert found == given
    (other,) = accounts.grants("neighbour", world.deadline())
    assert other.grant_id == "c"


def test_the_audit_finds_credits_without_a_grant(new_world: NewWorld) -> None:
    world = new_world(credits_=50)
    reserve(world)
    assert world.audit().healthy
    world.engine.dynamodb.update_item(
        TableName=world.table,
        Key={"pk": {"S": f"ORG#{world.organisation}"}, "sk": {"S": "ACCOUNT"}},
        UpdateExpression="SET credits = credits + :ten",
        ExpressionAttributeValues={":ten": {"N": "10"}},
    )
    found = world.audit()
    assert (found.drift, found.healthy) == (10, False)
    assert (found.granted, found.credits, found.reserved) == (50, 55, 1)


def test_the_audit_finds_an_abandoned_reservation(world: World) -> None:
    reserved = reserve(world)
    world.let_leases_pass()
    assert world.audit().healthy
    world.clock.sleep(180)
    (finding,) = world.audit().findings
    assert reserved.id in finding
