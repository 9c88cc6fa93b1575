"""What is under an image's key in the bucket: read whole, or only found."""

import hashlib
from dataclasses import dataclass

__all__ = ["TOMBSTONE", "FoundImage", "StoredImage"]

TOMBSTONE = "tombstone"
"""What a tombstone has instead of an attempt's id, which is a UUID."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An object read from the bucket. ``stored_at`` is in epoch seconds."""

    content: bytes
    attempt_id: str | None
    stored_at: float

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, 64 hex digits."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def is_tombstone(self) -> bool:
        """Whether it only keeps an image from arriving under its key."""
        return self.attempt_id == TOMBSTONE


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An object that was found under its key, not read.

    ``attempt_id`` is whose it is, ``sha256`` of its content, as its metadata say.
    """

    attempt_id: str | None
    sha256: str | None
