"""The routes that need no key."""

from lib.errors import NotFound
from lib.http.described import ErrorResponse, HealthResponse, JwksResponse
from lib.http.routes.common import UNAVAILABLE
from lib.http.spec import Operation, ResponseSpec, error_response

__all__ = ["JWKS", "OPEN"]


def _document(
    path: str, name: str, summary: str, description: str, content: tuple[str, str]
) -> Operation:
    """The route of a document with a version; ``content`` is what it is, and its media type."""
    version = ("ETag",)
    found, media_type = content
    current = "`If-None-Match` has the current version"
    return Operation(
        tag="Service",
        method="GET",
        path=path,
        name=name,
        summary=summary,
        description=description,
        responses=(
            ResponseSpec(200, found, None, {}, version, media_type=media_type),
            ResponseSpec(304, current, None, {}, version, media_type=None),
        ),
        needs_key=False,
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
    _document(
        "/openapi.json",
        "getOpenApi",
        "Get this OpenAPI document",
        "Made from the same data as the documentation page. `HEAD` works too.",
        ("The OpenAPI 3.1 document", "application/json"),
    ),
    _document(
        "/llms.txt",
        "getReference",
        "Get the reference as Markdown",
        "The whole reference as one text, for language models and for people.",
        ("The reference", "text/markdown"),
    ),
    _document(
        "/",
        "getDocs",
        "Get the documentation page, with a playground",
        "A single page that loads nothing from other hosts. `HEAD` works too.",
        ("The documentation page", "text/html"),
    ),
)
