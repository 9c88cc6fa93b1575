"""``gemini-generate --stack-name``: every command on a deployed stack, as the guide permits it.

moto's CloudFormation has neither aliases nor alarms nor secrets, so the stack's resources are made
one by one, and CloudFormation's two answers are this module's.
"""

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from infra.cli import main
from infra.docs.markdown import Markdown
from infra.local.aws import EmbeddedAws
from infra.local.gemini_stand_in import GeminiStandIn, ModelResponse
from infra.template import PROJECT_ROOT, Template
from lib.ledger.ledger import Ledger
from lib.ledger.table import Table
from tests.cloudformation import DOCUMENT
from tests.test_cli import Exited, Run, commands, reserve
from tests.test_permissions import PolicyStatement, allowed

# It loads many of boto3's services.
pytestmark = pytest.mark.real

NAME = "gemini-generate"
PREFIX = "gemini-generate/orgs/"
MODEL = "gemini-3.1-flash-lite-image"
FUNCTIONS = ("Generate", "Account", "Delete", "Worker", "Reconcile")
WRITERS = ("Generate", "Delete", "Worker", "Reconcile")
ALARMS = ("AuditDriftAlarm", "GenerateErrorsAlarm")
WORKERS = 10
GUIDE = Markdown.read(PROJECT_ROOT / "infra" / "docs" / "DEPLOY.md")
OF_THE_GUIDE = "123456789012"
DISTRIBUTION = "E1A2B3C4D5E6F7"
# The end of a resource's ARN, by the service and the parameter of a call that names it.
ARNS = {
    "dynamodb TableName": "table/{TableName}",
    # Secrets Manager adds characters to the name.
    "secretsmanager secret": "secret:{secret}-a1B2c3",
    "cloudformation StackName": "stack/{StackName}/1-2-3",
    "logs logGroupName": "log-group:{logGroupName}",
    "lambda FunctionName": "function:{FunctionName}",
    "cloudfront DistributionId": "distribution/{DistributionId}",
    # Moto chooses its keys' ids.
    "kms KeyId": "key/1234abcd-12ab-34cd-56ef-1234567890ab",
}
# What the reconciler may have to do with an image, whose every case tests/test_permissions.py runs.
OF_IMAGES = {"s3:DeleteObject", "s3:GetObject", "s3:PutObject", "s3:ListBucket"}


