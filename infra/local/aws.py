"""The embedded AWS: moto's DynamoDB, KMS, S3, Secrets Manager and SQS behind a real port.

moto is not atomic under threads: two concurrent conditional writes can both see the old item. So
exactly one request is inside moto at a time, which makes a conditional debit exact. This tests our
code under interleaved requests; only DynamoDB Local and AWS show how DynamoDB behaves under
contention (``TransactionConflict`` above all).

It serves this run alone: every other process of the machine can reach its port, and so can every
page in a browser.
"""

import json
import os
import re
import secrets
import threading
from collections.abc import Iterable, Mapping
from itertools import count
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypedDict, overload
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIEnvironment

import boto3
import botocore.session
from botocore.config import Config
from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.wrappers import Response as WsgiResponse

from infra.lifetime import Runs
from infra.local.http_server import HttpServer, Limits
from infra.template import Template

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_kms import KMSClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType

__all__ = ["CREDENTIALS", "REGION", "EmbeddedAws"]

REGION = "us-east-1"


class _Credentials(TypedDict):
    aws_access_key_id: str
    aws_secret_access_key: str


CREDENTIALS = _Credentials(
    aws_access_key_id=secrets.token_hex(16), aws_secret_access_key=secrets.token_hex(16)
)
"""Those that this process's embedded AWS accepts, as arguments of boto3."""
Service = Literal["dynamodb", "kms", "s3", "secretsmanager", "sqs"]
_SERVICES: tuple[Service, ...] = (
    "dynamodb",
    "kms",
    "s3",
    "secretsmanager",
    "sqs",
)
# SigV4: https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html
_CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/]+)/.*")
# moto's own interface, which needs no credentials and shows everything.
_NOT_AWS = "/moto-api"
_LIMITS = Limits(body_bytes=64 * 1024 * 1024, header_bytes=32 * 1024)
_CLIENT_CONFIG = Config(
    connect_timeout=2,
    read_timeout=30,
    max_pool_connections=64,
    retries={"total_max_attempts": 1, "mode": "standard"},
    proxies={},
)


class _Closable(Protocol):
    def close(self) -> None: ...


