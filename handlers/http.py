"""API Gateway's HTTP API events (payload 2.0) as requests, and responses."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lib.errors import BodyTooLarge, ServiceError
from lib.http.models import MAX_BODY_BYTES, decode_base64
from lib.http.openai import OPENAI_PATHS, openai_error, openai_headers
from lib.observability import Observation

__all__ = [
    "RESPOND_ASYNC",
    "Event",
    "Failure",
    "Response",
    "body_of",
    "failure",
    "failure_of",
    "header",
    "json_text",
    "log_answer",
    "origin",
    "prefers_async",
    "request_id",
    "success",
    "text",
]

Event = Mapping[str, Any]
Response = dict[str, Any]
RESPOND_ASYNC = "respond-async"
# Longer than any list of preferences in use. A longer one counts as none.
MAX_PREFER_CHARACTERS = 1_024
_PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def header(event: Event, name: str) -> str | None:
    """The value of a request header; ``name`` is in lower case, the event's names in any case.

    API Gateway sends lower-case names, ``sam local start-api`` Title-Case ones. Two spellings of a
    name are one header with two values, which are joined with a comma as API Gateway joins them.
    """
    headers: Mapping[str, object] = event.get("headers") or {}
    values = [
        str(value) for key, value in headers.items() if key.lower() == name and value is not None
    ]
    return ",".join(values) if values else None


def request_id(event: Event) -> str:
    """API Gateway's id of this request: what a customer quotes to support."""
    return str(event["requestContext"]["requestId"])


def origin(event: Event) -> str:
    """How the client addressed this service, such as ``https://api.example.com``.

    API Gateway accepts no host name but its own; another gateway may pass on any.
    """
    scheme = header(event, "x-forwarded-proto")
    host = str(event["requestContext"]["domainName"])
    return f"{'http' if scheme == 'http' else 'https'}://{host}"


def body_of(event: Event) -> bytes:
    """The request's body; API Gateway sends it as text or as base64.

    Raises:
        BodyTooLarge: measured before anything is decoded or parsed.
        InvalidRequest: the base64 is broken.
    """
    body = event.get("body") or ""
    if not event.get("isBase64Encoded"):
        return _bounded(body.encode("utf-8", "surrogatepass"))
    if len(body) > MAX_BODY_BYTES * 4 / 3 + 4:
        raise BodyTooLarge(MAX_BODY_BYTES)
    return _bounded(decode_base64(body))


def prefers_async(event: Event) -> bool:
    """Whether the preference ``respond-async`` (RFC 7240) is among those of the request.

    Other preferences are ignored, and so are parameters.
    """
    preferences = header(event, "prefer") or ""
    if len(preferences) > MAX_PREFER_CHARACTERS:
        return False
    for preference in _split(preferences, ","):
        name, _, value = next(_split(preference, ";")).partition("=")
        # RFC 7240, section 2: an empty value is equivalent to no value.
        if name.strip().lower() == RESPOND_ASYNC and value.strip() in ("", '""'):
            return True
    return False


def success(
    status: int, body: Mapping[str, object], request: str, headers: Mapping[str, str]
) -> Response:
    """A response with a JSON body."""
    written = json_text(body)
    return text(status, written, request, {"Content-Type": "application/json", **headers})


def text(status: int, body: str, request: str, headers: Mapping[str, str]) -> Response:
    """A response whose headers describe its body; it is private unless they say otherwise."""
    return {
        "statusCode": status,
        "headers": {"X-Request-Id": request, **_PRIVATE, **headers},
        "body": body,
        "isBase64Encoded": False,
    }


def failure(error: ServiceError, request: str, headers: Mapping[str, str]) -> Response:
    """The response for an error."""
    return success(error.status, error.body(), request, {**error.headers(), **headers})


Failure = Callable[[ServiceError, str, Mapping[str, str]], Response]
"""How an error becomes a response: the error, the request's id, more headers."""


def failure_of(event: Event) -> Failure:
    """How the route of the request shows its errors: OpenAI's paths do as OpenAI."""
    _, _, path = str(event["routeKey"]).partition(" ")
    # ``$default`` names no path.
    is_openai = (path or str(event["rawPath"])).startswith(OPENAI_PATHS)
    return _openai_failure if is_openai else failure


def _openai_failure(error: ServiceError, request: str, headers: Mapping[str, str]) -> Response:
    status, body = openai_error(error)
    return success(status, body, request, {**openai_headers(error), **headers})


def json_text(body: object) -> str:
    """JSON without white space, and in UTF-8 as it is: an escape would triple an emoji's size."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def log_answer(observation: Observation, event: Event, response: Response) -> None:
    """Logs the request's one line that tells how it was answered."""
    code = response["headers"].get("X-Error-Code")
    observation.info(
        "answered",
        route=event["routeKey"],
        status=response["statusCode"],
        **({} if code is None else {"code": code}),
    )


def _split(text: str, separator: str) -> Iterator[str]:
    """The parts of ``text`` between separators outside quoted strings; at least one, in one pass.

    Quoted strings are those of RFC 9110, section 5.6.4: a backslash escapes one character.
    """
    begin, quoted, escaped = 0, False, False
    for at, character in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character == separator and not quoted:
            yield text[begin:at]
            begin = at + 1
    yield text[begin:]


def _bounded(body: bytes) -> bytes:
    if len(body) > MAX_BODY_BYTES:
        raise BodyTooLarge(MAX_BODY_BYTES)
    return body
