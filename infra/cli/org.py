"""``org``: organisations and their rate limits."""

from collections.abc import Iterator
from datetime import UTC, datetime

import typer

from infra.cli.errors import CommandFailed
from infra.cli.generations import summary
from infra.cli.options import NewRateLimit, OptionalLimit, Organisation, RateLimit, Yes
from infra.cli.output import Column, Row
from infra.cli.session import CALL_WITHIN_S, SCAN_WITHIN_S, Command, Session
from lib.deadline import Deadline
from lib.keys.key_ring import UnknownOrganisation
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.ledger.rows import DEFAULT_RATE_LIMIT, Account

__all__ = ["app"]

app = typer.Typer(help="Create organisations, list them, limit their request rate.")
_FIELDS = "organisation, credits, requestsPerMinute"


@app.command("create", cls=Command, epilog=f"--json: {_FIELDS}")
def create(session: Session, organisation: Organisation, rate_limit: NewRateLimit = None) -> None:
    """Create an organisation with no credits. Repeating this is safe."""
    limit = rate_limit or DEFAULT_RATE_LIMIT
    session.accounts.create(organisation, Deadline(CALL_WITHIN_S), limit)
    account = session.account(organisation)
    if rate_limit not in {None, account.rate_limit}:
        raise CommandFailed(
            f"{organisation} already exists, with {account.rate_limit} requests per minute; "
            "change that with `org limit`"
        )
    session.output.result(
        _document(organisation, account),
        f"{organisation}: {account.credits} credits, {account.rate_limit} requests per minute",
    )


@app.command(
    "list",
    cls=Command,
    epilog=f"--json: organisations: a list of {{{_FIELDS}}}; complete: false if --limit cut it off",
)
def list_(session: Session, limit: OptionalLimit = None) -> None:
    """List all organisations by name.

    Credits and limit are empty where the account is missing: `audit` says what is left of it.
    """
    complete = True

    def rows() -> Iterator[Row]:
        nonlocal complete
        found = session.accounts.all(Deadline(SCAN_WITHIN_S))
        for count, (name, account) in enumerate(found):
            if count == limit:
                complete = False
                return
            update(f"{count + 1} organisations")
            yield _document(name, account)

    columns = [
        Column("ORGANISATION", "organisation", min_width=24),
        Column("CREDITS", "credits", right=True, min_width=9),
        Column("PER MINUTE", "requestsPerMinute", right=True),
    ]
    with session.output.progress("Reading the accounts") as update:
        count = session.output.listing(
            "organisations", rows(), columns, more=lambda: {"complete": complete}
        )
    if not count:
        session.output.note("no organisations yet; create one with `org create`")
    elif not complete:
        session.output.note(f"there are more than these {count}")


@app.command(
    "show",
    cls=Command,
    epilog=f"--json: {_FIELDS}, imagesLeft, liveKeys, "
    "lastGeneration: null or {id, status, createdAt}",
)
def show(session: Session, organisation: Organisation) -> None:
    """Show an organisation's credits, rate limit, live keys and last generation."""
    account = session.account(organisation)
    last = session.ledger.history(organisation, 1, None, Deadline(CALL_WITHIN_S))
    document = {
        **_document(organisation, account),
        "imagesLeft": max(0, account.credits) // CREDITS_PER_IMAGE,
        "liveKeys": _live_keys(session, organisation),
        "lastGeneration": summary(last[0]) if last else None,
    }
    facts = {
        "Organisation": organisation,
        "Credits": f"{account.credits}, enough for {document['imagesLeft']} images",
        "Limit": f"{account.rate_limit} requests per minute",
        "Live keys": str(document["liveKeys"]),
        "Last generation": f"{last[0].id}, {last[0].status}" if last else "none yet",
    }
    session.output.details(document, facts)


@app.command("limit", cls=Command, epilog=f"--json: {_FIELDS}")
def limit(
    session: Session, organisation: Organisation, rate_limit: RateLimit, *, yes: Yes = False
) -> None:
    """Set how many generations an organisation may start per minute.

    A limit of 0 blocks new generations, and asks for confirmation; credits and keys remain.
    """
    if rate_limit == 0:
        session.account(organisation)
        session.output.confirm(f"Block new generations of {organisation}", yes=yes)
    session.accounts.set_rate_limit(organisation, rate_limit, Deadline(CALL_WITHIN_S))
    account = session.account(organisation)
    session.output.result(
        _document(organisation, account),
        f"{organisation}: {account.rate_limit} requests per minute",
    )


def _live_keys(session: Session, organisation: str) -> int:
    now = datetime.now(UTC)
    try:
        return sum(record.is_live(now) for record in session.keys.list(organisation))
    except UnknownOrganisation:
        return 0


def _document(organisation: str, account: Account | None) -> Row:
    return {
        "organisation": organisation,
        "credits": account and account.credits,
        "requestsPerMinute": account and account.rate_limit,
    }
