"""A whole service on an engine of choice, with a clock, a wire and a model that tests own.

The wire is between our rooms and everything outside: each call to DynamoDB, to the object store and
to the model passes through ``Wire.call``. There it is written down, and there a fault strikes.
"""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from itertools import count
from typing import Any, Self, cast

from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from botocore.response import StreamingBody
from PIL import Image

from infra.template import Template
from lib.deadline import FUNCTION_TIMEOUT_S, LEASE_S, RESPONSE_TAKES_S, WORKER_TIMEOUT_S, Deadline
from lib.errors import ModelOverloaded, ModelTimedOut, ServiceError
from lib.generation import Accepted, Finished, Generations
from lib.jobs import Job, Jobs
from lib.ledger.accounts import Accounts
from lib.ledger.audit import AuditReport, audit_of
from lib.ledger.ledger import Ledger
from lib.ledger.order import Order
from lib.ledger.reconciliation import Reconciled, Reconciler
from lib.ledger.rows import Account, Generation, Grant, Item, Status, account_key, number
from lib.ledger.table import LedgerUnreachable, Table
from lib.observability import Observation, Telemetry
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.check import is_whole_png
from lib.picture.storage import Images
from lib.settings import Settings
from tests.engines import Engine

BASE_URL = "https://images.example"
# Connecting and one read timeout, as lib.clients has them: what a call costs that nobody answers.
CALL_TAKES_S = {"dynamodb": 3.0, "s3": 4.0, "sqs": 3.0}
_TEMPLATE = Template.from_file()
_numbers = count(1)


class Killed(BaseException):
    """The process is gone: no ``except`` and no refund of its own can see this."""


class Fault(StrEnum):
    """What can happen to one call."""

    KILLED_BEFORE = "killed before the call"
    KILLED_AFTER = "killed after it took effect"
    RESPONSE_LOST = "the response is lost"
    ERROR_BEFORE = "an error before it took effect"
    CONFLICT = "a transaction conflict"
    THROTTLED = "throttled"
    BODY_CUT = "the connection breaks in the middle of the body"
    OUTAGE = "the service answers nothing from here on"
    LOST_THEN_OUTAGE = "it took effect, and the service answers nothing from here on"


@dataclass(frozen=True)
class Call:
    """One call that left a room."""

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
class Wire:
    """What one process says to the outside, and the one fault that strikes it."""

    strikes_at: int | None = None
    fault: Fault | None = None
    before_each: Callable[[Call], None] = lambda _call: None
    unanswered: Callable[[Call], None] = lambda _call: None
    calls: list[Call] = field(default_factory=list)
    _dead: bool = False
    _out: str | None = None

    def call(self, call: Call, effect: Callable[[], Any]) -> Any:
        """Runs ``effect``, unless the fault of this wire has something against it."""
        if self._dead:
            raise Killed
        number = len(self.calls)
        self.calls.append(call)
        if self._out == call.service:
            self.unanswered(call)
            raise _unreachable(call)
        self.before_each(call)
        if number != self.strikes_at or self.fault is None:
            return effect()
        return self._strike(self.fault, call, effect)

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
            raise _throttled(call)
        if fault in {Fault.OUTAGE, Fault.LOST_THEN_OUTAGE}:
            self._out = call.service
        self.unanswered(call)
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


def _throttled(call: Call) -> ClientError:
    if call.service == "s3":
        return _aws_error(call, "SlowDown", 503)
    return _aws_error(call, "ThrottlingException", 400)


def _conflict(call: Call) -> ClientError:
    if call.operation != "transact_write_items":
        return _aws_error(call, "TransactionConflictException", 400)
    conflict = _aws_error(call, "TransactionCanceledException", 400)
    reasons = [{"Code": "TransactionConflict"}, {"Code": "None"}]
    cast("dict[str, Any]", conflict.response)["CancellationReasons"] = reasons
    return conflict


def _aws_error(call: Call, code: str, status: int) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": "made up by a test"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, call.operation)


class OnWire:
    """A boto3 client whose calls pass through a wire."""

    def __init__(self, client: Any, service: str, wire: Wire) -> None:
        self._client = client
        self._service = service
        self._wire = wire

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        method = getattr(self._client, operation)

        def called(**arguments: Any) -> Any:
            call = Call(self._service, operation)
            return self._wire.call(call, lambda: method(**arguments))

        return called


