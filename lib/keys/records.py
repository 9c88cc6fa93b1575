"""How Secrets Manager stores an organisation's API keys: as hashes, never the keys themselves.

The secret named ``<prefix><organisation>`` holds

    {"keys": [{"id": "key_3fZk0W9xQvTb", "sha256": "<64 hex digits, of the whole key>",
               "createdAt": "2026-11-22T22:10:00Z", "expiresAt": null, "revokedAt": null,
               "name": "ci", "monthlyBudget": 500, "meter": "key_3fZk0W9xQvTb"}]}

The last three fields may be missing. Times are ISO 8601 with an offset; the last two of them may be
null. ``monthlyBudget`` is in credits; null sets no limit. ``meter`` counts what the key spends: a
key that replaces another by rotation has the meter of the other, and any other key its own id. A
record that breaks these rules never authenticates, and is preserved when the secret is rewritten;
only an invalid name is ignored. Reserve the prefix for these secrets: any other secret under it
could be read as an organisation's.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:  # the stubs are a development dependency and are not deployed
    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = [
    "MAX_BUDGET",
    "KeyRecord",
    "StoredKey",
    "UnreadableSecret",
    "format_time",
    "is_budget",
    "is_key_name",
    "log_invalid_records",
    "parse_record",
    "parse_secret",
    "read_secret_value",
    "valid_records",
]

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_METER = re.compile(r"[\x21-\x7e]{1,256}")
MAX_BUDGET = 999_999_999
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """The record of one key, without the key itself. Times are aware, to the second.

    ``name`` is what the operator called it, if anything. ``meter`` counts what it spends, and
    ``monthly_budget`` limits that, in credits; None sets no limit.
    """

    id: str
    sha256: str = field(repr=False)
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    meter: str
    name: str | None = None
    monthly_budget: int | None = None

    def is_live(self, now: datetime) -> bool:
        """Whether the key is valid at ``now``: neither revoked nor expired."""
        return self.ended_at(now) is None

    def ended_at(self, now: datetime) -> datetime | None:
        """When the key was revoked or expired, whichever came first; None while it is live.

        A revoked key is dead even if ``revoked_at`` is in the future, so that an operator's clock
        that runs ahead cannot keep it alive.
        """
        ends = [] if self.revoked_at is None else [self.revoked_at]
        if self.expires_at is not None and self.expires_at <= now:
            ends.append(self.expires_at)
        return min(ends, default=None)


class UnreadableSecret(Exception):
    """The value of a secret is not a JSON object with a list of keys."""


StoredKey = dict[str, Any]
"""The stored form of a record, kept whole so that unknown fields survive a rewrite."""


def parse_secret(value: str | None) -> dict[str, Any]:
    """Parses a secret's value into an object whose ``keys`` is a list. None means a binary value.

    Raises:
        UnreadableSecret: the value is anything else.
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


def parse_record(stored: object) -> KeyRecord | None:
    """Parses a stored record; None if it is invalid, for example after a manual edit."""
    match stored:
        case {
            "id": str(key_id),
            "sha256": str(sha256),
            "createdAt": str(created_at),
            "expiresAt": (str() | None) as expires_at,
            "revokedAt": (str() | None) as revoked_at,
            **others,
        } if _SHA256_HEX.fullmatch(sha256):
            pass
        case _:
            return None
    name, budget = others.get("name"), others.get("monthlyBudget")
    meter = others.get("meter", key_id)
    # Ignoring an invalid budget would lift the limit, and so would a meter of its own.
    if not (budget is None or is_budget(budget)) or not is_meter(meter):
        return None
    try:
        return KeyRecord(
            id=key_id,
            sha256=sha256,
            created_at=_parse_time(created_at),
            expires_at=None if expires_at is None else _parse_time(expires_at),
            revoked_at=None if revoked_at is None else _parse_time(revoked_at),
            meter=meter,
            name=name if isinstance(name, str) else None,
            monthly_budget=budget,
        )
    except ValueError:
        return None


def is_key_name(text: str) -> bool:
    """Whether ``text`` can be the name of a key."""
    return _NAME.fullmatch(text) is not None


def is_budget(value: object) -> TypeGuard[int]:
    """Whether ``value`` can be a monthly budget: whole credits, from 0 to ``MAX_BUDGET``."""
    return type(value) is int and 0 <= value <= MAX_BUDGET


def is_meter(value: object) -> TypeGuard[str]:
    """Whether ``value`` can be the id of a meter, which is part of a row's key."""
    return isinstance(value, str) and _METER.fullmatch(value) is not None


def valid_records(keys: list[StoredKey]) -> list[KeyRecord]:
    """Parses the stored records, leaving out the invalid ones."""
    return [record for record in map(parse_record, keys) if record is not None]


def log_invalid_records(organisation: str, keys: list[StoredKey]) -> None:
    """Logs the position of each invalid record, counting from 1."""
    for position, stored in enumerate(keys, start=1):
        if parse_record(stored) is None:
            _LOG.warning("record %d of the keys of %s is invalid", position, organisation)


def _parse_time(text: str) -> datetime:
    """Parses a stored time.

    Raises:
        ValueError: it is not ISO 8601, or has no offset.
    """
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("the time has no UTC offset")
    return time


def format_time(time: datetime) -> str:
    """Formats an aware time for storage: ISO 8601 in UTC, to the second."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_secret_value(client: SecretsManagerClient, name: str) -> str | None:
    """The current value of the secret ``name``; None if it is binary.

    Raises:
        ClientError, BotoCoreError: as the client raises them.
    """
    secret = client.get_secret_value(SecretId=name, VersionStage="AWSCURRENT")
    return secret.get("SecretString")
