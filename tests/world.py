"""The whole service on either engine, with a simulated clock, network and model.

Each call to DynamoDB, the object store, the queue and the model passes through ``Network.call``,
which records it and may inject a fault.
"""

import base64
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from http import HTTPStatus
from itertools import count
from typing import Any, Self, cast

from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from botocore.response import StreamingBody
from PIL import Image

from handlers.dependencies import Dependencies
from handlers.generate import respond
from handlers.http import Response
from infra.template import Template
from lib.deadline import FUNCTION_TIMEOUT_S, LEASE_S, RESPONSE_TAKES_S, WORKER_TIMEOUT_S, Deadline
from lib.errors import ModelOverloaded, ModelTimedOut, OutcomePending, ServiceError
from lib.generation import Accepted, Finished, Generations
from lib.http.openai import IMAGES_ROUTE
from lib.jobs import Job, JobQueue, Jobs
from lib.keys.verification import VerifiedKey
from lib.ledger.accounts import Accounts
from lib.ledger.audit import AuditReport, audit_of
from lib.ledger.deletion import Deletions
from lib.ledger.ledger import Ledger
from lib.ledger.order import Order, Spender
from lib.ledger.reconciliation import Reconciled, Reconciler
from lib.ledger.refusals import Refusals
from lib.ledger.rows import (
    Account,
    Generation,
    Grant,
    Item,
    Status,
    account_key,
    listing_key,
    number,
)
from lib.ledger.table import LedgerUnreachable, Table
from lib.ledger.usage import month_of
from lib.observability import Observation, Telemetry
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.check import is_whole_png
from lib.picture.storage import Images, StorageUnreachable
from lib.settings import Settings
from tests.engines import Engine

BASE_URL = "https://images.example"
METER = "key_0"
# One call that times out: connecting and one read timeout, as in lib.clients.
CALL_TAKES_S = {"dynamodb": 3.0, "s3": 5.0, "sqs": 3.0}
_TEMPLATE = Template.from_file()
_numbers = count(1)


class Killed(BaseException):
    """The sandbox was killed: no ``except Exception`` of the service handles this."""


class Fault(StrEnum):
    """A fault that is injected into one call."""

    KILLED_BEFORE = "killed before the call"
    KILLED_AFTER = "killed after it took effect"
    RESPONSE_LOST = "the response is lost"
    ERROR_BEFORE = "an error before it took effect"
    CONFLICT = "a transaction conflict"
    THROTTLED = "throttled"
    BODY_CUT = "the connection breaks in the middle of the body"
    OUTAGE = "an outage begins before it took effect"
    LOST_THEN_OUTAGE = "an outage begins after it took effect"


@dataclass(frozen=True)
class Call:
    """One call to another service."""

    service: str
    operation: str

    def __str__(self) -> str:
        return f"{self.service}.{self.operation}"

    @property
    def faults(self) -> list[Fault]:
        """The faults that this call can meet."""
        everywhere = [
            Fault.KILLED_BEFORE,
            Fault.KILLED_AFTER,
            Fault.RESPONSE_LOST,
            Fault.ERROR_BEFORE,
            Fault.OUTAGE,
            Fault.LOST_THEN_OUTAGE,
        ]
        if self.service == "model":
            return everywhere
        if self.operation == "get_object":
            everywhere.append(Fault.BODY_CUT)
        if self.operation in {"transact_write_items", "update_item", "put_item"}:
            everywhere.append(Fault.CONFLICT)
        return [*everywhere, Fault.THROTTLED]


@dataclass
class Network:
    """The calls of one sandbox, and the faults that strike some of them, by the call's number."""

    strikes_at: int | None = None
    fault: Fault | None = None
    before_each: Callable[[Call], None] = lambda _call: None
    on_timeout: Callable[[Call], None] = lambda _call: None
    later: Mapping[int, Fault] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    _dead: bool = False
    _down: set[str] = field(default_factory=set)

    def call(self, call: Call, effect: Callable[[], Any]) -> Any:
        """Runs ``effect``, unless a fault prevents it."""
        if self._dead:
            raise Killed
        number = len(self.calls)
        self.calls.append(call)
        if call.service in self._down:
            self.on_timeout(call)
            raise _unreachable(call)
        self.before_each(call)
        fault = self.fault if number == self.strikes_at else self.later.get(number)
        return effect() if fault is None else self._strike(fault, call, effect)

    def _strike(self, fault: Fault, call: Call, effect: Callable[[], Any]) -> Any:
        if fault is Fault.BODY_CUT:
            return _with_half_a_body(effect())
        if fault in _AFTER_THE_EFFECT:
            effect()
        if fault in {Fault.KILLED_BEFORE, Fault.KILLED_AFTER}:
            self._dead = True
            raise Killed
        if fault is Fault.CONFLICT:
            raise _conflict(call)
        if fault is Fault.THROTTLED:
            throttled = ("SlowDown", 503) if call.service == "s3" else ("ThrottlingException", 400)
            raise _aws_error(call, *throttled)
        if fault in {Fault.OUTAGE, Fault.LOST_THEN_OUTAGE}:
            self._down.add(call.service)
        self.on_timeout(call)
        raise _lost(call) if fault in _AFTER_THE_EFFECT else _unreachable(call)


