"""Runs the deployed functions through every outcome, in this process, and records what they do.

The real handlers run with the environment that the template gives them, on the embedded AWS and the
Gemini stand-in. Recorded are each call to AWS, as the permission that it needs, and the metrics
that CloudWatch would extract from the functions' logs.
"""

import base64
import contextlib
import gc
import importlib
import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from handlers.dependencies import dependencies
from infra.local.aws import REGION, EmbeddedAws
from infra.local.functions import LambdaContext
from infra.local.gemini_stand_in import GeminiStandIn, ModelRequest, ModelResponse
from infra.template import Function, Template
from lib.deadline import Deadline
from lib.http.openai import IMAGES_ROUTE
from lib.keys.format import new_key, parse_key
from lib.keys.key_ring import KeyRing
from lib.ledger.accounts import Accounts
from lib.ledger.ledger import Ledger
from lib.ledger.rows import Generation, Grant
from lib.ledger.table import Table
from lib.picture.aspect_ratio import AspectRatio
from tests.cloudformation import DOCUMENT, ON_R2, Variant
from tests.world import small_picture

__all__ = ["R2_KEY_ID", "Invocation", "Need", "Recording", "recorded"]

GENERATE = "POST /api/v1/models/gemini/generate"
CREDITS = "GET /api/v1/billing/credits"
USAGE = "GET /api/v1/billing/usage"
HISTORY = "GET /api/v1/generations"
ONE = "GET /api/v1/generations/{id}"
DELETE = "DELETE /api/v1/generations/{id}"
RECEIPT = f"{ONE}/receipt"
R2_SECRET = "r2/credentials"
R2_KEY_ID = "the-key-id-of-r2"
# A prompt with this text loses its reservation while the model draws.
REFUNDED_MEANWHILE = "[refunded meanwhile]"
_HANDLERS = ("account", "audit", "delete", "generate", "reconcile", "worker")
_FOREIGN = ("AWS_", "GEMINI_", "GOOGLE_", "POWERTOOLS_")
_TRANSACTED = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
}
# DynamoDB's calls on one table or index; each needs the permission of the same name.
_OF_DYNAMODB = {"GetItem", "PutItem", "UpdateItem", "DeleteItem", "Query", "Scan"}
_OF_S3 = {
    "PutObject": "s3:PutObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "DeleteObject": "s3:DeleteObject",
}


@dataclass(frozen=True, order=True)
class Need:
    """A permission that one call of a function needed."""

    function: str
    action: str
    resource: str


@dataclass(frozen=True)
class Invocation:
    """What one invocation emitted, in the embedded metric format, and the status of its answer.

    The status is 0 for a function that answers no request.
    """

    function: str
    status: int
    emitted: list[dict[str, Any]]


@dataclass
class Recording:
    """``emitted`` holds records in CloudWatch's embedded metric format, ``logged`` all other lines.

    ``credentials`` holds the ids of the access keys that called the object store. ``invocations``
    holds the first invocation of each handler and outcome: an error code, "accepted" or "done",
    whether that was a bug, and whether it is to be redelivered.
    """

    variant: Variant
    needs: set[Need] = field(default_factory=set)
    credentials: set[str] = field(default_factory=set)
    emitted: list[dict[str, Any]] = field(default_factory=list)
    logged: list[dict[str, Any]] = field(default_factory=list)
    invocations: dict[tuple[str, str], Invocation] = field(default_factory=dict)


