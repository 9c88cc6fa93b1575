"""The OpenAPI document as strict as the service is today.

The served document leaves room for what may be added later. These tests do not: a field, a value or
a response that is not in the contract is a mistake until the contract has it.
"""

from copy import deepcopy
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lib.errors import GenerationFailed
from lib.http.contract import OPERATIONS
from lib.http.gateway import GATEWAY_EXAMPLE

__all__ = ["strict"]

HEADERS = {
    "X-Should-Retry": ["true", "false"],
    "X-Credits-Charged": ["0", "5"],
    "WWW-Authenticate": ["Bearer"],
    "Idempotent-Replayed": ["true"],
    "Preference-Applied": ["respond-async"],
}
MESSAGES = sorted({failure.message for failure in GenerationFailed.__subclasses__()})
BODIES = {each.body for operation in OPERATIONS for each in operation.responses if each.body}


def strict(served: dict[str, Any]) -> dict[str, Any]:
    """A copy of the document that allows only what the service sends by itself."""
    document = deepcopy(served)
    schemas = document["components"]["schemas"]
    for model in _with_parts(BODIES):
        schema = schemas[model.__name__]
        schema["additionalProperties"] = False
        for name, kind in get_type_hints(model).items():
            values = _constants(kind)
            if values:
                schema["properties"][name]["enum"] = values
    for name in ("FailureResponse", "GenerationResponse"):
        schemas[name]["properties"]["message"]["enum"] = MESSAGES
    remaining = schemas["InsufficientCreditsResponse"]["properties"]["creditsRemaining"]
    remaining["exclusiveMaximum"] = 5
    for name, values in HEADERS.items():
        document["components"]["headers"][name]["schema"]["enum"] = values
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"] = dict(_own(operation["responses"]))
    return document


def _own(responses: dict[str, Any]) -> list[tuple[str, Any]]:
    """The responses without those that API Gateway gives by itself."""
    kept = []
    for status, response in responses.items():
        content = response.get("content", {}).get("application/json", {})
        examples = content.get("examples", {})
        examples.pop(GATEWAY_EXAMPLE, None)
        if "anyOf" in content.get("schema", {}):
            content["schema"] = content["schema"]["anyOf"][0]
        elif not examples and content.get("schema", {}).get("$ref", "").endswith("GatewayResponse"):
            continue
        kept.append((status, response))
    return kept


def _with_parts(models: set[type[object]]) -> set[type[object]]:
    """The models, and those that their fields hold."""
    parts = {
        part
        for model in models
        for kind in get_type_hints(model).values()
        for part in (*get_args(kind), *(each for some in get_args(kind) for each in get_args(some)))
        if isinstance(part, type) and is_dataclass(part)
    }
    return models | parts


def _constants(kind: Any) -> list[Any]:
    """The values that a field may have, if they are a closed list."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [value for each in get_args(kind) for value in _constants(each)]