@dataclass
class Deployed:
    """A stack in an account of its own. ``resources`` are its type and physical name, by name."""

    aws: EmbeddedAws
    stand_in: GeminiStandIn
    workers: int = WORKERS
    resources: dict[str, tuple[str, str]] = field(default_factory=dict)
    clients: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> str:
        return self.resources["CreditsTable"][1]

    def client(self, service: str) -> Any:
        """A client of a session of its own, whose calls are no command's."""
        if service not in self.clients:
            build: Any = boto3.Session().client
            self.clients[service] = build(service)
        return self.clients[service]

    def deploy(self) -> None:
        """Makes the resources under the names that CloudFormation would give them."""
        self.add("CreditsTable", "DynamoDB::Table", f"{NAME}-CreditsTable-1ABC")
        self.aws.create_table(self.table, Template(DOCUMENT))
        bucket = f"{NAME}-imagebucket-{self.aws.account_id}"
        self.add("ImageBucket", "S3::Bucket", bucket)
        self.aws.create_bucket(bucket)
        secret = self.aws.client("secretsmanager").create_secret(
            Name="GeminiApiKey-1ABC", SecretString="any-key"
        )
        self.add("GeminiApiKey", "SecretsManager::Secret", secret["ARN"])
        key = self.aws.client("kms").create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
        self.add("ReceiptKeyA", "KMS::Key", key["KeyMetadata"]["KeyId"])
        trust = {
            "Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}}]
        }
        role = self.client("iam").create_role(
            RoleName=f"role-{self.aws.account_id}", AssumeRolePolicyDocument=json.dumps(trust)
        )["Role"]["Arn"]
        for name in FUNCTIONS:
            self._add_function(name, role)
        topic = self.client("sns").create_topic(Name=f"{NAME}-AlarmTopic-1ABC")["TopicArn"]
        self.add("AlarmTopic", "SNS::Topic", topic)
        self.client("sns").subscribe(
            TopicArn=topic, Protocol="sqs", Endpoint="arn:aws:sqs:us-east-1:1:a"
        )
        for name in ALARMS:
            self.add(name, "CloudWatch::Alarm", f"{NAME}-{name}-1ABC")
            self.ring(name, "OK")

    def _add_function(self, name: str, role: str) -> None:
        function = f"{NAME}-{name}Function-1ABC"
        lambda_ = self.client("lambda")
        lambda_.create_function(
            FunctionName=function,
            Runtime="python3.13",
            Handler="handlers.a.b",
            Role=role,
            Code={"ZipFile": b"a picture"},
            Environment={"Variables": {"GEMINI_MODEL": MODEL}},
            Publish=True,
        )
        self.add(f"{name}Function", "Lambda::Function", function)
        lambda_.create_alias(FunctionName=function, Name="live", FunctionVersion="1")
        group = f"/gemini-generate/{NAME}/{name.lower()}"
        self.client("logs").create_log_group(logGroupName=group)
        self.add(f"{name}Log", "Logs::LogGroup", group)

    def add(self, name: str, kind: str, physical: str) -> None:
        self.resources[name] = (f"AWS::{kind}", physical)

    def function(self, name: str) -> str:
        return self.resources[f"{name}Function"][1]

    def change_settings(self, name: str, model: str = "another") -> None:
        self.client("lambda").update_function_configuration(
            FunctionName=self.function(name), Environment={"Variables": {"GEMINI_MODEL": model}}
        )

    def change_key(self, text: str) -> None:
        self.aws.client("secretsmanager").put_secret_value(
            SecretId=self.resources["GeminiApiKey"][1], SecretString=text
        )

    @contextmanager
    def changed(self, change: Callable[["Deployed"], None]) -> Iterator[None]:
        """The stack after ``change`` inside the block, and as it was deployed afterwards."""
        before = dict(self.resources)
        change(self)
        try:
            yield
        finally:
            self.resources, self.workers = before, WORKERS
            self.stand_in.answer_with(None)
            self.change_key("any-key")
            for alarm in ALARMS:
                self.ring(alarm, "OK")
            self._move_all_to_the_newest()

    def _move_all_to_the_newest(self) -> None:
        lambda_ = self.client("lambda")
        for name in FUNCTIONS:
            function = self.function(name)
            lambda_.publish_version(FunctionName=function)
            versions = lambda_.list_versions_by_function(FunctionName=function)["Versions"]
            newest = max(int(each["Version"]) for each in versions if each["Version"].isdigit())
            lambda_.update_alias(
                FunctionName=function, Name="live", FunctionVersion=str(newest), RoutingConfig={}
            )

    def ring(self, alarm: str, state: str) -> None:
        cloudwatch = self.client("cloudwatch")
        name = self.resources[alarm][1]
        cloudwatch.put_metric_alarm(
            AlarmName=name,
            ComparisonOperator="GreaterThanThreshold",
            EvaluationPeriods=1,
            Threshold=1,
            MetricName="x",
            Namespace="y",
            Period=60,
            Statistic="Sum",
        )
        cloudwatch.set_alarm_state(AlarmName=name, StateValue=state, StateReason="a test")

    def log(self, name: str, *lines: str) -> None:
        group = self.resources[f"{name}Log"][1]
        logs = self.client("logs")
        stream = f"stream-{time.time_ns()}"
        logs.create_log_stream(logGroupName=group, logStreamName=stream)
        now = int(time.time() * 1000)
        events = [{"timestamp": now + at, "message": line} for at, line in enumerate(lines)]
        logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)

    def described(self, **_: object) -> tuple[Any, Any]:
        outputs = {
            "TableName": self.table,
            "OrgSecretPrefix": PREFIX,
            "ImageBase": "https://images.example",
            "ImageBucketName": self.resources["ImageBucket"][1],
            "ImageDistributionId": DISTRIBUTION,
            "GeminiApiKeySecret": self.resources["GeminiApiKey"][1],
            "ReceiptKeyId": self.resources["ReceiptKeyA"][1],
        }
        parameters = {"WorkerConcurrency": str(self.workers), "GeminiModel": MODEL}
        return _answer(
            Stacks=[
                {
                    "Outputs": _pairs("Output", outputs),
                    "Parameters": _pairs("Parameter", parameters),
                }
            ]
        )

    def listed(self, **_: object) -> tuple[Any, Any]:
        return _answer(
            StackResourceSummaries=[
                {"LogicalResourceId": name, "ResourceType": kind, "PhysicalResourceId": physical}
                for name, (kind, physical) in self.resources.items()
            ]
        )

    @staticmethod
    def settings_of_the_account(**_: object) -> tuple[Any, Any]:
        limits = {"ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": 900}
        return _answer(AccountLimit=limits)


