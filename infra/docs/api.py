"""``python -m infra.docs.api``: writes ``infra/docs/API.md`` from the service's OpenAPI document.

Fields, statuses, headers and sentences come from ``lib/http``, figures from the constants
that the service enforces. Only what an OpenAPI document has no place for is written here.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from infra.docs.markdown import table
from infra.template import PROJECT_ROOT
from lib.deadline import (
    FUNCTION_TIMEOUT_S,
    IDEMPOTENCY_TTL_S,
    JOB_WAITS_S,
    REFUNDED_WITHIN_S,
    WORKER_TIMEOUT_S,
)
from lib.http.models import (
    DEFAULT_PAGE,
    MAX_BODY_BYTES,
    MAX_IDEMPOTENCY_KEY_CHARACTERS,
    MAX_PAGE,
    MAX_PROMPT_CHARACTERS,
)
from lib.http.openapi import openapi
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.ledger.rows import DEFAULT_RATE_LIMIT
from lib.picture.aspect_ratio import AspectRatio

__all__ = ["JOB_REFUNDED_WITHIN_MIN", "PATH", "main", "reference"]

PATH = PROJECT_ROOT / "infra" / "docs" / "API.md"
SERVER = "https://api.example.com"
FIRST_ERROR = 400
JOB_REFUNDED_WITHIN_MIN = 45
"""By then every asynchronous generation has been settled or refunded."""

ADVICE: Mapping[str, str] = {
    "missing_prompt": "Send a prompt that is not blank.",
    "prompt_too_long": "Shorten the prompt.",
    "invalid_aspect_ratio": "Use one of the ten ratios.",
    "invalid_json": "Send one JSON object.",
    "invalid_encoding": "Encode the body as UTF-8.",
    "invalid_idempotency_key": "Choose another key.",
    "invalid_limit": "Correct `limit`.",
    "invalid_cursor": "Pass `nextCursor` unchanged.",
    "unauthorized": "Check the key.",
    "insufficient_credits": "Buy credits.",
    "not_found": "Check the id. Another organisation's generation is also a 404.",
    "generation_in_flight": "Repeat the request after `Retry-After` seconds.",
    "body_too_large": "Shorten the body. It was not parsed.",
    "idempotency_key_reused": "Choose another key.",
    "rate_limited": "Repeat the request after `Retry-After` seconds.",
    "busy": "Repeat the request after `Retry-After` seconds.",
    "content_rejected": "Change the prompt: Gemini refused it, or the picture it led to.",
    "no_image": "Repeat the request, or change the prompt.",
    "model_timeout": "Repeat the request with `Prefer: respond-async`, as `hint` says.",
    "model_overloaded": "Repeat the request after `Retry-After` seconds.",
    "storage_failed": "Repeat the request.",
    "queue_failed": "Repeat the request.",
    "model_unavailable": "Wait: the operator must act, and is alerted.",
    "reservation_lost": "Repeat the request.",
    "internal_error": "Repeat the request. If it fails again, quote `X-Request-Id`.",
    "service_unavailable": "Repeat the request.",
}
"""What a caller can do about each ``X-Error-Code``."""

CONVENTIONS = f"""\
- Send the API key as `Authorization: Bearer <key>`. `/`, `/openapi.json` and `/healthz` need none.
- Bodies are JSON in UTF-8.
- Every response carries `X-Request-Id`, which identifies the request in the service's logs.
- Every response of the generate route states what the request cost: `X-Credits-Charged` is `0` or
  `{CREDITS_PER_IMAGE}`.
- An error's body has `error`, a sentence. The header `X-Error-Code` is for programs, and stays the
  same when a sentence changes.
- Any web page may call the API: CORS is open. The API never redirects.
- The key is checked first: an invalid request with an invalid key is a 401.
- API Gateway answers some requests itself, with `{{"message": ...}}` and none of these headers: 429
  when all customers together exceed its limit, 413 for a body over 10 MB, and 500 or 503 when the
  function fails. After a 500 or 503, repeat the request with the same `Idempotency-Key`: if the
  first one was charged, the repetition returns its image."""

IDEMPOTENCY = f"""\
A request whose response was lost may have been charged. With an `Idempotency-Key` of your choice
you can repeat it and pay once:

- If the first request succeeded, the repetition returns the same image with `Idempotent-Replayed:
  true` and `X-Credits-Charged: 0`.
- While the first request is in progress, the repetition is a 409 with `Retry-After`; if both
  requests prefer `respond-async`, it is the same 202 again, and free.
