"""API keys: their format, their hashes in Secrets Manager, and who may come in.

A key is ``gg_<organisation>_<43 base62 characters><6 base62 characters of CRC-32>``: secret
scanners recognise it, it holds 256 random bits, and a mistyped one is refused without a look-up.

The secret named ``<prefix><organisation>`` holds the hashes of that organisation's keys, never a
key:

    {"keys": [{"id": "key_3fZk0W9xQvTb", "sha256": "<64 hex digits, of the whole key>",
               "createdAt": "2026-11-22T22:10:00Z", "expiresAt": null, "revokedAt": null}]}

All five fields are there; a time is ISO 8601 with an offset, or null. A record that breaks these
rules opens nothing, and is left as it is when the secret is rewritten. Keep the prefix for these
secrets alone: whoever knows another secret's name could have it looked up as an organisation.

``ApiKeys`` answers requests, ``KeyRing`` is the operator's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from lib.errors import ServiceUnavailable, Unauthorized

if TYPE_CHECKING:  # the stubs are a development dependency and are not deployed
    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = [
    "CACHE_S",
    "MAX_CACHED_ORGANISATIONS",
    "MAX_GRACE",
    "MAX_LIVE_KEYS",
    "MAX_RECORDS",
    "MIN_GRACE",
    "NEW_KEY_S",
    "ApiKeys",
    "EditLost",
    "InvalidArgument",
    "IssuedKey",
    "KeyRecord",
    "KeyRing",
    "KeyRingError",
    "SecretUnusable",
    "SecretsManagerFailed",
    "TooManyLiveKeys",
    "UnknownKey",
    "UnknownOrganisation",
    "is_organisation",
    "new_key",
    "parse_key",
]

CACHE_S = 60.0
NEW_KEY_S = 5.0
MAX_CACHED_ORGANISATIONS = 10_000
MAX_LIVE_KEYS = 5
# A record takes about 230 bytes, so 100 of them stay far below the 64 KiB that a secret may hold.
MAX_RECORDS = 100
MIN_GRACE = timedelta(seconds=CACHE_S)
MAX_GRACE = timedelta(days=90)

_DEAD_KEPT = timedelta(days=90)
_JOINED_LOOK_UP_S = 10.0
_PAUSES_AFTER_WRITES_S = (0.0, 0.2, 0.5, 1.0)

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_BITS = 256
_RANDOM_DIGITS = 43
_CHECKSUM_DIGITS = 6
_ID_DIGITS = 12
_MAX_HEADER_CHARACTERS = 256
_MAX_KEY_CHARACTERS = len("gg_") + 63 + len("_") + _RANDOM_DIGITS + _CHECKSUM_DIGITS
_HEADER_WORDS = 2

_ORGANISATION = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
# An organisation may contain underscores; the lengths after it are fixed, so there is one reading.
_KEY = re.compile(r"gg_(?P<organisation>[a-z0-9][a-z0-9_-]{0,62})_[0-9A-Za-z]{49}")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")

_LOG = logging.getLogger(__name__)


# The key itself


def new_key(organisation: str) -> str:
    """A new key of ``organisation`` with 256 bits from the operating system.

    Raises:
        InvalidArgument: ``organisation`` is no organisation's name.
    """
    _require_organisation(organisation)
    random = _base62(secrets.randbits(_RANDOM_BITS), _RANDOM_DIGITS)
    body = f"gg_{organisation}_{random}"
    return body + _checksum(body)


def parse_key(text: str) -> str | None:
    """The organisation that ``text`` claims to be a key of; None if its shape or checksum is wrong.

    Decided offline: a key that passes may still be unknown.
    """
    if len(text) > _MAX_KEY_CHARACTERS:
        return None
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    body, checksum = text[:-_CHECKSUM_DIGITS], text[-_CHECKSUM_DIGITS:]
    return match["organisation"] if checksum == _checksum(body) else None


def is_organisation(text: str) -> bool:
    """Whether ``text`` can name an organisation: 1-63 of ``a-z 0-9 _ -``, a letter or digit first.

    It is part of keys, of secret names and of image addresses, hence so few characters.
    """
    return _ORGANISATION.fullmatch(text) is not None


def _require_organisation(organisation: str) -> None:
    if not is_organisation(organisation):
        raise InvalidArgument(
            "an organisation's name is 1 to 63 of a-z, 0-9, _ and -, "
            "and begins with a letter or a digit"
        )


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode("utf-8")), _CHECKSUM_DIGITS)


def _base62(number: int, width: int) -> str:
    """``number`` in ``width`` digits, the most significant first, padded with ``0``."""
    digits = []
    for _ in range(width):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _fingerprint(key: str) -> str:
    # A plain hash is enough: 256 random bits can't be guessed, however fast the hash is.
    return hashlib.sha256(key.encode("utf-8")).hexdigest()


# What a secret holds


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


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key at the one moment when it is known. ``repr`` leaves the key out."""

    id: str
    key: str = field(repr=False)


