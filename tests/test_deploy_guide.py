"""The deploy guide and the runbook are true: commands are valid, names and times are the code's."""

import math
import re
import sys
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

import botocore.session
import pytest
from botocore import xform_name
from botocore.model import OperationModel, Shape, StringShape

from infra.cli import main as operator_command
from infra.cli.deployment import WRITERS
from infra.docs.markdown import Markdown
from infra.local.aws import EmbeddedAws
from infra.template import PROJECT_ROOT, TEMPLATE_PATH, Template, parse
from lib.deadline import JOB_WAITS_S, LEASE_S, REFUNDED_WITHIN_S, WORKER_LEASE_S
from lib.errors import GenerationFailed, OutcomePending, ServiceUnavailable
from lib.keys.verification import CACHE_S
from lib.settings import DEFAULT_MODEL
from tests.guides import Agreeing, ShellCommand, shell_commands

GUIDES = PROJECT_ROOT / "infra" / "docs"
DEPLOY = Markdown.read(GUIDES / "DEPLOY.md")
RUNBOOK = Markdown.read(GUIDES / "RUNBOOK.md")
COMMANDS = shell_commands([DEPLOY, RUNBOOK])
TEMPLATE = parse(TEMPLATE_PATH.read_text(encoding="utf-8"))
RESOURCES: Mapping[str, Any] = TEMPLATE["Resources"]
PARAMETERS: Mapping[str, Any] = TEMPLATE["Parameters"]
OUTPUTS: Mapping[str, Any] = TEMPLATE["Outputs"]
TABLE: Mapping[str, Any] = RESOURCES["CreditsTable"]["Properties"]
SOURCE = "".join(
    file.read_text(encoding="utf-8")
    for folder in ("lib", "handlers")
    for file in (PROJECT_ROOT / folder).rglob("*.py")
)
OPERATOR = ".venv/bin/gemini-generate"
STACK = "gemini-generate"
SHELL = {"cat", "date", "curl", "export", "git", "make", "output", "physical", "rm", "umask"}


def commands_of(*program: str) -> list[ShellCommand]:
    length = len(program)
    return [each for each in COMMANDS if tuple(each.words[:length]) == program]


def table_called(document: Markdown, first: str) -> list[list[str]]:
    """The rows of the one table whose heading begins so."""
    (found,) = (rows[1:] for rows in document.tables if rows[0][0] == first)
    return found


def test_every_command_is_of_a_kind_that_is_checked_here_or_of_the_shell() -> None:
    programs = {each.words[0] for each in COMMANDS}

    assert programs == SHELL | {"aws", "sam", OPERATOR, "${EDITOR:-vi}"}


@pytest.mark.real
def test_the_operator_commands_work_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key_id = ""
    with EmbeddedAws() as aws:
        for name, value in aws.environment().items():
            monkeypatch.setenv(name, value)
        aws.create_table("credits")
        aws.create_table("restored")
        monkeypatch.setenv("CREDITS_TABLE", "credits")
        monkeypatch.setenv("ORG_SECRET_PREFIX", "gemini-generate/orgs/")
        for command in commands_of(OPERATOR):
            ours = {"$RESTORED_TABLE": "restored", "KEY_ID": key_id}
            words = [ours.get(word, word) for word in command.words[1:]]
            words = words[: words.index(">")] if ">" in words else words
            if words[0] in {"--stack-name", "generations"}:
                continue  # They need a deployed stack, and a generation.
            monkeypatch.setattr(sys, "stdin", Agreeing("y\n"))

            status = operator_command(words)

            printed = capsys.readouterr()
            assert status == 0, (words, printed)
            key_id = next(iter(re.findall(r"\bkey_\w+", printed.out)), key_id)


def test_every_secret_comes_from_a_file_that_is_deleted_afterwards() -> None:
    commands = commands_of("aws", "secretsmanager")
    values = [each.options.get("--secret-string", "") for each in commands]
    removed = [name for each in commands_of("rm") for name in each.words[1:]]

    assert [value.removeprefix("file://") for value in values if value] == removed
    assert len(removed) > 1


AWS_CLI_OWN = {"--query", "--output", "--region", "--profile"}
# Commands that the AWS CLI composes of several operations, and options that it renames.
AWS_CLI_COMPOSED = {
    ("s3", "rb"): {"--force"},
    ("logs", "tail"): {"--filter-pattern", "--follow", "--since"},
}
AWS_CLI_RENAMED = {"--notification-endpoint": "--endpoint", "--paths": "--invalidation-batch"}


