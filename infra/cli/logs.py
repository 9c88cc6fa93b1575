"""``logs``: what the functions logged about one request."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import typer

from infra.cli.deployment import LogLine
from infra.cli.errors import CommandFailed
from infra.cli.local_stack import LOCAL_DIRECTORY
from infra.cli.options import RequestId, Since
from infra.cli.output import Row, escaped, timestamp
from infra.cli.session import Command, Session

__all__ = ["app"]

app = typer.Typer()
_LOCAL_LOG = LOCAL_DIRECTORY / "service.log"


@app.command("logs", cls=Command, epilog="--json: lines: a list of {time or null, log, text}")
def logs(session: Session, request_id: RequestId, since: Since = None) -> None:
    """Print the lines of all functions' logs that contain an id, oldest first.

    A customer quotes X-Request-Id. Lines of the worker have the MessageId of the job instead, and
    both name the generation: look for that id to see all of an asynchronous request.
    """
    begins = since or datetime.now(UTC) - timedelta(days=1)
    with session.output.progress("Reading the logs"):
        found = _found(session, request_id, int(begins.timestamp() * 1000))
    if not found:
        session.output.note(f"no line since {begins:%Y-%m-%dT%H:%M:%SZ} contains {request_id}")
    rows = map(_row, found)
    session.output.report("lines", rows, _lines, more=dict)


def _found(session: Session, text: str, since_ms: int) -> list[LogLine]:
    if not session.target.is_local:
        return session.deployment.log_lines(text, since_ms)
    try:
        lines = _LOCAL_LOG.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as fault:
        raise CommandFailed(f"{_LOCAL_LOG} is unreadable; restart `make run`") from fault
    # It holds what was logged since the local stack was started, and no other times.
    return [LogLine(0, str(_LOCAL_LOG), line) for line in lines if text in line]


def _row(line: LogLine) -> Row:
    time = timestamp(line.at_ms / 1000) if line.at_ms else None
    return {"time": time, "log": line.group, "text": line.text}


def _lines(row: Row) -> Iterator[str]:
    yield " ".join(escaped(str(value)) for value in row.values() if value is not None)
