"""The items of the credits table, as Python values and as DynamoDB's JSON.

    account      pk ORG#<org>  sk ACCOUNT     credits, createdAt, rateLimit, rateWindow, rateUsed,
                                              granted, taken, returned,
                                              and suspendedAt while it is suspended
    generation   pk ORG#<org>  sk GEN#<ms>    one requested image and its outcome; once it is
                                              deleted, ``deletedAt`` and no ``prompt``
    idempotency  pk ORG#<org>  sk IDEM#<key>  the generation that a customer's key stands for
    grant        pk ORG#<org>  sk GRANT#<id>  credits that an operator added or took
    usage        pk ORG#<org>  sk USAGE#<month>#<meter>  credits, taken, returned: what an API key
                                              spent in a month (``usage.py``)
    refusals     pk ORG#<org>  sk REFUSALS#<day>  refused prompts of a day, if they are limited
    listing      pk ORGS       sk ORG#<org>   that there is such an organisation

``<ms>`` is 13 digits of epoch milliseconds. Times in attributes are epoch seconds. A generation
with something left to do carries ``dueShard`` and ``dueAt``, the keys of the sparse index ``Due``:
while it is reserved, ``dueAt`` is the end of its lease.

The account's counters ``granted``, ``taken`` and ``returned`` are in credits and only grow:

    credits = granted - taken + returned

They change in the same write as ``credits``: by grants, by reservations (and by grants that take
credits), and by refunds.
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, overload

from lib.deadline import LEASE_S, WORKER_LEASE_S
from lib.ledger.order import CREDITS_PER_IMAGE, Order
from lib.picture.aspect_ratio import AspectRatio

__all__ = [
    "DEFAULT_RATE_LIMIT",
    "DUE_SHARDS",
    "Account",
    "Generation",
    "Grant",
    "Item",
    "Refund",
    "Status",
    "account_key",
    "due_shard",
    "generation_key",
    "idempotency_key",
    "listed_organisation",
    "listing_key",
    "number",
    "organisation_of",
    "parse_id",
    "string",
]

Item = Mapping[str, Any]
_ID = re.compile(r"[0-9]{13}")
DEFAULT_RATE_LIMIT = 60
DUE_SHARDS = 4


class Status(StrEnum):
    """A generation is reserved first, then settled or refunded for good."""

    RESERVED = "reserved"
    SETTLED = "settled"
    REFUNDED = "refunded"


class Refund(StrEnum):
    """What a refund did, or found."""

    MADE = "made"
    MADE_BEFORE = "made before"
    SETTLED = "settled"
    NOT_DUE = "not due"


def string(value: str) -> dict[str, str]:
    """A string in DynamoDB's JSON."""
    return {"S": value}


def number(value: int) -> dict[str, str]:
    """A whole number in DynamoDB's JSON."""
    return {"N": str(value)}


def account_key(organisation: str) -> dict[str, dict[str, str]]:
    """The key of the organisation's account."""
    return {"pk": string(f"ORG#{organisation}"), "sk": string("ACCOUNT")}


def generation_key(organisation: str, created_ms: int) -> dict[str, dict[str, str]]:
    """The key of a generation; its creation time in milliseconds is its identity."""
    return {"pk": string(f"ORG#{organisation}"), "sk": string(f"GEN#{created_ms:013d}")}


def idempotency_key(organisation: str, key: str) -> dict[str, dict[str, str]]:
    """The key of an idempotency row."""
    return {"pk": string(f"ORG#{organisation}"), "sk": string(f"IDEM#{key}")}


def listing_key(organisation: str) -> dict[str, dict[str, str]]:
    """The key of the row that lists the organisation; all of these are one partition."""
    return {"pk": string("ORGS"), "sk": string(f"ORG#{organisation}")}


def listed_organisation(item: Item) -> str:
    """The organisation that a row of ``ORGS`` lists."""
    return str(item["sk"]["S"]).removeprefix("ORG#")


