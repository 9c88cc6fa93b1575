"""Amazon's own DynamoDB Local: its conditional writes and transactions are atomic under threads.

It never answers ``TransactionConflict``, which DynamoDB does under contention.
"""

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from infra.lifetime import Runs
from infra.local.aws import CREDENTIALS, REGION
from infra.template import Template
from infra.verify import tools
from infra.verify.child import Child, NotReadyError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

__all__ = ["DynamoDbLocal"]

_CONFIGURATION = Path(__file__).with_name("dynamodb_local.xml")
_HEAP = "-Xmx512m"
# A test is too short, on too few cores, for the second compiler and the parallel collector to pay.
_SHORT_RUN = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
_START_TAKES_S = 60.0
_STARTED = re.compile(r"Started ServerConnector@.*\{127\.0\.0\.1:(\d+)\}")


class DynamoDbLocal(Runs):
    """One empty DynamoDB on a free port of 127.0.0.1, in memory, until ``stop``.

    ``long_run``: minutes of load are to come, for which the JVM compiles and collects at its best.
    """

    def __init__(self, *, long_run: bool = False) -> None:
        self.url = ""
        self._options = (_HEAP,) if long_run else (_HEAP, *_SHORT_RUN)
        self._directory = TemporaryDirectory(prefix="dynamodb-local-")
        self._child: Child | None = None

    def start(self) -> None:
        """Returns when it answers.

        Raises:
            ToolMissingError: it is not installed.
            NotReadyError: it does not come up.
        """
        home = tools.dynamodb_local()
        command = [
            tools.java(),
            *self._options,
            "-Dorg.eclipse.jetty.LEVEL=INFO",
            f"-Djava.library.path={home / 'DynamoDBLocal_lib'}",
            "-classpath",
            f"{home / 'DynamoDBLocal.jar'}{os.pathsep}{home / 'DynamoDBLocal_lib'}/*",
            "org.eclipse.jetty.xml.XmlConfiguration",
            "port=0",
            str(_CONFIGURATION),
        ]
        directory = Path(self._directory.name)
        child = Child(command, os.environ, directory, directory / "log")
        self._child = child
        try:
            child.wait_until(lambda: _port(child) is not None, _START_TAKES_S)
        except NotReadyError:
            self.stop()
            raise
        self.url = f"http://127.0.0.1:{_port(child)}"
        self._warm_up()

    def stop(self) -> None:
        """Ends it; all tables are gone."""
        if self._child is not None:
            self._child.stop()
        self._directory.cleanup()

    def client(self) -> "DynamoDBClient":
        """A client that waits long and never tries again.

        DynamoDB Local keeps a database for each access key and region; this one is the embedded
        AWS's.
        """
        return boto3.client(
            "dynamodb",
            endpoint_url=self.url,
            region_name=REGION,
            **CREDENTIALS,
            config=Config(
                connect_timeout=10,
                read_timeout=30,
                retries={"mode": "standard", "total_max_attempts": 1},
                max_pool_connections=64,
                proxies={},
            ),
        )

    def _warm_up(self) -> None:
        """The first table takes a young JVM longer than the service would ever wait."""
        client = self.client()
        client.create_table(**Template.from_file().table_definition("warm-up"))
        client.delete_table(TableName="warm-up")
        client.close()


def _port(child: Child) -> int | None:
    started = _STARTED.search(child.last_words())
    return None if started is None else int(started[1])
