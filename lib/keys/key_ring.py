"""The operator's key ring: issues, lists, rotates and revokes the keys of organisations."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from lib.clients import error_code
from lib.keys.format import ALPHABET, fingerprint, is_organisation, new_key
from lib.keys.records import (
    MAX_BUDGET,
    KeyRecord,
    StoredKey,
    UnreadableSecret,
    format_time,
    is_budget,
    is_key_name,
    log_invalid_records,
    parse_record,
    parse_secret,
    read_secret_value,
    valid_records,
)
from lib.keys.verification import CACHE_S

if TYPE_CHECKING:  # the stubs are a development dependency and are not deployed
    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = [
    "MAX_GRACE",
    "MAX_LIVE_KEYS",
    "MAX_RECORDS",
    "MIN_GRACE",
    "BudgetsDiffer",
    "EditLost",
    "InvalidArgument",
    "IssuedKey",
    "KeyRing",
    "KeyRingError",
    "SecretUnusable",
    "SecretsManagerFailed",
    "TooManyLiveKeys",
    "UnknownKey",
    "UnknownOrganisation",
]

MAX_LIVE_KEYS = 20
# A record with all fields takes at most 380 bytes; a secret may hold 64 KiB.
# Source: "Secrets Manager quotas".
MAX_RECORDS = 100
MIN_GRACE = timedelta(seconds=CACHE_S)
MAX_GRACE = timedelta(days=90)

_DEAD_KEPT_FOR = timedelta(days=90)
_PAUSES_AFTER_WRITES_S = (0.0, 0.2, 0.5, 1.0)
_ID_DIGITS = 12


class KeyRingError(Exception):
    """The operation failed; the message tells the operator why and what to do next.

    KeyRingError
    ├── InvalidArgument        a name, the expiry, the budget or the grace period
    ├── UnknownOrganisation
    ├── UnknownKey
    ├── TooManyLiveKeys
    ├── BudgetsDiffer          one key cannot replace keys with different budgets
    ├── SecretUnusable         it does not hold keys, or is scheduled for deletion
    ├── SecretsManagerFailed   it returned an error, or did not respond
    └── EditLost               another operator kept overwriting the change
    """


class InvalidArgument(KeyRingError):
    """A name, the expiry, the budget or the grace period is invalid."""


class UnknownOrganisation(KeyRingError):
    """The organisation has no secret."""


class UnknownKey(KeyRingError):
    """The organisation has no key with this id."""


class TooManyLiveKeys(KeyRingError):
    """The organisation has ``MAX_LIVE_KEYS`` live keys already."""


class BudgetsDiffer(KeyRingError):
    """One key cannot replace keys that have different budgets."""


class SecretUnusable(KeyRingError):
    """The secret does not hold keys, or is scheduled for deletion."""


class SecretsManagerFailed(KeyRingError):
    """Secrets Manager returned an error, or did not respond."""


class EditLost(KeyRingError):
    """The change was written several times, and each time was missing when read back."""


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key, in plain text for the only time. ``repr`` omits the key."""

    id: str
    key: str = field(repr=False)


_Keys = list[StoredKey]
_Edit = Callable[[_Keys], _Keys]


