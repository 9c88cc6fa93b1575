"""``credits``: an organisation's balance, and the grants that changed it."""

import heapq
import secrets
import time
from datetime import UTC, datetime

import typer

from infra.cli.errors import CommandFailed, explain
from infra.cli.options import Amount, GrantId, Limit, Note, Organisation, Yes
from infra.cli.output import Column, Row, timestamp
from infra.cli.session import CALL_WITHIN_S, Command, Session
from lib.deadline import Deadline
from lib.ledger.rows import Grant
from lib.ledger.table import LedgerUnreachable

__all__ = ["app"]

app = typer.Typer(help="Grant or take credits, show the balance and the grants.")
_GRANT = "id, credits, note, actor, createdAt"
HISTORY_WITHIN_S = 120.0


@app.command(
    "grant",
    cls=Command,
    epilog=f"--json: organisation, credits: the balance, grant: {{{_GRANT}}}",
    # A negative amount is an argument, not an option.
    context_settings={"ignore_unknown_options": True},
)
def grant(
    session: Session,
    organisation: Organisation,
    amount: Amount,
    note: Note,
    grant_id: GrantId = None,
    *,
    yes: Yes = False,
) -> None:
    """Add credits, or take them with a negative amount, which asks for confirmation.

    A grant counts once, however often it is repeated with the same id. A balance never goes below
    0.
    """
    if amount < 0:
        balance = session.account(organisation).credits
        action = f"Take {-amount} credits from {organisation}, which has {balance}"
        session.output.confirm(action, yes=yes)
    now = int(time.time())
    if grant_id is None:
        grant_id = f"{datetime.fromtimestamp(now, UTC):%Y%m%d}-{secrets.token_hex(6)}"
        session.output.note(f"the grant's id is {grant_id}; to repeat it, pass --id {grant_id}")
    made = Grant(grant_id, amount, note, session.actor, now)
    try:
        session.accounts.grant(organisation, made, Deadline(CALL_WITHIN_S))
    except LedgerUnreachable as fault:
        raise CommandFailed(f"{explain(fault)}; the grant's id is {grant_id}") from fault
    balance = session.account(organisation).credits
    session.output.result(
        {"organisation": organisation, "credits": balance, "grant": _document(made)},
        f"{organisation}: {balance} credits, with grant {grant_id}",
    )


@app.command("balance", cls=Command, epilog="--json: organisation, credits")
def balance(session: Session, organisation: Organisation) -> None:
    """Show an organisation's credits as a bare number."""
    balance = session.account(organisation).credits
    session.output.result({"organisation": organisation, "credits": balance}, str(balance))


@app.command(
    "history",
    cls=Command,
    epilog=f"--json: organisation, grants: a list of {{{_GRANT}}}, newest first",
)
def history(session: Session, organisation: Organisation, limit: Limit = 20) -> None:
    """List the credits that operators granted and took, newest first."""
    session.account(organisation)
    found = session.accounts.grants(organisation, Deadline(HISTORY_WITHIN_S))
    newest = heapq.nlargest(limit, found, key=lambda each: (each.created_at, each.grant_id))
    columns = [
        Column("WHEN", "createdAt"),
        Column("CREDITS", lambda row: f"{row['credits']:+}", right=True),
        Column("GRANT", "id"),
        Column("BY", "actor"),
        Column("NOTE", "note"),
    ]
    more = {"organisation": organisation}
    if not session.output.listing("grants", map(_document, newest), columns, more=lambda: more):
        session.output.note(f"{organisation} has no grants yet")


def _document(made: Grant) -> Row:
    return {
        "id": made.grant_id,
        "credits": made.credits,
        "note": made.note,
        "actor": made.actor,
        "createdAt": timestamp(made.created_at),
    }
