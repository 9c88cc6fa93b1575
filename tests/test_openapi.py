"""The contract as a document: it is valid, it names what is deployed, and the service keeps it."""

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
from openapi_spec_validator import validate

from infra.local.stack import LocalStack
from infra.template import Template
from lib import errors
from lib.http.contract import OPERATIONS
from lib.http.openapi import openapi

GENERATE = "/api/v1/models/gemini/generate"


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0) as running:
        yield running


@pytest.fixture(scope="module")
def document(stack: LocalStack) -> dict[str, Any]:
    """What the running service says of itself."""
    status, _, body = ask(stack, "GET", "/openapi.json", {}, None)
    assert status == 200
    found: dict[str, Any] = json.loads(body)
    return found


def ask(
    stack: LocalStack, method: str, path: str, headers: dict[str, str], body: str | None
) -> tuple[int, dict[str, str], bytes]:
    where = urlsplit(stack.url)
    connection = HTTPConnection(where.hostname or "", where.port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, named, answer.read()
    finally:
        connection.close()


def test_it_is_valid_openapi_for_this_very_host(
    document: dict[str, Any], stack: LocalStack
) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": stack.url}]


def test_it_describes_every_route_that_is_deployed_and_no_other(document: dict[str, Any]) -> None:
    described = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    }
    deployed = {
        f"{route.method} {route.path}"
        for function in Template.from_file().functions()
        for route in function.routes
    }

    assert described == deployed


def test_every_example_has_the_shape_that_its_schema_says(document: dict[str, Any]) -> None:
    checked = 0
    for operations in document["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                for content in response["content"].values():
                    for example in content.get("examples", {}).values():
                        check(document, content["schema"], example["value"])
                        checked += 1
    assert checked > 20


def check(document: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    jsonschema.validate(value, {**schema, "components": document["components"]})


def test_every_error_of_the_tree_is_in_it(document: dict[str, Any]) -> None:
    leaves = {
        found.code
        for name in errors.__all__
        if isinstance(found := getattr(errors, name), type)
        and issubclass(found, errors.ServiceError)
        and not found.__subclasses__()
    }
    named = {
        code
        for operations in document["paths"].values()
        for operation in operations.values()
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
    "the balance": ("GET", "/api/v1/billing/credits", {}, None),
    "the history": ("GET", "/api/v1/generations?limit=2", {}, None),
    "a bad limit": ("GET", "/api/v1/generations?limit=0", {}, None),
    "a bad cursor": ("GET", "/api/v1/generations?cursor=made-up", {}, None),
    "no such generation": ("GET", "/api/v1/generations/1795390356254", {}, None),
    "health": ("GET", "/healthz", {}, None),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_an_answer_has_the_status_the_headers_and_the_body_that_are_described(
    name: str, stack: LocalStack, document: dict[str, Any]
) -> None:
    method, path, headers, body = REQUESTS[name]
    key = stack.open_account(f"org-{list(REQUESTS).index(name)}", 100)
    route = "/api/v1/generations/{id}" if path.count("/") == 4 and path[-1].isdigit() else path
    operation = document["paths"][route.partition("?")[0]][method.lower()]

    status, sent, answer = ask(
        stack, method, path, {"Authorization": f"Bearer {key}"} | headers, body
    )

    described = operation["responses"][str(status)]
    content = described["content"][sent["content-type"]]
    check(document, content["schema"], json.loads(answer))
    for header, reference in described["headers"].items():
        schema = document["components"]["headers"][reference["$ref"].rpartition("/")[2]]["schema"]
        if header.lower() in sent:
            jsonschema.validate(sent[header.lower()], schema)
    known = {header.lower() for header in described["headers"]}
    ours = {header for header in sent if header.startswith("x-") or header in MEANT_FOR_CUSTOMERS}
    assert ours <= known
    if status >= 400:
        assert sent["x-error-code"] in content["examples"]


MEANT_FOR_CUSTOMERS = {
    "idempotent-replayed",
    "location",
    "preference-applied",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "www-authenticate",
}


def test_the_browser_may_read_every_header_that_is_described(document: dict[str, Any]) -> None:
    exposed = set(Template.from_file().cors().expose)
    described = {header.lower() for header in document["components"]["headers"]}

    assert described - {"www-authenticate"} <= exposed


def test_names_of_operations_are_unlike() -> None:
    names = [operation.name for operation in OPERATIONS]

    assert len(set(names)) == len(names)


def test_another_host_gets_a_document_about_itself() -> None:
    assert openapi("https://api.example.com")["servers"] == [{"url": "https://api.example.com"}]
