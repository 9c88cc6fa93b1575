"""Verification of a request's API key."""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from lib.clients import error_code
from lib.errors import ServiceUnavailable, Unauthorized
from lib.keys.format import fingerprint, parse_key
from lib.keys.records import (
    KeyRecord,
    StoredKey,
    UnreadableSecret,
    current_value,
    document_of,
    readable,
    warn_of_unreadable,
)

if TYPE_CHECKING:  # the stubs are a development dependency and are not deployed
    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = ["CACHE_S", "MAX_CACHED_ORGANISATIONS", "NEW_KEY_S", "KeyVerifier"]

CACHE_S = 60.0
NEW_KEY_S = 5.0
MAX_CACHED_ORGANISATIONS = 10_000
_JOINED_LOOK_UP_S = 10.0
_MAX_HEADER_CHARACTERS = 256
_HEADER_WORDS = 2

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _LookUp:
    """What a look-up found, and when it was asked; ``records`` is None for no such organisation."""

    asked_at: float
    records: Sequence[KeyRecord] | None


class KeyVerifier:
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
        self._cache: dict[str, _LookUp] = {}
        self._under_way: dict[str, Future[_LookUp]] = {}

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

        digest = fingerprint(key)
        records = self._records(organisation, CACHE_S)
        if records is None:
            raise Unauthorized
        matching = _matching(records, digest)
        if not matching:
            matching = _matching(self._records(organisation, NEW_KEY_S) or (), digest)
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
                answer = self._under_way[organisation] = Future[_LookUp]()
        if is_first:
            return self._look_up_for_all(organisation, answer).records
        try:
            return answer.result(timeout=_JOINED_LOOK_UP_S).records
        except (CancelledError, TimeoutError) as fault:
            raise ServiceUnavailable from fault

    def _look_up_for_all(self, organisation: str, answer: Future[_LookUp]) -> _LookUp:
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

    def _look_up(self, organisation: str) -> _LookUp:
        asked_at = self._clock()
        try:
            value = current_value(self._client, self._prefix + organisation)
            keys: list[StoredKey] = document_of(value)["keys"]
        except ClientError as fault:
            # InvalidRequestException says that the secret is marked for deletion.
            if error_code(fault) in {"ResourceNotFoundException", "InvalidRequestException"}:
                return _LookUp(asked_at, None)
            raise ServiceUnavailable from fault
        except BotoCoreError as fault:
            raise ServiceUnavailable from fault
        except UnreadableSecret as fault:
            _LOG.warning("the secret with the keys of %s can't be read", organisation)
            raise ServiceUnavailable from fault
        warn_of_unreadable(organisation, keys)
        return _LookUp(asked_at, readable(keys))

    def _remember(self, organisation: str, looked: _LookUp) -> None:
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


def _matching(records: Iterable[KeyRecord], digest: str) -> list[KeyRecord]:
    """The records of this key.

    Every record is compared in full, so that the time taken tells nothing about any of them.
    """
    return [record for record in records if hmac.compare_digest(record.sha256, digest)]
