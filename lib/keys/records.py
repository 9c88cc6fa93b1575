"""What Secrets Manager stores of an organisation's API keys: hashes, never a key.

The secret named ``<prefix><organisation>`` holds

    {"keys": [{"id": "key_3fZk0W9xQvTb", "sha256": "<64 hex digits, of the whole key>",
               "createdAt": "2026-11-22T22:10:00Z", "expiresAt": null, "revokedAt": null}]}

All five fields are required; a time is ISO 8601 with an offset, or null. A record that breaks these
rules never authenticates, and stays as it is when the secret is rewritten. Keep the prefix for
these secrets alone: any other secret under it could be looked up as an organisation.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the stubs are a development dependency and are not deployed
    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = [
    "KeyRecord",
    "StoredKey",
    "UnreadableSecret",
    "current_value",
    "document_of",
    "readable",
    "record_of",
    "text_of",
    "warn_of_unreadable",
]

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is known of one key: everything but the key. Times are aware, to the second."""

    id: str
    sha256: str = field(repr=False)
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def is_live(self, now: datetime) -> bool:
        """Whether the key opens the door at ``now``."""
        return self.ended_at(now) is None

    def ended_at(self, now: datetime) -> datetime | None:
        """When the key stopped working; None while it works.

        A revoked key is dead whatever ``revoked_at`` says, so that an operator's computer whose
        clock runs ahead does not keep it alive.
        """
        ends = [] if self.revoked_at is None else [self.revoked_at]
        if self.expires_at is not None and self.expires_at <= now:
            ends.append(self.expires_at)
        return min(ends, default=None)


class UnreadableSecret(Exception):
    """The value of a secret is not a JSON object with a list of keys."""


# A record as it is stored. It is kept whole, so that fields of other programs survive a rewrite.
StoredKey = dict[str, Any]


def document_of(value: str | None) -> dict[str, Any]:
    """The object in a secret's value, its ``keys`` being a list.

    Raises:
        UnreadableSecret: it is something else.
    """
    if value is None:
        raise UnreadableSecret("binary")
    try:
        document = json.loads(value)
    except (ValueError, RecursionError) as fault:
        raise UnreadableSecret("not JSON") from fault
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(keys, list):
        raise UnreadableSecret("not a list of keys")
    return document


def record_of(stored: object) -> KeyRecord | None:
    """The record, or None if it can't be read; a hand may have put anything at its place."""
    match stored:
        case {
            "id": str(key_id),
            "sha256": str(sha256),
            "createdAt": str(created_at),
            "expiresAt": (str() | None) as expires_at,
            "revokedAt": (str() | None) as revoked_at,
        } if _SHA256_HEX.fullmatch(sha256):
            pass
        case _:
            return None
    try:
        return KeyRecord(
            id=key_id,
            sha256=sha256,
            created_at=_time_of(created_at),
            expires_at=None if expires_at is None else _time_of(expires_at),
            revoked_at=None if revoked_at is None else _time_of(revoked_at),
        )
    except ValueError:
        return None


def readable(keys: list[StoredKey]) -> list[KeyRecord]:
    """The records that can be read."""
    return [record for record in map(record_of, keys) if record is not None]


def warn_of_unreadable(organisation: str, keys: list[StoredKey]) -> None:
    """Logs the position of each record that can't be read."""
    for position, stored in enumerate(keys, start=1):
        if record_of(stored) is None:
            _LOG.warning("record %d of the keys of %s can't be read", position, organisation)


def _time_of(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without an offset")
    return moment


def text_of(moment: datetime) -> str:
    """A stored time: ISO 8601 in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def current_value(client: SecretsManagerClient, name: str) -> str | None:
    """The secret's text; None if it is binary. The client's errors pass through."""
    answer = client.get_secret_value(SecretId=name, VersionStage="AWSCURRENT")
    return answer.get("SecretString")
