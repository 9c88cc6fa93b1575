"""The HTTP contract as data: every route with its parameters, statuses and examples.

``lib.http.openapi`` renders it as OpenAPI 3.1, from which the docs page builds its tables. Body
shapes come from ``lib.http.models`` and ``lib.http.request``, error texts from ``lib.errors``, so
the document cannot drift from what the service sends.
"""

from lib.errors import (
    BodyTooLarge,
    Busy,
    GenerationFailed,
    GenerationInFlight,
    IdempotencyKeyReused,
    ImageDeleted,
    InsufficientCredits,
    KeyBudgetExhausted,
    OrganisationSuspended,
    OutcomePending,
    RateLimited,
    ServiceError,
    ServiceUnavailable,
)
from lib.http.described import ErrorResponse, FailureResponse, InsufficientCreditsResponse
from lib.http.models import (
    MAX_BODY_BYTES,
    AcceptedResponse,
    CreditsResponse,
    GenerateResponse,
    UsageResponse,
    decode_base64,
    parse_idempotency_key,
    parse_month,
)
from lib.http.request import GenerateRequest, parse_generate_request
from lib.http.routes import openai
from lib.http.routes.common import (
    CHARGED,
    EXAMPLE_ID,
    EXAMPLE_URL,
    IDEMPOTENCY_KEY,
    PROMPT,
    TOO_MANY_READS,
    UNAUTHORIZED,
    UNAVAILABLE,
    refusal,
)
from lib.http.routes.generations import DELETE, GENERATION, HISTORY, RECEIPT
from lib.http.routes.service import OPEN
from lib.http.spec import Operation, ResponseSpec, error_response
from lib.ledger.order import CREDITS_PER_IMAGE

__all__ = ["OPERATIONS"]


_BAD_REQUESTS: tuple[ServiceError, ...] = (
    refusal(lambda: parse_generate_request(b"{}")),
    refusal(lambda: parse_generate_request(b'{"prompt": "%s"}' % (b"a" * 4001))),
    refusal(lambda: parse_generate_request(b'{"prompt": "A fox", "aspectRatio": "7:5"}')),
    refusal(lambda: parse_generate_request(b'{"prompt": "A fox", "aspect_ratio": "16:9"}')),
    refusal(lambda: parse_generate_request(b"{")),
    refusal(lambda: parse_generate_request(b"\xff")),
    refusal(lambda: decode_base64("?")),
    refusal(lambda: parse_idempotency_key("")),
)
_FAILURES: tuple[ServiceError, ...] = tuple(kind() for kind in GenerationFailed.__subclasses__())

