"""The HTTP contract of the paid route, word for word, as a client on a socket sees it.

It runs twice: with the handlers in this process and moto's DynamoDB, and (marked ``real``) with the
built artifact in Lambda's own runtime and Amazon's DynamoDB Local.
"""

import base64
import hashlib
import json
import logging
import os
import re
import string
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infra.local.gemini_stand_in import FAILURES, GeminiStandIn, ModelRequest, ModelResponse
from infra.local.stack import LocalStack, drop_dependencies
from infra.template import PROJECT_ROOT
from tests.customer import (
    BASE64,
    CREDITS,
    GENERATE,
    MESSAGES,
    RATIOS,
    SENTENCE,
    TEXT,
    USAGE,
    Customer,
    Reply,
    assert_bad_request,
    assert_rate_limited,
    assert_replayed,
    assert_well_formed,
    blocked_model,
    bucket_refuses,
    event_of,
    fetch,
    invoke,
    model,
    model_says,
    picture_at,
    positive,
    prompt_of,
    prompts_sent,
    scripted_stack,
    wait_for_the_model,
    within_one_minute,
)
from tests.stacks import STACKS

PROMPT_MISSING = {"error": "Missing required field: prompt (string)"}
NOT_AUTHENTICATED = {"error": "Invalid or missing API key"}
BODY_LIMIT = 64 * 1024
NESTING = 60_000
HUGE = b"9" * 60_000
DEEP = b"[" * (NESTING // 2) + b"]" * (NESTING // 2)
# API Gateway hands a JSON body to the function as text, and one of an unknown type as base64.
BODY_FORMS = pytest.mark.parametrize("form", [TEXT, BASE64], ids=["text", "base64"])
# The failures of the stand-in that take their time.
LONG = frozenset({"hang", "hang-after-headers", "drip", "drip-headers", "slow"})


@pytest.fixture(scope="module", params=STACKS)
def stack(request: pytest.FixtureRequest) -> Iterator[LocalStack]:
    with scripted_stack(request) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def start_debug_process_first(request: pytest.FixtureRequest) -> None:
    """Starts ``debug_process`` first if a test of this run needs it: it takes another core."""
    if any("debug_run" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("debug_process")


@pytest.fixture(scope="module")
def debug_process(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """``serve_with_debug_on``, beside the other tests."""
    directory = tmp_path_factory.mktemp("secrecy")
    code = "import sys, pathlib; from tests.test_contract import serve_with_debug_on as serve; "
    command = [sys.executable, "-W", "always", "-c", code + "serve(pathlib.Path(sys.argv[1]))"]
    environment = {**os.environ, "POWERTOOLS_LOG_LEVEL": "DEBUG"}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - the line is our own
            [*command, str(directory / "report.json")],
            cwd=PROJECT_ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    yield process, directory
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def next_visitor(stack: LocalStack) -> Iterator[Callable[[], Customer]]:
    """Customers whose requests must all cost nothing and leave nothing behind."""
    visitors: list[Customer] = []
    visits = count()

    def visit() -> Customer:
        # Another one before the refusals of this one meet their limit.
        if next(visits) % 20 == 0:
            visitors.append(Customer(stack))
        return visitors[-1]

    yield visit
    for each in visitors:
        assert (each.balance(), each.stored()) == (100, [])


@pytest.fixture
def visitor(next_visitor: Callable[[], Customer]) -> Customer:
    """A customer as above."""
    return next_visitor()


# 200


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_success_is_four_fields_and_one_png_of_the_requested_shape(
    stack: LocalStack, customer: Customer, ratio: str
) -> None:
    before_ms = int(time.time() * 1000)

    answer = customer.generate(aspectRatio=ratio)

    body = answer.json()
    assert answer.status == 200
    assert list(body) == ["imageUrl", "mimeType", "creditsCharged", "durationMs"]
    assert (body["mimeType"], body["creditsCharged"]) == ("image/png", 5)
    assert type(body["durationMs"]) is int
    assert 0 <= body["durationMs"] <= time.time() * 1000 - before_ms + 1
    assert "idempotent-replayed" not in answer.headers
    width, height = picture_at(body["imageUrl"]).size
    wanted_width, wanted_height = (int(side) for side in ratio.split(":"))
    assert width * wanted_height == height * wanted_width
    assert customer.balance() == 95

    (key,) = customer.stored()
    assert urlsplit(body["imageUrl"]).path == f"/images/{key}"
    found = re.fullmatch(rf"generated/gemini/{customer.organisation}/(\d{{13}})\d{{39}}\.png", key)
    assert found, key
    assert before_ms <= int(found[1]) <= time.time() * 1000
    stored = stack.aws.client("s3").head_object(Bucket=stack.bucket, Key=key)
    assert stored["CacheControl"] == "public, max-age=86400, immutable"
    assert fetch(body["imageUrl"]).headers["cache-control"] == stored["CacheControl"]


@BODY_FORMS
@pytest.mark.parametrize(
    "fields",
    [{}, {"aspectRatio": None}, {"aspectRatio": "1:1"}],
    ids=["no ratio", "a null ratio", "1:1"],
)
def test_a_missing_or_null_ratio_is_a_square(
    customer: Customer, fields: dict[str, object], form: str
) -> None:
    answer = customer.post(json.dumps({"prompt": "A fox", **fields}).encode(), form)
    assert answer.status == 200
    width, height = picture_at(answer.json()["imageUrl"]).size
    assert width == height


NUMBERS = ["1e400", "-1e400", "9" * 4_000, "0." + "1" * 60_000, "-0"]


@BODY_FORMS
@pytest.mark.parametrize("value", ['{"a": [null]}', '""', *NUMBERS], ids=lambda value: value[:9])
def test_the_model_field_is_ignored_whatever_its_value(
    customer: Customer, value: str, form: str
) -> None:
    answer = customer.post(f'{{"model": {value}, "prompt": "A fox"}}'.encode(), form)
    assert answer.status == 200, answer
    assert customer.balance() == 95


# A field that is not in the contract, and the field that the refusal suggests.
UNKNOWN_FIELDS = {
    **dict.fromkeys(["aspect_ratio", "aspectratio", "AspectRatio", "ratio"], "aspectRatio"),
    **dict.fromkeys(["aspect-ratio", "size", "imageConfig", "image_config"], "aspectRatio"),
    **dict.fromkeys(["Prompt", "promt", "PROMPT", "text_prompt"], "prompt"),
    **dict.fromkeys(["n", "seed", "", "quality", "\u00fcber\n", "x" * 5_000], None),
}


@pytest.mark.parametrize(
    ("name", "meant"), UNKNOWN_FIELDS.items(), ids=lambda each: repr(each)[:16]
)
@pytest.mark.parametrize("value", ["16:9", 4, None], ids=repr)
def test_an_unknown_field_is_refused_without_a_charge_and_with_the_field_it_resembles(
    visitor: Customer, name: str, meant: str | None, value: object
) -> None:
    answer = visitor.post(json.dumps({"prompt": "A fox", name: value}).encode())
    assert_bad_request(answer, "Unknown field: ", "prompt, aspectRatio, model" if not meant else "")
    assert answer.headers["x-error-code"] == "unknown_field"
    if meant:
        assert answer.json()["error"].endswith(f" (did you mean {meant}?)")
    assert len(answer.body) < 300
    assert visitor.balance() == 100


def test_a_byte_order_mark_before_the_json_is_skipped(customer: Customer) -> None:
    assert customer.post(FOX.encode("utf-8-sig")).status == 200


PROMPTS = {
    "emoji": "A 🦊 and 👩‍👩‍👧‍👦 under a 🏳️‍🌈",
    "right to left": "ثعلب أحمر in שלג \u202e reversed \u202c",
    "control characters": "A\x01\x02\x1b[31mred\x7f fox\x9f",
    "NUL": "A\x00fox",
    "lines": "A fox\r\n\r\nX-Injected: yes\n\ttail",
    "quotes": """'"`${}%s{0}\\u0041\\" OR 1=1; -- </script>""",
    "outside the basic plane": "\U0001d54f \U0010fffd",
    "not a character": "\ufffe\uffff",
    "combining marks": "Z" + "\u0301" * 200,
    "one character": "x",
    "blank at both ends": "  A fox \n",
    "an unknown directive": "[nothing:here]",
    **{f"4,000 of U+{ord(each):X}": each * 4_000 for each in "xé🦊"},
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_of_any_characters_reaches_the_model_unchanged(
    stack: LocalStack, customer: Customer, prompt: str
) -> None:
    escaped = json.dumps({"prompt": prompt}).encode()
    verbatim = json.dumps({"prompt": prompt}, ensure_ascii=False).encode()
    answers = [customer.post(escaped, TEXT), customer.post(verbatim, BASE64)]
    assert [answer.status for answer in answers] == [200, 200], answers
    assert prompts_sent(stack)[-2:] == [prompt, prompt]
    assert (customer.balance(), len(customer.stored())) == (90, 2)


# 400


WITHOUT_PROMPT = [
    *(b"{}", b'{"aspectRatio": "16:9"}', b'{"Prompt": "A fox"}', b'{"prompt": 5}'),
    *(b'{"prompt": 1.5}', b'{"prompt": null}', b'{"prompt": ["A fox"]}', b'{"prompt": []}'),
    *(b'{"prompt": {"text": "A fox"}}', b'{"prompt": true}', b'{"prompt": false}'),
    *(b'{"prompt": ""}', b'{"prompt": "   "}', rb'{"prompt": "\t\r\n \u000b\f"}'),
    rb'{"prompt": "\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"}',
    *(b'{"prompt": " ", "aspectRatio": "16:9"}', b'{"prompt": "' + b" " * 5_000 + b'"}'),
    *(b'{"prompt": ' + b"9" * 4_000 + b"}", b'{"prompt": 1e999}'),
    b'{"prompt": "A fox", "prompt": 5}',
    # Characters of which none shows: joiners, fillers, a soft hyphen, an empty braille pattern.
    *(json.dumps({"prompt": each}).encode() for each in "\u200b\u2060\u00ad\u3164\u2800\u115f"),
    json.dumps({"prompt": "\0\u034f\ufe0f\u200d \u180e\uffa0\U000e0041\x1c\x1f"}).encode(),
]


@BODY_FORMS
@pytest.mark.parametrize("body", WITHOUT_PROMPT, ids=lambda body: repr(body[:40]))
def test_a_request_without_a_prompt_is_refused_in_the_words_of_the_reference(
    visitor: Customer, body: bytes, form: str
) -> None:
    answer = visitor.post(body, form)
    assert (answer.status, answer.json()) == (400, PROMPT_MISSING)
    assert visitor.balance() == 100


WRONG_RATIOS: list[object] = [
    *("7:5", "square", " 16:9 ", "16:09", "16/9", "\uff11:\uff11", "1:1\n", "", 1, 1.78, True),
    *(["1:1"], {"width": 1, "height": 1}),
]


@BODY_FORMS
@pytest.mark.parametrize("ratio", WRONG_RATIOS, ids=ascii)
def test_a_ratio_outside_the_ten_is_refused_and_the_ten_are_named(
    visitor: Customer, ratio: object, form: str
) -> None:
    raw = json.dumps({"prompt": "A fox", "aspectRatio": ratio}).encode()
    answer = visitor.post(raw, form)
    assert_bad_request(answer, "aspectRatio")
    assert re.findall(r"\d+:\d+", answer.json()["error"]) == list(RATIOS)
    assert visitor.balance() == 100


FOX = '{"prompt": "A fox"}'
# By a word that the answer must contain.
UNREADABLE = {
    "JSON": [
        *(b" \n", b"fox", b"prompt=A+fox", b'{"prompt": "A fox"', b'{"prompt": "A fox"} {}'),
        *(b"{'prompt': 'A fox'}", b'{"prompt": "A fox",}', b'{"prompt": "A fox"} // please'),
        *(b'{"prompt": "A\nfox"}', b'{"prompt": "A fox"}\x00', b'{"prompt": NaN}'),
        *(b'{"prompt": "A fox", "seed": NaN}', b'{"prompt": "A fox", "seed": -Infinity}'),
    ],
    "object": [b'[{"prompt": "A fox"}]', b'"A fox"', b"5", b"null", b"true"],
    "UTF-8": [
        *('{"prompt": "Füchse"}'.encode("latin-1"), FOX.encode("utf-16"), FOX.encode("utf-32")),
        # An overlong encoding, an encoded surrogate, gzip.
        *(b'{"prompt": "A \xc0\xaf fox"}', b'{"prompt": "A \xed\xa0\x80 fox"}'),
        b"\x1f\x8b\x08\x00" + zlib.compress(FOX.encode()),
    ],
    "4000": [f'{{"prompt": "{each * 4_001}"}}'.encode() for each in "xé🦊"],
    "": [
        *(b"", FOX.encode("utf-16-le")),
        # RFC 8259 allows a reader to limit the digits of a number.
        *(b'{"prompt": ' + HUGE + b"}", b'{"prompt": "A fox", "seed": ' + HUGE + b"}"),
        *(b'{"prompt": "A \\ud800 fox"}', b'{"prompt": "A \\udc00 fox"}'),
        *(b'{"prompt": "\\udd8a\\ud83e"}', b"[" * NESTING, b'{"a":' * (NESTING // 5), DEEP),
        *(b'{"prompt": ' + DEEP + b"}", b'{"prompt": "A fox", "a": ' + DEEP + b"}"),
    ],
}


@BODY_FORMS
@pytest.mark.parametrize(
    ("word", "body"),
    [(word, body) for word, some in UNREADABLE.items() for body in some],
    ids=lambda value: ascii(value[:30]),
)
def test_an_unreadable_body_is_refused_with_one_sentence(
    visitor: Customer, body: bytes, word: str, form: str
) -> None:
    answer = visitor.post(body, form)
    assert_bad_request(answer, word)
    assert visitor.balance() == 100


# Events that no gateway on a socket would make: body, whether it is base64, Idempotency-Key, and a
# word of the answer.
BAD_EVENTS: dict[str, tuple[str | None, bool, str | None, str]] = {
    "foreign characters": ("*#*eyJwcm9tcHQiOiAiQSBmb3gifQ==", True, None, "base64"),
    "padding missing": (base64.b64encode(FOX.encode()).decode().rstrip("="), True, None, "base64"),
    "padding in the middle": ("eyJw=cm9tcHQiOiAiQSBmb3gifQ==", True, None, "base64"),
    "one character": ("e", True, None, "base64"),
    "base64 that is not ASCII": ("eyJwcm9tcHQiOiAiQSBmb3gifQ==é", True, None, "base64"),
    "plain JSON for base64": (FOX, True, None, "base64"),
    **{f"no body, base64 {flag}": (None, flag, None, "") for flag in (True, False)},
    **{f"an empty body, base64 {flag}": ("", flag, None, "") for flag in (True, False)},
    "half a surrogate pair": ('{"prompt": "A \ud800 fox"}', False, None, ""),
    **{
        f"the key {key!a}": (FOX, False, key, "Idempotency-Key")
        for key in ("a\x00b", "a\nb", "a\x7fb", "\u20ac", "\x1f", "a\r\n", "")
    },
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_a_malformed_event_is_a_bad_request(visitor: Customer, name: str) -> None:
    body, is_base64, key, word = BAD_EVENTS[name]
    headers = {} if key is None else {"idempotency-key": key}
    assert_bad_request(visitor.invoke(body, is_base64=is_base64, headers=headers), word)
    assert visitor.balance() == 100


def test_an_event_without_the_field_body_is_a_bad_request(visitor: Customer) -> None:
    headers = {"authorization": f"Bearer {visitor.key}"}
    event = event_of(None, is_base64=False, headers=headers)
    del event["body"]
    assert_bad_request(invoke(visitor.stack, event))


def test_the_last_of_two_equal_fields_counts(stack: LocalStack, customer: Customer) -> None:
    answer = customer.post(b'{"prompt": "A cat", "prompt": "A fox of the second field"}')
    assert answer.status == 200
    assert prompts_sent(stack)[-1] == "A fox of the second field"


def test_a_refused_request_does_not_reach_the_model(stack: LocalStack, visitor: Customer) -> None:
    visitor.generate("Refused for its ratio", aspectRatio="7:5")
    visitor.generate("Refused for its key", idempotency_key="k" * 256)
    Customer(stack, 4).generate("Refused for its balance")
    assert not [prompt for prompt in prompts_sent(stack) if prompt.startswith("Refused")]


# 401

DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
SECRET_OF_A_KEY = "S3cretPartOfAKeyWith43CharactersInBase62xyz"


def key_of(organisation: str, secret: str = SECRET_OF_A_KEY) -> str:
    """A key in the published format, with a checksum that is right."""
    assert len(secret) == 43
    head = f"gg_{organisation}_{secret}"
    number = zlib.crc32(head.encode())
    check = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        check = DIGITS[digit] + check
    return head + check


def register(stack: LocalStack, **fields: object) -> Customer:
    """A customer with 100 credits whose one key is ``key_of`` it, written by hand."""
    customer = Customer(stack)
    customer.key = key_of(customer.organisation)
    entry = {
        "id": "0123456789abcdef",
        "sha256": hashlib.sha256(customer.key.encode()).hexdigest(),
        "createdAt": "2026-01-01T00:00:00Z",
        "expiresAt": None,
        "revokedAt": None,
    }
    stack.aws.client("secretsmanager").put_secret_value(
        SecretId=os.environ["ORG_SECRET_PREFIX"] + customer.organisation,
        SecretString=json.dumps({"keys": [entry | fields]}),
    )
    return customer


def bearer(value: str) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {value}")]


def wrong_credentials(stack: LocalStack, real: Customer) -> list[list[tuple[str, str]]]:
    key, organisation = real.key, real.organisation
    other_last = "0" if key[-1] != "0" else "1"
    in_basic = base64.b64encode(f"{organisation}:{key}".encode()).decode()
    secret = key.removeprefix(f"gg_{organisation}_")[:43]
    past = "2026-02-01T00:00:00Z"
    values = ["", "Bearer", key, f"Token {key}", f"Basic {in_basic}", f"Bearer{key}"]
    keys = [
        *(f"{key} {key}", f'"{key}"', f"key={key}", "gg_", "_" * 60, key[:-1], key + "0"),
        *(key[:-1] + other_last, key.upper(), "sk-proj-" + "0123456789abcdef" * 3),
        *("gg_\xe9\xff_" + "x" * 49, "gg_x_" + "x" * 8_000),
        # Never issued, of an unknown organisation, and of another one.
        *(key_of(organisation), key_of("unknown"), key_of(stack.organisation, secret)),
        *(key_of("../" + organisation), key_of(organisation.upper())),
        *(register(stack, revokedAt=past).key, register(stack, expiresAt=past).key),
    ]
    return [
        *([], bearer(key) + bearer(key), [("X-Api-Key", key)]),
        [("Cookie", f"Authorization=Bearer {key}")],
        *([("Authorization", value)] for value in values),
        *map(bearer, keys),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", GENERATE, b'{"prompt": "A fox"}'),
        ("POST", GENERATE, b'{"prompt": '),
        ("POST", GENERATE, b"x" * (BODY_LIMIT + 1)),
        ("GET", CREDITS, None),
        ("GET", USAGE, None),
    ],
    ids=["a good body", "a bad body", "a body over the limit", "the balance", "the usage"],
)
def test_any_wrong_credentials_get_the_same_401(
    stack: LocalStack, customer: Customer, method: str, path: str, body: bytes | None
) -> None:
    for headers in wrong_credentials(stack, customer):
        answer = fetch(stack.url + path, method, body, [("Content-Type", TEXT), *headers])
        assert (answer.status, answer.json()) == (401, NOT_AUTHENTICATED), headers
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-error-code"] == "unauthorized"
        assert answer.headers["x-request-id"]
        if path == GENERATE:
            assert_well_formed(answer)
    assert (customer.balance(), customer.stored()) == (100, [])


def test_a_key_in_the_query_string_is_ignored(stack: LocalStack, customer: Customer) -> None:
    for name in ("key", "api_key", "access_token", "authorization"):
        url = f"{stack.url}{GENERATE}?{name}={customer.key}"
        assert fetch(url, "POST", b'{"prompt": "A fox"}').status == 401


def test_a_key_of_the_published_format_is_accepted(stack: LocalStack) -> None:
    customer = register(stack, expiresAt="2999-01-01T00:00:00Z")
    assert customer.generate().status == 200
    assert customer.balance() == 95


# 402


def test_a_key_over_its_monthly_budget_is_a_402_and_other_keys_go_on(stack: LocalStack) -> None:
    limited = register(stack, name="ci", monthlyBudget=9)
    paid = limited.generate(idempotency_key="order-1")
    asked = [limited.generate(), limited.accept(), limited.generate("A fox [fail:safety]")]

    for answer in asked:
        assert (answer.status, answer.headers["x-error-code"]) == (402, "key_budget_exhausted")
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json() == {
            "error": "The monthly budget of this API key is used up",
            "creditsRequired": 5,
            "creditsRemaining": 4,
        }
    assert_replayed(limited.generate(idempotency_key="order-1"), paid)
    assert limited.balance() == 95
    # A budget of nothing leaves a key that only reads.
    assert register(stack, monthlyBudget=0).generate().status == 402
    (used,) = limited.get(USAGE).json()["keys"]
    assert (used["name"], used["credits"], used["images"], used["monthlyBudget"]) == ("ci", 5, 1, 9)


@pytest.mark.parametrize("credits_", [0, 4])
def test_a_balance_below_the_price_is_a_402_and_five_credits_buy_an_image(
    stack: LocalStack, credits_: int
) -> None:
    customer = Customer(stack, credits_)

    answer = customer.generate(idempotency_key="order-1")

    assert answer.status == 402
    assert answer.headers["x-error-code"] == "insufficient_credits"
    assert answer.json() == {
        "error": "Insufficient credits",
        "creditsRequired": 5,
        "creditsRemaining": credits_,
    }
    assert (customer.balance(), customer.stored()) == (credits_, [])
    customer.change_row("ACCOUNT", "ADD credits :value", 5 - credits_)
    assert customer.generate(idempotency_key="order-1").status == 200
    assert customer.generate().json()["creditsRemaining"] == 0
    assert (customer.balance(), len(customer.stored())) == (0, 1)


# 413


def padded(size: int, filling: str = "x") -> bytes:
    """A good request of ``size`` bytes, most of them in a field that is ignored."""
    start, end = b'{"prompt": "A fox", "model": "', b'"}'
    room = size - len(start) - len(end)
    fill = filling.encode()
    return start + fill * (room // len(fill)) + b"x" * (room % len(fill)) + end


@BODY_FORMS
def test_a_body_of_exactly_64_kib_is_accepted(customer: Customer, form: str) -> None:
    body = padded(BODY_LIMIT)
    assert len(body) == BODY_LIMIT
    assert customer.post(body, form).status == 200


TOO_LARGE = {
    "one byte more": padded(BODY_LIMIT + 1),
    "more bytes, fewer characters": padded(BODY_LIMIT + 1, "é"),
    # In base64 this is just below the 6 MB that Lambda takes.
    "much more": padded(4 * 1024 * 1024),
    "not JSON": b"x" * (BODY_LIMIT + 1),
    "not UTF-8": b"\xff" * (BODY_LIMIT + 1),
    "nothing but blanks": b" " * (BODY_LIMIT + 1),
}


@BODY_FORMS
@pytest.mark.parametrize("body", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_body_over_64_kib_is_refused_before_it_is_parsed(
    visitor: Customer, body: bytes, form: str
) -> None:
    answer = visitor.post(body, form)
    assert answer.status == 413, answer
    assert set(answer.json()) == {"error"}
    assert SENTENCE.fullmatch(answer.json()["error"]), answer
    assert answer.headers["x-error-code"] == "body_too_large"
    assert visitor.balance() == 100


# What every answer carries


EXPOSED = {
    *("idempotent-replayed", "location", "preference-applied", "ratelimit", "ratelimit-policy"),
    *("retry-after", "x-credits-charged", "x-error-code", "x-request-id"),
}


def test_every_answer_has_its_own_request_id_and_any_origin_may_read_it(
    stack: LocalStack, customer: Customer
) -> None:
    origin = {"Origin": "https://shop.example"}
    authorization = {"Authorization": f"Bearer {customer.key}"} | origin
    answers = [
        customer.post(b'{"prompt": "A fox"}', headers=origin),
        customer.post(b"{}", headers=origin),
        customer.post(b'{"prompt": "[fail:safety]"}', headers=origin),
        customer.post(b"x" * (BODY_LIMIT + 1), headers=origin),
        Customer(stack, 0).post(b'{"prompt": "A fox"}', headers=origin),
        fetch(stack.url + GENERATE, "POST", b"{}", origin),
        fetch(stack.url + CREDITS, headers=authorization),
        fetch(stack.url + CREDITS, headers=origin),
        fetch(stack.url + "/healthz", headers=origin),
    ]

    statuses = [answer.status for answer in answers]
    assert statuses == [200, 400, 500, 413, 402, 401, 200, 401, 200]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    assert [a.status for a in answers if "x-error-code" not in a.headers] == [200, 200, 200]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
        exposed = answer.headers["access-control-expose-headers"].lower().split(",")
        assert {name.strip() for name in exposed} >= EXPOSED


def test_no_path_redirects(stack: LocalStack, customer: Customer) -> None:
    headers = {"Authorization": f"Bearer {customer.key}"}
    for route in (GENERATE, CREDITS, "/healthz"):
        for path in (route, route + "/", "/" + route, route.upper(), route.replace("/v1", "")):
            for method in ("GET", "POST", "HEAD", "PUT", "DELETE"):
                answer = fetch(stack.url + path, method, b"" if method == "POST" else None, headers)
                assert not 300 <= answer.status < 400, (method, path)
                assert "location" not in answer.headers


@pytest.mark.parametrize(("path", "method"), [(GENERATE, "POST"), (CREDITS, "GET")])
def test_a_preflight_request_needs_no_key(stack: LocalStack, path: str, method: str) -> None:
    asked = "authorization,content-type,idempotency-key,prefer,x-stainless-lang,user-agent"
    headers = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": asked,
    }

    answer = fetch(stack.url + path, "OPTIONS", headers=headers)

    assert answer.status in {200, 204}
    assert answer.headers["access-control-allow-origin"] == "*"
    assert method in answer.headers["access-control-allow-methods"].split(",")
    allowed = answer.headers["access-control-allow-headers"].lower().split(",")
    assert set(allowed) >= set(asked.split(","))
    assert "access-control-allow-credentials" not in answer.headers


# Idempotency-Key


def test_a_repeated_request_gets_the_same_image_at_no_charge(
    stack: LocalStack, customer: Customer
) -> None:
    first = customer.generate("Asked for twice", aspectRatio="16:9", idempotency_key="order-1")
    again = customer.generate("Asked for twice", aspectRatio="16:9", idempotency_key="order-1")
    assert "idempotent-replayed" not in first.headers
    assert_replayed(again, first)
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert (customer.balance(), len(customer.stored())) == (95, 1)
    assert prompts_sent(stack).count("Asked for twice") == 1


def test_without_a_key_a_repeated_request_is_a_new_one(customer: Customer) -> None:
    assert customer.generate().json()["imageUrl"] != customer.generate().json()["imageUrl"]
    assert (customer.balance(), len(customer.stored())) == (90, 2)


SAME_REQUEST = {
    "another order": b'{"aspectRatio": "1:1", "prompt": "A fox"}',
    "blanks": b' {\n\t"prompt"  :  "A fox" ,\r\n "aspectRatio":"1:1" }\n',
    "escapes": b'{"prompt": "\\u0041 \\u0066ox", "aspectRatio": "1:1"}',
    "an ignored field": b'{"prompt": "A fox", "aspectRatio": "1:1", "model": "x"}',
    "no ratio": b'{"prompt": "A fox"}',
    "a null ratio": b'{"prompt": "A fox", "aspectRatio": null}',
}


def test_equivalent_bodies_count_as_the_same_request(customer: Customer) -> None:
    first = customer.generate("A fox", aspectRatio="1:1", idempotency_key="order-1")
    for name, body in SAME_REQUEST.items():
        for form in (TEXT, BASE64):
            again = customer.post(body, form, {"Idempotency-Key": "order-1"})
            assert again.status == 200, name
            assert_replayed(again, first)
    assert (customer.balance(), len(customer.stored())) == (95, 1)


OTHER_REQUEST: dict[str, dict[str, object]] = {
    "another prompt": {"prompt": "A cat", "aspectRatio": "16:9"},
    "another case": {"prompt": "a fox", "aspectRatio": "16:9"},
    "a blank more": {"prompt": "A fox ", "aspectRatio": "16:9"},
    "another ratio": {"prompt": "A fox", "aspectRatio": "9:16"},
    "no ratio": {"prompt": "A fox"},
}


def test_an_idempotency_key_reused_with_another_body_is_refused(customer: Customer) -> None:
    first = customer.generate("A fox", aspectRatio="16:9", idempotency_key="order-1")
    for name, body in OTHER_REQUEST.items():
        raw = json.dumps(body).encode()
        answer = customer.post(raw, headers={"Idempotency-Key": "order-1"})
        assert answer.status == 422, (name, answer)
        assert set(answer.json()) == {"error"}
        assert answer.headers["x-error-code"] == "idempotency_key_reused"
    again = customer.generate("A fox", aspectRatio="16:9", idempotency_key="order-1")
    assert_replayed(again, first)
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_an_idempotency_key_in_flight_is_a_409_with_retry_after(
    stack: LocalStack, customer: Customer
) -> None:
    prompt = f"A fox of {customer.organisation}"
    with blocked_model(stack, prompt) as released, ThreadPoolExecutor(1) as pool:
        first = pool.submit(customer.generate, prompt, idempotency_key="order-1")
        wait_for_the_model(stack, prompt)
        meanwhile = customer.generate(prompt, idempotency_key="order-1")
        balance_meanwhile = customer.balance()
        released.set()

    assert meanwhile.status == 409
    assert set(meanwhile.json()) == {"error"}
    assert meanwhile.headers["x-error-code"] == "generation_in_flight"
    assert positive(meanwhile.headers["retry-after"]) <= 30
    assert balance_meanwhile == 95
    assert first.result().status == 200
    assert_replayed(customer.generate(prompt, idempotency_key="order-1"), first.result())
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_after_a_refund_the_idempotency_key_is_free(stack: LocalStack, customer: Customer) -> None:
    with model(stack, lambda _: model_says({}, "IMAGE_SAFETY")):
        failed = [customer.generate(idempotency_key="order-1") for _ in range(2)]
    assert [answer.status for answer in failed] == [500, 500]
    assert customer.balance() == 100
    retried = customer.generate(idempotency_key="order-1")
    assert retried.status == 200
    assert retried.headers["x-credits-charged"] == "5"
    assert_replayed(customer.generate(idempotency_key="order-1"), retried)
    assert (customer.balance(), len(customer.stored())) == (95, 1)


def test_a_refused_request_leaves_its_idempotency_key_free(customer: Customer) -> None:
    assert customer.generate("", idempotency_key="order-1").status == 400
    assert customer.generate("A fox", idempotency_key="order-1").status == 200


PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))


@pytest.mark.parametrize(
    "key", ["k", "k" * 255, PRINTABLE, "two words"], ids=["1", "255", "all printable", "a blank"]
)
def test_an_idempotency_key_is_1_to_255_printable_ascii_characters(
    customer: Customer, key: str
) -> None:
    first = customer.generate(idempotency_key=key)
    assert first.status == 200, first
    assert_replayed(customer.generate(idempotency_key=key), first)
    other = customer.generate(idempotency_key=key.swapcase())
    assert other.headers["x-credits-charged"] == "5"


@pytest.mark.parametrize(
    "key",
    ["", "   ", "k" * 256, "k" * 5_000, "caf\xe9", "a\tb", "\xff"],
    ids=["empty", "blank", "256", "5,000", "not ASCII", "a tab", "a byte"],
)
def test_any_other_idempotency_key_is_a_bad_request(visitor: Customer, key: str) -> None:
    answer = visitor.post(b'{"prompt": "A fox"}', headers={"Idempotency-Key": key})
    assert_bad_request(answer, "Idempotency-Key")
    assert visitor.balance() == 100


# 403


def test_a_suspended_organisation_is_refused_without_a_charge_and_can_still_read(
    stack: LocalStack,
) -> None:
    customer = Customer(stack)
    paid = customer.generate(idempotency_key="paid")
    customer.change_row("ACCOUNT", "SET suspendedAt = :value", 1)

    for refused in (customer.generate(), customer.accept()):
        assert (refused.status, refused.json()) == (
            403,
            {"error": "This organisation is suspended"},
        )
        assert refused.headers["x-error-code"] == "organisation_suspended"
        assert refused.headers["x-should-retry"] == "false"
        assert refused.headers["x-credits-charged"] == "0"
        assert "retry-after" not in refused.headers
    assert_replayed(customer.generate(idempotency_key="paid"), paid)
    assert (customer.balance(), len(customer.history())) == (95, 1)


# 429


def test_the_account_sets_the_limit_of_a_minute_and_a_new_minute_resets_it(
    stack: LocalStack,
) -> None:
    def ask_three_times() -> tuple[Customer, list[Reply]]:
        slow = Customer(stack)
        slow.change_row("ACCOUNT", "SET rateLimit = :value", 2)
        return slow, [slow.generate() for _ in range(3)]

    slow, answers = within_one_minute(ask_three_times)

    assert [answer.status for answer in answers] == [200, 200, 429]
    assert_rate_limited(answers[2], 2)
    assert Customer(stack).generate().status == 200
    slow.change_row("ACCOUNT", "SET rateWindow = rateWindow - :value", 60)
    assert slow.generate().status == 200
    assert (slow.balance(), len(slow.stored())) == (85, 3)


def test_a_refused_or_repeated_request_does_not_count_against_the_limit(stack: LocalStack) -> None:
    def ask() -> list[Reply]:
        slow = Customer(stack)
        slow.change_row("ACCOUNT", "SET rateLimit = :value", 2)
        return [
            slow.generate("", idempotency_key="order-1"),
            slow.generate(aspectRatio="7:5"),
            slow.generate(idempotency_key="order-1"),
            slow.generate(idempotency_key="order-1"),
            slow.generate(),
            slow.generate(),
        ]

    answers = within_one_minute(ask)

    assert [answer.status for answer in answers] == [400, 400, 200, 200, 200, 429]


# 500


def assert_refunded(customer: Customer, answer: Reply, message: str) -> None:
    assert answer.status == 500, answer
    expected = {"error": "Failed to generate image", "message": message}
    if answer.headers["x-error-code"] == "model_timeout":
        expected["hint"] = "Send the header `Prefer: respond-async` to give a slow model minutes"
    assert answer.json() == expected
    assert (customer.balance(), customer.stored()) == (100, [])


@pytest.mark.parametrize(("failure", "message"), MESSAGES.items())
def test_a_failure_has_a_published_message_and_costs_nothing(
    customer: Customer, failure: str, message: str
) -> None:
    answer = customer.generate(f"A fox [fail:{failure}]")
    assert_refunded(customer, answer, message)
    assert ("retry-after" in answer.headers) == (message == "The image model is overloaded")
    if "retry-after" in answer.headers:
        assert positive(answer.headers["retry-after"]) <= 3600


def test_an_image_that_is_not_stored_costs_nothing(stack: LocalStack, customer: Customer) -> None:
    with bucket_refuses(stack, "PutObject"):
        answer = customer.generate()
    assert_refunded(customer, answer, "The image could not be stored")
    assert "retry-after" not in answer.headers


# Secrecy: the service runs in its own process, whose whole output is its log.

PROMPT = "a vermilion-prompt-7f3a with a hat"
GEMINI_KEY = "AIzaTheGeminiKey5c1e9b7d2f"
UPSTREAM = "upstream-words-91d4"
SECRET_IN_A_KEY = "NotAValidKeyButSecretAllTheSame4b8e"
CONTROL = "this line proves that DEBUG is on"
SCRIPTED_STATUSES = (400, 401, 403, 404, 409, 418, 429, 500, 502, 503, 504)
SCRIPT = re.compile(r"\[script:([^\]]+)\]")


def scripted_answers() -> dict[str, ModelResponse]:
    """Answers of the model with ``UPSTREAM`` wherever a server can put text."""
    headers = {"Content-Type": "application/json", "X-Debug": UPSTREAM, "Server": UPSTREAM}
    answers = {}
    for status in SCRIPTED_STATUSES:
        detail = {"@type": UPSTREAM, "reason": UPSTREAM, "metadata": {"key": UPSTREAM}}
        error = {"code": status, "message": UPSTREAM, "status": UPSTREAM, "details": [detail]}
        answers[str(status)] = ModelResponse(status, json.dumps({"error": error}).encode(), headers)
    picture = {"inlineData": {"mimeType": UPSTREAM, "data": base64_of(UPSTREAM)}}
    broken = {"inlineData": {"mimeType": "image/png", "data": f"*{UPSTREAM}"}}
    block = {"blockReason": UPSTREAM, "blockReasonMessage": UPSTREAM}
    moved = {"Location": f"http://127.0.0.1:9/{UPSTREAM}"}
    return answers | {
        "a page": ModelResponse(500, UPSTREAM.encode(), {"Content-Type": "text/html"}),
        "a redirect": ModelResponse(302, UPSTREAM.encode(), moved),
        "a page of success": ModelResponse(200, UPSTREAM.encode()),
        "a sentence": model_says({"parts": [{"text": UPSTREAM}]}, modelVersion=UPSTREAM),
        "a reason": model_says({}, UPSTREAM),
        "a block": ModelResponse(200, json.dumps({"promptFeedback": block}).encode()),
        "words for a picture": model_says({"parts": [picture]}),
        "bad base64": model_says({"parts": [broken]}),
        "another schema": ModelResponse(200, json.dumps({"candidates": UPSTREAM}).encode()),
        "a status line": ModelResponse(599, json.dumps({"error": UPSTREAM}).encode()),
    }


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def answer_by_script(request: ModelRequest) -> ModelResponse | None:
    named = SCRIPT.search(prompt_of(request))
    return scripted_answers()[named[1]] if named else None


def refused_requests(customer: Customer) -> list[Reply]:
    """Requests of a client that puts secrets in the wrong places."""
    key = {"Authorization": f"Bearer gg_unknown_{SECRET_IN_A_KEY}"}
    return [
        customer.post(json.dumps({"prompt": PROMPT}).encode(), headers=key),
        customer.post(json.dumps({"prompt": PROMPT, "aspectRatio": PROMPT}).encode()),
        customer.post(json.dumps({"prompt": PROMPT * 200}).encode()),
        customer.post(json.dumps({"prompt": {PROMPT: PROMPT}}).encode()),
        customer.post(b'{"prompt": "' + PROMPT.encode()),
        customer.post(b'{"prompt": "' + PROMPT.encode() + b'\\ud800"}'),
        customer.post(PROMPT.encode() * 4_000),
        customer.post(b"{}", headers={"Idempotency-Key": PROMPT * 20}),
        customer.invoke("*" + PROMPT, is_base64=True),
    ]


class EverythingFormatter(logging.Formatter):
    """The message, the traceback and all that was attached to the record."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{super().format(record)} {vars(record)!r}"


def serve_with_debug_on(report: Path) -> None:
    """Runs in the process of ``debug_run``: succeeds and fails in every way, with DEBUG on.

    The clients are built again once the log is open, so that their construction is logged too.
    """
    logging.getLogger().setLevel(logging.DEBUG)
    for name in list(logging.root.manager.loggerDict):
        if "." not in name:
            logging.getLogger(name).setLevel(logging.DEBUG)
    # The embedded AWS is no part of the service.
    logging.getLogger("moto").setLevel(logging.WARNING)
    with GeminiStandIn(fixed_picture=True) as google:
        google.answer_with(answer_by_script)
        os.environ["GOOGLE_GEMINI_BASE_URL"] = google.url
        with LocalStack(gemini_api_key=GEMINI_KEY) as running:
            customers = [Customer(running, 1_000) for _ in range(3)]
            log = logging.StreamHandler()
            log.setFormatter(EverythingFormatter())
            logging.getLogger().addHandler(log)
            logging.debug(CONTROL)  # noqa: LOG015 - it is the root logger that is to be shown
            put = running.aws.client("secretsmanager").put_secret_value
            put(SecretId=os.environ["GEMINI_API_KEY_SECRET"], SecretString=GEMINI_KEY)
            drop_dependencies()
            at_once = sorted(FAILURES.keys() - LONG)
            prompts = [PROMPT, *(f"{PROMPT} [fail:{name}]" for name in at_once)]
            scripted = [f"{PROMPT} [script:{name}]" for name in scripted_answers()]
            with ThreadPoolExecutor(6) as pool:
                answers = list(pool.map(customers[0].generate, prompts))
                answers += pool.map(customers[1].generate, scripted)
            answers += refused_requests(customers[2])
            logging.getLogger().removeHandler(log)
        received = len(google.requests)
    seen = [(answer.status, dict(answer.headers), answer.body.decode()) for answer in answers]
    keys = [customer.key for customer in customers]
    report.write_text(json.dumps({"answers": seen, "keys": keys, "asked": received}), "utf-8")


@dataclass(frozen=True)
class DebugRun:
    """Everything that a service with DEBUG on sent to its log and to its customers."""

    log: str
    answers: list[Reply]
    secrets: dict[str, str]


@pytest.fixture(scope="module")
def debug_run(debug_process: tuple["subprocess.Popen[bytes]", Path]) -> DebugRun:
    process, directory = debug_process
    status = process.wait(timeout=120)
    log = (directory / "log").read_text("utf-8")
    assert status == 0, log
    document = json.loads((directory / "report.json").read_text("utf-8"))
    assert document["asked"] >= len(FAILURES) - len(LONG) + len(scripted_answers())
    answers = [Reply(status, head, body.encode()) for status, head, body in document["answers"]]
    secrets = {"prompt": "vermilion-prompt-7f3a", "upstream": UPSTREAM, "Gemini key": GEMINI_KEY}
    secrets |= {f"API key {n}": key[-49:] for n, key in enumerate(document["keys"])}
    return DebugRun(log, answers, secrets | {"unknown API key": SECRET_IN_A_KEY})


def test_no_prompt_key_or_upstream_text_reaches_the_log(debug_run: DebugRun) -> None:
    assert CONTROL in debug_run.log
    for line in debug_run.log.splitlines():
        for name, secret in debug_run.secrets.items():
            forms = (secret, base64_of(secret), secret.encode().hex())
            assert not any(form in line for form in forms), (name, line[:2_000])


def test_no_prompt_key_or_upstream_text_reaches_a_customer(debug_run: DebugRun) -> None:
    for answer in debug_run.answers:
        text = answer.body.decode() + repr(answer.headers)
        for name, secret in debug_run.secrets.items():
            assert secret not in text, (name, answer)
        for trace in ("Traceback", 'File "', "arn:aws", "botocore", "google.genai"):
            assert trace not in text, answer


def test_every_failure_is_logged_by_code_and_request_id_and_has_a_published_message(
    debug_run: DebugRun,
) -> None:
    published = {*MESSAGES.values(), "The image could not be stored"}
    lines = debug_run.log.splitlines()
    failed = [answer for answer in debug_run.answers if answer.status != 200]
    assert len(failed) > 60
    for answer in failed:
        request_id, code = answer.headers["x-request-id"], answer.headers["x-error-code"]
        assert [line for line in lines if request_id in line and f'"{code}"' in line], answer
        if answer.status == 500:
            assert set(answer.json()) - {"hint"} == {"error", "message"}
            assert answer.json()["message"] in published
