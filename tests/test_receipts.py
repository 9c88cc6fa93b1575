"""Receipts and statements: what they say, that nothing altered passes, and that nothing is needed.

A customer checks both with no network and no account.
"""

import base64
import dataclasses
import hashlib
import hmac
import json
import socket
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers import account
from infra.cli import main
from infra.local.aws import EmbeddedAws
from infra.local.stack import LocalStack
from infra.receipts.statement import (
    Month,
    Statement,
    StatementRefused,
    lines_as_csv,
    statement_of,
    with_signature,
)
from infra.receipts.verification import (
    VerificationFailed,
    check_image,
    check_predecessor,
    check_receipts,
    keys_in,
    opened,
    set_of,
)
from infra.template import Template
from lib.deadline import Deadline
from lib.ledger.accounts import Accounts
from lib.ledger.deletion import Deletions
from lib.ledger.ledger import Ledger
from lib.ledger.order import Order
from lib.ledger.rows import Generation, Grant, Status, account_key, number, string
from lib.ledger.table import Table
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.storage import Images
from lib.receipts.receipt import CLAIMS, RECEIPT_TYPE, STATEMENT_TYPE, payload_of, receipt_of
from lib.receipts.signer import Signer
from tests.customer import Customer, fetch, settings_of
from tests.stacks import STACKS, new_stack
from tests.world import NewWorld

ISSUER = "gemini-generate"
ACME = "acme"
KEYS = "/.well-known/jwks.json"
OCTOBER, NOVEMBER = Month(2026, 10), Month(2026, 11)
NOW_S = datetime(2026, 12, 3, tzinfo=UTC).timestamp()


class KmsKey:
    """A P-256 key, with the two calls of KMS that the service makes."""

    def __init__(self) -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())

    def sign(self, **call: Any) -> dict[str, bytes]:
        assert (call["MessageType"], call["SigningAlgorithm"]) == ("RAW", "ECDSA_SHA_256")
        assert len(call["Message"]) <= 4096
        return {"Signature": self._private.sign(call["Message"], ec.ECDSA(hashes.SHA256()))}

    def get_public_key(self, **_: Any) -> dict[str, bytes]:
        public = self._private.public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return {"PublicKey": public.public_bytes(serialization.Encoding.DER, form)}


def signer(kid: str = "key-1", client: object = None, retired: str = "") -> Signer:
    kms: Any = client or KmsKey()
    return Signer(kms, kid, retired)


SIGNER = signer()
KEY_SET = set_of(SIGNER.jwks())


def ended(number_: int, month: Month = NOVEMBER, status: Status = Status.SETTLED) -> Generation:
    """The ``number_``-th generation of a month, with the picture ``picture(number_)``."""
    created_s = month.begins_at + number_ * 7200
    settled = status is Status.SETTLED
    return Generation(
        organisation=ACME,
        created_ms=created_s * 1000 + number_,
        status=status,
        credits=5,
        attempt_id="attempt",
        image_key=f"generated/gemini/{ACME}/{number_}.png",
        prompt="A fox",
        aspect_ratio=AspectRatio.LANDSCAPE_16_9,
        request_hash=hashlib.sha256(b"16:9\nA fox").hexdigest(),
        key_id=f"key_{number_ % 3}",
        model="a-model",
        settled_at=created_s + 4 if settled else None,
        refunded_at=None if settled else created_s + 4,
        failure_code=None if settled else "content_rejected",
        image_sha256=hashlib.sha256(picture(number_)).hexdigest() if settled else None,
    )


def picture(number_: int) -> bytes:
    return f"the picture {number_}".encode()


def token_of(generation: Generation, by: Signer = SIGNER) -> bytes:
    return by.sign(payload_of(receipt_of(generation, ISSUER)), RECEIPT_TYPE).encode()


def base64url(content: bytes | object) -> str:
    written = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(written).rstrip(b"=").decode()


# What the service issues