_AFTER_THE_EFFECT = frozenset({Fault.KILLED_AFTER, Fault.RESPONSE_LOST, Fault.LOST_THEN_OUTAGE})


def _with_half_a_body(answer: Any) -> Any:
    whole = answer["Body"].read()
    half = io.BytesIO(whole[: len(whole) // 2])
    return answer | {"Body": StreamingBody(half, len(whole))}


def _unreachable(call: Call) -> Exception:
    if call.service == "model":
        return ModelOverloaded()
    return EndpointConnectionError(endpoint_url="https://unreachable.example")


def _lost(call: Call) -> Exception:
    if call.service == "model":
        return ModelTimedOut()
    return ReadTimeoutError(endpoint_url="https://slow.example")


def _conflict(call: Call) -> ClientError:
    transaction = call.operation == "transact_write_items"
    return conflict(call.operation, items=2 if transaction else 0)


def conflict(operation: str, items: int) -> ClientError:
    """A conflict as DynamoDB reports it; ``items`` is the size of a transaction.

    https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html
    """
    code = "TransactionCanceledException" if items else "TransactionConflictException"
    error = _aws_error(Call("dynamodb", operation), code, 400)
    reasons = [{"Code": "TransactionConflict"}, *[{"Code": "None"}] * (items - 1)]
    cast("dict[str, Any]", error.response)["CancellationReasons"] = reasons
    return error


def _aws_error(call: Call, code: str, status: int) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": "made up by a test"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, call.operation)


class NetworkClient:
    """A boto3 client whose calls pass through a network."""

    def __init__(self, client: Any, service: str, network: Network) -> None:
        self._client = client
        self._service = service
        self._network = network

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        method = getattr(self._client, operation)

        def called(**arguments: Any) -> Any:
            call = Call(self._service, operation)
            return self._network.call(call, lambda: method(**arguments))

        return called


class LaggingIndex:
    """A DynamoDB client whose index ``Due`` stays as it is now, while its table goes on."""

    def __init__(self, client: Any, table: str) -> None:
        self._client = client
        self._rows = client.scan(TableName=table, ConsistentRead=True)["Items"]

    def __getattr__(self, operation: str) -> Any:
        return getattr(self._client, operation)

    def query(self, **arguments: Any) -> dict[str, Any]:
        """The rows that were due by the time that the query names; others are read as they are."""
        if arguments.get("IndexName") != "Due":
            return cast("dict[str, Any]", self._client.query(**arguments))
        values = arguments["ExpressionAttributeValues"]
        shard, now_s = values[":shard"], int(values[":now"]["N"])
        listed = [row for row in self._rows if row.get("dueShard") == shard]
        return {"Items": [row for row in listed if int(row["dueAt"]["N"]) <= now_s]}


class Clock:
    """Epoch seconds that advance only when a test or a simulated pause says so.

    By default the clock starts at a full minute, so that a test decides when one ends.
    """

    def __init__(self, now_s: float | None = None) -> None:
        self.now_s = time.time() // 60 * 60 if now_s is None else now_s

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class PaintedModel:
    """A model that paints a small picture of the requested shape, or raises ``failure``."""

    def __init__(
        self, network: Network, failure: Exception | None, take_time: Callable[[], None]
    ) -> None:
        self._network = network
        self._failure = failure
        self._take_time = take_time

    def generate(self, prompt: str, ratio: AspectRatio, deadline: Deadline) -> bytes:
        assert prompt
        if deadline.passed():
            raise ModelTimedOut
        return cast(
            "bytes", self._network.call(Call("model", "generate"), lambda: self._paint(ratio))
        )

    def _paint(self, ratio: AspectRatio) -> bytes:
        self._take_time()
        if self._failure is not None:
            raise self._failure
        return small_picture(ratio)


@cache
def small_picture(ratio: AspectRatio) -> bytes:
    """A JPEG of a few hundred bytes."""
    image = Image.new("RGB", (round(64 * ratio.width_over_height), 64), (200, 80, 20))
    written = io.BytesIO()
    image.save(written, "JPEG")
    return written.getvalue()


class Mailbox:
    """A queue that keeps every message that was sent."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def send_message(self, *, QueueUrl: str, MessageBody: str) -> None:  # noqa: N803 - as in boto3
        assert QueueUrl
        self.messages.append(MessageBody)


@dataclass
class Sandbox:
    """One sandbox of the service, behind its own network."""

    network: Network
    ledger: Ledger
    accounts: Accounts
    images: Images
    generations: Generations
    jobs: Jobs
    deletions: Deletions
    reconciler: Reconciler


def _service(world: "World", process: Sandbox) -> Dependencies:
    """The dependencies of a sandbox whose customer has been verified."""

    class Verified:
        def verify(self, _authorization: str | None) -> VerifiedKey:
            return VerifiedKey(world.organisation, "key_1", METER, world.budget)

    queue_url = "https://queue.example"
    service = Dependencies(
        Settings("table", "bucket", BASE_URL, "orgs/", "gemini-key", jobs_queue_url=queue_url)
    )
    service.__dict__ |= {
        "key_verifier": Verified(),
        "generations": process.generations,
        "jobs": process.jobs,
    }
    return service


def images_event(prompt: str, key: str | None) -> dict[str, object]:
    """API Gateway's event of a request for an image of the world's shape, in base64."""
    return {
        "routeKey": IMAGES_ROUTE,
        "headers": {} if key is None else {"idempotency-key": key},
        "body": json.dumps({"prompt": prompt, "size": "1600x900", "model": "gpt-image-1"}),
    }


class World:
    """A table with one organisation, a clock, and any number of sandboxes.

    Each world has its own table: moto copies a whole table at every transaction.
    """

    def __init__(
        self, engine: Engine, credits_: int = 100, rate_limit: int = 60, budget: int | None = 1_000
    ) -> None:
        self.engine = engine
        self.budget = budget
        self.table = f"credits-{next(_numbers)}"
        engine.dynamodb.create_table(**_TEMPLATE.table_definition(self.table))
        self.clock = Clock()
        self.mailbox = Mailbox()
        self.deliveries: Counter[str] = Counter()
        self.last_request_took_s = 0.0
        self.organisation = f"org{next(_numbers)}"
        self.telemetry = Telemetry(
            Settings("table", "bucket", BASE_URL, "orgs/", "gemini-key"),
        )
        account = account_key(self.organisation) | {
            "credits": number(credits_),
            "granted": number(credits_),
            "taken": number(0),
            "returned": number(0),
            "rateLimit": number(rate_limit),
            # The minute is open already, so a request spends no call on opening it.
            "rateWindow": number(int(self.clock.now_s)),
            "rateUsed": number(0),
        }
        rows = [account, listing_key(self.organisation)]
        if credits_:
            grant = Grant("first", credits_, "test", "test", int(self.clock()))
            rows.append(grant.to_item(self.organisation))
        # Thousands of worlds are made: one call.
        engine.dynamodb.batch_write_item(
            RequestItems={self.table: [{"PutRequest": {"Item": row}} for row in rows]}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops the table."""
        self.engine.dynamodb.delete_table(TableName=self.table)

    def deadline(self, seconds: float = FUNCTION_TIMEOUT_S) -> Deadline:
        """A deadline on this world's clock."""
        return Deadline(seconds, self.clock)

    def process(
        self,
        network: Network | None = None,
        failure: Exception | None = None,
        model_takes_s: float = 0,
        clock_ahead_s: float = 0,
        *,
        index_lags: bool = False,
        refused_prompts_per_day: int = 0,
    ) -> Sandbox:
        """A new sandbox; ``failure`` is what its model raises.

        Its clock may be wrong, and it may read the index of due rows as it is now for ever.
        """
        network = network or Network()
        network.on_timeout = lambda call: self.clock.sleep(CALL_TAKES_S.get(call.service, 0.0))
        engine = self.engine.dynamodb
        client = LaggingIndex(engine, self.table) if index_lags else engine
        dynamodb: Any = NetworkClient(client, "dynamodb", network)
        s3: Any = NetworkClient(self.engine.s3, "s3", network)
        sqs: Any = NetworkClient(self.mailbox, "sqs", network)
        queue = JobQueue(sqs, "https://queue.example", self.clock.sleep)
        # Always half of the longest pause: a test must be deterministic.
        table = Table(dynamodb, self.table, self.clock.sleep, jitter=lambda: 0.5)

        def clock() -> float:
            return self.clock() + clock_ahead_s

        ledger = Ledger(table, clock)
        images = Images(lambda: s3, self.engine.bucket, BASE_URL, self.clock.sleep)
        model = PaintedModel(network, failure, lambda: self.clock.sleep(model_takes_s))
        limit = refused_prompts_per_day
        refusals = Refusals(table, limit, clock) if limit else None
        generations = Generations(ledger, model, images, refusals, clock)
        return Sandbox(
            network=network,
            ledger=ledger,
            accounts=Accounts(table, clock),
            images=images,
            generations=generations,
            jobs=Jobs(generations, ledger, images, queue, clock),
            deletions=Deletions(table, ledger, images, clock),
            reconciler=Reconciler(ledger, images, clock),
        )

    def order(
        self,
        key: str | None = None,
        prompt: str = "a red fox",
        *,
        asynchronous: bool = False,
        api_key: str = "key_1",
    ) -> Order:
        """An order of the organisation, with an API key on the one meter of the world."""
        return Order(
            self.organisation,
            prompt,
            AspectRatio.LANDSCAPE_16_9,
            key,
            asynchronous=asynchronous,
            spender=Spender(api_key, METER, self.budget),
            model="a-model",
        )

    def request(
        self, process: Sandbox, key: str | None = None, api_key: str = "key_1"
    ) -> Finished | ServiceError | None:
        """One request: the image, the error, or None if the sandbox was killed."""
        answer = self._ask(process.generations.generate, self.order(key, api_key=api_key))
        assert not isinstance(answer, Accepted)
        return answer

    def images(self, process: Sandbox, key: str | None = None) -> Finished | ServiceError | None:
        """One request to OpenAI's route, through the handler: what its response says.

        A base64 answer is decoded, and compared with what is stored.
        """
        event = images_event(self.order(key).prompt, key)
        began = self.clock.now_s
        try:
            with self.observe() as observation:
                deadline = self.deadline(FUNCTION_TIMEOUT_S - RESPONSE_TAKES_S)
                response = respond(_service(self, process), event, deadline, observation)
        except Killed:
            return None
        finally:
            self.last_request_took_s = self.clock.now_s - began
        return self._said(response)

    def _said(self, response: Response) -> Finished | ServiceError:
        charged = response["headers"]["X-Credits-Charged"]
        if response["statusCode"] != HTTPStatus.OK:
            assert set(json.loads(response["body"])) == {"error"}
            # What it cost is all that the money's tests ask of an error.
            return OutcomePending("0") if charged == "5" else ServiceError()
        replayed = "Idempotent-Replayed" in response["headers"]
        assert charged == ("0" if replayed else "5")
        (image,) = json.loads(response["body"])["data"]
        if "url" in image:
            return Finished(image["url"], 0, replayed)
        png = base64.b64decode(image["b64_json"])
        (url,) = (
            f"{BASE_URL}/{stored}"
            for stored in self.stored_keys()
            if getattr(self.process().images.read(stored), "content", None) == png
        )
        return Finished(url, 0, replayed, png=png)

    def accept(
        self, process: Sandbox, key: str | None = None
    ) -> Accepted | Finished | ServiceError | None:
        """One asynchronous request: the answer, or None if the sandbox was killed."""
        return self._ask(process.jobs.accept, self.order(key, asynchronous=True))

    def _ask(
        self, act: Callable[[Order, Deadline, Observation], Accepted | Finished], order: Order
    ) -> Accepted | Finished | ServiceError | None:
        began = self.clock.now_s
        try:
            with self.observe() as observation:
                return act(order, self.deadline(FUNCTION_TIMEOUT_S - RESPONSE_TAKES_S), observation)
        except ServiceError as error:
            return error
        except Killed:
            return None
        finally:
            self.last_request_took_s = self.clock.now_s - began

    def work(self, process: Sandbox, message: str) -> bool:
        """Delivers a job once; returns whether the worker completed it."""
        deadline = self.deadline(WORKER_TIMEOUT_S)
        self.deliveries[message] += 1
        again = self.deliveries[message] > 1
        try:
            with self.observe() as observation:
                process.jobs.work(
                    Job.from_message(message), deadline, observation, redelivered=again
                )
        except (Killed, LedgerUnreachable, OutcomePending):
            return False
        return True

    def deliver(self, process: Sandbox | None = None) -> None:
        """Delivers every message that was ever sent, perhaps not for the first time."""
        for message in self.mailbox.messages:
            self.work(process or self.process(), message)

    def delete(self, process: Sandbox, created_ms: int | None = None) -> bool | ServiceError:
        """Deletes a generation, by default the first one; the error of a refusal.

        Returns:
            Whether the deletion was confirmed, as by a 204.
        """
        if created_ms is None:
            created_ms = self.generations()[0].created_ms
        try:
            process.deletions.delete(self.organisation, created_ms, self.deadline())
        except ServiceError as error:
            return error
        except (Killed, LedgerUnreachable, StorageUnreachable):
            return False
        return True

    def reconcile(self, process: Sandbox, ends_after_s: float = 45) -> Reconciled | None:
        """One run of the reconciler over all due rows; None if it was aborted."""
        try:
            with self.observe() as observation:
                return process.reconciler.run(self.deadline(ends_after_s), observation)
        except (Killed, LedgerUnreachable):
            return None

    def observe(self) -> AbstractContextManager[Observation]:
        """The observation of one request."""
        return self.telemetry.observe("a-request")

    def let_leases_pass(self) -> None:
        """Moves the clock past every lease."""
        self._let_leases_pass(self.rows())

    def _let_leases_pass(self, rows: list[Item]) -> None:
        leases = [int(row["dueAt"]["N"]) for row in rows if "dueAt" in row]
        longest_s = max(leases, default=0) - self.clock.now_s
        self.clock.sleep(max(LEASE_S, longest_s) + 1)

    def settle_down(self) -> None:
        """Ends what is open: leases expire, and the reconciler runs."""
        for _ in range(2):
            rows = self.rows()
            if not any(_is_open(each) for each in _generations_in(rows)):
                return
            self._let_leases_pass(rows)
            self.reconcile(self.process())

    def rows(self) -> list[Item]:
        """All rows of the organisation."""
        answer = self.engine.dynamodb.query(
            TableName=self.table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": f"ORG#{self.organisation}"}},
            ConsistentRead=True,
        )
        return list(answer["Items"])

    def generations(self) -> list[Generation]:
        """Every generation of the organisation, oldest first."""
        return _generations_in(self.rows())

    def balance(self) -> int:
        """The credits of the organisation."""
        return self.process().ledger.balance(self.organisation, self.deadline())

    def used(self, month: str | None = None) -> int:
        """The credits that the meter counts in a month, by default in this one."""
        month = month or month_of(self.clock())
        usage = self.process().accounts.usage(self.organisation, month, self.deadline())
        return sum(each.credits for each in usage)

    def audit(self) -> AuditReport:
        """The audit of the organisation."""
        return self.process().accounts.audit(self.organisation, self.deadline())

    def stored_keys(self) -> set[str]:
        """The object keys of the organisation."""
        answer = self.engine.s3.list_objects_v2(
            Bucket=self.engine.bucket, Prefix=f"generated/gemini/{self.organisation}/"
        )
        return {found["Key"] for found in answer.get("Contents", [])}

    def violations(self) -> list[str]:
        """Everything that is wrong with the money once nothing is in progress."""
        rows = self.rows()
        (account,) = (Account.from_item(row) for row in rows if row["sk"]["S"] == "ACCOUNT")
        report = audit_of(self.organisation, account, rows, int(self.clock.now_s), listed=True)
        wrong = list(report.findings)
        if report.drift:
            wrong.append(f"drift of {report.drift} credits")
        generations = _generations_in(rows)
        wrong += [f"{each.id} is still reserved" for each in generations if _is_open(each)]
        deleted = {each.image_key for each in generations if each.deleted_at is not None}
        wrong += [
            f"{each.id} has a prompt"
            for each in generations
            if bool(each.prompt) == (each.image_key in deleted)
        ]
        hashes = {
            each.image_key: each.image_sha256
            for each in generations
            if each.status is Status.SETTLED and each.deleted_at is None
        }
        charged = set(hashes)
        stored = self.stored_keys()
        wrong += [f"{key} is charged and not stored" for key in charged - stored]
        wrong += [f"{key} is stored, and deleted or not charged" for key in stored - charged]
        for key in charged & stored:
            found = self.process().images.read(key)
            if found is None or not is_whole_png(found.content):
                wrong.append(f"{key} is charged and is not a whole PNG")
            elif found.sha256 != hashes[key]:
                wrong.append(f"the receipt of {key} would name another picture")
        return wrong


def _generations_in(rows: list[Item]) -> list[Generation]:
    return [Generation.from_item(row) for row in rows if row["sk"]["S"].startswith("GEN#")]


def _is_open(generation: Generation) -> bool:
    return generation.status is Status.RESERVED or generation.due_at is not None


NewWorld = Callable[..., World]
"""The fixture ``new_world``: takes ``credits_``, ``rate_limit`` and ``budget``."""
