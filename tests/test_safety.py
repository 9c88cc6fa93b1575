"""What a review's exploits meet now: limits, private answers, and a log that says who it was.

SECURITY.md names these tests beside the threats.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from handlers.dependencies import dependencies
from infra.local.stack import LocalStack
from lib.deadline import Deadline
from lib.errors import ContentRejected, OrganisationSuspended, ServiceError
from lib.generation import Finished
from lib.keys.format import new_key
from lib.keys.key_ring import KeyRing
from lib.ledger.ledger import Ledger
from lib.ledger.order import Order
from lib.ledger.rows import Generation, Status
from lib.ledger.table import Table
from lib.limits import (
    MAX_NAMES,
    READS_AT_ONCE,
    READS_PER_S,
    UNPAID_AT_ONCE,
    UNPAID_PER_S,
    OrganisationLimit,
    TokenBuckets,
    read_limit,
    unpaid_limit,
)
from lib.picture.aspect_ratio import AspectRatio
from tests.customer import (
    CREDITS,
    GENERATE,
    GENERATIONS,
    Customer,
    Reply,
    event_of,
    fetch,
    invoke,
    plain_picture,
    prompts_sent,
    until,
)
from tests.engines import Engine
from tests.world import Clock, Fault, Network, World

FIRST_MS = 1_700_000_000_000
EMOJI = "🦊"


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0) as running:
        assert running.stand_in is not None
        running.stand_in.answer_with(plain_picture)
        yield running


def read(customer: Customer, route: str = f"GET {CREDITS}") -> Reply:
    """A read past the gateway, which has a limit of its own."""
    event = event_of(None, is_base64=False, headers={"authorization": f"Bearer {customer.key}"})
    result: Any = customer.stack.invoke("AccountFunction", event | {"routeKey": route})
    headers = {name.lower(): str(value) for name, value in result["headers"].items()}
    return Reply(result["statusCode"], headers, result["body"].encode())


def generate(customer: Customer, key: str = "") -> Reply:
    headers = {"authorization": f"Bearer {key or customer.key}"}
    return invoke(customer.stack, event_of('{"prompt": "A fox"}', is_base64=False, headers=headers))


# Limits on what costs nothing


def assert_limited(answers: list[Reply], served: int, at_once: int, policy: str) -> None:
    statuses = [each.status for each in answers]
    assert statuses == [served] * at_once + [429] * (len(answers) - at_once)
    for refused in answers[at_once:]:
        assert refused.json() == {"error": "Too many requests for this organisation"}
        assert refused.headers["x-error-code"] == "rate_limited"
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["ratelimit-policy"] == policy


@pytest.fixture
def stopped_clock(stack: LocalStack) -> Iterator[Clock]:
    """The limits' clock stands still, however slow the machine is."""
    assert stack.url
    clock, service = Clock(), dependencies()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "read_limit", read_limit(clock))
        patch.setattr(service, "unpaid_limit", unpaid_limit(clock))
        yield clock


@pytest.mark.real
def test_300_reads_in_a_row_meet_a_limit_of_their_organisation_alone(
    stack: LocalStack, stopped_clock: Clock
) -> None:
    busy, other = Customer(stack), Customer(stack)
    answers = [read(busy) for _ in range(300)]
    assert_limited(answers, 200, READS_AT_ONCE, f'"reads";q={READS_PER_S * 60};w=60')
    assert read(other).status == 200
    assert generate(busy).status == 200
    stopped_clock.sleep(1)
    assert read(busy).status == 200


@pytest.mark.real
def test_200_refusals_in_a_row_meet_a_limit_of_their_key_alone(
    stack: LocalStack, stopped_clock: Clock
) -> None:
    poor, other = Customer(stack, 0), Customer(stack)
    answers = [generate(poor) for _ in range(200)]
    assert_limited(answers, 402, UNPAID_AT_ONCE, f'"unpaid";q={UNPAID_PER_S * 60};w=60')
    assert generate(other).status == 200
    assert read(poor).status == 200
    limited, poor.key = poor.key, stack.open_account(poor.organisation, 0)
    until(lambda: generate(poor), lambda answer: answer.status == 402)
    poor.key = limited
    stopped_clock.sleep(1)
    assert generate(poor).status == 402