def refusals_key(organisation: str, day: str) -> dict[str, dict[str, str]]:
    """The key of the count of refused prompts of one day, such as ``2026-11-26``."""
    return {"pk": string(f"ORG#{organisation}"), "sk": string(f"REFUSALS#{day}")}


def organisation_of(item: Item) -> str:
    """The organisation that owns the item."""
    return str(item["pk"]["S"]).removeprefix("ORG#")


def parse_id(text: str) -> int | None:
    """The creation time in milliseconds behind a ``Generation.id``; None if it is not an id."""
    return int(text) if _ID.fullmatch(text) else None


def due_shard(created_ms: int) -> str:
    """The partition of ``Due`` for a generation.

    A partition of an index takes 1,000 writes a second, and a generation makes two of them: four
    partitions take 2,000 generations a second.
    """
    return str(created_ms % DUE_SHARDS)


@dataclass(frozen=True, slots=True)
class Account:
    """An organisation's balance, its requests in the current minute, counters and suspension.

    ``suspension`` is the reason for it; the actors are operators.
    """

    credits: int
    rate_limit: int
    rate_window: int
    rate_used: int
    granted: int
    taken: int
    returned: int
    suspended_at: int | None = None
    suspension: str | None = None
    suspended_by: str | None = None
    rate_limit_by: str | None = None

    @classmethod
    def from_item(cls, item: Item) -> "Account":
        """Reads a stored account; before its first request it has no rate window."""
        return cls(
            credits=_int(item, "credits", 0),
            rate_limit=_int(item, "rateLimit", DEFAULT_RATE_LIMIT),
            rate_window=_int(item, "rateWindow", 0),
            rate_used=_int(item, "rateUsed", 0),
            granted=_int(item, "granted", 0),
            taken=_int(item, "taken", 0),
            returned=_int(item, "returned", 0),
            suspended_at=_int(item, "suspendedAt"),
            suspension=_str(item, "suspension"),
            suspended_by=_str(item, "suspendedBy"),
            rate_limit_by=_str(item, "rateLimitBy"),
        )


