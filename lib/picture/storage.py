"""The images, in S3 or in Cloudflare R2, through one client that speaks S3's protocol.

An object is written once (``If-None-Match: *``), under a key that belongs to one generation, and
carries that generation's ``attemptId`` as metadata: a writer whose first success was lost sees 412
on its second try and recognises its own object. S3 answers 412, or 409 while two writers race; R2
answers 412.
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
_CACHE_FOR_EVER = "public, max-age=31536000, immutable"


class StorageUnreachable(Exception):
    """The object store gave no answer that helps."""


class KeyTaken(StorageFailed):
    """Another attempt's object is under the key: this attempt may neither keep nor delete it."""

    may_be_stored = False


class ObjectStore:
    """The client of the bucket: S3, or R2 when an endpoint is configured.

    R2's credentials are a secret, so its client is built on first use.
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
            StorageUnreachable: the credentials can't be read, or are not what they should be.
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
        # R2 knows one region.
        return storage("auto", self._endpoint, credentials)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An object as it was found. ``stored_at`` is in epoch seconds."""

    content: bytes
    attempt_id: str | None
    stored_at: float


class Images:
    """One bucket. ``client`` gives the S3 client, or raises ``StorageUnreachable``."""

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
        """Makes the client ready, which may take reading R2's credentials.

        Raises:
            StorageUnreachable
        """
        self._client()

    def put(self, key: str, png: bytes, attempt_id: str, deadline: Deadline) -> None:
        """Stores ``png`` under ``key``, at most once.

        It tries again while that leaves the time for a refund.

        Raises:
            KeyTaken: another attempt's object is there.
            StorageFailed: it is not stored, or nobody can say whether it is.
        """
        for tries in range(1, MAX_PUTS + 1):
            try:
                self._put(key, png, attempt_id)
            except ClientError as fault:
                if http_status(fault) == HTTPStatus.PRECONDITION_FAILED:
                    self._check_own(key, attempt_id)
                    return
                if not _is_transient(fault):
                    raise StorageFailed from fault
                last: Exception = fault
            except (BotoCoreError, StorageUnreachable) as fault:
                last = fault
            else:
                return
            if tries == MAX_PUTS or deadline.remaining_s() < STORAGE_CALL_S + LEDGER_CALL_S:
                raise StorageFailed from last
            self._sleep(0.1 * tries)

    def read(self, key: str) -> StoredImage | None:
        """The whole object ``key``, or nothing when there is none.

        S3 answers 403 for a missing key to whoever may not list the bucket, so the caller's role
        needs ``s3:ListBucket``. Source: GetObject in S3's API reference.

        Raises:
            StorageUnreachable: no answer, or one that broke off.
        """
        try:
            answer = self._client().get_object(Bucket=self._bucket, Key=key)
            # Entering the body itself would give the bare socket, which takes a connection that
            # breaks off for the end of the object.
            with closing(answer["Body"]) as body:
                if answer["ContentLength"] > MAX_STORED_BYTES:
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
            attempt_id=answer["Metadata"].get(_ATTEMPT),
            stored_at=answer["LastModified"].timestamp(),
        )

    def delete(self, key: str) -> None:
        """Removes the object ``key``; harmless when there is none.

        Raises:
            StorageUnreachable
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
            CacheControl=_CACHE_FOR_EVER,
            IfNoneMatch="*",
            Metadata={_ATTEMPT: attempt_id},
        )

    def _check_own(self, key: str, attempt_id: str) -> None:
        """Passes when the object under ``key`` was stored by this very attempt."""
        try:
            found = self._client().head_object(Bucket=self._bucket, Key=key)
        except (ClientError, BotoCoreError, StorageUnreachable) as fault:
            raise StorageFailed from fault
        if found["Metadata"].get(_ATTEMPT) != attempt_id:
            raise KeyTaken


def public_url(base_url: str, key: str) -> str:
    """Where everybody finds the object ``key`` of a bucket that is served under ``base_url``."""
    return f"{base_url}/{key}"


def _is_transient(fault: ClientError) -> bool:
    status = http_status(fault)
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in (
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
    )
