"""``reconcile``: settles or refunds the due generations once, as the deployed function does."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import typer
from aws_lambda_powertools.logging import Logger

from infra.cli.session import Command, Session
from lib.deadline import Deadline
from lib.ledger.reconciliation import ROWS_IN_PARALLEL, Reconciler
from lib.observability import Observation, describe_fault

__all__ = ["app"]

app = typer.Typer()
RUN_WITHIN_S = 600.0


@app.command(
    "reconcile",
    cls=Command,
    epilog="--json: settled, refunded, swept, failed, left: the number of rows with that outcome; "
    "problems: a list of {row, fault: a list of types and lines of code}",
)
def reconcile(session: Session) -> None:
    """Settle or refund every generation whose lease has expired.

    The deployed function does this every minute; run it by hand when that function cannot. Exits
    with 1 if a generation is neither settled nor refunded. Repeating this is safe.
    """
    warnings = _Warnings(session.settings.service_name)
    with ThreadPoolExecutor(ROWS_IN_PARALLEL) as pool, session.output.progress("Reconciling"):
        reconciler = Reconciler(session.ledger, session.images, run_all=pool.map)
        counts = asdict(reconciler.run(Deadline(RUN_WITHIN_S), warnings))
    session.output.result(
        {**counts, "problems": [{"row": row, "fault": causes} for row, causes in warnings.found]},
        ", ".join(f"{name} {count}" for name, count in counts.items()),
    )
    for row, causes in warnings.found:
        session.output.note(f"{row} could not be reconciled: {'; '.join(causes)}")
    if counts["failed"] or counts["left"]:
        session.output.note("the rows that failed or were left are still due: repeat the command")
        raise typer.Exit(1)


class _Warnings(Observation):
    """Collects the reconciler's warnings instead of logging them."""

    def __init__(self, service: str) -> None:
        super().__init__(Logger(service=service, stream=sys.stderr), "", service, "operator")
        self.found: list[tuple[str, list[str]]] = []

    def warning(self, message: str, fault: BaseException | None = None, **fields: object) -> None:
        """A row that could not be reconciled, and why, without any message of an exception."""
        causes = describe_fault(fault) if fault else [message]
        self.found.append((str(fields.get("row", "")), causes))
