"""``usage``: the images and credits of a month, by organisation and API key."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import typer

from infra.cli.options import Every, Format, FormatOption, Month, OptionalOrganisation
from infra.cli.output import Column, Row
from infra.cli.session import CALL_WITHIN_S, SCAN_WITHIN_S, Command, Session
from lib.deadline import Deadline
from lib.keys.key_ring import UnknownOrganisation
from lib.keys.records import KeyRecord
from lib.ledger.usage import month_of
from lib.usage import by_key

__all__ = ["app"]

app = typer.Typer()
_COLUMNS = [
    Column("ORGANISATION", "organisation", min_width=24),
    Column("MONTH", "month"),
    Column("KEY", "key", min_width=16),
    Column("NAME", "name", min_width=9),
    Column("IMAGES", "images", right=True, min_width=9),
    Column("CREDITS", "credits", right=True, min_width=9),
    Column("REFUNDED", "refunded", right=True, min_width=9),
    Column("BUDGET", "monthlyBudget", right=True, min_width=9),
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
    """Show the images and the credits of a month, by API key.

    Counted are the generations that were requested in that month, in UTC. Credits are charged or in
    progress; those refunded are apart. A rotated key is one entry.
    """
    if every == (organisation is not None):
        raise typer.BadParameter("name an organisation, or pass --all")
    month = month or month_of(datetime.now(UTC).timestamp())
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
    now = datetime.now(UTC)
    for name in names:
        usage = session.accounts.usage(name, month, Deadline(CALL_WITHIN_S))
        for each in by_key(usage, _records(session, name), now):
            yield {
                "organisation": name,
                "month": month,
                "key": each.id,
                "name": each.name,
                "images": each.images,
                "credits": each.credits,
                "refunded": each.returned,
                "monthlyBudget": each.monthly_budget,
            }


def _records(session: Session, organisation: str) -> Sequence[KeyRecord]:
    try:
        return session.keys.list(organisation)
    except UnknownOrganisation:
        return ()
