"""Renders the contract as Markdown: ``/llms.txt`` and ``infra/docs/API.md``."""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lib.http.gateway import GATEWAY_EXAMPLE
from lib.http.guide import Guide
from lib.http.outcomes import FIRST_ERROR, Outcome, outcomes
from lib.http.text import Block, Bullets, Code, Section, Table
from lib.picture.aspect_ratio import AspectRatio

__all__ = ["reference", "section", "table"]

_WIDTH = 100
_OUTCOME_COLUMNS = (
    *("status", "`X-Error-Code`", "sentence", "when", "credits", "try again", "what to do"),
)


def reference(document: Mapping[str, Any], guide: Guide) -> str:
    """The reference as Markdown, from the OpenAPI document and the guide of a deployment."""
    return "\n\n".join(_parts(document, guide)) + "\n"


def section(each: Section) -> str:
    """A section as Markdown, with a heading of the second level."""
    return "\n\n".join((f"## {each.title}", *map(_block, each.blocks)))


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with one line for each row."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _parts(document: Mapping[str, Any], guide: Guide) -> Iterator[str]:
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    info = document["info"]
    yield f"# {info['title']}: API reference"
    yield _wrapped(f"> {info['summary']}.", "> ")
    yield _wrapped(
        f"Version {info['version']}, served at {document['servers'][0]['url']}. The same contract "
        "is a page with a playground at `/`, OpenAPI "
        f"{document['openapi']} at `/openapi.json`, and this text at `/llms.txt`."
    )
    yield table(
        ("route", "what it does"), ((f"`{route}`", each["summary"]) for route, each in operations)
    )
    for each in guide:
        yield section(each)
        if each.anchor == "costs":
            yield table(_OUTCOME_COLUMNS, map(_outcome, outcomes(document)))
    yield "## Aspect ratios"
    yield table(("ratio", "shape"), map(_ratio, AspectRatio))
    for route, operation in operations:
        if "security" not in operation:  # it needs a key: the others are for machines and readers
            yield from _operation(route, operation, document["components"]["schemas"])


def _block(block: Block) -> str:
    match block:
        case Bullets(items):
            return "\n".join(_wrapped(f"- {item}", "  ") for item in items)
        case Table(columns, rows):
            return table(columns, rows)
        case Code(language, text):
            return f"```{language}\n{text}\n```"
        case text:
            return _wrapped(text)


def _wrapped(text: str, indentation: str = "") -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        subsequent_indent=indentation,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _ratio(ratio: AspectRatio) -> tuple[str, str]:
    wide = ratio.width_over_height
    return f"`{ratio.value}`", "square" if wide == 1 else "landscape" if wide > 1 else "portrait"


def _operation(
    route: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]
) -> Iterator[str]:
    yield f"## {operation['summary']}"
    yield f"`{route}`"
    if "description" in operation:
        yield _wrapped(operation["description"])
    if "parameters" in operation:
        yield table(("parameter", "in", "meaning"), map(_parameter, operation["parameters"]))
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        yield "The body:"
        yield _fields(content["schema"], schemas, of_a_request=True)
        yield _json(content["example"])
    responses = {int(status): each for status, each in operation["responses"].items()}
    for status, response in responses.items():
        if status < FIRST_ERROR:
            yield from _success(status, response, schemas)
    errors = [code for status, each in responses.items() for code in _error_codes(status, each)]
    if errors:
        details = "[Outcomes](#outcomes)"
        yield _wrapped(f"Errors, of which {details} has the details: {', '.join(errors)}.")


def _success(status: int, response: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    ((media_type, content),) = response.get("content", {"": {}}).items()
    headers = ", ".join(f"`{name}`" for name in response["headers"])
    form = "" if media_type in {"", "application/json"} else f" Form: `{media_type}`."
    yield f"**{status}**: {response['description']}.{form} Headers: {headers}."
    if "$ref" in content.get("schema", {}):
        yield _fields(content["schema"], schemas)
    for example in content.get("examples", {}).values():
        value = example["value"]
        yield f"```text\n{value}\n```" if isinstance(value, str) else _json(value)


def _error_codes(status: int, response: Mapping[str, Any]) -> list[str]:
    if status < FIRST_ERROR:
        return []
    examples = response["content"]["application/json"]["examples"]
    return [f"{status} `{code}`" for code in examples if code != GATEWAY_EXAMPLE]


def _outcome(outcome: Outcome) -> tuple[str, ...]:
    code = outcome.code
    return (
        outcome.status,
        f"`{code}`" if re.fullmatch(r"\w+", code) else code,
        outcome.sentence,
        outcome.when,
        outcome.credits_charged,
        outcome.try_again,
        outcome.advice,
    )


def _parameter(parameter: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"`{parameter['name']}`", parameter["in"], parameter["description"]


def _fields(
    reference: Mapping[str, Any], schemas: Mapping[str, Any], *, of_a_request: bool = False
) -> str:
    schema = schemas[reference["$ref"].rpartition("/")[2]]
    rows = []
    for name, field in schema["properties"].items():
        presence = "required" if of_a_request else "always"
        if name not in schema.get("required", ()):
            presence = "optional"
        elif {"type": "null"} in field.get("anyOf", ()):
            presence = "always, may be null"
        rows.append((f"`{name}`", _type(field), presence, field.get("description", "")))
    return table(("field", "type", "presence", "meaning"), rows)


def _type(field: Mapping[str, Any]) -> str:
    if "const" in field:
        return f"always `{field['const']}`"
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"] if each.get("type") != "null")
    if "$ref" in field:
        return "string"
    kind = str(field.get("type", "any"))
    return {"integer": "number", "array": "list"}.get(kind, kind)


def _json(value: object) -> str:
    return f"```json\n{json.dumps(value, indent=2)}\n```"
