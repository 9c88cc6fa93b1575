"""The template as SAM translates it for CloudFormation, and what linters find in it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
from samtranslator.parser.parser import Parser  # type: ignore[import-untyped]
from samtranslator.translator.translator import (  # type: ignore[import-untyped]
    Translator,
)

from infra.template import PROJECT_ROOT, Function, Template
from infra.verify import tools
from tests.cloudformation import CERTIFICATE, DOCUMENT, ON_R2, STACK, Variant
from tests.deployed import republished

# SAM takes seconds to translate, and each linter takes longer.
pytestmark = pytest.mark.real

CANARY: dict[str, object] = {"Deployment": "Canary10Percent5Minutes"}
FUNCTIONS = Template(DOCUMENT).functions()
CHECKOV = PROJECT_ROOT / "infra" / "checkov.yaml"
CHECKS_TAKE_S = 300


def with_code() -> dict[str, Any]:
    """The template after ``sam deploy`` uploaded the code."""
    template: dict[str, Any] = json.loads(json.dumps(DOCUMENT))
    template["Globals"]["Function"]["CodeUri"] = "s3://artifacts/code.zip"
    return template


def translated(parameters: Mapping[str, object]) -> dict[str, Any]:
    """The template that CloudFormation deploys."""
    template = with_code()
    defaults = {name: each["Default"] for name, each in template["Parameters"].items()}
    # The template names no managed policy, so the translator needs to know none.
    translator = Translator({}, Parser(), boto_session=boto3.Session(region_name="us-east-1"))
    found: dict[str, Any] = translator.translate(
        template, parameter_values={**defaults, **parameters}
    )
    return found


# Runs in SAM's own environment: standard input is a list of choices of parameters; standard output
# has, for each, the versions that are published. The first half is what CloudFormation's
# AWS::LanguageExtensions does; SAM's commands do it only when asked.
PUBLISHED = """
import copy, json, sys
from boto3 import Session
from samcli.lib.cfn_language_extensions.sam_integration import expand_language_extensions
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

template, choices = json.load(sys.stdin)
defaults = {name: str(each["Default"]) for name, each in template["Parameters"].items()}
for chosen in choices:
    values = {**defaults, **chosen}
    pseudo = {"AWS::Region": "us-east-1", "AWS::StackName": "pictures"}
    expanded = expand_language_extensions(template, {**values, **pseudo}, enabled=True)
    translator = Translator({}, Parser(), boto_session=Session(region_name="us-east-1"))
    # The translator changes what it is given.
    given = copy.deepcopy(expanded.expanded_template)
    made = translator.translate(given, parameter_values=values)
    versions = {
        each["Properties"]["FunctionName"]["Ref"]: name
        for name, each in made["Resources"].items()
        if each["Type"] == "AWS::Lambda::Version"
    }
    print(json.dumps(versions))
