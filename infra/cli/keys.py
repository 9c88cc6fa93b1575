"""``keys``: the API keys of an organisation. A key is shown once and never stored."""

from datetime import UTC, datetime, timedelta

import typer

from infra.cli.errors import CommandFailed
from infra.cli.options import (
    Budget,
    BudgetOption,
    Expiry,
    GraceHours,
    KeyId,
    KeyName,
    OptionalKeyId,
    Organisation,
    Yes,
)
from infra.cli.output import Column, Row, timestamp
from infra.cli.session import CALL_WITHIN_S, Command, Session
from lib.deadline import Deadline
from lib.keys.key_ring import IssuedKey, KeyRingError
from lib.keys.records import KeyRecord
from lib.ledger.usage import month_of

__all__ = ["app"]

app = typer.Typer(
    help="Issue, list, rotate and revoke API keys, and set their budgets. A key is shown only once."
)
_RECORD = (
    "id, name or null, live, createdAt, expiresAt or null, revokedAt or null, monthlyBudget or null"
)


@app.command("issue", cls=Command, epilog="--json: organisation, id, key")
def issue(
    session: Session,
    organisation: Organisation,
    name: KeyName = None,
    expires: Expiry = None,
    budget: BudgetOption = None,
) -> None:
    """Issue a key. It is shown only once, alone on standard output.

    With --budget, its requests get a 402 once they have spent so many credits in a month. An
    organisation may have 20 live keys. If the command dies before it shows the key, find the id
    with `keys list`, revoke that key and issue another.
    """
    # A key of a misspelt organisation would look like a key without credits.
    session.account(organisation)
    issued = session.keys.issue(organisation, name=name, expires_at=expires, monthly_budget=budget)
    _hand_over(session, organisation, issued, {})


@app.command(
    "list",
    cls=Command,
    epilog=f"--json: organisation, keys: a list of {{{_RECORD}, usedThisMonth}}, oldest first",
)
def list_(session: Session, organisation: Organisation) -> None:
    """List an organisation's keys by id. Dead keys are listed for 90 days.

    USED are the credits of this month, in UTC, charged or in progress. A rotated key shares its
    budget with the key that it replaces, and shows what both used.
    """
    records = session.keys.list(organisation)
    month = month_of(datetime.now(UTC).timestamp())
    usage = session.accounts.usage(organisation, month, Deadline(CALL_WITHIN_S))
    used = {each.meter: each.credits for each in usage}
    rows = [{**_document(record), "usedThisMonth": used.get(record.meter, 0)} for record in records]
    columns = [
        Column("KEY", "id"),
        Column("NAME", "name"),
        Column("STATE", lambda row: "live" if row["live"] else "dead"),
        Column("CREATED", "createdAt"),
        Column("ENDS", "expiresAt"),
        Column("REVOKED", "revokedAt"),
        Column("BUDGET", "monthlyBudget", right=True),
        Column("USED", "usedThisMonth", right=True),
    ]
    session.output.listing("keys", rows, columns, more=lambda: {"organisation": organisation})


@app.command(
    "rotate",
    cls=Command,
    epilog="--json: organisation, rotated, id, key; when repeated, rotated is false, id and key "
    "are null",
)
def rotate(
    session: Session,
    organisation: Organisation,
    grace_hours: GraceHours,
    key_id: OptionalKeyId = None,
    name: KeyName = None,
    *,
    yes: Yes = False,
) -> None:
    """Replace a key, or all keys, which expire after a grace period. Asks for confirmation.

    The new key spends from the budget of the key that it replaces, and has its name unless --name
    is given. It is shown only once, alone on standard output. Repeating this within the grace
    period changes nothing. If the new key was lost, revoke it and rotate again.
    """
    session.keys.list(organisation)
    old = "all other keys" if key_id is None else f"the key {key_id}"
    action = f"Issue a new key and expire {old} of {organisation} in {grace_hours} hours"
    session.output.confirm(action, yes=yes)
    grace = timedelta(hours=grace_hours)
    issued = session.keys.rotate(organisation, grace=grace, key_id=key_id, name=name)
    if issued is None:
        session.output.result(
            {"organisation": organisation, "rotated": False, "id": None, "key": None}
        )
        session.output.note(
            "already rotated, nothing changed; if the new key was lost, revoke it and rotate again"
        )
        return
    _hand_over(session, organisation, issued, {"rotated": True})


@app.command("revoke", cls=Command, epilog=f"--json: organisation, {_RECORD}")
def revoke(
    session: Session, organisation: Organisation, key_id: KeyId, *, yes: Yes = False
) -> None:
    """Revoke a key; it stops working within a minute. Asks for confirmation.

    Repeating this is safe.
    """
    session.output.confirm(f"Revoke the key {key_id} of {organisation} for good", yes=yes)
    row = _document(session.keys.revoke(organisation, key_id))
    session.output.result(
        {"organisation": organisation, **row},
        f"{key_id} of {organisation}: revoked {row['revokedAt']}",
    )


@app.command("budget", cls=Command, epilog=f"--json: organisation, {_RECORD}")
def budget(session: Session, organisation: Organisation, key_id: KeyId, monthly: Budget) -> None:
    """Set the credits that a key may spend in a month, or none for no limit.

    It counts within a minute, for all keys that share the budget by rotation, and for what they
    have spent in this month. Repeating this is safe.
    """
    credits_ = None if monthly == "none" else int(monthly)
    row = _document(session.keys.set_budget(organisation, key_id, credits_))
    limit = "no budget" if credits_ is None else f"{credits_} credits a month"
    session.output.result(
        {"organisation": organisation, **row}, f"{key_id} of {organisation}: {limit}"
    )


def _hand_over(session: Session, organisation: str, issued: IssuedKey, more: Row) -> None:
    """Shows the key, or revokes it: a key that was never seen must not stay live."""
    try:
        session.output.result(
            {"organisation": organisation, **more, "id": issued.id, "key": issued.key}, issued.key
        )
    except (OSError, KeyboardInterrupt) as fault:
        try:
            session.keys.revoke(organisation, issued.id)
        except KeyRingError as worse:
            raise CommandFailed(
                f"the key could be neither shown nor revoked; revoke {issued.id} of {organisation}"
            ) from worse
        raise CommandFailed(
            f"the key could not be shown, so {issued.id} was revoked; check where the output goes, "
            "then repeat the command"
        ) from fault
    session.output.note(f"{issued.id} of {organisation}: this key is not shown again")


def _document(record: KeyRecord) -> Row:
    def text(when: datetime | None) -> str | None:
        return None if when is None else timestamp(when.timestamp())

    return {
        "id": record.id,
        "name": record.name,
        "live": record.is_live(datetime.now(UTC)),
        "createdAt": text(record.created_at),
        "expiresAt": text(record.expires_at),
        "revokedAt": text(record.revoked_at),
        "monthlyBudget": record.monthly_budget,
    }
