"""The vocabulary of ``lib.http.contract``: operations, their responses, response headers."""

from collections.abc import Mapping
from dataclasses import dataclass

from lib.errors import ServiceError
from lib.ledger.order import CREDITS_PER_IMAGE

__all__ = ["HEADERS", "Operation", "ResponseSpec", "error_response"]


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """One status of an operation. ``body`` is the schema's model, ``headers`` are ``HEADERS`` keys.

    ``X-Request-Id`` is on every response and is not listed. A response without a ``media_type`` has
    no content.
    """

    status: int
    description: str
    body: type[object] | None
    examples: Mapping[str, Mapping[str, object]]
    headers: tuple[str, ...] = ()
    media_type: str | None = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. ``name`` is its ``operationId``; ``parameters`` are OpenAPI parameter objects.

    ``example`` is one of ``body``.
    """

    method: str
    path: str
    name: str
    summary: str
    responses: tuple[ResponseSpec, ...]
    description: str = ""
    parameters: tuple[Mapping[str, object], ...] = ()
    body: type[object] | None = None
    example: Mapping[str, object] | None = None
    needs_key: bool = True


HEADERS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "X-Request-Id": ("Identifies this request in the service's logs", {"type": "string"}),
    "X-Error-Code": ("Stable, machine-readable error code", {"type": "string"}),
    "X-Should-Retry": (
        "Whether repeating the same request can succeed",
        {"type": "string", "enum": ["true", "false"]},
    ),
    "X-Credits-Charged": (
        "Credits charged for this request, or held by it; 0 is final",
        {"type": "string", "enum": ["0", str(CREDITS_PER_IMAGE)]},
    ),
    "Retry-After": ("Seconds to wait before retrying", {"type": "string", "pattern": r"^\d+$"}),
    "RateLimit": ("Requests that are left, and seconds until more are", {"type": "string"}),
    "RateLimit-Policy": (
        "The limit that was reached, and what it allows in 60 seconds",
        {"type": "string"},
    ),
    "WWW-Authenticate": (
        "The authentication scheme to use",
        {"type": "string", "enum": ["Bearer"]},
    ),
    "Idempotent-Replayed": (
        "This response repeats that of an earlier request with the same Idempotency-Key",
        {"type": "string", "enum": ["true"]},
    ),
    "Location": ("Path of the generation", {"type": "string"}),
    "Preference-Applied": (
        "The preference that was applied",
        {"type": "string", "enum": ["respond-async"]},
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
