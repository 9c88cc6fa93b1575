"""OpenAI's Images API as this service speaks it: response bodies, errors, the list of models.

Existing clients work by changing ``base_url``. The shapes and codes are those of OpenAI's own
answers, the statuses those that make its SDKs retry what a retry can mend and nothing else.
Sources: platform.openai.com/docs/api-reference/images, and openai-python 3.57 (``_base_client``,
``types/images_response.py``), which retries 408, 409, 429 and 5xx unless ``x-should-retry`` says
otherwise.

No request is parsed here, so that the account function starts without pydantic.
"""

import base64
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Annotated, Literal

from lib.errors import (
    ContentRejected,
    GenerationInFlight,
    InvalidRequest,
    ModelOverloaded,
    OutcomePending,
    ServiceError,
)
from lib.http.models import FieldSpec

__all__ = [
    "IMAGES_ROUTE",
    "MAX_INLINE_PNG_BYTES",
    "OPENAI_PATHS",
    "OpenAiError",
    "OpenAiErrorResponse",
    "OpenAiImage",
    "OpenAiImagesResponse",
    "OpenAiModel",
    "OpenAiModelsResponse",
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
IN_FLIGHT_RETRY_AFTER_S = 10

# What OpenAI's SDKs and their users know, by status.
_KNOWN: dict[int, tuple[str, str]] = {
    HTTPStatus.UNAUTHORIZED: ("invalid_request_error", "invalid_api_key"),
    HTTPStatus.PAYMENT_REQUIRED: ("insufficient_quota", "insufficient_quota"),
    HTTPStatus.TOO_MANY_REQUESTS: ("rate_limit_error", "rate_limit_exceeded"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiImage:
    """One of ``data`` in the answer: exactly one of the two fields."""

    url: Annotated[
        str | None, FieldSpec("Public URL of the PNG; anyone who has it can open it")
    ] = None
    b64_json: Annotated[str | None, FieldSpec("The PNG, in base64")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiImagesResponse:
    """The body of a 200 of the images route."""

    created: Annotated[int, FieldSpec("When the request was accepted: epoch seconds", minimum=0)]
    data: Annotated[list[OpenAiImage], FieldSpec("The one image")]
    output_format: Annotated[Literal["png"], FieldSpec("Always `png`")] = "png"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiModel:
    """One model, in the list and alone."""

    id: Annotated[str, FieldSpec("Name of the model that draws every image")]
    object: Annotated[Literal["model"], FieldSpec("Always `model`")] = "model"
    created: Annotated[int, FieldSpec("Always 0: the model's date is not known")] = 0
    owned_by: Annotated[Literal["google"], FieldSpec("Always `google`")] = "google"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiModelsResponse:
    """The body of ``GET /v1/models``."""

    object: Annotated[Literal["list"], FieldSpec("Always `list`")] = "list"
    data: Annotated[list[OpenAiModel], FieldSpec("The one model of this deployment")]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiError:
    """What an error of these routes says."""

    message: Annotated[str, FieldSpec("A sentence for people")]
    type: Annotated[str, FieldSpec("OpenAI's type of error")]
    param: Annotated[str | None, FieldSpec("The field that is at fault; null if there is none")]
    code: Annotated[str, FieldSpec("OpenAI's code where it has one, or else `X-Error-Code`")]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiErrorResponse:
    """The body of every error of these routes."""

    error: OpenAiError


def image_of(url: str, png: bytes | None, *, as_base64: bool) -> OpenAiImage:
    """The image as asked for, or by its URL if it isn't at hand or would not fit."""
    if not as_base64 or png is None or len(png) > MAX_INLINE_PNG_BYTES:
        return OpenAiImage(url=url)
    return OpenAiImage(b64_json=base64.b64encode(png).decode())


def images_body(created_s: int, image: OpenAiImage) -> dict[str, object]:
    """The body of a 200; ``created_s`` is in epoch seconds."""
    shown = {name: text for name, text in asdict(image).items() if text is not None}
    return asdict(OpenAiImagesResponse(created=created_s, data=[])) | {"data": [shown]}


def model_body(name: str) -> dict[str, object]:
    """The body of ``GET /v1/models/{id}``."""
    return asdict(OpenAiModel(id=name))


def models_body(name: str) -> dict[str, object]:
    """The body of ``GET /v1/models`` where ``name`` is the configured model.

    The list holds no aliases, though a request may name any model: it must be true.
    """
    return asdict(OpenAiModelsResponse(data=[OpenAiModel(id=name)]))


def openai_headers(error: ServiceError) -> dict[str, str]:
    """The headers that the error adds to the response."""
    headers = error.headers()
    if isinstance(error, GenerationInFlight):
        headers["Retry-After"] = str(IN_FLIGHT_RETRY_AFTER_S)
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
    said = OpenAiError(
        message=_sentence(error),
        type=kind,
        param=error.field if isinstance(error, InvalidRequest) else None,
        code=code,
    )
    return status, asdict(OpenAiErrorResponse(error=said))


def _sentence(error: ServiceError) -> str:
    body = error.body()
    if "creditsRemaining" in body:
        left, price = body["creditsRemaining"], body["creditsRequired"]
        return f"{error.error}: an image costs {price} credits, and {left} are left"
    sentence = error.message or error.error
    # The other hints are about what this route does not have.
    return f"{sentence}. {error.hint}" if isinstance(error, OutcomePending) else sentence