- With a different prompt or ratio it is a 422.
- After a refund the key is free again: the next request is a new attempt.
- Keys belong to the organisation and are remembered for {IDEMPOTENCY_TTL_S // 3600} hours."""

ASYNCHRONOUS = f"""\
A request has {FUNCTION_TIMEOUT_S} seconds, and the larger models take longer. With the header
`Prefer: respond-async` (RFC 7240) the credits are reserved and the response is an immediate 202. It
already contains the final `imageUrl`, and `Location` points to the generation. Poll that every few
seconds. Its status is `reserved` (in progress), then `settled` (succeeded: the image is stored and
charged) or `refunded` (failed: the credits are back).

A generation waits for a worker for {JOB_WAITS_S // 60} minutes at most, and is refunded otherwise.
The worker has {WORKER_TIMEOUT_S // 60} minutes. If it dies, another one takes over, at most twice.
"""

RATE_LIMITS = f"""\
An organisation may start {DEFAULT_RATE_LIMIT} generations per clock minute by default; the operator
can change that. An asynchronous generation counts when it is accepted. Refused requests do not
count; refunded ones do. Reads are not limited. A request over the limit is a 429 with
`Retry-After`, `RateLimit` (`"default";r=0;t=30`: none left for 30 seconds) and `RateLimit-Policy`
(`"default";q=60;w=60`: 60 in 60 seconds)."""

PAGINATION = """\
Pass `nextCursor` unchanged as `cursor` to get the next page; it is `null` on the last. New
generations appear before the first page, so paging neither skips nor repeats any."""

LIMITS = (
    ("prompt", f"{MAX_PROMPT_CHARACTERS:,} characters"),
    ("request body", f"{MAX_BODY_BYTES // 1024} KiB"),
    ("`Idempotency-Key`", f"1 to {MAX_IDEMPOTENCY_KEY_CHARACTERS} printable ASCII characters"),
    ("page of the history", f"1 to {MAX_PAGE} generations; {DEFAULT_PAGE} by default"),
    ("time to a response", f"{FUNCTION_TIMEOUT_S} seconds"),
    (
        "time to a refund",
        f"{REFUNDED_WITHIN_S // 60} minutes; {JOB_REFUNDED_WITHIN_MIN} if asynchronous",
    ),
)


def reference() -> str:
    """The document as Markdown."""
    document = openapi(SERVER)
    return "\n\n".join(_parts(document)) + "\n"


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    yield "<!-- Made by `python -m infra.docs.api`; change lib/http instead. -->"
    yield f"# {document['info']['title']}: API reference"
    yield f"Version {document['info']['version']}. {document['info']['summary']}."
    yield (
        "Each deployment serves this contract as a page with a playground at `/`, and as OpenAPI\n"
        f"{document['openapi']} at `/openapi.json`."
    )
    yield table(
        ("route", "what it does"), ((f"`{route}`", each["summary"]) for route, each in operations)
    )
    for title, text in (
        ("Conventions", CONVENTIONS),
        ("Idempotency", IDEMPOTENCY),
        ("Asynchronous generation", ASYNCHRONOUS),
        ("Rate limits", RATE_LIMITS),
        ("Pagination", PAGINATION),
        ("Limits", table(("what", "limit"), LIMITS)),
        ("Aspect ratios", table(("ratio", "shape"), map(_ratio, AspectRatio))),
    ):
        yield f"## {title}"
        yield text.strip()
    for route, operation in operations:
        if "security" not in operation:  # it needs a key: the others are for machines and readers
            yield from _operation(route, operation, document["components"]["schemas"])


def _ratio(ratio: AspectRatio) -> tuple[str, str]:
    wide = ratio.width_over_height
    return f"`{ratio.value}`", "square" if wide == 1 else "landscape" if wide > 1 else "portrait"


def _operation(
    route: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]
) -> Iterator[str]:
    yield f"## {operation['summary']}"
    yield f"`{route}`"
    if "description" in operation:
        yield operation["description"]
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
    errors = [row for each in responses.items() if each[0] >= FIRST_ERROR for row in _errors(*each)]
    if errors:
        yield "Errors. The sentence is `error`; in a 500 it is `message`:"
        yield table(("status", "`X-Error-Code`", "sentence", "what to do"), errors)


def _success(status: int, response: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    content = response["content"]["application/json"]
    headers = ", ".join(f"`{name}`" for name in response["headers"])
    yield f"**{status}**: {response['description']}. Headers: {headers}."
    if "schema" in content:
        yield _fields(content["schema"], schemas)
    for example in content.get("examples", {}).values():
        yield _json(example["value"])


def _errors(status: int, response: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for code, example in response["content"]["application/json"]["examples"].items():
        body = example["value"]
        yield str(status), f"`{code}`", body.get("message", body["error"]), ADVICE[code]


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
            default = field.get("default")
            presence = f"default `{default}`" if default else "optional"
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
    kind = str(field["type"])
    return {"integer": "number", "array": "list"}.get(kind, kind)


def _json(value: object) -> str:
    return f"```json\n{json.dumps(value, indent=2)}\n```"


def main() -> int:
    """Writes the file; the exit status."""
    PATH.write_text(reference(), encoding="utf-8")
    print(PATH.relative_to(PROJECT_ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
