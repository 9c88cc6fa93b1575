"""API Gateway's HTTP API events (payload 2.0) as requests, and answers as its responses."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from lib.errors import BodyTooLarge, InvalidRequest, ServiceError
from lib.models import MAX_BODY_BYTES

__all__ = [
    "Event",
    "Response",
    "body_of",
    "failure",
    "header",
    "origin",
    "request_id",
    "success",
    "text",
]

Event = Mapping[str, Any]
Response = dict[str, Any]


def header(event: Event, name: str) -> str | None:
    """The value of a request header; API Gateway sends the names in lower case."""
    value = (event.get("headers") or {}).get(name)
    return None if value is None else str(value)


def request_id(event: Event) -> str:
    """API Gateway's id of this request: what a customer quotes to support."""
    return str(event["requestContext"]["requestId"])


def origin(event: Event) -> str:
    """How the client addressed this service, such as ``https://api.example.com``."""
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
    try:
        return _bounded(base64.b64decode(body, validate=True))
    except ValueError as fault:
        raise InvalidRequest("invalid_base64", "The request body must be valid base64") from fault


def success(
    status: int, body: Mapping[str, object], request: str, headers: Mapping[str, str]
) -> Response:
    """An answer with a JSON body."""
    written = json.dumps(body, separators=(",", ":"))
    return text(status, written, request, {"Content-Type": "application/json", **headers})


def text(status: int, body: str, request: str, headers: Mapping[str, str]) -> Response:
    """An answer whose headers say what its body is."""
    return {
        "statusCode": status,
        "headers": {"X-Request-Id": request, **headers},
        "body": body,
        "isBase64Encoded": False,
    }


def failure(error: ServiceError, request: str, headers: Mapping[str, str]) -> Response:
    """The answer that an error of ours stands for."""
    return success(error.status, error.body(), request, {**error.headers(), **headers})


def _bounded(body: bytes) -> bytes:
    if len(body) > MAX_BODY_BYTES:
        raise BodyTooLarge(MAX_BODY_BYTES)
    return body
