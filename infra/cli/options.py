"""The arguments and options of the commands, and what their values may be."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from importlib import metadata
from typing import Annotated

import typer

from lib.keys.format import is_organisation
from lib.keys.key_ring import MAX_GRACE
from lib.keys.records import MAX_BUDGET, is_key_name

__all__ = [
    "Amount",
    "Before",
    "Budget",
    "BudgetOption",
    "Every",
    "Expiry",
    "Format",
    "FormatOption",
    "GenerationId",
    "GraceHours",
    "GrantId",
    "KeyId",
    "KeyName",
    "Limit",
    "Month",
    "NewRateLimit",
    "Note",
    "OptionalKeyId",
    "OptionalLimit",
    "OptionalOrganisation",
    "Organisation",
    "RateLimit",
    "Reason",
    "RequestId",
    "RestoredTable",
    "Since",
    "Yes",
    "shared",
]

MAX_NOTE_CHARACTERS = 500
# Each debit writes the account, whose row is to stay below 1 KB: DynamoDB bills by the KB.
MAX_REASON_CHARACTERS = 200
MAX_AMOUNT = 999_999_999
MAX_RATE_LIMIT = 99_999
MAX_GRACE_HOURS = MAX_GRACE // timedelta(hours=1)


def _checked(is_valid: Callable[[str], object], wanted: str) -> Callable[[str | None], str | None]:
    def check(text: str | None) -> str | None:
        if text is not None and not is_valid(text):
            raise typer.BadParameter(f"must be {wanted}")
        return text

    return check


def _not_zero(amount: int) -> int:
    if amount == 0:
        raise typer.BadParameter("must not be 0")
    return amount


_NAME = _checked(is_organisation, "1 to 63 of a-z, 0-9, _ and -, starting with a letter or a digit")
_ID = _checked(re.compile("[A-Za-z0-9._:-]{1,128}").fullmatch, "1 to 128 of a-z, A-Z, 0-9 and ._:-")
_NOTE = _checked(
    lambda text: text.isprintable() and 0 < len(text) <= MAX_NOTE_CHARACTERS,
    f"one line of 1 to {MAX_NOTE_CHARACTERS} characters",
)
_GENERATION = _checked(
    re.compile("[0-9]{13}").fullmatch, "13 digits, as shown by `generations list`"
)
_MONTH = _checked(re.compile("20[0-9]{2}-(0[1-9]|1[0-2])").fullmatch, "a month such as 2026-11")
_REQUEST = _checked(
    re.compile("[A-Za-z0-9+/=._:-]{1,128}").fullmatch, "1 to 128 of a-z, A-Z, 0-9 and +/=._:-"
)
_TABLE = _checked(re.compile("[A-Za-z0-9._-]{3,255}").fullmatch, "the name of a table")
_REASON = _checked(
    lambda text: text.isprintable() and 0 < len(text) <= MAX_REASON_CHARACTERS,
    f"one line of 1 to {MAX_REASON_CHARACTERS} characters",
)
_KEY_NAME = _checked(is_key_name, "1 to 64 of a-z, A-Z, 0-9 and ._:-")
_BUDGET = _checked(
    re.compile("none|[0-9]{1,9}").fullmatch, f"none, or credits from 0 to {MAX_BUDGET}"
)
_SPAN = re.compile("([1-9][0-9]{0,3})([dh])")


def _span(text: str) -> timedelta | None:
    """The time that ``text`` such as 90d or 12h names; None for anything else."""
    found = _SPAN.fullmatch(text)
    if found is None:
        return None
    return timedelta(days=int(found[1])) if found[2] == "d" else timedelta(hours=int(found[1]))


def _moment(text: str) -> datetime | None:
    """The time that ``text`` names in ISO 8601, in UTC unless it says otherwise."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _expiry(text: str) -> datetime:
    span, now = _span(text), datetime.now(UTC)
    ends_at = _moment(text) if span is None else now + span
    if ends_at is None or ends_at <= now:
        raise typer.BadParameter("must be days such as 90d, or a coming date such as 2030-01-31")
    return ends_at


def _since(text: str) -> datetime:
    span = _span(text)
    begins_at = _moment(text) if span is None else datetime.now(UTC) - span
    if begins_at is None:
        raise typer.BadParameter("must be hours or days such as 3h or 2d, or a date")
    return begins_at


