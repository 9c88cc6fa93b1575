"""``org``: organisations, and how many generations they may start."""

from collections.abc import Iterator
from datetime import UTC, datetime

import typer

from infra.cli.desk import CALL_TAKES_S, WHOLE_TABLE_TAKES_S, Desk
from infra.cli.faults import NotDoneError
from infra.cli.generations import brief
from infra.cli.screen import Column, Row
from infra.cli.words import MaybeLimit, NewRateLimit, Organisation, RateLimit, Yes, command
from lib.deadline import Deadline
from lib.keys.key_ring import UnknownOrganisation
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.ledger.rows import DEFAULT_RATE_LIMIT, Account

__all__ = ["app"]

app = typer.Typer(help="Organisations: create one, list them, limit their requests.")
_FIELDS = "organisation, credits, requestsPerMinute"


@command(app, "create", _FIELDS)
def create(desk: Desk, organisation: Organisation, rate_limit: NewRateLimit = None) -> None:
    """Open an organisation's account, with no credits. Repeating it is harmless."""
    limit = rate_limit or DEFAULT_RATE_LIMIT
    desk.accounts.create(organisation, Deadline(CALL_TAKES_S), limit)
    account = desk.account(organisation)
    if rate_limit not in {None, account.rate_limit}:
        raise NotDoneError(
            f"{organisation} exists already, with {account.rate_limit} requests a minute; "
            "use `org limit` to change that"
        )
    desk.screen.show(
        _document(organisation, account),
        f"{organisation}: {account.credits} credits, {account.rate_limit} requests a minute",
    )


@command(app, "list", f"organisations: a list of {{{_FIELDS}}}; complete: false after --limit")
def list_(desk: Desk, limit: MaybeLimit = None) -> None:
    """Show every organisation, in the table's own order.

    The whole table is read, generations too, and shown as it is read: thousands of organisations
    take no more memory than one page of them.
    """
    complete = True

    def rows() -> Iterator[Row]:
        nonlocal complete
        found = desk.accounts.all(Deadline(WHOLE_TABLE_TAKES_S))
        for count, (name, account) in enumerate(found):
            if count == limit:
                complete = False
                return
            seen(f"{count + 1} organisations")
            yield _document(name, account)

    columns = [
        Column.of("ORGANISATION", "organisation", least=24),
        Column.of("CREDITS", "credits", right=True, least=9),
        Column.of("PER MINUTE", "requestsPerMinute", right=True),
    ]
    with desk.screen.working("Reading the table") as seen:
        count = desk.screen.listing(
            "organisations", rows(), columns, more=lambda: {"complete": complete}
        )
    if not count:
        desk.screen.tell("no organisations yet; create one with `org create`")
    elif not complete:
        desk.screen.tell(f"there are more than these {count}")


@command(
    app,
    "show",
    f"{_FIELDS}, imagesLeft, liveKeys, lastGeneration: null or {{id, status, createdAt}}",
)
def show(desk: Desk, organisation: Organisation) -> None:
    """Show one organisation: credits, limit, live keys, and what it generated last."""
    account = desk.account(organisation)
    last = desk.ledger.history(organisation, 1, None, Deadline(CALL_TAKES_S))
    document = {
        **_document(organisation, account),
        "imagesLeft": max(0, account.credits) // CREDITS_PER_IMAGE,
        "liveKeys": _live_keys(desk, organisation),
        "lastGeneration": brief(last[0]) if last else None,
    }
    facts = {
        "Organisation": organisation,
        "Credits": f"{account.credits}, enough for {document['imagesLeft']} images",
        "Limit": f"{account.rate_limit} requests a minute",
        "Live keys": str(document["liveKeys"]),
        "Last generation": f"{last[0].id}, {last[0].status}" if last else "none yet",
    }
    desk.screen.details(document, facts)


@command(app, "limit", _FIELDS)
def limit(
    desk: Desk, organisation: Organisation, rate_limit: RateLimit, *, yes: Yes = False
) -> None:
    """Change how many generations an organisation may start in a minute.

    With 0 it can start none, and keeps its credits and keys; that asks first.
    """
    if rate_limit == 0:
        desk.account(organisation)
        desk.screen.confirm(f"Let {organisation} start no generation any more", yes=yes)
    if not desk.accounts.set_rate_limit(organisation, rate_limit, Deadline(CALL_TAKES_S)):
        raise NotDoneError(f"there is no organisation {organisation}; create it first")
    account = desk.account(organisation)
    desk.screen.show(
        _document(organisation, account), f"{organisation}: {account.rate_limit} requests a minute"
    )


def _live_keys(desk: Desk, organisation: str) -> int:
    now = datetime.now(UTC)
    try:
        return sum(record.is_live(now) for record in desk.keys.list(organisation))
    except UnknownOrganisation:
        return 0


def _document(organisation: str, account: Account) -> Row:
    return {
        "organisation": organisation,
        "credits": account.credits,
        "requestsPerMinute": account.rate_limit,
    }
