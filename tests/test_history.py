"""What an organisation can read: its own credits and generations, and no others.

It runs twice, as in ``tests/test_contract.py``: in this process, and (marked ``real``) on the built
artifact in Lambda's own runtime.
"""

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

import handlers.account
from infra.local.stack import LocalStack
from infra.template import PROJECT_ROOT
from lib.keys.key_ring import KeyRing
from lib.ledger.rows import Generation, Status
from lib.picture.aspect_ratio import AspectRatio
from tests.customer import (
    CREDITS,
    GENERATIONS,
    USAGE,
    Customer,
    Reply,
    assert_bad_request,
    blocked_model,
    fetch,
    ledger_unreachable,
    scripted_stack,
    wait_for_the_model,
)
from tests.stacks import HERE, SLOW_STACKS

NOT_FOUND = {"error": "Not found"}
REQUESTED = {"id", "status", "createdAt", "prompt", "aspectRatio"}
FIELDS = {
    "reserved": REQUESTED,
    "settled": REQUESTED | {"imageUrl", "creditsCharged", "durationMs"},
    "refunded": REQUESTED | {"message", "creditsRefunded"},
}
# The creation time of the first row that a test writes itself.
FIRST_MS = 1_700_000_000_000
DIGIT_OF_ANOTHER_SCRIPT = "\u0661"
ATTEMPT_ID = "an-attempt-id-that-is-never-shown"
REQUEST_HASH = "a-request-hash-that-is-never-shown"
IDEMPOTENCY_KEY = "a-key-that-is-never-shown"


