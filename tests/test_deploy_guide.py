"""The deploy guide is true: names are the template's, commands are valid, sums and counts are made.

So is the operations guide, as far as it has any of these.

Prices and quotas of others can't be checked here; what is computed from them is.
"""

import ast
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, cast

import boto3
import botocore.session
import pytest
from botocore import xform_name
from botocore.model import OperationModel, Shape, StringShape

from infra.cli import main as operator_command
from infra.local.aws import EmbeddedAws
from infra.template import PROJECT_ROOT, TEMPLATE_PATH, Template, parse
from lib import errors
from lib.deadline import (
    AFTER_MODEL_S,
    FUNCTION_TIMEOUT_S,
    JOB_WAITS_S,
    LAST_ROWS_TAKE_S,
    LEASE_S,
    REFUNDED_WITHIN_S,
    RESERVE_WITHIN_S,
    RESPONSE_TAKES_S,
    WORKER_LEASE_S,
    WORKER_TIMEOUT_S,
)
from lib.errors import ContentRejected
from lib.http.models import MAX_PROMPT_CHARACTERS
from lib.keys.verification import CACHE_S
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.ledger.reconciliation import ROWS_IN_PARALLEL
from lib.ledger.rows import DEFAULT_RATE_LIMIT, DUE_SHARDS
from lib.settings import DEFAULT_MODEL
from tests.engines import Engine
from tests.world import World

PATH = PROJECT_ROOT / "infra" / "DEPLOY.md"
GUIDE = PATH.read_text(encoding="utf-8")
OPERATIONS = (PATH.parent / "OPERATIONS.md").read_text(encoding="utf-8")
TEMPLATE = parse(TEMPLATE_PATH.read_text(encoding="utf-8"))
RESOURCES: Mapping[str, Any] = TEMPLATE["Resources"]
PARAMETERS: Mapping[str, Any] = TEMPLATE["Parameters"]
OUTPUTS: Mapping[str, Any] = TEMPLATE["Outputs"]
BUSY_S = 6
"""How long the guide takes a request to be."""


# The document


@dataclass(frozen=True)
class Block:
    """A fenced block, without its indentation."""

    language: str
    text: str


def fenced_blocks(document: str = GUIDE) -> list[Block]:
    found = re.findall(r"^( *)```(\w+)\n(.*?)^\1```$", document, re.MULTILINE | re.DOTALL)
    return [
        Block(kind, re.sub(f"^{margin}", "", text, flags=re.MULTILINE))
        for margin, kind, text in found
    ]


def prose() -> str:
    return re.sub(r"^ *```.*?^ *```$", "", GUIDE, flags=re.MULTILINE | re.DOTALL)


def words() -> str:
    """The prose without its line breaks."""
    return " ".join(prose().split())


def section(title: str, document: str = GUIDE) -> str:
    """What stands under a heading, up to the next one."""
    (found,) = re.findall(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^#|\Z)", document, re.MULTILINE | re.DOTALL
    )
    return str(found[1])


def tables_in(title: str, document: str = GUIDE) -> list[list[list[str]]]:
    """The tables of a section as rows of cells; the heading is the first row."""
    found = re.findall(r"(?:^\|.*\n)+", section(title, document), re.MULTILINE)
    return [[_cells(line) for line in _without_rule(table.splitlines())] for table in found]


def _without_rule(lines: Sequence[str]) -> list[str]:
    return [lines[0], *lines[2:]]


def _cells(line: str) -> list[str]:
    return [cell.strip().strip("*`") for cell in line.strip().strip("|").split("|")]


def amount(cell: str) -> Decimal:
    return Decimal(cell.replace(",", ""))


# The commands


@dataclass(frozen=True)
class Command:
    """The words of one command as the shell hands them over, ``$(...)`` and variables unopened."""

    words: list[str]

    @property
    def options(self) -> dict[str, str]:
        """Each option with the word after it, or with nothing when it has none."""
        following = [*self.words[1:], "--"]
        return {
            word: "" if after.startswith("--") else after
            for word, after in zip(self.words, following, strict=True)
            if word.startswith("--")
        }


