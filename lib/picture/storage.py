"""Stores images in S3, or in Cloudflare R2 through its S3 API.

An object is written once (``If-None-Match: *``) under the key of one generation, with that
generation's ``attemptId`` and the SHA-256 of its content as metadata. If the response to a
successful PUT is lost, the retry gets a 412 and the writer recognises its own object. S3 returns
412, or 409 while two writers race; R2 returns 412. Source: "Conditional writes" in S3's user guide.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http import HTTPStatus
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from botocore.exceptions import BotoCoreError, ClientError

from lib.clients import (
    SecretUnreadable,
    error_code,
    http_status,
    is_transient,
    may_have_taken_effect,
    read_secret,
    storage,
)
from lib.deadline import LEDGER_CALL_S, STORAGE_CALL_S, Deadline
from lib.errors import StorageFailed
from lib.picture.stored_image import TOMBSTONE, FoundImage, StoredImage
from lib.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = [
    "PNG_MIME_TYPE",
    "FoundImage",
    "Images",
    "KeyTaken",
    "ObjectStore",
    "StorageUnreachable",
    "StoredImage",
    "public_url",
]

T = TypeVar("T")

PNG_MIME_TYPE: Literal["image/png"] = "image/png"
MAX_TRIES = 3
_KEY_EXISTS = HTTPStatus.PRECONDITION_FAILED
MAX_STORED_BYTES = 64 * 1024 * 1024
_ATTEMPT = "attempt"
_SHA256 = "sha256"
CREDENTIALS_SETTING = "STORAGE_CREDENTIALS_SECRET"
# The least time between two reads of the secret because of refusals.
REREAD_AFTER_S = 5.0
_OPERATIONS = frozenset(
    {"put_object", "get_object", "head_object", "delete_object", "list_objects_v2"}
)
_UNAUTHORIZED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
# Refusals with the status 400. Source: "Error responses" in S3's API reference.
_CREDENTIAL_CODES = frozenset(
    {"AuthorizationHeaderMalformed", "ExpiredToken", "InvalidArgument", "InvalidToken"}
)
# An image never changes, but it may be deleted: so long copies of it may outlive it.
_CACHE_A_DAY = "public, max-age=86400, immutable"


class StorageUnreachable(Exception):
    """The object store failed, did not respond, or its credentials are unusable."""


class KeyTaken(StorageFailed):
    """Another attempt's object is under the key: this attempt may neither keep nor delete it."""


