"""What customers send and receive, and the price; ``lib.http.request`` reads what they send whole.

The strings and figures are the product reference's. Field names are the wire's, in camelCase.

Bodies of answers are plain dataclasses: pydantic guards what comes in, and a function that reads no
body starts without loading it.
"""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from lib.errors import InvalidRequest
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.picture.storage import PNG_MIME_TYPE

__all__ = [
    "DEFAULT_PAGE",
    "MAX_BODY_BYTES",
    "MAX_IDEMPOTENCY_KEY_CHARACTERS",
    "MAX_PAGE",
    "MAX_PROMPT_CHARACTERS",
    "AcceptedResponse",
    "CreditsResponse",
    "ErrorResponse",
    "FailureResponse",
    "Field",
    "GenerateResponse",
    "GenerationResponse",
    "HistoryRequest",
    "HistoryResponse",
    "InsufficientCreditsResponse",
    "as_body",
    "cursor_before",
    "parse_history_request",
    "parse_idempotency_key",
]

MAX_BODY_BYTES = 64 * 1024
MAX_PROMPT_CHARACTERS = 4_000
MAX_IDEMPOTENCY_KEY_CHARACTERS = 255
DEFAULT_PAGE = 20
MAX_PAGE = 100


@dataclass(frozen=True, slots=True)
class Field:
    """The description and limits of a response field, which OpenAPI shows beside its type."""

    description: str
    minimum: int | None = None
    below: int | None = None

    def __get_pydantic_json_schema__(
        self, core_schema: Any, schema_of: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        limits = {"minimum": self.minimum, "exclusiveMaximum": self.below}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        return schema_of(core_schema) | {"description": self.description} | given


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResponse:
    """The body of a 200: exactly these four fields."""

    imageUrl: Annotated[str, Field("Where the PNG is, for everybody who knows it")]
    mimeType: Annotated[Literal["image/png"], Field("What the URL gives")] = PNG_MIME_TYPE
    creditsCharged: Annotated[Literal[5], Field("What the image cost")] = CREDITS_PER_IMAGE
    durationMs: Annotated[
        int, Field("Milliseconds that drawing, encoding and storing took", minimum=0)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedResponse:
    """The body of a 202: the image will be under the URL."""

    id: Annotated[str, Field("Identity of the generation")]
    status: Annotated[Literal["reserved"], Field("Paid, and not made yet")] = "reserved"
    imageUrl: Annotated[str, Field("Public URL that the image will have")]
    creditsCharged: Annotated[
        Literal[5], Field("What the image costs; refunded if none comes of it")
    ] = CREDITS_PER_IMAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResponse:
    """The body of ``GET /api/v1/generations/{id}``: fields that don't apply are left out."""

    id: Annotated[str, Field("Identity of the generation")]
    status: Annotated[
        Literal["reserved", "settled", "refunded"],
        Field("`reserved` at first, then `settled` or `refunded` for good"),
    ]
    createdAt: Annotated[str, Field("When it was asked for: ISO 8601, UTC")]
    prompt: Annotated[str, Field("What was asked for")]
    aspectRatio: Annotated[str, Field("The shape that was asked for")]
    imageUrl: Annotated[str | None, Field("When settled: where the PNG is")] = None
    creditsCharged: Annotated[Literal[5] | None, Field("When settled: what it cost")] = None
    durationMs: Annotated[
        int | None, Field("When settled: milliseconds that drawing and storing took")
    ] = None
    message: Annotated[str | None, Field("When refunded: why, in public words")] = None
    creditsRefunded: Annotated[Literal[5] | None, Field("When refunded: what came back")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryResponse:
    """The body of ``GET /api/v1/generations``, newest first."""

    generations: list[GenerationResponse]
    nextCursor: Annotated[str | None, Field("Where the next page begins; null on the last")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorResponse:
    """The body of most refusals."""

    error: Annotated[str, Field("One sentence; the header X-Error-Code is for programs")]


@dataclass(frozen=True, slots=True, kw_only=True)
class InsufficientCreditsResponse:
    """The body of a 402: exactly these three fields."""

    error: Literal["Insufficient credits"]
    creditsRequired: Literal[5]
    creditsRemaining: Annotated[int, Field("The organisation's balance", minimum=0, below=5)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureResponse:
    """The body of a 500: nothing was charged, or it was refunded."""

    error: Literal["Failed to generate image"]
    message: Annotated[str, Field("Why, out of a closed list")]
    hint: Annotated[str | None, Field("What to do about it")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditsResponse:
    """The body of ``GET /api/v1/billing/credits``."""

    credits: Annotated[int, Field("The organisation's balance", minimum=0)]
    creditsPerImage: Annotated[Literal[5], Field("The price")] = CREDITS_PER_IMAGE


def as_body(
    answer: GenerateResponse
    | AcceptedResponse
    | GenerationResponse
    | HistoryResponse
    | CreditsResponse,
) -> dict[str, object]:
    """The JSON of a success, without the fields that don't apply."""
    return asdict(answer, dict_factory=_applying)


def _applying(fields: list[tuple[str, object]]) -> dict[str, object]:
    return {name: value for name, value in fields if value is not None}


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """Which part of the history is asked for: ``limit`` generations, older than ``before_ms``."""

    limit: int
    before_ms: int | None


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
