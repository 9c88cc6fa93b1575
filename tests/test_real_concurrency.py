"""Many concurrent clients, on a DynamoDB that is atomic under threads: the figures are exact.

DynamoDB Local never answers ``TransactionConflict`` and never loses a response, as DynamoDB may. So
the tests run twice: on a calm network, and on one that does each to every tenth call.
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any

import boto3
import pytest
from botocore.exceptions import ReadTimeoutError

from handlers.account import GENERATE_ROUTE
from handlers.dependencies import Dependencies
from handlers.generate import respond
from infra.local.aws import CREDENTIALS, REGION
from lib.deadline import Deadline
from lib.errors import (
    Busy,
    InsufficientCredits,
    KeyBudgetExhausted,
    ModelOverloaded,
    RateLimited,
    ServiceError,
)
from lib.generation import Accepted, Finished, Generations
from lib.jobs import JobQueue, Jobs
from lib.keys.key_ring import KeyRing
from lib.keys.verification import KeyVerifier
from lib.ledger.accounts import Accounts
from lib.ledger.ledger import Ledger, Refund, ReservationGone
from lib.ledger.order import Order, Spender
from lib.ledger.reconciliation import Reconciler
from lib.ledger.rows import Generation, Grant, Status, account_key
from lib.ledger.table import LedgerUnreachable, Table
from lib.ledger.usage import month_of
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.png import to_png
from lib.picture.storage import Images
from lib.settings import Settings
from tests.engines import Engine
from tests.reporting import Tried, report, tally
from tests.world import BASE_URL, World, conflict, small_picture

pytestmark = pytest.mark.real

AHEAD_S = 600.0
NO_LIMIT = 1_000_000
CONFLICT_PERCENT = 10
LOST_PERCENT = 10
STORM_S = 8.0
TRIES = 10
WRITES = frozenset({"transact_write_items", "update_item", "put_item"})
PICTURE = small_picture(AspectRatio.SQUARE)


class StormyClient:
    """A DynamoDB client with conflicts before the effect and lost responses after it."""

    def __init__(self, client: Any, chance: random.Random) -> None:
        self._client = client
        self._chance = chance
        self.conflicts = 0
        self.lost = 0

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        method = getattr(self._client, operation)

        def called(**arguments: Any) -> Any:
            dice = self._chance.randrange(100)
            if dice < CONFLICT_PERCENT and operation in WRITES:
                self.conflicts += 1
                raise conflict(operation, len(arguments.get("TransactItems", [])))
            answer = method(**arguments)
            if CONFLICT_PERCENT <= dice < CONFLICT_PERCENT + LOST_PERCENT:
                self.lost += 1
                raise ReadTimeoutError(endpoint_url="https://slow.example")
            return answer

        return called


class BlockableModel:
    """A model that answers once ``may_answer`` is set, and is sometimes overloaded."""

    def __init__(self, chance: random.Random, overloaded_percent: int = 0) -> None:
        self.calls = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._chance = chance
        self._overloaded_percent = overloaded_percent

    def generate(self, prompt: str, ratio: AspectRatio, deadline: Deadline) -> bytes:
        assert prompt
        assert ratio is AspectRatio.SQUARE
        self.calls += 1
        self.may_answer.wait(deadline.remaining_s())
        if self._chance.randrange(100) < self._overloaded_percent:
            raise ModelOverloaded
        return PICTURE


class SharedService:
    """The service of all clients of a test, on the table of its world."""

    def __init__(
        self, world: World, network: str, dynamodb: Any, seed: int, overloaded_percent: int = 0
    ) -> None:
        self.world = world
        self.network = network
        table = Table(dynamodb, world.table)
        self.ledger = Ledger(table)
        self.accounts = Accounts(table)
        self.model = BlockableModel(_chance(seed), overloaded_percent)
        self._images = Images(lambda: world.engine.s3, world.engine.bucket, BASE_URL)
        self.generations = Generations(self.ledger, self.model, self._images)
        self.premature_reconciler = Reconciler(Ledger(table, _ahead), self._images, _ahead)

    def order(self, key: str | None = None, spender: Spender | None = None) -> Order:
        """The order of every client."""
        return Order(
            self.world.organisation,
            "a fox",
            AspectRatio.SQUARE,
            key,
            spender=spender or Spender("key_1", "key_1"),
        )

    def reserve(self, spender: Spender | None = None) -> Generation:
        """Reserves without an idempotency key."""
        order = self.order(spender=spender)
        return self.ledger.reserve(order, partial(_image_key, order.organisation), Deadline(29))

    def store(self, generation: Generation) -> None:
        """Stores an image for the reservation."""
        png = to_png(PICTURE, AspectRatio.SQUARE)
        self._images.put(generation.image_key, png, generation.attempt_id, Deadline(29))

    def generate(self, key: str | None = None) -> Finished | Accepted:
        """One whole request."""
        with self.world.observe() as observation:
            return self.generations.generate(self.order(key), Deadline(29), observation)

    def balance(self) -> int:
        """The credits of the organisation."""
        return self.ledger.balance(self.world.organisation, Deadline(29))

    def is_healthy(self) -> bool:
        """Whether the audit finds nothing."""
        audit = self.accounts.audit(self.world.organisation, Deadline(29))
        assert audit.drift == 0
        return audit.healthy


class Ticking:
    """Epoch seconds that advance by one tick at every reading."""

    def __init__(self, begins_at: float, tick_s: float) -> None:
        self._begins_at = begins_at
        self._tick_s = tick_s
        self._ticks = count()

    def __call__(self) -> float:
        return self._begins_at + next(self._ticks) * self._tick_s


class GenerateFunction:
    """The generate function, with a simulated model."""

    def __init__(
        self,
        world: World,
        clock: Callable[[], float],
        dynamodb: Any = None,
        budgets: Sequence[int | None] = (None,),
    ) -> None:
        secrets = boto3.client(
            "secretsmanager",
            endpoint_url=world.engine.environment["AWS_ENDPOINT_URL_SECRETS_MANAGER"],
            region_name=REGION,
            **CREDENTIALS,
        )
        ring = KeyRing(secrets, "orgs/")
        self._api_keys = [
            ring.issue(world.organisation, monthly_budget=budget).key for budget in budgets
        ]
        self.model = BlockableModel(_chance(0))
        ledger = Ledger(Table(dynamodb or world.engine.dynamodb, world.table), clock)
        images = Images(lambda: world.engine.s3, world.engine.bucket, BASE_URL)
        queue: Any = world.mailbox
        settings = Settings(
            *(world.table, world.engine.bucket, BASE_URL, "orgs/", "gemini"),
            jobs_queue_url="https://queue.example",
        )
        sends = JobQueue(queue, "https://queue.example")
        self._dependencies = Dependencies(settings)
        self._dependencies.key_verifier = KeyVerifier(secrets, "orgs/")
        generations = Generations(ledger, self.model, images, clock=clock)
        self._dependencies.generations = generations
        self._dependencies.jobs = Jobs(generations, ledger, images, sends, clock)
        self._world = world

    def ask(self, *, asynchronous: bool, key: int = 0) -> dict[str, Any]:
        """The response to one event, with one of the keys."""
        event = {
            "routeKey": GENERATE_ROUTE,
            "headers": {
                "authorization": f"Bearer {self._api_keys[key]}",
                "prefer": "respond-async" if asynchronous else "",
            },
            "requestContext": {"requestId": "a-request"},
            "body": json.dumps({"prompt": "a fox"}),
        }
        with self._world.observe() as observation:
            return respond(self._dependencies, event, Deadline(28), observation)


NewService = Callable[..., SharedService]


@pytest.fixture(params=["calm", "stormy"])
def new_service(
    request: pytest.FixtureRequest, real_engine: Engine, seed: int
) -> Iterator[NewService]:
    """Makes the service of a new organisation with these credits, on each network in turn."""
    storm = StormyClient(real_engine.dynamodb, _chance(seed))
    with World(real_engine, credits_=0, rate_limit=NO_LIMIT) as world:

        def new(credits_: int, overloaded_percent: int = 0) -> SharedService:
            client = storm if request.param == "stormy" else real_engine.dynamodb
            service = SharedService(world, request.param, client, seed, overloaded_percent)
            grant = Grant("first", credits_, "test", "test", int(time.time()))
            service.accounts.grant(world.organisation, grant, Deadline(29))
            return service

        yield new
    tally(Tried.CONFLICTS, storm.conflicts)
    tally(Tried.LOST_RESPONSES, storm.lost)


def test_64_clients_get_exactly_the_images_that_their_credits_pay(new_service: NewService) -> None:
    service = new_service(500)
    outcomes = at_once(64, 150, lambda _: service.reserve())
    won = [each for each in outcomes if isinstance(each, Generation)]
    assert len(won) == len({each.created_ms for each in won}) == 100
    refused = [each for each in outcomes if isinstance(each, InsufficientCredits)]
    assert [each.remaining for each in refused] == [0] * 50
    assert service.balance() == 0
    assert service.is_healthy()


@pytest.mark.parametrize("keys", [1, 10])
def test_64_clients_spend_the_budget_of_each_key_and_no_credit_more(
    new_service: NewService, keys: int
) -> None:
    service = new_service(2_000)
    budget = 129 // keys
    # Every other client has a key that replaced the one of its meter.
    spenders = [
        Spender(f"{rotated}_{number}", f"key_{number}", budget)
        for number in range(keys)
        for rotated in ("key", "new")
    ]
    outcomes = at_once(64, 80, lambda number: service.reserve(spenders[number % len(spenders)]))

    won = Counter(each.meter for each in outcomes if isinstance(each, Generation))
    assert won == {f"key_{number}": budget // 5 for number in range(keys)}
    refused = [each for each in outcomes if not isinstance(each, Generation)]
    assert {type(each) for each in refused} == {KeyBudgetExhausted}
    assert {each.remaining for each in refused} == {budget % 5}

    for each in outcomes[:40]:
        if isinstance(each, Generation):
            service.ledger.refund(each, "no_image", Deadline(29))
            won[each.meter] -= 1
    month = month_of(time.time())
    usage = service.accounts.usage(service.world.organisation, month, Deadline(29))
    assert {each.meter: each.images for each in usage} == won
    assert service.is_healthy()


def test_each_month_has_its_own_budget_with_clocks_90_s_apart_and_late_refunds(
    real_engine: Engine,
) -> None:
    with World(real_engine, credits_=5_000, rate_limit=NO_LIMIT, budget=57) as world:
        now = datetime.fromtimestamp(world.clock(), UTC)
        next_month = (now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0)
        turn = next_month.timestamp()
        clock = Ticking(turn - 150, tick_s=0.5)
        table = Table(real_engine.dynamodb, world.table)
        sandboxes = [Ledger(table, clock), Ledger(table, lambda: clock() + 90)]
        image_key = partial(_image_key, world.organisation)

        def ask_until_the_end(number: int) -> list[Any]:
            reserve = partial(sandboxes[number % 2].reserve, world.order(), image_key)
            outcomes = []
            while clock() < turn + 60:
                outcomes.append(outcome(lambda: reserve(Deadline(29))))
            return outcomes

        outcomes = [each for some in at_once(8, 8, ask_until_the_end) for each in some]

        world.clock.now_s = clock()
        assert names(outcomes).keys() == {"Generation", "KeyBudgetExhausted"}
        months = [month_of(turn - 1), month_of(turn)]
        won = [each for each in outcomes if isinstance(each, Generation)]
        created = Counter(month_of(each.created_ms / 1000) for each in won)
        assert created == dict.fromkeys(months, 11)
        assert [world.used(month) for month in months] == [55, 55]
        for each in won:
            if month_of(each.created_ms / 1000) == months[0]:
                sandboxes[0].refund(each, "no_image", world.deadline())
            else:
                sandboxes[0].settle(each, 1, world.deadline())
        assert [world.used(month) for month in months] == [0, 55]
        assert world.audit().healthy


def test_two_programs_and_a_person_share_credits_and_no_key_overspends(
    real_engine: Engine, seed: int
) -> None:
    storm = StormyClient(real_engine.dynamodb, _chance(seed))
    with World(real_engine, credits_=1_000, rate_limit=NO_LIMIT) as world:
        service = GenerateFunction(world, time.time, storm, budgets=(100, 50, None))

        def ask(number: int) -> dict[str, Any]:
            key, tries = min(2, number // 64), count(1)
            while True:
                answer = service.ask(asynchronous=number % 5 == 0, key=key)
                if answer["headers"].get("X-Error-Code") != "busy" or next(tries) == TRIES:
                    return answer

        answers = at_once(160, 160, ask)
        programs = [answers[:64], answers[64:128]]
        for program, images in zip(programs, (20, 10), strict=True):
            statuses = Counter(answer["statusCode"] for answer in program)
            assert statuses[200] + statuses[202] == images
            assert statuses[402] == 64 - images
            refused = [answer for answer in program if answer["statusCode"] == 402]
            assert {each["headers"]["X-Error-Code"] for each in refused} == {"key_budget_exhausted"}
            assert {json.loads(each["body"])["creditsRemaining"] for each in refused} == {0}
        assert {answer["statusCode"] for answer in answers[128:]} <= {200, 202}
        assert storm.lost > 0
        world.deliver()
        world.settle_down()
        assert world.balance() == 1_000 - 5 * (20 + 10 + 32)
        assert world.used() == 5 * (20 + 10 + 32)
        assert world.violations() == []
    tally(Tried.LOST_RESPONSES, storm.lost)


def test_64_clients_with_one_idempotency_key_get_one_image(new_service: NewService) -> None:
    service = new_service(500)
    service.model.may_answer.clear()

    with ThreadPoolExecutor(64) as pool:
        requests = [pool.submit(outcome, lambda: service.generate("same")) for _ in range(64)]
        while len(wait(requests, timeout=0.05).not_done) > 1:
            continue
        service.model.may_answer.set()
        outcomes = [request.result() for request in requests]

    (paid,) = [each for each in outcomes if isinstance(each, Finished)]
    assert not paid.replayed
    assert names(outcomes) == {"Finished": 1, "GenerationInFlight": 63}
    assert service.balance() == 495

    again = at_once(64, 64, lambda _: service.generate("same"))

    assert {(each.replayed, each.image_url) for each in again if isinstance(each, Finished)} == {
        (True, paid.image_url)
    }
    assert names(again) == {"Finished": 64}
    assert service.model.calls == 1
    assert service.balance() == 495
    assert service.world.violations() == []


def test_exactly_60_of_90_requests_in_one_minute_pass_the_limit(
    real_engine: Engine,
) -> None:
    with World(real_engine, credits_=5_000, rate_limit=60) as world:
        clock = Ticking(world.clock.now_s, tick_s=0.001)
        service = GenerateFunction(world, clock)

        answers = at_once(32, 90, lambda number: service.ask(asynchronous=number % 3 == 0))

        statuses = Counter(answer["statusCode"] for answer in answers)
        assert statuses[200] + statuses[202] == 60
        assert statuses[200] > 0 < statuses[202]
        assert statuses[429] == 30
        for refusal in (answer for answer in answers if answer["statusCode"] == 429):
            headers = refusal["headers"]
            retry_after_s = int(headers["Retry-After"])
            assert 1 <= retry_after_s <= 60
            assert headers["RateLimit"] == f'"default";r=0;t={retry_after_s}'
            assert headers["RateLimit-Policy"] == '"default";q=60;w=60'
            assert headers["X-Credits-Charged"] == "0"
            assert headers["X-Error-Code"] == "rate_limited"
        assert len(world.generations()) == 60
        assert world.balance() == 5_000 - 60 * 5
        assert service.model.calls == statuses[200]
        assert len(world.mailbox.messages) == statuses[202]
        world.deliver()
        assert [each.status for each in world.generations()] == [Status.SETTLED] * 60
        assert world.violations() == []


@pytest.mark.parametrize("ahead_s", [1, 30, 59])
def test_clocks_that_differ_let_at_most_one_more_window_through(
    real_engine: Engine, ahead_s: int
) -> None:
    limit, minutes = 12, 4
    with World(real_engine, credits_=5_000, rate_limit=limit) as world:
        clock = Ticking(world.clock.now_s, tick_s=0.2)
        ends_at = world.clock.now_s + minutes * 60
        image_key = partial(_image_key, world.organisation)
        table = Table(real_engine.dynamodb, world.table)
        sandboxes = [Ledger(table, clock), Ledger(table, lambda: clock() + ahead_s)]

        def ask_until_the_end(number: int) -> list[Any]:
            reserve = partial(sandboxes[number % 2].reserve, world.order(), image_key)
            results = []
            while clock() < ends_at:
                results.append(outcome(lambda: reserve(Deadline(29))))
            return results

        outcomes = [each for some in at_once(8, 8, ask_until_the_end) for each in some]

        passed = names(outcomes)["Generation"]
        assert limit * minutes <= passed <= limit * (minutes + 1)
        assert set(names(outcomes)) == {"Generation", "RateLimited"}
        refusals = [each for each in outcomes if isinstance(each, RateLimited)]
        assert all(1 <= each.retry_after_s <= 60 + ahead_s for each in refusals)
        assert world.balance() == 5_000 - 5 * passed
        assert world.audit().drift == 0


def test_a_grant_that_32_operators_repeat_counts_once(new_service: NewService) -> None:
    service = new_service(5)
    grant = Grant("invoice-7", 100, "test", "test", int(time.time()))
    outcomes = at_once(
        32, 32, lambda _: service.accounts.grant(service.world.organisation, grant, Deadline(29))
    )
    assert outcomes == [None] * 32
    assert service.balance() == 105
    assert service.is_healthy()


def test_the_books_are_proved_and_a_drift_is_found_while_they_are_written(
    new_service: NewService,
) -> None:
    service = new_service(1_000_000)
    organisation, ends = service.world.organisation, threading.Event()

    def write(number: int) -> int:
        written = 0
        while not ends.is_set():
            reserved = outcome(service.reserve)
            if isinstance(reserved, Generation):
                if (number + written) % 2:
                    service.ledger.refund(reserved, "no_image", Deadline(29))
                else:
                    service.ledger.settle(reserved, 1, Deadline(29))
                written += 1
        return written

    with ThreadPoolExecutor(3) as writers:
        written = [writers.submit(write, number) for number in range(3)]
        try:
            healthy = [service.accounts.audit(organisation, Deadline(29)) for _ in range(8)]
            service.world.engine.dynamodb.update_item(
                TableName=service.world.table,
                Key=account_key(organisation),
                UpdateExpression="ADD taken :lost, credits :less",
                ExpressionAttributeValues={":lost": {"N": "50"}, ":less": {"N": "-50"}},
            )
            drifted = [service.accounts.audit(organisation, Deadline(29)) for _ in range(2)]
        finally:
            ends.set()
    assert min(each.result() for each in written) > 0
    assert [each.drift for each in healthy if not each.healthy] == []
    assert all(-50 <= each.drift <= -50 + each.slack for each in drifted)
    assert all(each.drift < 0 for each in drifted)
    assert service.accounts.audit(organisation, Deadline(29)).drift == -50


def test_of_concurrent_settles_and_refunds_one_kind_wins(new_service: NewService) -> None:
    service = new_service(1_000)

    def end(generation: Generation, number: int) -> Status:
        if number % 2:
            refund = service.ledger.refund(generation, "test", Deadline(29))
            return Status.SETTLED if refund is Refund.SETTLED else Status.REFUNDED
        try:
            service.ledger.settle(generation, 1, Deadline(29))
        except ReservationGone:
            return Status.REFUNDED
        return Status.SETTLED

    for _ in range(20):
        before = service.balance()
        outcomes = at_once(16, 16, partial(end, service.reserve()))

        (decided,) = set(outcomes)
        assert decided in {Status.SETTLED, Status.REFUNDED}
        assert service.balance() == before - (5 if decided is Status.SETTLED else 0)
    assert service.is_healthy()


def test_after_a_storm_of_concurrent_work_no_credit_is_missing(
    new_service: NewService, seed: int
) -> None:
    service = new_service(3_000, overloaded_percent=20)
    storm = Storm(service)
    ends_at = time.monotonic() + STORM_S

    def client(number: int) -> None:
        chance = _chance(f"{seed}-{number}")
        while time.monotonic() < ends_at:
            storm.do_something(chance)

    at_once(32, 32, client)
    service.world.clock.sleep(2 * AHEAD_S)
    service.world.settle_down()

    assert service.world.violations() == []
    done = ", ".join(f"{number} {name}" for name, number in sorted(storm.done.items()))
    report(f"real storm, {service.network} network, 32 clients: {done}; 0 violations; SEED={seed}")


class Storm:
    """Clients, dying sandboxes and premature reconcilers, all on one organisation."""

    def __init__(self, service: SharedService) -> None:
        self.done: Counter[str] = Counter()
        self._service = service
        self._without_image: list[Generation] = []
        self._grants = count()
        self._steps: dict[Callable[[random.Random], str], int] = {
            self._request: 30,
            self._retry: 20,
            self._die_before_storing: 15,
            self._die_after_storing: 15,
            self._refund_twice: 15,
            self._reconcile: 3,
            self._grant: 2,
        }

    def do_something(self, chance: random.Random) -> None:
        """One step of one client."""
        (step,) = chance.choices(list(self._steps), weights=list(self._steps.values()))
        try:
            self.done[step(chance)] += 1
        except (ServiceError, LedgerUnreachable) as error:
            self.done[type(error).__name__] += 1

    def _request(self, _: random.Random) -> str:
        self._service.generate()
        return "images"

    def _retry(self, chance: random.Random) -> str:
        finished = self._service.generate(f"key-{chance.randrange(20)}")
        return "replays" if finished.replayed else "images"

    def _die_before_storing(self, _: random.Random) -> str:
        self._without_image.append(self._service.reserve())
        return "deaths before storing"

    def _die_after_storing(self, _: random.Random) -> str:
        self._service.store(self._service.reserve())
        return "deaths after storing"

    def _refund_twice(self, chance: random.Random) -> str:
        if not self._without_image:
            return "refunds of nothing"
        generation = chance.choice(self._without_image)
        for _ in range(2):
            self._service.ledger.refund(generation, "test", Deadline(29))
        return "repeated refunds"

    def _reconcile(self, _: random.Random) -> str:
        with self._service.world.observe() as observation:
            self._service.premature_reconciler.run(Deadline(2), observation)
        return "reconciler runs"

    def _grant(self, _: random.Random) -> str:
        grant = Grant(f"storm-{next(self._grants)}", 5, "test", "test", int(time.time()))
        self._service.accounts.grant(self._service.world.organisation, grant, Deadline(29))
        return "grants"


def at_once(clients: int, requests: int, work: Callable[[int], Any]) -> list[Any]:
    """The outcomes of ``requests`` calls from ``clients`` threads that start simultaneously."""
    start = threading.Barrier(clients)
    with ThreadPoolExecutor(clients, initializer=partial(start.wait, 30)) as pool:
        calls: list[Future[Any]] = [
            pool.submit(outcome, partial(work, number)) for number in range(requests)
        ]
        return [call.result() for call in calls]


def outcome(call: Callable[[], Any]) -> Any:
    """What ``call`` returns, or the error of the customer, who retries when the service is busy."""
    for _ in range(TRIES):
        try:
            return call()
        except Busy:
            continue
        except ServiceError as error:
            return error
    return Busy(0)


def names(outcomes: list[Any]) -> dict[str, int]:
    """How many outcomes there are of each type."""
    return dict(Counter(type(each).__name__ for each in outcomes))


def _chance(seed: int | str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - chance, not secrets


def _ahead() -> float:
    return time.time() + AHEAD_S


def _image_key(organisation: str, created_ms: int) -> str:
    return f"generated/gemini/{organisation}/{created_ms:013d}.png"