@contextlib.contextmanager
def recorded(*, on_r2: bool = False) -> Iterator[Recording]:
    """A recording of the template's functions, after every outcome."""
    with contextlib.ExitStack() as running:
        aws = running.enter_context(EmbeddedAws())
        stand_in = running.enter_context(GeminiStandIn())
        variant = _deployed(aws, on_r2=on_r2)
        environment = {
            **variant.environment(),
            **aws.environment(),
            "GOOGLE_GEMINI_BASE_URL": stand_in.url,
            **({"STORAGE_ENDPOINT_URL": aws.url} if on_r2 else {}),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        functions = Template(DOCUMENT).functions()
        log = io.StringIO()
        driver = _Driver(Recording(variant), aws, functions, log)
        stand_in.answer_with(driver.draw)
        running.enter_context(_sessions_of(driver))
        running.enter_context(_environment(environment))
        with contextlib.redirect_stdout(log):
            driver.run()
        yield driver.recording


def _deployed(aws: EmbeddedAws, *, on_r2: bool) -> Variant:
    """Creates the table, the bucket and the secrets under the names that the template sets."""
    made = aws.client("secretsmanager").create_secret(Name="gemini", SecretString="any-key")
    parameters = {}
    if on_r2:
        aws.accept(access_key=R2_KEY_ID)
        pair = {"accessKeyId": R2_KEY_ID, "secretAccessKey": "r2"}
        aws.create_secret(R2_SECRET, json.dumps(pair))
        parameters = {
            "StorageEndpointUrl": ON_R2["StorageEndpointUrl"],
            "R2Bucket": f"r2-{aws.account_id}",
            "ImageBaseUrl": "https://images.example",
            "StorageCredentialsSecret": R2_SECRET,
        }
    # Every embedded AWS in this process shares the bucket names.
    names = {
        "GeminiApiKey": made["ARN"],
        "ImageBucket": f"images-{aws.account_id}",
        "JobsQueue": aws.client("sqs").create_queue(QueueName="jobs")["QueueUrl"],
        "ReceiptKeyA": aws.create_signing_key(),
    }
    variant = Variant(DOCUMENT, parameters, names=names, account=aws.account_id)
    environment = variant.environment()
    aws.create_table(environment["CREDITS_TABLE"], Template(DOCUMENT))
    aws.create_bucket(environment["IMAGE_BUCKET"])
    return variant


class _Driver:
    """Invokes the functions one after the other, and injects faults into their calls."""

    def __init__(
        self,
        recording: Recording,
        aws: EmbeddedAws,
        functions: tuple[Function, ...],
        log: io.StringIO,
    ) -> None:
        self.recording = recording
        self._aws = aws
        self._log = log
        self._functions = {each.handler: each for each in functions}
        self._environment = recording.variant.environment()
        self._table = self._environment["CREDITS_TABLE"]
        self._running = ""
        self._key = ""
        self._faults: dict[tuple[str, str], list[Exception]] = {}
        self._saying = ""

    def run(self) -> None:
        """Successes, rejections, failures, and how the reconciler resolves those."""
        self._requests()
        self._failures_of_the_model_and_the_store()
        self._failures_of_the_ledger()
        self._due_rows()
        self._jobs()
        self._deletions()
        self._audit()

    def _requests(self) -> None:
        self._open_account("acme", 1000)
        self._generate("A fox", 200, idempotency_key="one")
        self._generate("A fox", 200, idempotency_key="one")
        self._generate("A bear", 422, idempotency_key="one")
        self._generate("", 400)
        for _ in "12":
            self._image("A fox", 200, idempotency_key="openai")
        self._image("A fox [fail:safety]", 400)
        self._read("GET /v1/models", 200)
        self._read(CREDITS, 200)
        self._read(USAGE, 200)
        self._read("GET /healthz", 200)
        self._key = new_key("unknown")
        self._generate("A fox", 401)
        self._read(CREDITS, 401)
        self._open_account("poor", 0)
        self._generate("A fox", 402)
        self._open_account("busy", 100)
        self._change("busy", "ACCOUNT", "SET rateLimit = :value", 0)
        self._generate("A fox", 429)
        self._open_account("unlucky", 100)
        self._fail("GetSecretValue", _unreachable())
        self._generate("A fox", 500)
        self._fail("TransactWriteItems", RuntimeError("a bug"))
        self._generate("A fox", 500)
        self._fail("PutObject", RuntimeError("a bug"))
        self._generate("A fox", 500)
        # Neither the image's puts are answered nor the tombstone's.
        self._fail("PutObject", *(_lost() for _ in range(6)))
        self._generate("A fox", 500)

    def _failures_of_the_model_and_the_store(self) -> None:
        self._open_account("failing", 1000)
        for failure in ("safety", "bad-key", "overloaded", "no-image", "quota-zero"):
            self._generate(f"A fox [fail:{failure}]", 500)
        # The response to the first put is lost; the second finds an object and checks it.
        self._fail("PutObject", _lost(), after=True)
        self._generate("A fox", 200)
        # The responses to three puts are lost: a tombstone decides, and the refund is due again.
        self._fail("PutObject", _lost(), _lost(), _lost())
        self._generate("A fox", 500)

    def _failures_of_the_ledger(self) -> None:
        self._open_account("left", 1000)
        self._fail("TransactWriteItems", _refused(), saying=":refunded")
        self._generate("A fox [fail:safety]", 500, idempotency_key="two")
        self._generate("A fox [fail:safety]", 409, idempotency_key="two")
        self._fail("UpdateItem", _refused())
        self._generate("A fox", 200)
        # The image of a generation that is refunded meanwhile is deleted.
        self._open_account("late", 1000)
        self._generate(f"A fox {REFUNDED_MEANWHILE}", 500)

    def _due_rows(self) -> None:
        self._expire("failing")
        self._expire("left")
        self._reconcile(settled=1, refunded=1, swept=1)
        # A refund by the reconciler is due again.
        self._expire("left")
        self._fail("DeleteObject", _unreachable())
        self._reconcile(failed=1)
        self._reconcile(swept=1)

    def _jobs(self) -> None:
        self._open_account("patient", 1000)
        accepted = self._generate("A fox", 202, prefer="respond-async")
        self._read(HISTORY, 200)
        self._read(ONE, 200, accepted["id"])
        self._read(ONE, 404, "1000000000000")
        self._read(RECEIPT, 409, accepted["id"])
        self._read("GET /.well-known/jwks.json", 200)
        job = self._next_job()
        assert self._work(job) == []
        self._read(RECEIPT, 200, accepted["id"])
        # The queue may deliver a job twice.
        assert self._work(job) == []
        assert self._work("no job") == ["a-message"]
        self._generate("A bear [fail:safety]", 202, prefer="respond-async")
        assert self._work(self._next_job()) == []
        self._generate("A cat", 202, prefer="respond-async")
        self._fail("PutObject", _unreachable(), _unreachable(), _unreachable())
        assert self._work(self._next_job()) == []
        for failure in ("bad-key", "overloaded", "no-image", "quota-zero"):
            self._generate(f"A cat [fail:{failure}]", 202, prefer="respond-async")
            assert self._work(self._next_job()) == []
        self._generate("A cow", 202, prefer="respond-async")
        self._fail("PutObject", RuntimeError("a bug"))
        assert self._work(self._next_job()) == []
        self._generate("A boar", 202, prefer="respond-async")
        self._fail("UpdateItem", RuntimeError("a bug"))
        with pytest.raises(RuntimeError):
            self._work(self._next_job())
        self._generate("A yak", 202, prefer="respond-async")
        self._fail("PutObject", *(_lost() for _ in range(6)))
        assert self._work(self._next_job()) == ["a-message"]
        self._generate("A dog", 202, prefer="respond-async")
        self._fail("PutObject", _lost(), after=True)
        assert self._work(self._next_job()) == []
        self._generate(f"A crow {REFUNDED_MEANWHILE}", 202, prefer="respond-async")
        assert self._work(self._next_job()) == []
        # A delivery that dies before it stores anything leaves the job to the next one.
        self._generate("A newt", 202, prefer="respond-async")
        assert self._work(self._next_job(), deliveries=2) == []
        # A job that can't be queued is refunded immediately.
        self._fail("SendMessage", _refused())
        self._generate("An owl", 500, prefer="respond-async")

    def _audit(self) -> None:
        assert self._call("handlers.audit.handler", {})["findings"] == 0
        self._change("acme", "ACCOUNT", "ADD credits :value", 5)
        assert self._call("handlers.audit.handler", {})["findings"] == 1

    def _deletions(self) -> None:
        self._open_account("forgetful", 1000)
        self._generate("A fox", 200)
        self._generate("A fox [fail:safety]", 500)
        reserved = self._generate("A hen", 202, prefer="respond-async")["id"]
        rows = self._rows("forgetful")
        ids = {each["status"]["S"]: each["sk"]["S"][4:] for each in rows if "status" in each}
        self._fail("DeleteObject", _unreachable())
        self._delete(500, ids["settled"])
        self._expire("forgetful")
        self._reconcile(refunded=1, swept=1)
        self._change("forgetful", f"GEN#{ids['settled']}", "SET settledAt = :value", 1)
        for _ in range(2):
            self._delete(204, ids["settled"])
        self._delete(204, ids["refunded"])
        self._delete(204, reserved)
        self._read(ONE, 200, ids["settled"])
        self._delete(404, "1000000000000")
        self._generate("A cow", 202, prefer="respond-async")
        (row,) = (
            each for each in self._rows("forgetful") if each.get("status") == {"S": "reserved"}
        )
        self._delete(409, row["sk"]["S"][4:])
        self._key = new_key("unknown")
        self._delete(401, reserved)

    def _delete(self, status: int, generation: str) -> None:
        self._request("delete", DELETE, status, {}, None, {"id": generation})

    def _next_job(self) -> str:
        queue = self._aws.client("sqs")
        url = self._environment["JOBS_QUEUE_URL"]
        (message,) = queue.receive_message(QueueUrl=url)["Messages"]
        queue.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return message["Body"]

    def _work(self, body: str, *, deliveries: int = 1) -> list[str]:
        """The messages that the worker reports as failed."""
        attributes = {"ApproximateReceiveCount": str(deliveries)}
        event = {"Records": [{"messageId": "a-message", "body": body, "attributes": attributes}]}
        answer = self._call("handlers.worker.handler", event)
        return [each["itemIdentifier"] for each in answer["batchItemFailures"]]

    def _generate(
        self, prompt: str, status: int, idempotency_key: str = "", prefer: str = ""
    ) -> Any:
        headers = {"idempotency-key": idempotency_key, "prefer": prefer}
        given = {name: value for name, value in headers.items() if value}
        return self._request("generate", GENERATE, status, given, json.dumps({"prompt": prompt}))

    def _image(self, prompt: str, status: int, idempotency_key: str = "") -> Any:
        """A request in OpenAI's form, for the image itself: a second one reads it."""
        body = json.dumps({"prompt": prompt, "response_format": "b64_json"})
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        return self._request("generate", IMAGES_ROUTE, status, headers, body)

    def _read(self, route: str, status: int, generation: str = "") -> None:
        self._request("account", route, status, {}, None, {"id": generation} if generation else {})

    def _request(
        self,
        function: str,
        route: str,
        status: int,
        headers: Mapping[str, str],
        body: str | None,
        path: Mapping[str, str] | None = None,
    ) -> Any:
        event = {
            "version": "2.0",
            "routeKey": route,
            "headers": {"authorization": f"Bearer {self._key}", **headers},
            "pathParameters": path or {},
            "requestContext": {"requestId": "a-request"},
            "body": body,
            "isBase64Encoded": False,
        }
        answer = self._call(f"handlers.{function}.handler", event)
        assert answer["statusCode"] == status, (route, answer)
        is_json = answer["headers"].get("Content-Type") == "application/json"
        return json.loads(answer["body"]) if is_json else answer["body"]

    def _reconcile(self, **endings: int) -> None:
        answer = self._call("handlers.reconcile.handler", {})
        assert {name: many for name, many in answer.items() if many} == endings

    def _call(self, handler: str, event: Mapping[str, object]) -> Any:
        function = self._functions[handler]
        module, _, attribute = handler.rpartition(".")
        context = LambdaContext(function.name, str(function.memory_mb), function.timeout_s)
        self._running = function.name
        try:
            answer = getattr(importlib.import_module(module), attribute)(event, context)
        except RuntimeError:
            self._record(handler, {"headers": {"X-Error-Code": "crashed"}})
            raise
        else:
            self._record(handler, answer, form="OpenAI" * (event.get("routeKey") == IMAGES_ROUTE))
            return answer
        finally:
            self._running = ""
            unused = [name for name, faults in self._faults.items() if faults]
            assert not unused, f"{handler} made no such call: {unused}"

    def _record(self, handler: str, answer: Mapping[str, Any], form: str = "") -> None:
        lines = [json.loads(line) for line in self._log.getvalue().splitlines()]
        self._log.seek(0)
        self._log.truncate()
        emitted = [line for line in lines if "_aws" in line]
        self.recording.emitted.extend(emitted)
        self.recording.logged.extend(line for line in lines if "_aws" not in line)
        codes = [line["code"] for line in emitted if "code" in line]
        codes.append("accepted" if answer.get("statusCode") == 202 else "done")
        outcome = answer.get("headers", {}).get("X-Error-Code", codes[0])
        if any("UnexpectedErrors" in line for line in emitted):
            outcome = f"{outcome}, a bug"
        if answer.get("batchItemFailures"):
            outcome = f"{outcome}, redelivered"
        if form:
            outcome = f"{outcome}, in the form of {form}"
        made = Invocation(self._running, int(answer.get("statusCode", 0)), emitted)
        self.recording.invocations.setdefault((handler.split(".")[1], outcome), made)

    def _fail(
        self, operation: str, *faults: Exception, after: bool = False, saying: str = ""
    ) -> None:
        """The next calls of this operation whose body contains ``saying`` raise these, in order."""
        self._saying = saying
        self._faults["after-call" if after else "before-call", operation] = list(faults)

    def _open_account(self, organisation: str, credits_: int) -> None:
        deadline = Deadline(10)
        accounts = Accounts(Table(self._aws.client("dynamodb"), self._table))
        accounts.create(organisation, deadline)
        if credits_:
            accounts.grant(organisation, Grant("first", credits_, "test", "test", 1), deadline)
        prefix = self._environment["ORG_SECRET_PREFIX"]
        self._key = KeyRing(self._aws.client("secretsmanager"), prefix).issue(organisation).key

    def draw(self, request: ModelRequest) -> ModelResponse | None:
        """A picture of one colour; the stand-in handles prompts with a failure directive."""
        prompt = json.dumps(request.body)
        if "[fail:" in prompt:
            return None
        if REFUNDED_MEANWHILE in prompt:
            self._refund_what_is_reserved()
        return _small_picture()

    def _refund_what_is_reserved(self) -> None:
        """Does what a reconciler does that found every lease of the organisation expired."""
        ledger = Ledger(Table(self._aws.client("dynamodb"), self._table))
        for row in self._rows(parse_key(self._key) or ""):
            if row.get("status") == {"S": "reserved"}:
                ledger.refund(Generation.from_item(row), "timed_out", Deadline(10))

    def _expire(self, organisation: str) -> None:
        """Makes every row of the organisation due now."""
        for row in self._rows(organisation):
            if "dueShard" in row:
                self._change(organisation, row["sk"]["S"], "SET dueAt = :value", 1)

    def _rows(self, organisation: str) -> list[Any]:
        return self._aws.client("dynamodb").query(
            TableName=self._table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": f"ORG#{organisation}"}},
        )["Items"]

    def _change(self, organisation: str, sort_key: str, change: str, value: int) -> None:
        self._aws.client("dynamodb").update_item(
            TableName=self._table,
            Key={"pk": {"S": f"ORG#{organisation}"}, "sk": {"S": sort_key}},
            UpdateExpression=change,
            ExpressionAttributeValues={":value": {"N": str(value)}},
        )

    # botocore's events

    def before_parameter_build(self, params: Mapping[str, Any], model: Any, **_: object) -> None:
        """Records the permissions that the call needs."""
        service = model.service_model.service_name
        for action, resource in self._permissions(service, model.name, params):
            self._need(action, resource)

    def before_call(self, model: Any, params: Mapping[str, Any], **_: object) -> None:
        """Raises the injected fault, before the call takes effect."""
        if self._saying in str(params["body"]):
            self._raise_fault("before-call", model.name)

    def before_send(self, request: Any, event_name: str, **_: object) -> None:
        """Records the access key that signed the request."""
        if event_name.startswith("before-send.s3."):
            header = request.headers["Authorization"]
            text = header.decode() if isinstance(header, bytes) else header
            self.recording.credentials.add(text.partition("Credential=")[2].partition("/")[0])

    def after_call(self, model: Any, parsed: Mapping[str, Any], **_: object) -> None:
        """Raises the injected fault, after the call took effect."""
        code = parsed.get("Error", {}).get("Code")
        if model.name == "GetObject" and code == "NoSuchKey":
            # Without permission to list the bucket, S3 answers 403 for a missing object.
            self._need("s3:ListBucket", f"arn:aws:s3:::{self._environment['IMAGE_BUCKET']}")
        self._raise_fault("after-call", model.name)

    def _raise_fault(self, moment: str, operation: str) -> None:
        faults = self._faults.get((moment, operation))
        if faults:
            raise faults.pop(0)

    def _need(self, action: str, resource: str) -> None:
        assert self._running, f"{action}: no function runs"
        self.recording.needs.add(Need(self._running, action, resource))

    def _permissions(
        self, service: str, operation: str, params: Mapping[str, Any]
    ) -> Iterator[tuple[str, str]]:
        """The permissions that a call needs. Source: AWS's service authorization reference."""
        if service == "dynamodb" and operation == "TransactWriteItems":
            for member in params["TransactItems"]:
                ((kind, write),) = member.items()
                yield f"dynamodb:{_TRANSACTED[kind]}", self._table_arn(write)
        elif service == "dynamodb" and operation in _OF_DYNAMODB:
            yield f"dynamodb:{operation}", self._table_arn(params)
        elif service == "s3":
            yield _OF_S3[operation], f"arn:aws:s3:::{params['Bucket']}/{params['Key']}"
        elif service == "sqs" and operation == "SendMessage":
            yield "sqs:SendMessage", f"arn:aws:sqs:{REGION}:{self._aws.account_id}:jobs"
        elif service == "kms" and operation in {"Sign", "GetPublicKey"}:
            yield (
                f"kms:{operation}",
                f"arn:aws:kms:{REGION}:{self._aws.account_id}:key/{params['KeyId']}",
            )
        elif service == "secretsmanager" and operation == "GetSecretValue":
            yield "secretsmanager:GetSecretValue", self._secret_arn(params["SecretId"])
        else:
            raise AssertionError(f"no known permission for {service}:{operation}")

    def _table_arn(self, params: Mapping[str, Any]) -> str:
        arn = f"arn:aws:dynamodb:{REGION}:{self._aws.account_id}:table/{params['TableName']}"
        return f"{arn}/index/{params['IndexName']}" if "IndexName" in params else arn

    def _secret_arn(self, name: str) -> str:
        """The ARN, which ends in random characters that Secrets Manager adds to the name."""
        if name.startswith("arn:"):
            return name
        secrets = self._aws.client("secretsmanager")
        try:
            return secrets.describe_secret(SecretId=name)["ARN"]
        except secrets.exceptions.ResourceNotFoundException:
            return f"arn:aws:secretsmanager:{REGION}:{self._aws.account_id}:secret:{name}"


def _unreachable() -> Exception:
    return EndpointConnectionError(endpoint_url="https://unreachable.example")


def _lost() -> Exception:
    return ReadTimeoutError(endpoint_url="https://slow.example")


def _refused() -> Exception:
    """A DynamoDB error that no retry can mend."""
    response: Any = {
        "Error": {"Code": "AccessDeniedException", "Message": "made up by a test"},
        "ResponseMetadata": {"HTTPStatusCode": 400},
    }
    return ClientError(response, "any")


@contextlib.contextmanager
def _sessions_of(driver: _Driver) -> Iterator[None]:
    """Every boto3 client created in the block reports its calls to ``drive``."""
    before = boto3.DEFAULT_SESSION
    boto3.setup_default_session()
    session = boto3.DEFAULT_SESSION
    assert session is not None
    session.events.register("before-parameter-build", driver.before_parameter_build)
    session.events.register("before-call", driver.before_call)
    session.events.register("before-send", driver.before_send)
    session.events.register("after-call", driver.after_call)
    try:
        yield
    finally:
        boto3.DEFAULT_SESSION = before


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        # On Lambda each function has its own processes, and shares no cache with another.
        caches = {name: cache(dependencies.__wrapped__) for name in _HANDLERS}
        for name, own in caches.items():
            patch.setattr(f"handlers.{name}.dependencies", own)
        yield
        with warnings.catch_warnings():
            # On Lambda the idle connections end with the process.
            warnings.simplefilter("ignore", ResourceWarning)
            for own in caches.values():
                own.cache_clear()
            gc.collect()


def _small_picture() -> ModelResponse:
    data = base64.b64encode(small_picture(AspectRatio.SQUARE)).decode()
    content = {"parts": [{"inlineData": {"mimeType": "image/jpeg", "data": data}}]}
    candidate = {"content": content, "finishReason": "STOP", "index": 0}
    return ModelResponse(200, json.dumps({"candidates": [candidate]}).encode())
