"""What an organisation reads about itself: its credits, its generations, and nobody else's.

Twice, as in ``tests/test_contract.py``: in this process, and (marked ``real``) the built artifact
in Lambda's own runtime.
"""

import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pytest

from infra.local.gemini_stand_in import Answer as ModelAnswer
from infra.local.gemini_stand_in import Received
from infra.local.stack import LocalStack, drop_dependencies
from infra.template import PROJECT_ROOT
from lib.ledger.rows import Generation, Status
from lib.picture.aspect_ratio import AspectRatio
from tests.customer import (
    CREDITS,
    GENERATIONS,
    SENTENCE,
    Answer,
    Customer,
    fetch,
    model,
    plain_picture,
    prompt_of,
    scripted_stack,
)
from tests.stacks import HERE, SLOW_STACKS

NOT_FOUND = {"error": "Not found"}
ASKED_FOR = {"id", "status", "createdAt", "prompt", "aspectRatio"}
SHOWN = {
    "reserved": ASKED_FOR,
    "settled": ASKED_FOR | {"imageUrl", "creditsCharged", "durationMs"},
    "refunded": ASKED_FOR | {"message", "creditsRefunded"},
}
# The first of those rows that tests write themselves.
FIRST_MS = 1_700_000_000_000
DIGIT_OF_ANOTHER_SCRIPT = "\u0661"
ATTEMPT_ID = "an-attempt-id-that-nobody-sees"
REQUEST_HASH = "a-request-hash-that-nobody-sees"
IDEMPOTENCY_KEY = "a-key-that-nobody-sees"