class EmbeddedAws(Runs):
    """One AWS account, empty at ``start`` and gone at ``stop``.

    Several may run in one process: each has its own account number, so none sees the tables and
    secrets of another. All share bucket names, as they do on AWS.
    """

    _numbers: ClassVar["count[int]"] = count(100_000_000_001)
    _one_at_a_time: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, dynamodb_url: str | None = None) -> None:
        """``dynamodb_url``: a DynamoDB to use instead of moto's."""
        self.account_id = str(next(self._numbers))
        self._dynamodb_url = dynamodb_url
        self._server = HttpServer(limits=_LIMITS)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._making_client = threading.Lock()
        self._clients: dict[str, _Closable] = {}
        self._access_keys = {CREDENTIALS["aws_access_key_id"]}
        self.url = self._server.url
        self._hosts = {urlsplit(self.url).netloc}

    def start(self) -> None:
        """Responds from now on."""
        self._server.serve(self._serve)

    def stop(self) -> None:
        """Closes the port and deletes everything that is stored."""
        for client in self._clients.values():
            client.close()
        self._server.stop()
        with self._one_at_a_time:
            if self.account_id in s3_backends:
                for bucket in s3_backends[self.account_id]["aws"].buckets:
                    s3_backends.bucket_accounts.pop(bucket, None)
            for service in _SERVICES:
                get_backend(service).pop(self.account_id, None)

    def accept(self, *, access_key: str = "", url: str = "") -> None:
        """Accepts the id of another access key too, or requests that reach it by another URL."""
        self._access_keys |= {access_key} - {""}
        self._hosts |= {urlsplit(url).netloc} - {""}

    def environment(self) -> Mapping[str, str]:
        """The variables that point any AWS SDK here, and away from the user's own account."""
        return {
            "AWS_ACCESS_KEY_ID": CREDENTIALS["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS["aws_secret_access_key"],
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            # Any other service: never the user's own.
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ENDPOINT_URL_DYNAMODB": self._dynamodb_url or self.url,
            "AWS_ENDPOINT_URL_KMS": self.url,
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": self.url,
            "AWS_ENDPOINT_URL_SQS": self.url,
        }

    @overload
    def client(self, service: Literal["dynamodb"]) -> "DynamoDBClient": ...
    @overload
    def client(self, service: Literal["kms"]) -> "KMSClient": ...
    @overload
    def client(self, service: Literal["s3"]) -> "S3Client": ...
    @overload
    def client(self, service: Literal["secretsmanager"]) -> "SecretsManagerClient": ...
    @overload
    def client(self, service: Literal["sqs"]) -> "SQSClient": ...
    def client(self, service: Service) -> object:
        """The boto3 client of this account, for any number of threads, until ``stop``."""
        with self._making_client:
            if service not in self._clients:
                self._clients[service] = self._new_client(service)
            return self._clients[service]

    def _new_client(self, service: Service) -> _Closable:
        # botocore reads none of these from the environment or a file; the values are fixed.
        nowhere = {
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
            "region": (None, None, REGION, None),
        }
        session = boto3.Session(
            **CREDENTIALS,
            botocore_session=botocore.session.Session(session_vars=nowhere),
        )
        elsewhere = self._dynamodb_url if service == "dynamodb" else None
        url = elsewhere or self.url
        client: _Closable = session.client(service, endpoint_url=url, config=_CLIENT_CONFIG)
        return client

    def create_table(self, name: str, template: Template | None = None) -> None:
        """Creates the credits table with its index and expiry, as the template defines it."""
        template = template or Template.from_file()
        client = self.client("dynamodb")
        client.create_table(**template.table_definition(name))
        client.update_time_to_live(
            TableName=name,
            TimeToLiveSpecification={"AttributeName": template.expiry_attribute(), "Enabled": True},
        )

    def create_queue(self, resource: str, template: Template | None = None) -> str:
        """Creates an SQS queue and its dead-letter queue, as the template defines them.

        Returns:
            Its URL.
        """
        template = template or Template.from_file()
        queue, client = template.queue(resource), self.client("sqs")
        attributes: dict[QueueAttributeNameType, str] = {
            "VisibilityTimeout": str(queue.visibility_timeout_s)
        }
        if queue.dead_letters is not None:
            dead = self.create_queue(queue.dead_letters, template)
            found = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])
            policy = {
                "deadLetterTargetArn": found["Attributes"]["QueueArn"],
                "maxReceiveCount": queue.receives,
            }
            attributes["RedrivePolicy"] = json.dumps(policy)
        return client.create_queue(QueueName=resource, Attributes=attributes)["QueueUrl"]

    def create_bucket(self, name: str) -> None:
        """Creates an empty bucket."""
        self.client("s3").create_bucket(Bucket=name)

    def create_secret(self, name: str, value: str) -> None:
        """Stores a secret whose value is text."""
        self.client("secretsmanager").create_secret(Name=name, SecretString=value)

    def create_signing_key(self) -> str:
        """Creates a key for receipts, as the template defines it; returns its id."""
        made = self.client("kms").create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
        return made["KeyMetadata"]["KeyId"]

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self._is_ours(environ):
            return WsgiResponse("Forbidden", 403)(environ, start_response)
        environ["HTTP_X_MOTO_ACCOUNT_ID"] = self.account_id
        with self._one_at_a_time:
            response = WsgiResponse.from_app(self._moto, environ, buffered=True)
        return response(environ, start_response)

    def _is_ours(self, environ: WSGIEnvironment) -> bool:
        """Whether a client made the request that has this run's credentials, and is no browser.

        A browser sends ``Origin`` for a page of another site. Where such a page's name resolves to
        127.0.0.1 (DNS rebinding), ``Host`` is that name.
        """
        signed = _CREDENTIAL.fullmatch(environ.get("HTTP_AUTHORIZATION", ""))
        return (
            "HTTP_ORIGIN" not in environ
            and environ.get("HTTP_HOST") in self._hosts
            and not environ["PATH_INFO"].startswith(_NOT_AWS)
            and signed is not None
            and signed[1] in self._access_keys
        )
