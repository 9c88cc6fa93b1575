"""The operator's command, on the embedded AWS, as the person at the terminal sees it."""

import http.client
import json
import os
import pty
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from infra.cli import main
from infra.cli.commands import root
from infra.local.aws import EmbeddedAws
from infra.local.http_server import HttpServer, Request, Response
from infra.template import PROJECT_ROOT, TEMPLATE_PATH, Template, parse
from lib.deadline import Deadline
from lib.errors import Unauthorized
from lib.keys.verification import KeyVerifier
from lib.ledger.accounts import Accounts
from lib.ledger.ledger import Ledger
from lib.ledger.order import Order
from lib.ledger.rows import Generation, account_key
from lib.ledger.table import Table
from lib.picture.aspect_ratio import AspectRatio

TABLE = "credits"
PREFIX = "test/orgs/"
DOCUMENT = parse(TEMPLATE_PATH.read_text(encoding="utf-8"))
TEMPLATE = Template(DOCUMENT)
_names = count(1)


@dataclass(frozen=True)
class Said:
    """What a command left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture(scope="module")
def aws() -> Iterator[EmbeddedAws]:
    with EmbeddedAws() as running:
        running.create_table(TABLE, TEMPLATE)
        yield running


@pytest.fixture
def run(
    aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command's words."""
    for name, value in aws.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CREDITS_TABLE", TABLE)
    monkeypatch.setenv("ORG_SECRET_PREFIX", PREFIX)

    def command(words: str, *more: str) -> Said:
        status = main([*words.split(), *more])
        return Said(status, *capsys.readouterr())

    return command


@pytest.fixture
def acme(aws: EmbeddedAws) -> str:
    """An organisation of the test's own, with no credits and no key."""
    name = f"acme{next(_names)}"
    Accounts(Table(aws.client("dynamodb"), TABLE)).create(name, Deadline(10))
    return name


def granted(run: Run, organisation: str, amount: int, grant_id: str = "first") -> Said:
    words = f"credits grant {organisation} {amount} --id {grant_id} --yes --note"
    return run(words, "As agreed")


def balance(run: Run, organisation: str) -> int:
    return int(run(f"credits balance {organisation}").out)


def document(said: Said) -> Any:
    """The one JSON document of a command that succeeded."""
    assert (said.status, said.err) == (0, ""), said
    return json.loads(said.out)


def opens(aws: EmbeddedAws, key: str) -> str | None:
    """The organisation that the key opens now, or None."""
    try:
        return KeyVerifier(aws.client("secretsmanager"), PREFIX).organisation_of(f"Bearer {key}")
    except Unauthorized:
        return None


def assert_refused(said: Said, sentence: str) -> None:
    assert (said.status, said.out) == (1, "")
    assert said.err == f"error: {sentence}.\n"


# Organisations


def test_a_new_organisation_has_no_credits_and_the_usual_limit(run: Run) -> None:
    assert run("org create fresh") == Said(0, "fresh: 0 credits, 60 requests a minute\n", "")


def test_the_rate_limit_can_be_chosen(run: Run) -> None:
    assert (
        run("org create brisk --rate-limit 600").out == "brisk: 0 credits, 600 requests a minute\n"
    )


def test_creating_an_organisation_again_leaves_its_credits_alone(run: Run, acme: str) -> None:
    granted(run, acme, 100)

    again = run(f"org create {acme}")

    assert again == Said(0, f"{acme}: 100 credits, 60 requests a minute\n", "")


def test_creating_it_again_with_another_limit_is_refused_and_not_half_done(
    run: Run, acme: str
) -> None:
    refused = run(f"org create {acme} --rate-limit 600")

    assert_refused(
        refused,
        f"{acme} exists already, with 60 requests a minute; use `org limit` to change that",
    )


# Keys


def test_a_limit_is_changed_and_nothing_else(run: Run, acme: str) -> None:
    granted(run, acme, 100)

    for limit in (600, 600, 0):
        assert run(f"org limit {acme} {limit} --yes") == Said(
            0, f"{acme}: {limit} requests a minute\n", ""
        )

    assert run(f"org create {acme}").out == f"{acme}: 100 credits, 0 requests a minute\n"


def test_an_organisation_that_does_not_exist_gets_no_limit(run: Run) -> None:
    said = run("org limit nobody 5")

    assert (said.status, said.out) == (1, "")
    assert "there is no organisation nobody" in said.err


def test_an_issued_key_is_alone_on_standard_output_and_opens_the_door(
    run: Run, aws: EmbeddedAws, acme: str
) -> None:
    said = run(f"keys issue {acme}")

    key = said.out.removesuffix("\n")
    assert opens(aws, key) == acme
    assert key not in said.err
    assert said.err.startswith("key_")


