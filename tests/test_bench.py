"""The benchmark's own parts: what it counts, what it refuses, and that it runs to its end."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from infra.bench import cost
from infra.bench.wire import CONFLICTS, Wire, counts_at
from infra.local.aws import REGION
from infra.local.http_server import HttpServer, Request, Response
from infra.template import PROJECT_ROOT

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

WAIT_S = 10.0


class SlowDynamo:
    """A DynamoDB that has begun a call, and does not end it before it is let."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.let = threading.Event()

    def respond(self, _request: Request) -> Response:
        self.begun.release()
        self.let.wait(WAIT_S)
        return Response(200, (("content-type", "application/x-amz-json-1.0"),), b"{}")


@contextmanager
def slow_dynamo() -> Iterator[tuple[SlowDynamo, Wire, "DynamoDBClient"]]:
    slow = SlowDynamo()
    with HttpServer() as server:
        server.start(slow.respond)
        with Wire(server.url, conflicts=True) as wire:
            client = boto3.client(
                "dynamodb",
                endpoint_url=wire.url,
                region_name=REGION,
                aws_access_key_id="local",
                aws_secret_access_key="local",
                config=Config(retries={"total_max_attempts": 1}, proxies={}),
            )
            yield slow, wire, client
            client.close()


def key(name: str) -> dict[str, Any]:
    return {"pk": {"S": "ORG#acme"}, "sk": {"S": name}}


def transact(client: "DynamoDBClient", *names: str) -> object:
    writes: list[Any] = [
        {"Update": {"TableName": "t", "Key": key(name), "UpdateExpression": "SET a = :a"}}
        for name in names
    ]
    return client.transact_write_items(TransactItems=writes)


def test_a_transaction_that_meets_another_is_refused_in_dynamodbs_words() -> None:
    with slow_dynamo() as (slow, wire, client), ThreadPoolExecutor() as threads:
        first = threads.submit(transact, client, "ACCOUNT", "GEN#1")
        assert slow.begun.acquire(timeout=WAIT_S)

        with pytest.raises(ClientError) as refused:
            transact(client, "ACCOUNT", "GEN#2")

        assert refused.value.response["Error"]["Code"] == "TransactionCanceledException"
        reasons = refused.value.response["CancellationReasons"]
        assert [reason["Code"] for reason in reasons] == ["TransactionConflict", "None"]
        slow.let.set()
        first.result(WAIT_S)
        assert counts_at(wire.url) == {"TransactWriteItems": 2, CONFLICTS: 1}


def test_a_single_write_is_refused_too_and_another_item_is_not() -> None:
    with slow_dynamo() as (slow, wire, client), ThreadPoolExecutor() as threads:
        first = threads.submit(transact, client, "ACCOUNT")
        assert slow.begun.acquire(timeout=WAIT_S)

        other = threads.submit(transact, client, "GEN#7")
        assert slow.begun.acquire(timeout=WAIT_S)
        with pytest.raises(ClientError) as refused:
            client.update_item(TableName="t", Key=key("ACCOUNT"))

        assert refused.value.response["Error"]["Code"] == "TransactionConflictException"
        slow.let.set()
        first.result(WAIT_S)
        other.result(WAIT_S)
        assert counts_at(wire.url)[CONFLICTS] == 1


def test_what_ended_is_not_in_the_way_any_more() -> None:
    with slow_dynamo() as (slow, wire, client):
        slow.let.set()
        transact(client, "ACCOUNT")
        transact(client, "ACCOUNT")
        client.update_item(TableName="t", Key=key("ACCOUNT"))
        assert counts_at(wire.url) == {"TransactWriteItems": 2, "UpdateItem": 1, CONFLICTS: 0}


def test_the_bill_is_the_guides_where_nothing_was_measured() -> None:
    guide = cost.GUIDE.read_text(encoding="utf-8")
    assert "| AWS without the store | 0.0980 |" in guide
    assert "| store | 0.4262 |" in guide
    # The guide rounds each line.
    assert sum(line.cost for line in cost.bill({})) == pytest.approx(0.0980 + 0.4262, abs=0.0003)


def test_a_measured_quantity_takes_the_place_of_the_guides() -> None:
    lines = {line.name: line for line in cost.bill({"Lambda, GB-seconds": 3_000})}
    assert lines["Lambda, GB-seconds"].cost == pytest.approx(0.04, abs=0.0001)
    assert lines["S3, PUT requests"].cost == pytest.approx(0.005)


@pytest.mark.real
def test_the_benchmark_runs_to_its_end(tmp_path: Path) -> None:
    report = tmp_path / "RESULTS.md"
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "infra.bench", "--quick", "--into", str(report)],
        cwd=PROJECT_ROOT,
        timeout=600,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    text = report.read_text(encoding="utf-8")
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert sections == [
        "## At a glance",
        "## A warm paid request, beside the bare script",
        "## Round trips",
        "## Cold start: INIT",
        "## Size of the artifact",
        "## Memory",
        "## Contention",
        "## LiteLLM's proxy",
        "## Growth",
        "## Cost of 1,000 images",
    ]
    assert "**no**" not in text, "a debit was not exact"
    assert "### Simulated beside measured" in text
