"""The reference of the docs page: every route with its fields, responses and errors, as HTML.

It renders the OpenAPI document, so that it says what the service does.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lib.http.docs.markup import code, panel, prose, row, topic
from lib.http.gateway import GATEWAY_EXAMPLE
from lib.http.outcomes import FIRST_ERROR, Outcome
from lib.picture.aspect_ratio import AspectRatio

__all__ = ["contents", "open_routes", "operations", "outcome_rows"]

_RATIOS = ", ".join(f"<code>{ratio.value}</code>" for ratio in AspectRatio)
_PLACES = {"path": "Path", "query": "Query", "header": "Headers"}
_REASONS = {
    200: "OK",
    202: "Accepted",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    413: "Content Too Large",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

Document = Mapping[str, Any]


def operations(document: Document, outcomes: Sequence[Outcome]) -> str:
    """Every route that needs a key: its request on the left, its responses on the right."""
    by_code = {outcome.code: outcome for outcome in outcomes}
    return "".join(
        topic(
            operation["operationId"],
            operation["summary"],
            f'<p class="route">{_route(method, path)}</p><div class="cols">'
            f"<div>{''.join(_description(operation, document))}</div>"
            f'<div class="beside">'
            f"{''.join(_responses(operation, by_code))}</div></div>",
        )
        for method, path, operation in _routes(document)
        if "security" not in operation
    )


def open_routes(document: Document) -> str:
    """The routes that need no key, as one table."""
    rows = "".join(
        row(_route(method, path), html.escape(operation["summary"]))
        for method, path, operation in _routes(document)
        if "security" in operation
    )
    return topic(
        "open-routes",
        "Routes without a key",
        '<table class="blocks"><thead><tr><th scope="col">Route</th>'
        f'<th scope="col">Description</th></tr></thead><tbody>{rows}</tbody></table>',
    )


def contents(document: Document, sections: Sequence[tuple[str, str]]) -> str:
    """Links to every route and to the ``sections`` (anchor, title) of the guide."""
    routes = [
        (operation["operationId"], operation["summary"])
        for _, _, operation in _routes(document)
        if "security" not in operation
    ]
    return (
        f'<p><a href="#reference">Reference</a></p>{_links(routes)}'
        '<p><a href="#errors">Errors</a></p>'
        f'<p><a href="#guide">Guide</a></p>{_links(sections)}'
        '<p><a href="#prompts">Prompts and ratios</a></p>'
    )


def outcome_rows(outcomes: Sequence[Outcome]) -> str:
    """The rows of the table of outcomes; an error's row has its code as its anchor."""
    return "".join(map(_outcome_row, outcomes))


def _links(targets: Sequence[tuple[str, str]]) -> str:
    items = (f'<li><a href="#{anchor}">{html.escape(title)}</a></li>' for anchor, title in targets)
    return f"<ul>{''.join(items)}</ul>"