class KeyRing:
    """Issues, lists, rotates and revokes the keys of organisations.

    Secrets Manager has no conditional writes, so two operators who change one organisation's keys
    at the same time can overwrite each other. Every change is therefore read back and, if it is
    missing, written again, up to four times. It is still lost if the other write lands after the
    last read: list the keys after concurrent changes.

    ``clock`` gives epoch seconds. ``secrets_client`` bounds each call by its own timeouts.
    """

    def __init__(
        self,
        secrets_client: SecretsManagerClient,
        prefix: str,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = secrets_client
        self._prefix = prefix
        self._clock = clock
        self._sleep = sleep

    def issue(
        self,
        organisation: str,
        *,
        name: str | None = None,
        expires_at: datetime | None = None,
        monthly_budget: int | None = None,
    ) -> IssuedKey:
        """Issues a key, which cannot be read again later. Creates the secret if it is missing.

        ``name`` tells keys apart for people. ``expires_at`` is aware and is stored to the second.
        ``monthly_budget`` is in credits; None sets no limit.

        Raises:
            InvalidArgument: a name or the budget is invalid, or the expiry is naive or not in the
                future.
            TooManyLiveKeys: the organisation has ``MAX_LIVE_KEYS`` live keys already.
            SecretUnusable, SecretsManagerFailed, EditLost: see these classes.
        """
        now = self._now()
        if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now):
            raise InvalidArgument("the expiry must be in the future and state its UTC offset")
        _require_key_name(name)
        _require_budget(monthly_budget)
        _require_organisation(organisation)
        issued = IssuedKey(_new_id(), new_key(organisation))
        record = _record_to_store(issued, now, expires_at, name)
        record["monthlyBudget"] = monthly_budget

        def edit(keys: _Keys) -> _Keys:
            return _with_added(organisation, keys, record, now)

        self._change(organisation, edit, creates=True)
        return issued

    def list(self, organisation: str) -> Sequence[KeyRecord]:
        """The keys of ``organisation``, oldest first; dead keys are kept for about 90 days.

        Raises:
            InvalidArgument, UnknownOrganisation, SecretUnusable, SecretsManagerFailed: see these
                classes.
        """
        document = self._read(organisation)
        if document is None:
            raise _unknown(organisation)
        log_invalid_records(organisation, document["keys"])
        return _oldest_first(document["keys"])

    def rotate(
        self,
        organisation: str,
        *,
        grace: timedelta,
        key_id: str | None = None,
        name: str | None = None,
    ) -> IssuedKey | None:
        """Issues a key and expires those that it replaces after ``grace``, or at their own expiry.

        It replaces the key ``key_id`` and those of the same meter, or every key. A rotated key
        spends from the budget of the key that it replaces: it has the meter, the budget and,
        without a ``name`` of its own, the name of the newest of them.

        One write does both, so a rotation is never partial. Returns None, having changed nothing,
        if the keys are rotated already: the newest live key is younger than ``grace`` and has no
        expiry, and every older one expires within ``grace``. Repeating a rotation with the same
        grace period therefore does not expire the key that the first run issued. If that key was
        never displayed, because the terminal died, revoke it and rotate again.

        Raises:
            InvalidArgument: a name is invalid, or ``grace`` is not between ``MIN_GRACE`` and
                ``MAX_GRACE``. (To end a leaked key immediately, issue another and revoke it.)
            UnknownKey: the organisation has no key ``key_id``, or its record is invalid.
            BudgetsDiffer: without ``key_id``, keys of several meters, and some have a budget.
            TooManyLiveKeys: there is no room for the new key; nothing was changed.
            UnknownOrganisation, SecretUnusable, SecretsManagerFailed, EditLost: see these classes.
        """
        if not MIN_GRACE <= grace <= MAX_GRACE:
            raise InvalidArgument("the grace period must be between one minute and 90 days")
        _require_key_name(name)
        now = self._now()
        _require_organisation(organisation)
        issued = IssuedKey(_new_id(), new_key(organisation))
        record = _record_to_store(issued, now, None, name)

        def edit(keys: _Keys) -> _Keys:
            others = [each for each in _oldest_first(keys) if each.id != issued.id]
            replaced = _replaced(organisation, others, key_id, now)
            return _rotated(organisation, keys, record, replaced, now, grace)

        keys = self._change(organisation, edit)
        return issued if _has(keys, issued.id) else None

    def set_budget(self, organisation: str, key_id: str, monthly_budget: int | None) -> KeyRecord:
        """Sets the monthly budget of a key and of all with the same meter. Idempotent.

        Every process knows it within 60 s. None sets no limit.

        Raises:
            UnknownKey: the organisation has no such key, or its record is invalid.
            InvalidArgument: the budget or the organisation's name is invalid.
            UnknownOrganisation, SecretUnusable, SecretsManagerFailed, EditLost: see these classes.
        """
        _require_budget(monthly_budget)

        def edit(keys: _Keys) -> _Keys:
            meter = _named(organisation, valid_records(keys), key_id).meter
            return [
                {**stored, "monthlyBudget": monthly_budget}
                if (found := parse_record(stored)) is not None and found.meter == meter
                else stored
                for stored in keys
            ]

        keys = self._change(organisation, edit)
        return _named(organisation, valid_records(keys), key_id)

    def revoke(self, organisation: str, key_id: str) -> KeyRecord:
        """Revokes a key, which every process rejects within 60 s. Idempotent.

        Raises:
            UnknownKey: the organisation has no such key, or its record is invalid.
            InvalidArgument, UnknownOrganisation, SecretUnusable, SecretsManagerFailed, EditLost:
                see these classes.
        """
        now = self._now()

        def edit(keys: _Keys) -> _Keys:
            return _revoked(organisation, keys, key_id, now)

        keys = self._change(organisation, edit)
        return _named(organisation, valid_records(keys), key_id)

    def _now(self) -> datetime:
        """The current time in UTC, to the second, as records store it."""
        return datetime.fromtimestamp(int(self._clock()), UTC)

    def _change(self, organisation: str, edit: _Edit, *, creates: bool = False) -> _Keys:
        """Applies ``edit``, which is idempotent, until it changes nothing; returns the stored keys.

        Raises:
            EditLost: the change was missing after every write.
            UnknownOrganisation: there is no secret, and ``creates`` is false.
            InvalidArgument, SecretUnusable, SecretsManagerFailed: see these classes.
        """
        # A read may be stale. Repeating a write with the same value and token has no effect.
        # Source: PutSecretValue in the API reference of Secrets Manager.
        tokens: dict[str, str] = {}
        lost_response: BotoCoreError | None = None
        for pause_s in (*_PAUSES_AFTER_WRITES_S, None):
            document = self._read(organisation)
            if document is None and not creates:
                raise _unknown(organisation)
            keys = edit(document["keys"] if document else [])
            if document and document["keys"] == keys:
                return keys
            if pause_s is None:
                break
            value = json.dumps({**(document or {}), "keys": keys})
            token = tokens.setdefault(value, str(uuid.uuid4()))
            try:
                self._write(organisation, value, token, creates=document is None)
                lost_response = None
            except BotoCoreError as fault:
                lost_response = fault  # The write may have committed: the next read tells.
            self._sleep(pause_s)
        if lost_response is not None:
            raise _failed(type(lost_response).__name__) from lost_response
        raise EditLost(
            f"the change to the keys of {organisation} was written {len(_PAUSES_AFTER_WRITES_S)} "
            "times and was missing each time: another operator is changing them, or the secret "
            f"{self._prefix}{organisation} was created without a value and needs "
            '{"keys": []}; list the keys, then try again'
        )

    def _read(self, organisation: str) -> dict[str, Any] | None:
        """The parsed secret of ``organisation``; None if it does not exist.

        Raises:
            InvalidArgument, SecretUnusable, SecretsManagerFailed: see these classes.
        """
        _require_organisation(organisation)
        name = self._prefix + organisation
        try:
            return parse_secret(read_secret_value(self._client, name))
        except ClientError as fault:
            code = error_code(fault)
            if code == "ResourceNotFoundException":
                return None
            if code == "InvalidRequestException":
                raise SecretUnusable(
                    f"the secret {name} is scheduled for deletion; restore it in Secrets Manager "
                    "to use this organisation again"
                ) from fault
            raise _failed(code) from fault
        except BotoCoreError as fault:
            raise _failed(type(fault).__name__) from fault
        except UnreadableSecret as fault:
            raise SecretUnusable(
                f"the secret {name} does not hold keys and was left as it is; check it in Secrets "
                "Manager, and the prefix of the organisations' secrets"
            ) from fault

    def _write(self, organisation: str, value: str, token: str, *, creates: bool) -> None:
        """Writes ``value``; the same ``token`` makes a repetition harmless.

        Raises:
            SecretsManagerFailed: the call returned an error.
            BotoCoreError: the call got no response, so the value may be written.
        """
        name = self._prefix + organisation
        try:
            if creates:
                self._client.create_secret(
                    Name=name,
                    Description=f"Hashes of the API keys of {organisation}",
                    SecretString=value,
                    ClientRequestToken=token,
                )
            else:
                self._client.put_secret_value(
                    SecretId=name, SecretString=value, ClientRequestToken=token
                )
        except ClientError as fault:
            code = error_code(fault)
            # Another operator created it after the read: the next read returns its value.
            if creates and code == "ResourceExistsException":
                return
            raise _failed(code) from fault