@pytest.fixture(scope="module", params=STACKS)
def stack(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    with new_stack(request) as running:
        yield running


def receipt_path(generation: str) -> str:
    return f"/api/v1/generations/{generation}/receipt"


def test_a_receipt_of_an_image_is_verified_by_the_command_with_the_published_keys(
    stack: LocalStack,
    customer: Customer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image_url = customer.generate("A fox", aspectRatio="16:9").json()["imageUrl"]
    (row,) = customer.history()

    answer = customer.get(receipt_path(row["id"]))

    assert (answer.status, answer.headers["content-type"]) == (200, "application/jose")
    receipt, png = tmp_path / "receipt.jws", tmp_path / "fox.png"
    receipt.write_bytes(answer.body)
    png.write_bytes(fetch(image_url).body)
    arguments = ["verify", str(receipt), "--jwks", stack.url + KEYS, "--image", str(png)]
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["claims"] == {
        "iss": ISSUER,
        "organisation": customer.organisation,
        "generation": row["id"],
        "key": found["claims"]["key"],
        "createdAt": row["createdAt"],
        "endedAt": found["claims"]["endedAt"],
        "requestSha256": hashlib.sha256(b"16:9\nA fox").hexdigest(),
        "imageSha256": hashlib.sha256(png.read_bytes()).hexdigest(),
        "aspectRatio": "16:9",
        "model": "gemini-3.1-flash-lite-image",
        "outcome": "settled",
        "message": None,
        "creditsCharged": 5,
        "creditsRefunded": 0,
    }
    assert list(found["claims"]) == list(CLAIMS)
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "settled, 5 credits charged" in said
    assert f"signed by {ISSUER} with key {found['key']}" in said
    assert "fox.png is its picture" in said


def test_a_refund_has_a_receipt_and_a_receipt_has_the_same_payload_every_time(
    stack: LocalStack, customer: Customer
) -> None:
    assert customer.generate("A fox [fail:safety]").status == 500
    (row,) = customer.history()
    keys = keys_in(fetch(stack.url + KEYS).body)

    first, second = (opened(customer.get(receipt_path(row["id"])).body, keys) for _ in range(2))

    claims = first.claims
    assert (claims["outcome"], claims["message"]) == ("refunded", "Content policy violation")
    assert (claims["creditsCharged"], claims["creditsRefunded"]) == (0, 5)
    assert claims["imageSha256"] is None
    assert first.payload == second.payload


def test_only_the_organisation_gets_a_receipt_and_only_of_what_has_ended(
    stack: LocalStack, customer: Customer
) -> None:
    customer.generate()
    (row,) = customer.history()
    ledger = Ledger(Table(stack.aws.client("dynamodb"), stack.table))
    order = Order(customer.organisation, "A fox", AspectRatio.SQUARE)
    reserved = ledger.reserve(order, str, Deadline(10))

    answers = [
        customer.get(receipt_path(reserved.id)),
        customer.get(receipt_path("1000000000000")),
        customer.get(receipt_path("made-up")),
        Customer(stack).get(receipt_path(row["id"])),
        fetch(stack.url + receipt_path(row["id"])),
    ]

    assert [(each.status, each.headers["x-error-code"]) for each in answers] == [
        (409, "generation_reserved"),
        *[(404, "not_found")] * 3,
        (401, "unauthorized"),
    ]
    assert answers[0].headers["retry-after"] == "3"


@pytest.mark.parametrize("stack", STACKS[:1], indirect=True)
@pytest.mark.parametrize(
    ("key", "status"), [(None, 404), ("a-key-that-is-gone", 500)], ids=["off", "KMS fails"]
)
def test_without_a_key_there_are_no_receipts_and_without_kms_none_now(
    key: str | None,
    status: int,
    stack: LocalStack,
    customer: Customer,
) -> None:
    customer.generate()
    (row,) = customer.history()

    with settings_of(account, receipt_key=key):
        answers = [customer.get(receipt_path(row["id"])), fetch(stack.url + KEYS)]
        read = customer.get(f"/api/v1/generations/{row['id']}")

    assert [each.status for each in answers] == [status] * 2
    assert read.status == 200


def test_a_settled_row_names_the_picture_that_is_stored(new_world: NewWorld) -> None:
    world = new_world()
    world.request(world.process())

    (row,) = world.generations()

    stored = world.process().images.read(row.image_key)
    assert stored is not None
    assert row.image_sha256 == hashlib.sha256(stored.content).hexdigest()
    assert row.model == "a-model"


@given(st.integers(1, 2**256 - 1), st.integers(1, 2**256 - 1))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_signature_of_kms_becomes_two_numbers_of_32_bytes(r: int, s: int) -> None:
    class Fixed(KmsKey):
        def sign(self, **_: Any) -> dict[str, bytes]:
            return {"Signature": encode_dss_signature(r, s)}

    token = signer(client=Fixed()).sign(b"{}", RECEIPT_TYPE)

    raw = base64.urlsafe_b64decode(token.rpartition(".")[2] + "==")
    assert (len(raw), raw) == (64, r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def test_a_receipt_stays_valid_after_its_key_was_replaced() -> None:
    old = signer("old")
    receipt = token_of(ended(1), by=old)
    (published,) = old.jwks()["keys"]

    new = signer("new", retired=".".join(published[name] for name in ("kid", "x", "y")))

    assert [key["kid"] for key in new.jwks()["keys"]] == ["new", "old"]
    assert opened(receipt, set_of(new.jwks())).key == "old"
    with pytest.raises(VerificationFailed, match="which the issuer does not publish"):
        opened(receipt, set_of(signer("new").jwks()))


# What is refused


def forged(header: dict[str, str], signature: bytes, **changed: object) -> bytes:
    claims = receipt_of(ended(1), ISSUER) | changed
    return f"{base64url(header)}.{base64url(payload_of(claims))}.{base64url(signature)}".encode()


def with_hs256() -> bytes:
    """Signed with the public key as if that were a shared secret."""
    header = {"alg": "HS256", "kid": "key-1", "typ": RECEIPT_TYPE}
    payload = payload_of(receipt_of(ended(1), ISSUER))
    signing_input = f"{base64url(header)}.{base64url(payload)}".encode()
    secret = json.dumps(SIGNER.jwks()).encode()
    return signing_input + b"." + base64url(hmac.digest(secret, signing_input, "sha256")).encode()


def altered() -> bytes:
    header, payload, signature = token_of(ended(1)).split(b".")
    claims = json.loads(base64.urlsafe_b64decode(payload + b"==")) | {"creditsCharged": 0}
    return b".".join([header, base64url(payload_of(claims)).encode(), signature])


FORGERIES: dict[str, tuple[bytes, str]] = {
    "another key": (token_of(ended(1), by=signer()), "altered, or another key signed it"),
    "an unknown key": (token_of(ended(1), by=signer("key-2")), "names the key key-2"),
    "an altered claim": (altered(), "altered, or another key signed it"),
    "no algorithm": (
        forged({"alg": "none", "kid": "key-1", "typ": RECEIPT_TYPE}, b""),
        "signed with none; only ES256 is accepted",
    ),
    "a shared secret": (with_hs256(), "signed with HS256; only ES256 is accepted"),
    "no key id": (forged({"alg": "ES256", "typ": RECEIPT_TYPE}, b"x" * 64), "names the key None"),
    "another kind": (SIGNER.sign(b"{}", "JWT").encode(), "it is no receipt but a JWT"),
    "a bare statement": (SIGNER.sign(b"{}", STATEMENT_TYPE).encode(), "it is no receipt"),
    "a picture": (b"\x89PNG\r\n", "the signature is wrong"),
    "nothing": (b"", "the signature is wrong"),
    "an escape": (
        forged({"alg": "\x1b[2J", "kid": "key-1", "typ": RECEIPT_TYPE}, b""),
        r"signed with \x1b[2J; only",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_receipt_is_refused_with_its_reason(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, reason = FORGERIES[name]
    (tmp_path / "jwks.json").write_text(json.dumps(SIGNER.jwks()))
    (tmp_path / "receipt.jws").write_bytes(content)

    assert main(["verify", str(tmp_path / "receipt.jws")]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: receipt.jws: ")
    assert reason in said.err
    assert said.err.count("\n") == 1


def test_a_picture_that_differs_in_one_byte_is_another() -> None:
    receipt = opened(token_of(ended(1)), KEY_SET)

    check_image(receipt, picture(1))
    with pytest.raises(VerificationFailed, match="not the one that the receipt is about"):
        check_image(receipt, picture(2))
    with pytest.raises(VerificationFailed, match="names no picture"):
        check_image(opened(token_of(ended(1, status=Status.REFUNDED)), KEY_SET), picture(1))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--jwks", "http://keys.example/jwks.json"], "must begin with https://"),
        (["--jwks", "http://127.0.0.1:9/jwks.json"], "could not be fetched"),
        (["--jwks", "absent.json"], "absent.json cannot be read"),
        ([], "name the issuer's public keys with --jwks"),
        (["--receipts", "."], "name the issuer's public keys"),
    ],
)
def test_keys_come_from_a_file_or_safely(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "receipt.jws").write_bytes(token_of(ended(1)))

    assert main(["verify", str(tmp_path / "receipt.jws"), *arguments]) in {1, 2}

    assert reason in capsys.readouterr().err


# Statements


class Books:
    """An organisation whose rows a test writes, on a moto of its own."""

    def __init__(self, aws: EmbeddedAws, name: str) -> None:
        self.client = aws.client("dynamodb")
        self.name = name
        aws.create_table(name, Template.from_file())
        self.table = Table(self.client, name)
        self.accounts = Accounts(self.table)
        aws.create_bucket(name)
        images = Images(lambda: aws.client("s3"), name, "https://images.example")
        self.deletions = Deletions(self.table, Ledger(self.table), images)
        self.balance = 0
        self.accounts.create(ACME, Deadline(10))

    def put(self, generation: Generation) -> None:
        row = generation.to_item()
        for name, value in (
            ("keyId", generation.key_id),
            ("failureCode", generation.failure_code),
            ("imageSha256", generation.image_sha256),
        ):
            if value is not None:
                row[name] = string(value)
        for name, at in (
            ("settledAt", generation.settled_at),
            ("refundedAt", generation.refunded_at),
        ):
            if at is not None:
                row[name] = number(at)
        self.client.put_item(TableName=self.name, Item=row)
        self._add(0 if generation.status is Status.REFUNDED else -generation.credits)

    def grant(self, credits_: int, at: int, grant_id: str) -> None:
        grant = Grant(grant_id, credits_, "as agreed", "test", at)
        self.client.put_item(TableName=self.name, Item=grant.to_item(ACME))
        self._add(credits_)

    def _add(self, credits_: int) -> None:
        self.balance += credits_
        self.set_balance(self.balance)

    def set_balance(self, credits_: int) -> None:
        self.client.update_item(
            TableName=self.name,
            Key=account_key(ACME),
            UpdateExpression="SET credits = :credits",
            ExpressionAttributeValues={":credits": number(credits_)},
        )

    def statement(self, month: Month = NOVEMBER, **more: Any) -> Statement:
        given = {"issuer": ISSUER, "now_s": NOW_S, "deadline": Deadline(60), **more}
        return statement_of(self.accounts, ACME, month, **given)


@pytest.fixture(scope="module")
def aws() -> Iterator[EmbeddedAws]:
    with EmbeddedAws() as running:
        yield running


@pytest.fixture
def books(aws: EmbeddedAws, request: pytest.FixtureRequest) -> Books:
    """October: 1,000 credits and 2 images. November: 300 more, 4 images and 2 refunds. Since: 1."""
    made = Books(aws, f"credits-{abs(hash(request.node.nodeid))}")
    made.grant(1000, OCTOBER.begins_at + 60, "invoice-1")
    made.grant(300, NOVEMBER.begins_at, "invoice-2")
    made.grant(-50, NOVEMBER.ends_at, "correction")
    for at in range(2):
        made.put(ended(at, OCTOBER))
    for at in range(6):
        made.put(of_november(at))
    made.put(ended(0, NOVEMBER.next()))
    return made


def signed_file(made: Statement, *, as_csv: bool, by: Signer = SIGNER) -> bytes:
    return with_signature(made, by.sign(payload_of(made.claims), STATEMENT_TYPE), as_csv=as_csv)


def of_november(number_: int) -> Generation:
    """Of three generations the last one is refunded."""
    return ended(number_, status=Status.REFUNDED if number_ % 3 == 2 else Status.SETTLED)


def write_receipts(directory: Path, count: int, by: Signer = SIGNER) -> None:
    """The first receipts of November, with their pictures."""
    for at in range(count):
        receipt = of_november(at)
        (directory / f"{receipt.id}.jws").write_bytes(token_of(receipt, by=by))
        if receipt.status is Status.SETTLED:
            (directory / f"{receipt.id}.png").write_bytes(picture(at))


def test_a_statement_adds_up_by_day_and_key_and_follows_the_one_before(books: Books) -> None:
    october = books.statement(OCTOBER)
    november = books.statement(previous=october.claims)

    assert [october.claims[name] for name in ("opening", "grants", "charges", "closing")] == [
        *(0, 1000, 10, 990),
    ]
    assert [november.claims[name] for name in ("opening", "grants", "charges", "closing")] == [
        *(990, 300, 20, 1270),
    ]
    assert [november.claims[name] for name in ("images", "refunds", "refunded", "receipts")] == [
        *(4, 2, 10, 6),
    ]
    # Without the one before, opening is what the history adds up to.
    assert books.statement().lines == november.lines
    # Deletions change nothing of it.
    for number_ in (1, 2):
        books.deletions.delete(ACME, of_november(number_).created_ms, Deadline(10))
    assert books.statement(previous=october.claims).claims == november.claims
    assert lines_as_csv(november.lines).decode() == (
        "kind,date,key,grant,images,credits,refunds,refunded\n"
        "opening,2026-11-01,,,0,990,0,0\n"
        "grant,2026-11-01,,invoice-2,0,300,0,0\n"
        "usage,2026-11-01,key_0,,2,-10,0,0\n"
        "usage,2026-11-01,key_1,,2,-10,0,0\n"
        "usage,2026-11-01,key_2,,0,0,2,10\n"
        "closing,2026-11-30,,,0,1270,0,0\n"
    )
    first, second = (
        opened(signed_file(each, as_csv=as_csv), KEY_SET)
        for each, as_csv in ((october, True), (november, False))
    )
    check_predecessor(second, first)
    with pytest.raises(VerificationFailed, match="another predecessor"):
        check_predecessor(first, second)


def test_a_statement_that_does_not_add_up_is_refused(books: Books) -> None:
    refused = partial(pytest.raises, StatementRefused)

    with refused(match=r"not over yet; repeat this after 2026-12-01 01:00Z"):
        books.statement(now_s=NOVEMBER.ends_at + 3599)
    with refused(match="is of acme for 2026-11"):
        books.statement(previous=books.statement().claims)
    with refused(match="would close with 1271 credits"):
        books.statement(previous={**books.statement(OCTOBER).claims, "closing": 991})
    books.set_balance(books.balance + 5)
    with refused(match="but the account has"):
        books.statement()
    books.set_balance(books.balance)
    books.put(dataclasses.replace(ended(9), status=Status.RESERVED))
    with refused(match="is still reserved; run `audit acme`"):
        books.statement()


@pytest.mark.parametrize("count", [6, pytest.param(100, marks=pytest.mark.real)])
def test_the_command_makes_a_month_that_is_checked_offline(
    count: int,
    books: Books,
    aws: EmbeddedAws,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key_id = aws.create_signing_key()
    for name, value in {
        **aws.environment(),
        "CREDITS_TABLE": books.name,
        "ORG_SECRET_PREFIX": "test/",
        "RECEIPT_KEY": key_id,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "time", lambda: NOW_S)
    for at in range(6, count):
        books.put(of_november(at))
    charges = 5 * sum(at % 3 != 2 for at in range(count))

    assert main(["statement", ACME, "--month", "2026-10", "--json"]) == 0
    (tmp_path / "2026-10.json").write_text(capsys.readouterr().out)
    arguments = ["statement", ACME, "--month", "2026-11"]
    previous = ["--previous", str(tmp_path / "2026-10.json")]
    assert main([*arguments, *previous, "--csv"]) == 0
    (tmp_path / "2026-11.csv").write_text(capsys.readouterr().out)
    assert main(arguments) == 0
    assert str(1290 - charges) in capsys.readouterr().out
    kms = Signer(aws.client("kms"), key_id)
    (tmp_path / "jwks.json").write_text(json.dumps(kms.jwks()))
    write_receipts(tmp_path, count, by=kms)
    monkeypatch.setattr(socket, "socket", None)
    checked = [*previous, "--receipts", str(tmp_path)]
    assert main(["verify", str(tmp_path / "2026-11.csv"), *checked]) == 0

    said = capsys.readouterr().out
    assert f"opening 990 + grants 300 - charges {charges} = closing {1290 - charges}; " in said
    assert f"checked with its {count} receipts, {charges // 5} pictures" in said
    assert "follows 2026-10.json" in said


SPOILERS: dict[str, tuple[str, str, bytes]] = {
    "a receipt is missing": ("0.jws", "the statement counts 6 receipts, and there are 5", b""),
    "a picture is altered": ("0.png", "not the picture of any of the receipts", b"the Picture 0"),
    "another receipt": (
        "0.jws",
        "made of other receipts",
        token_of(dataclasses.replace(ended(0), created_ms=ended(0).created_ms + 1)),
    ),
    "a receipt of October": ("0.jws", "another statement", token_of(ended(0, OCTOBER))),
    "a receipt twice": ("0.jws", "another file holds the same receipt", token_of(ended(1))),
    "an unsigned receipt": ("0.jws", "only ES256 is accepted", FORGERIES["no algorithm"][0]),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_a_statement_counts_exactly_its_receipts(
    name: str, november: Statement, tmp_path: Path
) -> None:
    spoilt, reason, content = SPOILERS[name]
    statement = opened(signed_file(november, as_csv=True), KEY_SET)
    write_receipts(tmp_path, 6)
    assert check_receipts(statement, tmp_path, KEY_SET).pictures == 4
    path = tmp_path / spoilt.replace("0", ended(0).id)
    if content:
        path.write_bytes(content)
    else:
        path.unlink()

    with pytest.raises(VerificationFailed, match=reason):
        check_receipts(statement, tmp_path, KEY_SET)


@pytest.fixture(scope="module")
def november(aws: EmbeddedAws) -> Statement:
    made = Books(aws, "credits-november")
    made.grant(100, NOVEMBER.begins_at, "invoice")
    for at in range(6):
        made.put(of_november(at))
    return made.statement()


def test_an_issuer_that_signs_a_wrong_sum_is_found(november: Statement) -> None:
    def resigned(lines: list[Any], **changed: object) -> bytes:
        claims = {**november.claims, **changed}
        claims["linesSha256"] = hashlib.sha256(lines_as_csv(lines)).hexdigest()
        return signed_file(Statement(claims, lines), as_csv=False)

    *others, closing = november.lines
    more = dataclasses.replace(closing, credits=closing.credits - 5)

    with pytest.raises(VerificationFailed, match="do not add up to its charges"):
        opened(resigned(november.lines, charges=25), KEY_SET)
    with pytest.raises(VerificationFailed, match="is 80, and the statement closes with 75"):
        opened(resigned([*others, more], closing=75), KEY_SET)


def test_one_byte_changed_anywhere_is_found(november: Statement) -> None:
    receipt = opened(token_of(ended(0)), KEY_SET)
    contents = {
        "receipt": token_of(ended(0)) + b"\n",
        "csv": signed_file(november, as_csv=True),
        "json": signed_file(november, as_csv=False),
        "picture": picture(0),
    }
    for content in (contents["receipt"], contents["csv"], contents["json"]):
        opened(content, KEY_SET)

    def check(name: str, content: bytes) -> None:
        if name == "picture":
            check_image(receipt, content)
        else:
            opened(content, KEY_SET)

    @given(st.data())
    @settings(max_examples=300, deadline=None, derandomize=True)
    def one_byte(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(contents)))
        at = data.draw(st.integers(0, len(contents[name]) - 1))
        other = bytearray(contents[name])
        other[at] ^= data.draw(st.integers(1, 255))
        with pytest.raises(VerificationFailed):
            check(name, bytes(other))

    one_byte()
    # The last character of a signature has four bits that decoding drops.
    last = contents["receipt"][-2:-1]
    for character in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_":
        if bytes([character]) != last:
            with pytest.raises(VerificationFailed):
                opened(contents["receipt"][:-2] + bytes([character]), KEY_SET)


@pytest.mark.real
def test_the_memory_of_a_statement_does_not_grow_with_its_rows() -> None:
    """Ten times the rows take the same memory, but for a line of each day and key."""

    class Endless(Accounts):
        """Accounts with as many generations as a test wants, one a second."""

        def __init__(self, count: int) -> None:
            self.count = count

        def generations(self, *_: Any) -> Iterator[Generation]:
            if not self.count:
                return
            one, self.count, count = ended(0), 0, self.count
            for at in range(count):
                yield dataclasses.replace(one, created_ms=one.created_ms + at * 1000)

        def grants(self, *_: Any) -> Iterator[Grant]:
            yield Grant("first", 10_000_000, "", "", NOVEMBER.begins_at)

        def account(self, *_: Any) -> Any:
            return None

    def peak(count: int) -> int:
        tracemalloc.start()
        with pytest.raises(StatementRefused, match="but the account has 0"):
            statement_of(
                Endless(count),
                ACME,
                NOVEMBER,
                issuer=ISSUER,
                now_s=NOW_S,
                deadline=Deadline(60),
                previous={
                    "iss": ISSUER,
                    "organisation": ACME,
                    "month": "2026-10",
                    "closing": 0,
                },
            )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)
    # Kept rows would take ten times that.
    assert peak(20_000) < peak(2_000) + 1_000_000
