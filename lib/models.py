"""What customers send and receive, and the price.

The strings and figures are the product reference's. Field names are the wire's, in camelCase.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from lib.errors import BodyTooLarge, InvalidRequest

__all__ = [
    "CREDITS_PER_IMAGE",
    "DEFAULT_PAGE",
    "MAX_BODY_BYTES",
    "MAX_IDEMPOTENCY_KEY_CHARACTERS",
    "MAX_PAGE",
    "MAX_PROMPT_CHARACTERS",
    "PNG_MIME_TYPE",
    "AcceptedResponse",
    "AspectRatio",
    "CreditsResponse",
    "ErrorResponse",
    "FailureResponse",
    "GenerateRequest",
    "GenerateResponse",
    "GenerationResponse",
    "HistoryRequest",
    "HistoryResponse",
    "InsufficientCreditsResponse",
    "cursor_before",
    "parse_generate_request",
    "parse_history_request",
    "parse_idempotency_key",
]

CREDITS_PER_IMAGE: Literal[5] = 5
PNG_MIME_TYPE: Literal["image/png"] = "image/png"
MAX_BODY_BYTES = 64 * 1024
MAX_PROMPT_CHARACTERS = 4_000
MAX_IDEMPOTENCY_KEY_CHARACTERS = 255
DEFAULT_PAGE = 20
MAX_PAGE = 100


class AspectRatio(StrEnum):
    """Width to height of the picture: the ten that the product sells."""

    SQUARE = "1:1"
    PORTRAIT_2_3 = "2:3"
    LANDSCAPE_3_2 = "3:2"
    PORTRAIT_3_4 = "3:4"
    LANDSCAPE_4_3 = "4:3"
    PORTRAIT_4_5 = "4:5"
    LANDSCAPE_5_4 = "5:4"
    PORTRAIT_9_16 = "9:16"
    LANDSCAPE_16_9 = "16:9"
    ULTRA_WIDE_21_9 = "21:9"

    @property
    def width_over_height(self) -> float:
        """The ratio as one number: 16:9 is 1.78."""
        width, height = self.value.split(":")
        return int(width) / int(height)


class _WireModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class GenerateRequest(_WireModel):
    """The body of ``POST /api/v1/models/gemini/generate``. Unknown fields are ignored."""

    prompt: str = Field(
        min_length=1,
        max_length=MAX_PROMPT_CHARACTERS,
        description="What the picture shows, in words",
        # A blank prompt is refused like an empty one.
        json_schema_extra={"pattern": r"\S"},
    )
    aspectRatio: AspectRatio = Field(  # noqa: N815 - the wire's name
        default=AspectRatio.SQUARE, description="Width to height of the picture"
    )


class GenerateResponse(_WireModel):
    """The body of a 200: exactly these four fields."""

    imageUrl: str = Field(description="Where the PNG is, for everybody who knows it")  # noqa: N815 - the wire's name
    mimeType: Literal["image/png"] = Field(  # noqa: N815 - the wire's name
        default=PNG_MIME_TYPE, description="What the URL gives"
    )
    creditsCharged: Literal[5] = Field(  # noqa: N815 - the wire's name
        default=CREDITS_PER_IMAGE, description="What the image cost"
    )
    durationMs: int = Field(  # noqa: N815 - the wire's name
        ge=0, description="Milliseconds that drawing, encoding and storing took"
    )


class AcceptedResponse(_WireModel):
    """The body of a 202: the image will be under the URL."""

    id: str = Field(description="Identity of the generation")
    status: Literal["reserved"] = Field(default="reserved", description="Paid, and not made yet")
    imageUrl: str = Field(description="Public URL that the image will have")  # noqa: N815 - as above
    creditsCharged: Literal[5] = Field(  # noqa: N815 - the wire's name
        default=CREDITS_PER_IMAGE, description="What the image costs; refunded if none comes of it"
    )


class GenerationResponse(_WireModel):
    """The body of ``GET /api/v1/generations/{id}``: fields that don't apply are left out."""

    id: str = Field(description="Identity of the generation")
    status: Literal["reserved", "settled", "refunded"] = Field(
        description="`reserved` at first, then `settled` or `refunded` for good"
    )
    createdAt: str = Field(  # noqa: N815 - the wire's name
        description="When it was asked for: ISO 8601, UTC"
    )
    prompt: str = Field(description="What was asked for")
    aspectRatio: str = Field(description="The shape that was asked for")  # noqa: N815 - as above
    imageUrl: str | None = Field(  # noqa: N815 - the wire's name
        default=None, description="When settled: where the PNG is"
    )
    creditsCharged: Literal[5] | None = Field(  # noqa: N815 - the wire's name
        default=None, description="When settled: what it cost"
    )
    durationMs: int | None = Field(  # noqa: N815 - the wire's name
        default=None, description="When settled: milliseconds that drawing and storing took"
    )
    message: str | None = Field(default=None, description="When refunded: why, in public words")
    creditsRefunded: Literal[5] | None = Field(  # noqa: N815 - the wire's name
        default=None, description="When refunded: what came back"
    )