@dataclass(frozen=True, slots=True)
class Generation:
    """One requested image and its outcome. Times are in epoch seconds.

    ``model`` is the one that was configured when the request was accepted, ``image_sha256`` 64 hex
    digits. ``meter`` counts the generation in a usage row. Rows of earlier versions have none of
    them.
    """

    organisation: str
    created_ms: int
    status: Status
    credits: int
    attempt_id: str
    image_key: str
    prompt: str
    aspect_ratio: AspectRatio
    request_hash: str
    idempotency_key: str | None = None
    key_id: str | None = None
    meter: str | None = None
    asynchronous: bool = False
    model: str | None = None
    due_at: int | None = None
    settled_at: int | None = None
    refunded_at: int | None = None
    duration_ms: int | None = None
    failure_code: str | None = None
    deleted_at: int | None = None
    image_sha256: str | None = None

    @classmethod
    def reserved(
        cls, order: Order, created_ms: int, image_key: str, *, due_at: int
    ) -> "Generation":
        """A new reservation for ``order``, whose lease ends at ``due_at``."""
        return cls(
            organisation=order.organisation,
            created_ms=created_ms,
            status=Status.RESERVED,
            credits=CREDITS_PER_IMAGE,
            attempt_id=str(uuid.uuid4()),
            image_key=image_key,
            prompt=order.prompt,
            aspect_ratio=order.aspect_ratio,
            request_hash=order.request_hash,
            idempotency_key=order.idempotency_key,
            key_id=None if order.spender is None else order.spender.key_id,
            meter=None if order.spender is None else order.spender.meter,
            model=order.model,
            asynchronous=order.asynchronous,
            due_at=due_at,
        )

    @property
    def id(self) -> str:
        """The identity within the organisation: its creation time, 13 digits."""
        return f"{self.created_ms:013d}"

    @property
    def lease_s(self) -> int:
        """For how many seconds a process that has just seen the row may go on drawing its image."""
        return WORKER_LEASE_S if self.asynchronous else LEASE_S

    @property
    def key(self) -> dict[str, dict[str, str]]:
        """The key of its row."""
        return generation_key(self.organisation, self.created_ms)

    def to_item(self) -> dict[str, Any]:
        """The row of a new reservation."""
        item: dict[str, Any] = self.key | {
            "status": string(self.status),
            "credits": number(self.credits),
            "attemptId": string(self.attempt_id),
            "imageKey": string(self.image_key),
            "prompt": string(self.prompt),
            "aspectRatio": string(self.aspect_ratio),
            "requestHash": string(self.request_hash),
            "createdAt": number(self.created_ms // 1000),
        }
        if self.idempotency_key is not None:
            item["idempotencyKey"] = string(self.idempotency_key)
        if self.key_id is not None:
            item["keyId"] = string(self.key_id)
        if self.meter is not None:
            item["meter"] = string(self.meter)
        if self.asynchronous:
            item["asynchronous"] = {"BOOL": True}
        if self.model is not None:
            item["model"] = string(self.model)
        if self.due_at is not None:
            item["dueShard"] = string(due_shard(self.created_ms))
            item["dueAt"] = number(self.due_at)
        return item

    @classmethod
    def from_item(cls, item: Item) -> "Generation":
        """Reads a stored generation, or the part of one that ``Due`` projects."""
        return cls(
            organisation=organisation_of(item),
            created_ms=int(item["sk"]["S"].removeprefix("GEN#")),
            status=Status(item["status"]["S"]),
            credits=int(item["credits"]["N"]),
            attempt_id=item["attemptId"]["S"],
            image_key=item["imageKey"]["S"],
            prompt=_str(item, "prompt") or "",
            aspect_ratio=AspectRatio(_str(item, "aspectRatio") or AspectRatio.SQUARE),
            request_hash=_str(item, "requestHash") or "",
            idempotency_key=_str(item, "idempotencyKey"),
            key_id=_str(item, "keyId"),
            meter=_str(item, "meter"),
            asynchronous=bool(item.get("asynchronous", {}).get("BOOL")),
            model=_str(item, "model"),
            due_at=_int(item, "dueAt"),
            settled_at=_int(item, "settledAt"),
            refunded_at=_int(item, "refundedAt"),
            duration_ms=_int(item, "durationMs"),
            failure_code=_str(item, "failureCode"),
            deleted_at=_int(item, "deletedAt"),
            image_sha256=_str(item, "imageSha256") or None,
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """Credits that an operator added or, if negative, took."""

    grant_id: str
    credits: int
    note: str
    actor: str
    created_at: int

    def to_item(self, organisation: str) -> dict[str, dict[str, str]]:
        """The row of this grant."""
        return {
            "pk": string(f"ORG#{organisation}"),
            "sk": string(f"GRANT#{self.grant_id}"),
            "credits": number(self.credits),
            "note": string(self.note),
            "actor": string(self.actor),
            "createdAt": number(self.created_at),
        }

    @classmethod
    def from_item(cls, item: Item) -> "Grant":
        """Reads a stored grant."""
        return cls(
            grant_id=str(item["sk"]["S"]).removeprefix("GRANT#"),
            credits=int(item["credits"]["N"]),
            note=_str(item, "note") or "",
            actor=_str(item, "actor") or "",
            created_at=_int(item, "createdAt", 0),
        )


def _str(item: Item, name: str) -> str | None:
    value = item.get(name)
    return None if value is None else str(value["S"])


@overload
def _int(item: Item, name: str) -> int | None: ...


@overload
def _int(item: Item, name: str, default: int) -> int: ...


def _int(item: Item, name: str, default: int | None = None) -> int | None:
    value = item.get(name)
    return default if value is None else int(value["N"])
