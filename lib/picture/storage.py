"""Stores images in S3, or in Cloudflare R2 through its S3 API.

An object is written once (``If-None-Match: *``) under the key of one generation, with that
generation's ``attemptId`` as metadata. If the response to a successful PUT is lost, the retry gets
a 412 and the writer recognises its own object. S3 returns 412, or 409 while two writers race; R2
returns 412. Source: "Conditional writes" in S3's user guide.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from botocore.exceptions import BotoCoreError, ClientError

from lib.clients import SecretUnreadable, error_code, http_status, read_secret, storage
from lib.deadline import LEDGER_CALL_S, STORAGE_CALL_S, Deadline
from lib.errors import StorageFailed
from lib.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = [
    "PNG_MIME_TYPE",
    "Images",
    "KeyTaken",
    "ObjectStore",
    "StorageUnreachable",
    "StoredImage",
    "public_url",
]

PNG_MIME_TYPE: Literal["image/png"] = "image/png"
MAX_PUTS = 3
MAX_STORED_BYTES = 64 * 1024 * 1024
_ATTEMPT = "attempt"
_CACHE_FOREVER = "public, max-age=31536000, immutable"


class StorageUnreachable(Exception):
    """The object store failed, did not respond, or its credentials are unusable."""


class KeyTaken(StorageFailed):
    """Another attempt's object is under the key: this attempt may neither keep nor delete it."""

    may_be_stored = False


class ObjectStore:
    """Builds the S3 client once, for S3 or, if an endpoint is configured, for R2.

    R2's credentials are read from a secret, so its client is built on first use.
    """

    def __init__(self, settings: Settings, secrets: "SecretsManagerClient") -> None:
        self._region = settings.aws_region
        self._endpoint = settings.storage_endpoint_url
        self._credentials_secret = settings.storage_credentials_secret
        self._secrets = secrets
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        if self._credentials_secret is None:
            self._client = self._make()

    def __call__(self) -> "S3Client":
        """The client.

        Raises:
            StorageUnreachable: the secret with the credentials cannot be read or is malformed.
        """
        with self._lock:
            if self._client is None:
                self._client = self._make()
            return self._client

    def _make(self) -> "S3Client":
        if self._credentials_secret is None:
            return storage(self._region, self._endpoint)
        try:
            pair = json.loads(read_secret(self._secrets, self._credentials_secret))
            credentials = pair["accessKeyId"], pair["secretAccessKey"]
        except (SecretUnreadable, ValueError, TypeError, KeyError) as fault:
            raise StorageUnreachable from fault
        # R2's only region. Source: developers.cloudflare.com/r2/api/s3/api.
        return storage("auto", self._endpoint, credentials)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An object read from the bucket. ``stored_at`` is in epoch seconds."""

    content: bytes
    attempt_id: str | None
    stored_at: float


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

    def put(self, key: str, png: bytes, attempt_id: str, deadline: Deadline) -> None:
        """Stores ``png`` under ``key``, at most once.

        Retries transient faults, up to ``MAX_PUTS`` calls, while enough time for a refund remains.

        Raises:
            KeyTaken: another attempt's object is stored under ``key``.
            StorageFailed: the object is not stored, or its state is unknown.
        """
        for attempt in range(1, MAX_PUTS + 1):
            try:
                self._put(key, png, attempt_id)
            except ClientError as fault:
                if http_status(fault) == HTTPStatus.PRECONDITION_FAILED:
                    self._require_own(key, attempt_id)
                    return
                if not _is_transient(fault):
                    raise StorageFailed from fault
                last: Exception = fault
            except (BotoCoreError, StorageUnreachable) as fault:
                last = fault
            else:
                return
            if attempt == MAX_PUTS or deadline.remaining_s() < STORAGE_CALL_S + LEDGER_CALL_S:
                raise StorageFailed from last
            self._sleep(0.1 * attempt)

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

    def delete(self, key: str) -> None:
        """Deletes the object ``key``; does nothing if it does not exist.

        Raises:
            StorageUnreachable: the call failed; the object may have been deleted.
        """
        try:
            self._client().delete_object(Bucket=self._bucket, Key=key)
        except (ClientError, BotoCoreError) as fault:
            raise StorageUnreachable from fault

    def _put(self, key: str, png: bytes, attempt_id: str) -> None:
        self._client().put_object(
            Bucket=self._bucket,
            Key=key,
            Body=png,
            ContentType=PNG_MIME_TYPE,
            CacheControl=_CACHE_FOREVER,
            IfNoneMatch="*",
            Metadata={_ATTEMPT: attempt_id},
        )

    def _require_own(self, key: str, attempt_id: str) -> None:
        """Returns if this attempt stored the object ``key``.

        Raises:
            KeyTaken: another attempt did.
            StorageFailed: the call failed.
        """
        try:
            found = self._client().head_object(Bucket=self._bucket, Key=key)
        except (ClientError, BotoCoreError, StorageUnreachable) as fault:
            raise StorageFailed from fault
        if found["Metadata"].get(_ATTEMPT) != attempt_id:
            raise KeyTaken


def public_url(base_url: str, key: str) -> str:
    """The public URL of the object ``key`` in a bucket served at ``base_url``."""
    return f"{base_url}/{key}"


def _is_transient(fault: ClientError) -> bool:
    """Whether the same PUT may succeed when repeated."""
    status = http_status(fault)
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in (
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
    )