class Clock:
    """Epoch seconds that pass when a test says so, and when something sleeps."""

    def __init__(self) -> None:
        self.now_s = float(int(time.time()) // 60 * 60)

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class PaintedModel:
    """A model that paints a small picture of the right shape, or fails as it is told."""

    def __init__(
        self, wire: Wire, failure: Exception | None, take_time: Callable[[], None]
    ) -> None:
        self._wire = wire
        self._failure = failure
        self._take_time = take_time

    def generate(self, prompt: str, ratio: AspectRatio, deadline: Deadline) -> bytes:
        assert prompt
        if deadline.passed():
            raise ModelTimedOut
        return cast("bytes", self._wire.call(Call("model", "generate"), lambda: self._paint(ratio)))

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
    """A queue: what was sent stays until a test takes it out."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def send_message(self, *, QueueUrl: str, MessageBody: str) -> None:  # noqa: N803 - as in boto3
        assert QueueUrl
        self.messages.append(MessageBody)


@dataclass
class Process:
    """One sandbox: a wire and the rooms behind it."""

    wire: Wire
    ledger: Ledger
    accounts: Accounts
    images: Images
    generations: Generations
    reconciler: Reconciler


class World:
    """A table with one organisation in it, a clock, and any number of processes.

    Each world has a table of its own: moto copies all of its tables at every transaction.
    """

    def __init__(self, engine: Engine, credits_: int = 100, rate_limit: int = 60) -> None:
        self.engine = engine
        self.table = f"credits-{next(_numbers)}"
        engine.dynamodb.create_table(**_TEMPLATE.table_definition(self.table))
        self.clock = Clock()
        self.mailbox = Mailbox()
        self.last_request_took_s = 0.0
        self.organisation = f"org{next(_numbers)}"
        self.telemetry = Telemetry(
            Settings("table", "bucket", BASE_URL, "orgs/", "gemini-key"),
        )
        self._put(
            account_key(self.organisation)
            | {
                "credits": number(credits_),
                "rateLimit": number(rate_limit),
                # The current minute has begun: a request spends no call on learning that.
                "rateWindow": number(int(self.clock.now_s)),
                "rateUsed": number(0),
            }
        )
        if credits_:
            grant = Grant("first", credits_, "test", "test", int(self.clock()))
            self._put(grant.to_item(self.organisation))

    def _put(self, item: Item) -> None:
        self.engine.dynamodb.put_item(TableName=self.table, Item=item)

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
        wire: Wire | None = None,
        failure: Exception | None = None,
        model_takes_s: float = 0,
    ) -> Process:
        """A new process; ``failure`` is what its model answers with."""
        wire = wire or Wire()
        wire.unanswered = lambda call: self.clock.sleep(CALL_TAKES_S.get(call.service, 0.0))
        dynamodb: Any = OnWire(self.engine.dynamodb, "dynamodb", wire)
        s3: Any = OnWire(self.engine.s3, "s3", wire)
        sqs: Any = OnWire(self.mailbox, "sqs", wire)
        jobs = Jobs(sqs, "https://queue.example", self.clock.sleep)
        # Half of the longest pause, always: a test must be the same each time it runs.
        table = Table(dynamodb, self.table, self.clock.sleep, jitter=lambda: 0.5)
        ledger = Ledger(table, self.clock)
        images = Images(lambda: s3, self.engine.bucket, BASE_URL, self.clock.sleep)
        model = PaintedModel(wire, failure, lambda: self.clock.sleep(model_takes_s))
        return Process(
            wire=wire,
            ledger=ledger,
            accounts=Accounts(table, self.clock),
            images=images,
            generations=Generations(ledger, model, images, jobs, clock=self.clock),
            reconciler=Reconciler(ledger, images, self.clock),
        )

    def order(
        self, key: str | None = None, prompt: str = "a red fox", *, asynchronous: bool = False
    ) -> Order:
        """What the customer of this world asks for."""
        ratio = AspectRatio.LANDSCAPE_16_9
        return Order(self.organisation, prompt, ratio, key, asynchronous=asynchronous)

    def request(self, process: Process, key: str | None = None) -> Finished | ServiceError | None:
        """One request: the customer's image, the error they see, or nothing when it was killed."""
        began = self.clock.now_s
        try:
            with self.observe() as observation:
                deadline = self.deadline(FUNCTION_TIMEOUT_S - RESPONSE_TAKES_S)
                return process.generations.generate(self.order(key), deadline, observation)
        except ServiceError as error:
            return error
        except Killed:
            return None
        finally:
            self.last_request_took_s = self.clock.now_s - began

    def accept(
        self, process: Process, key: str | None = None
    ) -> Accepted | Finished | ServiceError | None:
        """One asynchronous request: what the customer sees, or nothing when it was killed."""
        began = self.clock.now_s
        try:
            with self.observe() as observation:
                deadline = self.deadline(FUNCTION_TIMEOUT_S - RESPONSE_TAKES_S)
                order = self.order(key, asynchronous=True)
                return process.generations.accept(order, deadline, observation)
        except ServiceError as error:
            return error
        except Killed:
            return None
        finally:
            self.last_request_took_s = self.clock.now_s - began

    def work(self, process: Process, message: str) -> bool:
        """One delivery of a job; whether the worker was done with it."""
        deadline = self.deadline(WORKER_TIMEOUT_S)
        try:
            with self.observe() as observation:
                process.generations.work(Job.from_message(message), deadline, observation)
        except (Killed, LedgerUnreachable):
            return False
        return True

    def deliver(self, process: Process | None = None) -> None:
        """Every message that was ever sent comes to a worker, now and perhaps once more."""
        for message in self.mailbox.messages:
            self.work(process or self.process(), message)

    def reconcile(self, process: Process, ends_after_s: float = 45) -> Reconciled | None:
        """One run of the reconciler, over every hold in the table; nothing when it broke off."""
        try:
            with self.observe() as observation:
                return process.reconciler.run(self.deadline(ends_after_s), observation)
        except (Killed, LedgerUnreachable):
            return None

    @contextmanager
    def observe(self) -> Iterator[Observation]:
        """A record of one request."""
        with self.telemetry.observe("a-request") as observation:
            yield observation

    def let_leases_pass(self) -> None:
        """Moves the clock past every lease."""
        rows = (row for row in self.rows() if "dueAt" in row)
        leases = [int(row["dueAt"]["N"]) for row in rows]
        longest_s = max(leases, default=0) - self.clock.now_s
        self.clock.sleep(max(LEASE_S, longest_s) + 1)

    def settle_down(self) -> None:
        """What happens in the minutes after: leases pass, and the reconciler comes by."""
        for _ in range(2):
            if any(_is_open(each) for each in self.generations()):
                self.let_leases_pass()
                self.reconcile(self.process())

    def rows(self) -> list[Item]:
        """Everything that the table holds of the organisation."""
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
        """What is wrong with the money now that nothing is going on any more."""
        rows = self.rows()
        (account,) = (Account.from_item(row) for row in rows if row["sk"]["S"] == "ACCOUNT")
        report = audit_of(self.organisation, account, rows, int(self.clock.now_s))
        wrong = list(report.findings)
        if report.drift:
            wrong.append(f"drift of {report.drift} credits")
        generations = _generations_in(rows)
        wrong += [f"{each.id} is still reserved" for each in generations if _is_open(each)]
        charged = {each.image_key for each in generations if each.status is Status.SETTLED}
        stored = self.stored_keys()
        wrong += [f"{key} is charged and not stored" for key in charged - stored]
        wrong += [f"{key} is stored and not charged" for key in stored - charged]
        for key in charged & stored:
            found = self.process().images.read(key)
            if found is None or not is_whole_png(found.content):
                wrong.append(f"{key} is charged and is no whole PNG")
        return wrong


def _generations_in(rows: list[Item]) -> list[Generation]:
    return [Generation.from_item(row) for row in rows if row["sk"]["S"].startswith("GEN#")]


def _is_open(generation: Generation) -> bool:
    return generation.status is Status.RESERVED or generation.due_at is not None


NewWorld = Callable[..., World]
"""The fixture ``new_world``: takes ``credits_`` and ``rate_limit``."""