def _routes(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _route(method: str, path: str) -> str:
    return f'<span class="verb {method.lower()}">{method}</span> {code(path)}'


def _description(operation: Document, document: Document) -> Iterator[str]:
    if "description" in operation:
        yield f"<p>{prose(operation['description'])}</p>"
    if "requestBody" in operation:
        schema = _schema(operation["requestBody"], document)
        fields = (
            _field(name, _type(field), _presence(name, schema), field.get("description", ""))
            for name, field in schema["properties"].items()
        )
        yield _fields("Request body", fields)
    for place, title in _PLACES.items():
        parameters = [each for each in operation.get("parameters", ()) if each["in"] == place]
        if parameters:
            yield _fields(title, map(_parameter, parameters))
    for status, response in operation["responses"].items():
        if int(status) < FIRST_ERROR:
            yield from _response_fields(status, response, document)


def _response_fields(status: str, response: Document, document: Document) -> Iterator[str]:
    content = response.get("content", {}).get("application/json", {})
    if "schema" not in content:
        yield f"<p><strong>{status}</strong>: {prose(response['description'])}.</p>"
        return
    yield _fields(f"Response {status}", _with_items(_schema(response, document), document))


def _with_items(schema: Document, document: Document) -> Iterator[str]:
    """The fields, and those of the objects in lists, unless a route that returns one has them."""
    for name, field in schema["properties"].items():
        item = field.get("items", {}).get("$ref", "").rpartition("/")[2]
        home = _home(item, document)
        yield _field(name, _type(field), "", field.get("description", ""), home)
        if item and not home:
            for inner, each in document["components"]["schemas"][item]["properties"].items():
                yield _field(f"{name}[].{inner}", _type(each), "", each.get("description", ""))


def _home(schema: str, document: Document) -> str:
    """Where the fields of a schema are described: the route that returns one, or nowhere."""
    for _, _, operation in _routes(document):
        content = operation["responses"].get("200", {}).get("content", {})
        reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
        if schema and reference.endswith(f"/{schema}"):
            link = f'<a href="#{operation["operationId"]}">{html.escape(operation["summary"])}</a>'
            return f"Each has the fields of {link}."
    return ""


def _fields(title: str, fields: Iterator[str]) -> str:
    return f'<h4>{title}</h4><dl class="fields">{"".join(fields)}</dl>'


def _field(name: str, kind: str, presence: str, description: str, home: str = "") -> str:
    ratios = f" The ten: {_RATIOS}." if kind == "one of ten" else ""
    sentence = description if description.endswith((".", "`")) or not ratios else f"{description}."
    return (
        f"<div><dt>{code(name)} <span>{html.escape(kind)}</span>{presence}</dt>"
        f"<dd>{prose(sentence)}{ratios} {home}</dd></div>"
    )


def _parameter(parameter: Document) -> str:
    schema = parameter.get("schema", {})
    presence = ' <span class="required">required</span>' if parameter.get("required") else ""
    if "default" in schema:
        presence = f" <span>default {code(schema['default'])}</span>"
    kind = _type(schema)
    if "example" in parameter:
        kind = f"{kind}, such as {parameter['example']}"
    return _field(parameter["name"], kind, presence, parameter["description"])


def _schema(holder: Document, document: Document) -> Document:
    reference = holder["content"]["application/json"]["schema"]["$ref"]
    found: Document = document["components"]["schemas"][reference.rpartition("/")[2]]
    return found


def _presence(name: str, schema: Document) -> str:
    if name in schema.get("required", ()):
        return ' <span class="required">required</span>'
    default = schema["properties"][name].get("default")
    return "" if default is None else f" <span>default {code(default)}</span>"


def _type(field: Document) -> str:
    """The type of a field as a reader would name it, from its JSON schema."""
    if "const" in field:
        return f"always {field['const']}"
    if "anyOf" in field:
        return " or ".join(_type(kind) for kind in field["anyOf"] if kind.get("type") != "null")
    if "$ref" in field:
        return "one of ten" if field["$ref"].endswith("AspectRatio") else "object"
    kind = str(field.get("type", "any"))
    return {"integer": "number", "array": "list"}.get(kind, kind)


def _responses(operation: Document, by_code: Mapping[str, Outcome]) -> Iterator[str]:
    """Examples of the successes, and the errors by status."""
    errors: list[str] = []
    # One example of each status is enough where most have a sentence and nothing else.
    with_examples = "requestBody" in operation
    for status, response in operation["responses"].items():
        content = response.get("content", {}).get("application/json", {})
        examples = {name: example["value"] for name, example in content.get("examples", {}).items()}
        title = f"{status} {_REASONS.get(int(status), '')}".strip()
        if int(status) < FIRST_ERROR:
            yield from _successes(title, response, examples)
        elif examples:
            codes = " ".join(_error_link(status, name, by_code) for name in examples)
            first = next(iter(examples))
            shown = _error(title, first, examples[first], by_code) if with_examples else ""
            errors.append(f"<li><strong>{status}</strong> <span>{codes}</span>{shown}</li>")
    if errors:
        yield f'<h4>Errors</h4><ul class="codes">{"".join(errors)}</ul>'


def _error_link(status: str, name: str, by_code: Mapping[str, Outcome]) -> str:
    if name == GATEWAY_EXAMPLE:
        return f'<a href="#gateway-{status}">API Gateway</a>'
    return f'<a href="#{name}">{code(name)}</a>' if name in by_code else code(name)


def _successes(title: str, response: Document, examples: Document) -> Iterator[str]:
    for name, value in examples.items():
        label = title if len(examples) == 1 else f"{title}: {name}"
        yield panel(label, json.dumps(value, indent=2))
    if not examples:
        media_types = "".join(f"\nContent-Type: {each}" for each in response.get("content", ()))
        yield panel(title, f"HTTP/1.1 {title}{media_types}")


def _error(title: str, name: str, value: object, by_code: Mapping[str, Outcome]) -> str:
    outcome = by_code.get(name)
    head = []
    if outcome is not None:
        head.append(f"X-Error-Code: {name}")
        should_retry = "true" if outcome.should_retry == "yes" else "false"
        charged = outcome.credits_charged.partition(",")[0]
        head += [f"X-Should-Retry: {should_retry}", f"X-Credits-Charged: {charged}"]
    text = "\n".join((f"HTTP/1.1 {title}", *head, "", json.dumps(value, indent=2)))
    return (
        '<details class="example"><summary>Example</summary>'
        f'<pre tabindex="0"><code>{html.escape(text)}</code></pre></details>'
    )


def _outcome_row(outcome: Outcome) -> str:
    has_code = re.fullmatch(r"\w+", outcome.code)
    anchor, name = "", html.escape(outcome.code)
    if has_code:
        anchor, name = (
            f' id="{outcome.code}"',
            f'<a href="#{outcome.code}">{code(outcome.code)}</a>',
        )
    elif outcome.code and outcome.status.isdigit():
        anchor = f' id="gateway-{outcome.status}"'
    head = f'<span class="code-{outcome.status[0]}">{outcome.status}</span> {name}'
    # What is in quotation marks is sent word for word.
    tag = "q" if outcome.code else "small"
    when = f"{prose(outcome.when)}<{tag}>{prose(outcome.sentence)}</{tag}>"
    again = prose(outcome.try_again)
    return (
        f'<tr{anchor}><th scope="row">{head}</th><td>{when}</td>'
        f'<td data-label="Credits">{html.escape(outcome.credits_charged)}</td>'
        f'<td data-label="Try again">{again}</td>'
        f"<td data-advice>{prose(outcome.advice)}</td></tr>"
    )