@pytest.fixture
def world(moto_engine: Engine) -> Iterator[World]:
    with World(moto_engine) as made:
        yield made


def refuse(world: World, network: Network | None = None) -> ServiceError | Finished | None:
    """A request with a prompt that Google refuses, where two a day are one too many."""
    refusing = world.process(network, ContentRejected(), refused_prompts_per_day=2)
    return world.request(refusing)


def test_refused_prompts_suspend_an_organisation_at_the_limit_of_a_day(world: World) -> None:
    assert isinstance(refuse(world), ContentRejected)
    assert isinstance(world.request(world.process()), Finished)
    world.clock.sleep(24 * 60 * 60)
    assert isinstance(refuse(world), ContentRejected)
    assert isinstance(refuse(world), ContentRejected)

    assert isinstance(refuse(world), OrganisationSuspended)
    assert isinstance(world.request(world.process()), OrganisationSuspended)
    account = world.process().accounts.resume(world.organisation, world.deadline())
    assert account is not None
    assert isinstance(refuse(world), ContentRejected)
    assert isinstance(world.request(world.process()), Finished)
    assert world.balance() == 90
    assert world.violations() == []


def test_a_refused_prompt_that_cannot_be_counted_is_refunded_all_the_same(world: World) -> None:
    count = 3  # After the reservation, the model, and the refund.
    failed = refuse(world, Network(count, Fault.OUTAGE))

    assert isinstance(failed, ContentRejected)
    assert world.balance() == 100
    assert world.violations() == []


