"""OpenAI's Images API as this service speaks it: response bodies, errors, the list of models.

Existing clients work by changing ``base_url``. The shapes and codes are those of OpenAI's own
answers, the statuses those that make its SDKs retry what a retry can mend and nothing else.
Sources: platform.openai.com/docs/api-reference/images, and openai-python 3.57 (``_base_client``,
``types/images_response.py``), which retries 408, 409, 429 and 5xx unless ``x-should-retry`` says
otherwise.

Bodies are plain: ``lib.http.routes.openai`` has their shapes, and no request is parsed here, so
that the functions start as fast as without these routes.
"""

import base64
from http import HTTPStatus

from lib.errors import (
    ContentRejected,
    GenerationInFlight,
    InvalidRequest,
    ModelOverloaded,
    OutcomePending,
    ServiceError,
)

__all__ = [
    "IMAGES_ROUTE",
    "MAX_INLINE_PNG_BYTES",
    "OPENAI_PATHS",
    "image_of",
    "images_body",
    "model_body",
    "models_body",
    "openai_error",
    "openai_headers",
]

OPENAI_PATHS = "/v1/"
IMAGES_ROUTE = "POST /v1/images/generations"
# Lambda's limit on a response, which holds the body as a JSON string.
# Source: docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html (6 MB).
_LAMBDA_RESPONSE_BYTES = 6 * 1024 * 1024
_AROUND_THE_IMAGE_BYTES = 16 * 1024
MAX_INLINE_PNG_BYTES = (_LAMBDA_RESPONSE_BYTES - _AROUND_THE_IMAGE_BYTES) * 3 // 4
"""The largest PNG that fits into a response as base64; a larger one is answered with its URL."""

# The SDKs retry twice, and wait for as long as they are told: an image takes up to 29 seconds.
SDK_RETRY_AFTER_S = 10

# What OpenAI's SDKs and their users know, by status.
_KNOWN: dict[int, tuple[str, str]] = {
    HTTPStatus.UNAUTHORIZED: ("invalid_request_error", "invalid_api_key"),
    HTTPStatus.PAYMENT_REQUIRED: ("insufficient_quota", "insufficient_quota"),
    HTTPStatus.TOO_MANY_REQUESTS: ("rate_limit_error", "rate_limit_exceeded"),
}


def image_of(url: str, png: bytes | None, *, as_base64: bool) -> dict[str, str]:
    """The image as asked for, or by its URL if it isn't at hand or would not fit."""
    if not as_base64 or png is None or len(png) > MAX_INLINE_PNG_BYTES:
        return {"url": url}
    return {"b64_json": base64.b64encode(png).decode()}


def images_body(created_s: int, image: dict[str, str]) -> dict[str, object]:
    """The body of a 200; ``created_s`` is in epoch seconds, ``image`` comes from ``image_of``."""
    return {"created": created_s, "data": [image], "output_format": "png"}


def model_body(name: str) -> dict[str, object]:
    """The body of ``GET /v1/models/{id}``. When the model was made is not known."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "google"}


def models_body(name: str) -> dict[str, object]:
    """The body of ``GET /v1/models`` where ``name`` is the configured model.

    The list holds no aliases, though a request may name any model: it must be true.
    """
    return {"object": "list", "data": [model_body(name)]}


def openai_headers(error: ServiceError) -> dict[str, str]:
    """The headers that the error adds to the response."""
    headers = error.headers()
    if isinstance(error, GenerationInFlight):
        headers["Retry-After"] = str(SDK_RETRY_AFTER_S)
    return headers


def openai_error(error: ServiceError) -> tuple[int, dict[str, object]]:
    """The status and the body of an error in OpenAI's form.

    A refused prompt is a 400, which no SDK retries; an overload is a 503.
    """
    status = error.status
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    kind, code = _KNOWN.get(status, (kind, error.code))
    if isinstance(error, ContentRejected):
        status, kind, code = 400, "invalid_request_error", "content_policy_violation"
    elif isinstance(error, ModelOverloaded):
        status = 503
    param = error.field if isinstance(error, InvalidRequest) else None
    said = {"message": _sentence(error), "type": kind, "param": param, "code": code}
    return status, {"error": said}


def _sentence(error: ServiceError) -> str:
    body = error.body()
    if "creditsRemaining" in body:
        left, price = body["creditsRemaining"], body["creditsRequired"]
        return f"{error.error}: an image costs {price} credits, and {left} are left"
    sentence = error.message or error.error
    # The other hints are about what this route does not have.
    return f"{sentence}. {error.hint}" if isinstance(error, OutcomePending) else sentence