class Format(StrEnum):
    """How a command prints its rows."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


Organisation = Annotated[
    str, typer.Argument(metavar="ORG", help="The organisation's name.", callback=_NAME)
]
OptionalOrganisation = Annotated[
    str | None,
    typer.Argument(metavar="ORG", help="The organisation; all if omitted.", callback=_NAME),
]
_RATE = {"metavar": "N", "max": MAX_RATE_LIMIT}
NewRateLimit = Annotated[
    int | None,
    typer.Option(min=1, help="Generations that it may start per minute; 60 by default.", **_RATE),
]
RateLimit = Annotated[
    int,
    typer.Argument(min=0, help="Generations that it may start per minute; 0 blocks it.", **_RATE),
]
Reason = Annotated[
    str, typer.Option(metavar="TEXT", callback=_REASON, help="Why; only operators see it.")
]
KeyName = Annotated[
    str | None,
    typer.Option(metavar="TEXT", callback=_KEY_NAME, help="What to call the key, such as ci."),
]
Expiry = Annotated[
    datetime | None,
    typer.Option(
        metavar="90d|DATE",
        parser=_expiry,
        help="When it expires: after so many days, or at the beginning of that day in UTC.",
    ),
]
Since = Annotated[
    datetime | None,
    typer.Option(metavar="3h|2d|DATE", parser=_since, help="How far to look back; 1d by default."),
]
RequestId = Annotated[
    str,
    typer.Argument(
        metavar="REQUEST_ID",
        callback=_REQUEST,
        help="A customer's X-Request-Id, the MessageId of a job, or a generation's id.",
    ),
]
RestoredTable = Annotated[
    str,
    typer.Argument(metavar="TABLE", callback=_TABLE, help="The table that DynamoDB restored."),
]
Month = Annotated[
    str | None,
    typer.Option(metavar="YYYY-MM", callback=_MONTH, help="The month in UTC; this one by default."),
]
FormatOption = Annotated[
    Format, typer.Option("--format", help="How to print it; json is the same as --json.")
]
Every = Annotated[bool, typer.Option("--all", help="All organisations.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id; see `keys list`.")]
OptionalKeyId = Annotated[
    str | None,
    typer.Argument(metavar="KEY_ID", help="The key to replace; all if omitted."),
]
BudgetOption = Annotated[
    int | None,
    typer.Option(
        "--budget",
        metavar="CREDITS",
        min=0,
        max=MAX_BUDGET,
        help="Credits that it may spend in a month, in UTC; no limit by default.",
    ),
]
Budget = Annotated[
    str,
    typer.Argument(
        metavar="CREDITS|none",
        callback=_BUDGET,
        help="Credits that it may spend in a month, in UTC; none for no limit.",
    ),
]
GraceHours = Annotated[
    int,
    typer.Option(metavar="N", min=1, max=MAX_GRACE_HOURS, help="Hours until older keys expire."),
]
_AMOUNT = {"metavar": "AMOUNT", "min": -MAX_AMOUNT, "max": MAX_AMOUNT, "callback": _not_zero}
Amount = Annotated[
    int, typer.Argument(help="Credits to add; a negative amount takes credits.", **_AMOUNT)
]
_REPEAT = "Makes repeating the grant safe, such as an invoice number; generated if omitted."
GrantId = Annotated[str | None, typer.Option("--id", metavar="ID", callback=_ID, help=_REPEAT)]
Note = Annotated[str, typer.Option(metavar="TEXT", callback=_NOTE, help="What the grant is for.")]
GenerationId = Annotated[
    str, typer.Argument(metavar="ID", callback=_GENERATION, help="See `generations list`.")
]
Before = Annotated[
    str | None, typer.Option(metavar="ID", callback=_GENERATION, help="Only older generations.")
]
Limit = Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Show at most this many.")]
OptionalLimit = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=9_999_999, help="Show at most this many.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]

_target = partial(typer.Option, rich_help_panel="Target")
_STACK = "A deployed stack; its outputs name the table, the secrets and the bucket."
_PREFIX = "The prefix of the organisations' secrets; overrides ORG_SECRET_PREFIX."
_StackName = Annotated[str | None, _target(metavar="NAME", help=_STACK)]
_Local = Annotated[bool, _target("--local", help="The local stack that `make run` started here.")]
_Table = Annotated[
    str | None, _target(metavar="NAME", help="The credits table; overrides CREDITS_TABLE.")
]
_Prefix = Annotated[str | None, _target(metavar="TEXT", help=_PREFIX)]
_Region = Annotated[
    str | None, _target(metavar="NAME", help="The AWS region; overrides AWS_REGION.")
]


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer passes the option's value
    if wanted:
        typer.echo(f"gemini-generate {metadata.version('gemini-generate')}")
        raise typer.Exit


_Version = Annotated[
    bool,
    typer.Option(
        "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]


def shared(
    *,
    stack_name: _StackName = None,
    local: _Local = False,
    table: _Table = None,
    prefix: _Prefix = None,
    region: _Region = None,
    as_json: _Json = False,
    version: _Version = False,
) -> None:
    """Declares the options of every command; ``infra.cli.session.Command`` reads them."""
