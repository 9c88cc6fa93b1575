"""What a large history costs: a request beside 10 and 200,000 generations, and 10,000 open holds.

The rows are written straight into the table, as the service would have left them.
"""

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import boto3

from handlers import reconcile
from handlers.dependencies import dependencies
from infra.bench.caller import UnexpectedAnswerError, silenced
from infra.bench.servers import (
    CREDITS,
    PROMPT,
    TABLE,
    Reach,
    accounts_at,
    ledger_at,
    open_account,
    variables,
)
from infra.bench.words import least_median_most, table
from infra.local.functions import LambdaContext
from infra.template import Template
from lib.deadline import Deadline
from lib.ledger.accounts import Accounts
from lib.ledger.ledger import Ledger
from lib.ledger.order import CREDITS_PER_IMAGE, Order
from lib.ledger.rows import Generation, Status
from lib.picture.aspect_ratio import AspectRatio

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

__all__ = ["Growth", "Sweep", "measure", "report"]

WARM_UP = 5
PAGE = 20
BATCH = 25
WRITERS = 4
CALL_TAKES_S = 20.0
AUDIT_TAKES_S = 120.0
MOST_RUNS = 30


@dataclass(frozen=True)
class Sweep:
    """The reconciler's work on that many expired holds, in runs of its own timeout."""

    holds: int
    runs: int
    seconds: float
    refunded: int
    drift: int


@dataclass(frozen=True)
class Growth:
    """By the generations in an organisation's history: wall ms of the ledger's part, and a page."""

    requests: Mapping[int, list[float]]
    pages: Mapping[int, list[float]]
    sweep: Sweep


def measure(reach: Reach, sizes: Iterable[int], requests: int, holds: int) -> Growth:
    """``requests`` reservations with their settles, and pages, by turns for each history."""
    ledger = ledger_at(reach, reach.dynamodb_url)
    accounts = accounts_at(reach, reach.dynamodb_url)
    with variables(reach.environment):
        client = boto3.client("dynamodb", endpoint_url=reach.dynamodb_url)
    organisations = {size: f"history{size}" for size in sizes}
    for size, organisation in organisations.items():
        open_account(accounts, organisation)
        _write(client, _settled(organisation, size))
    reserved: dict[int, list[float]] = {size: [] for size in organisations}
    pages: dict[int, list[float]] = {size: [] for size in organisations}
    for number in range(WARM_UP + requests):
        for size, organisation in organisations.items():
            request_ms, page_ms = _one(ledger, organisation)
            if number >= WARM_UP:
                reserved[size].append(request_ms)
                pages[size].append(page_ms)
    return Growth(reserved, pages, _sweep(reach, accounts, client, holds))


def _one(ledger: Ledger, organisation: str) -> tuple[float, float]:
    deadline = Deadline(CALL_TAKES_S)
    began = time.perf_counter()
    generation = ledger.reserve(
        Order(organisation, PROMPT, AspectRatio.LANDSCAPE_16_9), str, deadline
    )
    ledger.settle(generation, 4200, deadline)
    asked = time.perf_counter()
    ledger.history(organisation, PAGE, None, deadline)
    return (asked - began) * 1000, (time.perf_counter() - asked) * 1000


def _settled(organisation: str, count: int) -> Iterator[dict[str, Any]]:
    """The rows of generations that ended long ago."""
    for number in range(count):
        yield _generation(organisation, number, Status.SETTLED).to_item()


def _generation(organisation: str, number: int, status: Status) -> Generation:
    created_ms = 1_700_000_000_000 + number
    return Generation(
        organisation=organisation,
        created_ms=created_ms,
        status=status,
        credits=CREDITS_PER_IMAGE,
        attempt_id=f"attempt-{number:029d}",
        image_key=f"generated/gemini/{organisation}/{created_ms}.png",
        prompt=PROMPT,
        aspect_ratio=AspectRatio.LANDSCAPE_16_9,
        request_hash=f"{number:064x}",
    )


def _sweep(reach: Reach, accounts: Accounts, client: "DynamoDBClient", holds: int) -> Sweep:
    """Lets the real reconciler, in this process, refund ``holds`` reservations of dead requests."""
    organisation = "holds"
    open_account(accounts, organisation)
    _take(client, organisation, holds)
    expired = (
        replace(_generation(organisation, number, Status.RESERVED), due_at=1_700_000_100)
        for number in range(holds)
    )
    _write(client, (each.to_item() for each in expired))
    (function,) = (
        each
        for each in Template.from_file().functions()
        if each.handler.startswith("handlers.reconcile")
    )
    refunded, runs = 0, 0
    began = time.perf_counter()
    dependencies.cache_clear()
    with silenced(), variables(reach.environment):
        while refunded < holds and runs < MOST_RUNS:
            context: Any = LambdaContext(function.name, "1024", function.timeout_s)
            refunded += reconcile.handler({}, context)["refunded"]
            runs += 1
    dependencies.cache_clear()
    seconds = time.perf_counter() - began
    report = accounts.audit(organisation, Deadline(AUDIT_TAKES_S))
    if report.credits != CREDITS:
        raise UnexpectedAnswerError(f"{CREDITS - report.credits} credits did not come back")
    return Sweep(holds, runs, seconds, refunded, report.drift)


def _take(client: "DynamoDBClient", organisation: str, holds: int) -> None:
    """What the dead requests had paid."""
    paid = holds * CREDITS_PER_IMAGE
    client.update_item(
        TableName=TABLE,
        Key={"pk": {"S": f"ORG#{organisation}"}, "sk": {"S": "ACCOUNT"}},
        UpdateExpression="SET credits = credits - :paid",
        ExpressionAttributeValues={":paid": {"N": str(paid)}},
    )


def _write(client: "DynamoDBClient", rows: Iterator[dict[str, Any]]) -> None:
    """Puts all rows into the table."""

    def put(some: list[dict[str, Any]]) -> None:
        left: Any = {TABLE: [{"PutRequest": {"Item": row}} for row in some]}
        while left:
            left = client.batch_write_item(RequestItems=left)["UnprocessedItems"]

    with ThreadPoolExecutor(WRITERS) as writers:
        # A few hundred batches at a time, so that not all rows are in memory at once.
        while batches := [some for _ in range(400) if (some := list(islice(rows, BATCH)))]:
            list(writers.map(put, batches))


def report(growth: Growth) -> Iterator[str]:
    """The section of the results."""
    least = min(growth.requests)
    yield from ("## Growth", "")
    yield "The ledger's part of a request (reserve and settle) and a page of the history, by the"
    yield "generations that the organisation has, by turns, on DynamoDB Local."
    yield ""
    yield from table(
        (
            "generations",
            "request, beside the smallest",
            "request, wall ms",
            f"a page of {PAGE}, wall ms",
        ),
        (
            (
                f"{size:,}",
                f"**{statistics.median(ms) / statistics.median(growth.requests[least]):.2f}**",
                least_median_most(ms, ".1f"),
                least_median_most(growth.pages[size], ".1f"),
            )
            for size, ms in growth.requests.items()
        ),
    )
    sweep = growth.sweep
    yield ""
    yield f"The reconciler refunded {sweep.refunded:,} of {sweep.holds:,} expired holds in"
    a_second = sweep.refunded / sweep.seconds
    yield f"{sweep.seconds:.0f} s ({a_second:.0f} a second) and {sweep.runs} runs;"
    yield f"every credit came back, and the audit found a drift of {sweep.drift}."
