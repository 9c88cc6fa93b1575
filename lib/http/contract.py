"""The HTTP contract as data: every route with its parameters, statuses and examples.

``lib.http.openapi`` renders it as OpenAPI 3.1, from which the docs page builds its tables. Body
shapes come from ``lib.http.models`` and ``lib.http.request``, error texts from ``lib.errors``, so
the document cannot drift from what the service sends.
"""

from collections.abc import Callable

from lib.errors import (
    BodyTooLarge,
    Busy,
    GenerationFailed,
    GenerationInFlight,
    GenerationReserved,
    IdempotencyKeyReused,
    ImageDeleted,
    InsufficientCredits,
    InvalidRequest,
    NotFound,
    OrganisationSuspended,
    OutcomePending,
    RateLimited,
    ServiceError,
    ServiceUnavailable,
    Unauthorized,
)
from lib.http.models import (
    DEFAULT_PAGE,
    MAX_BODY_BYTES,
    MAX_IDEMPOTENCY_KEY_CHARACTERS,
    MAX_PAGE,
    MAX_PAGE_BYTES,
    AcceptedResponse,
    CreditsResponse,
    ErrorResponse,
    FailureResponse,
    GenerateResponse,
    GenerationResponse,
    HealthResponse,
    HistoryResponse,
    InsufficientCreditsResponse,
    JwksResponse,
    decode_base64,
    parse_history_request,
    parse_idempotency_key,
)
from lib.http.openai_contract import openai_operations
from lib.http.request import GenerateRequest, parse_generate_request
from lib.http.spec import Operation, ResponseSpec, error_response
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.limits import READS_PER_S

__all__ = ["OPERATIONS"]

_PROMPT = "A log cabin by a frozen mountain lake at dusk"
_ID = "1795390356254"
_RANDOM_DIGITS = "710884915720436195283307416920557814032"
_IMAGE_URL = f"https://images.example.com/generated/gemini/acme/{_ID}{_RANDOM_DIGITS}.png"
_SETTLED = {
    "id": _ID,
    "status": "settled",
    "createdAt": "2026-11-23T06:12:36.254Z",
    "prompt": _PROMPT,
    "aspectRatio": "16:9",
    "imageUrl": _IMAGE_URL,
    "creditsCharged": CREDITS_PER_IMAGE,
    "durationMs": 3420,
}
_REFUNDED = {
    "id": "1795390301877",
    "status": "refunded",
    "createdAt": "2026-11-23T06:11:41.877Z",
    "prompt": "A prompt that Gemini refuses",
    "aspectRatio": "1:1",
    "message": "Content policy violation",
    "creditsRefunded": CREDITS_PER_IMAGE,
}


def _refusal(parse: Callable[[], object]) -> InvalidRequest:
    """The refusal that ``parse`` raises, so that a documented error is the one that is sent."""
    try:
        parse()
    except InvalidRequest as refusal:
        return refusal
    raise AssertionError("the example of a bad request was accepted")


_BAD_REQUESTS: tuple[ServiceError, ...] = (
    _refusal(lambda: parse_generate_request(b"{}")),
    _refusal(lambda: parse_generate_request(b'{"prompt": "%s"}' % (b"a" * 4001))),
    _refusal(lambda: parse_generate_request(b'{"prompt": "A fox", "aspectRatio": "7:5"}')),
    _refusal(lambda: parse_generate_request(b'{"prompt": "A fox", "aspect_ratio": "16:9"}')),
    _refusal(lambda: parse_generate_request(b"{")),
    _refusal(lambda: parse_generate_request(b"\xff")),
    _refusal(lambda: decode_base64("?")),
    _refusal(lambda: parse_idempotency_key("")),
)
_FAILURES: tuple[ServiceError, ...] = tuple(kind() for kind in GenerationFailed.__subclasses__())

_CHARGED = "X-Credits-Charged"
_UNAUTHORIZED = (
    "The API key is missing, malformed, unknown, revoked or expired",
    (Unauthorized(),),
    ErrorResponse,
)
_TOO_MANY_READS = (
    "Too many reads by this organisation",
    (RateLimited(READS_PER_S * 60, 1, "reads"),),
    ErrorResponse,
)
_UNAVAILABLE = ("A dependency did not respond; retry", (ServiceUnavailable(),), FailureResponse)

_IDEMPOTENCY_KEY: dict[str, object] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "A unique string that you choose for this image. Within 24 hours, a request with "
        "the same key and body returns the same image and costs nothing."
    ),
    "schema": {
        "type": "string",
        "pattern": r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$",
        "minLength": 1,
        "maxLength": MAX_IDEMPOTENCY_KEY_CHARACTERS,
    },
    "example": "order-1042",
}

