"""The embedded AWS: moto's DynamoDB, S3, Secrets Manager and SQS behind a real port.

moto is not atomic under threads: two conditional writes that run at once can both see the old
item. So exactly one request is inside moto at a time, and a conditional debit is exact here too.
That shows that our code is right under interleaved requests; how DynamoDB itself behaves under
contention (``TransactionConflict`` above all) only DynamoDB Local and AWS can show.
"""

import io
import json
import os
import threading
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, overload
from urllib.parse import unquote

import boto3
import botocore.session
from botocore.config import Config
from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.wrappers import Response as WsgiResponse

from infra.lifetime import Runs
from infra.local.http_server import HttpServer, Limits, Request, Response
from infra.template import Template

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType

__all__ = ["REGION", "EmbeddedAws"]

REGION = "us-east-1"
_SERVICES: tuple[Literal["dynamodb", "s3", "secretsmanager", "sqs"], ...] = (
    "dynamodb",
    "s3",
    "secretsmanager",
    "sqs",
)
_LIMITS = Limits(body_bytes=64 * 1024 * 1024, header_bytes=32 * 1024)
_CLIENT_CONFIG = Config(
    connect_timeout=2,
    read_timeout=30,
    max_pool_connections=64,
    retries={"total_max_attempts": 1, "mode": "standard"},
    proxies={},
)


class _Client(Protocol):
    def close(self) -> None: ...


class EmbeddedAws(Runs):
    """One AWS account, empty at ``start`` and gone at ``stop``.

    Several may run in one process: each has its account number, so none sees the tables and secrets
    of another. Bucket names are shared by all, as they are on AWS.
    """

    _numbers: ClassVar["count[int]"] = count(100_000_000_001)
    _one_at_a_time: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, dynamodb_url: str | None = None) -> None:
        """``dynamodb_url``: another DynamoDB, which takes moto's place."""
        self.account_id = str(next(self._numbers))
        self._dynamodb_url = dynamodb_url
        self._server = HttpServer(limits=_LIMITS)
        self._application = DomainDispatcherApplication(create_backend_app)
        self._making_client = threading.Lock()
        self._clients: dict[str, _Client] = {}
        self.url = self._server.url

    def start(self) -> None:
        """Answers from now on."""
        self._server.start(self._respond)

    def stop(self) -> None:
        """Closes the port and drops everything that is stored."""
        for client in self._clients.values():
            client.close()
        self._server.stop()
        with self._one_at_a_time:
            if self.account_id in s3_backends:
                for bucket in s3_backends[self.account_id]["aws"].buckets:
                    s3_backends.bucket_accounts.pop(bucket, None)
            for service in _SERVICES:
                get_backend(service).pop(self.account_id, None)

    def environment(self) -> Mapping[str, str]:
        """The variables that lead any AWS SDK here, and to no account of the machine's user."""
        return {
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_DYNAMODB": self._dynamodb_url or self.url,
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": self.url,
            "AWS_ENDPOINT_URL_SQS": self.url,
        }

    @overload
    def client(self, service: Literal["dynamodb"]) -> "DynamoDBClient": ...
    @overload
    def client(self, service: Literal["s3"]) -> "S3Client": ...
    @overload
    def client(self, service: Literal["secretsmanager"]) -> "SecretsManagerClient": ...
    @overload
    def client(self, service: Literal["sqs"]) -> "SQSClient": ...
    def client(self, service: Literal["dynamodb", "s3", "secretsmanager", "sqs"]) -> object:
        """The boto3 client of this account, for any number of threads, until ``stop``."""
        with self._making_client:
            if service not in self._clients:
                self._clients[service] = self._new_client(service)
            return self._clients[service]

    def _new_client(self, service: Literal["dynamodb", "s3", "secretsmanager", "sqs"]) -> _Client:
        # Each variable has no name in the environment or in a file, and a fixed value.
        nowhere = {
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
            "region": (None, None, REGION, None),
        }
        session = boto3.Session(
            aws_access_key_id="local",
            aws_secret_access_key="local",  # noqa: S106 - nobody checks it
            botocore_session=botocore.session.Session(session_vars=nowhere),
        )
        elsewhere = self._dynamodb_url if service == "dynamodb" else None
        url = elsewhere or self.url
        client: _Client = session.client(service, endpoint_url=url, config=_CLIENT_CONFIG)
        return client

    def create_table(self, name: str, template: Template | None = None) -> None:
        """Creates the credits table, with its index and its expiry, as the template has it."""
        template = template or Template.from_file()
        client = self.client("dynamodb")
        client.create_table(**template.table_definition(name))
        client.update_time_to_live(
            TableName=name,
            TimeToLiveSpecification={"AttributeName": template.expiry_attribute(), "Enabled": True},
        )

    def create_queue(self, resource: str, template: Template | None = None) -> str:
        """Creates an SQS queue, and the one for its dead letters, as the template has them.

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

    def _respond(self, request: Request) -> Response:
        environ = self._environ(request)
        with self._one_at_a_time:
            answer = WsgiResponse.from_app(self._application, environ, buffered=True)
            body = answer.get_data()
        return Response(answer.status_code, tuple(answer.headers), body)

    def _environ(self, request: Request) -> dict[str, object]:
        """The request as PEP 3333 has it."""
        path, _, query = request.target.partition("?")
        environ: dict[str, object] = {
            "REQUEST_METHOD": request.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote(path).encode("utf-8").decode("latin-1"),
            "RAW_URI": request.target,
            "REQUEST_URI": request.target,
            "QUERY_STRING": query,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": str(self._server.port),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": request.source_ip,
            "CONTENT_LENGTH": str(len(request.body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(request.body),
            "wsgi.input_terminated": True,
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name in {name for name, _ in request.headers} - {"content-length"}:
            key = name.upper().replace("-", "_")
            key = key if key == "CONTENT_TYPE" else f"HTTP_{key}"
            environ[key] = request.header(name)
        environ["HTTP_X_MOTO_ACCOUNT_ID"] = self.account_id
        return environ
