"""The template deployed: translated by SAM's own translator, and made by moto's CloudFormation."""

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from samtranslator.parser.parser import Parser  # type: ignore[import-untyped]
from samtranslator.translator.translator import (  # type: ignore[import-untyped]
    Translator,
)

from infra.template import PROJECT_ROOT, TEMPLATE_PATH, Template, parse
from infra.verify import tools
from lib.settings import Settings
from tests.cloudformation import Variant, cycle_in
from tests.moto_models import ALREADY_KNOWN, MAKERS

# The stack is made twice for it, which takes its time.
pytestmark = pytest.mark.real

ON_R2: dict[str, object] = {
    "StorageEndpointUrl": "https://account.r2.cloudflarestorage.com",
    "R2Bucket": "pictures",
    "ImageBaseUrl": "https://images.example",
    "StorageCredentialsSecret": "r2/credentials",
}
EMAIL: dict[str, object] = {"AlarmEmail": "operator@example.com"}
CODE = "s3://artifacts/code.zip"
CHECKOV = "infra/checkov.yaml"
CHECKS_TAKE_S = 300


@cache
def document() -> dict[str, Any]:
    """The template as ``sam deploy`` sends it: the code is in a bucket."""
    found = parse(TEMPLATE_PATH.read_text(encoding="utf-8"))
    found["Globals"]["Function"]["CodeUri"] = CODE
    return found


def translated(parameters: Mapping[str, object]) -> dict[str, Any]:
    """The template as SAM makes it for CloudFormation."""
    fresh = json.loads(json.dumps(document()))
    defaults = {name: each["Default"] for name, each in fresh["Parameters"].items()}
    session = boto3.Session(region_name="us-east-1")
    # No managed policy is named in the template, so none has to be known.
    translator = Translator({}, Parser(), boto_session=session)
    found: dict[str, Any] = translator.translate(
        fresh, parameter_values=defaults | dict(parameters)
    )
    return found


@dataclass
class Stack:
    """A stack in moto. ``resources`` holds the physical name of each, by its logical one."""

    name: str
    on_r2: bool
    template: dict[str, Any]
    resources: dict[str, str]
    kinds: dict[str, str]
    outputs: dict[str, str]

    def client(self, service: Any) -> Any:
        return boto3.client(service, region_name="us-east-1")

    def function(self, logical: str) -> dict[str, Any]:
        name = self.resources[logical]
        found: dict[str, Any] = self.client("lambda").get_function(FunctionName=name)
        configuration: dict[str, Any] = found["Configuration"]
        return configuration

    def of_kind(self, kind: str) -> list[str]:
        return [name for name, each in self.kinds.items() if each == kind]


