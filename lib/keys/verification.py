"""Verifies the API key of a request."""

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
    log_invalid_records,
    parse_secret,
    read_secret_value,
    valid_records,
)

if TYPE_CHECKING:  # the stubs are a development dependency and are not deployed
    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = [
    "CACHE_S",
    "MAX_CACHED_ORGANISATIONS",
    "NEW_KEY_S",
    "DeadKey",
    "KeyVerifier",
    "VerifiedKey",
]

CACHE_S = 60.0
"""How long an organisation's keys are cached."""
NEW_KEY_S = 5.0
"""The age from which cached keys are read again for a key that is not among them."""
MAX_CACHED_ORGANISATIONS = 10_000
_LOOKUP_WAIT_S = 10.0
_MAX_HEADER_CHARACTERS = 256
_HEADER_PARTS = 2

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VerifiedKey:
    """A live key: whose it is, its id in the operator's key ring, its meter and its budget.

    ``monthly_budget`` is in credits; None sets no limit.
    """

    organisation: str
    id: str
    meter: str
    monthly_budget: int | None = None


class DeadKey(Unauthorized):
    """The key was valid once: it is revoked or expired. To the customer it is like any other."""

    def __init__(self, organisation: str, key_id: str) -> None:
        super().__init__(self.code)
        self.organisation = organisation
        self.key_id = key_id


@dataclass(frozen=True, slots=True)
class _CacheEntry:
    """An organisation's keys, read at ``read_at_s`` (epoch seconds).

    An organisation that does not exist has none.
    """

    read_at_s: float
    records: Sequence[KeyRecord]


class KeyVerifier:
    """Finds the organisation of a request by its API key. Thread-safe.

    Each process caches an organisation's keys for 60 s, including that it has none. An organisation
    that does not exist is treated as one without keys, so that the time of a response does not tell
    which exist:

    - a revoked key is rejected within 60 s, an expired one immediately;
    - a changed budget counts within 60 s;
    - a new key works within 5 s: a key that is not in the cache triggers a lookup if the cached
      keys are older than that, so guessing costs an organisation at most one lookup in 5 s;
    - an organisation's first key works immediately, or within 5 s if one of its keys was tried
      before it existed.

    Failures of Secrets Manager are not cached, and keys older than 60 s are not used during an
    outage: rejecting requests for a few minutes is better than accepting a revoked key.

    ``secrets_client`` bounds a lookup by its own timeouts and retries. ``clock`` gives epoch
    seconds; a monotonic clock will not do, because it may stop while Lambda freezes the process.
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
        self._cache: dict[str, _CacheEntry] = {}
        self._lookups: dict[str, Future[_CacheEntry]] = {}

    def verify(self, authorization_header: str | None) -> VerifiedKey:
        """The live key in ``Authorization: Bearer <key>``.

        Raises:
            Unauthorized: the key is missing, malformed or unknown; ``DeadKey`` if it is revoked or
                expired.
            ServiceUnavailable: Secrets Manager failed, or the secret is malformed.
        """
        key = _bearer_token(authorization_header)
        organisation = None if key is None else parse_key(key)
        if key is None or organisation is None:
            raise Unauthorized

        digest = fingerprint(key)
        matching = _matching(self._records(organisation, CACHE_S), digest)
        if not matching:
            matching = _matching(self._records(organisation, NEW_KEY_S), digest)
        if not matching:
            raise Unauthorized
        now = datetime.fromtimestamp(self._clock(), UTC)
        live = next((record for record in matching if record.is_live(now)), None)
        if live is None:
            raise DeadKey(organisation, matching[0].id)
        return VerifiedKey(organisation, live.id, live.meter, live.monthly_budget)

    def records(self, organisation: str) -> Sequence[KeyRecord]:
        """The organisation's keys, live and dead, as they were at most 60 s ago.

        Raises:
            ServiceUnavailable: Secrets Manager failed, or the secret is malformed.
        """
        return self._records(organisation, CACHE_S)

    def _records(self, organisation: str, max_age_s: float) -> Sequence[KeyRecord]:
        """The keys of ``organisation``, at most ``max_age_s`` old; none if it does not exist.

        Threads that need the same organisation share one lookup.

        Raises:
            ServiceUnavailable: the lookup failed.
        """
        with self._lock:
            cached = self._cache.get(organisation)
            # After the clock is set back, an entry from the future must not live on.
            if cached is not None and 0 <= self._clock() - cached.read_at_s < max_age_s:
                return cached.records
            lookup = self._lookups.get(organisation)
            is_leader = lookup is None
            if lookup is None:
                lookup = self._lookups[organisation] = Future[_CacheEntry]()
        if is_leader:
            return self._lead(organisation, lookup).records
        try:
            return lookup.result(timeout=_LOOKUP_WAIT_S).records
        except (CancelledError, TimeoutError) as fault:
            raise ServiceUnavailable from fault

    def _lead(self, organisation: str, lookup: Future[_CacheEntry]) -> _CacheEntry:
        """Looks ``organisation`` up, caches the result, and completes ``lookup`` for the others.

        Raises:
            ServiceUnavailable: the lookup failed.
        """
        try:
            entry = self._look_up(organisation)
            with self._lock:
                self._store(organisation, entry)
            lookup.set_result(entry)
        finally:
            with self._lock:
                del self._lookups[organisation]
            # If the lookup failed, this releases the waiting threads. Otherwise it has no effect.
            lookup.cancel()
        return entry

    def _look_up(self, organisation: str) -> _CacheEntry:
        """Reads the keys of ``organisation`` from Secrets Manager.

        Raises:
            ServiceUnavailable: the call failed, or the secret is malformed.
        """
        # Taken before the call: a key that is revoked meanwhile must not stay cached for longer.
        read_at_s = self._clock()
        try:
            value = read_secret_value(self._client, self._prefix + organisation)
            keys: list[StoredKey] = parse_secret(value)["keys"]
        except ClientError as fault:
            # InvalidRequestException: the secret is scheduled for deletion.
            if error_code(fault) in {"ResourceNotFoundException", "InvalidRequestException"}:
                return _CacheEntry(read_at_s, ())
            raise ServiceUnavailable from fault
        except BotoCoreError as fault:
            raise ServiceUnavailable from fault
        except UnreadableSecret as fault:
            _LOG.warning("the secret with the keys of %s is malformed", organisation)
            raise ServiceUnavailable from fault
        log_invalid_records(organisation, keys)
        return _CacheEntry(read_at_s, valid_records(keys))

    def _store(self, organisation: str, entry: _CacheEntry) -> None:
        """Caches ``entry``, evicting the oldest if the cache is full. The lock is held."""
        self._cache.pop(organisation, None)
        self._cache[organisation] = entry
        if len(self._cache) > MAX_CACHED_ORGANISATIONS:
            del self._cache[next(iter(self._cache))]


def _bearer_token(header: str | None) -> str | None:
    """The token of an ``Authorization`` header (RFC 6750, section 2.1); None if there is none."""
    if header is None or len(header) > _MAX_HEADER_CHARACTERS or not header.isascii():
        return None
    parts = header.split()
    if len(parts) != _HEADER_PARTS or parts[0].lower() != "bearer":
        return None
    return parts[1]


def _matching(records: Iterable[KeyRecord], digest: str) -> list[KeyRecord]:
    """The records whose hash is ``digest``.

    Every record is compared in constant time, so that timing reveals nothing about any of them.
    """
    return [record for record in records if hmac.compare_digest(record.sha256, digest)]