_GENERATE = Operation(
    method="POST",
    path="/api/v1/models/gemini/generate",
    name="generateImage",
    summary="Generate an image",
    description=(
        "Generates an image from a text prompt and stores it as a PNG at a public URL. It costs "
        f"{CREDITS_PER_IMAGE} credits, charged only if the image is stored. If the generation "
        "fails, the credits are refunded before the response is sent, or within 3 minutes. "
        "A response with `outcome_pending` holds the credits: `Location` names the generation, "
        "which settles or is refunded within minutes. API Gateway itself responds to a throttled "
        "request (429), a body over 10 MB (413) and a failure of the service (500, 503) with "
        '`{"message": ...}` and none of these headers. After a 500 or 503 the cost is unknown: '
        "repeat the request with the same Idempotency-Key."
    ),
    parameters=(
        _IDEMPOTENCY_KEY,
        {
            "name": "Prefer",
            "in": "header",
            "required": False,
            "description": (
                "With `respond-async`, the request returns a 202 with the image's final URL as "
                "soon as it is queued. Other preferences are ignored (RFC 7240)."
            ),
            "schema": {"type": "string"},
            "example": "respond-async",
        },
    ),
    body=GenerateRequest,
    example={"prompt": _PROMPT, "aspectRatio": "16:9"},
    responses=(
        ResponseSpec(
            200,
            "The image was generated and stored",
            GenerateResponse,
            {
                "image": {
                    "imageUrl": _IMAGE_URL,
                    "mimeType": "image/png",
                    "creditsCharged": CREDITS_PER_IMAGE,
                    "durationMs": 3420,
                }
            },
            (_CHARGED, "Idempotent-Replayed"),
        ),
        ResponseSpec(
            202,
            "Accepted: the credits are held, and refunded if the generation fails",
            AcceptedResponse,
            {
                "accepted": {
                    "id": _ID,
                    "status": "reserved",
                    "imageUrl": _IMAGE_URL,
                    "creditsCharged": CREDITS_PER_IMAGE,
                }
            },
            (_CHARGED, "Location", "Preference-Applied", "Idempotent-Replayed"),
        ),
        error_response("The request is invalid", _BAD_REQUESTS, ErrorResponse, _CHARGED),
        error_response(*_UNAUTHORIZED, _CHARGED),
        error_response(
            "Not enough credits",
            (InsufficientCredits(CREDITS_PER_IMAGE, 2),),
            InsufficientCreditsResponse,
            _CHARGED,
        ),
        error_response(
            "The organisation is suspended; its reads still work",
            (OrganisationSuspended(),),
            ErrorResponse,
            _CHARGED,
        ),
        error_response(
            "A request with this Idempotency-Key is still in progress",
            (GenerationInFlight(3),),
            ErrorResponse,
            _CHARGED,
        ),
        error_response(
            "The request body is too large",
            (BodyTooLarge(MAX_BODY_BYTES),),
            ErrorResponse,
            _CHARGED,
        ),
        error_response(
            "This Idempotency-Key was used with a different request body, or its image was deleted",
            (IdempotencyKeyReused(), ImageDeleted()),
            ErrorResponse,
            _CHARGED,
        ),
        error_response(
            "Too many requests from this organisation",
            (RateLimited(60, 30), Busy(2)),
            ErrorResponse,
            _CHARGED,
        ),
        error_response(
            "The generation failed and costs nothing, unless its outcome is pending",
            (*_FAILURES, OutcomePending(_ID), ServiceUnavailable()),
            FailureResponse,
            _CHARGED,
            "Retry-After",
            "Location",
        ),
    ),
)

_CREDITS = Operation(
    method="GET",
    path="/api/v1/billing/credits",
    name="getCredits",
    summary="Get the credit balance",
    responses=(
        ResponseSpec(
            200,
            "The credit balance and the price of an image",
            CreditsResponse,
            {"balance": {"credits": 95, "creditsPerImage": CREDITS_PER_IMAGE}},
        ),
        error_response(*_UNAUTHORIZED),
        error_response(*_TOO_MANY_READS),
        error_response(*_UNAVAILABLE),
    ),
)

_HISTORY = Operation(
    method="GET",
    path="/api/v1/generations",
    name="listGenerations",
    summary="List generations",
    description=(
        "Lists the organisation's generations, newest first, one page at a time. Long prompts make "
        f"a page end at {MAX_PAGE_BYTES // 1024} KiB: `nextCursor` continues it."
    ),
    parameters=(
        {
            "name": "limit",
            "in": "query",
            "required": False,
            "description": "Maximum number of generations per page",
            "schema": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_PAGE,
                "default": DEFAULT_PAGE,
            },
        },
        {
            "name": "cursor",
            "in": "query",
            "required": False,
            "description": "`nextCursor` of the previous page, unchanged",
            "schema": {"type": "string"},
        },
    ),
    responses=(
        ResponseSpec(
            200,
            "A page of generations",
            HistoryResponse,
            {"page": {"generations": [_SETTLED, _REFUNDED], "nextCursor": None}},
        ),
        error_response(
            "The limit or the cursor is invalid",
            (
                _refusal(lambda: parse_history_request({"limit": "0"})),
                _refusal(lambda: parse_history_request({"cursor": "made up"})),
            ),
            ErrorResponse,
        ),
        error_response(*_UNAUTHORIZED),
        error_response(*_TOO_MANY_READS),
        error_response(*_UNAVAILABLE),
    ),
)