"""


def published(template: Mapping[str, Any], *choices: Mapping[str, object]) -> list[dict[str, str]]:
    """The logical ids of the published versions, by function, for each choice of parameters."""
    chosen = [{name: str(value) for name, value in each.items()} for each in choices]
    done = subprocess.run(  # noqa: S603 - our own command
        [str(tools.sam().with_name("python")), "-c", PUBLISHED],
        input=json.dumps([template, chosen]),
        timeout=CHECKS_TAKE_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


class Translation:
    """One translated template, and its values for the parameters."""

    def __init__(self, parameters: Mapping[str, object]) -> None:
        self.document = translated(parameters)
        self.variant = Variant(self.document, parameters)

    def properties(self, logical: str) -> dict[str, Any]:
        found: dict[str, Any] = self.variant.resolved(
            self.document["Resources"][logical]["Properties"]
        )
        return found

    def of_kind(self, kind: str) -> dict[str, dict[str, Any]]:
        """The resources of one type, as written."""
        resources = self.document["Resources"].items()
        return {name: each for name, each in resources if each["Type"] == f"AWS::{kind}"}


translation_for = cache(lambda on_r2: Translation(ON_R2 if on_r2 else {}))


@pytest.fixture(params=[False, True], ids=["in S3", "in R2"])
def translation(request: pytest.FixtureRequest) -> Translation:
    return translation_for(request.param)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_each_function_has_the_code_the_limits_and_the_log_of_the_template(
    translation: Translation, function: Function
) -> None:
    made = translation.properties(function.name)

    assert made["Handler"] == function.handler
    assert (made["Timeout"], made["MemorySize"]) == (function.timeout_s, function.memory_mb)
    assert (made["Runtime"], made["Architectures"]) == ("python3.13", ["arm64"])
    assert made["Role"].startswith("arn:aws:iam::")
    assert made["TracingConfig"] == {"Mode": "Active"}
    assert made["LoggingConfig"]["LogGroup"].startswith(f"/gemini-generate/{STACK}/")


def test_sam_creates_only_the_role_that_shifts_traffic(translation: Translation) -> None:
    own = {f"{each.name.removesuffix('Function')}Role" for each in FUNCTIONS}

    assert set(translation.of_kind("IAM::Role")) == {*own, "CodeDeployServiceRole"}


ALL = {each.name for each in FUNCTIONS}
WITH_ROUTES = {each.name for each in FUNCTIONS if each.routes}
# The functions of which a new value publishes a version.
PUBLISHES: Mapping[str, tuple[Mapping[str, object], set[str]]] = {
    "the model": ({"GeminiModel": "another-model"}, ALL),
    "the images' age": ({"ImageRetentionDays": "30"}, set()),
    "the images' domain": (
        {"ImageDomainName": "images.example", "ImageCertificateArn": CERTIFICATE},
        ALL,
    ),
    "R2": (ON_R2, ALL),
    "the keys' prefix": ({"OrgSecretPrefix": "staging/orgs/"}, ALL),
    "the architecture": ({"Architecture": "x86_64"}, ALL),
    "SnapStart": ({"SnapStart": "On"}, WITH_ROUTES),
    "the key of receipts": ({"ReceiptKey": "Off"}, ALL),
    "the support address": ({"SupportUrl": "https://help.example"}, ALL),
    "the refused prompts": ({"RefusedPromptsPerDay": "100"}, ALL),
    "the retired keys": ({"RetiredReceiptKeys": f"old.{'x' * 43}.{'y' * 43}"}, ALL),
    "the reserved concurrency": (
        {"ReservedConcurrency": "20"},
        {"GenerateFunction", "ReconcileFunction"},
    ),
    "the API's domain": (
        {"ApiDomainName": "api.example", "ApiCertificateArn": CERTIFICATE},
        ALL,
    ),
    "the rate": ({"ThrottleRate": "50"}, set()),
    "the burst": ({"ThrottleBurst": "50"}, set()),
    "the workers": ({"WorkerConcurrency": "20"}, set()),
    "the alarms' address": ({"AlarmEmail": "pager@example.com"}, set()),
    "the notices' address": ({"NoticeEmail": "operator@example.com"}, set()),
    "the deployment alarms": ({"DeploymentAlarms": "false"}, set()),
    "the logs": ({"LogRetentionDays": "90"}, set()),
    "the pace": (CANARY, set()),
}


def test_a_changed_parameter_publishes_a_version_of_every_function_that_reads_it() -> None:
    """Otherwise ``live`` would keep the old value beside a role that has the new one's rights."""
    choices = [chosen for chosen, _ in PUBLISHES.values()]

    before, again, *after = published(with_code(), {}, {}, *choices)

    assert before.keys() == ALL
    assert before == again
    changed = [republished(before, each) for each in after]
    assert dict(zip(PUBLISHES, changed, strict=True)) == {
        name: functions for name, (_, functions) in PUBLISHES.items()
    }
    assert {name for chosen in choices for name in chosen} == DOCUMENT["Parameters"].keys()


def test_without_language_extensions_a_changed_parameter_would_publish_nothing() -> None:
    mutant = with_code() | {"Transform": "AWS::Serverless-2016-10-31"}

    before, after = published(mutant, {}, {"GeminiModel": "another-model"})

    assert republished(before, after) == set()