def _answer(**parsed: object) -> tuple[Any, Any]:
    """What botocore takes for the answer to a call, instead of making the call."""
    return SimpleNamespace(status_code=200), parsed


def _pairs(kind: str, values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{f"{kind}Key": name, f"{kind}Value": value} for name, value in values.items()]


@pytest.fixture(scope="module")
def stack() -> Iterator[Deployed]:
    with (
        EmbeddedAws() as aws,
        GeminiStandIn() as stand_in,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in aws.environment().items():
            patch.setenv(name, value)
        patch.setenv("GOOGLE_GEMINI_BASE_URL", stand_in.url)
        patch.setattr("boto3.DEFAULT_SESSION", None)
        boto3.setup_default_session()
        deployed = Deployed(aws, stand_in)
        assert boto3.DEFAULT_SESSION is not None
        answers: tuple[tuple[str, Any], ...] = (
            ("cloudformation.DescribeStacks", deployed.described),
            ("cloudformation.ListStackResources", deployed.listed),
            # moto does not have these.
            ("lambda.GetAccountSettings", deployed.settings_of_the_account),
            ("cloudfront.CreateInvalidation", lambda **_: _answer()),
        )
        for operation, answer in answers:
            boto3.DEFAULT_SESSION.events.register(f"before-call.{operation}", answer)
        deployed.deploy()
        yield deployed
        for client in deployed.clients.values():
            client.close()


@pytest.fixture
def run(stack: Deployed, capsys: pytest.CaptureFixture[str]) -> Run:  # noqa: ARG001 - it exists
    """Runs a command line on the stack."""

    def command(line: str, *more: str) -> Exited:
        status = main(["--stack-name", NAME, *line.split(), *more])
        return Exited(status, *capsys.readouterr())

    return command


# Permissions


@dataclass
class Recorder:
    """The permissions that the calls of the block needed, in the guide's account."""

    account: str
    needs: set[tuple[str, str]] = field(default_factory=set)

    def before_parameter_build(self, params: Mapping[str, Any], model: Any, **_: object) -> None:
        service, operation = model.service_model.service_name, model.name
        for action, resource in self._needed(service, operation, params):
            self.needs.add((action, resource))

    def _needed(
        self, service: str, operation: str, params: Mapping[str, Any]
    ) -> Iterator[tuple[str, str]]:
        """Source: AWS's service authorization reference."""
        match service, operation:
            case "sts", "GetCallerIdentity":
                return  # It needs no permission.
            case "dynamodb", "TransactWriteItems":
                for member in params["TransactItems"]:
                    ((kind, write),) = member.items()
                    yield f"dynamodb:{kind}Item", self._arn(service, write)
            case "dynamodb", "BatchWriteItem":
                for table in params["RequestItems"]:
                    yield "dynamodb:BatchWriteItem", self._arn(service, {"TableName": table})
            case "s3", _:
                bucket = f"arn:aws:s3:::{params['Bucket']}"
                yield f"s3:{operation}".replace("Head", "Get"), f"{bucket}/{params['Key']}"
                # Otherwise S3 answers 403 for a missing object.
                yield "s3:ListBucket", bucket
            case _:
                yield f"{service}:{operation}", self._arn(service, params)

    def _arn(self, service: str, params: Mapping[str, Any]) -> str:
        known = defaultdict(str, {name: str(value) for name, value in params.items()})
        known["secret"] = known["SecretId"] or known["Name"]
        for given in (known["secret"], known["TopicArn"]):
            if given.startswith("arn:"):
                return given.replace(self.account, OF_THE_GUIDE)
        if "IndexName" in params:
            known["TableName"] += f"/index/{params['IndexName']}"
        for name, form in ARNS.items():
            if name.partition(" ")[0] == service and known[name.partition(" ")[2]]:
                region = "" if service == "cloudfront" else "us-east-1"
                return f"arn:aws:{service}:{region}:{OF_THE_GUIDE}:{form.format_map(known)}"
        return "*"


@contextmanager
def recording(stack: Deployed) -> Iterator[Recorder]:
    recorder = Recorder(stack.aws.account_id)
    session = boto3.DEFAULT_SESSION
    assert session is not None
    session.events.register("before-parameter-build", recorder.before_parameter_build)
    try:
        yield recorder
    finally:
        session.events.unregister("before-parameter-build", recorder.before_parameter_build)


def policy_of_the_guide() -> list[PolicyStatement]:
    (written,) = (json.loads(each.text) for each in GUIDE.fences if '"Statement"' in each.text)
    return [PolicyStatement.of(each) for each in written["Statement"]]


def test_the_guides_policy_allows_every_command_and_nothing_that_none_needs(
    stack: Deployed, run: Run, tmp_path: Path
) -> None:
    restored = f"{NAME}-restored"
    ran: set[tuple[str, ...]] = set()
    stack.aws.create_table(restored, Template(DOCUMENT))
    ledger = Ledger(Table(stack.aws.client("dynamodb"), stack.table))

    def runs(line: str, *more: str) -> str:
        words = tuple(line.split())
        ran.update(words[:length] for length in (1, 2))
        exited = run(line, *more)
        assert exited.status in {0, 1}, exited
        assert "denied" not in exited.err
        return exited.out

    with recording(stack) as recorder:
        runs("org create acme --rate-limit 120")
        runs("org limit acme 240")
        runs("credits grant acme 500 --id invoice-17 --note Paid")
        runs("credits balance acme")
        runs("credits history acme")
        runs("keys issue acme --name ci --expires 90d")
        runs("keys rotate acme --grace-hours 24 --yes")
        (key_id, *_) = re.findall(r"key_\w+", runs("keys list acme"))
        runs(f"keys budget acme {key_id} 800")
        runs(f"keys revoke acme {key_id} --yes")
        made = reserve(ledger, "acme", "a fox", lease_s=-1)
        runs("generations list acme")
        runs(f"generations show acme {made.id}")
        runs("reconcile")
        runs(f"generations delete acme {made.id} --yes")
        first = tmp_path / "first.csv"
        first.write_text(runs("statement acme --month 2026-01 --csv"), encoding="utf-8")
        runs("statement acme --month 2026-02 --csv --previous", str(first))
        reserve(ledger, "acme", "a bear")
        runs("org suspend acme --yes --reason Unpaid")
        runs("org resume acme")
        runs("org show acme")
        runs("org list")
        runs("usage --all")
        runs("audit")
        runs("doctor")
        runs("logs 8f0c")
        _copy_rows(stack, restored)
        with stopped(stack):
            runs(f"restore {restored} --yes")
        runs("org erase acme --confirm acme")

    leaves = {words for words, each in commands() if getattr(each, "needs_target", False)}
    assert leaves <= ran
    policy = policy_of_the_guide()
    assert {need for need in recorder.needs if not allowed(policy, *need)} == set()
    actions = {action for each in policy for action in each.actions}
    # The guide's shell function `physical` makes this call.
    needed = {action for action, _ in recorder.needs} | {"cloudformation:DescribeStackResource"}
    assert actions - needed - OF_IMAGES == set()


def _copy_rows(stack: Deployed, into: str) -> None:
    client = stack.aws.client("dynamodb")
    for item in client.scan(TableName=stack.table)["Items"][1:]:
        client.put_item(TableName=into, Item=item)


@contextmanager
def stopped(stack: Deployed) -> Iterator[None]:
    """The functions that write can't run inside the block."""
    lambda_ = stack.client("lambda")
    for name in WRITERS:
        lambda_.put_function_concurrency(
            FunctionName=stack.function(name), ReservedConcurrentExecutions=0
        )
    try:
        yield
    finally:
        for name in WRITERS:
            lambda_.delete_function_concurrency(FunctionName=stack.function(name))


# The doctor


def healthy(stack: Deployed) -> None:
    """Changes nothing."""


def without_a_key(stack: Deployed) -> None:
    stack.change_key("{}")


def with_a_refused_key(stack: Deployed) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
    error = {"code": 400, "status": "INVALID_ARGUMENT", "message": "no", "details": details}
    body = json.dumps({"error": error}).encode()
    stack.stand_in.answer_with(lambda _: ModelResponse(400, body))


def with_an_unknown_model(stack: Deployed) -> None:
    error = {"code": 404, "status": "NOT_FOUND", "message": "no"}
    body = json.dumps({"error": error}).encode()
    stack.stand_in.answer_with(lambda _: ModelResponse(404, body))


def with_a_newer_version(stack: Deployed) -> None:
    stack.change_settings("Worker")
    stack.client("lambda").publish_version(FunctionName=stack.function("Worker"))


def with_changed_settings(stack: Deployed) -> None:
    stack.change_settings("Reconcile")


def with_a_canary(stack: Deployed) -> None:
    stack.client("lambda").update_alias(
        FunctionName=stack.function("Account"),
        Name="live",
        RoutingConfig={"AdditionalVersionWeights": {"1": 0.1}},
    )


def without_a_subscription(stack: Deployed) -> None:
    topic = stack.client("sns").create_topic(Name=f"{NAME}-NoticeTopic-1ABC")["TopicArn"]
    stack.add("NoticeTopic", "SNS::Topic", topic)


def with_a_ringing_alarm(stack: Deployed) -> None:
    stack.ring("GenerateErrorsAlarm", "ALARM")


def without_an_alarm(stack: Deployed) -> None:
    stack.add("LostAlarm", "CloudWatch::Alarm", f"{NAME}-LostAlarm-1ABC")


def with_drift(stack: Deployed) -> None:
    stack.ring("AuditDriftAlarm", "ALARM")


def without_an_audit(stack: Deployed) -> None:
    stack.ring("AuditDriftAlarm", "INSUFFICIENT_DATA")


def with_too_many_workers(stack: Deployed) -> None:
    stack.workers = 900


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (healthy, ""),
        (without_a_key, "Gemini key: .+ holds no usable key; put"),
        (with_a_refused_key, "Gemini key: Google refuses it; put a valid key"),
        (with_an_unknown_model, f"Gemini key: Google has no model {MODEL}; change GeminiModel"),
        (with_a_newer_version, "WorkerFunction: live is version 1, the newest is 2; deploy"),
        (with_changed_settings, "ReconcileFunction: version 1 has other settings than the stack; "),
        (with_a_canary, "AccountFunction: traffic is shifting between versions; "),
        (
            without_a_subscription,
            "NoticeTopic: no confirmed subscription: set its e-mail parameter and .+ ",
        ),
        (with_a_ringing_alarm, "Alarms: GenerateErrorsAlarm rings; "),
        (without_an_alarm, "Alarms: LostAlarm does not exist any more; deploy again"),
        (with_drift, "Audit: AuditDriftAlarm rings; run `gemini-generate .+ audit`"),
        (without_an_audit, "Audit: AuditDriftAlarm has no data yet: "),
        (with_too_many_workers, "Concurrency: 900 workers can take all of the 900 executions "),
    ],
)
def test_the_doctor_names_each_problem_and_what_to_do_about_it(
    stack: Deployed, run: Run, change: Callable[[Deployed], None], problem: str
) -> None:
    with stack.changed(change):
        exited = run("doctor")

    lines = exited.out.splitlines()
    problems = [line for line in lines if line.startswith("PROBLEM")]
    others = [line for line in lines if not line.startswith("PROBLEM")]
    assert exited.err == f"Target: stack {NAME}.\n"
    assert all(line.startswith("ok ") for line in others)
    assert exited.status == (1 if problem else 0)
    assert len(lines) >= 9
    # A ringing alarm of the audit is also a ringing alarm.
    assert len(problems) == (2 if change is with_drift else bool(problem)), problems
    assert not problem or re.search(rf"^PROBLEM  {problem}", exited.out, re.MULTILINE), problems


