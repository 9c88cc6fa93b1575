"""The AWS clients: short, explicit timeouts, so that one slow call can't eat a refund's time.

Building a client makes no network call. botocore's retries are off, except for Secrets Manager: the
module that uses a client knows what may be repeated, and until when.

A pooled connection that died silently costs one read timeout, then the retry opens a new one: 2 s
for DynamoDB, SQS and Secrets Manager, and 4 s for a PUT to S3, where botocore first waits 1 s for
``100 Continue``.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ProxyConnectionError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from botocore.retries.standard import (
    RetryContext,
    ThrottledRetryableChecker,
    TransientRetryableChecker,
)

from lib.deadline import (
    CONNECT_S,
    LEDGER_READ_S,
    QUEUE_READ_S,
    SECRETS_READ_S,
    SIGNING_READ_S,
    STORAGE_READ_S,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_kms import KMSClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_sqs import SQSClient

__all__ = [
    "SecretUnreadable",
    "dynamodb",
    "error_code",
    "http_status",
    "is_transient",
    "kms",
    "may_have_taken_effect",
    "read_secret",
    "secrets_manager",
    "sqs",
    "storage",
]

MAX_CONNECTIONS = 64

_THROTTLED = ThrottledRetryableChecker()
_RETRYABLE = (TransientRetryableChecker(), _THROTTLED)
_TRANSIENT_STATUSES = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_LOST_RESPONSE = (HTTPClientError, BotoConnectionError, IncompleteReadError, ResponseParserError)
_NEVER_SENT = (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError)


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
    """A DynamoDB client; ``lib.ledger.table`` does the retrying."""
    return boto3.client("dynamodb", region_name=region, config=_config(LEDGER_READ_S))


def secrets_manager(region: str | None = None) -> "SecretsManagerClient":
    """A Secrets Manager client with one retry of botocore's own; its writes carry tokens."""
    config = _config(SECRETS_READ_S, attempts=2)
    return boto3.client("secretsmanager", region_name=region, config=config)


def sqs(region: str | None = None) -> "SQSClient":
    """An SQS client; ``lib.jobs`` does the retrying."""
    return boto3.client("sqs", region_name=region, config=_config(QUEUE_READ_S))


def kms(region: str | None = None) -> "KMSClient":
    """A KMS client, which retries once by itself: a signature may be made twice."""
    return boto3.client("kms", region_name=region, config=_config(SIGNING_READ_S, attempts=2))


def storage(
    region: str | None = None,
    endpoint_url: str | None = None,
    credentials: tuple[str, str] | None = None,
) -> "S3Client":
    """A client of S3, or of R2 at ``endpoint_url``; ``lib.picture.storage`` does the retrying.

    ``credentials`` are an access key's id and its secret; None uses the function's role. boto3's
    default trailing checksums have broken uploads to R2, so only required ones are sent.
    """
    access_key, secret_key = credentials or (None, None)
    config = _config(STORAGE_READ_S).merge(
        Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
    )
    return boto3.client(
        "s3",
        region_name=region,
        endpoint_url=endpoint_url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=config,
    )


def error_code(fault: ClientError) -> str:
    """AWS's code of a refused call, such as ``ThrottlingException``; empty if it has none."""
    return str(fault.response.get("Error", {}).get("Code", ""))


def http_status(fault: ClientError) -> int:
    """The HTTP status of a refused call; 0 if it has none."""
    return int(fault.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_transient(fault: ClientError) -> bool:
    """Whether a retry can help, by the codes and statuses that botocore itself retries."""
    context = RetryContext(attempt_number=1, parsed_response=fault.response)
    if http_status(fault) in _TRANSIENT_STATUSES:
        return True
    return any(checker.is_retryable(context) for checker in _RETRYABLE)


def may_have_taken_effect(fault: ClientError | BotoCoreError) -> bool:
    """Whether a failed write may have been done: its response was lost, or the service broke."""
    if isinstance(fault, ClientError):
        status = http_status(fault)
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR and not _THROTTLED.is_retryable(
            RetryContext(attempt_number=1, parsed_response=fault.response)
        )
    return isinstance(fault, _LOST_RESPONSE) and not isinstance(fault, _NEVER_SENT)


def _config(read_s: int, attempts: int = 1) -> Config:
    return Config(
        connect_timeout=CONNECT_S,
        read_timeout=read_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=MAX_CONNECTIONS,
    )