_GENERATE = Operation(
    method="POST",
    path="/api/v1/models/gemini/generate",
    tag="Images",
    name="generateImage",
    summary="Generate an image",
    description=(
        "Generates an image from a text prompt and stores it as a PNG at a public URL. It costs "
        f"{CREDITS_PER_IMAGE} credits, charged only if the image is stored. If the generation "
        "fails, the credits are refunded before the response is sent, or within 3 minutes. "
        "A response with `outcome_pending` holds the credits: `Location` names the generation, "
        "which settles or is refunded within minutes. After an answer of API Gateway "
        'itself (`{"message": ...}`) with status 500 or 503, the cost is unknown: repeat the '
        "request with the same Idempotency-Key."
    ),
    parameters=(
        IDEMPOTENCY_KEY,
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
    example={"prompt": PROMPT, "aspectRatio": "16:9"},
    responses=(
        ResponseSpec(
            200,
            "The image was generated and stored",
            GenerateResponse,
            {
                "image": {
                    "imageUrl": EXAMPLE_URL,
                    "mimeType": "image/png",
                    "creditsCharged": CREDITS_PER_IMAGE,
                    "durationMs": 3420,
                }
            },
            (CHARGED, "Idempotent-Replayed"),
        ),
        ResponseSpec(
            202,
            "Accepted: the credits are held, and refunded if the generation fails",
            AcceptedResponse,
            {
                "accepted": {
                    "id": EXAMPLE_ID,
                    "status": "reserved",
                    "imageUrl": EXAMPLE_URL,
                    "creditsCharged": CREDITS_PER_IMAGE,
                }
            },
            (CHARGED, "Location", "Preference-Applied", "Idempotent-Replayed"),
        ),
        error_response("The request is invalid", _BAD_REQUESTS, ErrorResponse, CHARGED),
        error_response(*UNAUTHORIZED, CHARGED),
        error_response(
            "Not enough credits, or the monthly budget of the API key is used up",
            (InsufficientCredits(CREDITS_PER_IMAGE, 2), KeyBudgetExhausted(CREDITS_PER_IMAGE, 0)),
            InsufficientCreditsResponse,
            CHARGED,
        ),
        error_response(
            "The organisation is suspended; its reads still work",
            (OrganisationSuspended(),),
            ErrorResponse,
            CHARGED,
        ),
        error_response(
            "A request with this Idempotency-Key is still in progress",
            (GenerationInFlight(3),),
            ErrorResponse,
            CHARGED,
        ),
        error_response(
            "The request body is too large",
            (BodyTooLarge(MAX_BODY_BYTES),),
            ErrorResponse,
            CHARGED,
        ),
        error_response(
            "This Idempotency-Key was used with a different request body, or its image was deleted",
            (IdempotencyKeyReused(), ImageDeleted()),
            ErrorResponse,
            CHARGED,
        ),
        error_response(
            "Too many requests from this organisation",
            (RateLimited(60, 30), Busy(2)),
            ErrorResponse,
            CHARGED,
        ),
        error_response(
            "The generation failed and costs nothing, unless its outcome is pending",
            (*_FAILURES, OutcomePending(EXAMPLE_ID), ServiceUnavailable()),
            FailureResponse,
            CHARGED,
            "Retry-After",
            "Location",
        ),
    ),
)

_CREDITS = Operation(
    method="GET",
    path="/api/v1/billing/credits",
    tag="Credits",
    description="The balance is what is left after generations in progress are taken from it.",
    name="getCredits",
    summary="Get the credit balance",
    responses=(
        ResponseSpec(
            200,
            "The credit balance and the price of an image",
            CreditsResponse,
            {"balance": {"credits": 95, "creditsPerImage": CREDITS_PER_IMAGE}},
        ),
        error_response(*UNAUTHORIZED),
        error_response(*TOO_MANY_READS),
        error_response(*UNAVAILABLE),
    ),
)

_USAGE = Operation(
    method="GET",
    path="/api/v1/billing/usage",
    tag="Credits",
    name="getUsage",
    summary="Get a month's usage by API key",
    description=(
        "Counts the requests of a month, in UTC, that are charged or in progress. A rotated key "
        "spends from the budget of the key that it replaces, and both are one entry."
    ),
    parameters=(
        {
            "name": "month",
            "in": "query",
            "required": False,
            "description": "The month, such as `2026-11`; the current one by default",
            "schema": {"type": "string", "pattern": "^[0-9]{4}-(0[1-9]|1[0-2])$"},
        },
    ),
    responses=(
        ResponseSpec(
            200,
            "The usage of the month, in all and by key",
            UsageResponse,
            {
                "usage": {
                    "month": "2026-11",
                    "credits": 45,
                    "images": 9,
                    "keys": [
                        {
                            "id": "key_3fZk0W9xQvTb",
                            "name": "ci",
                            "credits": 45,
                            "images": 9,
                            "monthlyBudget": 500,
                        },
                        {
                            "id": "key_8hQm2Lr7YcNd",
                            "name": None,
                            "credits": 0,
                            "images": 0,
                            "monthlyBudget": None,
                        },
                    ],
                }
            },
        ),
        error_response(
            "The month is invalid",
            (refusal(lambda: parse_month({"month": "november"})),),
            ErrorResponse,
        ),
        error_response(*UNAUTHORIZED),
        error_response(*TOO_MANY_READS),
        error_response(*UNAVAILABLE),
    ),
)

OPERATIONS: tuple[Operation, ...] = (
    _GENERATE,
    openai.IMAGES,
    openai.MODELS,
    openai.MODEL,
    _CREDITS,
    _USAGE,
    GENERATION,
    RECEIPT,
    DELETE,
    HISTORY,
    *OPEN,
)
"""Every deployed route, in the order of the document."""