def test_every_aws_command_is_an_operation_with_its_options() -> None:
    session = botocore.session.get_session()

    for command in commands_of("aws"):
        _, service, operation, *_ = command.words
        if (service, operation) in AWS_CLI_COMPOSED:
            assert set(command.options) <= AWS_CLI_COMPOSED[service, operation], command.words
            continue
        model = session.get_service_model({"s3api": "s3"}.get(service, service))
        if operation == "wait":
            waiters = session.get_waiter_model(service)
            name = {xform_name(each, "-"): each for each in waiters.waiter_names}[command.words[3]]
            operation = xform_name(waiters.get_waiter(name).operation, "-")
        names = {xform_name(each, "-"): each for each in model.operation_names}
        check_options(command, model.operation_model(names[operation]))


def check_options(command: ShellCommand, operation: OperationModel) -> None:
    shape = operation.input_shape
    assert shape is not None
    members: dict[str, Shape] = {
        f"--{xform_name(name, '-')}": member for name, member in shape.members.items()
    }
    for option, value in command.options.items():
        if option in AWS_CLI_OWN:
            continue
        name = AWS_CLI_RENAMED.get(option, option)
        member = members[name if name in members else name.replace("--no-", "--", 1)]
        if member.type_name == "boolean":
            assert not value, (command.words, option)
        elif isinstance(member, StringShape) and member.enum:
            assert value in member.enum, (command.words, option)
        else:
            assert value, (command.words, option)
    required = {f"--{xform_name(name, '-')}" for name in shape.required_members}
    assert required <= {AWS_CLI_RENAMED.get(each, each) for each in command.options}, command.words


# AWS SAM CLI command reference, 1.170.
SAM_OPTIONS: Mapping[str, set[str]] = {
    "build": {"--config-env"},
    "deploy": {"--config-env"},
    "delete": {"--stack-name"},
    "logs": {"--name", "--stack-name", "--start-time"},
}


def test_every_sam_command_has_options_of_sam() -> None:
    for command in commands_of("sam"):
        assert set(command.options) <= SAM_OPTIONS[command.words[1]]
    # What an option sets, the next deployment would forget.
    assert "--parameter-overrides" not in DEPLOY.text + RUNBOOK.text


def test_what_the_guide_writes_into_the_configuration_is_accepted() -> None:
    written = [tomllib.loads(each.text) for each in DEPLOY.fences if each.language == "toml"]

    assert len(written) > 2
    for values in written:
        assert values.keys() <= PARAMETERS.keys()
        for name, value in values.items():
            assert re.fullmatch(PARAMETERS[name].get("AllowedPattern", ".*"), value), name
            assert value in PARAMETERS[name].get("AllowedValues", [value])


def test_every_file_that_holds_a_key_is_written_for_its_owner_alone() -> None:
    writing = [
        fence.text
        for document in (DEPLOY, RUNBOOK)
        for fence in document.fences
        if "EDITOR" in fence.text or "keys issue" in fence.text
    ]

    assert len(writing) > 3
    assert all(text.startswith("umask 077\n") for text in writing)


