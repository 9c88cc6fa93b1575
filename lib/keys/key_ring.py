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
    KeyRecord,
    StoredKey,
    UnreadableSecret,
    current_value,
    document_of,
    readable,
    record_of,
    text_of,
    warn_of_unreadable,
)
from lib.keys.verification import CACHE_S

if TYPE_CHECKING:  # the stubs are a development dependency and are not deployed
    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = [
    "MAX_GRACE",
    "MAX_LIVE_KEYS",
    "MAX_RECORDS",
    "MIN_GRACE",
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

MAX_LIVE_KEYS = 5
# A record takes about 230 bytes, so 100 of them stay far below the 64 KiB that a secret may hold.
MAX_RECORDS = 100
MIN_GRACE = timedelta(seconds=CACHE_S)
MAX_GRACE = timedelta(days=90)

_DEAD_KEPT = timedelta(days=90)
_PAUSES_AFTER_WRITES_S = (0.0, 0.2, 0.5, 1.0)
_ID_DIGITS = 12


class KeyRingError(Exception):
    """What an operator asked for was not done; the text says why and what to do next.

    KeyRingError
    ├── InvalidArgument        the organisation's name, the expiry or the grace period
    ├── UnknownOrganisation
    ├── UnknownKey
    ├── TooManyLiveKeys
    ├── SecretUnusable         it holds something else, or is marked for deletion
    ├── SecretsManagerFailed   it refused, or did not answer
    └── EditLost               somebody else kept writing the same secret
    """


class InvalidArgument(KeyRingError):
    """The organisation's name, the expiry or the grace period can't be."""


class UnknownOrganisation(KeyRingError):
    """There is no secret for this organisation."""


class UnknownKey(KeyRingError):
    """The organisation has no key with this id."""


class TooManyLiveKeys(KeyRingError):
    """The organisation has as many live keys as it may have."""


class SecretUnusable(KeyRingError):
    """The secret holds something else than keys, or is marked for deletion."""


class SecretsManagerFailed(KeyRingError):
    """Secrets Manager refused, or did not answer."""


class EditLost(KeyRingError):
    """The change was written and was gone when read back, several times over."""


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key at the one moment when it is known. ``repr`` leaves the key out."""

    id: str
    key: str = field(repr=False)


_Keys = list[StoredKey]
_Edit = Callable[[_Keys], _Keys]


class KeyRing:
    """Issues, lists, rotates and revokes the keys of organisations.

    Secrets Manager has no conditional write, so two operators who change the keys of one
    organisation at the same moment can overwrite each other. Every change is therefore read back,
    and made again, up to four times, where it is missing. It is lost all the same if the other
    write lands after that reading: list the keys after working on one organisation together.
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

    def issue(self, organisation: str, *, expires_at: datetime | None = None) -> IssuedKey:
        """A new key, shown here and never again. Creates the organisation's secret if need be.

        ``expires_at`` is aware; whole seconds of it are stored.

        Raises:
            InvalidArgument: the name is no organisation's, or the expiry is naive or past.
            TooManyLiveKeys: there are ``MAX_LIVE_KEYS`` already.
            SecretUnusable, SecretsManagerFailed, EditLost: as their names say.
        """
        now = self._now()
        if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now):
            raise InvalidArgument("the expiry must lie ahead and state its offset from UTC")
        _require_organisation(organisation)
        issued = IssuedKey(_new_id(), new_key(organisation))
        record = _record_to_store(issued, now, expires_at)

        def edit(keys: _Keys) -> _Keys:
            return _with_added(organisation, keys, record, now)

        self._change(organisation, edit, creates=True)
        return issued

    def list(self, organisation: str) -> Sequence[KeyRecord]:
        """The keys of ``organisation``, oldest first; dead ones stay for about 90 days.

        Raises:
            InvalidArgument, UnknownOrganisation, SecretUnusable, SecretsManagerFailed: as their
                names say.
        """
        document = self._read(organisation)
        if document is None:
            raise _unknown(organisation)
        warn_of_unreadable(organisation, document["keys"])
        return sorted(readable(document["keys"]), key=lambda record: record.created_at)

    def rotate(self, organisation: str, *, grace: timedelta) -> IssuedKey | None:
        """A new key; every other live key ends after ``grace``, or sooner if it was to end sooner.

        Both happen in one write, so a rotation is made as a whole or not at all. None says that
        it is made already and that nothing was changed: there is a key without expiry younger
        than ``grace``, and every older live key ends within ``grace``. So a second run with the
        same grace period does no harm to the key that the first one made. If nobody saw that key,
        because the terminal died, revoke it and rotate again.

        Raises:
            InvalidArgument: the name is no organisation's, or ``grace`` is not between
                ``MIN_GRACE`` and ``MAX_GRACE``. (To end a leaked key at once, issue another one
                and revoke it.)
            TooManyLiveKeys: there is no room for the new key; nothing was changed.
            UnknownOrganisation, SecretUnusable, SecretsManagerFailed, EditLost: as their names say.
        """
        if not MIN_GRACE <= grace <= MAX_GRACE:
            raise InvalidArgument("the grace period must be between one minute and 90 days")
        now = self._now()
        _require_organisation(organisation)
        issued = IssuedKey(_new_id(), new_key(organisation))
        record = _record_to_store(issued, now, None)

        def edit(keys: _Keys) -> _Keys:
            return _rotated(organisation, keys, record, now, grace)

        keys = self._change(organisation, edit)
        return issued if _has(keys, issued.id) else None

    def revoke(self, organisation: str, key_id: str) -> KeyRecord:
        """Ends a key, everywhere within 60 s. Doing it again changes nothing.

        Raises:
            UnknownKey: the organisation has no such key, or its record can't be read.
            InvalidArgument, UnknownOrganisation, SecretUnusable, SecretsManagerFailed, EditLost:
                as their names say.
        """
        now = self._now()

        def edit(keys: _Keys) -> _Keys:
            return _revoked(organisation, keys, key_id, now)

        keys = self._change(organisation, edit)
        return next(record for record in readable(keys) if record.id == key_id)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock()), UTC)

    def _change(self, organisation: str, edit: _Edit, *, creates: bool = False) -> _Keys:
        """Writes until ``edit`` finds nothing left to do; the keys as they then are stored."""
        # What is read back may be a moment old. Writing the same value again under the same token
        # "succeeds but does nothing" (PutSecretValue in the API reference of Secrets Manager).
        tokens: dict[str, str] = {}
        unanswered: BotoCoreError | None = None
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
                unanswered = None
            except BotoCoreError as fault:
                unanswered = fault  # The write may have been made: reading it back tells.
            self._sleep(pause_s)
        if unanswered is not None:
            raise _failed(type(unanswered).__name__) from unanswered
        raise EditLost(
            f"the keys of {organisation} were written {len(_PAUSES_AFTER_WRITES_S)} times and the "
            f"change was not there afterwards: somebody else is changing them, or the secret "
            f"{self._prefix}{organisation} was made without a value and needs "
            '{"keys": []}; list the keys, then try again'
        )

    def _read(self, organisation: str) -> dict[str, Any] | None:
        _require_organisation(organisation)
        name = self._prefix + organisation
        try:
            return document_of(current_value(self._client, name))
        except ClientError as fault:
            code = error_code(fault)
            if code == "ResourceNotFoundException":
                return None
            if code == "InvalidRequestException":
                raise SecretUnusable(
                    f"the secret {name} is marked for deletion; restore it in Secrets Manager "
                    "to use this organisation again"
                ) from fault
            raise _failed(code) from fault
        except BotoCoreError as fault:
            raise _failed(type(fault).__name__) from fault
        except UnreadableSecret as fault:
            raise SecretUnusable(
                f"the secret {name} holds something else than keys and was left as it is; look at "
                "it in Secrets Manager, and at the prefix of the organisations' secrets"
            ) from fault

    def _write(self, organisation: str, value: str, token: str, *, creates: bool) -> None:
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
            # Somebody created it since it was read: the next reading shows what is in it.
            if creates and code == "ResourceExistsException":
                return
            raise _failed(code) from fault


