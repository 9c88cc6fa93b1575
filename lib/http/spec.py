"""The vocabulary of ``lib.http.contract``: operations, their responses, response headers."""

from collections.abc import Mapping
from dataclasses import dataclass

from lib.errors import ServiceError

__all__ = ["HEADERS", "TAGS", "Operation", "ResponseSpec", "error_response"]


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """One status of an operation. ``body`` is the schema's model, ``headers`` are ``HEADERS`` keys.

    ``X-Request-Id`` is on every response and is not listed. A response without a ``media_type`` has
    no content.
    """

    status: int
    description: str
    body: type[object] | None
    examples: Mapping[str, object]
    headers: tuple[str, ...] = ()
    media_type: str | None = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. ``name`` is its ``operationId``; ``parameters`` are OpenAPI parameter objects.

    ``tag`` is one of ``TAGS``; ``example`` is one of ``body``.
    """

    method: str
    path: str
    tag: str
    name: str
    summary: str
    description: str
    responses: tuple[ResponseSpec, ...]
    parameters: tuple[Mapping[str, object], ...] = ()
    body: type[object] | None = None
    example: Mapping[str, object] | None = None
    needs_key: bool = True


TAGS: Mapping[str, str] = {
    "Images": "Turn a prompt into an image",
    "OpenAI": "The same images in the form of OpenAI's Images API",
    "Credits": "What there is to spend",
    "Generations": "Every request that held credits, and its image",
    "Receipts": "Signed statements of what a generation cost",
    "Service": "The service itself; these routes need no key",
}
"""The groups of routes, in the order of the document."""

HEADERS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "X-Request-Id": (
        "Names this request in the service's logs: quote it when you ask for help",
        {"type": "string"},
    ),
    "X-Error-Code": ("On every error: a stable code for programs", {"type": "string"}),
    "X-Should-Retry": (
        "On every error: whether repeating the same request can succeed",
        {"type": "string"},
    ),
    "X-Credits-Charged": (
        (
            "On every response of the generate route: credits charged for this request, or held "
            "by it; `0` is final"
        ),
        {"type": "string"},
    ),
    "Retry-After": (
        "Whole seconds to wait before repeating the request; earlier, it fails again",
        {"type": "string", "pattern": "^[0-9]+$"},
    ),
    "RateLimit": (
        (
            "On a 429: the name of the limit, `r` requests that are left, and `t` seconds until "
            'more are, as in `"default";r=0;t=30`'
        ),
        {"type": "string"},
    ),
    "RateLimit-Policy": (
        (
            "On a 429: the name of the limit that was reached, and the `q` requests that it "
            'allows in `w` seconds, as in `"default";q=60;w=60`'
        ),
        {"type": "string"},
    ),
    "WWW-Authenticate": (
        "On a 401: the authentication scheme to use",
        {"type": "string"},
    ),
    "Idempotent-Replayed": (
        "This response repeats that of an earlier request with the same Idempotency-Key",
        {"type": "string"},
    ),
    "Location": (
        "Path of the generation, on a 202 and while an outcome is pending",
        {"type": "string"},
    ),
    "ETag": (
        "The version of the document; sent back in `If-None-Match`, it saves the body",
        {"type": "string"},
    ),
    "Preference-Applied": (
        "On a 202: the preference that was applied",
        {"type": "string"},
    ),
}
"""Every documented response header: its description and its JSON schema."""


def error_response(
    description: str, errors: tuple[ServiceError, ...], body: type[object], *headers: str
) -> ResponseSpec:
    """The response for ``errors``, which share a status, with one example per error code.

    Its headers are those that the errors set, and ``headers``.
    """
    set_by_errors = dict.fromkeys(name for error in errors for name in error.headers())
    return ResponseSpec(
        errors[0].status,
        description,
        body,
        {error.code: error.body() for error in errors},
        (*set_by_errors, *headers),
    )
