"""``restore``: copies a restored table back over the live one."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import boto3
import typer

from infra.cli.deployment import WRITERS
from infra.cli.errors import CommandFailed
from infra.cli.options import RestoredTable, Yes
from infra.cli.session import Command, Session

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.service_resource import Table

__all__ = ["app"]

app = typer.Typer()


@app.command("restore", cls=Command, epilog="--json: table, restored, written, deleted: rows")
def restore(session: Session, restored: RestoredTable, *, yes: Yes = False) -> None:
    """Make the live table the same as TABLE, which DynamoDB has restored. Asks for confirmation.

    Writes every row of TABLE, then deletes the live rows that TABLE does not have. Stop the
    functions that write first: with --stack-name this is checked. If it breaks off, repeat it. The
    runbook has the steps before and after it.
    """
    live = session.variables["CREDITS_TABLE"]
    if restored == live:
        raise typer.BadParameter("TABLE is the live table itself")
    _check_stopped(session)
    tables = boto3.resource("dynamodb", region_name=session.target.region)
    source, target = tables.Table(restored), tables.Table(live)
    if not source.scan(ConsistentRead=True, Limit=1)["Items"]:
        raise CommandFailed(f"the table {restored} is empty, and would delete every row of {live}")
    action = f"Overwrite all rows of {live} with those of {restored}"
    session.output.confirm(action, yes=yes)
    with session.output.progress("Copying"):
        written, deleted = _copy(source, target)
    session.output.result(
        {"table": live, "restored": restored, "written": written, "deleted": deleted},
        f"{live}: {written} rows written, {deleted} deleted",
    )


def _check_stopped(session: Session) -> None:
    deployment = session.target.deployment
    if deployment is None:
        return
    functions = deployment.resources("AWS::Lambda::Function")
    running = [
        name
        for name in WRITERS
        if name in functions and deployment.reserved_concurrency(functions[name]) != 0
    ]
    if running:
        raise CommandFailed(
            f"{', '.join(running)} can still write; set their reserved concurrency to 0 first, as "
            "the runbook says under Backups"
        )


def _copy(source: "Table", target: "Table") -> tuple[int, int]:
    """The rows written and deleted."""
    kept: set[tuple[Any, Any]] = set()
    with target.batch_writer() as writer:
        for row in _rows(source):
            writer.put_item(Item=row)
            kept.add((row["pk"], row["sk"]))
    deleted = 0
    with target.batch_writer() as writer:
        for row in _rows(target):
            if (row["pk"], row["sk"]) not in kept:
                writer.delete_item(Key={"pk": row["pk"], "sk": row["sk"]})
                deleted += 1
    return len(kept), deleted


def _rows(table: "Table") -> Iterator[Any]:
    page = table.scan(ConsistentRead=True)
    yield from page["Items"]
    while "LastEvaluatedKey" in page:
        page = table.scan(ConsistentRead=True, ExclusiveStartKey=page["LastEvaluatedKey"])
        yield from page["Items"]
