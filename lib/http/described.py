"""Response bodies that the OpenAPI document describes, and that handlers write without a class.

Strings and figures come from the product reference, as those of ``lib.http.models`` do.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from lib.http.models import FieldSpec

__all__ = [
    "ErrorResponse",
    "FailureResponse",
    "GatewayResponse",
    "HealthResponse",
    "InsufficientCreditsResponse",
    "Jwk",
    "JwksResponse",
    "UnavailableResponse",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorResponse:
    """The body of most rejections."""

    error: Annotated[str, FieldSpec("A sentence for people; programs read the X-Error-Code header")]


@dataclass(frozen=True, slots=True, kw_only=True)
class InsufficientCreditsResponse:
    """The body of a 402: exactly these three fields."""

    error: Literal["Insufficient credits", "The monthly budget of this API key is used up"]
    creditsRequired: Literal[5]
    creditsRemaining: Annotated[
        int,
        FieldSpec(
            "The organisation's balance, or what the key's monthly budget has left",
            minimum=0,
            exclusive_maximum=5,
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureResponse:
    """The body of a 500 of the generate route."""

    error: Literal["Failed to generate image"]
    message: Annotated[str, FieldSpec("Why it failed, for people")]
    hint: Annotated[str | None, FieldSpec("What to do next")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnavailableResponse:
    """The body of a 500 of a route that generates nothing."""

    error: Literal["Failed to answer the request"]
    message: Annotated[str, FieldSpec("Why it failed, for people")]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayResponse:
    """The body of an answer that API Gateway gives by itself; the service never sends it."""

    message: Annotated[str, FieldSpec("What happened, in API Gateway's words")]


@dataclass(frozen=True, slots=True)
class HealthResponse:
    """The body of ``GET /healthz``."""

    status: Annotated[Literal["ok"], FieldSpec("Always `ok`")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Jwk:
    """One public key of ``JwksResponse``."""

    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: Annotated[str, FieldSpec("The point's x, in base64url")]
    y: Annotated[str, FieldSpec("The point's y, in base64url")]
    kid: Annotated[str, FieldSpec("`kid` in the header of a receipt that the key signed")]
    use: Literal["sig"]
    alg: Literal["ES256"]


@dataclass(frozen=True, slots=True)
class JwksResponse:
    """The body of ``GET /.well-known/jwks.json``: a JWK Set (RFC 7517)."""

    keys: Annotated[list[Jwk], FieldSpec("The key that signs, then those that signed earlier")]