# Logs


def test_the_lines_of_a_request_come_from_all_logs_oldest_first(stack: Deployed, run: Run) -> None:
    accepted = '{"message": "accepted", "request_id": "JKJaX="}'
    stack.log("Generate", accepted, '{"message": "other", "request_id": "other"}')
    stack.log("Worker", '{"message": "begun", "request_id": "JKJaX=", "escape": "\x1b[2J"}')

    found = run("logs JKJaX= --since 1h")
    rows = json.loads(run("logs JKJaX= --json").out)["lines"]
    later = run("logs JKJaX= --since 2999-01-01")

    first, second = found.out.splitlines()
    assert re.fullmatch(rf"20\S+Z /gemini-generate/{NAME}/generate {re.escape(accepted)}", first), (
        first
    )
    assert f"/gemini-generate/{NAME}/worker" in second
    assert "\\x1b[2J" in second
    assert [row["log"].rpartition("/")[2] for row in rows] == ["generate", "worker"]
    assert (later.status, later.out) == (0, "")
    assert "no line since 2999-01-01T00:00:00Z contains JKJaX=" in later.err


# Restoring


def test_a_restored_table_replaces_the_live_one_once_its_writers_are_stopped(
    stack: Deployed, run: Run
) -> None:
    restored, client = f"{NAME}-before", stack.aws.client("dynamodb")
    stack.aws.create_table(restored, Template(DOCUMENT))

    def rows(table: str) -> list[Any]:
        return sorted(client.scan(TableName=table)["Items"], key=str)

    run("org create kept")
    running = run(f"restore {restored} --yes")
    with stopped(stack):
        empty = run(f"restore {restored} --yes")
        for item in rows(stack.table):
            client.put_item(TableName=restored, Item=item)
        run("org create later")
        run("org limit kept 7")
        unconfirmed = run(f"restore {restored}")
        done = run(f"restore {restored} --yes")

    writers = ", ".join(f"{name}Function" for name in WRITERS)
    assert f"{writers} can still write" in running.err
    assert f"the table {restored} is empty" in empty.err
    assert f'"Overwrite all rows of {stack.table} with those of {restored} (stack {NAME})?"' in (
        unconfirmed.err
    )
    assert done.out == f"{stack.table}: {len(rows(restored))} rows written, 2 deleted\n"
    assert rows(stack.table) == rows(restored)