def _unknown(organisation: str) -> UnknownOrganisation:
    """The error for an organisation without a secret."""
    return UnknownOrganisation(
        f"there are no keys of {organisation}; check the name, or issue its first key"
    )


def _failed(reason: str) -> SecretsManagerFailed:
    """The error for a failed call; ``reason`` is an AWS error code or an exception's type."""
    return SecretsManagerFailed(
        f"Secrets Manager failed ({reason}); list the keys before you try again, "
        "because the change may have been made"
    )


# Edits of an organisation's keys. Each is idempotent: its own result is left unchanged.


def _new_id() -> str:
    """A random key id, with 71 bits."""
    return "key_" + "".join(secrets.choice(ALPHABET) for _ in range(_ID_DIGITS))


def _record_to_store(
    issued: IssuedKey, now: datetime, expires_at: datetime | None, name: str | None
) -> StoredKey:
    """The stored record of a key issued at ``now``."""
    return {
        "id": issued.id,
        "sha256": fingerprint(issued.key),
        "createdAt": format_time(now),
        "expiresAt": None if expires_at is None else format_time(expires_at),
        "revokedAt": None,
        "name": name,
    }


def _has(keys: _Keys, key_id: str) -> bool:
    """Whether one of the valid records has the id ``key_id``."""
    return any(record.id == key_id for record in valid_records(keys))


