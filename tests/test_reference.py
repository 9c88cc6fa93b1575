"""What the reference says, and how a document is sent: compressed, and once."""

import re
from typing import Any

import pytest

from handlers.documents import as_document
from handlers.http import text
from lib import errors
from lib.http.gateway import GATEWAY_ANSWERS, REPEAT_WITH_KEY
from lib.http.guide import CLIENT_TIMEOUT_S, guide, typical_time
from lib.http.openapi import openapi
from lib.http.outcomes import EXPLANATIONS, outcomes
from lib.http.reference import reference
from lib.http.request import VISIBLE_PATTERN, parse_generate_request
from lib.settings import DEFAULT_MODEL

HELP = "https://acme.example/help"


def answer_to(headers: dict[str, str]) -> dict[str, Any]:
    event = {"headers": headers, "requestContext": {"requestId": "one"}}
    return as_document(event, text(200, "a document", "one", {"Content-Type": "text/plain"}))


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        *(("gzip", True), ("GZIP", True), ("br, gzip;q=0.5", True), ("*", True), ("*;q=0.1", True)),
        *(("", False), ("identity", False), ("gzip;q=0", False), ("gzip; q=0.000", False)),
        *(("*, gzip;q=0", False), ("*;q=0", False), ("gzipped", False), ("deflate", False)),
    ],
)
def test_only_a_client_that_says_so_gets_gzip(accepted: str, *, compressed: bool) -> None:
    answer = answer_to({"accept-encoding": accepted})
    assert answer["isBase64Encoded"] is compressed
    assert answer["headers"].get("Content-Encoding") == ("gzip" if compressed else None)


@pytest.mark.parametrize("form", ["{}", "*", 'W/"x", {}', "{} , W/,", "{strong}"])
def test_a_version_is_compared_weakly_and_in_a_list(form: str) -> None:
    tag = answer_to({})["headers"]["ETag"]
    named = form.replace("{strong}", tag.removeprefix("W/")).replace("{}", tag)
    assert answer_to({"if-none-match": named})["statusCode"] == 304
    assert answer_to({"if-none-match": named.replace('"', "")})["statusCode"] in {200, 304}
    assert answer_to({"if-none-match": tag[:-3]})["statusCode"] == 200


# The reference


def test_each_error_says_when_it_happens_in_words_of_its_own() -> None:
    rows = [each for each in outcomes(openapi("https://here")) if re.fullmatch(r"\w+", each.code)]
    shared = [each for each in rows if each.sentence == errors.ModelUnavailable.message]

    assert len(shared) >= 4
    assert len({each.when for each in rows}) == len({each.code for each in rows}) == len(rows)
    assert all(each.when.endswith(".") for each in rows)


def test_an_error_that_carries_retry_after_says_so() -> None:
    instances = {
        each.code: each
        for each in (errors.RateLimited(60, 1), errors.Busy(1), errors.GenerationInFlight(1))
    }
    for code in (*instances, "model_overloaded", "generation_reserved", "outcome_pending"):
        assert "`Retry-After`" in EXPLANATIONS[code].wait, code
    assert not errors.StorageFailed().headers().get("Retry-After")


def test_what_the_gateway_answers_costs_nothing_only_if_the_service_never_saw_it() -> None:
    free = {each.status for each in GATEWAY_ANSWERS if each.is_free}
    assert free == {413, 429}
    assert all(REPEAT_WITH_KEY in each.costs for each in GATEWAY_ANSWERS if not each.is_free)


def test_the_address_of_help_is_in_openapi_and_in_the_reference_and_only_if_it_is_set() -> None:
    with_help, without = (openapi("https://here", url) for url in (HELP, None))
    assert with_help["info"]["contact"]["url"] == HELP
    assert "url" not in without["info"]["contact"]
    assert HELP in reference(with_help, guide(HELP))
    assert HELP not in reference(without, guide())


def test_a_time_is_named_for_a_model_that_was_measured_and_for_no_other() -> None:
    usual = typical_time(DEFAULT_MODEL)
    assert usual is not None
    assert usual in reference(openapi("https://here"), guide(model=DEFAULT_MODEL))
    assert typical_time("gemini-9-flash-image") is None
    unknown = reference(openapi("https://here"), guide(model="gemini-9-flash-image"))
    assert "usually takes" not in unknown
    assert f"timeout to {CLIENT_TIMEOUT_S} seconds" in unknown


# What a prompt must have


def is_accepted(prompt: str) -> bool:
    try:
        parse_generate_request(f'{{"prompt": "{prompt}"}}'.encode())
    except errors.InvalidRequest:
        return False
    return True


def test_the_pattern_of_a_prompt_agrees_with_the_code() -> None:
    points = [n for n in range(0x10000) if not 0xD800 <= n < 0xE000]
    blank = [n for n in points if not re.search(VISIBLE_PATTERN, chr(n))]

    # Escaped, for some can't be in JSON as they are; all at once, and each among the visible.
    assert not is_accepted("".join(f"\\u{n:04x}" for n in blank))
    assert {*range(0x1C, 0x21), 0x85, 0xA0, 0x200B, 0x2028, 0x3000, 0xFEFF} <= set(blank)
    visible = sorted(set(points) - set(blank))
    assert [n for n in visible[::97] if not is_accepted(f"\\u{n:04x}")] == []
    # The pattern has no code points over U+FFFF, for validators without the flag u; the code has.
    assert re.search(VISIBLE_PATTERN, "\U000e0041")
    assert not is_accepted("\U000e0041")
    assert is_accepted("\U0001f98a")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_another_encoding_of_unicode_is_named(encoding: str) -> None:
    with pytest.raises(errors.InvalidRequest) as refused:
        parse_generate_request('{"prompt": "A fox"}'.encode(encoding))
    assert refused.value.code == "invalid_encoding"
    assert "UTF-16" in refused.value.error
    assert parse_generate_request('{"prompt": "A fox"}'.encode("utf-8-sig")).prompt == "A fox"