def test_replays_which_are_free_count_as_refusals_do(
    stack: LocalStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, customer = Clock(), Customer(stack)
    limit = OrganisationLimit("unpaid", TokenBuckets(1, 3, clock))
    monkeypatch.setattr(dependencies(), "unpaid_limit", limit)
    headers = {"authorization": f"Bearer {customer.key}", "idempotency-key": "order-1042"}
    event = event_of('{"prompt": "A fox"}', is_base64=False, headers=headers)
    answers = [invoke(stack, event) for _ in range(5)]
    assert [each.status for each in answers] == [200] * 4 + [429]
    assert customer.balance() == 95
    clock.sleep(1)
    assert invoke(stack, event).headers["idempotent-replayed"] == "true"


def test_a_limit_is_refilled_and_a_clock_that_is_set_back_takes_nothing() -> None:
    clock = Clock()
    buckets = TokenBuckets(10, 3, clock)
    assert [buckets.take("acme") for _ in range(4)] == [True, True, True, False]
    assert buckets.wait_s("acme") == pytest.approx(0.1)
    clock.sleep(0.1001)
    assert [buckets.take("acme"), buckets.take("acme")] == [True, False]
    clock.sleep(-3600)
    assert not buckets.take("acme")
    clock.sleep(0.1001)
    assert buckets.take("acme")
    clock.sleep(3600)
    assert [buckets.take("acme") for _ in range(4)] == [True, True, True, False]


def test_the_limits_memory_is_bounded_and_the_longest_unused_are_forgotten() -> None:
    buckets = TokenBuckets(1, 1, Clock())
    assert buckets.take("first")
    assert all(buckets.take(f"org{n}") for n in range(MAX_NAMES - 1))
    assert not buckets.take("first"), "a use keeps it"
    assert buckets.take("one more")
    assert not buckets.take("first")
    assert buckets.take("org0"), "it was forgotten"


@pytest.mark.real
def test_a_customer_is_served_while_a_stranger_uses_up_the_open_routes(stack: LocalStack) -> None:
    customer = Customer(stack)
    for target in ("/healthz", "/", "/openapi.json", "/no-such-path"):
        with ThreadPoolExecutor(16) as stranger:
            answers = list(stranger.map(fetch, [stack.url + target] * 100))
        refused = [each for each in answers if each.status == 429]
        assert refused, target
        assert refused[0].json() == {"message": "Too Many Requests"}
    assert customer.get(CREDITS).status == 200
    assert customer.generate().status == 200


# Private answers


@pytest.mark.real
def test_a_history_of_the_longest_prompts_comes_in_pages_of_256_kib(stack: LocalStack) -> None:
    customer = Customer(stack, 0)
    written = [FIRST_MS + n for n in range(105)]
    table = stack.aws.client("dynamodb")
    for start in range(0, len(written), 25):
        table.batch_write_item(
            RequestItems={
                stack.table: [
                    {"PutRequest": {"Item": _refused(customer, ms).to_item()}}
                    for ms in written[start : start + 25]
                ]
            }
        )
    found: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = customer.get(f"{GENERATIONS}?limit=100" + (f"&cursor={cursor}" if cursor else ""))
        assert answer.status == 200
        assert len(answer.body) < 257 * 1024
        assert EMOJI.encode() * 4_000 in answer.body, "in UTF-8 as it is"
        found += [int(each["id"]) for each in answer.json()["generations"]]
        cursor = answer.json()["nextCursor"]
    assert found == written[::-1]


def _refused(customer: Customer, created_ms: int) -> Generation:
    order = Order(customer.organisation, EMOJI * 4_000, AspectRatio.SQUARE)
    reserved = Generation.reserved(order, created_ms, "a-key", due_at=0)
    return dataclasses.replace(
        reserved, status=Status.REFUNDED, failure_code="content_rejected", due_at=None
    )


def test_every_answer_of_a_route_with_a_key_is_private(stack: LocalStack) -> None:
    customer = Customer(stack, 5)
    answers = [
        customer.generate(),
        customer.generate(),
        customer.generate(" "),
        *(customer.get(target) for target in (CREDITS, GENERATIONS, f"{GENERATIONS}/{FIRST_MS}")),
        *(fetch(stack.url + target) for target in (CREDITS, GENERATIONS)),
        fetch(stack.url + GENERATE, "POST", b"{}"),
    ]
    assert {each.status for each in answers} == {200, 400, 401, 402, 404}
    for each in answers:
        assert each.headers["cache-control"] == "no-store", each
        assert each.headers["x-content-type-options"] == "nosniff", each


def test_no_image_name_tells_another(moto_engine: Any) -> None:
    with World(moto_engine) as world, world.observe() as seen:
        process = world.process()
        made = [
            process.generations.reserve(world.order(), world.deadline(), seen) for _ in range(8)
        ]
    names = [each.image_key.rpartition("/")[2] for each in made if isinstance(each, Generation)]
    random = {name[13:-4] for name in names}
    assert len(random) == len(names) == 8
    for each, name in zip(made, names, strict=True):
        assert isinstance(each, Generation)
        assert name.startswith(each.id)
    assert all(len(digits) == 39 and digits.isdigit() for digits in random)
    # One place agrees by chance in a tenth of them: all eight agree in none of them.
    assert all(len({digits[place] for digits in random}) > 1 for place in range(39))


# The log


class Lines(logging.Handler):
    """The fields of every line that the service logs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append({"message": record.getMessage(), **vars(record)})

    def answered(self) -> dict[str, Any]:
        """The one line about the request's answer; forgets all lines."""
        (line,) = (each for each in self.found if each["message"] == "answered")
        self.found = []
        return line


@pytest.fixture
def log(stack: LocalStack) -> Iterator[Lines]:
    assert stack.url
    lines, logger = Lines(), logging.getLogger("gemini-generate")
    logger.addHandler(lines)
    yield lines
    logger.removeHandler(lines)


def key_ids(stack: LocalStack, customer: Customer) -> list[str]:
    ring = KeyRing(stack.aws.client("secretsmanager"), "gemini-generate/orgs/")
    return [record.id for record in ring.list(customer.organisation)]


def test_every_request_with_a_key_logs_one_line_that_names_the_key(
    stack: LocalStack, log: Lines
) -> None:
    customer = Customer(stack, 5)
    (key,) = key_ids(stack, customer)
    who = {"organisation": customer.organisation, "key": key}

    assert generate(customer).status == 200
    made = log.answered()
    assert made["duration_ms"] >= 0
    assert generate(customer).status == 402
    refused = log.answered()
    assert read(customer).status == 200
    balance = log.answered()
    assert read(customer, f"GET {GENERATIONS}/{{id}}").status == 404
    missing = log.answered()

    (row,) = _rows(stack, customer)
    assert row.key_id == key
    assert made["generation"] == row.id
    for line, status, route, code in (
        (made, 200, f"POST {GENERATE}", None),
        (refused, 402, f"POST {GENERATE}", "insufficient_credits"),
        (balance, 200, f"GET {CREDITS}", None),
        (missing, 404, f"GET {GENERATIONS}/{{id}}", "not_found"),
    ):
        assert who.items() <= line.items()
        assert (line["status"], line["route"], line.get("code")) == (status, route, code)
        assert customer.key not in str(line)


@pytest.mark.parametrize("route", ["generate", "read"])
def test_the_use_of_a_revoked_key_is_counted_and_logged_with_its_id(
    stack: LocalStack, log: Lines, route: str, capsys: pytest.CaptureFixture[str]
) -> None:
    customer = Customer(stack)
    (key,) = key_ids(stack, customer)
    ring = KeyRing(stack.aws.client("secretsmanager"), "gemini-generate/orgs/")
    ring.revoke(customer.organisation, key)

    answer = generate(customer) if route == "generate" else read(customer)

    assert (answer.status, answer.json()) == (401, {"error": "Invalid or missing API key"})
    line = log.answered()
    assert (line["organisation"], line["key"]) == (customer.organisation, key)
    assert _counted(capsys, "RevokedKeyUsed") == 1
    assert generate(customer, new_key(customer.organisation)).status == 401
    assert "key" not in log.answered(), "a guess is nobody's key"
    assert _counted(capsys, "RevokedKeyUsed") == 0


def _counted(capsys: pytest.CaptureFixture[str], metric: str) -> int:
    lines = capsys.readouterr().out.splitlines()
    metrics = [json.loads(line) for line in lines if line.startswith('{"_aws"')]
    return int(sum(sum(each.get(metric, [])) for each in metrics))


def _rows(stack: LocalStack, customer: Customer) -> list[Generation]:
    ledger = Ledger(Table(stack.aws.client("dynamodb"), stack.table))
    return ledger.history(customer.organisation, 10, None, Deadline(10))


# The queue


def test_a_message_from_elsewhere_does_not_make_a_job_of_a_request(moto_engine: Any) -> None:
    with World(moto_engine) as world, world.observe() as seen:
        process = world.process()
        reserved = process.generations.reserve(world.order(), world.deadline(), seen)
        assert isinstance(reserved, Generation)
        message = json.dumps({"organisation": world.organisation, "generation": reserved.id})

        worker = world.process()
        assert world.work(worker, message), "the message is done with"

        assert [str(call) for call in worker.network.calls] == ["dynamodb.update_item"]
        assert world.generations() == [reserved], "with the lease that it had"


def test_the_queue_still_begins_its_own_jobs(stack: LocalStack) -> None:
    customer = Customer(stack)
    accepted = customer.accept("Accepted, and made")
    assert customer.ending(accepted)["status"] == "settled"
    assert "Accepted, and made" in prompts_sent(stack)
