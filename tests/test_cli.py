"""``gemini-generate`` in this process, on the embedded AWS, as an operator sees it."""

import json
import os
import pty
import re
import socket
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
from werkzeug import Request, Response
from werkzeug.serving import WSGIRequestHandler, make_server

from infra.cli import main
from infra.cli.app import root
from infra.local.aws import EmbeddedAws
from infra.template import PROJECT_ROOT, TEMPLATE_PATH, Template, parse
from lib.deadline import Deadline
from lib.errors import Unauthorized
from lib.keys.key_ring import KeyRing
from lib.keys.verification import KeyVerifier
from lib.ledger.accounts import Accounts
from lib.ledger.audit import AuditReport
from lib.ledger.ledger import Ledger
from lib.ledger.order import Order, Spender
from lib.ledger.rows import Generation, account_key
from lib.ledger.table import LedgerUnreachable, Table
from lib.picture.aspect_ratio import AspectRatio

TABLE = "credits"
PREFIX = "test/orgs/"
KEY_ID = "key_3fZk0W9xQvTb"
DOCUMENT = parse(TEMPLATE_PATH.read_text(encoding="utf-8"))
TEMPLATE = Template(DOCUMENT)
TARGET = f"Target: table {TABLE}.\n"
NO_ORGANISATION = "there is no organisation unknown; create it first"
_numbers = count(1)


@dataclass(frozen=True)
class Exited:
    """A command that has ended: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


Run = Callable[..., Exited]


@pytest.fixture(scope="module")
def aws() -> Iterator[EmbeddedAws]:
    with EmbeddedAws() as running:
        running.create_table(TABLE, TEMPLATE)
        yield running


@pytest.fixture
def run(
    aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command line; the target that it names first is checked by a test of its own."""
    variables = {**aws.environment(), "CREDITS_TABLE": TABLE, "ORG_SECRET_PREFIX": PREFIX}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def command(line: str, *more: str) -> Exited:
        status = main([*line.split(), *more])
        out, err = capsys.readouterr()
        return Exited(status, out, err.removeprefix(TARGET))

    return command


@pytest.fixture
def table(aws: EmbeddedAws) -> Table:
    return Table(aws.client("dynamodb"), TABLE)


@pytest.fixture
def ledger(table: Table) -> Ledger:
    return Ledger(table)


@pytest.fixture
def acme(table: Table) -> str:
    """An organisation of the test's own, with no credits and no key."""
    name = f"acme{next(_numbers)}"
    Accounts(table).create(name, Deadline(10))
    return name


@pytest.fixture
def funded(run: Run, acme: str) -> str:
    """The same with 100 credits."""
    assert grant(run, acme, 100).status == 0
    return acme


def grant(run: Run, organisation: str, amount: int, grant_id: str = "first") -> Exited:
    return run(f"credits grant {organisation} {amount} --id {grant_id} --yes --note", "As agreed")


def balance(run: Run, organisation: str) -> int:
    return int(run(f"credits balance {organisation}").out)


def document(exited: Exited) -> Any:
    """The one JSON document of a command that succeeded, without the name of its target."""
    assert (exited.status, exited.err) == (0, ""), exited
    found = json.loads(exited.out)
    assert found.pop("target")
    return found


def organisation_of(aws: EmbeddedAws, key: str) -> str | None:
    """The organisation that the key authenticates, or None."""
    try:
        verifier = KeyVerifier(aws.client("secretsmanager"), PREFIX)
        return verifier.verify(f"Bearer {key}").organisation
    except Unauthorized:
        return None


def assert_failed(exited: Exited, reason: str) -> None:
    """One sentence on standard error that holds ``reason``, after the target at most."""
    assert (exited.status, exited.out) == (1, ""), exited
    assert re.fullmatch(r"(Target: .+\.\n)?error: .+\.\n", exited.err), exited
    assert reason in exited.err


# Organisations


def test_creating_an_organisation_again_changes_nothing(run: Run) -> None:
    created, again = run("org create brisk --rate-limit 90"), run("org create brisk")
    other_limit = run("org create brisk --rate-limit 600")

    assert created == Exited(0, "brisk: 0 credits, 90 requests per minute\n", "")
    assert again == created
    assert_failed(other_limit, "brisk already exists, with 90 requests per minute")


def test_a_limit_is_changed_and_nothing_else(run: Run, funded: str) -> None:
    for limit in (600, 600, 0):
        changed = run(f"org limit {funded} {limit} --yes")
        assert changed == Exited(0, f"{funded}: {limit} requests per minute\n", "")

    assert run(f"org create {funded}").out == f"{funded}: 100 credits, 0 requests per minute\n"


def test_all_organisations_are_listed_with_their_credits_and_limits(run: Run, funded: str) -> None:
    run("org create another")

    header, *rows = [line.split() for line in run("org list").out.splitlines()]
    cut = run("org list --limit 1")
    listed = document(run("org list --json"))

    assert header == ["ORGANISATION", "CREDITS", "PER", "MINUTE"]
    assert [funded, "100", "60"] in rows
    assert [row[0] for row in rows] == [each["organisation"] for each in listed["organisations"]]
    assert listed["complete"] is True
    assert (len(cut.out.splitlines()), cut.err) == (2, "there are more than these 1.\n")
    assert json.loads(run("org list --limit 1 --json").out)["complete"] is False


