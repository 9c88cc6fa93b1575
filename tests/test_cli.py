"""The operator's command, on the embedded AWS, as the person at the terminal sees it."""

import http.client
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from urllib.parse import urlsplit

import pytest

from infra.cli import main
from infra.local.aws import EmbeddedAws
from infra.local.http_server import HttpServer, Request, Response
from infra.template import PROJECT_ROOT
from lib.api_keys import ApiKeys
from lib.errors import Unauthorized
from lib.ledger_rows import account_key

TABLE = "credits"
PREFIX = "test/orgs/"
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
        running.create_table(TABLE)
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
def acme(run: Run) -> str:
    """An organisation of the test's own, with no credits and no key."""
    name = f"acme{next(_names)}"
    assert run(f"org create {name}").status == 0
    return name


def granted(run: Run, organisation: str, amount: int, grant_id: str = "first") -> Said:
    return run(f"credits grant {organisation} {amount} --id {grant_id} --note", "As agreed")


def balance(run: Run, organisation: str) -> int:
    return int(run(f"credits balance {organisation}").out)


def opens(aws: EmbeddedAws, key: str) -> str | None:
    """The organisation that the key opens now, or None."""
    try:
        return ApiKeys(aws.client("secretsmanager"), PREFIX).organisation_of(f"Bearer {key}")
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

    assert_refused(refused, f"{acme} exists already, with 60 requests a minute")


# Keys


def test_a_limit_is_changed_and_nothing_else(run: Run, acme: str) -> None:
    granted(run, acme, 100)

    for limit in (600, 600, 0):
        assert run(f"org limit {acme} {limit}") == Said(
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
    run(f"keys revoke {acme} {ids[0]}")

    listed = run(f"keys list {acme}").out

    states = dict(line.split("  ")[:2] for line in listed.splitlines())
    assert states == {ids[0]: "dead", ids[1]: "live"}
    assert first.out.strip() not in listed
    assert "revoked 20" in listed


def test_a_revoked_key_is_refused_and_revoking_it_again_is_harmless(
    run: Run, aws: EmbeddedAws, acme: str
) -> None:
    issued = run(f"keys issue {acme}")
    key_id = issued.err.split()[0]

    once, twice = (run(f"keys revoke {acme} {key_id}") for _ in range(2))

    assert once.status == 0
    assert twice == once
    assert opens(aws, issued.out.strip()) is None


def test_a_rotation_gives_a_new_key_and_an_end_to_the_old_one(
    run: Run, aws: EmbeddedAws, acme: str
) -> None:
    old = run(f"keys issue {acme}").out.strip()

    rotated = run(f"keys rotate {acme} --grace-hours 24")

    new = rotated.out.strip()
    assert new != old
    assert [opens(aws, key) for key in (old, new)] == [acme, acme]
    assert run(f"keys list {acme}").out.count("  ends 20") == 1


def test_rotating_twice_is_harmless_and_says_so(run: Run, acme: str) -> None:
    run(f"keys issue {acme}")
    run(f"keys rotate {acme} --grace-hours 24")
    before = run(f"keys list {acme}").out

    again = run(f"keys rotate {acme} --grace-hours 24")

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


def test_an_account_that_is_never_at_rest_does_not_keep_the_others_from_being_audited(
    aws: EmbeddedAws, run: Run, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("org create zebra")

    def restless(request: Request) -> Response:
        if f"ORG#{acme}".encode() in request.body:
            add(aws, acme, "rateUsed", 1)
        return forward(request, aws.url)

    server = HttpServer()
    server.start(restless)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", server.url)
    try:
        said = run("audit")
    finally:
        server.stop()

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
    "words", ["keys list nobody", "keys rotate nobody --grace-hours 1", "keys revoke nobody key_1"]
)
def test_keys_of_an_organisation_without_keys_can_t_be_worked_on(run: Run, words: str) -> None:
    sentence = "there are no keys of nobody; check the name, or issue its first key"
    assert_refused(run(words), sentence)


def test_a_key_id_that_is_not_there_can_t_be_revoked(run: Run, acme: str) -> None:
    run(f"keys issue {acme}")

    sentence = f"{acme} has no key with that id; list its keys to see the ids"
    assert_refused(run(f"keys revoke {acme} key_1"), sentence)


def test_a_grace_period_over_90_days_is_refused(run: Run, acme: str) -> None:
    sentence = "the grace period must be between one minute and 90 days"
    assert_refused(run(f"keys rotate {acme} --grace-hours 2161"), sentence)


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

    sentence = "set CREDITS_TABLE and ORG_SECRET_PREFIX, or give --table and --prefix"
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
        ("AWS_DEFAULT_REGION", "no region", "InvalidRegionError"),
    ],
)
def test_an_environment_that_the_sdk_can_t_use_ends_in_a_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, fault: str
) -> None:
    monkeypatch.setenv(variable, value)

    assert_refused(
        run("audit"),
        f"the AWS SDK can't start ({fault}); check AWS_DEFAULT_REGION, AWS_PROFILE and the like",
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["org"],
        ["org", "delete", "acme"],
        ["org", "create", "Acme"],
        ["org", "create", "acme", "--rate-limit", "0"],
        ["keys", "rotate", "acme"],
        ["keys", "rotate", "acme", "--grace-hours", "soon"],
        ["credits", "grant", "acme", "5", "--note", "an id is missing"],
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
    with pytest.raises(SystemExit) as ended:
        main(words)

    assert ended.value.code == 2
    assert "usage: python -m infra.cli" in capsys.readouterr().err


# As a process


@pytest.mark.parametrize(("organisation", "status"), [("known", 0), ("unknown", 1)])
def test_as_a_process_it_ends_with_its_status_and_without_a_traceback(
    run: Run, organisation: str, status: int
) -> None:
    run("org create known")

    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "infra.cli", "credits", "balance", organisation],
        cwd=PROJECT_ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == status
    assert (done.stdout, done.stderr) == (
        ("0\n", "")
        if status == 0
        else ("", "error: there is no organisation unknown; create it first.\n")
    )