def test_git_ignores_every_file_that_holds_a_key() -> None:
    commands = [*commands_of("rm"), *commands_of(OPERATOR)]
    files = {word for each in commands_of("rm") for word in each.words[1:]}
    files |= {each.words[each.words.index(">") + 1] for each in commands if ">" in each.words}
    ignored = (PROJECT_ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()

    assert len(files) > 2
    assert [each for each in files if not any(fnmatch(each, line) for line in ignored)] == []


def test_every_url_that_curl_requests_is_a_route() -> None:
    routes = {route.path for each in Template.from_file().functions() for route in each.routes}
    urls = {
        word.removeprefix("$API_URL")
        for each in commands_of("curl")
        for word in each.words
        if word.startswith("$API_URL/")
    }

    assert len(urls) > 1
    assert urls <= routes


# The names


def test_the_parameters_and_outputs_are_the_templates() -> None:
    parameters = {name: default for name, default, _ in table_called(DEPLOY, "parameter")}

    assert parameters == {name: str(each["Default"]) for name, each in PARAMETERS.items()}
    assert parameters["GeminiModel"] == DEFAULT_MODEL
    assert {row[0] for row in table_called(DEPLOY, "output")} == OUTPUTS.keys()


def test_every_resource_that_is_named_is_in_the_template() -> None:
    values = {value for each in PARAMETERS.values() for value in each.get("AllowedValues", [])}
    known = {*PARAMETERS, *OUTPUTS, *RESOURCES, *map(str, values)}
    prose = DEPLOY.prose + RUNBOOK.section("Alarms").prose + RUNBOOK.section("Dead jobs").prose
    named = set(re.findall(r"`([A-Z][a-z0-9]+(?:[A-Z][A-Za-z0-9]*)+)`", prose))

    assert named - known == {"AccessDenied", "LedgerUnreachable", "MessageId", "UnreadableJob"}
    assert {each.words[1] for each in commands_of("output")} - {"$1"} <= OUTPUTS.keys()
    assert {each.words[1] for each in commands_of("physical")} - {"$1"} <= RESOURCES.keys()


def test_a_deployment_is_described_as_the_template_configures_it() -> None:
    globals_: Mapping[str, Any] = TEMPLATE["Globals"]["Function"]
    aliases = [
        each.options.get("--name") or each.options.get("--qualifier")
        for each in commands_of("aws", "lambda")
    ]

    upgrade = DEPLOY.section("Upgrade")
    assert [row[0] for row in table_called(upgrade, "value")] == (
        PARAMETERS["Deployment"]["AllowedValues"]
    )
    for alarm in globals_["DeploymentPreference"]["Alarms"]:
        assert f"`{alarm['Ref']}`" in upgrade.text
    assert {alias for alias in aliases if alias} == {globals_["AutoPublishAlias"]}


def test_a_deletion_leaves_what_the_template_retains() -> None:
    retained = {
        name for name, each in RESOURCES.items() if "Retain" in each.get("DeletionPolicy", "")
    }

    assert {row[0] for row in table_called(DEPLOY, "left")} & RESOURCES.keys() == retained


# The runbook


def test_every_alarm_has_a_meaning_and_an_action() -> None:
    rows = table_called(RUNBOOK, "alarm")
    topics = {"page": "AlarmTopic", "notice": "NoticeTopic"}
    alarms = {
        name: each["Properties"]["AlarmActions"]
        for name, each in RESOURCES.items()
        if each["Type"].endswith(":Alarm")
    }

    assert {name: [{"Ref": topics[sent_as]}] for name, sent_as, *_ in rows} == alarms
    assert len(rows) == len(alarms)
    assert all(all(row) for row in rows)


def test_every_fault_that_an_alarm_counts_has_an_action() -> None:
    codes = {
        each.code for each in GenerationFailed.__subclasses__() if not each.counts_against_limit
    }

    rows = table_called(RUNBOOK, "code")
    assert {code for code, *_ in rows} == codes | {OutcomePending.code, ServiceUnavailable.code}


def test_every_reason_why_the_model_is_unavailable_has_an_action() -> None:
    rows = {name: action for name, *_, action in table_called(RUNBOOK, "alarm")}
    reasons = set(re.findall(r'ModelUnavailable\(reason="(\w+)"\)', SOURCE))

    assert len(reasons) > 3
    assert reasons <= set(re.findall(r"\w+", rows["ModelUnavailableAlarm"]))


def test_a_new_shell_gets_what_the_runbooks_commands_need() -> None:
    first = RUNBOOK.fences[0].text

    assert set(re.findall(r"export (\w+)=", first)) == {
        "AWS_DEFAULT_REGION",
        "CREDITS_TABLE",
        "ORG_SECRET_PREFIX",
    }


def test_every_log_group_is_named_and_every_log_command_reads_one() -> None:
    groups = {
        each["Properties"]["LogGroupName"]["Fn::Sub"].replace("${AWS::StackName}", STACK)
        for each in RESOURCES.values()
        if each["Type"] == "AWS::Logs::LogGroup"
    }
    tails = commands_of("aws", "logs", "tail")

    assert {group for group, _ in table_called(RUNBOOK, "log group")} == groups
    assert {each.words[3] for each in tails} <= groups
    assert len(tails) > 3


def test_what_a_leaked_key_did_is_looked_up_in_the_log_of_every_function_that_takes_keys() -> None:
    (query,) = (each for each in commands_of("aws", "logs", "start-query") if "KEY_ID" in str(each))
    take_keys = {each.name for each in Template.from_file().functions() if each.routes}
    logs = {RESOURCES[name]["Properties"]["LoggingConfig"]["LogGroup"]["Ref"] for name in take_keys}
    names = {RESOURCES[log]["Properties"]["LogGroupName"]["Fn::Sub"] for log in logs}

    assert {word for word in query.words if word.startswith("/")} == {
        name.replace("${AWS::StackName}", STACK) for name in names
    }


def test_an_alarm_made_by_hand_in_another_region_is_that_of_the_template() -> None:
    (command,) = commands_of("aws", "cloudwatch", "put-metric-alarm")
    alarm = RESOURCES["DeliveryFaultsAlarm"]["Properties"]
    same = alarm.keys() - {"AlarmActions", "OKActions", "AlarmDescription", "Dimensions"}

    assert {f"--{xform_name(name, '-')}": str(alarm[name]) for name in same}.items() <= (
        command.options.items()
    )
    assert command.options["--region"] == "us-east-1"
    assert "Name=Region,Value=Global" in command.words


def test_the_log_messages_and_metrics_that_it_names_are_the_codes() -> None:
    messages = set(re.findall(r"`([a-z]+ [a-z ]+)`, `", RUNBOOK.text))
    metrics = set(re.findall(r"metric `(\w+)`", RUNBOOK.text))

    assert messages
    assert metrics
    assert [each for each in messages | metrics if f'"{each}"' not in SOURCE] == []


def test_the_times_of_a_reservation_are_the_codes() -> None:
    queue = Template.from_file().queue("JobsQueue")
    rows = {
        row[0]: " ".join(row[1:]) for row in RUNBOOK.section("An asynchronous request").tables[0]
    }
    leases_s = JOB_WAITS_S + (queue.receives or 0) * WORKER_LEASE_S

    for row, phrase in (
        ("killed between the reservation and the queue", f"{LEASE_S} s"),
        (f"no worker starts it within {JOB_WAITS_S // 60} minutes", f"{JOB_WAITS_S} s"),
        ("the model fails, or the image can't be stored", f"again {WORKER_LEASE_S} s"),
        ("a worker is killed", f"after {queue.visibility_timeout_s} s"),
        ("a worker is killed", f"lease by {WORKER_LEASE_S} s"),
    ):
        assert phrase in rows[row], row
    for phrase in (
        f"({LEASE_S} s), and",
        f"same {LEASE_S} s until it is queued, {JOB_WAITS_S} s from then",
        f"{WORKER_LEASE_S} s from each start, at most {queue.receives} times",
        f"after {math.ceil(leases_s / 60)} minutes of leases",
        f"{REFUNDED_WITHIN_S // 60} minutes is the promise",
        f"dead within {CACHE_S:.0f} seconds",
    ):
        assert phrase in RUNBOOK.words, phrase


def test_a_restore_stops_every_function_that_may_write_to_the_table() -> None:
    reads = {"dynamodb:GetItem", "dynamodb:Query"}
    called: dict[str, set[str]] = {
        operation: set(
            re.findall(rf'{operation}-function-concurrency .*"\$\(physical (\w+)', RUNBOOK.text)
        )
        for operation in ("put", "delete")
    }
    writers = {
        name
        for name, each in RESOURCES.items()
        if each["Type"] == "AWS::Serverless::Function"
        and actions_of(each["Properties"]["Role"]) - reads
    }

    assert set(WRITERS) == called["put"] == called["delete"] == writers


def actions_of(role: Mapping[str, Any]) -> set[str]:
    """What the role may do with DynamoDB."""
    policies = RESOURCES[role["Fn::GetAtt"][0]]["Properties"]["Policies"]
    return set(re.findall(r"dynamodb:\w+", str(policies)))


def test_a_restored_table_gets_the_settings_of_the_template() -> None:
    (ttl,) = commands_of("aws", "dynamodb", "update-time-to-live")
    (backups,) = commands_of("aws", "dynamodb", "update-continuous-backups")

    for command, name in (
        (ttl, "TimeToLiveSpecification"),
        (backups, "PointInTimeRecoverySpecification"),
    ):
        value = command.options[f"--{xform_name(name, '-')}"]
        written = dict(each.split("=") for each in value.split(","))
        expected = {key: str(each).replace("True", "true") for key, each in TABLE[name].items()}
        assert written == expected
    assert TABLE["DeletionProtectionEnabled"] is True