def commands() -> list[Command]:
    """Every command of both guides, those inside ``$(...)`` too."""
    lines = [
        line.strip()
        for block in [*fenced_blocks(), *fenced_blocks(OPERATIONS)]
        if block.language == "sh"
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    inner = [each for line in lines for each in re.findall(r"\$\(([^()]*)\)", line)]
    outer = [line for line in lines if line and line != "}" and not line.endswith("() {")]
    return [Command(shlex.split(line)) for line in [*outer, *inner]]


def commands_of(*program: str) -> list[Command]:
    length = len(program)
    return [each for each in commands() if tuple(each.words[:length]) == program]


OPERATOR = (".venv/bin/python", "-m", "infra.cli")
KNOWN_PROGRAMS = {"aws", "cat", "curl", "git", "make", "output", "physical", "rm", "sam", "umask"}


def test_every_command_is_of_a_kind_that_is_checked_here_or_of_the_shell() -> None:
    editor, setting = "${EDITOR:-vi}", "export"
    for command in commands():
        first = command.words[0]
        assert first in KNOWN_PROGRAMS | {editor, setting, OPERATOR[0]}, command.words
    assert {block.language for block in fenced_blocks()} == {"sh", "json", "python"}


def test_every_operator_command_is_understood_by_the_operators_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CREDITS_TABLE", raising=False)
    monkeypatch.delenv("ORG_SECRET_PREFIX", raising=False)
    found = commands_of(*OPERATOR)

    for command in found:
        words = command.words[len(OPERATOR) :]
        if ">" in words:
            words = words[: words.index(">")]
        # What it can't understand ends with SystemExit; what it understands it can't do unset.
        assert operator_command(words) == 1, words
        assert "set CREDITS_TABLE and ORG_SECRET_PREFIX" in capsys.readouterr().err
    assert {words.words[len(OPERATOR)] for words in found} >= {"org", "credits", "keys", "audit"}


def test_every_secret_comes_from_a_file_that_is_deleted_afterwards() -> None:
    values = [
        each.options["--secret-string"]
        for each in commands_of("aws", "secretsmanager")
        if "--secret-string" in each.options
    ]
    removed = [name for each in commands_of("rm") for name in each.words[1:]]

    assert len(values) == len(removed) > 0
    assert [value.removeprefix("file://") for value in values] == removed


AWS_CLI_OWN = {"--query", "--output", "--region", "--profile"}
HIGH_LEVEL_S3 = {"rb": {"--force"}}


def test_every_aws_command_is_an_operation_with_its_options() -> None:
    session = botocore.session.get_session()
    found = [each for each in commands_of("aws") if each.words[1] != "s3"]

    for command in found:
        _, service, operation, *_ = command.words
        model = session.get_service_model(service)
        if operation == "wait":
            waiters = session.get_waiter_model(service).waiter_names
            name = {xform_name(each, "-"): each for each in waiters}[command.words[3]]
            operation = xform_name(
                session.get_waiter_model(service).get_waiter(name).operation, "-"
            )
        names = {xform_name(each, "-"): each for each in model.operation_names}
        check_options(command, model.operation_model(names[operation]))
    for command in commands_of("aws", "s3"):
        assert set(command.options) <= HIGH_LEVEL_S3[command.words[2]]


def check_options(command: Command, operation: OperationModel) -> None:
    shape = operation.input_shape
    assert shape is not None
    members: dict[str, Shape] = dict(shape.members)
    option_of = {name: f"--{xform_name(name, '-')}" for name in members}
    known = {option: members[name] for name, option in option_of.items()}
    for option, value in command.options.items():
        if option in AWS_CLI_OWN:
            continue
        switch = option if option in known else option.replace("--no-", "--", 1)
        assert switch in known, (command.words, option)
        member = known[switch]
        if member.type_name == "boolean":
            assert not value, (command.words, option)
        elif isinstance(member, StringShape) and member.enum:
            assert value in member.enum, (command.words, option)
        else:
            assert value, (command.words, option)
    required = {option_of[name] for name in shape.required_members}
    assert required <= set(command.options), command.words


# AWS SAM CLI command reference, 1.170.
SAM_OPTIONS = {
    "build": set[str](),
    "deploy": {
        "--capabilities",
        "--guided",
        "--no-execute-changeset",
        "--parameter-overrides",
        "--stack-name",
    },
    "delete": {"--stack-name"},
}


def test_every_sam_command_has_options_that_sam_has_and_sets_parameters_of_the_template() -> None:
    found = commands_of("sam")

    for command in found:
        assert set(command.options) <= SAM_OPTIONS[command.words[1]]
    for command in found:
        values = dict(each.split("=", 1) for each in command.words if re.match(r"\w+=", each))
        assert values.keys() <= PARAMETERS.keys()
        for name, value in values.items():
            assert re.fullmatch(PARAMETERS[name].get("AllowedPattern", ".*"), value), name
            assert value in PARAMETERS[name].get("AllowedValues", [value])
    assert {command.words[1] for command in found} == SAM_OPTIONS.keys()


def test_every_url_that_curl_asks_is_a_route() -> None:
    routes = {route.path for each in Template.from_file().functions() for route in each.routes}
    asked = {
        each.words[-1 if "-H" not in each.words else each.words.index("-H") - 1]
        for each in commands_of("curl")
    }

    assert asked
    assert {url.removeprefix("$(output ApiUrl)") for url in asked} <= routes


def test_every_make_target_exists() -> None:
    makefile = (PROJECT_ROOT / "Makefile").read_text(encoding="utf-8")

    assert [each.words[1:] for each in commands_of("make")] == [[".venv/.installed"]]
    assert "INSTALLED := $(VENV)/.installed" in makefile
    assert "VENV := .venv\n" in makefile


# The names


def test_the_parameters_are_the_templates_with_their_defaults() -> None:
    (rows,) = [table for table in tables_in("First deployment") if table[0][0] == "parameter"]
    documented = {name: default for name, default, _ in rows[1:]}

    assert documented == {name: str(each["Default"]) for name, each in PARAMETERS.items()}
    assert documented["GeminiModel"] == DEFAULT_MODEL


def test_the_outputs_are_the_templates() -> None:
    (rows,) = [table for table in tables_in("First deployment") if table[0][0] == "output"]

    assert {name for name, _ in rows[1:]} == OUTPUTS.keys()


def test_every_name_in_code_style_is_something_of_the_template() -> None:
    values = {value for each in PARAMETERS.values() for value in each.get("AllowedValues", [])}
    actions = {name for row in tables_in("What you need")[1] for name in re.findall(r"\w+", row[1])}
    index = {each["IndexName"] for each in table_properties()["GlobalSecondaryIndexes"]}
    known = {*PARAMETERS, *OUTPUTS, *RESOURCES, *map(str, values), *actions, *index}
    named = re.findall(r"`([A-Z][a-z0-9]+(?:[A-Z][A-Za-z0-9]*)+)`", prose())
    asked = [
        each.words[1]
        for each in [*commands_of("output"), *commands_of("physical")]
        if each.words[1] != "$1"
    ]

    assert named
    assert [name for name in named + asked if name not in known] == []
    assert {each.words[1] for each in commands_of("output")} - {"$1"} <= OUTPUTS.keys()
    assert {each.words[1] for each in commands_of("physical")} - {"$1"} <= RESOURCES.keys()


def test_what_a_deployment_does_and_which_alarms_stop_it_are_the_templates() -> None:
    preference = TEMPLATE["Globals"]["Function"]["DeploymentPreference"]
    (rows,) = [table for table in tables_in("Upgrade") if table[0][0] == "value"]

    assert [row[0] for row in rows[1:]] == PARAMETERS["Deployment"]["AllowedValues"]
    for alarm in preference["Alarms"]:
        assert f"`{alarm['Ref']}`" in section("Upgrade")
    aliases = re.findall(
        r"--(?:name|qualifier) (\w+)(?= )",
        "".join(b.text for b in fenced_blocks() if "lambda" in b.text),
    )
    assert aliases
    for alias in aliases:
        assert alias == TEMPLATE["Globals"]["Function"]["AutoPublishAlias"]


def test_what_a_deletion_leaves_is_what_the_template_retains() -> None:
    (rows,) = tables_in("Delete it")
    retained = {name for name, each in RESOURCES.items() if each.get("DeletionPolicy") == "Retain"}

    assert {row[0] for row in rows[1:]} & RESOURCES.keys() == retained


def test_a_restored_table_gets_the_settings_that_the_template_gives() -> None:
    properties = table_properties()
    (ttl,) = commands_of("aws", "dynamodb", "update-time-to-live")
    (backups,) = commands_of("aws", "dynamodb", "update-continuous-backups")

    assert settings_in(ttl, "--time-to-live-specification") == as_text(
        properties["TimeToLiveSpecification"]
    )
    assert settings_in(backups, "--point-in-time-recovery-specification") == as_text(
        properties["PointInTimeRecoverySpecification"]
    )
    assert properties["DeletionProtectionEnabled"] is True


def settings_in(command: Command, option: str) -> dict[str, str]:
    return dict(each.split("=") for each in command.options[option].split(","))


def as_text(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value).replace("True", "true") for name, value in settings.items()}


