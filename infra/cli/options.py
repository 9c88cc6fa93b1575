"""The arguments and options of the commands, and what their values may be."""

import re
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Annotated

import typer

from lib.keys.format import is_organisation
from lib.keys.key_ring import MAX_GRACE

__all__ = [
    "Amount",
    "Before",
    "GenerationId",
    "GraceHours",
    "GrantId",
    "KeyId",
    "Limit",
    "NewRateLimit",
    "Note",
    "OptionalLimit",
    "OptionalOrganisation",
    "Organisation",
    "RateLimit",
    "Yes",
    "shared",
]

MAX_NOTE_CHARACTERS = 500
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
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id; see `keys list`.")]
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
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]


def shared(
    *,
    stack_name: _StackName = None,
    local: _Local = False,
    table: _Table = None,
    prefix: _Prefix = None,
    region: _Region = None,
    as_json: _Json = False,
) -> None:
    """Declares the options of every command; ``infra.cli.session.Command`` reads them."""