@pytest.fixture(scope="module", params=SLOW_STACKS)
def stack(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    with scripted_stack(request) as running:
        yield running


def row(customer: Customer, created_ms: int, prompt: str = "A fox") -> Generation:
    """A generation as the ledger would have written it; every third one is settled."""
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
        # So far away that the reconciler of the stack leaves it alone.
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


def write_many(customer: Customer, number: int, prompt: str = "A fox") -> list[str]:
    """Writes so many generations; returns their ids, newest first."""
    rows = [row(customer, FIRST_MS + n, prompt) for n in range(number)]
    write(customer, *rows)
    return [each.id for each in reversed(rows)]


def page(customer: Customer, **query: object) -> tuple[list[Any], str | None]:
    """One page of the history, and the cursor of the next one."""
    text = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
    answer = customer.get(f"{GENERATIONS}?{text}")
    assert answer.status == 200, answer
    assert list(answer.json()) == ["generations", "nextCursor"]
    return answer.json()["generations"], answer.json()["nextCursor"]


def ids_of(generations: list[Any]) -> list[str]:
    return [each["id"] for each in generations]


def assert_not_found(answer: Reply) -> None:
    assert (answer.status, answer.json()) == (404, NOT_FOUND), answer
    assert answer.headers["x-error-code"] == "not_found"


def assert_bad_query(answer: Reply, word: str) -> None:
    assert_bad_request(answer, word)
    assert answer.headers["x-error-code"] == f"invalid_{word}"


# Credits


def test_the_balance_is_what_was_granted_less_what_was_charged(
    stack: LocalStack, customer: Customer
) -> None:
    assert customer.get(CREDITS).json() == {"credits": 100, "creditsPerImage": 5}
    assert Customer(stack, 0).get(CREDITS).json() == {"credits": 0, "creditsPerImage": 5}
    customer.generate()
    customer.generate("A fox [fail:safety]")
    customer.ending(customer.accept())
    assert customer.get(CREDITS).json() == {"credits": 90, "creditsPerImage": 5}


# Usage


def this_month() -> str:
    return f"{datetime.now(UTC):%Y-%m}"


def test_the_usage_of_a_month_is_in_all_and_by_key(stack: LocalStack, customer: Customer) -> None:
    ring = KeyRing(stack.aws.client("secretsmanager"), os.environ["ORG_SECRET_PREFIX"])
    (first,) = ring.list(customer.organisation)
    idle = ring.issue(customer.organisation, name="idle", monthly_budget=500)
    gone = ring.issue(customer.organisation, name="gone")
    grace = timedelta(hours=1)
    rotated = ring.rotate(customer.organisation, grace=grace, key_id=first.id, name="web")
    assert rotated is not None
    customer.generate()
    customer.generate("A fox [fail:safety]")
    customer.ending(customer.accept())
    for key in (gone, rotated):
        customer.key = key.key
        assert customer.generate().status == 200
    ring.revoke(customer.organisation, gone.id)
    write_many(customer, 30)

    answer = customer.get(USAGE)

    names = ("id", "name", "credits", "images", "monthlyBudget")
    assert answer.json() == {
        "month": this_month(),
        "credits": 20,
        "images": 4,
        "keys": [
            dict(zip(names, values, strict=True))
            for values in (
                (rotated.id, "web", 15, 3, None),
                (gone.id, "gone", 5, 1, None),
                (idle.id, "idle", 0, 0, 500),
            )
        ],
    }
    assert customer.get(f"{USAGE}?month={this_month()}").json() == answer.json()
    earlier = customer.get(f"{USAGE}?month=2023-11").json()
    assert (earlier["month"], earlier["credits"], earlier["images"]) == ("2023-11", 0, 0)
    # For a minute the function may take a revoked key for a live one.
    listed = {each["id"] for each in earlier["keys"]} - {gone.id}
    assert listed == {rotated.id, idle.id}
    future = {"month": "9999-12", "credits": 0, "images": 0, "keys": []}
    assert customer.get(f"{USAGE}?month=9999-12").json() == future


@pytest.mark.parametrize(
    "month", ["", "2026", "2026-13", "2026-00", "26-11", "2026-11-01", "2026-1", "now", "2026-11 "]
)
def test_a_month_that_is_none_is_refused(customer: Customer, month: str) -> None:
    assert_bad_query(customer.get(f"{USAGE}?month={quote(month)}"), "month")


# Authentication


@pytest.mark.parametrize("target", ["", "?limit=0", "?cursor=x", f"/{FIRST_MS}", "/not-an-id"])
def test_no_generation_can_be_read_without_a_key(customer: Customer, target: str) -> None:
    write_many(customer, 1)
    url = customer.stack.url + GENERATIONS + target
    for authorization in ("", f"Bearer {customer.key}0", f"Basic {customer.key}"):
        answer = fetch(url, headers={"Authorization": authorization})
        assert answer.status == 401, answer
        assert answer.json() == {"error": "Invalid or missing API key"}
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-error-code"] == "unauthorized"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_what_can_be_read_cannot_be_changed(customer: Customer, method: str) -> None:
    written = write_many(customer, 1)
    headers = {"Authorization": f"Bearer {customer.key}"}
    one = [] if method == "DELETE" else [f"{GENERATIONS}/{FIRST_MS}"]
    for target in (CREDITS, GENERATIONS, *one):
        assert fetch(customer.stack.url + target, method, b"{}", headers).status in {404, 405}
    assert ids_of(customer.history()) == written


# One generation


def test_each_status_has_its_own_fields_and_no_others(
    stack: LocalStack, customer: Customer
) -> None:
    settled = customer.accept("Drawn", aspectRatio="21:9")
    refunded = customer.accept("Refused [fail:blocked-prompt]", aspectRatio="9:16")
    ended = [customer.ending(settled), customer.ending(refunded)]
    with blocked_model(stack, "Still being drawn") as released:
        reserved = customer.accept("Still being drawn")
        wait_for_the_model(stack, "Still being drawn")
        read = [customer.get(answer.headers["location"]).json() for answer in (reserved,)] + ended
        listed = customer.history()
        released.set()
        customer.ending(reserved)

    assert [each["status"] for each in read] == ["reserved", "settled", "refunded"]
    for each in read:
        assert set(each) == FIELDS[each["status"]]
    assert [each["prompt"] for each in read][:2] == ["Still being drawn", "Drawn"]
    assert [each["aspectRatio"] for each in read] == ["1:1", "21:9", "9:16"]
    assert read[1]["imageUrl"] == settled.json()["imageUrl"]
    assert read[1]["creditsCharged"] == 5
    assert (read[2]["message"], read[2]["creditsRefunded"]) == ("Content policy violation", 5)
    assert sorted(listed, key=lambda each: str(each["id"])) == [read[1], read[2], read[0]]


def test_the_history_includes_synchronous_generations(customer: Customer) -> None:
    assert customer.get(GENERATIONS).json() == {"generations": [], "nextCursor": None}
    answer = customer.generate("A fox", aspectRatio="3:2", idempotency_key="order-1")
    customer.generate("Refused [fail:safety]")
    refused, drawn = customer.history()
    assert drawn["imageUrl"] == answer.json()["imageUrl"]
    assert drawn["durationMs"] == answer.json()["durationMs"]
    assert (drawn["prompt"], drawn["aspectRatio"]) == ("A fox", "3:2")
    assert (refused["status"], refused["creditsRefunded"]) == ("refunded", 5)
    assert refused["message"] == "Content policy violation"
    assert customer.get(f"{GENERATIONS}/{drawn['id']}").json() == drawn


@pytest.mark.parametrize(
    "prompt", ["🦊 \u202e\x00\x1b[31m\r\n\t</script>\"'\\", "漢" * 4_000, "  blank  "]
)
def test_a_prompt_is_returned_as_it_was_sent(customer: Customer, prompt: str) -> None:
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
def test_the_message_of_a_refund_is_a_published_one(
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
    missing = customer.get(f"{GENERATIONS}/{FIRST_MS}")
    assert_not_found(theirs)
    assert theirs.body == missing.body
    assert other.get(accepted.headers["location"]).status == 200


MALFORMED_IDS = [
    *("not-an-id", "170000000000", "17000000000000", "0000000000000", "9999999999999"),
    *("+170000000000", "-170000000000", "%20170000000000", "1700000000000%0A", "1700000000000%00"),
    *("1700000000.00", "1700000000e03", "1_700_000_000", "0x18bcfe56800", "1700000000000.png"),
    *("GEN%231700000000000", "ACCOUNT", "1700000000000'", quote(DIGIT_OF_ANOTHER_SCRIPT * 13)),
    *(quote("\u00b9" * 13), "%FF%FE170000000", "1" * 5_000),
]


@pytest.mark.parametrize("malformed", MALFORMED_IDS, ids=lambda text: text[:20])
def test_a_malformed_id_is_not_found(customer: Customer, malformed: str) -> None:
    write_many(customer, 1)
    assert_not_found(customer.get(f"{GENERATIONS}/{malformed}"))


@pytest.mark.parametrize("beyond", ["", "1700000000000/image", "..%2F1700000000000", "%2e%2e/x"])
def test_any_other_path_is_not_found(customer: Customer, beyond: str) -> None:
    write_many(customer, 1)
    assert customer.get(f"{GENERATIONS}/{beyond}").status == 404


def test_no_internal_attribute_is_returned(customer: Customer) -> None:
    write_many(customer, 6)
    values = [ATTEMPT_ID, REQUEST_HASH, IDEMPOTENCY_KEY, "content_rejected", "ORG#", "GEN#"]
    names = ["attemptId", "requestHash", "failureCode", "idempotencyKey", "imageKey", "dueShard"]
    names += ["dueAt", "asynchronous", "settledAt", "refundedAt", "organisation", "pk"]

    answers = [customer.get(GENERATIONS)]
    answers += [customer.get(f"{GENERATIONS}/{FIRST_MS + n}") for n in range(6)]

    for answer in answers:
        assert answer.status == 200
        shown = answer.body.decode() + repr(answer.headers)
        for word in values + [f'"{name}"' for name in names]:
            assert word not in shown


# The history


def test_the_newest_generation_comes_first(customer: Customer) -> None:
    accepted = [customer.accept(f"Number {n}") for n in range(3)]
    for answer in accepted:
        customer.ending(answer)
    shown = customer.history()
    assert ids_of(shown) == [answer.json()["id"] for answer in reversed(accepted)]
    for each in shown:
        iso = datetime.fromtimestamp(int(each["id"]) / 1000, UTC).isoformat(timespec="milliseconds")
        assert each["createdAt"] == iso.replace("+00:00", "Z")


@pytest.mark.parametrize(("limit", "number"), [(None, 21), (1, 3), (2, 4), (100, 101)])
def test_a_page_has_the_requested_number_of_generations_or_twenty(
    customer: Customer, limit: int | None, number: int
) -> None:
    written = write_many(customer, number)
    size = limit or 20
    query = {} if limit is None else {"limit": limit}
    pages: list[list[str]] = []
    cursor: str | None = None
    while not pages or cursor:
        found, cursor = page(customer, **query, **({"cursor": cursor} if cursor else {}))
        pages.append(ids_of(found))
    assert pages == [written[start : start + size] for start in range(0, number, size)]


@pytest.mark.parametrize(
    "limit",
    [
        *("0", "101", "1000", "-1", "-0", "%2B5", "1.0", "1e1", "0x10", "1_0", "ten", "%20"),
        *("%205", "5%20", "5%0A", "5%00", "null", "5,5", "9" * 400),
        quote(DIGIT_OF_ANOTHER_SCRIPT),
        quote("\uff15"),
    ],
)
def test_a_malformed_limit_is_refused_and_its_range_is_named(
    customer: Customer, limit: str
) -> None:
    answer = customer.get(f"{GENERATIONS}?limit={limit}")
    assert_bad_query(answer, "limit")
    assert re.search(r"\b1\b.*\b100\b", answer.json()["error"])


def test_a_parameter_that_comes_twice_is_a_bad_request(customer: Customer) -> None:
    write_many(customer, 4)
    _, cursor = page(customer, limit=1)
    assert_bad_query(customer.get(f"{GENERATIONS}?limit=2&limit=2"), "limit")
    assert_bad_query(customer.get(f"{GENERATIONS}?cursor={cursor}&cursor={cursor}"), "cursor")


@pytest.mark.parametrize("query", ["cursor=", "limit=", "cursor=&limit=", "limit=&cursor"])
def test_an_empty_parameter_counts_as_absent(customer: Customer, query: str) -> None:
    written = write_many(customer, 2)
    assert ids_of(customer.get(f"{GENERATIONS}?{query}").json()["generations"]) == written


def test_unknown_parameters_are_ignored(customer: Customer) -> None:
    write_many(customer, 3)
    shown, _ = page(customer, limit=2, organisation="demo", Limit=1, offset="x", pk="ORG#demo")
    assert ids_of(shown) == [str(FIRST_MS + 2), str(FIRST_MS + 1)]


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


def test_a_cursor_is_stable_while_new_generations_arrive(customer: Customer) -> None:
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
def test_paging_while_new_generations_arrive_has_no_gap_and_no_repeat(
    customer: Customer, limit: int
) -> None:
    written = [FIRST_MS + n * n for n in range(1_000)]
    # A row of 12 kB: a hundred of them exceed the 1 MB that one query of DynamoDB reads.
    prompts = ["漢" * 4_000 if n < 250 else f"Number {n}" for n in range(1_000)]
    rows = zip(written, prompts, strict=True)
    write(customer, *(row(customer, ms, prompt) for ms, prompt in rows))
    new = [row(customer, written[-1] + n) for n in range(1, 51)]
    found = all_pages(customer, limit, new)
    assert len(new) < 50
    assert ids_of(found) == [str(each) for each in reversed(written)]
    assert [each["prompt"] for each in found] == prompts[::-1]


def base64url(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def test_a_made_up_cursor_is_refused(customer: Customer) -> None:
    write_many(customer, 4)
    _, cursor = page(customer, limit=1)
    assert cursor is not None
    key = json.dumps({"pk": {"S": "ORG#demo"}, "sk": {"S": "GEN#1700000000000"}})
    times = ["", "123456789012", "12345678901234", "-123456789012", "+123456789012"]
    times += ["12345678901.3", "GEN#170000000", "170000000000\n"]
    made_up = [
        *("x", "null", "0", str(FIRST_MS), "A" * 27, "A" * 10_000, "\x00" * 27),
        *(cursor + "=", cursor + "A", cursor + cursor, cursor + "\n", " " + cursor),
        *(cursor[:length] for length in range(1, len(cursor))),
        *(base64url(f"before:{time_ms}") for time_ms in times),
        *(base64url("after:1700000000000"), base64url("BEFORE:1700000000000"), base64url(key)),
        *(base64url("ORG#demo/GEN#1700000000000"), base64.b64encode(key.encode()).decode()),
        DIGIT_OF_ANOTHER_SCRIPT * 27,
    ]

    for each in made_up:
        assert_bad_query(customer.get(f"{GENERATIONS}?cursor={quote(each, safe='')}"), "cursor")


def test_no_altered_cursor_reveals_another_organisations_generations(
    stack: LocalStack, customer: Customer
) -> None:
    other = Customer(stack)
    for each in (customer, other):
        write_many(each, 6, each.organisation)
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
            prompts = {one["prompt"] for one in answer.json()["generations"]}
            assert prompts <= {customer.organisation}
    other.leave()


def test_another_organisations_cursor_points_into_the_callers_own_history(
    stack: LocalStack, customer: Customer
) -> None:
    other = Customer(stack)
    write(other, *(row(other, FIRST_MS + 10 + n, "Theirs") for n in range(3)))
    write(customer, *(row(customer, FIRST_MS + 9 + n, "Mine") for n in range(5)))
    _, theirs = page(other, limit=2)
    shown, _ = page(customer, cursor=theirs)
    assert {each["prompt"] for each in shown} == {"Mine"}
    assert ids_of(shown) == [str(FIRST_MS + 10), str(FIRST_MS + 9)]
    other.leave()


def test_a_cursor_is_url_safe_and_does_not_name_the_organisation(customer: Customer) -> None:
    write_many(customer, 3)
    _, cursor = page(customer, limit=2)
    assert cursor is not None
    assert re.fullmatch(r"[A-Za-z0-9_-]+", cursor)
    decoded = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    assert customer.organisation not in decoded


@pytest.mark.parametrize("time_ms", ["0000000000000", "9999999999999"])
def test_a_cursor_at_either_end_of_time_is_valid(customer: Customer, time_ms: str) -> None:
    write_many(customer, 1)
    shown, cursor = page(customer, cursor=base64url(f"before:{time_ms}"))
    assert (len(shown), cursor) == (int(time_ms[0] == "9"), None)


# The function

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
def test_the_account_function_never_writes_and_never_loads_googles_sdk(customer: Customer) -> None:
    write_many(customer, 3)
    one = f"GET {GENERATIONS}/{{id}}"
    requests: list[tuple[str, dict[str, Any], int]] = [
        *(("GET /healthz", {}, 200), ("GET /", {}, 200), ("GET /openapi.json", {}, 200)),
        (f"GET {CREDITS}", {}, 200),
        (f"GET {GENERATIONS}", {"queryStringParameters": {"limit": "2"}}, 200),
        (f"GET {GENERATIONS}", {"queryStringParameters": {"limit": "x"}}, 400),
        (one, {"pathParameters": {"id": str(FIRST_MS)}}, 200),
        (one, {"pathParameters": {"id": "x"}}, 404),
        (f"GET {CREDITS}", {"headers": {}}, 401),
    ]
    base: dict[str, Any] = {
        "headers": {"authorization": f"Bearer {customer.key}"},
        "requestContext": {"requestId": "a-request", "domainName": "api.example.com"},
    }

    run = subprocess.run(  # noqa: S603 - the line is our own
        [sys.executable, "-c", READS],
        cwd=PROJECT_ROOT,
        env=dict(os.environ),
        input=json.dumps([base | {"routeKey": route} | more for route, more, _ in requests]),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    report = json.loads(run.stdout.splitlines()[-1])
    assert report["statuses"] == [status for *_, status in requests]
    assert set(report["calls"]) == {"GetItem", "Query", "GetSecretValue"}
    loaded = {name.partition(".")[0] for name in report["modules"]}
    assert loaded.isdisjoint({"google", "PIL", "httpx2", "deflate"})
    assert "lib.picture.gemini" not in report["modules"]


@pytest.mark.parametrize("stack", HERE, indirect=True)
def test_without_a_ledger_every_read_is_a_500_without_internal_details(customer: Customer) -> None:
    with ledger_unreachable(handlers.account):
        answers = [
            customer.get(target) for target in (CREDITS, GENERATIONS, f"{GENERATIONS}/{FIRST_MS}")
        ]

    for answer in answers:
        assert answer.status == 500
        assert answer.headers["x-error-code"] == "service_unavailable"
        assert answer.json() == {
            "error": "Failed to answer the request",
            "message": "The service is unavailable",
        }
        assert "x-credits-charged" not in answer.headers
        text = answer.body.decode() + repr(answer.headers)
        assert customer.key not in text
        for word in (
            "no-such-table",
            "ResourceNotFound",
            "Traceback",
            "boto",
            "arn:",
            customer.key,
        ):
            assert word not in text
    assert customer.get(CREDITS).status == 200