def table_properties() -> Mapping[str, Any]:
    properties: Mapping[str, Any] = RESOURCES["CreditsTable"]["Properties"]
    return properties


@pytest.mark.parametrize("document", [GUIDE, OPERATIONS], ids=["deploying", "operating"])
def test_what_it_links_to_is_there(document: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", document)

    assert links
    for link in links:
        name, _, anchor = link.partition("#")
        text = (PATH.parent / name).read_text(encoding="utf-8") if name else document
        assert not anchor or anchor in anchors(text), link


def anchors(document: str) -> set[str]:
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", document, re.MULTILINE)
    }


# The restore


def test_copying_back_makes_the_live_table_the_restored_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (script,) = (block.text for block in fenced_blocks() if block.language == "python")
    before = [row("ACCOUNT", 95), row("GEN#1", 5), row("GRANT#first", 100)]
    after = [row("ACCOUNT", 40), row("GEN#1", 5), row("GEN#2", 5)]

    with EmbeddedAws() as aws:
        for name, value in aws.environment().items():
            monkeypatch.setenv(name, value)
        for variable, rows in (("CREDITS_TABLE", after), ("RESTORED_TABLE", before)):
            monkeypatch.setenv(variable, f"the-{variable.lower()}")
            fill(f"the-{variable.lower()}", rows)
        exec(compile(script, "copy_back.py", "exec"), {})  # noqa: S102 - the guide's own script

        table = boto3.resource("dynamodb").Table("the-credits_table")
        assert sorted(table.scan()["Items"], key=str) == sorted(before, key=str)


