"""The cost guide is true: its sums add up, and the service's own quantities are the counted ones.

Prices and quotas of others can't be checked here; what is computed from them is.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, cast

import pytest

from infra.docs import capacity
from infra.docs.markdown import Markdown
from infra.template import PROJECT_ROOT, TEMPLATE_PATH, Template, parse
from lib import errors
from lib.deadline import (
    AFTER_MODEL_S,
    FUNCTION_TIMEOUT_S,
    JOB_WAITS_S,
    LAST_ROWS_TAKE_S,
    RESERVE_WITHIN_S,
    RESPONSE_TAKES_S,
    WORKER_TIMEOUT_S,
)
from lib.http.models import MAX_PROMPT_CHARACTERS
from lib.keys.verification import CACHE_S
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.ledger.reconciliation import ROWS_IN_PARALLEL
from lib.ledger.rows import DEFAULT_RATE_LIMIT, DUE_SHARDS
from lib.settings import DEFAULT_MODEL
from tests.engines import Engine
from tests.world import Fault, Network, World

GUIDE = Markdown.read(PROJECT_ROOT / "infra" / "docs" / "COST-AND-LIMITS.md")
TEMPLATE = parse(TEMPLATE_PATH.read_text(encoding="utf-8"))
RESOURCES: Mapping[str, Any] = TEMPLATE["Resources"]
REQUEST_S = 6
"""How long the guide assumes that a request takes."""
PEAK = Decimal(1_000_000) / 86_400 * 5
"""Requests a second: five times the average of a million images a day."""


def amount(cell: str) -> Decimal:
    return Decimal(cell.replace(",", ""))


def rounded(value: Decimal, like: str) -> Decimal:
    return value.quantize(amount(like), ROUND_HALF_UP)


def line(start: str) -> list[str]:
    """The first line of a table of costs that begins so."""
    return next(row for rows in GUIDE.tables for row in rows if row[0].startswith(start))


def table_with(column: str) -> list[list[str]]:
    """The rows of the one table that has this column, without its heading."""
    (found,) = (rows[1:] for rows in GUIDE.tables if column in rows[0])
    return found


# The sums


def test_every_cost_is_units_times_price_and_every_sum_is_the_sum() -> None:
    tables = [rows for rows in GUIDE.tables if rows[0][0].startswith("line")]
    assert len(tables) == 5

    for _, *lines, total in tables:
        for name, units, price, per, cost, source in lines:
            assert rounded(amount(units) * amount(price) / amount(per), cost) == amount(cost), name
            assert source, name
        assert total[0] == "sum"
        assert amount(total[4]) == sum(amount(cells[4]) for cells in lines)


def test_the_cost_of_all_adds_up() -> None:
    aws, _, s3, r2, _ = (
        amount(rows[-1][4]) for rows in GUIDE.tables if rows[0][0].startswith("line")
    )
    model = amount(line(DEFAULT_MODEL)[3])
    rows = table_with("S3")

    columns = [[amount(cell) for cell in column] for column in list(zip(*rows, strict=True))[1:]]
    assert columns == [[model, aws, s3, model + aws + s3], [model, aws, r2, model + aws + r2]]


def test_the_prices_of_the_models_follow_from_the_price_of_an_image() -> None:
    rows = table_with("USD an image")

    assert rows[0][0] == DEFAULT_MODEL
    for name, _, image, thousand, credit in rows:
        assert rounded(amount(image) * 1000, thousand) == amount(thousand), name
        assert rounded(amount(image) / CREDITS_PER_IMAGE, credit) == amount(credit), name


# What the service's own code decides


KB = 1024
TRANSACTION = 2
(INDEX,) = RESOURCES["CreditsTable"]["Properties"]["GlobalSecondaryIndexes"]
INDEX_KEYS = {each["AttributeName"] for each in INDEX["KeySchema"]}
INDEXED = {"pk", "sk", *INDEX_KEYS, *INDEX["Projection"]["NonKeyAttributes"]}


@dataclass
class Meter:
    """A DynamoDB client that counts write request units, as the developer guide defines them.

    Sources, of the Amazon DynamoDB Developer Guide: "DynamoDB item sizes and formats", "Using
    Global Secondary Indexes" (provisioned throughput considerations), "Amazon DynamoDB
    Transactions: How it works". DynamoDB Local's ConsumedCapacity is not what these say.
    """

    client: Any
    writes: list[int] = field(default_factory=list)
    of_the_index: int = 0
    reads: int = 0

    def __getattr__(self, operation: str) -> Any:
        method = getattr(self.client, operation)
        self.reads += operation in {"get_item", "query", "scan"}
        if operation not in {"transact_write_items", "put_item", "update_item"}:
            return method

        def called(**arguments: Any) -> Any:
            transaction = arguments.get("TransactItems", ())
            writes = [write for each in transaction for write in each.values()] or [arguments]
            before = [self._row(write) for write in writes]
            response = method(**arguments)
            after = [self._row(write) for write in writes]
            factor = TRANSACTION if transaction else 1
            changes = list(zip(before, after, strict=True))
            index = factor * sum(index_units_of(*change) for change in changes)
            self.of_the_index += index
            self.writes.append(index + factor * sum(max(map(units, each)) for each in changes))
            return response

        return called

    def _row(self, write: Mapping[str, Any]) -> Mapping[str, Any]:
        key = write.get("Key") or {name: write["Item"][name] for name in ("pk", "sk")}
        found = self.client.get_item(TableName=write["TableName"], Key=key, ConsistentRead=True)
        row: Mapping[str, Any] = found.get("Item", {})
        return row


def index_units_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    old, new = (
        {name: value for name, value in row.items() if name in INDEXED}
        if row.keys() >= INDEX_KEYS
        else {}
        for row in (before, after)
    )
    if old == new:
        return 0
    moved = old and new and any(old[key] != new[key] for key in INDEX_KEYS)
    return units(old) + units(new) if moved else max(units(old), units(new))


def units(row: Mapping[str, Any]) -> int:
    """Write units of an item: its kilobytes, rounded up."""
    return math.ceil(sum(len(name.encode()) + size(*row[name].items()) for name in row) / KB)


def size(value: tuple[str, Any]) -> int:
    """Bytes of an attribute's value."""
    kind, content = value
    if kind == "BOOL":
        return 1
    assert kind in {"S", "N"}
    return len(content.encode()) if kind == "S" else math.ceil(len(content) / 2) + 1


