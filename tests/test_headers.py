"""Whatever a header holds: no 5xx, no second of CPU, and no charge for a bad one."""

import base64
import gzip
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import handlers
from handlers.dependencies import Dependencies
from handlers.documents import as_document
from handlers.generate import respond
from handlers.http import origin, text
from lib.deadline import Deadline
from lib.generation import Accepted, Finished
from lib.keys.format import new_key
from lib.keys.verification import KeyVerifier
from lib.ledger.order import Order
from lib.settings import Settings
from tests.customer import event_of

READ = ("authorization", "idempotency-key", "prefer", "x-forwarded-proto")
# Of documents alone.
OF_DOCUMENTS = ("accept-encoding", "if-none-match")
KEY = new_key("acme")
GOOD = f"Bearer {KEY}"
RECORD = {
    "id": "key_000000000000",
    "sha256": hashlib.sha256(KEY.encode()).hexdigest(),
    "createdAt": "2026-01-01T00:00:00Z",
    "expiresAt": None,
    "revokedAt": None,
}
SETTINGS = Settings(
    "table",
    "bucket",
    "https://images.example",
    "orgs/",
    "gemini-key",
    jobs_queue_url="https://queue.example",
)

# Any text, lone surrogates included; and the alphabet of the headers' own grammars.
anything = st.text(st.characters(exclude_categories=())) | st.text('";,=\\ \tasync-respond')
values = anything | st.sampled_from(["respond-async", 'respond-async=""', ";", 'a";', ";;", ",;,"])


class Counter:
    """Takes every order: the number of charges."""

    def __init__(self) -> None:
        self.charges = 0

    def generate(self, _order: Order, *_: object) -> Finished:
        self.charges += 1
        return Finished("https://images.example/a.png", 1)

    def accept(self, _order: Order, *_: object) -> Accepted:
        self.charges += 1
        return Accepted("1700000000000", "https://images.example/a.png")


class Secrets:
    """A Secrets Manager with the key of one organisation."""

    def get_secret_value(self, **_: str) -> object:
        return {"SecretString": json.dumps({"keys": [RECORD]})}


def answer_to(headers: dict[str, str]) -> tuple[int, int]:
    """The status, and the number of charges."""
    service, counter = Dependencies(SETTINGS), cast("Any", Counter())
    service.key_verifier = KeyVerifier(cast("Any", Secrets()), "orgs/")
    service.generations = service.jobs = counter
    event = event_of('{"prompt": "A fox"}', is_base64=False, headers=headers)
    with service.telemetry.observe("a-request") as observation:
        response = respond(service, event, Deadline(10), observation)
    assert json.loads(response["body"])
    return response["statusCode"], counter.charges


@settings(deadline=None, max_examples=250)
@given(
    st.fixed_dictionaries(
        {"authorization": st.just(GOOD) | st.just(GOOD) | values},
        optional={name: values for name in READ if name != "authorization"},
    )
)
def test_no_value_of_a_header_is_a_5xx_or_is_charged_if_it_is_bad(headers: dict[str, str]) -> None:
    status, charges = answer_to(headers)
    idempotency_key = headers.get("idempotency-key", "a")
    if headers["authorization"] != GOOD:
        assert (status, charges) == (401, 0)
    elif not re.fullmatch(r"[\x20-\x7e]{1,255}", idempotency_key):
        assert (status, charges) == (400, 0)
    else:
        assert status in {200, 202}
        assert charges == 1
    assert origin(event_of(None, is_base64=False, headers=headers)).startswith("http")


@pytest.mark.parametrize("part", ['\\"', '"\\', ";", ",", '"', "a=", "respond-async;", ' "', "\t"])
@pytest.mark.parametrize("name", READ)
def test_ten_kilobytes_of_any_header_take_no_time(name: str, part: str) -> None:
    value = (part * 10_240)[:10_240]
    began_s = time.thread_time()
    status, _ = answer_to({"authorization": GOOD, name: value})
    assert status < 500
    assert time.thread_time() - began_s < 0.25


@settings(deadline=None, max_examples=100)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(OF_DOCUMENTS, values)))
def test_no_value_of_a_header_breaks_a_document(headers: dict[str, str]) -> None:
    event = event_of(None, is_base64=False, headers=headers)
    answer = as_document(event, text(200, "a document", "one", {}))
    sent = answer["body"].encode()
    read = gzip.decompress(base64.b64decode(sent)) if answer["isBase64Encoded"] else sent
    assert (answer["statusCode"], read) in {(200, b"a document"), (304, b"")}


@pytest.mark.parametrize("part", [",", ";", "gzip;q=", 'W/"a",', "*", " ", "q=0"])
@pytest.mark.parametrize("name", OF_DOCUMENTS)
def test_ten_kilobytes_of_a_documents_header_take_no_time(name: str, part: str) -> None:
    event = event_of(None, is_base64=False, headers={name: (part * 10_240)[:10_240]})
    began_s = time.thread_time()
    as_document(event, text(200, "a document", "one", {}))
    assert time.thread_time() - began_s < 0.25


def test_these_are_all_the_headers_that_are_read() -> None:
    (folder,) = handlers.__path__
    code = "".join(file.read_text(encoding="utf-8") for file in Path(folder).glob("*.py"))
    assert set(re.findall(r'header\(event, "([\w-]+)"\)', code)) == {*READ, *OF_DOCUMENTS}