def test_tables_that_are_written_in_parts_keep_their_columns(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.cli.output.ROWS_AT_ONCE", 2)
    for name in ("a", "organisation", "with-a-longer-name"):
        run(f"org create {name}")

    assert len({len(line) for line in run("org list").out.splitlines()}) == 1


def test_an_empty_table_has_an_empty_list(
    aws: EmbeddedAws, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.create_table("empty", TEMPLATE)
    monkeypatch.setenv("CREDITS_TABLE", "empty")

    listed = run("org list")

    assert (listed.status, listed.out) == (0, "")
    assert "no organisations yet" in listed.err
    listed_for_scripts = json.loads(run("org list --json").out)
    assert listed_for_scripts == {"organisations": [], "complete": True, "target": "table empty"}


def test_an_organisation_is_shown_with_what_is_left(run: Run, acme: str) -> None:
    grant(run, acme, 99)
    run(f"keys issue {acme}")

    assert "99, enough for 19 images" in run(f"org show {acme}").out
    assert document(run(f"org show {acme} --json")) == {
        "organisation": acme,
        "credits": 99,
        "requestsPerMinute": 60,
        "suspendedAt": None,
        "suspension": None,
        "suspendedBy": None,
        "rateLimitBy": None,
        "imagesLeft": 19,
        "liveKeys": 1,
        "lastGeneration": None,
        "refusedPrompts": 0,
        "recentGenerations": 0,
    }


def test_a_suspension_is_shown_with_its_reason_and_who_decided_it(run: Run, funded: str) -> None:
    suspended = run(f"org suspend {funded} --yes --reason", "Invoice 17 is late")
    again = document(run(f"org suspend {funded} --yes --reason Unpaid --json"))
    shown = document(run(f"org show {funded} --json"))
    told = run(f"org show {funded}").out
    resumed, twice = (run(f"org resume {funded}") for _ in range(2))

    assert suspended == Exited(0, f"{funded}: suspended: Invoice 17 is late\n", "")
    assert (shown["suspension"], shown["suspendedAt"]) == ("Unpaid", again["suspendedAt"])
    assert shown["suspendedBy"].startswith("arn:aws:sts::")
    assert re.search(r"^Suspended +since 20\S+Z, set by arn:aws:\S+: Unpaid$", told, re.MULTILINE)
    assert resumed == twice == Exited(0, f"{funded}: not suspended\n", "")
    assert document(run(f"org show {funded} --json"))["suspension"] is None


def test_a_limit_is_shown_with_who_set_it(run: Run, acme: str) -> None:
    run(f"org limit {acme} 240")

    assert re.search(
        r"^Limit +240 requests per minute, set by arn:aws:",
        run(f"org show {acme}").out,
        re.MULTILINE,
    )


def test_refused_prompts_are_counted_among_the_last_generations(
    run: Run, funded: str, ledger: Ledger
) -> None:
    made = [reserve(ledger, funded, f"prompt {each}") for each in range(4)]
    ledger.settle(made[0], 1500, Deadline(10))
    for refused in made[1:3]:
        ledger.refund(refused, "content_rejected", Deadline(10))
    ledger.refund(made[3], "model_overloaded", Deadline(10))

    shown = document(run(f"org show {funded} --json"))

    assert (shown["refusedPrompts"], shown["recentGenerations"]) == (2, 4)
    assert "2 of the last 4 generations" in run(f"org show {funded}").out


# Keys


def test_a_key_has_a_name_and_an_expiry(run: Run, aws: EmbeddedAws, acme: str) -> None:
    in_days = run(f"keys issue {acme} --name ci --expires 90d")
    on_a_day = run(f"keys issue {acme} --name laptop --expires 2999-12-31")
    run(f"keys issue {acme}")

    keys = document(run(f"keys list {acme} --json"))["keys"]
    listed = run(f"keys list {acme}").out

    assert organisation_of(aws, in_days.out.strip()) == acme
    assert on_a_day.status == 0
    assert {key["name"]: key["expiresAt"] for key in keys[1:]}.keys() == {"laptop", None}
    ends = datetime.fromisoformat(keys[0]["expiresAt"]) - datetime.now(UTC)
    assert (keys[0]["name"], round(ends / timedelta(days=1))) == ("ci", 90)
    assert keys[1]["expiresAt"] == "2999-12-31T00:00:00Z"
    assert re.search(r"^key_\w+ +laptop +live ", listed, re.MULTILINE)


def test_an_issued_key_is_alone_on_standard_output_and_authenticates_until_it_is_revoked(
    run: Run, aws: EmbeddedAws, acme: str
) -> None:
    issued, other = (run(f"keys issue {acme}") for _ in range(2))
    key, key_id, other_id = (
        issued.out.removesuffix("\n"),
        *(each.err.split()[0] for each in (issued, other)),
    )
    assert organisation_of(aws, key) == acme

    once, twice = (run(f"keys revoke {acme} {key_id} --yes") for _ in range(2))
    listed = run(f"keys list {acme}").out

    assert once.status == 0
    assert twice == once
    assert organisation_of(aws, key) is None
    header, *rows = [line.split() for line in listed.splitlines()]
    assert header == ["KEY", "NAME", "STATE", "CREATED", "ENDS", "REVOKED", "BUDGET", "USED"]
    states = {row[0]: (row[1], len(row)) for row in rows}
    assert states == {key_id: ("dead", 5), other_id: ("live", 4)}
    assert key not in issued.err + listed


def test_a_rotation_issues_a_key_expires_the_old_one_and_is_safe_to_repeat(
    run: Run, aws: EmbeddedAws, acme: str
) -> None:
    old = run(f"keys issue {acme}").out.strip()

    new = run(f"keys rotate {acme} --grace-hours 24 --yes").out.strip()
    keys = document(run(f"keys list {acme} --json"))["keys"]
    again = run(f"keys rotate {acme} --grace-hours 24 --yes")

    assert new != old
    assert [organisation_of(aws, key) for key in (old, new)] == [acme, acme]
    assert [key["expiresAt"] is None for key in keys] == [False, True]
    assert (again.status, again.out) == (0, "")
    assert again.err.startswith("already rotated")
    assert document(run(f"keys list {acme} --json"))["keys"] == keys


def test_a_21st_live_key_is_refused(run: Run, aws: EmbeddedAws, acme: str) -> None:
    ring = KeyRing(aws.client("secretsmanager"), PREFIX)
    for _ in range(20):
        ring.issue(acme)

    assert_failed(run(f"keys issue {acme}"), "20 live keys")


def test_a_budget_is_issued_changed_kept_by_a_rotation_and_shown_with_what_is_used(
    run: Run, funded: str, table: Table
) -> None:
    (first, other) = (
        run(f"keys issue {funded} {more}").err.split()[0]
        for more in ("--name ci --budget 500", "--name web")
    )
    reserve(Ledger(table), funded, "A fox", meter=first)
    rotated = run(f"keys rotate {funded} {first} --grace-hours 24 --yes").err.split()[0]

    changed = run(f"keys budget {funded} {rotated} 800")
    keys = document(run(f"keys list {funded} --json"))["keys"]
    shown = run(f"keys list {funded}").out
    lifted = document(run(f"keys budget {funded} {first} none --json"))
    refused = [run(f"keys budget {funded} {first} {each}") for each in ("-- -1", "1e3", "lots")]
    (used, unused) = document(run(f"usage {funded} --json"))["usage"]

    assert changed.out == f"{rotated} of {funded}: 800 credits a month\n"
    assert [
        (each["id"], each["name"], each["monthlyBudget"], each["usedThisMonth"]) for each in keys
    ] == [(first, "ci", 800, 5), (other, "web", None, 0), (rotated, "ci", 800, 5)]
    assert re.search(rf"^{first} +ci +live +20\S+Z +20\S+Z +800 +5$", shown, re.MULTILINE)
    assert (lifted["id"], lifted["monthlyBudget"]) == (first, None)
    assert [each.status for each in refused] == [2, 2, 2]
    assert (used["key"], used["name"], used["credits"]) == (rotated, "ci", 5)
    assert (unused["key"], unused["credits"]) == (other, 0)


# Credits


def test_a_grant_counts_once_however_often_it_is_repeated(run: Run, acme: str) -> None:
    once, twice = (grant(run, acme, 100, "invoice-17") for _ in range(2))
    other_amount = grant(run, acme, 200, "invoice-17")

    assert once == Exited(0, f"{acme}: 100 credits, with grant invoice-17\n", "")
    assert twice == once
    assert_failed(other_amount, "invoice-17")
    assert balance(run, acme) == 100


def test_a_grant_without_an_id_prints_one_first_that_makes_repeating_it_safe(
    run: Run, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere, refusing("ResourceNotFoundException") as url:
        elsewhere.setenv("AWS_ENDPOINT_URL_DYNAMODB", url)
        failed = run(f"credits grant {acme} 100 --note", "Paid")
    note, error = failed.err.splitlines()
    (grant_id,) = re.findall(r"--id (\S+)\.$", note)

    for _ in range(2):
        assert run(f"credits grant {acme} 100 --id {grant_id} --note", "Paid").status == 0

    assert error.startswith("error: DynamoDB refuses the call")
    assert error.endswith(f" {grant_id}.")
    assert balance(run, acme) == 100


def test_a_negative_grant_takes_credits_but_never_more_than_there_are(
    run: Run, funded: str
) -> None:
    assert grant(run, funded, -40, "correction").status == 0

    assert_failed(grant(run, funded, -61, "too-much"), f"{funded} has 60 credits")
    assert balance(run, funded) == 60


def test_grants_are_listed_newest_first_with_the_arn_of_who_made_them(run: Run, acme: str) -> None:
    assert run(f"credits history {acme}") == Exited(0, "", f"{acme} has no grants yet.\n")
    made = {"b": 100, "c": -40, "a": 7}
    for grant_id, amount in made.items():
        grant(run, acme, amount, grant_id)

    grants = document(run(f"credits history {acme} --json"))["grants"]

    assert {each["id"]: each["credits"] for each in grants} == made
    (actor,) = {each["actor"] for each in grants}
    assert actor.startswith("arn:aws:sts::")
    times = [each["createdAt"] for each in grants]
    assert times == sorted(times, reverse=True)
    shown = run(f"credits history {acme}").out
    assert re.search(r"^20\S+Z +-40  c +arn:aws:\S+  As agreed$", shown, re.MULTILINE)
    assert len(document(run(f"credits history {acme} --limit 2 --json"))["grants"]) == 2


# Usage


def test_a_month_is_added_up_as_a_table_as_csv_and_as_json(
    run: Run, funded: str, table: Table
) -> None:
    def at(when: str) -> Ledger:
        return Ledger(table, lambda: datetime.fromisoformat(f"{when}+00:00").timestamp())

    for when in ("2026-10-31T23:59:59", "2026-11-01T00:00:00", "2026-11-30T23:59:59"):
        at(when).settle(reserve(at(when), funded, when), 1, Deadline(10))
    december = "2026-12-01T00:00:00"
    at(december).settle(reserve(at(december), funded, december), 1, Deadline(10))
    failed = reserve(at("2026-11-12T00:00:00"), funded, "a failure")
    at("2026-11-12T00:00:00").refund(failed, "no_image", Deadline(10))
    held = reserve(at("2026-11-13T00:00:00"), funded, "in progress")

    shown = run(f"usage {funded} --month 2026-11")
    csv = run("usage --all --month 2026-12 --format csv").out.splitlines()
    (used,) = document(run(f"usage {funded} --month 2026-11 --format json"))["usage"]

    header, row = (line.split() for line in shown.out.splitlines())
    assert header[2:] == ["KEY", "NAME", "IMAGES", "CREDITS", "REFUNDED", "BUDGET"]
    assert row == [funded, "2026-11", KEY_ID, "3", "15", "5"]
    assert used == {
        "organisation": funded,
        "month": "2026-11",
        "key": KEY_ID,
        "name": None,
        "images": 3,
        "credits": 15,
        "refunded": 5,
        "monthlyBudget": None,
    }
    assert csv[0] == "organisation,month,key,name,images,credits,refunded,monthlyBudget"
    assert f"{funded},2026-12,{KEY_ID},,1,5,0," in csv
    at(december).refund(held, "timed_out", Deadline(10))


# The audit


def lose(aws: EmbeddedAws, organisation: str, credits_: int) -> None:
    """Takes credits behind the ledger's back."""
    aws.client("dynamodb").update_item(
        TableName=TABLE,
        Key=account_key(organisation),
        UpdateExpression="ADD credits :credits",
        ExpressionAttributeValues={":credits": {"N": str(-credits_)}},
    )


def test_an_audit_reports_what_does_not_add_up_and_goes_on_with_the_others(
    aws: EmbeddedAws, run: Run, funded: str
) -> None:
    run("org create zebra")
    healthy = run(f"audit {funded}")
    lose(aws, funded, 105)

    one, all_ = run(f"audit {funded}"), run("audit")
    lose(aws, funded, -105)

    figures = "granted 100, balance {}, drift {}; generations: 0 reserved, 0 settled, 0 refunded\n"
    assert healthy == Exited(0, f"{funded}: healthy: {figures.format(100, 0)}", "")
    assert (one.status, all_.status) == (1, 1)
    assert one.out.startswith(f"{funded}: UNHEALTHY: {figures.format(-5, -105)}  ")
    assert one.out in all_.out
    assert "zebra: healthy" in all_.out
    assert f"investigate {funded}." in all_.err
    assert run("audit").status == 0


def test_an_account_that_cannot_be_audited_does_not_stop_the_audit_of_the_others(
    run: Run, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("org create zebra")
    audit = Accounts.audit

    def restless(accounts: Accounts, organisation: str, deadline: Deadline) -> AuditReport:
        if organisation == acme:
            raise LedgerUnreachable(maybe_done=False)
        return audit(accounts, organisation, deadline)

    monkeypatch.setattr(Accounts, "audit", restless)
    audited = run("audit")

    assert audited.status == 1
    assert f"{acme}: NOT AUDITED: DynamoDB gave no result in time" in audited.out
    assert "zebra: healthy" in audited.out


def test_an_organisation_whose_account_is_gone_is_listed_and_found(
    aws: EmbeddedAws, run: Run, funded: str
) -> None:
    key: Any = {"TableName": TABLE, "Key": account_key(funded)}
    account = aws.client("dynamodb").get_item(**key)["Item"]
    aws.client("dynamodb").delete_item(**key)

    one, all_, listed = run(f"audit {funded}"), run("audit"), run("org list --json")
    aws.client("dynamodb").put_item(TableName=TABLE, Item=account)

    assert (one.status, all_.status) == (1, 1)
    assert f"{funded}: UNHEALTHY: granted 100, balance 0, drift -100;" in one.out
    assert "\n  the account is missing\n" in one.out
    assert one.out in all_.out
    (gone,) = (each for each in document(listed)["organisations"] if each["organisation"] == funded)
    assert {value for name, value in gone.items() if name != "organisation"} == {None}
    assert run(f"audit {funded}").status == 0


def test_an_audit_of_the_images_finds_what_is_missing_in_the_store(
    aws: EmbeddedAws, run: Run, funded: str, ledger: Ledger, bucket: str
) -> None:
    made = reserve(ledger, funded, "a fox")
    ledger.settle(made, 1500, Deadline(10))
    lost, without = run(f"audit {funded} --images"), run(f"audit {funded}")
    aws.client("s3").put_object(Bucket=bucket, Key=made.image_key, Body=b"a picture")
    found = document(run(f"audit {funded} --images --json"))

    assert (lost.status, without.status) == (1, 0)
    assert lost.out.endswith(
        "1 settled, 0 refunded; images: 0 stored\n"
        f"  generation {made.id} is settled, and its image {made.image_key} is not stored\n"
    )
    assert found["healthy"] is True
    assert found["organisations"][0]["images"] == 1


def test_without_its_bucket_an_organisation_is_not_audited(
    run: Run, funded: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_BUCKET", f"{bucket}_elsewhere")
    audited = run(f"audit {funded} --images")

    assert audited.status == 1
    assert f"{funded}: NOT AUDITED: the object store does not respond or refuses" in audited.out


# Failures and usage errors


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("org show unknown", NO_ORGANISATION),
        ("org limit unknown 5", NO_ORGANISATION),
        ("org suspend unknown --reason Unpaid --yes", NO_ORGANISATION),
        ("org resume unknown", NO_ORGANISATION),
        ("usage unknown", NO_ORGANISATION),
        ("logs 8f0c", "this needs a deployed stack; pass --stack-name"),
        ("keys issue unknown", NO_ORGANISATION),
        ("credits grant unknown 5 --id x --note y", "there is no organisation unknown"),
        ("credits balance unknown", NO_ORGANISATION),
        ("credits history unknown", NO_ORGANISATION),
        ("generations list unknown", NO_ORGANISATION),
        ("generations show {acme} 1795402357675", "has no generation 1795402357675"),
        ("audit unknown", NO_ORGANISATION),
        ("keys list unknown", "no keys of unknown"),
        ("keys rotate unknown --grace-hours 1 --yes", "no keys of unknown"),
        ("keys revoke unknown key_1 --yes", "no keys of unknown"),
        ("keys revoke {acme} key_1 --yes", "has no key with that id"),
        ("--table elsewhere credits balance {acme}", "(ResourceNotFoundException)"),
    ],
)
def test_a_command_that_cannot_be_done_ends_in_one_sentence(
    run: Run, acme: str, line: str, reason: str
) -> None:
    run(f"keys issue {acme}")

    assert_failed(run(line.format(acme=acme)), reason)


@pytest.mark.parametrize(
    "arguments",
    [
        ["org"],
        ["org", "delete", "acme"],
        ["org", "create", "Acme"],
        ["org", "create", "acme", "--rate-limit", "0"],
        ["keys", "rotate", "acme"],
        ["keys", "rotate", "acme", "--grace-hours", "soon"],
        ["keys", "rotate", "acme", "--grace-hours", "2161"],
        ["keys", "revoke", "acme", "--dry-run"],
        ["audit", "--stack-name", "production", "--local"],
        ["--local", "audit", "--stack-name", "production"],
        ["generations", "list", "acme", "--limit", "1001"],
        ["generations", "list", "acme", "--before", "yesterday"],
        ["generations", "show", "acme", "17"],
        ["keys", "issue", "acme", "--expires", "soon"],
        ["keys", "issue", "acme", "--expires", "2020-01-31"],
        ["keys", "issue", "acme", "--name", "two words"],
        ["logs", "8f0c", "--since", "yesterday"],
        ["logs", 'a"b'],
        ["org", "suspend", "acme"],
        ["org", "suspend", "acme", "--reason", "r" * 201],
        ["usage", "acme", "--month", "2026-13"],
        ["usage", "acme", "--format", "xml"],
        ["credits", "grant", "acme", "5", "--id", "x"],
        ["credits", "grant", "acme", "-5x", "--id", "x", "--note", "no number"],
        ["credits", "grant", "acme", "0", "--id", "x", "--note", "nothing"],
        ["credits", "grant", "acme", "1000000000", "--id", "x", "--note", "too much"],
        ["credits", "grant", "acme", "5", "--id", "with space", "--note", "y"],
        ["credits", "grant", "acme", "5", "--id", "x", "--note", "two\nlines"],
        ["credits", "grant", "acme", "5", "--id", "x", "--note", "n" * 501],
    ],
)
def test_a_usage_error_is_refused_before_any_call(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: .+; see `gemini-generate( [a-z]+)* --help`\.\n", err)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("CREDITS_TABLE", None, "set CREDITS_TABLE and ORG_SECRET_PREFIX"),
        ("ORG_SECRET_PREFIX", None, "set CREDITS_TABLE and ORG_SECRET_PREFIX"),
        ("AWS_ENDPOINT_URL_DYNAMODB", "no-scheme", "the AWS SDK cannot start (ValueError)"),
        ("AWS_REGION", "no region", "the AWS SDK cannot start (InvalidRegionError)"),
        ("AWS_REGION", "", "no AWS region is set; set AWS_REGION or pass --region"),
        ("AWS_PROFILE", "nobody", "the AWS configuration is unusable (ProfileNotFound)"),
    ],
)
def test_an_unusable_environment_is_explained(
    run: Run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None, reason: str
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)

    assert_failed(run("org list"), reason)


def test_table_prefix_and_region_can_be_passed_before_and_after_the_command(
    run: Run, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CREDITS_TABLE", "ORG_SECRET_PREFIX", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)

    issued = run(f"--table {TABLE} keys issue {acme} --prefix {PREFIX} --region us-east-1")

    assert issued.out.startswith(f"gg_{acme}_")
    overridden = run(f"--table elsewhere keys issue {acme} --table {TABLE} --prefix {PREFIX}")
    assert_failed(overridden, "no AWS region is set")


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        pass


@contextmanager
def serving(answer: Callable[[Request], Response]) -> Iterator[str]:
    """The URL of an AWS that answers so."""
    application = Request.application(answer)
    server = make_server("127.0.0.1", 0, application, request_handler=_QuietHandler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def refusing(code: str) -> Iterator[str]:
    """The URL of an AWS that refuses every call with ``code``."""
    body = json.dumps({"__type": f"com.amazonaws#{code}", "message": "arn:aws:iam::1:role/x"})
    xml = f"<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"

    with serving(lambda ask: Response(body if "x-amz-target" in ask.headers else xml, 400)) as url:
        yield url


@pytest.mark.parametrize("line", ["org list", "keys list acme", "audit --stack-name production"])
@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("ExpiredTokenException", "your AWS credentials have expired"),
        ("UnrecognizedClientException", "AWS rejects your credentials"),
        ("AccessDeniedException", "AWS denies access"),
    ],
)
def test_each_refusal_by_aws_has_its_own_advice_and_quotes_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, line: str, code: str, advice: str
) -> None:
    with refusing(code) as url:
        for service in ("DYNAMODB", "SECRETS_MANAGER", "CLOUDFORMATION"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", url)
        refused = run(line)

    assert_failed(refused, f"error: {advice} ({code}); ")
    assert "arn:" not in refused.err


@pytest.mark.real
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("credits balance acme", "DynamoDB gave no result in time; check the network"),
        ("keys list acme", "(EndpointConnectionError)"),
        ("audit --stack-name production", "AWS does not respond (EndpointConnectionError)"),
    ],
)
def test_a_network_that_is_down_is_reported(
    run: Run, monkeypatch: pytest.MonkeyPatch, line: str, reason: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for service in ("DYNAMODB", "SECRETS_MANAGER", "CLOUDFORMATION"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", url)

    assert_failed(run(line), reason)


def test_a_bug_is_reported_without_quoting_data(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    nonsense = json.dumps({"Item": {"credits": {"S": "secret words"}}})
    with serving(lambda _: Response(nonsense)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", url)
        failed = run("credits balance acme")

    assert_failed(failed, "this is a bug in gemini-generate; report it with KeyError at ")
    assert "secret words" not in failed.err


# Generations


def reserve(
    ledger: Ledger, organisation: str, prompt: str, lease_s: int = 59, meter: str = KEY_ID
) -> Generation:
    order = Order(
        organisation,
        prompt,
        AspectRatio.LANDSCAPE_16_9,
        idempotency_key=f"key of {prompt}"[:20],
        spender=Spender(meter, meter),
    )
    return ledger.reserve(
        order, lambda ms: f"generated/gemini/{organisation}/{ms}.png", Deadline(10), lease_s
    )


def test_generations_are_listed_newest_first_and_page_by_page(
    run: Run, funded: str, ledger: Ledger
) -> None:
    assert "has no generations" in run(f"generations list {funded}").err
    first, second, third = (reserve(ledger, funded, f"prompt {each}") for each in range(3))
    ledger.settle(first, 1500, Deadline(10))
    ledger.refund(second, "content_rejected", Deadline(10))

    listed = run(f"generations list {funded}")
    page = json.loads(run(f"generations list {funded} --limit 2 --json").out)
    rest = document(run(f"generations list {funded} --before {page['next']} --json"))

    ids = [third.id, second.id, first.id]
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == ids
    assert "refunded (content_rejected)" in listed.out
    assert [each["id"] for each in page["generations"]] == ids[:2]
    assert [each["id"] for each in rest["generations"]] == ids[2:]
    assert rest["next"] is None


def test_everything_that_is_stored_about_a_generation_is_shown(
    run: Run, funded: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_BASE_URL", "https://images.example/")
    made = reserve(ledger, funded, "a red fox")
    ledger.settle(made, 1500, Deadline(10))

    shown = document(run(f"generations show {funded} {made.id} --json"))

    assert shown.pop("createdAt").endswith("Z")
    assert shown.pop("settledAt").endswith("Z")
    assert shown == {
        "organisation": funded,
        "id": made.id,
        "status": "settled",
        "aspectRatio": "16:9",
        "prompt": "a red fox",
        "credits": 5,
        "imageKey": made.image_key,
        "imageUrl": f"https://images.example/{made.image_key}",
        "durationMs": 1500,
        "failureCode": None,
        "asynchronous": False,
        "idempotencyKey": "key of a red fox",
        "keyId": "key_3fZk0W9xQvTb",
        "refundedAt": None,
        "deletedAt": None,
        "dueAt": None,
    }
    for line in (f"show {funded} {made.id}", f"list {funded}"):
        text = run(f"generations {line}").out
        assert "a red fox" in text
        assert "key_3fZk0W9xQvTb" in text


def test_a_prompt_cannot_control_the_operators_terminal(
    run: Run, funded: str, ledger: Ledger
) -> None:
    prompt = "a fox\x1b[2J\x9b1m\u202e [red]\u0489\nnext " + "long " * 50
    made = reserve(ledger, funded, prompt)

    listed, shown = (
        run(f"generations list {funded}"),
        run(f"generations show {funded} {made.id}"),
    )

    for each in (listed, shown):
        assert "a fox\\x1b[2J\\x9b1m\\u202e [red]\\u0489\\nnext long" in each.out
        assert not UNSAFE.search(each.out)
    assert max(map(len, listed.out.splitlines())) < 140
    (raw,) = document(run(f"generations list {funded} --json"))["generations"]
    assert raw["prompt"] == prompt


UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u0300-\u036f\u0489\u202e]")


@pytest.mark.usefixtures("bucket")
def test_the_keys_of_rows_cannot_control_the_operators_terminal(
    aws: EmbeddedAws, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.create_table("hostile", TEMPLATE)
    monkeypatch.setenv("CREDITS_TABLE", "hostile")
    name = "e\u0301vil\x1b[2J\u202e"
    key = {"pk": {"S": f"ORG#{name}"}, "sk": {"S": "GEN#1700000000000"}}
    due = {"dueShard": {"S": "0"}, "dueAt": {"N": "1"}}
    table = aws.client("dynamodb")
    listing = {"pk": {"S": "ORGS"}, "sk": {"S": f"ORG#{name}"}}
    table.put_item(TableName="hostile", Item=listing)
    table.put_item(TableName="hostile", Item={**key, **due})
    table.put_item(
        TableName="hostile", Item={**key, "sk": {"S": "ACCOUNT"}, "credits": {"N": "-5"}}
    )

    reconciled, listed = run("reconcile"), run("org list")
    table.delete_item(TableName="hostile", Key=key)
    audited = run("audit")

    for each in (reconciled, listed, audited):
        assert "e\\u0301vil\\x1b[2J\\u202e" in each.out + each.err
        assert not UNSAFE.search(each.out + each.err)


# Reconciling


@pytest.fixture
def bucket(aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket, in the environment that the reconciler's own function has."""
    name = f"images_{next(_numbers)}"
    aws.create_bucket(name)
    monkeypatch.setenv("IMAGE_BUCKET", name)
    monkeypatch.setenv("IMAGE_BASE_URL", "https://images.example")
    monkeypatch.setenv("GEMINI_API_KEY_SECRET", "gemini-api-key")
    return name


@pytest.mark.usefixtures("bucket")
def test_abandoned_generations_are_refunded_once(run: Run, funded: str, ledger: Ledger) -> None:
    for number in range(3):
        reserve(ledger, funded, f"prompt {number}", lease_s=-1)

    first, second = run("reconcile"), run("reconcile --json")

    assert first == Exited(0, "settled 0, refunded 3, swept 0, stale 0, failed 0, left 0\n", "")
    counts = dict.fromkeys(("settled", "refunded", "swept", "stale", "failed", "left"), 0)
    assert document(second) == {**counts, "problems": []}
    assert balance(run, funded) == 100


def test_a_generation_that_cannot_be_reconciled_is_named(
    run: Run, funded: str, ledger: Ledger, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = reserve(ledger, funded, "a secret prompt", lease_s=-1)

    monkeypatch.setenv("IMAGE_BUCKET", f"{bucket}_elsewhere")
    failed = run("reconcile")
    monkeypatch.setenv("IMAGE_BUCKET", bucket)

    assert (failed.status, failed.out) == (
        1,
        "settled 0, refunded 0, swept 0, stale 0, failed 1, left 0\n",
    )
    row = f"ORG#{funded}/GEN#{stuck.id}"
    assert f"{row} could not be reconciled: StorageUnreachable" in failed.err
    assert "secret prompt" not in failed.err
    assert run("reconcile").out == "settled 0, refunded 1, swept 0, stale 0, failed 0, left 0\n"


@pytest.mark.usefixtures("bucket")
def test_a_setting_that_only_the_reconciler_needs_is_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMAGE_BUCKET")

    assert_failed(run("reconcile"), "IMAGE_BUCKET is not set; set it, or pass --stack-name")


# Targets


def test_every_answer_names_its_target(run: Run, acme: str) -> None:
    elsewhere = run(f"--table elsewhere credits balance {acme}")

    assert elsewhere.err.startswith("Target: table elsewhere.\nerror: ")
    assert json.loads(run(f"credits balance {acme} --json").out)["target"] == f"table {TABLE}"
    assert json.loads(run("org list --json").out)["target"] == f"table {TABLE}"


@pytest.fixture
def deploy(aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Creates a stack with the given outputs and parameters; returns its name."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDFORMATION", aws.url)

    def create(outputs: dict[str, str], parameters: dict[str, str]) -> str:
        assert outputs.keys() <= DOCUMENT["Outputs"].keys()
        assert parameters.keys() <= DOCUMENT["Parameters"].keys()
        name = f"production-{next(_numbers)}"
        template = {
            "Parameters": {
                key: {"Type": "String", "Default": parameters[key]} for key in parameters
            },
            "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}},
            "Outputs": {key: {"Value": value} for key, value in outputs.items()},
        }
        client = boto3.client("cloudformation")
        client.create_stack(StackName=name, TemplateBody=json.dumps(template))
        client.close()
        return name

    return create


@pytest.mark.parametrize("images_in_r2", [False, True])
def test_a_deployed_stack_is_found_by_its_name_alone(
    run: Run,
    aws: EmbeddedAws,
    ledger: Ledger,
    bucket: str,
    deploy: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    images_in_r2: bool,
) -> None:
    for name in ("CREDITS_TABLE", "ORG_SECRET_PREFIX", "IMAGE_BUCKET", "IMAGE_BASE_URL"):
        monkeypatch.setenv(name, "of-another-deployment")
    aws.accept(access_key="a")
    aws.create_secret(f"r2-{bucket}", json.dumps({"accessKeyId": "a", "secretAccessKey": "b"}))
    outputs = {
        "TableName": TABLE,
        "OrgSecretPrefix": PREFIX,
        "ImageBase": "https://images.example",
        "GeminiApiKeySecret": "gemini",
    }
    r2 = {
        "R2Bucket": bucket,
        "StorageEndpointUrl": aws.url,
        "StorageCredentialsSecret": f"r2-{bucket}",
    }
    stack = (
        deploy(outputs, r2) if images_in_r2 else deploy(outputs | {"ImageBucketName": bucket}, {})
    )
    org = f"deployed-{bucket}".replace("_", "-")

    assert run(f"org create {org} --stack-name {stack}").status == 0
    assert run(f"--stack-name {stack} credits grant {org} 5 --id x --note y").status == 0
    key = run(f"keys issue {org} --stack-name {stack}").out.strip()
    made = reserve(ledger, org, "a fox", lease_s=-1)
    listed = document(run(f"generations list {org} --stack-name {stack} --json"))
    reconciled = run(f"reconcile --stack-name {stack}")

    assert organisation_of(aws, key) == org
    (shown,) = listed["generations"]
    assert shown["imageUrl"] == f"https://images.example/{made.image_key}"
    assert reconciled.out == "settled 0, refunded 1, swept 0, stale 0, failed 0, left 0\n"


def test_a_stack_that_is_missing_or_not_this_service_is_refused(
    run: Run, deploy: Callable[..., str]
) -> None:
    other = deploy({"TableName": TABLE}, {})

    missing = run("audit --stack-name elsewhere --region eu-central-1")

    assert_failed(missing, "there is no stack elsewhere in eu-central-1")
    assert_failed(run(f"audit --stack-name {other}"), f"the stack {other} has no outputs")


def test_the_local_stack_replaces_the_operators_own_aws_account(
    run: Run, acme: str, aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started_here(aws, tmp_path, monkeypatch)
    for name in (*aws.environment(), "CREDITS_TABLE", "ORG_SECRET_PREFIX", "AWS_PROFILE"):
        monkeypatch.setenv(name, "of-my-company")
    monkeypatch.setenv("USER", "grace")
    before = dict(os.environ)

    granted = run(f"credits grant {acme} 5 --id local --note y --local --json")

    assert document(granted)["grant"]["actor"] == "grace"
    assert run(f"credits balance {acme} --local") == Exited(0, "5\n", "Target: the local stack.\n")
    assert dict(os.environ) == before


def test_what_a_checkout_says_about_the_local_stack_runs_no_program(
    run: Run, acme: str, aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = "touch " + str(tmp_path / "ran")
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {program}\n", encoding="utf-8")
    harmful = {"AWS_CONFIG_FILE": str(config), "AWS_PROFILE": "default", "PAGER": program}
    started_here(aws, tmp_path, monkeypatch, without="AWS_ACCESS_KEY_ID", **harmful)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)

    failed = run(f"credits balance {acme} --local")

    assert "there are no AWS credentials" in failed.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL_DYNAMODB", "https://dynamodb.example.com"),
        ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1.example.com"),
        ("AWS_ENDPOINT_URL", "http://user@198.51.100.7:80"),
        ("GOOGLE_GEMINI_BASE_URL", "http://[2001:db8::1]/"),
        ("STORAGE_ENDPOINT_URL", "file:///etc"),
    ],
)
def test_the_local_stack_is_on_this_machine(
    run: Run,
    aws: EmbeddedAws,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    value: str,
) -> None:
    started_here(aws, tmp_path, monkeypatch, **{name: value})

    assert_failed(run("audit --local"), f"{name} in .local/environment.json is not an address of")


def started_here(
    aws: EmbeddedAws,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    without: str = "",
    **more: str,
) -> None:
    """Leaves the files of a local stack in the directory, and changes to it."""
    variables = {"CREDITS_TABLE": TABLE, "ORG_SECRET_PREFIX": PREFIX, **aws.environment(), **more}
    variables.pop(without, None)
    (directory / ".local").mkdir()
    (directory / ".local" / "environment.json").write_text(json.dumps(variables), encoding="utf-8")
    monkeypatch.chdir(directory)


def test_without_a_running_local_stack_the_operator_learns_how_to_start_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_failed(run("audit --local"), "there is no .local/environment.json here; start")

    (tmp_path / ".local").mkdir()
    left_over = tmp_path / ".local" / "environment.json"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    left_over.write_text(json.dumps({"AWS_ENDPOINT_URL_DYNAMODB": address}), encoding="utf-8")
    assert_failed(run("audit --local"), "the local stack has ended; start it again")

    left_over.write_text("[", encoding="utf-8")
    assert_failed(run("audit --local"), ".local/environment.json is unreadable; restart")


# Confirmation


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes standard input a terminal; types a line there."""
    operator, command = pty.openpty()
    with (
        os.fdopen(operator, "wb", buffering=0) as typing,
        os.fdopen(command, encoding="utf-8") as stdin,
    ):
        monkeypatch.setattr("sys.stdin", stdin)

        def type_line(text: str) -> None:
            typing.write(f"{text}\n".encode())

        yield type_line


@pytest.fixture
def stored(run: Run, aws: EmbeddedAws, funded: str) -> Callable[[], object]:
    """Reads everything that is stored of an organisation with credits and a key."""
    run(f"keys issue {funded}")

    def read() -> object:
        rows = aws.client("dynamodb").query(
            TableName=TABLE,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": account_key(funded)["pk"]},
        )
        secret = aws.client("secretsmanager").get_secret_value(SecretId=PREFIX + funded)
        return rows["Items"], secret["SecretString"]

    return read


@pytest.mark.parametrize(
    ("line", "action", "yes"),
    [
        ("credits grant {} -40 --id taken --note y", "Take 40 credits from {}, which has 100", "y"),
        ("org limit {} 0", "Block new generations of {}", " YES "),
        ("org suspend {} --reason Unpaid", "Suspend {}", "y"),
        (
            "keys rotate {} --grace-hours 3",
            "Issue a new key and expire all other keys of {} in 3 hours",
            "y",
        ),
        ("keys revoke {} {key}", "Revoke the key {key} of {} for good", "y"),
    ],
)
def test_what_cannot_be_undone_is_confirmed_at_a_terminal_first(
    run: Run,
    funded: str,
    stored: Callable[[], object],
    request: pytest.FixtureRequest,
    line: str,
    action: str,
    yes: str,
) -> None:
    before = stored()
    (record,) = document(run(f"keys list {funded} --json"))["keys"]
    line, action = (each.format(funded, key=record["id"]) for each in (line, action))
    action = f"{action} (table {TABLE})"

    assert_failed(run(line), f'no terminal to confirm "{action}?"; pass --yes')
    type_line = request.getfixturevalue("keyboard")
    for no in ("", "n", "yeah"):
        type_line(no)
        refused = run(line)
        assert refused.status != 0
        assert refused.err.startswith(f"{action}? [y/N] ")
        assert "error: nothing was done" in refused.err
    assert stored() == before

    type_line(yes)
    done = run(line)
    assert done.status == 0
    assert done.err.startswith(f"{action}? [y/N] ")
    assert "error: nothing was done" not in done.err
    assert stored() != before


# Help


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group, with the words that lead to it."""

    def below(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield words, command
        for name, each in getattr(command, "commands", {}).items():
            yield from below((*words, name), each)

    yield from below((), root)


def test_every_command_and_option_has_help_that_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words, command in commands():
        assert main([*words, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        shown = " ".join(re.sub("[│╭╮╰╯─]", " ", "\n".join(lines)).split())

        assert shown.startswith(f"Usage: {' '.join(['gemini-generate', *words])} [OPTIONS]")
        assert re.match(r"[A-Z].+\.", command.help, re.DOTALL), words
        for param in command.params:
            assert re.fullmatch(r"[A-Z].+\.", param.help, re.DOTALL), (words, param.name)
            assert (param.opts[0] if param.opts[0].startswith("--") else param.metavar) in shown
        assert max(map(len, lines)) <= 80
        assert str(PROJECT_ROOT) not in shown
        if not hasattr(command, "commands"):
            assert "--json: " in shown
            assert "--stack-name" in shown


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    assert main(["--version"]) == main(["org", "list", "--version"]) == 0
    line = f"gemini-generate {project['project']['version']}\n"
    assert capsys.readouterr().out == line + line


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: gemini-generate" in capsys.readouterr().out