def test_a_list_shows_each_key_s_id_and_whether_it_lives_and_never_the_key(
    run: Run, acme: str
) -> None:
    first = run(f"keys issue {acme}")
    second = run(f"keys issue {acme}")
    ids = [said.err.split()[0] for said in (first, second)]
    run(f"keys revoke {acme} {ids[0]} --yes")

    listed = run(f"keys list {acme}").out

    head, *rows = [line.split() for line in listed.splitlines()]
    assert head == ["KEY", "STATE", "CREATED", "ENDS", "REVOKED"]
    assert {row[0]: row[1] for row in rows} == {ids[0]: "dead", ids[1]: "live"}
    assert {row[0]: len(row) for row in rows} == {ids[0]: 4, ids[1]: 3}
    assert first.out.strip() not in listed


def test_a_revoked_key_is_refused_and_revoking_it_again_is_harmless(
    run: Run, aws: EmbeddedAws, acme: str
) -> None:
    issued = run(f"keys issue {acme}")
    key_id = issued.err.split()[0]

    once, twice = (run(f"keys revoke {acme} {key_id} --yes") for _ in range(2))

    assert once.status == 0
    assert twice == once
    assert opens(aws, issued.out.strip()) is None


def test_a_rotation_gives_a_new_key_and_an_end_to_the_old_one(
    run: Run, aws: EmbeddedAws, acme: str
) -> None:
    old = run(f"keys issue {acme}").out.strip()

    rotated = run(f"keys rotate {acme} --grace-hours 24 --yes")

    new = rotated.out.strip()
    assert new != old
    assert [opens(aws, key) for key in (old, new)] == [acme, acme]
    ends = [record["expiresAt"] for record in document(run(f"keys list {acme} --json"))["keys"]]
    assert [end is None for end in ends] == [False, True]


def test_rotating_twice_is_harmless_and_says_so(run: Run, acme: str) -> None:
    run(f"keys issue {acme}")
    run(f"keys rotate {acme} --grace-hours 24 --yes")
    before = run(f"keys list {acme}").out

    again = run(f"keys rotate {acme} --grace-hours 24 --yes")

    assert (again.status, again.out) == (0, "")
    assert again.err.startswith("rotated already")
    assert run(f"keys list {acme}").out == before


def test_a_sixth_live_key_is_refused(run: Run, acme: str) -> None:
    for _ in range(5):
        assert run(f"keys issue {acme}").status == 0

    refused = run(f"keys issue {acme}")

    assert (refused.status, refused.out) == (1, "")
    assert "has 5 live keys and may have 5" in refused.err


# Credits


def test_a_grant_adds_credits_once_however_often_it_is_repeated(run: Run, acme: str) -> None:
    once, twice = (granted(run, acme, 100, "invoice-17") for _ in range(2))

    assert once == Said(0, f"{acme}: 100 credits, with grant invoice-17\n", "")
    assert twice == once
    assert balance(run, acme) == 100


def test_a_negative_grant_takes_credits_and_never_more_than_there_are(run: Run, acme: str) -> None:
    granted(run, acme, 100)

    assert granted(run, acme, -40, "correction").status == 0
    refused = granted(run, acme, -61, "too-much")

    assert_refused(refused, f"{acme} has 60 credits; 61 can't be taken")
    assert balance(run, acme) == 60


def test_an_id_that_was_used_for_another_amount_is_refused(run: Run, acme: str) -> None:
    granted(run, acme, 100, "invoice-17")

    refused = granted(run, acme, 200, "invoice-17")

    assert_refused(refused, "the grant id invoice-17 was used for another amount")
    assert balance(run, acme) == 100


# The audit


def test_an_audit_of_one_organisation_shows_its_money(run: Run, acme: str) -> None:
    granted(run, acme, 100)

    said = run(f"audit {acme}")

    assert said.status == 0
    assert said.out == (
        f"{acme}: healthy: granted 100, balance 100, drift 0; "
        "generations: 0 reserved, 0 settled, 0 refunded\n"
    )


def test_credits_from_nowhere_are_found_and_the_other_organisations_audited_too(
    aws: EmbeddedAws, run: Run, acme: str
) -> None:
    granted(run, acme, 100)
    add(aws, acme, "credits", 5)
    run("org create zebra")

    one, everybody = run(f"audit {acme}"), run("audit")
    add(aws, acme, "credits", -5)

    assert (one.status, everybody.status) == (1, 1)
    assert f"{acme}: UNHEALTHY: granted 100, balance 105, drift 5;" in one.out
    assert one.out in everybody.out
    assert "zebra: healthy" in everybody.out
    assert run("audit").status == 0


def test_a_balance_below_zero_is_named(aws: EmbeddedAws, run: Run, acme: str) -> None:
    add(aws, acme, "credits", -5)

    said = run(f"audit {acme}")
    add(aws, acme, "credits", 5)

    assert said.status == 1
    assert "\n  the balance is -5\n" in said.out


