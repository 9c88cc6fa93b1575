"""Response bodies, and the parsing of headers and query strings.

Strings and figures come from the product reference. Fields have their JSON names, in camelCase.

Response bodies are plain dataclasses, not pydantic models, so that a function that parses no
request body starts without loading pydantic. ``lib.http.request`` parses request bodies.
``lib.http.described`` has the bodies that are only described: each class takes a cold start longer.
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
    "MAX_PAGE_BYTES",
    "MAX_PROMPT_CHARACTERS",
    "AcceptedResponse",
    "CreditsResponse",
    "FieldSpec",
    "GenerateResponse",
    "GenerationResponse",
    "HistoryRequest",
    "HistoryResponse",
    "KeyUsageResponse",
    "UsageResponse",
    "as_body",
    "cursor_before",
    "decode_base64",
    "parse_history_request",
    "parse_idempotency_key",
    "parse_month",
]

MAX_BODY_BYTES = 64 * 1024
MAX_PROMPT_CHARACTERS = 4_000
MAX_IDEMPOTENCY_KEY_CHARACTERS = 255
DEFAULT_PAGE = 20
MAX_PAGE = 100
# A longest generation has 16 KB of prompt, or 24 KB of escapes: a page holds at least ten.
MAX_PAGE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """Description and limits of a response field, which the OpenAPI document shows with its type.

    ``minimum`` is inclusive.
    """

    description: str
    minimum: int | None = None
    exclusive_maximum: int | None = None

    def __get_pydantic_json_schema__(
        self, core_schema: Any, schema_of: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        limits = {"minimum": self.minimum, "exclusiveMaximum": self.exclusive_maximum}
        present = {name: limit for name, limit in limits.items() if limit is not None}
        return schema_of(core_schema) | {"description": self.description} | present


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResponse:
    """The body of a 200: exactly these four fields."""

    imageUrl: Annotated[str, FieldSpec("Public URL of the PNG; anyone who has it can open it")]
    mimeType: Annotated[Literal["image/png"], FieldSpec("MIME type of the image")] = PNG_MIME_TYPE
    creditsCharged: Annotated[Literal[5], FieldSpec("Credits charged")] = CREDITS_PER_IMAGE
    durationMs: Annotated[
        int, FieldSpec("Milliseconds taken to generate, encode and store the image", minimum=0)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedResponse:
    """The body of a 202: the generation is queued."""

    id: Annotated[str, FieldSpec("Id of the generation")]
    status: Annotated[Literal["reserved"], FieldSpec("In progress: credits are held")] = "reserved"
    imageUrl: Annotated[str, FieldSpec("Final URL of the PNG; available once settled")]
    creditsCharged: Annotated[
        Literal[5], FieldSpec("Credits held; refunded if the generation fails")
    ] = CREDITS_PER_IMAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResponse:
    """The body of ``GET /api/v1/generations/{id}``; fields that do not apply are omitted."""

    id: Annotated[str, FieldSpec("Id of the generation")]
    status: Annotated[
        Literal["reserved", "settled", "refunded"],
        FieldSpec("`reserved` (in progress), `settled` (succeeded) or `refunded` (failed)"),
    ]
    createdAt: Annotated[str, FieldSpec("When the request was accepted: ISO 8601, UTC")]
    prompt: Annotated[str | None, FieldSpec("Unless deleted: the prompt of the request")] = None
    aspectRatio: Annotated[str, FieldSpec("The aspect ratio of the request")]
    imageUrl: Annotated[
        str | None, FieldSpec("If settled, unless deleted: public URL of the PNG")
    ] = None
    creditsCharged: Annotated[Literal[5] | None, FieldSpec("If settled: credits charged")] = None
    durationMs: Annotated[
        int | None,
        FieldSpec("If settled: milliseconds taken to generate, encode and store the PNG"),
    ] = None
    message: Annotated[str | None, FieldSpec("If refunded: why the generation failed")] = None
    creditsRefunded: Annotated[Literal[5] | None, FieldSpec("If refunded: credits returned")] = None
    deletedAt: Annotated[
        str | None, FieldSpec("If deleted: when its image and its prompt were. ISO 8601, UTC")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryResponse:
    """The body of ``GET /api/v1/generations``, newest first."""

    generations: list[GenerationResponse]
    nextCursor: Annotated[str | None, FieldSpec("`cursor` of the next page; null on the last")]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditsResponse:
    """The body of ``GET /api/v1/billing/credits``."""

    credits: Annotated[int, FieldSpec("The organisation's credit balance", minimum=0)]
    creditsPerImage: Annotated[Literal[5], FieldSpec("The price of one image")] = CREDITS_PER_IMAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUsageResponse:
    """One key of ``UsageResponse``."""

    id: Annotated[str, FieldSpec("Id of the key; of the newest one, if it was rotated")]
    name: Annotated[str | None, FieldSpec("Name of the key, or null")]
    credits: Annotated[int, FieldSpec("Credits charged or in progress", minimum=0)]
    images: Annotated[int, FieldSpec("Images made or in progress", minimum=0)]
    monthlyBudget: Annotated[
        int | None, FieldSpec("Credits that the key may spend in a month; null is no limit")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageResponse:
    """The body of ``GET /api/v1/billing/usage``."""

    month: Annotated[str, FieldSpec("The month, in UTC")]
    credits: Annotated[
        int, FieldSpec("Credits of the month's requests, charged or in progress", minimum=0)
    ]
    images: Annotated[int, FieldSpec("Images made or in progress", minimum=0)]
    keys: Annotated[
        list[KeyUsageResponse],
        FieldSpec("The live keys and those that spent credits in the month, most credits first"),
    ]


def as_body(
    response: GenerateResponse
    | AcceptedResponse
    | GenerationResponse
    | HistoryResponse
    | CreditsResponse,
) -> dict[str, object]:
    """The JSON object of a successful response, without its null fields."""
    return asdict(response, dict_factory=_without_nulls)


def _without_nulls(fields: list[tuple[str, object]]) -> dict[str, object]:
    return {name: value for name, value in fields if value is not None}


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """One page of the history: at most ``limit`` generations, created before ``before_ms``.

    ``before_ms`` is in epoch milliseconds; None starts with the newest.
    """

    limit: int
    before_ms: int | None


def parse_history_request(parameters: Mapping[str, str]) -> HistoryRequest:
    """Parses the query string of ``GET /api/v1/generations``; unknown parameters are ignored.

    An empty parameter counts as absent, so that a loop can start with an empty cursor.

    Raises:
        InvalidRequest: ``limit`` or ``cursor`` is invalid.
    """
    limit = parameters.get("limit") or str(DEFAULT_PAGE)
    if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= MAX_PAGE:
        sentence = f"Invalid limit: use a whole number from 1 to {MAX_PAGE}"
        raise InvalidRequest("invalid_limit", sentence)
    cursor = parameters.get("cursor")
    return HistoryRequest(int(limit), _cursor_ms(cursor) if cursor else None)


def parse_month(parameters: Mapping[str, str]) -> str | None:
    """The month that ``GET /api/v1/billing/usage`` asks for; None if it names none.

    Raises:
        InvalidRequest: ``month`` is invalid.
    """
    month = parameters.get("month")
    if month is not None and not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", month):
        raise InvalidRequest("invalid_month", "Invalid month: use YYYY-MM, such as 2026-11")
    return month


def decode_base64(body: str) -> bytes:
    """The bytes of a body that API Gateway encoded.

    Raises:
        InvalidRequest: it is not base64.
    """
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as fault:
        raise InvalidRequest("invalid_base64", "The request body must be valid base64") from fault


def parse_idempotency_key(key: str | None) -> str | None:
    """Validates the value of the ``Idempotency-Key`` header; None if the header is absent.

    Raises:
        InvalidRequest: it is not 1 to ``MAX_IDEMPOTENCY_KEY_CHARACTERS`` of printable ASCII.
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
    """The cursor of the page after one that ends with the generation of ``created_ms``.

    A cursor encodes a time in epoch milliseconds and nothing else: the API key alone decides whose
    generations a request can read.
    """
    return base64.urlsafe_b64encode(f"before:{created_ms:013d}".encode()).decode().rstrip("=")


def _cursor_ms(cursor: str) -> int:
    """The time in ``cursor``, in epoch milliseconds.

    Raises:
        InvalidRequest: ``cursor_before`` did not make it.
    """
    sentence = "Invalid cursor: use the nextCursor of an earlier response unchanged"
    if not re.fullmatch(r"[A-Za-z0-9_-]{27}", cursor):
        raise InvalidRequest("invalid_cursor", sentence)
    found = re.fullmatch(rb"before:([0-9]{13})", base64.urlsafe_b64decode(cursor + "="))
    if found is None:
        raise InvalidRequest("invalid_cursor", sentence)
    return int(found[1])