def _unknown(organisation: str) -> UnknownOrganisation:
    return UnknownOrganisation(
        f"there are no keys of {organisation}; check the name, or issue its first key"
    )


def _failed(reason: str) -> SecretsManagerFailed:
    return SecretsManagerFailed(
        f"Secrets Manager did not do it ({reason}); list the keys before you try again, "
        "because the change may have been made"
    )


# Changes to an organisation's keys. Each one, done to its own result, changes nothing.


def _new_id() -> str:
    return "key_" + "".join(secrets.choice(ALPHABET) for _ in range(_ID_DIGITS))


def _record_to_store(issued: IssuedKey, now: datetime, expires_at: datetime | None) -> StoredKey:
    return {
        "id": issued.id,
        "sha256": fingerprint(issued.key),
        "createdAt": text_of(now),
        "expiresAt": None if expires_at is None else text_of(expires_at),
        "revokedAt": None,
    }


def _has(keys: _Keys, key_id: str) -> bool:
    return any(record.id == key_id for record in readable(keys))


def _with_added(organisation: str, keys: _Keys, added: StoredKey, now: datetime) -> _Keys:
    if _has(keys, added["id"]):
        return keys
    live = sum(record.is_live(now) for record in readable(keys))
    if live >= MAX_LIVE_KEYS:
        raise TooManyLiveKeys(
            f"{organisation} has {live} live keys and may have {MAX_LIVE_KEYS}; "
            "revoke one that is not needed any more, then try again"
        )
    return [*_pruned(keys, now), added]