@pytest.mark.real
def test_an_account_that_is_never_at_rest_does_not_keep_the_others_from_being_audited(
    aws: EmbeddedAws, run: Run, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("org create zebra")

    def restless(request: Request) -> Response:
        if f"ORG#{acme}".encode() in request.body:
            add(aws, acme, "rateUsed", 1)
        return forward(request, aws.url)

    with serving(restless) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", url)
        said = run("audit")

    assert said.status == 1
    assert f"{acme}: NOT AUDITED: DynamoDB came to no decision in time" in said.out
    assert "zebra: healthy" in said.out


def add(aws: EmbeddedAws, organisation: str, attribute: str, amount: int) -> None:
    """Changes an account behind the ledger's back."""
    aws.client("dynamodb").update_item(
        TableName=TABLE,
        Key=account_key(organisation),
        UpdateExpression=f"ADD {attribute} :amount",
        ExpressionAttributeValues={":amount": {"N": str(amount)}},
    )


def forward(request: Request, url: str) -> Response:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(request.method, request.target, request.body, dict(request.headers))
        answer = connection.getresponse()
        kept = [pair for pair in answer.getheaders() if pair[0].lower() != "content-length"]
        return Response(answer.status, tuple(kept), answer.read())
    finally:
        connection.close()


# What can't be done


@pytest.mark.parametrize(
    "words",
    [
        "keys issue nobody",
        "credits grant nobody 5 --id x --note y",
        "credits balance nobody",
        "audit nobody",
    ],
)
def test_an_organisation_that_was_never_created_has_no_keys_no_credits_and_no_audit(
    run: Run, words: str
) -> None:
    assert_refused(run(words), "there is no organisation nobody; create it first")


@pytest.mark.parametrize(
    "words",
    [
        "keys list nobody",
        "keys rotate nobody --grace-hours 1 --yes",
        "keys revoke nobody key_1 --yes",
    ],
)
def test_keys_of_an_organisation_without_keys_can_t_be_worked_on(run: Run, words: str) -> None:
    sentence = "there are no keys of nobody; check the name, or issue its first key"
    assert_refused(run(words), sentence)


def test_a_key_id_that_is_not_there_can_t_be_revoked(run: Run, acme: str) -> None:
    run(f"keys issue {acme}")

    sentence = f"{acme} has no key with that id; list its keys to see the ids"
    assert_refused(run(f"keys revoke {acme} key_1 --yes"), sentence)


def test_a_grace_period_over_90_days_is_refused(run: Run, acme: str) -> None:
    run(f"keys issue {acme}")
    sentence = "the grace period must be between one minute and 90 days"
    assert_refused(run(f"keys rotate {acme} --grace-hours 2161 --yes"), sentence)


def test_a_table_that_does_not_exist_is_named_as_the_cause(run: Run) -> None:
    said = run("--table elsewhere credits balance acme")

    assert_refused(
        said,
        "DynamoDB can't do it (ResourceNotFoundException); "
        "check the table, the region and your permissions",
    )


@pytest.mark.parametrize("missing", ["CREDITS_TABLE", "ORG_SECRET_PREFIX"])
def test_without_table_or_prefix_nothing_is_tried(
    run: Run, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)

    said = run("audit")

    sentence = (
        "set CREDITS_TABLE and ORG_SECRET_PREFIX, or give --table and --prefix, or give "
        "--stack-name or --local"
    )
    assert_refused(said, sentence)


def test_table_and_prefix_can_be_given_as_options(
    run: Run, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDITS_TABLE")
    monkeypatch.delenv("ORG_SECRET_PREFIX")

    said = run(f"--table {TABLE} --prefix {PREFIX} keys issue {acme}")

    assert said.out.startswith(f"gg_{acme}_")


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("AWS_ENDPOINT_URL_DYNAMODB", "localhost-without-a-scheme", "ValueError"),
        ("AWS_REGION", "no region", "InvalidRegionError"),
    ],
)
def test_an_environment_that_the_sdk_can_t_use_ends_in_a_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, fault: str
) -> None:
    monkeypatch.setenv(variable, value)

    assert_refused(
        run("audit"),
        f"the AWS SDK can't start ({fault}); check AWS_REGION, AWS_PROFILE and the like",
    )


