"""The OpenAPI document is valid, describes what is deployed, and matches the responses.

It is served as the docs page and ``/llms.txt`` are: compressed, and once.
"""

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from infra.local.stack import LocalStack
from infra.template import DEFAULT_ROUTE, Template
from lib import errors
from lib.http.contract import OPERATIONS
from lib.http.guide import guide
from lib.http.outcomes import EXPLANATIONS
from lib.settings import DEFAULT_MODEL
from tests.customer import GENERATE, IMAGES, MODELS, fetch, plain_picture
from tests.strict_openapi import strict


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0, throttled=False) as running:
        assert running.stand_in is not None
        running.stand_in.answer_with(plain_picture)
        yield running


@pytest.fixture(scope="module")
def document(stack: LocalStack) -> dict[str, Any]:
    """The document that the running service serves."""
    answer = fetch(f"{stack.url}/openapi.json")
    assert answer.status == 200
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(scope="module")
def strict_document(document: dict[str, Any]) -> dict[str, Any]:
    return strict(document)


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def test_the_document_is_valid_and_names_its_host(
    document: dict[str, Any], stack: LocalStack
) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": stack.url}]
    names = [operation["operationId"] for operation in operations(document)]
    assert len(set(names)) == len(names)


def test_exactly_the_deployed_routes_are_described(document: dict[str, Any]) -> None:
    described = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    }
    deployed = {
        f"{route.method} {route.path}"
        for function in Template.from_file().functions()
        for route in function.routes
        if route != DEFAULT_ROUTE
    }

    assert described == deployed


@pytest.mark.parametrize("form", ["served", "strict"])
def test_every_example_matches_its_schema(document: dict[str, Any], form: str) -> None:
    document = document if form == "served" else strict(document)
    contents = [
        content
        for operation in operations(document)
        for response in operation["responses"].values()
        for content in response.get("content", {}).values()
    ]
    examples = [(each, value) for each in contents for value in each.get("examples", {}).values()]
    assert len(examples) > 20
    for content, example in examples:
        check(document, content["schema"], example["value"])


