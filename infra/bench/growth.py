"""What a large history costs: requests beside it, its audit and statement, receipts, and a sweep.

The rows are written straight into the table, as the service would have left them.
"""

import os
import statistics
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import boto3

from handlers import reconcile
from infra.bench.caller import UnexpectedAnswerError, configured
from infra.bench.contention import reserve_and_settle
from infra.bench.meters import forget_peak, peak_mib
from infra.bench.servers import CREDITS, PROMPT, TABLE, Servers, credits_table, open_account
from infra.bench.tables import section, spread, table, verdict
from infra.local.functions import LambdaContext
from infra.receipts.statement import Month, statement_of
from infra.template import Template
from lib.clients import kms
from lib.deadline import Deadline
from lib.ledger.accounts import Accounts
from lib.ledger.ledger import Ledger
from lib.ledger.order import CREDITS_PER_IMAGE, Order
from lib.ledger.rows import Generation, Status, account_key
from lib.picture.aspect_ratio import AspectRatio
from lib.receipts.receipt import RECEIPT_TYPE, payload_of, receipt_of
from lib.receipts.signer import Signer

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

WARM_UP, PAGE, BATCH, WRITERS = 5, 20, 25, 4
CALL_TAKES_S, AUDIT_TAKES_S = 20.0, 300.0
CREATED_MS, MONTH = 1_700_000_000_000, Month(2023, 11)
RECEIPTS, STATEMENT_TAKES_S = 1000, 600.0
AUDITS, IMAGES_PER_S, AUDIT_TARGET = 3, 5, 2.0
MAX_RUNS = 30


@dataclass(frozen=True)
class Growth:
    """The audit's time beside requests over alone; MiB added to the peak; the section."""

    audit: float
    statement_mib: float
    receipts_mib: float
    lines: list[str]


def measure(servers: Servers, sizes: Iterable[int], requests: int, due: int) -> Growth:
    """Measures ``requests`` for each history, alternating, and what reads the largest."""
    credits_rows = credits_table(servers, servers.dynamodb_url)
    ledger, accounts = Ledger(credits_rows), Accounts(credits_rows)
    with patch.dict(os.environ, servers.environment):
        client = boto3.client("dynamodb", endpoint_url=servers.dynamodb_url)
    organisations = {size: f"history{size}" for size in sorted(sizes)}
    for size, organisation in organisations.items():
        open_account(accounts, organisation)
        _write(client, [_row(organisation, number, Status.SETTLED) for number in range(size)])
    request_ms: dict[int, list[float]] = {size: [] for size in organisations}
    page_ms: dict[int, list[float]] = {size: [] for size in organisations}
    for number in range(WARM_UP + requests):
        for size, organisation in organisations.items():
            began = time.perf_counter()
            reserve_and_settle(ledger, organisation, CALL_TAKES_S)
            settled = time.perf_counter()
            ledger.history(organisation, PAGE, None, Deadline(CALL_TAKES_S))
            if number >= WARM_UP:
                request_ms[size].append((settled - began) * 1000)
                page_ms[size].append((time.perf_counter() - settled) * 1000)
    text = (
        "Reserve and settle, and a page of the history, by the number of generations that the",
        "organisation has; alternating, on DynamoDB Local.",
    )
    smallest, rows = statistics.median(request_ms[min(request_ms)]), []
    for size, ms in request_ms.items():
        ratio = f"**{statistics.median(ms) / smallest:.2f}**"
        rows.append((f"{size:,}", ratio, spread(ms, ".1f"), spread(page_ms[size], ".1f")))
    head = ("generations", "request / smallest", "request, wall ms", f"page of {PAGE}, wall ms")
    lines = [*section("Growth", *text), *table(head, rows)]
    audit, audited = _audits(ledger, accounts, organisation, size)
    statement_mib, stated = _statement(accounts, organisation, size)
    receipts_mib, receipted = _receipts(servers, ledger, organisation)
    for sentence in (audited, stated, receipted, _sweep(servers, accounts, client, due)):
        lines += ["", sentence]
    return Growth(audit, statement_mib, receipts_mib, lines)


def _statement(accounts: Accounts, organisation: str, size: int) -> tuple[float, str]:
    """The statement of the month in which the organisation made ``size`` images."""
    deadline, now_s = Deadline(STATEMENT_TAKES_S), time.time()
    forget_peak()
    before_mib, began = peak_mib(os.getpid()), time.perf_counter()
    made = statement_of(
        accounts, organisation, MONTH, issuer="bench", now_s=now_s, deadline=deadline
    )
    took_s, added_mib = time.perf_counter() - began, peak_mib(os.getpid()) - before_mib
    if made.claims["receipts"] != size:
        raise UnexpectedAnswerError(f"the statement counts {made.claims['receipts']} receipts")
    return added_mib, (
        f"The statement of a month with {size:,} generations takes {took_s:.1f} s and adds\n"
        f"{added_mib:.1f} MiB to the peak memory."
    )