class ObjectStore:
    """Builds the S3 client once, for S3 or, if an endpoint is configured, for R2.

    R2's credentials are read from a secret, so its client is built on first use, and anew once the
    store refuses credentials that have been rotated. ``warn`` logs a sentence.
    """

    def __init__(
        self,
        settings: Settings,
        secrets: "SecretsManagerClient",
        warn: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._region = settings.aws_region
        self._endpoint = settings.storage_endpoint_url
        self._credentials_secret = settings.storage_credentials_secret
        self._secrets = secrets
        self._warn = warn
        self._clock = clock
        self._lock = threading.Lock()
        self._credentials: tuple[str, str] | None = None
        self._reread_at: float | None = None
        self._client: S3Client | None = None
        if self._credentials_secret is None:
            self._client = storage(self._region, self._endpoint)

    def __call__(self) -> "S3Client":
        """The client; with credentials from a secret, its calls survive their rotation.

        Raises:
            StorageUnreachable: the secret with the credentials cannot be read or is malformed.
        """
        with self._lock:
            if self._client is None:
                self._client = self._with_credentials(self._read_credentials())
            client = self._client
        if self._credentials_secret is None:
            return client
        return cast("S3Client", _Rotated(client, self._client_instead_of))

    def _client_instead_of(self, refused: "S3Client") -> "S3Client | None":
        """A client with newer credentials than ``refused`` has; None if there are none."""
        with self._lock:
            if self._client is not refused:
                return self._client
            # A store that denies for another reason must not turn into a storm of reads.
            now = self._clock()
            if self._reread_at is not None and now < self._reread_at + REREAD_AFTER_S:
                return None
            self._reread_at = now
            try:
                credentials = self._read_credentials()
            except StorageUnreachable:
                return None
            if credentials == self._credentials:
                return None
            self._warn(f"read rotated credentials from the secret in {CREDENTIALS_SETTING}")
            self._client = self._with_credentials(credentials)
            return self._client

    def _with_credentials(self, credentials: tuple[str, str]) -> "S3Client":
        self._credentials = credentials
        # R2's only region. Source: developers.cloudflare.com/r2/api/s3/api.
        return storage("auto", self._endpoint, credentials)

    def _read_credentials(self) -> tuple[str, str]:
        try:
            pair = json.loads(read_secret(self._secrets, self._credentials_secret or ""))
            credentials = pair["accessKeyId"], pair["secretAccessKey"]
        except (SecretUnreadable, ValueError, TypeError, KeyError, RecursionError) as fault:
            self._warn(f"the secret in {CREDENTIALS_SETTING} holds no usable credentials")
            raise StorageUnreachable from fault
        if not all(isinstance(text, str) and text for text in credentials):
            self._warn(f"the secret in {CREDENTIALS_SETTING} holds no usable credentials")
            raise StorageUnreachable
        return credentials


class _Rotated:
    """An S3 client; a call whose credentials are refused is repeated once with newer ones."""

    def __init__(self, client: "S3Client", newer: "Callable[[S3Client], S3Client | None]") -> None:
        self._client = client
        self._newer = newer

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        return partial(self._call, name) if name in _OPERATIONS else attribute

    def _call(self, operation: str, **arguments: object) -> object:
        try:
            return getattr(self._client, operation)(**arguments)
        except ClientError as fault:
            client = self._newer(self._client) if _refuses_credentials(fault) else None
            if client is None:
                raise
        return getattr(client, operation)(**arguments)


def _refuses_credentials(fault: ClientError) -> bool:
    """Whether other credentials could help: R2 answers 400 to an access key of a wrong length."""
    status = http_status(fault)
    return status in _UNAUTHORIZED or error_code(fault) in _CREDENTIAL_CODES


class Images:
    """The images in one bucket. ``client`` returns the S3 client, as ``ObjectStore`` does."""

    def __init__(
        self,
        client: "Callable[[], S3Client]",
        bucket: str,
        base_url: str,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._base_url = base_url
        self._sleep = sleep

    def url(self, key: str) -> str:
        """The public URL of the object ``key``."""
        return public_url(self._base_url, key)

    def prepare(self) -> None:
        """Builds the client now, which may read R2's credentials.

        Raises:
            StorageUnreachable: the credentials are unusable.
        """
        self._client()

    def put(self, key: str, png: bytes, attempt_id: str, deadline: Deadline) -> str | None:
        """Stores ``png`` under ``key``, at most once; retries while that leaves time for a refund.

        Returns:
            SHA-256 of what is stored, 64 hex digits. Another delivery of the same job may have
            stored another picture. None: an earlier version stored it, without its hash.

        Raises:
            KeyTaken: another attempt's object, or a tombstone, is under the key.
            StorageFailed: no PUT was confirmed; ``may_be_stored`` says that one may have succeeded.
        """
        there = self._claim(key, png, attempt_id, _CACHE_A_DAY, deadline)
        if there.attempt_id != attempt_id:
            raise KeyTaken
        return there.sha256

    def put_tombstone(self, key: str, attempt_id: str, deadline: Deadline) -> FoundImage | None:
        """Keeps the image of ``attempt_id`` from arriving under ``key``, unless it is there.

        Returns:
            The image, if it is there. If not, it never will be while the tombstone stands.

        Raises:
            StorageUnreachable: neither is certain.
        """
        try:
            there = self._claim(key, b"", TOMBSTONE, "no-store", deadline)
        except StorageFailed as fault:
            raise StorageUnreachable from fault
        return there if there.attempt_id == attempt_id else None

    def read(self, key: str) -> StoredImage | None:
        """The object ``key``; None if it does not exist.

        Without ``s3:ListBucket``, S3 returns 403 instead of 404 for a missing key, so the caller's
        role needs that permission. Source: GetObject in S3's API reference.

        Raises:
            StorageUnreachable: the call failed, the body is larger than ``MAX_STORED_BYTES``, or
                it was cut off.
        """
        try:
            found = self._client().get_object(Bucket=self._bucket, Key=key)
            # As a context manager, the body would be the raw stream, which reports a dropped
            # connection as the end of the object.
            with closing(found["Body"]) as body:
                if found["ContentLength"] > MAX_STORED_BYTES:
                    raise StorageUnreachable
                content = body.read()
        except ClientError as fault:
            if error_code(fault) == "NoSuchKey":
                return None
            raise StorageUnreachable from fault
        except BotoCoreError as fault:
            raise StorageUnreachable from fault
        return StoredImage(
            content=content,
            attempt_id=found["Metadata"].get(_ATTEMPT),
            stored_at=found["LastModified"].timestamp(),
        )

    def stored(self, prefix: str, deadline: Deadline) -> Iterator[tuple[str, int]]:
        """The keys that begin with ``prefix``, sorted, and the bytes of each, page by page.

        Raises:
            StorageUnreachable: a page could not be read in time.
        """
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": prefix}
        while True:
            try:
                page = self._call_with_retries(
                    partial(self._client().list_objects_v2, **request), deadline
                )
            except StorageFailed as fault:
                raise StorageUnreachable from fault
            for each in page.get("Contents", []):
                yield each["Key"], each["Size"]
            if not page["IsTruncated"]:
                return
            request |= {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """Deletes the object ``key``; does nothing if it does not exist.

        Raises:
            StorageUnreachable: the call failed; the object may have been deleted.
        """
        try:
            self._client().delete_object(Bucket=self._bucket, Key=key)
        except (ClientError, BotoCoreError) as fault:
            raise StorageUnreachable from fault

    def _claim(
        self, key: str, content: bytes, attempt_id: str, cache_control: str, deadline: Deadline
    ) -> FoundImage:
        """Puts an object unless the key is taken; returns the one that is there then.

        Raises:
            StorageFailed
        """
        sha256 = hashlib.sha256(content).hexdigest()

        def put() -> FoundImage:
            self._client().put_object(
                Bucket=self._bucket,
                Key=key,
                Body=content,
                ContentType=PNG_MIME_TYPE if content else "text/plain",
                CacheControl=cache_control,
                IfNoneMatch="*",
                Metadata={_ATTEMPT: attempt_id, _SHA256: sha256},
            )
            return FoundImage(attempt_id, sha256)

        def head() -> FoundImage:
            metadata = self._client().head_object(Bucket=self._bucket, Key=key)["Metadata"]
            return FoundImage(metadata.get(_ATTEMPT), metadata.get(_SHA256))

        try:
            return self._call_with_retries(put, deadline)
        except _KeyExists:
            # An earlier try may have put it, and its response was lost.
            try:
                return self._call_with_retries(head, deadline)
            except StorageFailed as fault:
                raise StorageFailed(may_be_stored=True) from fault

    def _call_with_retries(self, call: Callable[[], T], deadline: Deadline) -> T:
        """The result of ``call``, retried while a retry can help and leaves time for a refund.

        Raises:
            _KeyExists
            StorageFailed: ``may_be_stored`` says that a try may have had an effect.
        """
        may_be_stored = False
        for tries in count(1):
            try:
                return call()
            except StorageUnreachable as fault:
                raise StorageFailed(may_be_stored=may_be_stored) from fault
            except (ClientError, BotoCoreError) as fault:
                if isinstance(fault, ClientError) and http_status(fault) == _KEY_EXISTS:
                    raise _KeyExists from fault
                may_be_stored = may_be_stored or may_have_taken_effect(fault)
                is_final = isinstance(fault, ClientError) and not _is_transient(fault)
                no_time = deadline.remaining_s() < STORAGE_CALL_S + LEDGER_CALL_S
                if is_final or no_time or tries == MAX_TRIES:
                    raise StorageFailed(may_be_stored=may_be_stored) from fault
            self._sleep(0.1 * tries)
        raise AssertionError  # ``count`` does not end.


class _KeyExists(Exception):
    """An object is under the key already."""


def _is_transient(fault: ClientError) -> bool:
    # S3 answers 409 while two conditional writes race.
    return is_transient(fault) or http_status(fault) == HTTPStatus.CONFLICT


def public_url(base_url: str, key: str) -> str:
    """The public URL of the object ``key`` in a bucket served at ``base_url``."""
    return f"{base_url}/{key}"