def check(document: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    jsonschema.validate(value, {**schema, "components": document["components"]})


def test_every_route_with_a_key_says_that_it_limits_requests(document: dict[str, Any]) -> None:
    with_a_key = [each for each in operations(document) if each.get("security") != []]
    assert len(with_a_key) > 8
    for operation in with_a_key:
        codes = {
            code
            for content in operation["responses"]["429"]["content"].values()
            for code in content["examples"]
        }
        assert "rate_limited" in codes, operation["operationId"]


def test_every_error_code_is_described(document: dict[str, Any]) -> None:
    leaves = {
        found.code
        for name in errors.__all__
        if isinstance(found := getattr(errors, name), type)
        and issubclass(found, errors.ServiceError)
        and not found.__subclasses__()
        # It answers methods that are not described.
        and found is not errors.MethodNotAllowed
    }
    named = {
        code
        for operation in operations(strict(document))
        for status, response in operation["responses"].items()
        if int(status) >= 400
        for code in response["content"]["application/json"]["examples"]
    }

    assert leaves <= named


REQUESTS: dict[str, tuple[str, str, dict[str, str], str | None]] = {
    "an image": ("POST", GENERATE, {}, '{"prompt": "A fox"}'),
    "an image later": ("POST", GENERATE, {"Prefer": "respond-async"}, '{"prompt": "A fox"}'),
    "a refusal": ("POST", GENERATE, {}, '{"prompt": "A fox [fail:safety]"}'),
    "a model without capacity": ("POST", GENERATE, {}, '{"prompt": "A fox [fail:overloaded]"}'),
    "no prompt": ("POST", GENERATE, {}, "{}"),
    "no JSON": ("POST", GENERATE, {}, "{"),
    "another ratio": ("POST", GENERATE, {}, '{"prompt": "A fox", "aspectRatio": "7:5"}'),
    "a bad idempotency key": ("POST", GENERATE, {"Idempotency-Key": "k" * 256}, '{"prompt": "A"}'),
    "too much": ("POST", GENERATE, {}, json.dumps({"prompt": "a" * 70_000})),
    "no key": ("POST", GENERATE, {"Authorization": "Bearer no"}, '{"prompt": "A fox"}'),
    "OpenAI's image": ("POST", IMAGES, {}, '{"prompt": "A fox", "model": "gpt-image-1"}'),
    "OpenAI's URL": ("POST", IMAGES, {}, '{"prompt": "A fox", "response_format": "url"}'),
    "OpenAI's refusal": ("POST", IMAGES, {}, '{"prompt": "A fox [fail:safety]"}'),
    "OpenAI's overload": ("POST", IMAGES, {}, '{"prompt": "A fox [fail:overloaded]"}'),
    "OpenAI's two images": ("POST", IMAGES, {}, '{"prompt": "A fox", "n": 2}'),
    "OpenAI's models": ("GET", MODELS, {}, None),
    "OpenAI's model": ("GET", f"{MODELS}/{DEFAULT_MODEL}", {}, None),
    "no model of OpenAI's": ("GET", f"{MODELS}/dall-e-3", {}, None),
    "no key for models": ("GET", MODELS, {"Authorization": "Bearer no"}, None),
    "the balance": ("GET", "/api/v1/billing/credits", {}, None),
    "the usage": ("GET", "/api/v1/billing/usage?month=2026-11", {}, None),
    "a bad month": ("GET", "/api/v1/billing/usage?month=11", {}, None),
    "the history": ("GET", "/api/v1/generations?limit=2", {}, None),
    "a bad limit": ("GET", "/api/v1/generations?limit=0", {}, None),
    "a bad cursor": ("GET", "/api/v1/generations?cursor=made-up", {}, None),
    "no such generation": ("GET", "/api/v1/generations/1795390356254", {}, None),
    "health": ("GET", "/healthz", {}, None),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_response_has_the_described_status_headers_and_body(
    name: str, stack: LocalStack, strict_document: dict[str, Any]
) -> None:
    document = strict_document
    method, path, headers, body = REQUESTS[name]
    key = stack.open_account(f"org-{list(REQUESTS).index(name)}", 100)
    route = re.sub(r"(?<=generations/)\d+|(?<=models/)[a-z][\w.-]+$", "{id}", path)
    operation = document["paths"][route.partition("?")[0]][method.lower()]

    answer = fetch(
        stack.url + path,
        method,
        None if body is None else body.encode(),
        {"Authorization": f"Bearer {key}"} | headers,
    )

    sent = answer.headers
    described = operation["responses"][str(answer.status)]
    content = described["content"][sent["content-type"]]
    check(document, content["schema"], answer.json())
    for header, reference in described["headers"].items():
        schema = document["components"]["headers"][reference["$ref"].rpartition("/")[2]]["schema"]
        if header.lower() in sent:
            jsonschema.validate(sent[header.lower()], schema)
    known = {header.lower() for header in described["headers"]}
    ours = {header for header in sent if header.startswith("x-") or header in MEANT_FOR_CUSTOMERS}
    assert ours - {"x-content-type-options"} <= known
    if answer.status >= 400:
        assert sent["x-error-code"] in content["examples"]


MEANT_FOR_CUSTOMERS = {
    *("idempotent-replayed", "location", "preference-applied", "ratelimit", "ratelimit-policy"),
    *("retry-after", "www-authenticate"),
}


def test_a_browser_may_read_every_described_header(document: dict[str, Any]) -> None:
    exposed = set(Template.from_file().cors().expose)
    described = {header.lower() for header in document["components"]["headers"]}
    # A browser uses these two by itself.
    assert described - {"www-authenticate", "etag"} <= exposed


# How documents are served

DOCUMENTS = ("/", "/openapi.json", "/llms.txt")
every_document = pytest.mark.parametrize("path", DOCUMENTS)
# Only the client's own request differs.
OF_A_REQUEST = {"x-request-id", "apigw-requestid", "date", "content-length"}


@every_document
def test_a_client_that_reads_gzip_gets_a_third_of_the_bytes(stack: LocalStack, path: str) -> None:
    plain = fetch(stack.url + path)
    packed = fetch(stack.url + path, headers={"Accept-Encoding": "gzip, deflate, br"})

    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body) / 3
    for answer in (plain, packed):
        assert answer.headers["vary"] == "Accept-Encoding"
        assert answer.headers["etag"] == plain.headers["etag"]
        assert answer.headers["content-type"] == plain.headers["content-type"]


@every_document
def test_a_document_is_not_sent_again_to_a_client_that_has_it(stack: LocalStack, path: str) -> None:
    first = fetch(stack.url + path)
    tag = first.headers["etag"]
    again = fetch(stack.url + path, headers={"If-None-Match": tag, "Accept-Encoding": "gzip"})
    other = fetch(stack.url + path, headers={"If-None-Match": f'W/"0", {tag[:-2]}x"'})

    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == tag
    assert again.headers["cache-control"] == first.headers["cache-control"]
    assert "content-encoding" not in again.headers
    assert (other.status, other.body) == (200, first.body)


@pytest.mark.parametrize("path", [*DOCUMENTS, "/healthz", "/.well-known/jwks.json"])
def test_head_answers_as_get_without_the_body(stack: LocalStack, path: str) -> None:
    headers = {"Accept-Encoding": "gzip"}
    got, head = (fetch(stack.url + path, method, None, headers) for method in ("GET", "HEAD"))

    assert (head.status, head.body) == (got.status, b"")
    assert {name: head.headers.get(name) for name in got.headers if name not in OF_A_REQUEST} == {
        name: value for name, value in got.headers.items() if name not in OF_A_REQUEST
    }


def test_the_reference_as_text_has_every_route_error_and_section(stack: LocalStack) -> None:
    answer = fetch(f"{stack.url}/llms.txt")
    written = answer.body.decode()

    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert written.startswith("# Gemini Generate")
    assert written.split("\n\n")[1].startswith("> ")
    assert stack.url in written
    for operation in OPERATIONS:
        assert f"`{operation.method} {operation.path}`" in written
    for code, explained in EXPLANATIONS.items():
        assert f"`{code}`" in written
        assert explained.when in written
    for section in guide():
        assert f"## {section.title}\n" in written