def test_an_alarm_during_a_deployment_rolls_it_back() -> None:
    canary = Translation(CANARY)
    groups = canary.of_kind("CodeDeploy::DeploymentGroup").values()
    aliases = canary.of_kind("Lambda::Alias").values()

    assert len(groups) == len(aliases) == len(FUNCTIONS)
    assert all("CodeDeployLambdaAliasUpdate" in each["UpdatePolicy"] for each in aliases)
    for group in (each["Properties"] for each in groups):
        watched = {each["Name"]["Ref"] for each in group["AlarmConfiguration"]["Alarms"]}
        assert watched
        assert watched <= canary.of_kind("CloudWatch::Alarm").keys()
        assert "DEPLOYMENT_STOP_ON_ALARM" in group["AutoRollbackConfiguration"]["Events"]
        assert "Canary10Percent5Minutes" in json.dumps(group["DeploymentConfigName"])


def test_the_fix_of_what_rings_is_deployed_without_codedeploy() -> None:
    """It would refuse to start while one of its alarms rings."""
    fix = Translation({"DeploymentAlarms": "false"})
    aliases = fix.of_kind("Lambda::Alias")

    assert len(aliases) == len(FUNCTIONS)
    assert not [each for each in aliases.values() if "UpdatePolicy" in each]
    assert not [
        name
        for kind in ("Application", "DeploymentGroup")
        for name in fix.of_kind(f"CodeDeploy::{kind}")
    ]
    # Everything else is what a deployment with alarms has.
    usual = translation_for(on_r2=False)
    assert fix.of_kind("CloudWatch::Alarm").keys() == usual.of_kind("CloudWatch::Alarm").keys()


# Linters


def test_sam_and_its_linter_accept_the_template() -> None:
    done = run([str(tools.sam()), "validate", "--lint", "--region", "us-east-1"])

    assert done.returncode == 0, done.stdout
    assert "is a valid SAM Template" in done.stdout


@pytest.mark.parametrize("parameters", [CANARY, CANARY | ON_R2], ids=["in S3", "in R2"])
def test_the_linter_finds_no_error_in_the_translated_template(
    parameters: dict[str, object], tmp_path: Path
) -> None:
    """It sees more there: aliases, the stage, and cycles between resources."""
    made = tmp_path / "translated.json"
    made.write_text(json.dumps(translated(parameters)), encoding="utf-8")

    linter = str(Path(sys.executable).with_name("cfn-lint"))
    # Warnings are ignored: SAM has inlined parameters, which the linter then reports as unused.
    done = run([linter, "--non-zero-exit-code", "error", "--template", str(made)])

    assert done.returncode == 0, done.stdout


def test_checkov_passes_and_every_check_that_is_off_would_fail_and_has_its_reason(
    tmp_path: Path,
) -> None:
    assert failed_checks(CHECKOV) == set()

    lines = CHECKOV.read_text(encoding="utf-8").splitlines()
    off = [line for line in lines if "- CKV" in line]
    none_off = tmp_path / "checkov.yaml"
    kept = [line.replace("skip-check:", "") for line in lines if "CKV" not in line]
    none_off.write_text("\n".join(kept), encoding="utf-8")

    assert failed_checks(none_off) == {re.findall(r"CKV\w+", line)[0] for line in off}
    for position, line in enumerate(lines):
        if "- CKV" in line and "#" not in line:
            heading = next(each for each in reversed(lines[:position]) if "- CKV" not in each)
            assert heading.strip().startswith("#"), line


def failed_checks(configuration: Path) -> set[str]:
    """The ids of the checks that fail under this configuration of checkov."""
    command = [str(tools.checkov()), "--config-file", str(configuration), "--output", "json"]
    done = run(command)
    found = json.loads(done.stdout)
    assert found.get("summary", found)["passed"] or found["results"], done.stdout
    failed = found.get("results", {}).get("failed_checks", [])
    assert (done.returncode == 0) is (not failed), done.stdout
    return {each["check_id"] for each in failed}


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Runs a command in the project's directory, without network calls or telemetry."""
    quiet = {"SAM_CLI_TELEMETRY": "0", "BC_SKIP_MAPPING": "TRUE", "LOG_LEVEL": "ERROR"}
    return subprocess.run(  # noqa: S603 - our own command
        command,
        cwd=PROJECT_ROOT,
        env=os.environ | quiet,
        timeout=CHECKS_TAKE_S,
        capture_output=True,
        text=True,
        check=False,
    )
