"""An image and a prompt are deleted, by their customer or an operator; their money stays.

The routes run as in ``tests/test_contract.py``: in this process, and (marked ``real``) on the built
artifact in Lambda's own runtime.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from infra.cli import main
from infra.local.stack import LocalStack
from lib.deadline import WORKER_LEASE_S, Deadline
from lib.errors import GenerationReserved, ImageDeleted, NotFound
from lib.generation import Finished
from lib.ledger.accounts import Accounts
from lib.ledger.audit import AuditReport
from lib.ledger.reconciliation import Reconciled
from lib.ledger.table import Table
from tests.customer import (
    GENERATIONS,
    Customer,
    Reply,
    blocked_model,
    bucket_refuses,
    fetch,
    positive,
    prompts_sent,
    scripted_stack,
    wait_for_the_model,
)
from tests.engines import Engine
from tests.stacks import SLOW_STACKS
from tests.world import Call, Fault, Network, World


@pytest.fixture(scope="module", params=SLOW_STACKS)
def stack(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    with scripted_stack(request) as running:
        yield running


@pytest.fixture
def world(moto_engine: Engine) -> Iterator[World]:
    with World(moto_engine) as made:
        yield made


def delete(customer: Customer, generation_id: str, key: str | None = None) -> Reply:
    headers = {"Authorization": f"Bearer {customer.key if key is None else key}"}
    return fetch(f"{customer.stack.url}{GENERATIONS}/{generation_id}", "DELETE", headers=headers)


def newest(customer: Customer) -> Any:
    return customer.history()[0]


def audit(customer: Customer) -> AuditReport:
    table = Table(customer.stack.aws.client("dynamodb"), customer.stack.table)
    return Accounts(table).audit(customer.organisation, Deadline(10))


def reconcile(stack: LocalStack) -> Any:
    return stack.invoke("ReconcileFunction", {})


# A customer's deletion


def test_a_deleted_image_is_gone_at_once_and_what_it_cost_stays(customer: Customer) -> None:
    url = customer.generate("A secret plan", aspectRatio="3:2").json()["imageUrl"]
    before, audited = newest(customer), audit(customer)
    assert fetch(url).status == 200

    deleted, again = (delete(customer, before["id"]) for _ in range(2))

    for answer in (deleted, again):
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["x-request-id"]
    assert fetch(url).status == 404
    after = customer.get(f"{GENERATIONS}/{before['id']}").json()
    assert after == newest(customer)
    assert after.pop("deletedAt")[:19] >= before["createdAt"][:19]
    assert after == {name: before[name] for name in before.keys() - {"prompt", "imageUrl"}}
    assert (customer.balance(), audit(customer)) == (95, audited)
    assert audited.healthy


def test_the_key_of_a_deleted_image_makes_no_second_one(
    stack: LocalStack, customer: Customer
) -> None:
    customer.generate("A red kite", idempotency_key="order-1")
    delete(customer, newest(customer)["id"])

    again = customer.generate("A red kite", idempotency_key="order-1")
    other = customer.generate("A blue kite", idempotency_key="order-1")

    assert (again.status, other.status) == (422, 422)
    assert again.json() == {"error": "The image of this Idempotency-Key was deleted"}
    assert again.headers["x-error-code"] == "image_deleted"
    assert again.headers["x-should-retry"] == "false"
    assert other.headers["x-error-code"] == "idempotency_key_reused"
    assert (customer.balance(), prompts_sent(stack).count("A red kite")) == (95, 1)


def test_a_refund_is_kept_and_its_prompt_is_not(customer: Customer) -> None:
    customer.generate("A refused plan [fail:safety]", idempotency_key="order-1")
    refunded = newest(customer)

    assert delete(customer, refunded["id"]).status == 204

    shown = newest(customer)
    assert (shown["message"], shown["creditsRefunded"]) == ("Content policy violation", 5)
    assert "deletedAt" in shown
    assert "prompt" not in shown
    # The key is free, as after any refund.
    assert customer.generate("A plan", idempotency_key="order-1").status == 200


def test_only_its_owner_may_delete_a_generation(stack: LocalStack, customer: Customer) -> None:
    url = customer.generate().json()["imageUrl"]
    found = newest(customer)["id"]

    strangers = delete(Customer(stack), found)
    refused = [delete(customer, found, key) for key in ("", f"{customer.key}0")]
    missing = [
        delete(customer, text) for text in ("1700000000000", "x", f"{found}%00", f"{found}.png")
    ]

    assert strangers.body == missing[0].body == b'{"error":"Not found"}'
    assert {answer.status for answer in [strangers, *missing]} == {404}
    for answer in refused:
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert fetch(url).status == 200
    assert newest(customer)["imageUrl"] == url


def test_a_generation_reserved_is_not_deleted(stack: LocalStack, customer: Customer) -> None:
    with blocked_model(stack, "Still being drawn") as released:
        accepted = customer.accept("Still being drawn")
        wait_for_the_model(stack, "Still being drawn")
        refused = delete(customer, accepted.json()["id"])
        released.set()
        ended = customer.ending(accepted)

    assert (refused.status, refused.json()) == (
        409,
        {"error": "This generation is still in progress"},
    )
    assert refused.headers["x-error-code"] == "generation_reserved"
    assert positive(refused.headers["retry-after"]) < 10
    assert (ended["status"], ended["prompt"]) == ("settled", "Still being drawn")
    assert delete(customer, ended["id"]).status == 204


def test_an_image_that_the_store_keeps_is_deleted_by_the_reconciler(
    stack: LocalStack, customer: Customer
) -> None:
    url = customer.generate("A secret plan").json()["imageUrl"]
    found = newest(customer)["id"]

    with bucket_refuses(stack, "DeleteObject"):
        answer = delete(customer, found)
    assert (answer.status, answer.headers["x-error-code"]) == (500, "service_unavailable")
    assert answer.headers["x-should-retry"] == "true"
    assert "prompt" not in newest(customer)
    assert fetch(url).status == 200

    assert reconcile(stack)["swept"] == 1
    assert fetch(url).status == 404


# What is left to do, and when


def settled(world: World, key: str | None = None) -> None:
    assert isinstance(world.request(world.process(), key), Finished)


def test_the_reconciler_comes_once_more_after_a_fresh_image_and_not_after_an_old_one(
    world: World,
) -> None:
    settled(world)
    (made,) = world.generations()
    assert world.delete(world.process()) is True
    (fresh,) = world.generations()
    assert fresh.due_at == (made.settled_at or 0) + WORKER_LEASE_S
    assert world.reconcile(world.process()) == Reconciled()
    world.clock.sleep(WORKER_LEASE_S)
    assert world.reconcile(world.process()) == Reconciled(swept=1)
    (old,) = world.generations()
    assert old.due_at is None

    world.delete(world.process())
    assert world.generations() == [old]


def test_a_deletion_that_lost_the_ledger_removes_the_image_all_the_same(world: World) -> None:
    settled(world)
    assert world.delete(world.process(Network(2, Fault.OUTAGE))) is True
    assert world.stored_keys() == set()
    world.settle_down()
    assert world.violations() == []


def test_a_refunds_own_visit_stays_planned(world: World) -> None:
    assert world.request(world.process(Network(1, Fault.KILLED_BEFORE))) is None
    world.let_leases_pass()
    world.reconcile(world.process())
    (refunded,) = world.generations()
    assert refunded.due_at is not None
    tombstone = world.stored_keys()

    assert world.delete(world.process()) is True

    assert [each.due_at for each in world.generations()] == [refunded.due_at]
    assert world.stored_keys() == tombstone
    world.settle_down()
    assert world.violations() == []


def test_a_settled_image_that_is_due_and_not_deleted_stays(world: World) -> None:
    settled(world)
    (found,) = world.generations()
    world.process().ledger.revisit(found, int(world.clock()), world.deadline())
    world.reconcile(world.process())
    assert world.stored_keys() == {found.image_key}


def test_a_repeated_deletion_leaves_the_later_visit_as_it_is_planned(world: World) -> None:
    settled(world)
    world.delete(world.process())
    before = world.generations()
    # It dies before it plans anything.
    assert world.delete(world.process(Network(1, Fault.KILLED_BEFORE))) is False
    assert world.generations() == before


def test_a_late_worker_removes_the_image_that_its_customer_has_deleted(world: World) -> None:
    world.accept(world.process())
    (message,) = world.mailbox.messages

    def another_delivery_is_faster(call: Call) -> None:
        if call.operation == "put_object" and not world.deliveries["other"]:
            world.deliveries["other"] += 1
            world.work(world.process(), message)
            assert world.delete(world.process()) is True

    assert world.work(world.process(Network(before_each=another_delivery_is_faster)), message)

    assert world.stored_keys() == set()
    assert world.balance() == 95
    world.settle_down()
    assert world.violations() == []


def test_a_tombstone_that_comes_after_a_deletion_is_removed(world: World) -> None:
    world.accept(world.process())
    world.let_leases_pass()

    def it_is_made_and_deleted(call: Call) -> None:
        if call.operation == "get_object" and not world.deliveries:
            # By a worker whose clock is behind, so that the deletion expects no other writer.
            world.deliver(world.process(clock_ahead_s=-WORKER_LEASE_S))
            assert world.delete(world.process()) is True

    world.reconcile(world.process(Network(before_each=it_is_made_and_deleted)))

    assert len(world.stored_keys()) == 1
    world.settle_down()
    assert world.violations() == []


def test_a_deletion_is_refused_as_it_says(world: World) -> None:
    assert isinstance(world.delete(world.process(), 1), NotFound)
    world.accept(world.process())
    before = world.rows()
    assert isinstance(world.delete(world.process()), GenerationReserved)
    assert world.rows() == before


def test_a_key_counts_for_a_day_after_its_image_was_deleted(world: World) -> None:
    settled(world, "order-1")
    world.delete(world.process())
    assert isinstance(world.request(world.process(), "order-1"), ImageDeleted)
    world.clock.sleep(24 * 60 * 60)
    assert isinstance(world.request(world.process(), "order-1"), Finished)
    assert world.balance() == 90


# An operator's deletion

Operator = Callable[..., tuple[int, str, str]]


@pytest.fixture
def operator(capsys: pytest.CaptureFixture[str]) -> Operator:
    """Runs a command line on the stack; exit status, standard output, standard error."""

    def run(line: str) -> tuple[int, str, str]:
        # What the functions of the stack have logged until now.
        capsys.readouterr()
        return (main(line.split()), *capsys.readouterr())

    return run


@pytest.mark.parametrize("named", ["by its id", "by its URL"])
def test_an_operator_takes_a_picture_down(
    customer: Customer, operator: Operator, named: str
) -> None:
    url = customer.generate("A forged note").json()["imageUrl"]
    found = newest(customer)["id"]
    target = found if named == "by its id" else f"{url}?from=a-report"

    unconfirmed = operator(f"generations delete {customer.organisation} {target}")
    assert (unconfirmed[0], fetch(url).status) == (1, 200)
    status, out, err = operator(f"generations delete {customer.organisation} {target} --yes")

    assert status == 0, err
    assert out.startswith(f"{found} of {customer.organisation}: deleted 20")
    assert "a CDN may serve copies" in err
    assert fetch(url).status == 404
    shown = json.loads(operator(f"generations show {customer.organisation} {found} --json")[1])
    assert (shown["prompt"], shown["imageUrl"]) == (None, None)
    assert shown["deletedAt"]
    assert "(deleted)" in operator(f"generations list {customer.organisation}")[1]


def test_an_operators_mistakes_delete_nothing(
    stack: LocalStack, customer: Customer, operator: Operator
) -> None:
    url = customer.generate().json()["imageUrl"]
    other = Customer(stack)
    mistakes = {
        f"{customer.organisation} 1700000000000": "no such generation",
        f"{customer.organisation} {url.replace('.png', 'x.png')}": "no such generation",
        f"{customer.organisation} https://example.com/cat.png": "neither",
        f"{other.organisation} {url}": f"belongs to {customer.organisation}",
    }
    for named, reason in mistakes.items():
        status, out, err = operator(f"generations delete {named} --yes")
        assert (status, out) == (1, "")
        assert reason in err
    assert fetch(url).status == 200


def test_cloudfront_forgets_what_an_operator_deletes(
    customer: Customer, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = customer.generate().json()["imageUrl"]
    path = f"/generated/gemini/{url.split('/generated/gemini/')[1]}"
    client = boto3.client("cloudfront", region_name="us-east-1")
    of_others = boto3.client

    def build(service: str, **options: Any) -> Any:
        return client if service == "cloudfront" else of_others(service, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("boto3.client", build)
    monkeypatch.setenv("IMAGE_DISTRIBUTION_ID", "E1EXAMPLE")
    with Stubber(client) as cloudfront:
        batch = {"Paths": {"Quantity": 1, "Items": [path]}, "CallerReference": ANY}
        asked = {"DistributionId": "E1EXAMPLE", "InvalidationBatch": batch}
        cloudfront.add_client_error("create_invalidation", "TooManyInvalidationsInProgress")
        cloudfront.add_response("create_invalidation", {}, asked)
        line = f"generations delete {customer.organisation} {url} --yes --json"
        refused, repeated = operator(line), operator(line)
        cloudfront.assert_no_pending_responses()

    assert (refused[0], fetch(url).status) == (1, 404)
    assert "copies may be served for a day" in refused[2]
    assert json.loads(repeated[1])["invalidated"] is True


def test_an_erased_organisation_has_its_money_and_nothing_else(
    stack: LocalStack, customer: Customer, operator: Operator
) -> None:
    name = customer.organisation
    urls = [customer.generate(f"Secret {n}").json()["imageUrl"] for n in range(3)]
    customer.generate("Secret [fail:safety]")
    before, audited = listed(operator, name), audit(customer)
    unconfirmed, misspelt = (
        operator(f"org erase {name}{more}") for more in ("", f" --confirm {name}x")
    )
    assert (unconfirmed[0], misspelt[0], fetch(urls[0]).status) == (1, 1, 200)

    with bucket_refuses(stack, "DeleteObject"):
        stopped = operator(f"org erase {name} --confirm {name} --json")
    again, once_more = (
        json.loads(operator(f"org erase {name} --confirm {name} --json")[1]) for _ in range(2)
    )

    counts = [json.loads(stopped[1]), again, once_more]
    assert stopped[0] == 1
    assert [(each["deleted"], each["failed"]) for each in counts] == [(1, 3), (3, 0), (3, 0)]
    assert [each["keysRevoked"] for each in counts] == [1, 0, 0]
    assert [fetch(url).status for url in urls] == [404] * 3
    after = listed(operator, name)
    money = ("id", "status", "credits", "settledAt", "refundedAt")
    assert [[each[field] for field in money] for each in after] == [
        [each[field] for field in money] for each in before
    ]
    assert not [each for each in after if each["prompt"] or each["imageUrl"]]
    assert audit(customer) == audited
    shown = json.loads(operator(f"org show {name} --json")[1])
    assert (shown["credits"], shown["liveKeys"], shown["suspension"]) == (85, 0, "erased")


def listed(operator: Operator, organisation: str) -> Any:
    return json.loads(operator(f"generations list {organisation} --json")[1])["generations"]
