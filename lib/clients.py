"""The AWS clients: short, explicit timeouts, so that one slow call can't eat a refund's time.

Building a client makes no network call. Nothing here retries by itself: the rooms that use a
client know what may be repeated, and until when.
"""

import json
import threading
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from lib.settings import Settings
from lib.storage import StorageUnreachable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_sqs import SQSClient

__all__ = ["ObjectStore", "SecretUnreadable", "dynamodb", "read_secret", "secrets_manager", "sqs"]

CONNECT_S = 1
DYNAMODB_READ_S = 2
SECRETS_READ_S = 2
SQS_READ_S = 2
STORAGE_READ_S = 3
MAX_CONNECTIONS = 64


class SecretUnreadable(Exception):
    """A secret that the deployment names can't be read."""


def read_secret(client: "SecretsManagerClient", name: str) -> str:
    """The current text of a secret.

    Raises:
        SecretUnreadable
    """
    try:
        answer = client.get_secret_value(SecretId=name, VersionStage="AWSCURRENT")
        return answer["SecretString"]
    except (ClientError, BotoCoreError, KeyError) as fault:
        raise SecretUnreadable from fault


def dynamodb(region: str | None = None) -> "DynamoDBClient":
    """A DynamoDB client; ``lib.table`` does the retrying."""
    return boto3.client("dynamodb", region_name=region, config=_config(DYNAMODB_READ_S))


def secrets_manager(region: str | None = None) -> "SecretsManagerClient":
    """A Secrets Manager client with one retry of botocore's own; its writes carry tokens."""
    config = _config(SECRETS_READ_S, attempts=2)
    return boto3.client("secretsmanager", region_name=region, config=config)


def sqs(region: str | None = None) -> "SQSClient":
    """An SQS client; ``lib.jobs`` does the retrying."""
    return boto3.client("sqs", region_name=region, config=_config(SQS_READ_S))


class ObjectStore:
    """The client of the bucket: S3, or R2 when an endpoint is configured.

    R2's credentials are a secret, so its client is made on first use. R2 wants the region ``auto``,
    and no trailing checksums, which boto3 sends by default and which have broken uploads there.
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
        config = _config(STORAGE_READ_S).merge(
            Config(
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
        )
        if self._credentials_secret is None:
            return boto3.client(
                "s3", region_name=self._region, endpoint_url=self._endpoint, config=config
            )
        try:
            pair = json.loads(read_secret(self._secrets, self._credentials_secret))
            access_key, secret_key = pair["accessKeyId"], pair["secretAccessKey"]
        except (SecretUnreadable, ValueError, TypeError, KeyError) as fault:
            raise StorageUnreachable from fault
        return boto3.client(
            "s3",
            region_name="auto",
            endpoint_url=self._endpoint,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=config,
        )


def _config(read_s: int, attempts: int = 1) -> Config:
    return Config(
        connect_timeout=CONNECT_S,
        read_timeout=read_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=MAX_CONNECTIONS,
    )