@pytest.mark.parametrize(
    "words",
    [
        ["org"],
        ["org", "delete", "acme"],
        ["org", "create", "Acme"],
        ["org", "create", "acme", "--rate-limit", "0"],
        ["keys", "rotate", "acme"],
        ["keys", "rotate", "acme", "--grace-hours", "soon"],
        ["credits", "grant", "acme", "-5x", "--id", "x", "--note", "no number"],
        ["keys", "revoke", "acme", "--dry-run"],
        ["audit", "--stack-name", "production", "--local"],
        ["--local", "audit", "--stack-name", "production"],
        ["generations", "list", "acme", "--limit", "1001"],
        ["generations", "list", "acme", "--before", "yesterday"],
        ["generations", "show", "acme", "17"],
        ["credits", "grant", "acme", "5", "--id", "x"],
        ["credits", "grant", "acme", "0", "--id", "x", "--note", "nothing"],
        ["credits", "grant", "acme", "1000000000", "--id", "x", "--note", "too much"],
        ["credits", "grant", "acme", "5", "--id", "with space", "--note", "y"],
        ["credits", "grant", "acme", "5", "--id", "x", "--note", "two\nlines"],
        ["credits", "grant", "acme", "5", "--id", "x", "--note", "n" * 501],
    ],
)
def test_words_that_can_t_be_understood_are_refused_before_anything_is_called(
    words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"error: .+; see `gemini-generate( [a-z]+)* --help`\.\n", said.err)


def test_without_a_word_it_shows_what_words_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: gemini-generate" in capsys.readouterr().out


# Lists


def test_every_organisation_is_listed_with_its_credits_and_limit(run: Run, acme: str) -> None:
    granted(run, acme, 100)

    head, *rows = [line.split() for line in run("org list").out.splitlines()]

    assert head == ["ORGANISATION", "CREDITS", "PER", "MINUTE"]
    assert [acme, "100", "60"] in rows
    assert [row[0] for row in rows] == [
        each["organisation"] for each in document(run("org list --json"))["organisations"]
    ]