class HistoryResponse(_WireModel):
    """The body of ``GET /api/v1/generations``, newest first."""

    generations: list[GenerationResponse]
    nextCursor: str | None = Field(  # noqa: N815 - the wire's name
        default=None, description="Where the next page begins; null on the last"
    )


class ErrorResponse(_WireModel):
    """The body of most refusals."""

    error: str = Field(description="One sentence; the header X-Error-Code is for programs")


class InsufficientCreditsResponse(_WireModel):
    """The body of a 402: exactly these three fields."""

    error: Literal["Insufficient credits"]
    creditsRequired: Literal[5]  # noqa: N815 - the wire's name
    creditsRemaining: int = Field(ge=0, lt=5)  # noqa: N815 - the wire's name


class FailureResponse(_WireModel):
    """The body of a 500: nothing was charged, or it was refunded."""

    error: Literal["Failed to generate image"]
    message: str = Field(description="Why, out of a closed list")
    hint: str | None = Field(default=None, description="What to do about it")


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """Which part of the history is asked for: ``limit`` generations, older than ``before_ms``."""

    limit: int
    before_ms: int | None


class CreditsResponse(_WireModel):
    """The body of ``GET /api/v1/billing/credits``."""

    credits: int = Field(ge=0, description="The organisation's balance")
    creditsPerImage: Literal[5] = CREDITS_PER_IMAGE  # noqa: N815 - the wire's name


def parse_history_request(parameters: Mapping[str, str]) -> HistoryRequest:
    """The query of ``GET /api/v1/generations``; unknown parameters are ignored.

    Raises:
        InvalidRequest: with one sentence that says what to change.
    """
    limit = parameters.get("limit", str(DEFAULT_PAGE))
    if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= MAX_PAGE:
        sentence = f"Invalid limit: use a whole number from 1 to {MAX_PAGE}"
        raise InvalidRequest("invalid_limit", sentence)
    cursor = parameters.get("cursor")
    return HistoryRequest(int(limit), None if cursor is None else _before_ms(cursor))


def parse_idempotency_key(key: str | None) -> str | None:
    """The value of the header ``Idempotency-Key``, if there is one.

    Raises:
        InvalidRequest: it is empty, too long, or holds more than printable ASCII.
    """
    if key is None:
        return None
    fits = 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_CHARACTERS
    if not (fits and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            "invalid_idempotency_key",
            "The Idempotency-Key header must be 1 to "
            f"{MAX_IDEMPOTENCY_KEY_CHARACTERS} printable ASCII characters",
        )
    return key


def cursor_before(created_ms: int) -> str:
    """The cursor of the page that follows a page whose last generation is ``created_ms``.

    It is a time and nothing else: whose generations are read is said by the API key alone.
    """
    return base64.urlsafe_b64encode(f"before:{created_ms:013d}".encode()).decode().rstrip("=")


def _before_ms(cursor: str) -> int:
    sentence = "Invalid cursor: use the nextCursor of an earlier answer as it is"
    if not re.fullmatch(r"[A-Za-z0-9_-]{27}", cursor):
        raise InvalidRequest("invalid_cursor", sentence)
    found = re.fullmatch(rb"before:([0-9]{13})", base64.urlsafe_b64decode(cursor + "="))
    if found is None:
        raise InvalidRequest("invalid_cursor", sentence)
    return int(found[1])


def parse_generate_request(body: bytes) -> GenerateRequest:
    """The request in ``body``, UTF-8 JSON of at most ``MAX_BODY_BYTES``.

    Raises:
        BodyTooLarge: before anything is parsed.
        InvalidRequest: with one sentence that says what to change.
    """
    if len(body) > MAX_BODY_BYTES:
        raise BodyTooLarge(MAX_BODY_BYTES)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise InvalidRequest("invalid_encoding", "The request body must be UTF-8 text") from fault
    try:
        fields = from_json(text, allow_inf_nan=False)
    except ValueError as fault:
        raise InvalidRequest("invalid_json", "The request body must be valid JSON") from fault
    if not isinstance(fields, dict):
        raise InvalidRequest("invalid_json", "The request body must be a JSON object")
    return _request_of(fields)


def _request_of(fields: dict[str, object]) -> GenerateRequest:
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidRequest("missing_prompt", "Missing required field: prompt (string)")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(
            "prompt_too_long",
            f"The prompt is {len(prompt)} characters long; the limit is {MAX_PROMPT_CHARACTERS}",
        )
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return GenerateRequest.model_validate(given)
    except ValidationError as fault:
        if any(error["loc"] == ("aspectRatio",) for error in fault.errors()):
            choices = ", ".join(AspectRatio)
            sentence = f"Invalid aspectRatio: use one of {choices}"
            raise InvalidRequest("invalid_aspect_ratio", sentence) from fault
        sentence = "The prompt must be valid Unicode text"
        raise InvalidRequest("invalid_prompt", sentence) from fault