def row(sk: str, credits_: int) -> dict[str, Any]:
    return {"pk": "ORG#acme", "sk": sk, "credits": Decimal(credits_)}


def fill(name: str, rows: Sequence[dict[str, Any]]) -> None:
    boto3.client("dynamodb").create_table(**Template.from_file().table_definition(name))
    with boto3.resource("dynamodb").Table(name).batch_writer() as writer:
        for each in rows:
            writer.put_item(Item=each)


def test_the_rate_limit_is_raised_by_the_command(
    moto_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = (each for each in commands_of(*OPERATOR) if each.words[3:5] == ["org", "limit"])
    with (
        EmbeddedAws() as aws,
        World(replace(moto_engine, dynamodb=aws.client("dynamodb")), rate_limit=1) as world,
    ):
        for name, value in aws.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CREDITS_TABLE", world.table)
        monkeypatch.setenv("ORG_SECRET_PREFIX", "any/")

        words = [world.organisation if word == "acme" else word for word in command.words]
        assert operator_command(words[len(OPERATOR) :]) == 0

        process = world.process()
        assert [type(world.request(process)).__name__ for _ in range(3)] == ["Finished"] * 3


# Operating


def test_every_alarm_says_what_it_means_and_what_to_do() -> None:
    (rows,) = tables_in("The alarms", OPERATIONS)

    alarms = {name for name, each in RESOURCES.items() if each["Type"].endswith(":Alarm")}
    assert {row[0] for row in rows[1:]} == alarms
    assert len(rows[1:]) == len(alarms)
    assert all(meaning and deed for _, meaning, deed in rows[1:])


def test_the_metrics_that_operators_are_pointed_to_are_counted() -> None:
    named = set(re.findall(r"metric `(\w+)`", OPERATIONS))

    assert named
    assert named <= metric_names()


def test_the_times_of_a_reservation_are_the_codes() -> None:
    queue = Template.from_file().queue("JobsQueue")
    title = "When the image was accepted to be made later"
    rows = {row[0]: " ".join(row[1:]) for row in tables_in(title, OPERATIONS)[0]}
    text = " ".join(section("How long it takes", OPERATIONS).split())
    leases_s = JOB_WAITS_S + (queue.receives or 0) * WORKER_LEASE_S

    assert f"{LEASE_S} s" in rows["killed between the reservation and the queue"]
    assert f"{JOB_WAITS_S} s" in rows[f"no worker takes it within {JOB_WAITS_S // 60} minutes"]
    assert f"again {WORKER_LEASE_S} s" in rows["the model fails, or the image can't be stored"]
    assert f"after {queue.visibility_timeout_s} s" in rows["a worker is killed"]
    assert f"over for {WORKER_LEASE_S} s" in rows["a worker is killed"]
    assert f"({LEASE_S} s), and" in text
    assert f"the same {LEASE_S} s until it is queued, {JOB_WAITS_S} s from then" in text
    assert (
        f"{WORKER_LEASE_S} s from each time that one does, at most {queue.receives} times" in text
    )
    assert f"after {math.ceil(leases_s / 60)} minutes of leases" in text
    assert f"{REFUNDED_WITHIN_S // 60} minutes is the promise" in text
    assert REFUNDED_WITHIN_S - LEASE_S <= 2 * 60 + 1, (
        "refunded within two minutes of its lease's end"
    )


# What DynamoDB bills


KB = 1024
_TRANSACTION = 2


@dataclass
class Meter:
    """A DynamoDB client that counts write request units, as the developer guide defines them.

    Sources, of the Amazon DynamoDB Developer Guide: "DynamoDB item sizes and formats", "Using
    Global Secondary Indexes" (provisioned throughput considerations), "Amazon DynamoDB
    Transactions: How it works".
    """

    client: Any
    units: list[int] = field(default_factory=list)
    index_units: int = 0
    reads: int = 0

    def __getattr__(self, operation: str) -> Any:
        method = getattr(self.client, operation)

        def called(**arguments: Any) -> Any:
            writes = _writes_of(operation, arguments)
            self.reads += operation in {"get_item", "query", "scan"}
            before = [self._row(each) for each in writes]
            answer = method(**arguments)
            after = [self._row(each) for each in writes]
            factor = _TRANSACTION if operation == "transact_write_items" else 1
            if writes:
                changes = list(zip(before, after, strict=True))
                of_the_index = factor * sum(_index_units(*change) for change in changes)
                of_the_table = factor * sum(_table_units(*change) for change in changes)
                self.index_units += of_the_index
                self.units.append(of_the_table + of_the_index)
            return answer

        return called

    def _row(self, write: Mapping[str, Any]) -> Mapping[str, Any]:
        key = write.get("Key") or {name: write["Item"][name] for name in ("pk", "sk")}
        found = self.client.get_item(TableName=write["TableName"], Key=key, ConsistentRead=True)
        row: Mapping[str, Any] = found.get("Item", {})
        return row


def _writes_of(operation: str, arguments: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if operation == "transact_write_items":
        return [write for each in arguments["TransactItems"] for write in each.values()]
    return [arguments] if operation in {"put_item", "update_item"} else []


def _table_units(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    return _rounded_up(max(_bytes_of(before), _bytes_of(after)))


def _index_units(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    (index,) = table_properties()["GlobalSecondaryIndexes"]
    keys = [each["AttributeName"] for each in index["KeySchema"]]
    carried = {"pk", "sk", *keys, *index["Projection"]["NonKeyAttributes"]}
    old, new = (
        {name: value for name, value in row.items() if name in carried}
        if all(key in row for key in keys)
        else {}
        for row in (before, after)
    )
    if old == new:
        return 0
    if old and new and [old[key] for key in keys] != [new[key] for key in keys]:
        return _rounded_up(_bytes_of(old)) + _rounded_up(_bytes_of(new))
    return _rounded_up(max(_bytes_of(old), _bytes_of(new)))


def _bytes_of(row: Mapping[str, Any]) -> int:
    return sum(len(name.encode()) + _value_bytes(value) for name, value in row.items())


def _value_bytes(value: Mapping[str, str]) -> int:
    ((kind, text),) = value.items()
    assert kind in {"S", "N", "BOOL"}
    if kind == "BOOL":
        return 1
    return len(text.encode()) if kind == "S" else math.ceil(len(text) / 2) + 1


def _rounded_up(size: int) -> int:
    return math.ceil(size / KB)


@dataclass(frozen=True)
class Bill:
    """What a request costs: the units of its writes in their order, and the index's part."""

    units: list[int]
    index_units: int
    row_bytes: int
    reads: int


def bill_of(
    engine: Engine,
    prompt: str = "x" * 200,
    key: str | None = None,
    *,
    fails: bool = False,
    asynchronous: bool = False,
) -> Bill:
    meter = Meter(engine.dynamodb)
    with World(replace(engine, dynamodb=cast("Any", meter))) as world:
        meter.units.clear()
        process = world.process(failure=ContentRejected() if fails else None)
        with world.observe() as observation:
            try:
                order = world.order(key, prompt, asynchronous=asynchronous)
                if asynchronous:
                    process.generations.accept(order, world.deadline(), observation)
                    world.deliver(process)
                else:
                    process.generations.generate(order, world.deadline(), observation)
            except ContentRejected:
                assert fails
        units, index_units, reads = list(meter.units), meter.index_units, meter.reads
        (generation,) = (each for each in world.rows() if each["sk"]["S"].startswith("GEN#"))
        return Bill(units, index_units, _bytes_of(generation), reads)


def test_the_write_units_are_those_of_the_services_own_calls(moto_engine: Engine) -> None:
    rows = next(table for table in tables_in("AWS, per 1,000 images") if table[0][1] == "reserve")
    bills = [
        bill_of(moto_engine),
        bill_of(moto_engine, key="order-1042"),
        bill_of(moto_engine, prompt="x" * MAX_PROMPT_CHARACTERS),
        bill_of(moto_engine, fails=True),
        bill_of(moto_engine, asynchronous=True),
    ]

    documented = [[int(cell) for cell in cells[1:] if cell] for cells in rows[1:]]
    assert documented == [[*bill.units, sum(bill.units)] for bill in bills]
    assert {bill.reads for bill in bills} == {0}
    assert bills[0].row_bytes < 1000, "the line of the history counts 1 KB an image"
    of_an_image, of_an_accepted_one = sum(bills[0].units), sum(bills[-1].units)
    written = line("AWS, per 1,000 images", "DynamoDB, write request units")
    more = line("AWS, per 1,000 images", "DynamoDB, write request units more")
    assert written[1] == f"{1000 * of_an_image:,}"
    assert more[1] == f"{1000 * (of_an_accepted_one - of_an_image):,}"
    assert f"An accepted image writes {bills[-1].index_units}: its" in words()


def test_the_log_lines_hold_what_a_success_writes(
    moto_engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    of_an_invocation, of_the_gateway = 500, 500
    counted, counted_more = (
        amount(cells[1]) * 1_000_000
        for table in tables_in("AWS, per 1,000 images")
        for cells in table
        if cells[0].startswith("CloudWatch Logs")
    )

    def written() -> int:
        # A line of the service is JSON; what is not comes from something else in this process.
        lines = capfd.readouterr().out.splitlines()
        return sum(len(line.encode()) + 1 for line in lines if line.startswith("{"))

    requested, accepted = [], []
    with World(moto_engine) as world:
        # Whatever else goes on in this process writes too: the least of three is ours alone.
        for _ in range(3):
            world.clock.sleep(1)
            written()
            world.request(world.process())
            requested.append(written())
            world.mailbox.messages.clear()
            world.accept(world.process())
            world.deliver()
            accepted.append(written())
    of_a_request, of_an_accepted_one = min(requested), min(accepted)

    around = of_an_invocation + of_the_gateway
    assert 0 < of_a_request + around <= counted
    assert 0 < of_an_accepted_one + around + of_an_invocation <= counted + counted_more


def test_the_metrics_and_alarms_that_are_billed_are_those_that_exist() -> None:
    codes = {each.code for each in leaves(errors.GenerationFailed)}
    alarms = [each["Properties"] for each in RESOURCES.values() if each["Type"].endswith(":Alarm")]
    watched = [
        each
        for alarm in alarms
        for each in alarm.get("Metrics", [alarm])
        if "MetricStat" in each or "MetricName" in each
    ]
    dashboards = [each for each in RESOURCES.values() if each["Type"].endswith(":Dashboard")]

    def units(start: str) -> Decimal:
        return amount(line("Per month, whatever the traffic", start)[1])

    assert units("CloudWatch, custom metrics") == len(metric_names()) + len(codes)
    assert f"{len(codes)} of the {len(metric_names()) + len(codes)} are one for each" in words()
    assert units("CloudWatch, alarms") == len(watched)
    assert units("CloudWatch, dashboard") == len(dashboards)


def leaves(kind: type[errors.GenerationFailed]) -> Iterator[type[errors.GenerationFailed]]:
    children = kind.__subclasses__()
    for child in children:
        yield from leaves(child)
    if not children:
        yield kind


def metric_names() -> set[str]:
    """What the service's own code counts and times; ``FailuresByCode`` apart."""
    files = [*(PROJECT_ROOT / "lib").glob("*.py"), *(PROJECT_ROOT / "handlers").glob("*.py")]
    calls = (
        node
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    )
    return {
        argument.value
        for call in calls
        for argument in call.args[:1]
        if cast("ast.Attribute", call.func).attr in {"count", "timed"}
        and isinstance(argument, ast.Constant)
        and isinstance(argument.value, str)
    }


# The sums


COST_SECTIONS = ("AWS, per 1,000 images", "Per month, whatever the traffic")


def cost_tables(*titles: str) -> Iterator[list[list[str]]]:
    for title in titles:
        yield from (table for table in tables_in(title) if table[0][0].startswith("line"))


def line(title: str, start: str) -> list[str]:
    """The first line of a section's tables that begins so."""
    return next(
        cells for table in tables_in(title) for cells in table if cells[0].startswith(start)
    )


def rounded(value: Decimal, like: str) -> Decimal:
    return value.quantize(amount(like), ROUND_HALF_UP)


def test_every_cost_is_units_times_price_and_every_sum_is_the_sum() -> None:
    tables = list(cost_tables(*COST_SECTIONS))
    assert len(tables) == len(("AWS", "asynchronous", "S3", "R2", "month"))

    for _, *lines, total in tables:
        for name, units, price, unit, cost, source in lines:
            assert rounded(amount(units) * amount(price) / amount(unit), cost) == amount(cost), name
            assert source, name
        assert total[0] == "sum"
        assert amount(total[4]) == sum(amount(cells[4]) for cells in lines)


def test_the_cost_of_asking_for_a_status_is_that_of_its_parts() -> None:
    everywhere = ("Lambda, requests", "API Gateway", "Secrets Manager", "X-Ray")
    of_a_request = sum(amount(line(COST_SECTIONS[0], each)[4]) for each in everywhere)
    gb_s = amount(line(COST_SECTIONS[0], "Lambda, GB-seconds")[2]) * 1000 * Decimal("0.05") / 2
    reads = amount(line(COST_SECTIONS[1], "reconciler, read request units")[2]) / 1000

    (account,) = (each for each in Template.from_file().functions() if "Account" in each.name)
    assert account.memory_mb == 1024 / 2
    assert f"at most {rounded(of_a_request + gb_s + reads, '0.001')} per 1,000" in words()


def test_the_cost_all_in_adds_up() -> None:
    aws, _, s3, r2 = (amount(table[-1][4]) for table in cost_tables(COST_SECTIONS[0]))
    model = amount(line("The model", DEFAULT_MODEL)[3])
    (rows,) = [table for table in tables_in(COST_SECTIONS[0]) if table[0][0].startswith("all in")]

    columns = zip(*(cells[1:] for cells in rows[1:]), strict=True)
    assert [[amount(cell) for cell in column] for column in columns] == [
        [model, aws, s3, model + aws + s3],
        [model, aws, r2, model + aws + r2],
    ]


def test_the_models_prices_follow_from_the_price_of_an_image() -> None:
    (rows,) = tables_in("The model")

    for name, _, image, thousand, credit in rows[1:]:
        assert rounded(amount(image) * 1000, thousand) == amount(thousand), name
        assert rounded(amount(image) / CREDITS_PER_IMAGE, credit) == amount(credit), name
    assert rows[1][0] == DEFAULT_MODEL
    left_for_the_model_s = FUNCTION_TIMEOUT_S - RESPONSE_TAKES_S - AFTER_MODEL_S
    assert f"the {left_for_the_model_s:g} s that it gets of a request" in words()
    left_by_the_worker_s = WORKER_TIMEOUT_S - RESPONSE_TAKES_S - AFTER_MODEL_S
    assert f"the {left_by_the_worker_s:g} s that it gets of a worker" in words()


def test_r2_pays_from_the_number_of_downloads_that_is_stated() -> None:
    _, _, s3, r2 = (table[1:-1] for table in cost_tables(COST_SECTIONS[0]))
    downloads = 3

    def split(rows: Sequence[Sequence[str]], *of_a_download: str) -> tuple[Decimal, Decimal]:
        """What is paid once, and what is paid for each download."""
        costs = {cells[0]: amount(cells[4]) for cells in rows}
        moving = [
            cost for name, cost in costs.items() if any(each in name for each in of_a_download)
        ]
        return sum(costs.values(), Decimal()) - sum(moving), sum(moving, Decimal()) / downloads

    s3_once, s3_each = split(s3, "GET", "CloudFront")
    r2_once, r2_each = split(r2, "class B")
    even = (r2_once - s3_once) / (s3_each - r2_each)
    assert f"from about {even:.2f} downloads an image on" in words()
    gb_out, gb_in = (
        amount(line(COST_SECTIONS[0], start)[1]) for start in ("CloudFront, GB", "AWS, data out")
    )
    assert f"(at three downloads: {round(1000 / gb_out)},000 images)" in words()
    assert f"({int(100 / gb_in)},000 images into R2)" in words()


# The limits


def test_what_a_rate_takes_is_arithmetic(moto_engine: Engine) -> None:
    (rows,) = tables_in("What it takes")
    bill = bill_of(moto_engine)
    index_units = bill.index_units
    table_units = sum(bill.units) - index_units
    factors = [BUSY_S, 60, table_units, index_units, 1, 1]
    peak = Decimal(1_000_000) / 86_400 * 5
    rates = [Decimal(1), Decimal(10), Decimal(100), Decimal(1000), peak]

    assert rows[0][-1] == f"{peak:.1f}"
    for factor, cells in zip(factors, rows[1:], strict=True):
        assert [amount(cell) for cell in cells[1:]] == [math.ceil(rate * factor) for rate in rates]
    workers = math.ceil(peak * BUSY_S)
    assert (
        first_figure(
            section("What bites first, and what to raise").split("`WorkerConcurrency` to")[1]
        )
        >= workers
    )
    thresholds = [cells[0] for cells in tables_in("What bites first, and what to raise")[0][1:]]
    assert [first_figure(each) for each in thresholds] == [
        DEFAULT_RATE_LIMIT / 60,
        floor_to_tenth(10 / BUSY_S),
        floor_to_tenth(PARAMETERS["WorkerConcurrency"]["Default"] / BUSY_S),
        floor_to_tenth(500 / 60),
        float(PARAMETERS["ThrottleRate"]["Default"]),
        math.floor(1000 / BUSY_S),
        1000 / table_units,
        4000 / table_units,
        math.floor(1000 * DUE_SHARDS / index_units),
        3500,
        40_000 / table_units,
        10_000,
        10_000,
    ]


def first_figure(text: str) -> float:
    (figure, *_) = re.findall(r"[\d,]+(?:\.\d+)?", text)
    return float(figure.rstrip(",").replace(",", ""))


def floor_to_tenth(value: float) -> float:
    return math.floor(value * 10) / 10


def test_the_times_it_speaks_of_are_the_codes() -> None:
    text = words()
    run_s = next(
        each.timeout_s for each in Template.from_file().functions() if each.schedules_s == (60,)
    ) - int(LAST_ROWS_TAKE_S)

    assert f"dead within {CACHE_S:.0f} seconds" in text
    assert f"organisation's keys for {CACHE_S:.0f} s" in text
    assert f"longer than {JOB_WAITS_S // 60} minutes is refunded" in text
    assert f"tried again for up to {RESERVE_WITHIN_S:.0f} seconds" in text
    assert f"The function stops at {FUNCTION_TIMEOUT_S} s" in text
    assert f"the model {AFTER_MODEL_S + RESPONSE_TAKES_S:g} s before" in text
    assert f"{ROWS_IN_PARALLEL} holds at a time" in text
    assert f"{run_s} s a minute: at 0.2 s each, {run_s * ROWS_IN_PARALLEL * 5:,} a run" in text