def _receipts(servers: Servers, ledger: Ledger, organisation: str) -> tuple[float, str]:
    """Signs the receipts of a page of generations until there are ``RECEIPTS``."""
    with patch.dict(os.environ, servers.environment):
        signer = Signer(kms(), servers.environment["RECEIPT_KEY"])
    rows = ledger.history(organisation, PAGE, None, Deadline(CALL_TAKES_S))
    signer.sign(payload_of(receipt_of(rows[0], "bench")), RECEIPT_TYPE)
    forget_peak()
    before_mib, began = peak_mib(os.getpid()), time.process_time()
    for number in range(RECEIPTS):
        signer.sign(payload_of(receipt_of(rows[number % PAGE], "bench")), RECEIPT_TYPE)
    cpu_ms = (time.process_time() - began) * 1000 / RECEIPTS
    added_mib = peak_mib(os.getpid()) - before_mib
    return added_mib, (
        f"A receipt takes {cpu_ms:.1f} ms of CPU, the call of KMS included; {RECEIPTS:,} add\n"
        f"{added_mib:.1f} MiB to the peak memory."
    )


def _audits(ledger: Ledger, accounts: Accounts, organisation: str, size: int) -> tuple[float, str]:
    """Audits the organisation alone, and while it makes images."""
    took_s: dict[bool, list[float]] = {False: [], True: []}
    made = 0
    for busy in (False, True) * AUDITS:
        ends = threading.Event()
        with ThreadPoolExecutor(1) as requests:
            making = requests.submit(_make_images, ledger, organisation, ends) if busy else None
            began = time.perf_counter()
            found = accounts.audit(organisation, Deadline(AUDIT_TAKES_S))
            took_s[busy].append(time.perf_counter() - began)
            ends.set()
            made += making.result() if making else 0
        if not found.healthy or found.slack:
            raise UnexpectedAnswerError(f"the audit of {organisation}: {found}")
    quiet_s, busy_s = statistics.median(took_s[False]), statistics.median(took_s[True])
    ratio = busy_s / quiet_s
    return ratio, (
        f"An audit of {size:,} generations takes {quiet_s:.1f} s alone and {busy_s:.1f} s beside\n"
        f"{made / sum(took_s[True]):.1f} images a second: {ratio:.2f} times as long "
        f"({verdict(ratio, AUDIT_TARGET)})."
    )


def _make_images(ledger: Ledger, organisation: str, ends: threading.Event) -> int:
    began, made = time.monotonic(), 0
    while not ends.wait(max(0.0, began + made / IMAGES_PER_S - time.monotonic())):
        reserve_and_settle(ledger, organisation, CALL_TAKES_S)
        made += 1
    return made


def _row(organisation: str, number: int, status: Status, due_at: int | None = None) -> Generation:
    created_ms = CREATED_MS + number
    order = Order(organisation, PROMPT, AspectRatio.LANDSCAPE_16_9)
    image_key = f"generated/gemini/{organisation}/{created_ms}.png"
    reserved = Generation.reserved(order, created_ms, image_key, due_at=0)
    return replace(reserved, status=status, due_at=due_at, settled_at=created_ms // 1000)


def _sweep(servers: Servers, accounts: Accounts, client: "DynamoDBClient", due: int) -> str:
    """Runs the reconciler until it has refunded ``due`` reservations of dead requests."""
    open_account(accounts, "due")
    due_at = CREATED_MS // 1000 + 100
    _write(client, [_row("due", number, Status.RESERVED, due_at) for number in range(due)])
    timeouts_s = {each.handler: each.timeout_s for each in Template.from_file().functions()}
    refunded, runs = 0, 0
    began = time.perf_counter()
    with configured(servers.environment):
        while refunded < due and runs < MAX_RUNS:
            timeout_s = timeouts_s["handlers.reconcile.handler"]
            context: Any = LambdaContext("ReconcileFunction", "1024", timeout_s)
            refunded += reconcile.handler({}, context)["refunded"]
            runs += 1
    seconds = time.perf_counter() - began
    audit = accounts.audit("due", Deadline(AUDIT_TAKES_S))
    if audit.credits != CREDITS or audit.drift:
        raise UnexpectedAnswerError(f"{CREDITS - audit.credits} credits were not refunded")
    return (
        f"The reconciler refunded {refunded:,} of {due:,} expired reservations in {seconds:.0f} s\n"
        f"({refunded / seconds:.0f} a second) and {runs} runs; every credit came back."
    )


def _write(client: "DynamoDBClient", rows: list[Generation]) -> None:
    """Puts the rows of one organisation, and takes their price from its account."""
    price = {"N": str(len(rows) * CREDITS_PER_IMAGE)}
    client.update_item(
        TableName=TABLE,
        Key=account_key(rows[0].organisation),
        UpdateExpression="ADD taken :price SET credits = credits - :price",
        ExpressionAttributeValues={":price": price},
    )
    remaining = iter(rows)

    def put(batch: list[Generation]) -> None:
        left: Any = {TABLE: [{"PutRequest": {"Item": row.to_item()}} for row in batch]}
        while left:
            left = client.batch_write_item(RequestItems=left)["UnprocessedItems"]

    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(put, iter(lambda: list(islice(remaining, BATCH)), [])))