def bill_of(
    engine: Engine,
    prompt: str = "x" * 200,
    key: str | None = None,
    *,
    fails: bool = False,
    asynchronous: bool = False,
) -> Meter:
    """The writes of one image in a minute that has begun."""
    meter = Meter(engine.dynamodb)
    with World(replace(engine, dynamodb=cast("Any", meter))) as world, world.observe() as seen:
        process = world.process(failure=errors.ContentRejected() if fails else None)
        meter.writes.clear()
        meter.of_the_index = meter.reads = 0
        order = world.order(key, prompt, asynchronous=asynchronous)
        try:
            if asynchronous:
                process.jobs.accept(order, world.deadline(), seen)
                world.deliver(process)
            else:
                process.generations.generate(order, world.deadline(), seen)
        except errors.ContentRejected:
            assert fails
        return replace(meter, writes=list(meter.writes))


def test_the_write_units_are_those_of_the_services_own_calls(moto_engine: Engine) -> None:
    bills = [
        bill_of(moto_engine),
        bill_of(moto_engine, key="order-1042"),
        bill_of(moto_engine, prompt="x" * MAX_PROMPT_CHARACTERS),
        bill_of(moto_engine, fails=True),
        bill_of(moto_engine, asynchronous=True),
    ]
    image, job = bills[0], bills[-1]

    documented = [[int(cell) for cell in row[1:] if cell] for row in table_with("in all")]
    assert documented == [[*bill.writes, sum(bill.writes)] for bill in bills]
    assert {bill.reads for bill in bills} == {0}
    assert amount(line("DynamoDB, write request units")[1]) == 1000 * sum(image.writes)
    assert amount(line("DynamoDB, write request units more")[1]) == 1000 * (
        sum(job.writes) - sum(image.writes)
    )
    assert [table_units(), index_units()] == [
        sum(image.writes) - image.of_the_index,
        image.of_the_index,
    ]
    assert f"An asynchronous image writes {job.of_the_index:g}:" in GUIDE.words


def test_a_tombstone_costs_what_the_guide_says(moto_engine: Engine) -> None:
    meter = Meter(moto_engine.dynamodb)
    with World(replace(moto_engine, dynamodb=cast("Any", meter))) as world:
        killed_at_the_model = Network(strikes_at=1, fault=Fault.KILLED_BEFORE)
        assert world.request(world.process(killed_at_the_model)) is None
        meter.writes.clear()
        world.let_leases_pass()
        world.reconcile(world.process())
        assert len(world.stored_keys()) == 1
        world.let_leases_pass()
        world.reconcile(world.process())
        assert world.stored_keys() == set()

    (plain,) = (int(row[-2]) for row in table_with("in all") if row[0] == "a refunded failure")
    assert f"the store: {sum(meter.writes) - plain} write units more," in GUIDE.words


def table_units() -> int:
    return int(amount(line("write units a second, table")[1]))


def index_units() -> int:
    return int(amount(line("write units a second, `Due")[1]))


