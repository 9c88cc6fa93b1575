"""The claims of a receipt, made from the row of an ended generation.

The payload is a function of the row and the issuer alone, so a receipt that is made again has the
same payload, and a statement can name the hash of all of them. Nothing that a later deployment or
the deletion of the picture changes belongs into it.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from lib.errors import public_message
from lib.ledger.rows import Generation, Status

__all__ = ["CLAIMS", "RECEIPT_TYPE", "STATEMENT_TYPE", "UNKNOWN_KEY", "payload_of", "receipt_of"]

# Typed explicitly, so that one cannot be presented as the other: RFC 8725, section 3.11.
RECEIPT_TYPE = "receipt+jws"
STATEMENT_TYPE = "statement+jws"
UNKNOWN_KEY = "unknown"

CLAIMS: Mapping[str, str] = {
    "iss": "The deployment that signed",
    "organisation": "Whose generation it is",
    "generation": "Its `id`",
    "key": "Id of the API key that was used; `unknown` for generations of earlier versions",
    "createdAt": "When the request was accepted: ISO 8601, UTC",
    "endedAt": "When it was settled or refunded",
    "requestSha256": "SHA-256, in hex, of the aspect ratio, a line feed and the prompt, in UTF-8",
    "imageSha256": "SHA-256, in hex, of the stored PNG; null after a refund",
    "aspectRatio": "The aspect ratio of the request",
    "model": "The model that was configured when the request was accepted; null if not recorded",
    "outcome": "`settled` (succeeded) or `refunded` (failed)",
    "message": "Why the generation failed; null if it succeeded",
    "creditsCharged": "Credits charged; 0 after a refund",
    "creditsRefunded": "Credits that were held and returned",
}
"""The name and the meaning of each claim, in order."""


def receipt_of(generation: Generation, issuer: str) -> dict[str, object]:
    """The claims about a generation that has ended.

    Raises:
        ValueError: it is still reserved.
    """
    if generation.status is Status.RESERVED:
        raise ValueError(f"generation {generation.id} has not ended")
    settled = generation.status is Status.SETTLED
    return {
        "iss": issuer,
        "organisation": generation.organisation,
        "generation": generation.id,
        "key": generation.key_id or UNKNOWN_KEY,
        "createdAt": _iso(generation.created_ms / 1000, "milliseconds"),
        "endedAt": _iso(generation.settled_at if settled else generation.refunded_at, "seconds"),
        "requestSha256": generation.request_hash,
        "imageSha256": generation.image_sha256 if settled else None,
        "aspectRatio": generation.aspect_ratio.value,
        "model": generation.model,
        "outcome": generation.status.value,
        "message": None if settled else public_message(generation.failure_code or ""),
        "creditsCharged": generation.credits if settled else 0,
        "creditsRefunded": 0 if settled else generation.credits,
    }


def payload_of(claims: Mapping[str, object]) -> bytes:
    """The bytes that are signed: JSON without white space, in the claims' own order."""
    return json.dumps(claims, separators=(",", ":")).encode()


def _iso(epoch_s: float | None, timespec: str) -> str | None:
    if epoch_s is None:
        return None
    written = datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec=timespec)
    return written.replace("+00:00", "Z")