def _named(organisation: str, records: list[KeyRecord], key_id: str) -> KeyRecord:
    """The record with the id ``key_id``.

    Raises:
        UnknownKey: there is none.
    """
    for record in records:
        if record.id == key_id:
            return record
    raise UnknownKey(f"{organisation} has no key with that id; list its keys to see the ids")


def _with_added(organisation: str, keys: _Keys, added: StoredKey, now: datetime) -> _Keys:
    """``keys`` and ``added``, pruned.

    Raises:
        TooManyLiveKeys: there are ``MAX_LIVE_KEYS`` live keys already.
    """
    if _has(keys, added["id"]):
        return keys
    live = sum(record.is_live(now) for record in valid_records(keys))
    if live >= MAX_LIVE_KEYS:
        raise TooManyLiveKeys(
            f"{organisation} has {live} live keys and may have {MAX_LIVE_KEYS}; "
            "revoke one that is no longer needed, then try again"
        )
    return [*_pruned(keys, now), added]


def _pruned(keys: _Keys, now: datetime) -> _Keys:
    """``keys`` without dead keys past retention, and without the oldest dead ones if it is full.

    The result leaves room for one more record, unless live and invalid ones alone fill it.
    """
    ends: dict[int, datetime] = {}
    for position, stored in enumerate(keys):
        record = parse_record(stored)
        ended_at = None if record is None else record.ended_at(now)
        if ended_at is not None:
            ends[position] = ended_at
    room = max(0, MAX_RECORDS - 1 - (len(keys) - len(ends)))
    newest_first = sorted(ends, key=ends.__getitem__, reverse=True)
    kept = {position for position in newest_first[:room] if now - ends[position] <= _DEAD_KEPT_FOR}
    return [stored for at, stored in enumerate(keys) if at not in ends or at in kept]