def _pruned(keys: _Keys, now: datetime) -> _Keys:
    """``keys`` without those dead for long, nor the longest dead if one more would be too many."""
    ends: dict[int, datetime] = {}
    for position, stored in enumerate(keys):
        record = record_of(stored)
        ended_at = None if record is None else record.ended_at(now)
        if ended_at is not None:
            ends[position] = ended_at
    room = max(0, MAX_RECORDS - 1 - (len(keys) - len(ends)))
    lately_first = sorted(ends, key=ends.__getitem__, reverse=True)
    kept = {position for position in lately_first[:room] if now - ends[position] <= _DEAD_KEPT}
    return [stored for at, stored in enumerate(keys) if at not in ends or at in kept]


def _rotated(
    organisation: str, keys: _Keys, added: StoredKey, now: datetime, grace: timedelta
) -> _Keys:
    if not _has(keys, added["id"]) and _is_rotated(keys, now, grace):
        return keys
    ends_at = now + grace

    def ending(stored: StoredKey) -> StoredKey:
        record = record_of(stored)
        if record is None or record.id == added["id"] or not record.is_live(now):
            return stored
        if record.expires_at is not None and record.expires_at <= ends_at:
            return stored
        return {**stored, "expiresAt": text_of(ends_at)}

    return [ending(stored) for stored in _with_added(organisation, keys, added, now)]


def _is_rotated(keys: _Keys, now: datetime, grace: timedelta) -> bool:
    live = sorted(
        (record for record in readable(keys) if record.is_live(now)),
        key=lambda record: record.created_at,
    )
    if not live[1:]:
        return False
    *older, newest = live
    return (
        newest.expires_at is None
        and now - newest.created_at < grace
        and all(record.expires_at and record.expires_at <= now + grace for record in older)
    )


def _revoked(organisation: str, keys: _Keys, key_id: str, now: datetime) -> _Keys:
    if not _has(keys, key_id):
        raise UnknownKey(f"{organisation} has no key with that id; list its keys to see the ids")

    def ending(stored: StoredKey) -> StoredKey:
        record = record_of(stored)
        if record is None or record.id != key_id or record.revoked_at is not None:
            return stored
        return {**stored, "revokedAt": text_of(now)}

    return [ending(stored) for stored in keys]


def _require_organisation(organisation: str) -> None:
    if not is_organisation(organisation):
        raise InvalidArgument(
            "an organisation's name is 1 to 63 of a-z, 0-9, _ and -, "
            "and begins with a letter or a digit"
        )
