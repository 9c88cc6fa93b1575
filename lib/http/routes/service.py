"""The routes that need no key."""

from lib.errors import NotFound
from lib.http.models import ErrorResponse, HealthResponse, JwksResponse
from lib.http.routes.common import UNAVAILABLE
from lib.http.spec import Operation, ResponseSpec, error_response

__all__ = ["JWKS", "OPEN"]

_VERSION = ("ETag",)
_NOT_MODIFIED = ResponseSpec(
    304, "`If-None-Match` has the current version", None, {}, _VERSION, media_type=None
)

JWKS = Operation(
    tag="Receipts",
    method="GET",
    path="/.well-known/jwks.json",
    name="getReceiptKeys",
    summary="Get the public keys of receipts",
    description="Keys that signed earlier stay there, so an old receipt can be checked.",
    responses=(
        ResponseSpec(
            200,
            "The public keys, as a JWK Set (RFC 7517)",
            JwksResponse,
            {
                "keys": {
                    "keys": [
                        {
                            "kty": "EC",
                            "crv": "P-256",
                            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
                            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
                            "kid": "1234abcd-12ab-34cd-56ef-1234567890ab",
                            "use": "sig",
                            "alg": "ES256",
                        }
                    ]
                }
            },
        ),
        error_response("Receipts are off", (NotFound(),), ErrorResponse),
        error_response(*UNAVAILABLE),
    ),
    needs_key=False,
)

OPEN: tuple[Operation, ...] = (
    JWKS,
    Operation(
        tag="Service",
        method="GET",
        path="/healthz",
        name="getHealth",
        summary="Check service health",
        description="Touches neither the ledger nor the model. `HEAD` works too.",
        responses=(ResponseSpec(200, "Healthy", HealthResponse, {"ok": {"status": "ok"}}),),
        needs_key=False,
    ),
    Operation(
        tag="Service",
        method="GET",
        path="/openapi.json",
        name="getOpenApi",
        summary="Get this OpenAPI document",
        description="Made from the same data as the documentation page. `HEAD` works too.",
        responses=(
            ResponseSpec(200, "The OpenAPI 3.1 document", None, {}, _VERSION),
            _NOT_MODIFIED,
        ),
        needs_key=False,
    ),
    Operation(
        tag="Service",
        method="GET",
        path="/llms.txt",
        name="getReference",
        summary="Get the reference as Markdown",
        description="The whole reference as one text, for language models and for people.",
        responses=(
            ResponseSpec(200, "The reference", None, {}, _VERSION, media_type="text/markdown"),
            _NOT_MODIFIED,
        ),
        needs_key=False,
    ),
    Operation(
        tag="Service",
        method="GET",
        path="/",
        name="getDocs",
        summary="Get the documentation page, with a playground",
        description="A single page that loads nothing from other hosts. `HEAD` works too.",
        responses=(
            ResponseSpec(200, "The documentation page", None, {}, _VERSION, media_type="text/html"),
            _NOT_MODIFIED,
        ),
        needs_key=False,
    ),
)