_ID_IN_PATH = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "`id` from a 202 response or from the list",
    "schema": {"type": "string"},
    "example": _ID,
}
_NOT_FOUND = ("The organisation has no generation with this id", (NotFound(),), ErrorResponse)

_GENERATION = Operation(
    method="GET",
    path="/api/v1/generations/{id}",
    name="getGeneration",
    summary="Get a generation",
    description=(
        "A generation is `reserved` (in progress) until it becomes `settled` (succeeded) or "
        "`refunded` (failed). Both are final."
    ),
    parameters=(_ID_IN_PATH,),
    responses=(
        ResponseSpec(
            200,
            "The generation in its current state",
            GenerationResponse,
            {
                "reserved": {name: _SETTLED[name] for name in list(_SETTLED)[:5]}
                | {"status": "reserved"},
                "settled": _SETTLED,
                "refunded": _REFUNDED,
                "deleted": {
                    name: value
                    for name, value in _SETTLED.items()
                    if name not in {"prompt", "imageUrl"}
                }
                | {"deletedAt": "2026-11-24T08:30:00Z"},
            },
        ),
        error_response(*_UNAUTHORIZED),
        error_response(*_NOT_FOUND),
        error_response(*_UNAVAILABLE),
    ),
)

_DELETE = Operation(
    method="DELETE",
    path="/api/v1/generations/{id}",
    name="deleteGeneration",
    summary="Delete the image and the prompt of a generation",
    description=(
        "The generation stays in the history with `deletedAt`, and so do its credits. Repeating "
        "the request is safe. Caches may keep the image for a day; after a 500 so may the store."
    ),
    parameters=(_ID_IN_PATH,),
    responses=(
        ResponseSpec(204, "The image and the prompt are deleted", None, {}, media_type=None),
        error_response(*_UNAUTHORIZED),
        error_response(*_NOT_FOUND),
        error_response(
            "The generation is still in progress", (GenerationReserved(3),), ErrorResponse
        ),
        error_response(*_TOO_MANY_READS),
        error_response(*_UNAVAILABLE),
    ),
)

_RECEIPT = Operation(
    method="GET",
    path="/api/v1/generations/{id}/receipt",
    name="getReceipt",
    summary="Get a signed receipt",
    description=(
        "A receipt states what a generation cost, also if it was refunded. It is a JWS (RFC 7515, "
        "compact, ES256), signed with a key at `/.well-known/jwks.json`."
    ),
    parameters=_GENERATION.parameters,
    responses=(
        ResponseSpec(200, "The receipt, as a compact JWS", None, {}, media_type="application/jose"),
        error_response(*_UNAUTHORIZED),
        error_response(
            "The organisation has no generation with this id, or receipts are off",
            (NotFound(),),
            ErrorResponse,
        ),
        error_response("The generation has not ended", (GenerationReserved(3),), ErrorResponse),
        error_response(*_UNAVAILABLE),
    ),
)

_JWKS = Operation(
    method="GET",
    path="/.well-known/jwks.json",
    name="getReceiptKeys",
    summary="Get the public keys of receipts",
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
        error_response(*_UNAVAILABLE),
    ),
    needs_key=False,
)

_OPEN = (
    _JWKS,
    Operation(
        method="GET",
        path="/healthz",
        name="getHealth",
        summary="Check service health",
        responses=(ResponseSpec(200, "Healthy", HealthResponse, {"ok": {"status": "ok"}}),),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/openapi.json",
        name="getOpenApi",
        summary="Get this OpenAPI document",
        responses=(ResponseSpec(200, "The OpenAPI 3.1 document", None, {}),),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/",
        name="getDocs",
        summary="Get the documentation page, with a playground",
        responses=(ResponseSpec(200, "The documentation page", None, {}, media_type="text/html"),),
        needs_key=False,
    ),
)

OPERATIONS: tuple[Operation, ...] = (
    _GENERATE,
    *openai_operations(_IDEMPOTENCY_KEY, _IMAGE_URL, int(_ID) // 1000),
    _CREDITS,
    _GENERATION,
    _RECEIPT,
    _DELETE,
    _HISTORY,
    *_OPEN,
)
"""Every deployed route, in the order of the document."""
