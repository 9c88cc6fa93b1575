"""Renders the HTTP contract (``lib.http.contract``) as an OpenAPI 3.1 document."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import TypeAdapter

from lib.errors import GenerationFailed
from lib.http.contract import OPERATIONS
from lib.http.models import MAX_BODY_BYTES, MAX_PROMPT_CHARACTERS
from lib.http.spec import HEADERS, Operation, ResponseSpec
from lib.ledger.order import CREDITS_PER_IMAGE

__all__ = ["openapi"]

VERSION = "0.1.0"
_SCHEMAS = "#/components/schemas/"


def openapi(server_url: str) -> dict[str, Any]:
    """The contract as an OpenAPI 3.1 document for the service at ``server_url``.

    ``server_url`` is an origin such as ``https://api.example.com``.
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
        },
        "servers": [{"url": server_url}],
        "security": [{"apiKey": []}],
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
    """The JSON schemas of every request and response body, by model name."""
    models = sorted(_models(), key=lambda model: model.__name__)
    _, definitions = TypeAdapter.json_schemas(
        [(model.__name__, "validation", TypeAdapter(model)) for model in models],
        ref_template=_SCHEMAS + "{model}",
    )
    schemas: dict[str, Any] = _without_titles(definitions["$defs"])
    for schema in schemas.values():
        schema.pop("description", None)
    for model in filter(is_dataclass, models):
        # A default in a response model is no default on the wire: it marks a constant, which is
        # always sent, or None, which is left out.
        schema = schemas[model.__name__]
        schema["additionalProperties"] = False
        schema["required"] = [each.name for each in fields(model) if each.default is not None]
        for field in schema["properties"].values():
            field.pop("default", None)
    for name in ("FailureResponse", "GenerationResponse"):
        _string_schema(schemas[name]["properties"]["message"])["enum"] = _public_messages()
    # Any value is accepted, and none is documented.
    schemas["GenerateRequest"]["properties"]["model"].pop("default")
    # A null field counts as missing, and that is all that the defaults say.
    for field in schemas["ImagesRequest"]["properties"].values():
        field.pop("default", None)
    # A null aspectRatio means the default, which pydantic's schema of a default does not say.
    ratio = schemas["GenerateRequest"]["properties"]["aspectRatio"]
    ratio["anyOf"] = [{"$ref": ratio.pop("$ref")}, {"type": "null"}]
    return schemas


def _models() -> Iterable[type[object]]:
    """The model of every request and response body."""
    return {
        model
        for operation in OPERATIONS
        for model in (operation.body, *(response.body for response in operation.responses))
        if model is not None
    }


def _public_messages() -> list[str]:
    """The closed list of messages that a failed generation may carry."""
    return sorted({failure.message for failure in GenerationFailed.__subclasses__()})


def _string_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of the string in a field that may also be null."""
    found: dict[str, Any] = schema["anyOf"][0] if "anyOf" in schema else schema
    return found


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
        "summary": operation.summary,
        "responses": {
            str(response.status): _response(response) for response in operation.responses
        },
    }
    if operation.description:
        document["description"] = operation.description
    if operation.parameters:
        document["parameters"] = list(operation.parameters)
    if operation.body is not None:
        document["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": _SCHEMAS + operation.body.__name__},
                    "example": dict(operation.example or {}),
                }
            },
        }
    if not operation.needs_key:
        document["security"] = []
    return document


def _response(response: ResponseSpec) -> dict[str, Any]:
    """An OpenAPI response object; ``X-Request-Id`` is on every one."""
    content: dict[str, Any] = {}
    if response.body is not None:
        content["schema"] = {"$ref": _SCHEMAS + response.body.__name__}
    if response.examples:
        content["examples"] = {name: {"value": value} for name, value in response.examples.items()}
    names = dict.fromkeys(("X-Request-Id", *response.headers))
    described: dict[str, Any] = {
        "description": response.description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
    }
    if response.media_type is not None:
        described["content"] = {response.media_type: content}
    return described
