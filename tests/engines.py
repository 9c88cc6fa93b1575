"""The two DynamoDBs that test the money: moto in this process, and Amazon's DynamoDB Local.

moto is fast and answers as DynamoDB does, but it is not atomic under threads; DynamoDB Local is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.config import Config
from moto import mock_aws

from infra.local.aws import CREDENTIALS, REGION, EmbeddedAws
from infra.verify.dynamodb_local import DynamoDbLocal

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

__all__ = ["Engine", "engine", "moto_engine", "real_engine"]

# Bucket names are shared by all of moto in this process, as they are by all of AWS.
MOTO_BUCKET = "images-in-moto"
REAL_BUCKET = "images-beside-dynamodb-local"

_SESSION = boto3.Session(**CREDENTIALS, region_name=REGION)
# One try, as in ``lib.clients``. The timeouts are long: on a busy machine too, only tests lose
# responses.
_CONFIG = Config(
    connect_timeout=10,
    read_timeout=30,
    retries={"mode": "standard", "total_max_attempts": 1},
    max_pool_connections=64,
    proxies={},
)


@dataclass(frozen=True)
class Engine:
    """A DynamoDB without tables, and a bucket, for the whole run: each test makes its own table.

    ``environment`` holds the variables with which another process finds them and Secrets Manager;
    it is empty for moto in this process.
    """

    name: str
    dynamodb: "DynamoDBClient"
    s3: "S3Client"
    bucket: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_moto(self) -> bool:
        """Whether it is not atomic, so that nothing about concurrency is proved on it."""
        return self.name == "moto"


@pytest.fixture(scope="session")
def moto_engine() -> Iterator[Engine]:
    """moto without a port: it intercepts the calls of boto3 in this process."""
    # All moto in a process shares one store, which the last embedded AWS to stop empties. This one
    # runs as long as the engine does.
    with EmbeddedAws():
        mock = mock_aws()
        mock.start(reset=False)
        try:
            yield _moto_engine()
        finally:
            mock.stop(remove_data=False)


def _moto_engine() -> Engine:
    dynamodb = _SESSION.client(
        "dynamodb", endpoint_url=f"https://dynamodb.{REGION}.amazonaws.com", config=_CONFIG
    )
    s3 = _s3("https://s3.amazonaws.com")
    s3.create_bucket(Bucket=MOTO_BUCKET)
    return Engine("moto", dynamodb, s3, MOTO_BUCKET)


@pytest.fixture(scope="session")
def real_engine() -> Iterator[Engine]:
    """DynamoDB Local, and the embedded AWS for the images."""
    with DynamoDbLocal() as local, EmbeddedAws() as aws:
        dynamodb = local.client()
        aws.create_bucket(REAL_BUCKET)
        s3 = _s3(aws.url)
        environment = {**aws.environment(), "AWS_ENDPOINT_URL_DYNAMODB": local.url}
        yield Engine("DynamoDB Local", dynamodb, s3, REAL_BUCKET, environment=environment)
        dynamodb.close()
        s3.close()


@pytest.fixture(
    scope="session", params=["moto", pytest.param("dynamodb-local", marks=pytest.mark.real)]
)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each of the two in turn."""
    name = "moto_engine" if request.param == "moto" else "real_engine"
    found: Engine = request.getfixturevalue(name)
    return found


def _s3(url: str) -> "S3Client":
    return _SESSION.client("s3", endpoint_url=url, config=_CONFIG)
