"""``org``: organisations, their rate limits and suspensions."""

from collections.abc import Iterator
from datetime import UTC, datetime

import typer

from infra.cli.errors import CommandFailed
from infra.cli.generations import summary
from infra.cli.options import (
    NewRateLimit,
    OptionalLimit,
    Organisation,
    RateLimit,
    Reason,
    Yes,
)
from infra.cli.output import Column, Row, escaped, timestamp
from infra.cli.session import CALL_WITHIN_S, SCAN_WITHIN_S, Command, Session
from lib.deadline import Deadline
from lib.errors import ContentRejected
from lib.keys.key_ring import UnknownOrganisation
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.ledger.rows import DEFAULT_RATE_LIMIT, Account

__all__ = ["app"]

app = typer.Typer(help="Create, list, limit, suspend and erase organisations.")
# How many generations the count of refused prompts covers.
RECENT = 100
_FIELDS = "organisation, credits, requestsPerMinute, suspendedAt or null"


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
    epilog=f"--json: {_FIELDS}, suspension: its reason, suspendedBy, rateLimitBy, imagesLeft, "
    "liveKeys, lastGeneration: {id, status, createdAt}, refusedPrompts: how many of the last "
    "recentGenerations were refused as a content policy violation; null where it does not apply",
)
def show(session: Session, organisation: Organisation) -> None:
    """Show an organisation's credits, limit, live keys, last generation and refused prompts.

    The limit and a suspension are shown with the operator who set them.
    """
    account = session.account(organisation)
    recent = session.ledger.history(organisation, RECENT, None, Deadline(CALL_WITHIN_S))
    last = recent[0] if recent else None
    refused = sum(each.failure_code == ContentRejected.code for each in recent)
    document = {
        **_document(organisation, account),
        "suspension": account.suspension,
        "suspendedBy": account.suspended_by,
        "rateLimitBy": account.rate_limit_by,
        "imagesLeft": max(0, account.credits) // CREDITS_PER_IMAGE,
        "liveKeys": _live_keys(session, organisation),
        "lastGeneration": summary(last) if last else None,
        "refusedPrompts": refused,
        "recentGenerations": len(recent),
    }
    facts = {
        "Organisation": organisation,
        "Credits": f"{account.credits}, enough for {document['imagesLeft']} images",
        "Limit": f"{account.rate_limit} requests per minute{_by(account.rate_limit_by)}",
        "Suspended": _suspension(account),
        "Live keys": str(document["liveKeys"]),
        "Last generation": f"{last.id}, {last.status}" if last else "none yet",
        "Refused prompts": f"{refused} of the last {len(recent)} generations",
    }
    session.output.details(document, facts)


@app.command("limit", cls=Command, epilog=f"--json: {_FIELDS}")
def limit(
    session: Session, organisation: Organisation, rate_limit: RateLimit, *, yes: Yes = False
) -> None:
    """Set how many generations an organisation may start per minute.

    A limit of 0 blocks new generations, and asks for confirmation; credits and keys remain.
    """
    session.account(organisation)
    if rate_limit == 0:
        session.output.confirm(f"Block new generations of {organisation}", yes=yes)
    account = session.accounts.set_rate_limit(
        organisation, rate_limit, session.actor, Deadline(CALL_WITHIN_S)
    )
    _show_changed(session, organisation, account, f"{rate_limit} requests per minute")


@app.command("suspend", cls=Command, epilog=f"--json: {_FIELDS}")
def suspend(
    session: Session, organisation: Organisation, reason: Reason, *, yes: Yes = False
) -> None:
    """Refuse an organisation's generations from now on. Asks for confirmation.

    Its requests get a 403 that says so, and are not charged. Accepted jobs go on; balance and
    history stay readable; credits and keys remain. Suspending it again replaces the reason.
    """
    session.account(organisation)
    session.output.confirm(f"Suspend {organisation}", yes=yes)
    account = session.accounts.suspend(organisation, reason, session.actor, Deadline(CALL_WITHIN_S))
    _show_changed(session, organisation, account, f"suspended: {reason}")


@app.command("resume", cls=Command, epilog=f"--json: {_FIELDS}")
def resume(session: Session, organisation: Organisation) -> None:
    """End an organisation's suspension. Repeating this is safe."""
    account = session.accounts.resume(organisation, Deadline(CALL_WITHIN_S))
    _show_changed(session, organisation, account, "not suspended")


def _show_changed(
    session: Session, organisation: str, account: Account | None, change: str
) -> None:
    # Without a row after the change, the account's own sentence says why.
    document = _document(organisation, account or session.account(organisation))
    session.output.result(document, f"{organisation}: {change}")


def _suspension(account: Account) -> str:
    if account.suspended_at is None:
        return "no"
    since = f"since {timestamp(account.suspended_at)}{_by(account.suspended_by)}"
    return f"{since}: {escaped(account.suspension or 'no reason given')}"


def _by(actor: str | None) -> str:
    return f", set by {escaped(actor)}" if actor else ""


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
        "suspendedAt": timestamp(account.suspended_at) if account else None,
    }