class _Unreadable(Exception):
    """The value of a secret is not a JSON object with a list of keys."""


# A record as it is stored. It is kept whole, so that fields of other programs survive a rewrite.
_Stored = dict[str, Any]
_Keys = list[_Stored]


def _document_of(value: str | None) -> dict[str, Any]:
    """The object in a secret's value, its ``keys`` being a list.

    Raises:
        _Unreadable: it is something else.
    """
    if value is None:
        raise _Unreadable("binary")
    try:
        document = json.loads(value)
    except (ValueError, RecursionError) as fault:
        raise _Unreadable("not JSON") from fault
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(keys, list):
        raise _Unreadable("not a list of keys")
    return document


def _record_of(stored: object) -> KeyRecord | None:
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


def _readable(keys: _Keys) -> list[KeyRecord]:
    return [record for record in map(_record_of, keys) if record is not None]


def _warn_of_unreadable(organisation: str, keys: _Keys) -> None:
    for position, stored in enumerate(keys, start=1):
        if _record_of(stored) is None:
            _LOG.warning("record %d of the keys of %s can't be read", position, organisation)


def _time_of(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without an offset")
    return moment


def _text_of(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _current_value(client: SecretsManagerClient, name: str) -> str | None:
    """The secret's text; None if it is binary. The client's errors pass through."""
    answer = client.get_secret_value(SecretId=name, VersionStage="AWSCURRENT")
    return answer.get("SecretString")


def _code_of(fault: ClientError) -> str:
    return fault.response.get("Error", {}).get("Code", "")


# The door


@dataclass(frozen=True, slots=True)
class _Looked:
    """What a look-up found, and when it was asked; ``records`` is None for no such organisation."""

    asked_at: float
    records: Sequence[KeyRecord] | None


class ApiKeys:
    """Tells which organisation a request comes from. Safe to share between threads.

    What a look-up found, a missing organisation included, serves for 60 s in this process:

    - a revoked key is refused within 60 s, and an expired one at once;
    - a new key works within 5 s: a key that the records don't know has them read again if they
      are older than that, so guessing at one organisation costs at most one look-up in 5 s;
    - the first key of an organisation works at once, or within 60 s if its keys were asked for
      while there were none.

    A failure of Secrets Manager is never remembered, and records older than 60 s are not used
    while it lasts: refusing for some minutes is better than letting a revoked key in.

    ``secrets_client`` bounds a look-up by its own time-outs and retries. ``clock`` is in seconds
    since 1970 and is the wall's, because a monotonic clock may stand still while Lambda has the
    process frozen.
    """

    def __init__(
        self,
        secrets_client: SecretsManagerClient,
        prefix: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = secrets_client
        self._prefix = prefix
        self._clock = clock
        self._lock = threading.Lock()
        self._cache: dict[str, _Looked] = {}
        self._under_way: dict[str, Future[_Looked]] = {}

    def organisation_of(self, authorization_header: str | None) -> str:
        """The organisation whose live key is in ``Authorization: Bearer <key>``.

        Raises:
            Unauthorized: the key is missing, malformed, unknown, revoked or expired.
            ServiceUnavailable: Secrets Manager failed, or the secret can't be read.
        """
        key = _bearer_token(authorization_header)
        organisation = None if key is None else parse_key(key)
        if key is None or organisation is None:
            raise Unauthorized

        fingerprint = _fingerprint(key)
        records = self._records(organisation, CACHE_S)
        if records is None:
            raise Unauthorized
        matching = _matching(records, fingerprint)
        if not matching:
            matching = _matching(self._records(organisation, NEW_KEY_S) or (), fingerprint)
        now = datetime.fromtimestamp(self._clock(), UTC)
        if not any(record.is_live(now) for record in matching):
            raise Unauthorized
        return organisation

    def _records(self, organisation: str, max_age_s: float) -> Sequence[KeyRecord] | None:
        """What is known of ``organisation``, looked up by one thread for all that ask."""
        with self._lock:
            known = self._cache.get(organisation)
            # A clock that was set back must not keep an entry for longer.
            if known is not None and 0 <= self._clock() - known.asked_at < max_age_s:
                return known.records
            answer = self._under_way.get(organisation)
            is_first = answer is None
            if answer is None:
                answer = self._under_way[organisation] = Future[_Looked]()
        if is_first:
            return self._look_up_for_all(organisation, answer).records
        try:
            return answer.result(timeout=_JOINED_LOOK_UP_S).records
        except (CancelledError, TimeoutError) as fault:
            raise ServiceUnavailable from fault

    def _look_up_for_all(self, organisation: str, answer: Future[_Looked]) -> _Looked:
        try:
            looked = self._look_up(organisation)
            with self._lock:
                self._remember(organisation, looked)
            answer.set_result(looked)
        finally:
            with self._lock:
                del self._under_way[organisation]
            answer.cancel()  # Does nothing to an answer; without one, nobody waits in vain.
        return looked

    def _look_up(self, organisation: str) -> _Looked:
        asked_at = self._clock()
        try:
            value = _current_value(self._client, self._prefix + organisation)
            keys: _Keys = _document_of(value)["keys"]
        except ClientError as fault:
            # InvalidRequestException says that the secret is marked for deletion.
            if _code_of(fault) in {"ResourceNotFoundException", "InvalidRequestException"}:
                return _Looked(asked_at, None)
            raise ServiceUnavailable from fault
        except BotoCoreError as fault:
            raise ServiceUnavailable from fault
        except _Unreadable as fault:
            _LOG.warning("the secret with the keys of %s can't be read", organisation)
            raise ServiceUnavailable from fault
        _warn_of_unreadable(organisation, keys)
        return _Looked(asked_at, _readable(keys))

    def _remember(self, organisation: str, looked: _Looked) -> None:
        self._cache.pop(organisation, None)
        self._cache[organisation] = looked
        if len(self._cache) > MAX_CACHED_ORGANISATIONS:
            del self._cache[next(iter(self._cache))]


def _bearer_token(header: str | None) -> str | None:
    if header is None or len(header) > _MAX_HEADER_CHARACTERS or not header.isascii():
        return None
    words = header.split()
    if len(words) != _HEADER_WORDS or words[0].lower() != "bearer":
        return None
    return words[1]


def _matching(records: Iterable[KeyRecord], fingerprint: str) -> list[KeyRecord]:
    """The records of this key.

    Every record is compared in full, so that the time taken tells nothing about any of them.
    """
    return [record for record in records if hmac.compare_digest(record.sha256, fingerprint)]


# The operator's side


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
        _warn_of_unreadable(organisation, document["keys"])
        return sorted(_readable(document["keys"]), key=lambda record: record.created_at)

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
        return next(record for record in _readable(keys) if record.id == key_id)

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
            return _document_of(_current_value(self._client, name))
        except ClientError as fault:
            code = _code_of(fault)
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
        except _Unreadable as fault:
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
            code = _code_of(fault)
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
    return "key_" + "".join(secrets.choice(_ALPHABET) for _ in range(_ID_DIGITS))


def _record_to_store(issued: IssuedKey, now: datetime, expires_at: datetime | None) -> _Stored:
    return {
        "id": issued.id,
        "sha256": _fingerprint(issued.key),
        "createdAt": _text_of(now),
        "expiresAt": None if expires_at is None else _text_of(expires_at),
        "revokedAt": None,
    }


def _has(keys: _Keys, key_id: str) -> bool:
    return any(record.id == key_id for record in _readable(keys))


def _with_added(organisation: str, keys: _Keys, added: _Stored, now: datetime) -> _Keys:
    if _has(keys, added["id"]):
        return keys
    live = sum(record.is_live(now) for record in _readable(keys))
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
        record = _record_of(stored)
        ended_at = None if record is None else record.ended_at(now)
        if ended_at is not None:
            ends[position] = ended_at
    room = max(0, MAX_RECORDS - 1 - (len(keys) - len(ends)))
    lately_first = sorted(ends, key=ends.__getitem__, reverse=True)
    kept = {position for position in lately_first[:room] if now - ends[position] <= _DEAD_KEPT}
    return [stored for at, stored in enumerate(keys) if at not in ends or at in kept]


def _rotated(
    organisation: str, keys: _Keys, added: _Stored, now: datetime, grace: timedelta
) -> _Keys:
    if not _has(keys, added["id"]) and _is_rotated(keys, now, grace):
        return keys
    ends_at = now + grace

    def ending(stored: _Stored) -> _Stored:
        record = _record_of(stored)
        if record is None or record.id == added["id"] or not record.is_live(now):
            return stored
        if record.expires_at is not None and record.expires_at <= ends_at:
            return stored
        return {**stored, "expiresAt": _text_of(ends_at)}

    return [ending(stored) for stored in _with_added(organisation, keys, added, now)]


def _is_rotated(keys: _Keys, now: datetime, grace: timedelta) -> bool:
    live = sorted(
        (record for record in _readable(keys) if record.is_live(now)),
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

    def ending(stored: _Stored) -> _Stored:
        record = _record_of(stored)
        if record is None or record.id != key_id or record.revoked_at is not None:
            return stored
        return {**stored, "revokedAt": _text_of(now)}

    return [ending(stored) for stored in keys]
