"""``usage``: the images and credits of a month, by organisation."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime

import typer

from infra.cli.options import Every, Format, FormatOption, Month, OptionalOrganisation
from infra.cli.output import Column, Row
from infra.cli.session import SCAN_WITHIN_S, Command, Session
from lib.deadline import Deadline

__all__ = ["app"]

app = typer.Typer()
_COLUMNS = [
    Column("ORGANISATION", "organisation", min_width=24),
    Column("MONTH", "month"),
    Column("IMAGES", "images", right=True, min_width=9),
    Column("CHARGED", "charged", right=True, min_width=9),
    Column("HELD", "held", right=True, min_width=9),
    Column("REFUNDS", "refunds", right=True, min_width=9),
    Column("REFUNDED", "refunded", right=True, min_width=9),
]
_FIELDS = [str(column.cell) for column in _COLUMNS]


@app.command(
    "usage",
    cls=Command,
    epilog=f"--json: usage: a list of {{{', '.join(_FIELDS)}}}; CSV has the same columns",
)
def usage(
    session: Session,
    organisation: OptionalOrganisation = None,
    month: Month = None,
    format_: FormatOption = Format.TABLE,
    *,
    every: Every = False,
) -> None:
    """Show the images, the credits charged and the refunds of a month.

    Counted are the generations that were requested in that month, in UTC. Credits in progress are
    held: they will be charged or refunded.
    """
    if every == (organisation is not None):
        raise typer.BadParameter("name an organisation, or pass --all")
    month = month or f"{datetime.now(UTC):%Y-%m}"
    output = session.output
    output.as_json = output.as_json or format_ is Format.JSON
    with output.progress("Adding up"):
        rows = _rows(session, organisation, month)
        if format_ is Format.CSV and not output.as_json:
            output.csv(rows, _FIELDS)
        else:
            output.listing("usage", rows, _COLUMNS, more=dict)


def _rows(session: Session, organisation: str | None, month: str) -> Iterator[Row]:
    if organisation is None:
        names = session.accounts.organisations(Deadline(SCAN_WITHIN_S))
    else:
        session.account(organisation)
        names = [organisation]
    begins = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    ends = begins.replace(year=begins.year + begins.month // 12, month=begins.month % 12 + 1)
    first_ms, after_ms = (int(each.timestamp() * 1000) for each in (begins, ends))
    for name in names:
        used = session.accounts.usage(name, first_ms, after_ms - 1, Deadline(SCAN_WITHIN_S))
        yield {"organisation": name, "month": month, **asdict(used)}