def test_the_log_lines_hold_what_a_success_writes(
    moto_engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    of_an_invocation = of_the_gateway = 500
    counted, counted_more = (
        amount(row[1]) * 1_000_000
        for rows in GUIDE.tables
        for row in rows
        if row[0].startswith("CloudWatch Logs")
    )

    def written() -> int:
        lines = capfd.readouterr().out.splitlines()
        return sum(len(each) + 1 for each in lines if each.startswith("{"))

    with World(moto_engine) as world:
        written()
        world.request(world.process())
        synchronous = written() + of_an_invocation + of_the_gateway
        world.accept(world.process())
        world.deliver()
        asynchronous = written() + 2 * of_an_invocation + of_the_gateway

    assert 1000 < synchronous <= counted
    assert synchronous < asynchronous <= counted + counted_more


def test_the_metrics_and_alarms_that_are_billed_are_those_that_exist() -> None:
    code = "".join(
        file.read_text(encoding="utf-8")
        for folder in ("lib", "handlers")
        for file in (PROJECT_ROOT / folder).rglob("*.py")
    )
    metrics = set(re.findall(r'\.(?:count|timed)\("(\w+)"', code))
    failures = set(leaves(errors.GenerationFailed))
    alarms = [each["Properties"] for each in RESOURCES.values() if each["Type"].endswith(":Alarm")]
    watched = [
        each
        for alarm in alarms
        for each in alarm.get("Metrics", [alarm])
        if "MetricStat" in each or "MetricName" in each
    ]
    total = len(metrics) + len(failures)

    assert amount(line("CloudWatch, custom metrics")[1]) == total
    assert f"{len(failures)} of the {total} are one for each failure code" in GUIDE.words
    assert amount(line("CloudWatch, alarms")[1]) == len(watched)


def leaves(kind: type[errors.GenerationFailed]) -> Iterator[type[errors.GenerationFailed]]:
    children = kind.__subclasses__()
    for child in children:
        yield from leaves(child)
    if not children:
        yield kind


# The limits


def test_what_a_rate_takes_is_arithmetic() -> None:
    rates = [Decimal(1), Decimal(10), Decimal(100), Decimal(1000), PEAK]
    rows = table_with(f"{PEAK:.1f}")

    factors = [REQUEST_S, 60, table_units(), index_units(), 1, 1]
    for factor, row in zip(factors, rows, strict=True):
        assert [amount(cell) for cell in row[1:]] == [math.ceil(rate * factor) for rate in rates]


def test_the_limits_bite_where_the_guide_says() -> None:
    parameters = TEMPLATE["Parameters"]
    workers = parameters["WorkerConcurrency"]["Default"]

    assert figures(row[0] for row in table_with("what to do")) == [
        tenths(workers / REQUEST_S),
        DEFAULT_RATE_LIMIT / 60,
        tenths(10 / REQUEST_S),
        tenths(500 / 60),
        parameters["ThrottleRate"]["Default"],
        1000 // table_units(),
        1000 // REQUEST_S,
        4000 // table_units(),
        1000 * DUE_SHARDS // index_units(),
        3500,
        40_000 // table_units(),
        10_000,
        10_000,
    ]
    (raised_to,) = re.findall(r"`WorkerConcurrency` to (\d+)", GUIDE.words)
    assert int(raised_to) >= PEAK * REQUEST_S


def figures(cells: Sequence[str] | Iterator[str]) -> list[float]:
    """The first figure of each cell."""
    return [float(re.findall(r"[\d.]+", cell.replace(",", ""))[0]) for cell in cells]


def tenths(value: float) -> float:
    return math.floor(value * 10) / 10


def test_googles_spend_limits_allow_what_the_guide_says() -> None:
    usd = [short for short, _month in capacity.TIERS.values()]
    rates = [f"{each / capacity.IMAGE_USD / capacity.TEN_MINUTES_S:.2f}" for each in usd]
    assert f"{usd[0]}, {usd[1]} or {usd[2]} USD in rolling 10 minutes by tier" in GUIDE.words
    assert f"{rates[0]}, {rates[1]} or {rates[2]} images a second" in GUIDE.words


def test_the_guide_has_what_is_computed() -> None:
    guide = (PROJECT_ROOT / "infra" / "docs" / "COST-AND-LIMITS.md").read_text(encoding="utf-8")

    assert "\n".join(capacity.report()) in guide


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
    assert TEMPLATE["Parameters"]["ThrottleRate"]["Default"] == limit.amount


def test_its_times_are_those_of_the_code() -> None:
    run_s = next(
        each.timeout_s for each in Template.from_file().functions() if each.schedules_s == (60,)
    ) - int(LAST_ROWS_TAKE_S)
    after_model_s = AFTER_MODEL_S + RESPONSE_TAKES_S

    for phrase in (
        f"{FUNCTION_TIMEOUT_S - after_model_s:g} s that a request leaves it",
        f"{WORKER_TIMEOUT_S - after_model_s:g} s that a worker leaves it",
        f"organisation's keys for {CACHE_S:.0f} s",
        f"longer than {JOB_WAITS_S // 60} minutes is refunded",
        f"retries it for up to {RESERVE_WITHIN_S:.0f} seconds",
        f"stops at {FUNCTION_TIMEOUT_S} s, the model {after_model_s:g} s before",
        f"ends {ROWS_IN_PARALLEL} rows at a time and has {run_s} s a minute",
        f"0.2 s each, {run_s * ROWS_IN_PARALLEL * 5:,} a run",
    ):
        assert phrase in GUIDE.words, phrase
