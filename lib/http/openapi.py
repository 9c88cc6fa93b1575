"""Renders the HTTP contract (``lib.http.contract``) as an OpenAPI 3.1 document."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import TypeAdapter

from lib.errors import BodyTooLarge
from lib.http.contract import OPERATIONS
from lib.http.described import GatewayResponse
from lib.http.gateway import GATEWAY_ANSWERS, GATEWAY_EXAMPLE, GatewayAnswer
from lib.http.models import MAX_BODY_BYTES, MAX_PROMPT_CHARACTERS
from lib.http.outcomes import EXPLANATIONS
from lib.http.spec import HEADERS, TAGS, Operation, ResponseSpec
from lib.ledger.order import CREDITS_PER_IMAGE

__all__ = ["openapi"]

VERSION = "0.1.0"
JSON = "application/json"
_SCHEMAS = "#/components/schemas/"


def openapi(server_url: str, support_url: str | None = None) -> dict[str, Any]:
    """The contract as an OpenAPI 3.1 document for the service at ``server_url``.

    ``server_url`` is an origin such as ``https://api.example.com``, ``support_url`` where a
    customer gets a key, credits and help.
    """
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gemini Generate",
            "version": VERSION,
            "summary": (
                f"Generate PNG images from text prompts: {CREDITS_PER_IMAGE} credits per stored "
                "image, nothing for a failure"
            ),
            "description": (
                f"Prompts are limited to {MAX_PROMPT_CHARACTERS:,} characters and request bodies "
                f"to {MAX_BODY_BYTES // 1024} KiB. API keys are bearer tokens. CORS is open to "
                "every origin. The API never redirects."
            ),
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
            "contact": {"name": "The operator of this deployment"}
            | ({} if support_url is None else {"url": support_url}),
        },
        "servers": [{"url": server_url}],
        "security": [{"apiKey": []}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "apiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Your organisation's API key: gg_...",
                }
            },
            "headers": {
                name: {"description": description, "schema": schema}
                for name, (description, schema) in HEADERS.items()
            },
            "schemas": _schemas(),
        },
    }


def _schemas() -> dict[str, Any]:
    """The JSON schemas of every request and response body, by model name.

    Requests are described as they are checked. Responses are open: a client that was generated
    from this document survives a new field, and a value that is new.
    """
    models = sorted(_models(), key=lambda model: model.__name__)
    _, definitions = TypeAdapter.json_schemas(
        [(model.__name__, "validation", TypeAdapter(model)) for model in models],
        ref_template=_SCHEMAS + "{model}",
    )
    schemas: dict[str, Any] = _without_titles(definitions["$defs"])
    for schema in schemas.values():
        schema.pop("description", None)
    for model in filter(is_dataclass, models):
        always = [each.name for each in fields(model) if each.default is not None]
        schemas[model.__name__]["required"] = always
    requests = {operation.body.__name__ for operation in OPERATIONS if operation.body}
    for name, schema in schemas.items():
        if name not in requests and "properties" in schema:
            _open(schema)
    for name in requests:
        _without_defaults(schemas[name]["properties"])
    return schemas


def _open(schema: dict[str, Any]) -> None:
    """Leaves of the schema of a response the types, and makes examples of today's values.

    A default in a response model is no default on the wire: it marks a constant, which is always
    sent, or None, which is left out.
    """
    for name, field in schema["properties"].items():
        field.pop("default", None)
        if name not in schema.get("required", ()) and "anyOf" in field:
            field.update(field.pop("anyOf")[0])
        field.pop("exclusiveMaximum", None)
        values = [field.pop("const")] if "const" in field else field.pop("enum", None)
        if values is not None:
            field["examples"] = values


def _without_defaults(properties: dict[str, Any]) -> None:
    """Says in the description of a request's field what it is by default.

    Generators make a field with a default a required one. A null field counts as missing.
    """
    for field in properties.values():
        default = field.pop("default", None)
        if default is not None:
            field["description"] += f"; `{default}` if it is absent or null"
            field["anyOf"] = [{"$ref": field.pop("$ref")}, {"type": "null"}]


def _models() -> Iterable[type[object]]:
    """The model of every request and response body."""
    return {GatewayResponse} | {
        model
        for operation in OPERATIONS
        for model in (operation.body, *(response.body for response in operation.responses))
        if model is not None
    }


def _without_titles(schema: Any) -> Any:
    """A copy of ``schema`` without the titles that pydantic derives from names.

    A property named ``title`` would hold a schema, not a string, and stays.
    """
    if isinstance(schema, list):
        return [_without_titles(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _without_titles(value)
        for name, value in schema.items()
        if name != "title" or not isinstance(value, str)
    }


def _operation(operation: Operation) -> dict[str, Any]:
    """An OpenAPI operation object."""
    document: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "responses": _responses(operation),
    }
    if operation.parameters:
        document["parameters"] = list(operation.parameters)
    if operation.body is not None:
        document["requestBody"] = {
            "required": True,
            "content": {
                JSON: {
                    "schema": {"$ref": _SCHEMAS + operation.body.__name__},
                    "example": dict(operation.example or {}),
                }
            },
        }
    if not operation.needs_key:
        document["security"] = []
    return document


def _responses(operation: Operation) -> dict[str, Any]:
    """The responses of the service and of API Gateway, by status."""
    described = {str(each.status): _response(each) for each in operation.responses}
    for answer in GATEWAY_ANSWERS:
        if answer.status == BodyTooLarge.status and operation.body is None:
            continue
        own = described.get(str(answer.status))
        spends = operation.body is not None
        described[str(answer.status)] = _with_gateway(own, answer, spends=spends)
    return dict(sorted(described.items()))


def _with_gateway(
    own: dict[str, Any] | None, answer: GatewayAnswer, *, spends: bool
) -> dict[str, Any]:
    """The response of a status that API Gateway sends too, or it alone."""
    by_itself = f"By API Gateway itself: {answer.when}"
    example = {"summary": by_itself, "value": {"message": answer.message}}
    if spends:
        example["description"] = answer.costs
    schema = {"$ref": _SCHEMAS + GatewayResponse.__name__}
    if own is None:
        content = {"schema": schema, "examples": {GATEWAY_EXAMPLE: example}}
        return {
            "description": f"{by_itself} {answer.costs}" if spends else by_itself,
            "content": {JSON: content},
        }
    content = own["content"][JSON]
    content["schema"] = {"anyOf": [content["schema"], schema]}
    content["examples"][GATEWAY_EXAMPLE] = example
    return own


def _response(response: ResponseSpec) -> dict[str, Any]:
    """An OpenAPI response object; ``X-Request-Id`` is on every one."""
    content: dict[str, Any] = {}
    if response.body is not None:
        content["schema"] = {"$ref": _SCHEMAS + response.body.__name__}
    elif response.media_type is not None:
        content["schema"] = {"type": "object" if response.media_type == JSON else "string"}
    if response.examples:
        content["examples"] = {
            name: _explained(name) | {"value": value} for name, value in response.examples.items()
        }
    names = dict.fromkeys(("X-Request-Id", *response.headers))
    described: dict[str, Any] = {
        "description": response.description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
    }
    if response.media_type is not None:
        described["content"] = {response.media_type: content}
    return described


def _explained(code: str) -> dict[str, str]:
    """What the example of an error says beside its body."""
    if code not in EXPLANATIONS:
        return {}
    explained = EXPLANATIONS[code]
    return {"summary": explained.when, "description": explained.advice}
