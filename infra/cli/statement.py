"""``statement``: a month's bill of an organisation, signed with the key of its receipts."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from infra.cli.errors import CommandFailed, explain_aws
from infra.cli.options import Organisation
from infra.cli.output import Column
from infra.cli.session import SCAN_WITHIN_S, Command, Session
from infra.receipts.statement import (
    Month,
    Statement,
    StatementRefused,
    statement_of,
    with_signature,
)
from lib.deadline import Deadline
from lib.receipts.receipt import STATEMENT_TYPE, payload_of
from lib.receipts.signer import SigningFailed

__all__ = ["app"]

app = typer.Typer()


def _month(text: str) -> str:
    try:
        return str(Month.parse(text))
    except ValueError as fault:
        raise typer.BadParameter("must be a month, such as 2026-11") from fault


_MonthOption = Annotated[
    str,
    typer.Option("--month", metavar="YYYY-MM", callback=_month, help="A month that is over, UTC."),
]
_Csv = Annotated[bool, typer.Option("--csv", help="Print the signed statement as CSV.")]
_Previous = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The signed statement of the month before."),
]


@app.command(
    "statement",
    cls=Command,
    epilog="--json: the signed statement: {statement, lines, jws}; `verify` checks it",
)
def statement(
    session: Session,
    organisation: Organisation,
    month: _MonthOption,
    previous: _Previous = None,
    *,
    csv: _Csv = False,
) -> None:
    """Show what an organisation was granted and charged in a month, by day and key.

    With --csv or --json the statement is signed, for the customer. It names the hash of all of the
    month's receipts and, with --previous, of the statement before. A month whose credits do not add
    up is refused.
    """
    if csv and session.output.as_json:
        raise typer.BadParameter("--csv and --json exclude each other")
    session.account(organisation)
    with session.output.progress("Reading the month"):
        made = _made(session, organisation, Month.parse(month), previous)
    if not csv and not session.output.as_json:
        _show(session, made)
        return
    try:
        token = session.signer.sign(payload_of(made.claims), STATEMENT_TYPE)
    except SigningFailed as fault:
        raise CommandFailed(
            explain_aws(fault.__cause__) or "KMS does not sign; check RECEIPT_KEY and your role"
        ) from fault
    sys.stdout.write(with_signature(made, token, as_csv=csv).decode())
    sys.stdout.flush()


def _made(session: Session, organisation: str, month: Month, previous: Path | None) -> Statement:
    try:
        return statement_of(
            session.accounts,
            organisation,
            month,
            issuer=session.issuer,
            now_s=time.time(),
            deadline=Deadline(SCAN_WITHIN_S),
            previous=None if previous is None else _claims_of(session, previous),
        )
    except StatementRefused as reason:
        raise CommandFailed(str(reason)) from reason


def _claims_of(session: Session, path: Path) -> dict[str, object]:
    """The claims of the statement before, which this deployment must have signed."""
    # It loads cryptography, which no other command needs.
    from infra.receipts.verification import (  # noqa: PLC0415 - as above
        VerificationFailed,
        opened,
        read_file,
        set_of,
    )

    try:
        return dict(opened(read_file(path), set_of(session.signer.jwks())).claims)
    except VerificationFailed as reason:
        raise CommandFailed(f"{path.name}: {reason}") from reason
    except SigningFailed as fault:
        raise CommandFailed(
            explain_aws(fault.__cause__) or "KMS does not return the public key"
        ) from fault


def _show(session: Session, made: Statement) -> None:
    columns = [
        Column("", "kind"),
        Column("DAY", "date"),
        Column("KEY OR GRANT", lambda row: str(row["key"] or row["grant"])),
        Column("IMAGES", "images", right=True),
        Column("CREDITS", "credits", right=True),
        Column("REFUNDS", "refunds", right=True),
    ]
    rows = [
        {
            "kind": each.kind,
            "date": each.date,
            "key": each.key,
            "grant": each.grant,
            "images": each.images or None,
            "credits": each.credits,
            "refunds": each.refunds or None,
        }
        for each in made.lines
    ]
    session.output.listing("lines", rows, columns, more=dict)
    session.output.note("for the signed statement, pass --csv or --json")
