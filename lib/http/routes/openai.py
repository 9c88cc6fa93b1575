"""The routes in the form of OpenAI's Images API."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lib.errors import (
    BodyTooLarge,
    Busy,
    ContentRejected,
    GenerationFailed,
    GenerationInFlight,
    IdempotencyKeyReused,
    ImageDeleted,
    InsufficientCredits,
    JobNotQueued,
    KeyBudgetExhausted,
    ModelOverloaded,
    NotFound,
    OrganisationSuspended,
    OutcomePending,
    RateLimited,
    RequestFailed,
    ServiceError,
    ServiceUnavailable,
    Unauthorized,
)
from lib.http.models import (
    MAX_BODY_BYTES,
    FieldSpec,
    decode_base64,
    parse_idempotency_key,
)
from lib.http.openai import (
    images_body,
    model_body,
    models_body,
    openai_error,
    openai_headers,
)
from lib.http.openai_request import ImagesRequest, parse_images_request
from lib.http.routes.common import CHARGED, EXAMPLE_ID, EXAMPLE_URL, IDEMPOTENCY_KEY, refusal
from lib.http.spec import Operation, ResponseSpec
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.limits import READS_PER_S
from lib.settings import DEFAULT_MODEL

__all__ = ["IMAGES", "MODEL", "MODELS"]


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


_BAD_REQUESTS = (
    refusal(lambda: parse_images_request(b"{}")),
    refusal(lambda: parse_images_request(b'{"prompt": "%s"}' % (b"a" * 4001))),
    refusal(lambda: parse_images_request(b'{"prompt": "A fox", "size": "100x900"}')),
    refusal(lambda: parse_images_request(b'{"prompt": "A fox", "n": 2}')),
    refusal(lambda: parse_images_request(b'{"prompt": "A fox", "response_format": "jpeg"}')),
    refusal(lambda: parse_images_request(b'{"prompt": "A fox", "output_format": "webp"}')),
    refusal(lambda: parse_images_request(b'{"prompt": "A fox", "background": "transparent"}')),
    refusal(lambda: parse_images_request(b'{"prompt": "A fox", "stream": true}')),
    refusal(lambda: parse_images_request(b'{"prompt": "A fox", "seed": 7}')),
    refusal(lambda: parse_images_request(b'{"prompt": "A fox", "user": 5}')),
    refusal(lambda: parse_images_request(b"{")),
    refusal(lambda: parse_images_request(b"\xff")),
    refusal(lambda: decode_base64("?")),
    refusal(lambda: parse_idempotency_key("")),
    ContentRejected(),
)
_FAILURES = tuple(
    kind()
    for kind in GenerationFailed.__subclasses__()
    if kind not in {ContentRejected, ModelOverloaded, JobNotQueued}
)


def _errors(description: str, *errors: ServiceError, charged: bool = True) -> ResponseSpec:
    """The response for ``errors``, which share a status in OpenAI's form."""
    ((status, _), *_) = [openai_error(error) for error in errors]
    headers = dict.fromkeys(name for error in errors for name in openai_headers(error))
    return ResponseSpec(
        status,
        description,
        OpenAiErrorResponse,
        {error.code: openai_error(error)[1] for error in errors},
        (*headers, *((CHARGED,) if charged else ())),
    )


_MODEL_READS = (
    _errors("The API key is missing or invalid", Unauthorized(), charged=False),
    _errors("Too many reads", RateLimited(READS_PER_S * 60, 1, "reads"), charged=False),
    _errors("A dependency did not respond; retry", RequestFailed(), charged=False),
)


_CREATED_S = int(EXAMPLE_ID) // 1000

IMAGES = Operation(
    method="POST",
    path="/v1/images/generations",
    tag="OpenAI",
    name="createImage",
    summary="Generate an image, in the form of OpenAI's Images API",
    description=(
        "Programs that use OpenAI's libraries work with `base_url` set to this server's URL "
        "and `/v1`. An image costs what it costs on the other route, with the same limits, "
        "history and refunds. The libraries repeat a request twice if its response was lost, "
        "which pays again unless it has an `Idempotency-Key`."
    ),
    parameters=(IDEMPOTENCY_KEY,),
    body=ImagesRequest,
    example={"prompt": "A fox asleep in the snow", "size": "1536x1024"},
    responses=(
        ResponseSpec(
            200,
            "The image was generated and stored",
            OpenAiImagesResponse,
            {
                "url": images_body(_CREATED_S, {"url": EXAMPLE_URL}),
                "b64_json": images_body(_CREATED_S, {"b64_json": "iVBORw0KGgo..."}),
            },
            (CHARGED, "Idempotent-Replayed"),
        ),
        _errors("The request is invalid, or its prompt was refused", *_BAD_REQUESTS),
        _errors("The API key is missing or invalid", Unauthorized()),
        _errors(
            "Not enough credits, or the key's monthly budget is used up",
            InsufficientCredits(CREDITS_PER_IMAGE, 2),
            KeyBudgetExhausted(CREDITS_PER_IMAGE, 2),
        ),
        _errors("The organisation is suspended", OrganisationSuspended()),
        _errors("A request with this Idempotency-Key is in progress", GenerationInFlight(3)),
        _errors("The request body is too large", BodyTooLarge(MAX_BODY_BYTES)),
        _errors(
            "This Idempotency-Key was used with another prompt or ratio, or its image was deleted",
            IdempotencyKeyReused(),
            ImageDeleted(),
        ),
        _errors("Too many requests from this organisation", RateLimited(60, 30), Busy(2)),
        _errors(
            "The generation failed and costs nothing, unless its outcome is pending",
            *(*_FAILURES, OutcomePending(str(_CREATED_S * 1000)), ServiceUnavailable()),
        ),
        _errors("The image model is overloaded; it costs nothing", ModelOverloaded()),
    ),
)

MODELS = Operation(
    method="GET",
    path="/v1/models",
    tag="OpenAI",
    name="listModels",
    summary="List the model that draws, in OpenAI's form",
    description="A deployment has one model, which draws whatever a request names.",
    responses=(
        ResponseSpec(
            200,
            "The one model of this deployment",
            OpenAiModelsResponse,
            {"models": models_body(DEFAULT_MODEL)},
        ),
        *_MODEL_READS,
    ),
)

MODEL = Operation(
    method="GET",
    path="/v1/models/{id}",
    tag="OpenAI",
    name="getModel",
    summary="Get the model that draws, in OpenAI's form",
    description="Programs ask for it to see whether a model exists.",
    parameters=(
        {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "`id` from the list",
            "schema": {"type": "string"},
            "example": DEFAULT_MODEL,
        },
    ),
    responses=(
        ResponseSpec(200, "The model", OpenAiModel, {"model": model_body(DEFAULT_MODEL)}),
        _MODEL_READS[0],
        _errors("Another model, even if a request may name it", NotFound(), charged=False),
        *_MODEL_READS[1:],
    ),
)