@pytest.mark.real
def test_hundreds_of_organisations_stay_in_their_columns(
    aws: EmbeddedAws, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.create_table("crowded", TEMPLATE)
    names = [f"org-{number:03}" for number in range(250)]
    for some in (names[at : at + 25] for at in range(0, len(names), 25)):
        puts: Any = [
            {"PutRequest": {"Item": account_key(name) | {"credits": {"N": "7"}}}} for name in some
        ]
        aws.client("dynamodb").batch_write_item(RequestItems={"crowded": puts})
    monkeypatch.setenv("CREDITS_TABLE", "crowded")

    _, *rows = run("org list").out.splitlines()

    assert sorted(row.split()[0] for row in rows) == names
    assert len({len(row) for row in rows}) == 1
    assert len(document(run("org list --json"))["organisations"]) == 250


def test_a_limit_ends_the_list_and_says_that_there_are_more(run: Run, acme: str) -> None:
    run("org create another")

    said = run("org list --limit 1")

    assert len(said.out.splitlines()) == 2
    assert said.err == "there are more than these 1.\n"
    cut = json.loads(run("org list --limit 1 --json").out)
    assert (len(cut["organisations"]), cut["complete"]) == (1, False)
    assert acme in [
        each["organisation"] for each in document(run("org list --json"))["organisations"]
    ]


def test_an_empty_table_has_an_empty_list(
    aws: EmbeddedAws, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.create_table("empty", TEMPLATE)
    monkeypatch.setenv("CREDITS_TABLE", "empty")

    assert run("org list") == Said(0, "", "no organisations yet; create one with `org create`.\n")
    assert json.loads(run("org list --json").out) == {"organisations": [], "complete": True}


def test_one_organisation_is_shown_with_what_it_can_do(run: Run, acme: str) -> None:
    granted(run, acme, 99)
    run(f"keys issue {acme}")

    said = run(f"org show {acme}")

    assert "99, enough for 19 images" in said.out
    assert document(run(f"org show {acme} --json")) == {
        "organisation": acme,
        "credits": 99,
        "requestsPerMinute": 60,
        "imagesLeft": 19,
        "liveKeys": 1,
        "lastGeneration": None,
    }


def test_grants_are_listed_newest_first_with_who_made_them(
    run: Run, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "grace")
    for amount, grant_id in ((100, "b"), (-40, "c"), (7, "a")):
        granted(run, acme, amount, grant_id)

    listed = document(run(f"credits history {acme} --json"))

    assert {each["id"]: each["credits"] for each in listed["grants"]} == {
        "a": 7,
        "b": 100,
        "c": -40,
    }
    assert {each["actor"] for each in listed["grants"]} == {"grace"}
    assert [each["createdAt"] for each in listed["grants"]] == sorted(
        (each["createdAt"] for each in listed["grants"]), reverse=True
    )
    assert re.search(
        r"^20\S+Z +-40  c +grace  As agreed$", run(f"credits history {acme}").out, re.MULTILINE
    )
    assert len(document(run(f"credits history {acme} --limit 2 --json"))["grants"]) == 2


def test_without_grants_the_history_says_so(run: Run, acme: str) -> None:
    assert run(f"credits history {acme}") == Said(0, "", f"{acme} was granted nothing yet.\n")


# Generations


@pytest.fixture
def ledger(aws: EmbeddedAws) -> Ledger:
    return Ledger(Table(aws.client("dynamodb"), TABLE))


def generated(ledger: Ledger, organisation: str, prompt: str, lease_s: int = 59) -> Generation:
    """A generation that is reserved."""
    order = Order(
        organisation, prompt, AspectRatio.LANDSCAPE_16_9, idempotency_key=f"key of {prompt}"[:20]
    )
    return ledger.reserve(
        order, lambda ms: f"generated/gemini/{organisation}/{ms}.png", Deadline(10), lease_s
    )


def test_generations_are_shown_newest_first_and_page_by_page(
    run: Run, acme: str, ledger: Ledger
) -> None:
    granted(run, acme, 100)
    first, second, third = (generated(ledger, acme, f"prompt {each}") for each in range(3))
    ledger.settle(first, 1500, Deadline(10))
    ledger.refund(second, "content_rejected", Deadline(10))

    listed = run(f"generations list {acme}")
    page = json.loads(run(f"generations list {acme} --limit 2 --json").out)
    rest = document(run(f"generations list {acme} --before {page['next']} --json"))

    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == [
        third.id,
        second.id,
        first.id,
    ]
    assert "refunded (content_rejected)" in listed.out
    assert [each["id"] for each in page["generations"]] == [third.id, second.id]
    assert [each["id"] for each in rest["generations"]] == [first.id]
    assert rest["next"] is None


def test_of_one_generation_all_that_is_stored_is_shown(
    run: Run, acme: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_BASE_URL", "https://images.example/")
    granted(run, acme, 5)
    made = generated(ledger, acme, "a red fox")
    ledger.settle(made, 1500, Deadline(10))

    shown = document(run(f"generations show {acme} {made.id} --json"))

    assert shown.pop("createdAt").endswith("Z")
    assert shown.pop("settledAt").endswith("Z")
    assert shown == {
        "organisation": acme,
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
        "refundedAt": None,
        "dueAt": None,
    }
    assert "a red fox" in run(f"generations show {acme} {made.id}").out


def test_what_a_customer_wrote_can_not_steer_the_operators_terminal(
    run: Run, acme: str, ledger: Ledger
) -> None:
    granted(run, acme, 5)
    prompt = "a fox\x1b[2J\x9b1m\u202e [red]\nnext " + "long " * 50
    made = generated(ledger, acme, prompt)

    said = [run(f"generations list {acme}"), run(f"generations show {acme} {made.id}")]

    for each in said:
        assert "a fox\\x1b[2J\\x9b1m\\u202e [red]\\nnext long" in each.out
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", each.out)
    assert max(map(len, said[0].out.splitlines())) < 140
    (listed,) = document(run(f"generations list {acme} --json"))["generations"]
    assert listed["prompt"] == prompt


def test_a_generation_that_is_not_there_is_not_shown(run: Run, acme: str) -> None:
    said = run(f"generations show {acme} 1795402357675")

    assert_refused(said, f"{acme} has no generation 1795402357675; see `generations list`")
    assert run(f"generations list {acme}") == Said(0, "", f"{acme} has no generations.\n")


# Reconciling


@pytest.fixture
def bucket(aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the reconciler's own function has in its environment."""
    name = f"images_{next(_names)}"
    aws.create_bucket(name)
    monkeypatch.setenv("IMAGE_BUCKET", name)
    monkeypatch.setenv("IMAGE_BASE_URL", "https://images.example")
    monkeypatch.setenv("GEMINI_API_KEY_SECRET", "gemini-api-key")
    return name


def test_what_nobody_ended_is_refunded_once(
    run: Run, acme: str, ledger: Ledger, bucket: str
) -> None:
    assert bucket
    granted(run, acme, 100)
    for number in range(3):
        generated(ledger, acme, f"prompt {number}", lease_s=-1)

    first, second = run("reconcile"), run("reconcile --json")

    assert first == Said(0, "settled 0, refunded 3, swept 0, failed 0, left 0\n", "")
    assert document(second) == {
        "settled": 0,
        "refunded": 0,
        "swept": 0,
        "failed": 0,
        "left": 0,
        "problems": [],
    }
    assert balance(run, acme) == 100


def test_a_reservation_that_can_t_be_ended_is_named_and_the_status_is_1(
    run: Run, acme: str, ledger: Ledger, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted(run, acme, 5)
    stuck = generated(ledger, acme, "a secret prompt", lease_s=-1)

    monkeypatch.setenv("IMAGE_BUCKET", f"{bucket}_elsewhere")
    said = run("reconcile")
    monkeypatch.setenv("IMAGE_BUCKET", bucket)

    assert (said.status, said.out) == (1, "settled 0, refunded 0, swept 0, failed 1, left 0\n")
    assert f"ORG#{acme}/GEN#{stuck.id} can't be ended: StorageUnreachable" in said.err
    assert "secret prompt" not in said.err
    assert run("reconcile").out == "settled 0, refunded 1, swept 0, failed 0, left 0\n"


def test_a_setting_that_only_the_reconciler_needs_is_asked_for(
    run: Run, acme: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert acme
    assert bucket
    monkeypatch.delenv("IMAGE_BUCKET")

    assert_refused(
        run("reconcile"),
        "the environment variable IMAGE_BUCKET is not set; set it, or give --stack-name or --local",
    )


# Places


def deployed(aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch, **values: str) -> str:
    """A stack with the outputs (``o_``) and parameters (``p_``) that are given; its name."""
    name = f"production-{next(_names)}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDFORMATION", aws.url)
    outputs = {key[2:]: value for key, value in values.items() if key.startswith("o_")}
    parameters = {key[2:]: value for key, value in values.items() if key.startswith("p_")}
    assert outputs.keys() <= DOCUMENT["Outputs"].keys()
    assert parameters.keys() <= DOCUMENT["Parameters"].keys()
    template = {
        "Parameters": {key: {"Type": "String"} for key in parameters},
        "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}},
        "Outputs": {key: {"Value": value} for key, value in outputs.items()},
    }
    client = boto3.client("cloudformation")
    client.create_stack(
        StackName=name,
        TemplateBody=json.dumps(template),
        Parameters=[
            {"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()
        ],
    )
    client.close()
    return name


def test_a_deployed_stack_is_found_by_its_name_alone(
    run: Run, aws: EmbeddedAws, ledger: Ledger, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CREDITS_TABLE", "ORG_SECRET_PREFIX", "IMAGE_BUCKET", "IMAGE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    stack = deployed(
        aws,
        monkeypatch,
        o_TableName=TABLE,
        o_OrgSecretPrefix=PREFIX,
        o_ImageBase="https://images.example",
        o_ImageBucketName=bucket,
        o_GeminiApiKeySecret="gemini",
    )

    assert run(f"org create deployed --stack-name {stack}").status == 0
    assert run(f"--stack-name {stack} credits grant deployed 5 --id x --note y").status == 0
    key = run(f"keys issue deployed --stack-name {stack}").out.strip()
    made = generated(ledger, "deployed", "a fox", lease_s=-1)
    (listed,) = document(run(f"generations list deployed --stack-name {stack} --json"))[
        "generations"
    ]
    reconciled = run(f"reconcile --stack-name {stack}")

    assert opens(aws, key) == "deployed"
    assert listed["imageUrl"] == f"https://images.example/{made.image_key}"
    assert reconciled.out == "settled 0, refunded 1, swept 0, failed 0, left 0\n"


def test_a_stack_that_keeps_its_images_in_r2_is_reconciled_there(
    run: Run,
    acme: str,
    aws: EmbeddedAws,
    ledger: Ledger,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMAGE_BUCKET", "of-another-deployment")
    aws.create_secret(f"r2-{bucket}", json.dumps({"accessKeyId": "a", "secretAccessKey": "b"}))
    stack = deployed(
        aws,
        monkeypatch,
        o_TableName=TABLE,
        o_OrgSecretPrefix=PREFIX,
        o_ImageBase="https://images.example",
        o_GeminiApiKeySecret="gemini",
        p_R2Bucket=bucket,
        p_StorageEndpointUrl=aws.url,
        p_StorageCredentialsSecret=f"r2-{bucket}",
    )
    granted(run, acme, 5)
    generated(ledger, acme, "a fox", lease_s=-1)

    said = run(f"reconcile --stack-name {stack}")

    assert said.out == "settled 0, refunded 1, swept 0, failed 0, left 0\n"


def test_a_stack_that_does_not_exist_is_told_with_its_region(
    run: Run, aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDFORMATION", aws.url)

    assert_refused(
        run("audit --stack-name elsewhere --region eu-central-1"),
        "there is no stack elsewhere in eu-central-1; list them with `aws cloudformation "
        "list-stacks`, or give --region",
    )


def test_a_stack_of_something_else_is_not_worked_on(
    run: Run, aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = deployed(aws, monkeypatch, o_TableName=TABLE)

    assert_refused(
        run(f"audit --stack-name {stack}"),
        f"the stack {stack} has no outputs TableName and OrgSecretPrefix; name a stack that was "
        "deployed from template.yaml, after its deployment has ended",
    )


def test_the_local_stack_is_found_by_the_file_that_it_leaves(
    run: Run, acme: str, aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables = {"CREDITS_TABLE": TABLE, "ORG_SECRET_PREFIX": PREFIX, **aws.environment()}
    (tmp_path / ".local").mkdir()
    (tmp_path / ".local" / "environment.json").write_text(json.dumps(variables), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in (*variables, "AWS_PROFILE"):
        monkeypatch.setenv(name, "of-my-company")
    before = dict(os.environ)

    said = run(f"credits balance {acme} --local")

    assert said == Said(0, "0\n", "")
    assert dict(os.environ) == before


def test_without_a_local_stack_it_says_how_to_have_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(
        run("audit --local"),
        "there is no .local/environment.json here; start the local stack with `make run`, or go "
        "to the directory where it was started",
    )

    (tmp_path / ".local").mkdir()
    left_over = tmp_path / ".local" / "environment.json"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    left_over.write_text(json.dumps({"AWS_ENDPOINT_URL_DYNAMODB": address}), encoding="utf-8")
    assert_refused(
        run("audit --local"), "the local stack has ended; start it again with `make run`"
    )

    left_over.write_text("[", encoding="utf-8")
    assert_refused(
        run("audit --local"),
        ".local/environment.json can't be read; end `make run` and start it again",
    )


# What AWS refuses


@contextmanager
def serving(answer: Callable[[Request], Response]) -> Iterator[str]:
    """The address of an AWS that answers so."""
    server = HttpServer()
    server.start(answer)
    try:
        yield server.url
    finally:
        server.stop()


def refusing(code: str) -> AbstractContextManager[str]:
    """The address of an AWS that refuses everything with ``code``."""
    body = json.dumps({"__type": f"com.amazonaws#{code}", "message": "arn:aws:iam::1:role/x"})
    xml = f"<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"

    def answer(request: Request) -> Response:
        is_json = any(name.lower() == "x-amz-target" for name, _ in request.headers)
        return Response(400, (), (body if is_json else xml).encode())

    return serving(answer)


@pytest.mark.parametrize("words", ["org list", "keys list acme", "audit --stack-name production"])
@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("ExpiredTokenException", "your AWS credentials have expired"),
        ("UnrecognizedClientException", "AWS does not know your credentials"),
        ("AccessDeniedException", "AWS does not let you do that"),
    ],
)
def test_each_way_in_which_aws_refuses_has_its_advice(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: str, code: str, advice: str
) -> None:
    with refusing(code) as url:
        for service in ("DYNAMODB", "SECRETS_MANAGER", "CLOUDFORMATION"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", url)
        said = run(words)

    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"error: {advice} ({code}); ")
    assert "arn:" not in said.err
    assert said.err.count("\n") == 1


def test_a_region_that_is_missing_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")

    assert_refused(run("org list"), "no AWS region is set; set AWS_REGION or give --region")
    assert run("org list --region us-east-1").status == 0


def test_a_profile_that_is_not_there_is_named_as_the_cause(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")

    assert_refused(
        run("org list"),
        "the AWS configuration can't be read (ProfileNotFound); "
        "check AWS_PROFILE and the files in ~/.aws",
    )


def test_a_fault_of_the_program_is_one_sentence_that_repeats_nobodys_words(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nonsense(_request: Request) -> Response:
        return Response(200, (), json.dumps({"Item": {"credits": {"S": "secret words"}}}).encode())

    with serving(nonsense) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", url)
        said = run("credits balance acme")

    assert (said.status, said.out) == (1, "")
    assert re.fullmatch(
        r"error: this is a fault of gemini-generate itself; report it with KeyError at .+\.\n",
        said.err,
    )
    assert "secret words" not in said.err


# Before what can't be taken back


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Lets the operator sit at a terminal, and type."""
    operator, command = pty.openpty()
    with (
        os.fdopen(operator, "wb", buffering=0) as keyboard,
        os.fdopen(command, encoding="utf-8") as screen,
    ):
        monkeypatch.setattr("sys.stdin", screen)

        def typed(text: str) -> None:
            keyboard.write(text.encode())

        yield typed


DESTRUCTIVE = [
    ("credits grant {acme} -40 --id taken --note y", "Take 40 credits from {acme}, which has 100"),
    ("org limit {acme} 0", "Let {acme} start no generation any more"),
    (
        "keys rotate {acme} --grace-hours 3",
        "End all keys of {acme} in 3 hours, but for a new one",
    ),
    ("keys revoke {acme} {key_id}", "End the key {key_id} of {acme} for good"),
]


@pytest.fixture
def whole(run: Run, aws: EmbeddedAws, acme: str) -> Callable[[], object]:
    """Gives all that is stored of an organisation with credits and a key."""
    granted(run, acme, 100)
    run(f"keys issue {acme}")

    def stored() -> object:
        rows = aws.client("dynamodb").query(
            TableName=TABLE,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": account_key(acme)["pk"]},
        )
        secret = aws.client("secretsmanager").get_secret_value(SecretId=PREFIX + acme)
        return rows["Items"], secret["SecretString"]

    return stored


@pytest.mark.parametrize(("words", "question"), DESTRUCTIVE)
@pytest.mark.parametrize("answer", ["", "y"])
def test_what_can_t_be_taken_back_is_asked_and_done_on_a_yes_alone(
    run: Run,
    acme: str,
    whole: Callable[[], object],
    terminal: Callable[[str], None],
    words: str,
    question: str,
    answer: str,
) -> None:
    before = whole()
    (record,) = document(run(f"keys list {acme} --json"))["keys"]
    names = {"acme": acme, "key_id": record["id"]}
    terminal(f"{answer}\n")

    said = run(words.format(**names))

    assert said.err.startswith(f"{question.format(**names)}? [y/N] ")
    assert (said.status == 0) == (whole() != before) == (answer == "y")
    if answer != "y":
        assert said.err.endswith(
            "error: nothing was done; repeat it and answer y if you want it.\n"
        )


@pytest.mark.parametrize(("words", "question"), DESTRUCTIVE)
def test_where_nobody_can_be_asked_nothing_is_done_without_yes(
    run: Run, acme: str, whole: Callable[[], object], words: str, question: str
) -> None:
    before = whole()
    (record,) = document(run(f"keys list {acme} --json"))["keys"]
    names = {"acme": acme, "key_id": record["id"]}

    said = run(words.format(**names))

    assert_refused(
        said,
        f'nothing was done, as there is no terminal to ask on: "{question.format(**names)}?"; '
        "repeat it with --yes if you want that",
    )
    assert whole() == before


# Repeating


def test_a_grant_without_an_id_gets_one_that_is_shown_first_and_can_be_repeated(
    run: Run, acme: str
) -> None:
    first = run(f"credits grant {acme} 100 --note", "Paid")
    (grant_id,) = re.findall(r"^the id of this grant is (\S+); repeat it with", first.err)

    again = run(f"credits grant {acme} 100 --id {grant_id} --note", "Paid")

    assert (again.status, again.out) == (0, first.out)
    assert balance(run, acme) == 100


def test_a_grant_that_may_have_been_made_is_repeated_with_its_id(
    run: Run, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing("ResourceNotFoundException") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", url)
        said = run(f"credits grant {acme} 100 --note", "Paid")

    first, error = said.err.splitlines()
    (grant_id,) = re.findall(r"--id (\S+)\.$", first)
    assert error.startswith("error: DynamoDB can't do it")
    assert error.endswith(f"; the id is {grant_id}.")


@pytest.mark.parametrize("answer", ["n", "yeah", "what?"])
def test_only_y_and_yes_are_a_yes(
    run: Run, acme: str, terminal: Callable[[str], None], answer: str
) -> None:
    terminal(f"{answer}\n")
    assert run(f"org limit {acme} 0").status == 1

    terminal(" YES \n")
    assert run(f"org limit {acme} 0").status == 0


# Help


def spoken(said: str) -> str:
    """What help says, without the frame around it."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", said).split())


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and every group, with the words that lead to it."""

    def below(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield words, command
        for name, each in getattr(command, "commands", {}).items():
            yield from below((*words, name), each)

    yield from below((), root)


def test_the_commands_are_these() -> None:
    found = {words for words, command in commands() if not hasattr(command, "commands")}
    assert {" ".join(words) for words in found} == {
        "org create",
        "org list",
        "org show",
        "org limit",
        "keys issue",
        "keys list",
        "keys rotate",
        "keys revoke",
        "credits grant",
        "credits balance",
        "credits history",
        "generations list",
        "generations show",
        "audit",
        "reconcile",
    }


def test_every_command_argument_and_option_has_help_that_is_a_sentence() -> None:
    for words, command in commands():
        assert re.match(r"[A-Z].+\.", command.help, re.DOTALL), words
        for param in command.params:
            assert re.fullmatch(r"[A-Z].+\.", param.help, re.DOTALL), (words, param.name)


def test_every_command_shows_its_help_and_what_its_json_holds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words, command in commands():
        assert main([*words, "--help"]) == 0
        shown = capsys.readouterr().out
        said = spoken(shown)

        assert said.startswith(f"Usage: {' '.join(['gemini-generate', *words])} [OPTIONS]")
        for param in command.params:
            assert (param.opts[0] if param.opts[0].startswith("--") else param.metavar) in said
        assert max(map(len, shown.splitlines())) <= 80
        assert str(PROJECT_ROOT) not in said
        if not hasattr(command, "commands"):
            assert "--json: " in said
            assert "--stack-name" in said


def test_where_prompts_are_shown_help_says_whose_words_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for verb in ("list", "show"):
        main(["generations", verb, "--help"])
        assert "customer" in capsys.readouterr().out
