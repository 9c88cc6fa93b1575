"""``keys``: the API keys of an organisation. A key is shown once, and kept nowhere."""

from datetime import UTC, datetime, timedelta

import typer

from infra.cli.desk import Desk
from infra.cli.faults import NotDoneError
from infra.cli.screen import Column, Row, moment
from infra.cli.words import GraceHours, KeyId, Organisation, Yes, command
from lib.keys.key_ring import IssuedKey, KeyRingError
from lib.keys.records import KeyRecord

__all__ = ["app"]

app = typer.Typer(help="API keys: issue, list, rotate, revoke. A key is shown once.")
_RECORD = "id, live, createdAt, expiresAt or null, revokedAt or null"


@command(app, "issue", "organisation, id, key")
def issue(desk: Desk, organisation: Organisation) -> None:
    """Make a new key, and show it this once, alone on standard output.

    An organisation may have 5 live keys. If this ends before you see the key, `keys list` shows
    the id of the key that nobody has: revoke it, and issue another.
    """
    # A key for a misspelt organisation would look like a key that has no credits.
    desk.account(organisation)
    issued = desk.keys.issue(organisation)
    _hand_over(desk, organisation, issued, {})


@command(app, "list", f"organisation, keys: a list of {{{_RECORD}}}, oldest first")
def list_(desk: Desk, organisation: Organisation) -> None:
    """Show what is known of an organisation's keys, never a key. Dead ones stay for 90 days."""
    records = desk.keys.list(organisation)
    columns = [
        Column.of("KEY", "id"),
        Column("STATE", lambda row: "live" if row["live"] else "dead"),
        Column.of("CREATED", "createdAt"),
        Column.of("ENDS", "expiresAt"),
        Column.of("REVOKED", "revokedAt"),
    ]
    rows = [_document(record) for record in records]
    desk.screen.listing("keys", rows, columns, more=lambda: {"organisation": organisation})


@command(app, "rotate", "organisation, rotated, id, key; rotated: false and nulls the second time")
def rotate(
    desk: Desk, organisation: Organisation, grace_hours: GraceHours, *, yes: Yes = False
) -> None:
    """Make a new key, and let all older ones end after a time. It asks first.

    The new key is shown this once, alone on standard output. Repeating it within that time changes
    nothing; if nobody saw the new key, revoke that one and rotate again.
    """
    desk.keys.list(organisation)
    question = f"End all keys of {organisation} in {grace_hours} hours, but for a new one"
    desk.screen.confirm(question, yes=yes)
    issued = desk.keys.rotate(organisation, grace=timedelta(hours=grace_hours))
    if issued is None:
        nothing = {"organisation": organisation, "rotated": False, "id": None, "key": None}
        desk.screen.show(nothing)
        sentence = "rotated already, and left so; if nobody saw the key, revoke it and rotate again"
        desk.screen.tell(sentence)
        return
    _hand_over(desk, organisation, issued, {"rotated": True})


@command(app, "revoke", f"organisation, {_RECORD}")
def revoke(desk: Desk, organisation: Organisation, key_id: KeyId, *, yes: Yes = False) -> None:
    """End a key, everywhere within a minute. It asks first; repeating it is harmless."""
    desk.screen.confirm(f"End the key {key_id} of {organisation} for good", yes=yes)
    row = _document(desk.keys.revoke(organisation, key_id))
    desk.screen.show(
        {"organisation": organisation, **row},
        f"{key_id} of {organisation}: revoked {row['revokedAt']}",
    )


def _hand_over(desk: Desk, organisation: str, issued: IssuedKey, more: Row) -> None:
    """Shows the key, or revokes it: no key may live that nobody has."""
    try:
        desk.screen.show(
            {"organisation": organisation, **more, "id": issued.id, "key": issued.key}, issued.key
        )
    except (OSError, KeyboardInterrupt) as fault:
        try:
            desk.keys.revoke(organisation, issued.id)
        except KeyRingError as worse:
            raise NotDoneError(
                f"the key could not be shown, nor be revoked; revoke {issued.id} of {organisation}"
            ) from worse
        raise NotDoneError(
            f"the key could not be shown, so {issued.id} was revoked at once; look at where the "
            "output goes, then repeat this"
        ) from fault
    desk.screen.tell(f"{issued.id} of {organisation}: the key is not shown again")


def _document(record: KeyRecord) -> Row:
    def text(when: datetime | None) -> str | None:
        return None if when is None else moment(when.timestamp())

    return {
        "id": record.id,
        "live": record.is_live(datetime.now(UTC)),
        "createdAt": text(record.created_at),
        "expiresAt": text(record.expires_at),
        "revokedAt": text(record.revoked_at),
    }
