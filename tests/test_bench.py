"""The benchmark: conflicts, the measured bill, and a small run from start to end."""

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
from werkzeug.serving import make_server

from infra.bench import cost
from infra.local.aws import CREDENTIALS, REGION
from infra.template import PROJECT_ROOT
from infra.verify.conflicts import conflict_proxy, conflicts_at

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

WAIT_S = 10.0


class SlowDynamo:
    """A DynamoDB that has begun a call, and ends it when ``finish`` is set."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.finish = threading.Event()

    def respond(self, _environ: object, start_response: Any) -> list[bytes]:
        self.begun.release()
        self.finish.wait(WAIT_S)
        start_response("200 OK", [("content-type", "application/x-amz-json-1.0")])
        return [b"{}"]


@contextmanager
def slow_dynamo() -> Iterator[tuple[SlowDynamo, str, "DynamoDBClient"]]:
    slow = SlowDynamo()
    server = make_server("127.0.0.1", 0, slow.respond, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with conflict_proxy(f"http://127.0.0.1:{server.port}") as url:
        client = boto3.client(
            "dynamodb",
            endpoint_url=url,
            region_name=REGION,
            **CREDENTIALS,
            config=Config(retries={"total_max_attempts": 1}, proxies={}),
        )
        yield slow, url, client
        client.close()
    server.shutdown()
    thread.join()
    server.server_close()


def key(name: str) -> dict[str, Any]:
    return {"pk": {"S": "ORG#acme"}, "sk": {"S": name}}


def transact(client: "DynamoDBClient", *names: str) -> object:
    writes: list[Any] = [
        {"Update": {"TableName": "t", "Key": key(name), "UpdateExpression": "SET a = :a"}}
        for name in names
    ]
    return client.transact_write_items(TransactItems=writes)


@pytest.mark.real
def test_a_transaction_on_a_locked_item_is_refused_as_dynamodb_refuses_it() -> None:
    with slow_dynamo() as (slow, url, client), ThreadPoolExecutor() as threads:
        first = threads.submit(transact, client, "ACCOUNT", "GEN#1")
        assert slow.begun.acquire(timeout=WAIT_S)

        with pytest.raises(ClientError) as refused:
            transact(client, "ACCOUNT", "GEN#2")

        assert refused.value.response["Error"]["Code"] == "TransactionCanceledException"
        reasons = refused.value.response["CancellationReasons"]
        assert [reason["Code"] for reason in reasons] == ["TransactionConflict", "None"]
        slow.finish.set()
        first.result(WAIT_S)
        assert conflicts_at(url) == 1


@pytest.mark.real
def test_a_single_write_to_a_locked_item_is_refused_and_one_to_another_item_is_not() -> None:
    with slow_dynamo() as (slow, url, client), ThreadPoolExecutor() as threads:
        first = threads.submit(transact, client, "ACCOUNT")
        assert slow.begun.acquire(timeout=WAIT_S)

        other = threads.submit(transact, client, "GEN#7")
        assert slow.begun.acquire(timeout=WAIT_S)
        with pytest.raises(ClientError) as refused:
            client.update_item(TableName="t", Key=key("ACCOUNT"))

        assert refused.value.response["Error"]["Code"] == "TransactionConflictException"
        slow.finish.set()
        first.result(WAIT_S)
        other.result(WAIT_S)
        assert conflicts_at(url) == 1


@pytest.mark.real
def test_a_finished_transaction_locks_nothing() -> None:
    with slow_dynamo() as (slow, url, client):
        slow.finish.set()
        transact(client, "ACCOUNT")
        transact(client, "ACCOUNT")
        client.update_item(TableName="t", Key=key("ACCOUNT"))
        assert conflicts_at(url) == 0


def test_the_bill_replaces_the_guides_gb_seconds_by_the_measured_ones() -> None:
    assert cost.lambda_line() == (6_000, 0.0000133334)
    assert "3,000 GB-seconds, 0.0400 USD" in " ".join(cost.report(3_000))


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
        "## Each kind of request",
        "## Cold start: INIT",
        "## Size of the artifact",
        "## Memory",
        "## Contention",
        "## LiteLLM's proxy",
        "## Growth",
        "## First start of a fresh clone",
        "## Cost of 1,000 images",
    ]
    assert "**no**" not in text, "a charge was not exact"