@pytest.fixture(scope="module", params=SLOW_STACKS)
def stack(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    with scripted_stack(request) as running:
        yield running


def row(customer: Customer, created_ms: int, prompt: str = "A fox") -> Generation:
    """A generation as the ledger would have written it; every third was settled."""
    status = list(Status)[created_ms % 3]
    return Generation(
        organisation=customer.organisation,
        created_ms=created_ms,
        status=status,
        credits=5,
        attempt_id=ATTEMPT_ID,
        image_key=f"generated/gemini/{customer.organisation}/{created_ms}.png",
        prompt=prompt,
        aspect_ratio=AspectRatio.LANDSCAPE_16_9,
        request_hash=REQUEST_HASH,
        idempotency_key=IDEMPOTENCY_KEY,
        asynchronous=created_ms % 2 == 0,
        # Far away: the reconciler of the stack is not to end it.
        due_at=int(time.time()) + 86_400 if status is Status.RESERVED else None,
    )


def item_of(generation: Generation) -> dict[str, Any]:
    item = generation.to_item()
    if generation.status is Status.SETTLED:
        item |= {"settledAt": {"N": "1700000003"}, "durationMs": {"N": "3420"}}
    if generation.status is Status.REFUNDED:
        item |= {"refundedAt": {"N": "1700000003"}, "failureCode": {"S": "content_rejected"}}
    return item


def write(customer: Customer, *generations: Generation) -> None:
    table = customer.stack.aws.client("dynamodb")
    for start in range(0, len(generations), 25):
        requests: list[Any] = [
            {"PutRequest": {"Item": item_of(each)}} for each in generations[start : start + 25]
        ]
        table.batch_write_item(RequestItems={customer.stack.table: requests})


def page(customer: Customer, **query: object) -> tuple[list[Any], str | None]:
    """One page of the history, and where the next one begins."""
    text = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
    answer = customer.get(f"{GENERATIONS}?{text}")
    assert answer.status == 200, answer
    assert list(answer.json()) == ["generations", "nextCursor"]
    return answer.json()["generations"], answer.json()["nextCursor"]


def ids(generations: list[Any]) -> list[str]:
    return [each["id"] for each in generations]


def assert_unauthorized(answer: Answer) -> None:
    assert answer.status == 401, answer
    assert answer.json() == {"error": "Invalid or missing API key"}
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-error-code"] == "unauthorized"


def assert_not_found(answer: Answer) -> None:
    assert (answer.status, answer.json()) == (404, NOT_FOUND), answer
    assert answer.headers["x-error-code"] == "not_found"


def assert_bad_query(answer: Answer, word: str) -> None:
    assert answer.status == 400, answer
    assert set(answer.json()) == {"error"}
    assert SENTENCE.fullmatch(answer.json()["error"]), answer
    assert word in answer.json()["error"]
    assert answer.headers["x-error-code"] == f"invalid_{word}"


# Credits


def test_the_balance_is_what_was_granted_less_what_was_charged(customer: Customer) -> None:
    assert customer.get(CREDITS).json() == {"credits": 100, "creditsPerImage": 5}

    customer.generate()
    customer.generate("A fox [fail:safety]")
    accepted = customer.accept()
    customer.ending(accepted)

    assert customer.get(CREDITS).json() == {"credits": 90, "creditsPerImage": 5}


def test_an_organisation_without_credits_has_none(stack: LocalStack) -> None:
    assert Customer(stack, 0).get(CREDITS).json() == {"credits": 0, "creditsPerImage": 5}


# Who may read


@pytest.mark.parametrize(
    "target",
    [
        CREDITS,
        GENERATIONS,
        f"{GENERATIONS}?limit=0",
        f"{GENERATIONS}?cursor=x",
        f"{GENERATIONS}/{FIRST_MS}",
        f"{GENERATIONS}/not-an-id",
    ],
)
def test_nobody_reads_without_a_key(customer: Customer, target: str) -> None:
    write(customer, row(customer, FIRST_MS))
    url = customer.stack.url + target

    assert_unauthorized(fetch(url))
    assert_unauthorized(fetch(url, headers={"Authorization": f"Bearer {customer.key}0"}))
    assert_unauthorized(fetch(url, headers={"Authorization": f"Basic {customer.key}"}))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_of_it_can_be_changed(customer: Customer, method: str) -> None:
    write(customer, row(customer, FIRST_MS))
    headers = {"Authorization": f"Bearer {customer.key}"}

    for target in (CREDITS, GENERATIONS, f"{GENERATIONS}/{FIRST_MS}"):
        assert fetch(customer.stack.url + target, method, b"{}", headers).status == 404

    assert ids(customer.history()) == [str(FIRST_MS)]


def test_every_answer_is_json_with_a_request_id_of_its_own(customer: Customer) -> None:
    targets = (CREDITS, GENERATIONS, f"{GENERATIONS}/{FIRST_MS}", f"{GENERATIONS}?limit=0")

    answers = [customer.get(target) for target in targets]

    assert [answer.status for answer in answers] == [200, 200, 404, 400]
    assert {answer.headers["content-type"] for answer in answers} == {"application/json"}
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


# One generation


def test_each_state_shows_what_belongs_to_it_and_nothing_else(
    stack: LocalStack, customer: Customer
) -> None:
    asked, released = threading.Event(), threading.Event()

    def hesitate(request: Received) -> ModelAnswer | None:
        if prompt_of(request) == "Still being drawn":
            asked.set()
            released.wait(timeout=20)
        return plain_picture(request)

    settled = customer.accept("Drawn", aspectRatio="21:9")
    refunded = customer.accept("Refused [fail:blocked-prompt]", aspectRatio="9:16")
    ended = [customer.ending(settled), customer.ending(refunded)]
    with model(stack, hesitate):
        reserved = customer.accept("Still being drawn")
        assert asked.wait(timeout=20)
        read = [customer.get(answer.headers["location"]).json() for answer in (reserved,)] + ended
        listed = customer.history()
        released.set()
        customer.ending(reserved)

    assert [each["status"] for each in read] == ["reserved", "settled", "refunded"]
    for each in read:
        assert set(each) == SHOWN[each["status"]]
    assert [each["prompt"] for each in read][:2] == ["Still being drawn", "Drawn"]
    assert [each["aspectRatio"] for each in read] == ["1:1", "21:9", "9:16"]
    assert read[1]["imageUrl"] == settled.json()["imageUrl"]
    assert read[1]["creditsCharged"] == 5
    assert (read[2]["message"], read[2]["creditsRefunded"]) == ("Content policy violation", 5)
    assert sorted(listed, key=lambda each: str(each["id"])) == [read[1], read[2], read[0]]


def test_what_was_asked_for_synchronously_is_in_the_history_too(customer: Customer) -> None:
    answer = customer.generate("A fox that was waited for", aspectRatio="3:2")
    customer.generate("Refused [fail:safety]")

    refused, drawn = customer.history()

    assert drawn["imageUrl"] == answer.json()["imageUrl"]
    assert drawn["durationMs"] == answer.json()["durationMs"]
    assert drawn["prompt"] == "A fox that was waited for"
    assert (refused["status"], refused["creditsRefunded"]) == ("refunded", 5)
    assert refused["message"] == "Content policy violation"
    assert customer.get(f"{GENERATIONS}/{drawn['id']}").json() == drawn


def test_a_creation_time_is_in_iso_8601_to_the_millisecond(customer: Customer) -> None:
    write(customer, row(customer, FIRST_MS + 7))

    (shown,) = customer.history()

    assert shown["createdAt"] == "2023-11-14T22:13:20.007Z"


@pytest.mark.parametrize(
    "prompt", ["🦊 \u202e\x00\x1b[31m\r\n\t</script>\"'\\", "漢" * 4_000, "  blank  "]
)
def test_a_prompt_is_shown_as_it_was_sent(customer: Customer, prompt: str) -> None:
    assert customer.generate(prompt).status == 200

    (shown,) = customer.history()

    assert shown["prompt"] == prompt


FAILURES = {
    "expired": "Image generation timed out",
    "reservation_lost": "Image generation timed out",
    "queue_failed": "Image generation is unavailable",
    "internal_error": "Image generation is unavailable",
    "storage_failed": "The image could not be stored",
    "model_overloaded": "The image model is overloaded",
    "<b>a code of a later version</b>": "Image generation timed out",
}


@pytest.mark.parametrize(("code", "message"), FAILURES.items())
def test_why_it_failed_is_said_in_the_words_of_the_contract(
    customer: Customer, code: str, message: str
) -> None:
    created_ms = next(
        ms for ms in range(FIRST_MS, FIRST_MS + 3) if list(Status)[ms % 3] == "refunded"
    )
    item = item_of(row(customer, created_ms)) | {"failureCode": {"S": code}}
    customer.stack.aws.client("dynamodb").put_item(TableName=customer.stack.table, Item=item)

    answer = customer.get(f"{GENERATIONS}/{created_ms}")

    assert answer.json()["message"] == message
    assert code not in answer.body.decode()


def test_another_organisations_generation_is_not_found(
    stack: LocalStack, customer: Customer
) -> None:
    other = Customer(stack)
    accepted = other.accept()
    other.ending(accepted)

    theirs = customer.get(accepted.headers["location"])
    nobodys = customer.get(f"{GENERATIONS}/{FIRST_MS}")

    assert_not_found(theirs)
    assert theirs.body == nobodys.body
    assert other.get(accepted.headers["location"]).status == 200


MALFORMED_IDS = {
    "a word": "not-an-id",
    "12 digits": "170000000000",
    "14 digits": "17000000000000",
    "zeros": "0000000000000",
    "nines": "9999999999999",
    "a sign": "+170000000000",
    "a minus": "-170000000000",
    "a blank": "%20170000000000",
    "a line end": "1700000000000%0A",
    "a NUL": "1700000000000%00",
    "a fraction": "1700000000.00",
    "an exponent": "1700000000e03",
    "underscores": "1_700_000_000",
    "hexadecimal": "0x18bcfe56800",
    "a file": "1700000000000.png",
    "a row": "GEN%231700000000000",
    "the account": "ACCOUNT",
    "a quote": "1700000000000'",
    "digits of another script": quote(DIGIT_OF_ANOTHER_SCRIPT * 13),
    "superscripts": quote("\u00b9" * 13),
    "no UTF-8": "%FF%FE170000000",
    "long": "1" * 5_000,
}


@pytest.mark.parametrize("malformed", MALFORMED_IDS.values(), ids=MALFORMED_IDS)
def test_an_id_that_is_none_is_not_found(customer: Customer, malformed: str) -> None:
    write(customer, row(customer, FIRST_MS))

    assert_not_found(customer.get(f"{GENERATIONS}/{malformed}"))


@pytest.mark.parametrize("beyond", ["", "1700000000000/image", "..%2F1700000000000", "%2e%2e/x"])
def test_a_path_beyond_the_generations_is_not_found(customer: Customer, beyond: str) -> None:
    write(customer, row(customer, FIRST_MS))

    assert customer.get(f"{GENERATIONS}/{beyond}").status == 404


def test_nothing_internal_is_shown(customer: Customer) -> None:
    write(customer, *(row(customer, FIRST_MS + n) for n in range(6)))

    answers = [customer.get(GENERATIONS)]
    answers += [customer.get(f"{GENERATIONS}/{FIRST_MS + n}") for n in range(6)]

    for answer in answers:
        assert answer.status == 200
        shown = answer.body.decode() + repr(answer.headers)
        internal = [ATTEMPT_ID, REQUEST_HASH, IDEMPOTENCY_KEY, "content_rejected", "ORG#", "GEN#"]
        names = [
            "attemptId",
            "requestHash",
            "failureCode",
            "idempotencyKey",
            "imageKey",
            "dueShard",
        ]
        names += ["dueAt", "asynchronous", "settledAt", "refundedAt", "organisation", "pk"]
        for word in internal + [f'"{name}"' for name in names]:
            assert word not in shown


# The history


def test_a_history_without_generations_is_empty(customer: Customer) -> None:
    assert customer.get(GENERATIONS).json() == {"generations": [], "nextCursor": None}


def test_the_newest_comes_first(customer: Customer) -> None:
    accepted = [customer.accept(f"Number {n}") for n in range(3)]
    for answer in accepted:
        customer.ending(answer)

    shown = customer.history()

    assert ids(shown) == [answer.json()["id"] for answer in reversed(accepted)]
    times = [datetime.fromisoformat(each["createdAt"]) for each in shown]
    assert all(newer - older > timedelta(0) for newer, older in pairwise(times))


def test_a_page_has_twenty_generations_unless_asked_otherwise(customer: Customer) -> None:
    write(customer, *(row(customer, FIRST_MS + n) for n in range(21)))

    first, cursor = page(customer)
    rest, end = page(customer, cursor=cursor)

    assert ids(first) == [str(FIRST_MS + n) for n in range(20, 0, -1)]
    assert (ids(rest), end) == ([str(FIRST_MS)], None)


def test_a_page_has_as_many_generations_as_asked_for(customer: Customer) -> None:
    written = [str(FIRST_MS + n) for n in range(101)]
    write(customer, *(row(customer, int(each)) for each in written))
    newest_first = written[::-1]

    one, after_one = page(customer, limit=1)
    hundred, after_hundred = page(customer, limit=100)

    assert ids(one) == newest_first[:1]
    assert ids(hundred) == newest_first[:100]
    assert ids(page(customer, limit=1, cursor=after_one)[0]) == newest_first[1:2]
    rest, end = page(customer, limit=100, cursor=after_hundred)
    assert (ids(rest), end) == (newest_first[100:], None)


def test_the_last_page_says_that_it_is_the_last_even_if_it_is_full(customer: Customer) -> None:
    write(customer, *(row(customer, FIRST_MS + n) for n in range(4)))

    _, cursor = page(customer, limit=2)

    last, end = page(customer, limit=2, cursor=cursor)
    assert (len(last), end) == (2, None)


def test_other_rows_of_the_organisation_are_not_in_its_history(customer: Customer) -> None:
    customer.generate(idempotency_key="order-1")

    shown, cursor = page(customer)

    assert (len(shown), cursor) == (1, None)


@pytest.mark.parametrize(
    "limit",
    [
        *("0", "101", "1000", "-1", "-0", "%2B5", "1.0", "1e1", "0x10", "1_0", "ten", "", "%20"),
        *("%205", "5%20", "5%0A", "5%00", "null", "5,5", "9" * 400),
        quote(DIGIT_OF_ANOTHER_SCRIPT),
        quote("\uff15"),
    ],
)
def test_a_limit_that_is_none_is_told_what_to_use(customer: Customer, limit: str) -> None:
    answer = customer.get(f"{GENERATIONS}?limit={limit}")

    assert_bad_query(answer, "limit")
    assert re.search(r"\b1\b.*\b100\b", answer.json()["error"])


def test_a_parameter_that_comes_twice_is_a_bad_request(customer: Customer) -> None:
    write(customer, *(row(customer, FIRST_MS + n) for n in range(4)))
    _, cursor = page(customer, limit=1)

    assert_bad_query(customer.get(f"{GENERATIONS}?limit=2&limit=2"), "limit")
    assert_bad_query(customer.get(f"{GENERATIONS}?cursor={cursor}&cursor={cursor}"), "cursor")


def test_unknown_parameters_are_ignored(customer: Customer) -> None:
    write(customer, *(row(customer, FIRST_MS + n) for n in range(3)))

    shown, _ = page(customer, limit=2, organisation="demo", Limit=1, offset="x", pk="ORG#demo")

    assert ids(shown) == [str(FIRST_MS + 2), str(FIRST_MS + 1)]


# Cursors


def all_pages(
    customer: Customer, limit: int, between: "list[Generation] | None" = None
) -> list[Any]:
    """The whole history, page by page; one of ``between`` is written after each page."""
    found, cursor = page(customer, limit=limit)
    while cursor is not None:
        if between:
            write(customer, between.pop())
        more, cursor = page(customer, limit=limit, cursor=cursor)
        assert more
        found += more
    return found


def test_a_cursor_survives_what_comes_after_it(customer: Customer) -> None:
    old = [customer.generate(f"Old {n}").json()["imageUrl"] for n in range(4)]

    first, cursor = page(customer, limit=2)
    for n in range(3):
        customer.generate(f"New {n}")
    second, end = page(customer, limit=2, cursor=cursor)

    assert [each["imageUrl"] for each in first + second] == old[::-1]
    assert end is None
    assert [each["prompt"] for each in customer.history()][:3] == ["New 2", "New 1", "New 0"]
    assert page(customer, limit=2, cursor=cursor) == (second, None)


@pytest.mark.parametrize("limit", [100, 37])
@pytest.mark.real
def test_a_thousand_generations_are_paged_with_no_gap_and_no_repeat_while_new_ones_come(
    customer: Customer, limit: int
) -> None:
    written = [FIRST_MS + n * n for n in range(1_000)]
    # A row of 12 kB: a hundred of them are more than the 1 MB that a query of DynamoDB reads.
    prompts = ["漢" * 4_000 if n < 250 else f"Number {n}" for n in range(1_000)]
    rows = zip(written, prompts, strict=True)
    write(customer, *(row(customer, ms, prompt) for ms, prompt in rows))
    new = [row(customer, written[-1] + n) for n in range(1, 51)]

    found = all_pages(customer, limit, new)

    assert len(new) < 50
    assert ids(found) == [str(each) for each in reversed(written)]
    assert [each["prompt"] for each in found] == prompts[::-1]


def test_a_page_of_the_longest_prompts_fits_into_an_answer(customer: Customer) -> None:
    # Each of these is twelve characters in the JSON, and Lambda's answers end at 6 MB.
    prompt = "🦊" * 4_000
    write(customer, *(row(customer, FIRST_MS + n, prompt) for n in range(101)))

    found, cursor = page(customer, limit=100)

    assert (len(found), cursor is None) == (100, False)
    assert {each["prompt"] for each in found} == {prompt}


def base64url(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def test_a_cursor_that_was_made_up_is_told_so(customer: Customer) -> None:
    write(customer, *(row(customer, FIRST_MS + n) for n in range(4)))
    _, cursor = page(customer, limit=1)
    assert cursor is not None
    key = {"pk": {"S": "ORG#demo"}, "sk": {"S": "GEN#1700000000000"}}
    made_up = [
        "",
        "x",
        "null",
        "0",
        str(FIRST_MS),
        "A" * 27,
        "A" * 10_000,
        cursor + "=",
        cursor + "A",
        cursor + cursor,
        cursor + "\n",
        " " + cursor,
        *(cursor[:length] for length in range(len(cursor))),
        base64url("before:"),
        base64url("before:123456789012"),
        base64url("before:12345678901234"),
        base64url("before:-123456789012"),
        base64url("before:+123456789012"),
        base64url("before:12345678901.3"),
        base64url("before:GEN#170000000"),
        base64url("before:170000000000\n"),
        base64url("after:1700000000000"),
        base64url("BEFORE:1700000000000"),
        base64url(json.dumps(key)),
        base64url("ORG#demo/GEN#1700000000000"),
        base64.b64encode(json.dumps(key).encode()).decode(),
        DIGIT_OF_ANOTHER_SCRIPT * 27,
        "\x00" * 27,
    ]

    for each in made_up:
        assert_bad_query(customer.get(f"{GENERATIONS}?cursor={quote(each, safe='')}"), "cursor")


def test_no_change_to_a_cursor_shows_anything_that_is_not_the_organisations_own(
    stack: LocalStack, customer: Customer
) -> None:
    other = Customer(stack)
    for each in (customer, other):
        write(each, *(row(each, FIRST_MS + n, each.organisation) for n in range(6)))
    _, cursor = page(customer, limit=2)
    assert cursor is not None
    changed = [
        cursor[:place] + character + cursor[place + 1 :]
        for place in range(len(cursor))
        for character in "A9_z"
    ]

    for forged in changed:
        answer = customer.get(f"{GENERATIONS}?cursor={forged}")
        assert answer.status in {200, 400}
        if answer.status == 200:
            assert {one["prompt"] for one in answer.json()["generations"]} <= {
                customer.organisation
            }
    other.leave()


def test_another_organisations_cursor_is_a_place_in_ones_own_history(
    stack: LocalStack, customer: Customer
) -> None:
    other = Customer(stack)
    write(other, *(row(other, FIRST_MS + 10 + n, "Theirs") for n in range(3)))
    write(customer, *(row(customer, FIRST_MS + 9 + n, "Mine") for n in range(5)))
    _, theirs = page(other, limit=2)

    shown, _ = page(customer, cursor=theirs)

    assert {each["prompt"] for each in shown} == {"Mine"}
    assert ids(shown) == [str(FIRST_MS + 10), str(FIRST_MS + 9)]
    other.leave()


def test_a_cursor_says_nothing_but_a_time_that_its_holder_knows(customer: Customer) -> None:
    write(customer, *(row(customer, FIRST_MS + n) for n in range(3)))

    _, cursor = page(customer, limit=2)

    assert cursor is not None
    assert re.fullmatch(r"[A-Za-z0-9_-]+", cursor)
    decoded = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    assert customer.organisation not in decoded


@pytest.mark.parametrize("time_ms", ["0000000000000", "9999999999999"])
def test_a_cursor_at_the_end_of_all_times_is_no_fault(customer: Customer, time_ms: str) -> None:
    write(customer, row(customer, FIRST_MS))

    shown, cursor = page(customer, cursor=base64url(f"before:{time_ms}"))

    assert (len(shown), cursor) == (int(time_ms[0] == "9"), None)


# The function

CONTEXT = {"requestId": "a-request", "domainName": "api.example.com"}
READS = """
import base64, json, sys, boto3

calls = []
boto3.setup_default_session()
boto3.DEFAULT_SESSION.events.register(
    "before-call", lambda model, **_: calls.append(model.name)
)
from infra.local.functions import LambdaContext
import handlers.account

statuses = []
for event in json.load(sys.stdin):
    answer = handlers.account.handler(event, LambdaContext("AccountFunction", "512", 10))
    statuses.append(answer["statusCode"])
print(json.dumps({"calls": calls, "statuses": statuses, "modules": list(sys.modules)}))
"""


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_the_function_behind_all_this_never_writes_and_never_loads_googles_sdk(
    customer: Customer,
) -> None:
    write(customer, *(row(customer, FIRST_MS + n) for n in range(3)))
    headers = {"authorization": f"Bearer {customer.key}"}
    base: dict[str, Any] = {"headers": headers, "requestContext": CONTEXT}
    events = [
        base | {"routeKey": "GET /healthz"},
        base | {"routeKey": "GET /"},
        base | {"routeKey": "GET /openapi.json"},
        base | {"routeKey": f"GET {CREDITS}"},
        base | {"routeKey": f"GET {GENERATIONS}", "queryStringParameters": {"limit": "2"}},
        base | {"routeKey": f"GET {GENERATIONS}", "queryStringParameters": {"limit": "x"}},
        base
        | {
            "routeKey": f"GET {GENERATIONS}/{{id}}",
            "pathParameters": {"id": str(FIRST_MS)},
        },
        base | {"routeKey": f"GET {GENERATIONS}/{{id}}", "pathParameters": {"id": "x"}},
        base | {"routeKey": f"GET {CREDITS}", "headers": {}},
    ]

    run = subprocess.run(  # noqa: S603 - the line is our own
        [sys.executable, "-c", READS],
        cwd=PROJECT_ROOT,
        env=dict(os.environ),
        input=json.dumps(events),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    report = json.loads(run.stdout.splitlines()[-1])
    assert report["statuses"] == [200, 200, 200, 200, 200, 400, 200, 404, 401]
    assert set(report["calls"]) == {"GetItem", "Query", "GetSecretValue"}
    loaded = {name.partition(".")[0] for name in report["modules"]}
    assert loaded.isdisjoint({"google", "PIL", "httpx2", "deflate"})
    assert "lib.picture.gemini" not in report["modules"]


@contextmanager
def ledger_out_of_reach() -> Iterator[None]:
    """The function in this process looks for a table that isn't there."""
    table = os.environ["CREDITS_TABLE"]
    os.environ["CREDITS_TABLE"] = "no-such-table"
    build_the_function_anew()
    os.environ["CREDITS_TABLE"] = table
    try:
        yield
    finally:
        build_the_function_anew()


def build_the_function_anew() -> None:
    drop_dependencies()


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_without_a_ledger_every_read_is_a_500_that_says_nothing_of_what_is_inside(
    customer: Customer,
) -> None:
    with ledger_out_of_reach():
        answers = [
            customer.get(target) for target in (CREDITS, GENERATIONS, f"{GENERATIONS}/{FIRST_MS}")
        ]

    for answer in answers:
        assert answer.status == 500
        assert answer.headers["x-error-code"] == "service_unavailable"
        assert "x-credits-charged" not in answer.headers
        said = answer.body.decode() + repr(answer.headers)
        for word in (
            "no-such-table",
            "ResourceNotFound",
            "Traceback",
            "boto",
            "arn:",
            customer.key,
        ):
            assert word not in said
    assert customer.get(CREDITS).status == 200
