"""The benchmark: conflicts, arithmetic, prices, and a small run from start to end."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from werkzeug.serving import make_server

from infra.bench import capacity, cost
from infra.bench.conflicts import conflict_proxy, conflicts_at
from infra.local.aws import CREDENTIALS, REGION
from infra.template import PROJECT_ROOT, TEMPLATE_PATH

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


def test_googles_spend_limits_allow_what_the_guide_says() -> None:
    usd = [short for short, _month in capacity.TIERS.values()]
    rates = [f"{each / capacity.IMAGE_USD / capacity.TEN_MINUTES_S:.2f}" for each in usd]
    words = " ".join(cost.GUIDE.read_text(encoding="utf-8").split())
    assert f"{usd[0]}, {usd[1]} or {usd[2]} USD in rolling 10 minutes by tier" in words
    assert f"{rates[0]}, {rates[1]} or {rates[2]} images a second" in words


def test_the_first_limit_to_bite_is_the_one_with_the_lowest_rate() -> None:
    assert capacity.exceeded(1) == []
    assert [limit.name for limit in capacity.exceeded(10)] == ["Gemini's quota", "Google's spend"]
    rates = [limit.images_per_s for limit in capacity.exceeded(1_000)]
    assert rates == sorted(rates)
    assert max(rates) < 1_000


def test_raised_as_the_table_says_no_limit_bites() -> None:
    for rate in capacity.RATES:
        for limit in capacity.exceeded(rate):
            amount = float(limit.enough_for(rate).partition(" ")[0].replace(",", ""))
            assert replace(limit, amount=amount).images_per_s >= rate


def test_the_throttle_is_that_of_the_template() -> None:
    (limit,) = (each for each in capacity.LIMITS if each.name == "`ThrottleRate`")
    _, _, parameter = TEMPLATE_PATH.read_text(encoding="utf-8").partition("\n  ThrottleRate:\n")
    found = re.search(r"Default: (\d+)", parameter)
    assert found is not None
    assert int(found[1]) == limit.amount


def test_without_measurements_the_bill_is_the_guides() -> None:
    guide = cost.GUIDE.read_text(encoding="utf-8")
    assert "| AWS without the store | 0.0993 |" in guide
    assert "| store | 0.4262 |" in guide
    # The guide rounds each line.
    assert sum(line.cost for line in cost.bill({})) == pytest.approx(0.0993 + 0.4262, abs=0.0003)


def test_a_measured_quantity_replaces_the_guides() -> None:
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
        "## Capacity",
    ]
    assert "**no**" not in text, "a charge was not exact"