@pytest.fixture(scope="module", params=["in-s3", "in-r2"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The stack as an operator makes it; moto forgets nothing of other tests meanwhile."""
    mock = mock_aws()
    mock.start(reset=False)
    try:
        _put_code()
        yield _deployed(request.param, (ON_R2 if request.param == "in-r2" else {}) | EMAIL)
    finally:
        mock.stop(remove_data=False)


def _put_code() -> None:
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("nothing.py", "")
    s3 = boto3.client("s3", region_name="us-east-1")
    bucket, _, key = CODE.removeprefix("s3://").partition("/")
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key=key, Body=code.getvalue())


def _deployed(name: str, parameters: Mapping[str, object]) -> Stack:
    template = translated(parameters)
    # CloudFormation refuses what moto would follow round and round.
    assert not cycle_in(template["Resources"])
    cloudformation = boto3.client("cloudformation", region_name="us-east-1")
    given = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=json.dumps(template),
        Parameters=given,
        Capabilities=["CAPABILITY_IAM"],
    )
    (made,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    assert made["StackStatus"] == "CREATE_COMPLETE"
    listed = cloudformation.describe_stack_resources(StackName=name)["StackResources"]
    # moto lists what a condition keeps out as well, without a name.
    resources = [each for each in listed if "LogicalResourceId" in each]
    return Stack(
        name=name,
        on_r2="StorageEndpointUrl" in parameters,
        template=template,
        # moto has no name for a permission.
        resources={
            each["LogicalResourceId"]: each.get("PhysicalResourceId", "") for each in resources
        },
        kinds={each["LogicalResourceId"]: each["ResourceType"] for each in resources},
        outputs={each["OutputKey"]: each["OutputValue"] for each in made["Outputs"]},
    )


# What SAM makes of the template.


@pytest.mark.parametrize("storage", [{}, ON_R2], ids=["in S3", "in R2"])
@pytest.mark.parametrize("way", ["AllAtOnce", "Canary10Percent5Minutes"])
def test_no_resource_waits_for_itself(storage: dict[str, object], way: str) -> None:
    assert not cycle_in(translated({**storage, "Deployment": way})["Resources"])


def test_resources_that_wait_for_each_other_are_found() -> None:
    chain: dict[str, dict[str, Any]] = {
        "A": {"Properties": {"x": {"Ref": "B"}}},
        "B": {"DependsOn": "C"},
        "C": {},
    }
    ring: dict[str, dict[str, Any]] = chain | {
        "C": {"UpdatePolicy": {"y": {"Fn::Sub": "${A.Arn}"}}}
    }

    assert not cycle_in(chain)
    assert set(cycle_in(ring)) == {"A", "B", "C"}


def test_sam_makes_no_role_of_its_own_but_the_one_that_shifts_traffic() -> None:
    roles = {
        name
        for name, each in translated({})["Resources"].items()
        if each["Type"] == "AWS::IAM::Role"
    }

    assert roles == {
        "GenerateRole",
        "AccountRole",
        "WorkerRole",
        "ReconcileRole",
        "CodeDeployServiceRole",
    }


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
def test_sam_hands_on_what_every_function_has_in_common(architecture: str) -> None:
    resources = translated({"Architecture": architecture, "SnapStart": "On"})["Resources"]
    variant = Variant(document(), {"Architecture": architecture, "SnapStart": "On"})

    for function in Template(document()).functions():
        made = variant.resolved(resources[function.name]["Properties"])
        assert made["TracingConfig"] == {"Mode": "Active"}
        assert made["Architectures"] == [architecture]
        assert made["LoggingConfig"]["LogGroup"].startswith("/gemini-generate/pictures/")
        assert ("SnapStart" in made) is bool(function.routes)


def test_a_new_version_takes_over_by_way_of_alarms_that_bring_the_old_one_back() -> None:
    resources = translated({"Deployment": "Canary10Percent5Minutes"})["Resources"]
    groups = [each for each in resources.values() if each["Type"].endswith("DeploymentGroup")]
    aliases = [each for each in resources.values() if each["Type"] == "AWS::Lambda::Alias"]

    assert len(groups) == len(aliases) == len(Template(document()).functions())
    for group in groups:
        alarms = group["Properties"]["AlarmConfiguration"]["Alarms"]
        assert alarms
        assert {resources[each["Name"]["Ref"]]["Type"] for each in alarms} == {
            "AWS::CloudWatch::Alarm"
        }
        assert (
            "DEPLOYMENT_STOP_ON_ALARM"
            in (group["Properties"]["AutoRollbackConfiguration"]["Events"])
        )
        assert "Canary10Percent5Minutes" in json.dumps(group["Properties"]["DeploymentConfigName"])
    assert all("CodeDeployLambdaAliasUpdate" in each["UpdatePolicy"] for each in aliases)


# What CloudFormation makes of that.


def test_everything_is_made_but_what_moto_can_not_make(stack: Stack) -> None:
    wanted = Variant(document(), ON_R2 if stack.on_r2 else {}).resources()
    kinds = set(stack.kinds.values())

    assert {name for name in wanted if name not in stack.kinds} <= {"AlarmEmailSubscription"} | {
        name for name, each in wanted.items() if each["Type"].startswith("AWS::Serverless::")
    }
    assert kinds <= ALREADY_KNOWN | MAKERS.keys()
    assert {kind for kind in kinds if kind.startswith("AWS::CloudFront::")} == (
        set()
        if stack.on_r2
        else {
            "AWS::CloudFront::Distribution",
            "AWS::CloudFront::OriginAccessControl",
            "AWS::CloudFront::ResponseHeadersPolicy",
        }
    )


def test_each_function_has_the_handler_the_time_and_the_memory_of_the_template(
    stack: Stack,
) -> None:
    for wanted in Template(document()).functions():
        made = stack.function(wanted.name)
        assert made["Handler"] == wanted.handler
        assert (made["Timeout"], made["MemorySize"]) == (wanted.timeout_s, wanted.memory_mb)
        assert made["Runtime"] == "python3.13"
        assert made["Role"].startswith("arn:aws:iam::")


def test_the_environment_of_each_function_names_what_was_really_made(stack: Stack) -> None:
    table = stack.resources["CreditsTable"]
    for wanted in Template(document()).functions():
        variables = stack.function(wanted.name)["Environment"]["Variables"]
        settings = Settings.from_environment(variables)

        assert settings.credits_table == table
        assert settings.service_name == stack.name
        assert settings.org_secret_prefix == "gemini-generate/orgs/"
        secret = stack.client("secretsmanager").describe_secret(
            SecretId=settings.gemini_api_key_secret
        )
        assert (
            secret["ARN"] == settings.gemini_api_key_secret == stack.outputs["GeminiApiKeySecret"]
        )
        if stack.on_r2:
            assert settings.image_bucket == "pictures"
            assert settings.image_base_url == "https://images.example"
            assert settings.storage_endpoint_url == ON_R2["StorageEndpointUrl"]
            assert settings.storage_credentials_secret == "r2/credentials"
        else:
            stack.client("s3").head_bucket(Bucket=settings.image_bucket)
            assert settings.image_bucket == stack.resources["ImageBucket"]
            assert re.fullmatch(r"https://[a-z0-9-]+\.cloudfront\.net", settings.image_base_url)
            assert settings.storage_endpoint_url is None
            assert settings.storage_credentials_secret is None


def test_each_function_is_called_by_its_live_alias(stack: Stack) -> None:
    functions = stack.client("lambda")
    for wanted in Template(document()).functions():
        name = stack.resources[wanted.name]
        alias = functions.get_alias(FunctionName=name, Name="live")
        assert alias["FunctionVersion"] == "1"
        assert alias["AliasArn"] == stack.resources[f"{wanted.name}Aliaslive"]


def test_every_route_leads_to_the_live_alias_of_its_function(stack: Stack) -> None:
    gateway = stack.client("apigatewayv2")
    api = stack.resources["HttpApi"]
    integrations = {
        f"integrations/{each['IntegrationId']}": each["IntegrationUri"]
        for each in gateway.get_integrations(ApiId=api)["Items"]
    }
    made = {
        each["RouteKey"]: integrations[each["Target"]]
        for each in gateway.get_routes(ApiId=api)["Items"]
    }

    wanted = {
        f"{route.method} {route.path}": stack.resources[f"{function.name}Aliaslive"]
        for function in Template(document()).functions()
        for route in function.routes
    }
    assert made.keys() == wanted.keys()
    for route, alias in wanted.items():
        assert made[route].endswith(f":lambda:path/2015-03-31/functions/{alias}/invocations")
    assert stack.outputs["ApiUrl"] == f"https://{api}.execute-api.us-east-1.amazonaws.com"


def test_the_api_is_throttled_and_logged(stack: Stack) -> None:
    gateway = stack.client("apigatewayv2")
    (stage,) = gateway.get_stages(ApiId=stack.resources["HttpApi"])["Items"]

    assert (stage["StageName"], stage["AutoDeploy"]) == ("$default", True)
    limits = stage["DefaultRouteSettings"]
    assert (limits["ThrottlingRateLimit"], limits["ThrottlingBurstLimit"]) == (100.0, 200)
    assert f"/gemini-generate/{stack.name}/access" in stage["AccessLogSettings"]["DestinationArn"]


def test_the_reconciler_is_called_every_minute(stack: Stack) -> None:
    events = stack.client("events")
    (rule,) = (each for each in events.list_rules()["Rules"] if stack.name in each["Name"])
    (target,) = events.list_targets_by_rule(Rule=rule["Name"])["Targets"]

    assert (rule["ScheduleExpression"], rule["State"]) == ("rate(1 minute)", "ENABLED")
    assert target["Arn"] == stack.resources["ReconcileFunctionAliaslive"]


def test_the_table_is_made_with_its_index_and_nobody_drops_it(stack: Stack) -> None:
    dynamodb = stack.client("dynamodb")
    name = stack.outputs["TableName"]
    table = dynamodb.describe_table(TableName=name)["Table"]
    (index,) = table["GlobalSecondaryIndexes"]

    assert table["DeletionProtectionEnabled"] is True
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert (index["IndexName"], index["Projection"]["ProjectionType"]) == ("Due", "INCLUDE")


def test_every_alarm_is_made_for_what_was_made_and_tells_the_topic(stack: Stack) -> None:
    wanted = Variant(document()).resources("AWS::CloudWatch::Alarm")
    found = stack.client("cloudwatch").describe_alarms(AlarmNamePrefix=f"{stack.name}-")
    made = found["MetricAlarms"]
    topics = [each["TopicArn"] for each in stack.client("sns").list_topics()["Topics"]]
    functions = {stack.resources[each.name] for each in Template(document()).functions()}
    allowed = {
        "ApiId": {stack.resources["HttpApi"]},
        "FunctionName": functions,
        "service": {stack.name},
    }

    assert len(made) == len(wanted) > 10
    for alarm in made:
        assert alarm["AlarmActions"] == alarm["OKActions"] == [stack.outputs["AlarmTopic"]]
        assert stack.outputs["AlarmTopic"] in topics
        several = [
            each["MetricStat"]["Metric"]
            for each in alarm.get("Metrics", [])
            if "MetricStat" in each
        ]
        for metric in several or [alarm]:
            for dimension in metric["Dimensions"]:
                if dimension["Name"] in allowed:
                    assert dimension["Value"] in allowed[dimension["Name"]]
    subscriptions = stack.client("sns").list_subscriptions_by_topic(
        TopicArn=stack.outputs["AlarmTopic"]
    )
    assert [each["Endpoint"] for each in subscriptions["Subscriptions"]] == ["operator@example.com"]


def test_the_dashboard_shows_this_stack(stack: Stack) -> None:
    found = stack.client("cloudwatch").get_dashboard(DashboardName=stack.name)

    body = json.dumps(json.loads(found["DashboardBody"]))
    assert stack.resources["GenerateFunction"] in body
    assert "${" not in body


def test_every_log_is_made_with_an_end(stack: Stack) -> None:
    groups = stack.client("logs").describe_log_groups(
        logGroupNamePrefix=f"/gemini-generate/{stack.name}/"
    )["logGroups"]

    assert {
        each["logGroupName"].rpartition("/")[2]: each["retentionInDays"] for each in groups
    } == {
        "access": 30,
        "account": 30,
        "generate": 30,
        "reconcile": 30,
        "worker": 30,
    }


def test_there_is_a_bucket_with_its_policy_in_s3_and_none_at_all_in_r2(stack: Stack) -> None:
    s3 = stack.client("s3")
    buckets = [each["Name"] for each in s3.list_buckets()["Buckets"] if stack.name in each["Name"]]

    if stack.on_r2:
        assert not buckets
        assert stack.outputs["ImageBase"] == "https://images.example"
        return
    assert buckets == [stack.resources["ImageBucket"]]
    policy = json.loads(s3.get_bucket_policy(Bucket=buckets[0])["Policy"])
    assert {each["Effect"] for each in policy["Statement"]} == {"Allow", "Deny"}
    assert buckets[0] in json.dumps(policy)


# What other people's checks say. Both run on their own, and in `make verify`.


@pytest.mark.real
def test_sam_and_its_linter_have_nothing_against_the_template() -> None:
    done = ran([str(tools.sam()), "validate", "--lint", "--region", "us-east-1"])

    assert done.returncode == 0, done.stdout
    assert "is a valid SAM Template" in done.stdout


@pytest.mark.real
@pytest.mark.parametrize("storage", [{}, ON_R2], ids=["in S3", "in R2"])
def test_the_linter_finds_no_error_in_what_sam_makes(
    storage: dict[str, object], tmp_path: Path
) -> None:
    """It sees more there than in the template: the aliases, the stage, who waits for whom."""
    made = tmp_path / "translated.json"
    made.write_text(json.dumps(translated(storage)), encoding="utf-8")

    linter = str(Path(sys.executable).with_name("cfn-lint"))
    # Parameters that SAM has put in already are left over: that is a warning, and no error.
    done = ran([linter, "--non-zero-exit-code", "error", "--template", str(made)])

    assert done.returncode == 0, done.stdout


@pytest.mark.real
def test_checkov_has_nothing_against_the_template() -> None:
    assert failed_checks(PROJECT_ROOT / CHECKOV) == set()


@pytest.mark.real
def test_every_check_that_is_off_would_fail_and_has_its_reason(tmp_path: Path) -> None:
    lines = (PROJECT_ROOT / CHECKOV).read_text(encoding="utf-8").splitlines()
    off = [line for line in lines if "- CKV" in line]
    none_off = tmp_path / "checkov.yaml"
    none_off.write_text("\n".join(line for line in lines if "CKV" not in line), encoding="utf-8")
    none_off.write_text(none_off.read_text("utf-8").replace("skip-check:", ""), encoding="utf-8")

    failed = failed_checks(none_off)

    assert failed == {re.findall(r"CKV\w+", line)[0] for line in off}
    for position, line in enumerate(lines):
        if "- CKV" in line and "#" not in line:
            heading = next(each for each in reversed(lines[:position]) if "- CKV" not in each)
            assert heading.strip().startswith("#"), line


def failed_checks(configuration: Path) -> set[str]:
    """The ids of the checks that fail under this configuration of checkov's."""
    command = [str(tools.checkov()), "--config-file", str(configuration), "--output", "json"]
    done = ran(command)
    found = json.loads(done.stdout)
    assert found.get("summary", found)["passed"] or found["results"], done.stdout
    failed = found.get("results", {}).get("failed_checks", [])
    assert (done.returncode == 0) is (not failed), done.stdout
    return {each["check_id"] for each in failed}


def ran(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """The command, run where the template is and calling nobody."""
    environment = os.environ | {
        "SAM_CLI_TELEMETRY": "0",
        "BC_SKIP_MAPPING": "TRUE",
        "LOG_LEVEL": "ERROR",
    }
    return subprocess.run(  # noqa: S603 - our own command
        command,
        cwd=PROJECT_ROOT,
        env=environment,
        timeout=CHECKS_TAKE_S,
        capture_output=True,
        text=True,
        check=False,
    )
