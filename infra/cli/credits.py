"""``credits``: what an organisation may spend, and what operators added to it or took."""

import heapq
import os
import secrets
import time
from datetime import UTC, datetime

import typer

from infra.cli.desk import CALL_TAKES_S, Desk
from infra.cli.faults import NotDoneError, why
from infra.cli.screen import Column, Row, moment
from infra.cli.words import Amount, GrantId, Limit, Note, Organisation, Yes, command
from lib.deadline import Deadline
from lib.ledger.rows import Grant
from lib.ledger.table import LedgerUnreachable

__all__ = ["app"]

app = typer.Typer(help="Credits: grant or take them, see the balance and the grants.")
_GRANT = "id, credits, note, actor, createdAt"
HISTORY_TAKES_S = 120.0


@command(app, "grant", f"organisation, credits: the balance, grant: {{{_GRANT}}}", negative=True)
def grant(
    desk: Desk,
    organisation: Organisation,
    amount: Amount,
    note: Note,
    grant_id: GrantId = None,
    *,
    yes: Yes = False,
) -> None:
    """Add credits, or take them with a negative amount, which asks first.

    However often it is repeated with one id, it counts once. Credits never go below 0.
    """
    if amount < 0:
        has = desk.account(organisation).credits
        question = f"Take {-amount} credits from {organisation}, which has {has}"
        desk.screen.confirm(question, yes=yes)
    now = int(time.time())
    if grant_id is None:
        grant_id = f"{datetime.fromtimestamp(now, UTC):%Y%m%d}-{secrets.token_hex(6)}"
        desk.screen.tell(f"the id of this grant is {grant_id}; repeat it with --id {grant_id}")
    made = Grant(grant_id, amount, note, os.environ.get("USER") or f"uid {os.getuid()}", now)
    try:
        desk.accounts.grant(organisation, made, Deadline(CALL_TAKES_S))
    except LedgerUnreachable as fault:
        raise NotDoneError(f"{why(fault)}; the id is {grant_id}") from fault
    credits_ = desk.account(organisation).credits
    desk.screen.show(
        {"organisation": organisation, "credits": credits_, "grant": _document(made)},
        f"{organisation}: {credits_} credits, with grant {grant_id}",
    )


@command(app, "balance", "organisation, credits")
def balance(desk: Desk, organisation: Organisation) -> None:
    """Show how many credits an organisation has, as a bare number."""
    credits_ = desk.account(organisation).credits
    desk.screen.show({"organisation": organisation, "credits": credits_}, str(credits_))


@command(app, "history", f"organisation, grants: a list of {{{_GRANT}}}, newest first")
def history(desk: Desk, organisation: Organisation, limit: Limit = 20) -> None:
    """Show what operators granted and took, newest first."""
    desk.account(organisation)
    found = desk.accounts.grants(organisation, Deadline(HISTORY_TAKES_S))
    newest = heapq.nlargest(limit, found, key=lambda each: (each.created_at, each.grant_id))
    columns = [
        Column.of("WHEN", "createdAt"),
        Column("CREDITS", lambda row: f"{row['credits']:+}", right=True),
        Column.of("GRANT", "id"),
        Column.of("BY", "actor"),
        Column.of("NOTE", "note"),
    ]
    more = {"organisation": organisation}
    if not desk.screen.listing("grants", map(_document, newest), columns, more=lambda: more):
        desk.screen.tell(f"{organisation} was granted nothing yet")


def _document(made: Grant) -> Row:
    return {
        "id": made.grant_id,
        "credits": made.credits,
        "note": made.note,
        "actor": made.actor,
        "createdAt": moment(made.created_at),
    }
