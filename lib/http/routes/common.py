"""What several routes of the contract share: example values and refusals."""

from collections.abc import Callable

from lib.errors import InvalidRequest, RateLimited, RequestFailed, Unauthorized
from lib.http.described import ErrorResponse, UnavailableResponse
from lib.http.models import MAX_IDEMPOTENCY_KEY_CHARACTERS
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.limits import READS_PER_S

__all__ = [
    "CHARGED",
    "EXAMPLE_ID",
    "EXAMPLE_URL",
    "IDEMPOTENCY_KEY",
    "PROMPT",
    "REFUNDED",
    "SETTLED",
    "TOO_MANY_READS",
    "UNAUTHORIZED",
    "UNAVAILABLE",
    "refusal",
]

PROMPT = "A log cabin by a frozen mountain lake at dusk"
EXAMPLE_ID = "1795390356254"
_RANDOM_DIGITS = "710884915720436195283307416920557814032"
EXAMPLE_URL = f"https://images.example.com/generated/gemini/acme/{EXAMPLE_ID}{_RANDOM_DIGITS}.png"
SETTLED = {
    "id": EXAMPLE_ID,
    "status": "settled",
    "createdAt": "2026-11-23T06:12:36.254Z",
    "prompt": PROMPT,
    "aspectRatio": "16:9",
    "imageUrl": EXAMPLE_URL,
    "creditsCharged": CREDITS_PER_IMAGE,
    "durationMs": 3420,
}
REFUNDED = {
    "id": "1795390301877",
    "status": "refunded",
    "createdAt": "2026-11-23T06:11:41.877Z",
    "prompt": "A prompt that Gemini refuses",
    "aspectRatio": "1:1",
    "message": "Content policy violation",
    "creditsRefunded": CREDITS_PER_IMAGE,
}


IDEMPOTENCY_KEY: dict[str, object] = {
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


def refusal(parse: Callable[[], object]) -> InvalidRequest:
    """The refusal that ``parse`` raises, so that a documented error is the one that is sent."""
    try:
        parse()
    except InvalidRequest as refused:
        return refused
    raise AssertionError("the example of a bad request was accepted")


CHARGED = "X-Credits-Charged"
UNAUTHORIZED = (
    "The API key is missing, malformed, unknown, revoked or expired",
    (Unauthorized(),),
    ErrorResponse,
)
TOO_MANY_READS = (
    "Too many reads by this organisation",
    (RateLimited(READS_PER_S * 60, 1, "reads"),),
    ErrorResponse,
)
UNAVAILABLE = (
    "A dependency did not respond; retry",
    (RequestFailed(),),
    UnavailableResponse,
)