def _oldest_first(keys: _Keys) -> list[KeyRecord]:
    return sorted(valid_records(keys), key=lambda record: record.created_at)


def _replaced(
    organisation: str, records: list[KeyRecord], key_id: str | None, now: datetime
) -> list[KeyRecord]:
    """Those of ``records`` that a rotation replaces, live and dead.

    Raises:
        UnknownKey, BudgetsDiffer: see ``KeyRing.rotate``.
    """
    if key_id is not None:
        meter = _named(organisation, records, key_id).meter
        return [record for record in records if record.meter == meter]
    live = [record for record in records if record.is_live(now)]
    has_budgets = any(record.monthly_budget is not None for record in live)
    if has_budgets and len({record.meter for record in live}) > 1:
        raise BudgetsDiffer(
            f"one key cannot continue the budgets of several keys of {organisation}; "
            "rotate them one by one, by their ids"
        )
    return records


def _rotated(
    organisation: str,
    keys: _Keys,
    added: StoredKey,
    replaced: list[KeyRecord],
    now: datetime,
    grace: timedelta,
) -> _Keys:
    """``keys`` and ``added``, with the live ones of ``replaced`` expiring by ``now + grace``.

    ``replaced`` is sorted by age. Unchanged if they are rotated already.

    Raises:
        TooManyLiveKeys: there is no room for ``added``.
    """
    live = [record for record in replaced if record.is_live(now)]
    if not _has(keys, added["id"]) and _is_rotated(live, now, grace):
        return keys
    ends_at = now + grace
    expiring = {
        record.id for record in live if record.expires_at is None or record.expires_at > ends_at
    }
    # Without a live one, the newest dead one: its budget must not end with it.
    for newest in (live or replaced)[-1:]:
        added = added | {
            "name": added["name"] or newest.name,
            "monthlyBudget": newest.monthly_budget,
            "meter": newest.meter,
        }
    return [
        {**stored, "expiresAt": format_time(ends_at)}
        if (record := parse_record(stored)) is not None and record.id in expiring
        else stored
        for stored in _with_added(organisation, keys, added, now)
    ]


def _is_rotated(live: list[KeyRecord], now: datetime, grace: timedelta) -> bool:
    """Whether the keys, sorted by age, are rotated already, as ``KeyRing.rotate`` defines it."""
    if not live[1:]:
        return False
    *older, newest = live
    return (
        newest.expires_at is None
        and now - newest.created_at < grace
        and all(record.expires_at and record.expires_at <= now + grace for record in older)
    )


def _revoked(organisation: str, keys: _Keys, key_id: str, now: datetime) -> _Keys:
    """``keys`` with the key ``key_id`` revoked at ``now``, or earlier.

    Raises:
        UnknownKey: there is no such key.
    """
    _named(organisation, valid_records(keys), key_id)

    def revoked(stored: StoredKey) -> StoredKey:
        record = parse_record(stored)
        if record is None or record.id != key_id or record.revoked_at is not None:
            return stored
        return {**stored, "revokedAt": format_time(now)}

    return [revoked(stored) for stored in keys]


def _require_organisation(organisation: str) -> None:
    """Raises ``InvalidArgument`` unless ``organisation`` is a valid name."""
    if not is_organisation(organisation):
        raise InvalidArgument(
            "an organisation's name is 1 to 63 of a-z, 0-9, _ and -, "
            "and begins with a letter or a digit"
        )


def _require_key_name(name: str | None) -> None:
    """Raises ``InvalidArgument`` unless ``name`` can be the name of a key."""
    if name is not None and not is_key_name(name):
        raise InvalidArgument("a key's name is 1 to 64 of a-z, A-Z, 0-9 and ._:-")


def _require_budget(monthly_budget: int | None) -> None:
    """Raises ``InvalidArgument`` unless ``monthly_budget`` can be a budget, or none."""
    if monthly_budget is not None and not is_budget(monthly_budget):
        raise InvalidArgument(f"a key's budget is 0 to {MAX_BUDGET} credits a month")
