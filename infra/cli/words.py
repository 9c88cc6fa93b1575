"""The words of the command line: what each may be, and the options that every command has."""

import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from infra.cli.desk import Desk, desk_at
from infra.cli.places import Where
from infra.cli.screen import Screen
from lib.keys.format import is_organisation

__all__ = [
    "Amount",
    "Before",
    "GenerationId",
    "GraceHours",
    "GrantId",
    "KeyId",
    "Limit",
    "MaybeLimit",
    "MaybeOrganisation",
    "NewRateLimit",
    "Note",
    "Organisation",
    "RateLimit",
    "Yes",
    "command",
    "everywhere",
]

MAX_NOTE_CHARACTERS = 500
MAX_ROWS = 1000
P = ParamSpec("P")


def _checked(fits: Callable[[str], object], wanted: str) -> Callable[[str | None], str | None]:
    def check(text: str | None) -> str | None:
        if text is not None and not fits(text):
            raise typer.BadParameter(f"must be {wanted}")
        return text

    return check


def _whole(pattern: str, wanted: str) -> Callable[[str], int]:
    def number(text: str) -> int:
        # A default comes as the number that it is.
        if not re.fullmatch(pattern, str(text), re.ASCII):
            raise typer.BadParameter(f"must be {wanted}")
        return int(text)

    return number


_NAME = _checked(is_organisation, "1 to 63 of a-z, 0-9, _ and -, a letter or a digit first")
_ID = _checked(re.compile("[A-Za-z0-9._:-]{1,128}").fullmatch, "1 to 128 of a-z, A-Z, 0-9 and ._:-")
_NOTE = _checked(
    lambda text: text.isprintable() and 0 < len(text) <= MAX_NOTE_CHARACTERS,
    f"one line of 1 to {MAX_NOTE_CHARACTERS} characters",
)
_GENERATION = _checked(re.compile("[0-9]{13}").fullmatch, "13 digits, as `generations list` shows")
_ROWS = _whole("[1-9][0-9]{0,2}|1000", f"a whole number, 1 to {MAX_ROWS}")

Organisation = Annotated[
    str, typer.Argument(metavar="ORG", help="The organisation's name.", callback=_NAME)
]
MaybeOrganisation = Annotated[
    str | None,
    typer.Argument(
        metavar="ORG", help="The organisation's name; all of them without it.", callback=_NAME
    ),
]
NewRateLimit = Annotated[
    int | None,
    typer.Option(
        "--rate-limit",
        metavar="N",
        parser=_whole("[1-9][0-9]{0,4}", "a whole number, 1 to 99999"),
        help="Generations that it may start in a minute; 60 unless given.",
    ),
]
RateLimit = Annotated[
    int,
    typer.Argument(
        metavar="N",
        parser=_whole("[0-9]{1,5}", "a whole number, 0 to 99999"),
        help="Generations that it may start in a minute; 0 lets it start none.",
    ),
]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The id that `keys list` shows.")]
GraceHours = Annotated[
    int,
    typer.Option(
        "--grace-hours",
        metavar="N",
        parser=_whole("[1-9][0-9]{0,4}", "a whole number, 1 to 99999"),
        help="Hours that the older keys go on working, 2160 at most.",
    ),
]
Amount = Annotated[
    int,
    typer.Argument(
        metavar="AMOUNT",
        parser=_whole("-?[1-9][0-9]{0,8}", "a whole number, not 0"),
        help="Credits to add; a negative amount takes credits.",
    ),
]
GrantId = Annotated[
    str | None,
    typer.Option(
        "--id",
        metavar="ID",
        callback=_ID,
        help="What makes a repetition harmless, such as an invoice's number; made up and shown "
        "first unless given.",
    ),
]
Note = Annotated[
    str, typer.Option("--note", metavar="TEXT", callback=_NOTE, help="What the grant is for.")
]
GenerationId = Annotated[
    str,
    typer.Argument(
        metavar="ID", callback=_GENERATION, help="The id that `generations list` shows."
    ),
]
Before = Annotated[
    str | None,
    typer.Option(
        "--before", metavar="ID", callback=_GENERATION, help="Only what is older than this one."
    ),
]
Limit = Annotated[
    int, typer.Option("--limit", metavar="N", parser=_ROWS, help="Show at most so many.")
]
MaybeLimit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        metavar="N",
        parser=_whole("[1-9][0-9]{0,6}", "a whole number, 1 to 9999999"),
        help="Stop after so many.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]

_PLACE = "Where it acts"
_StackName = Annotated[
    str | None,
    typer.Option(
        "--stack-name",
        metavar="NAME",
        rich_help_panel=_PLACE,
        help="The deployed stack with this name; what it needs to know are the stack's outputs.",
    ),
]
_Local = Annotated[
    bool, typer.Option("--local", rich_help_panel=_PLACE, help="The stack that `make run` runs.")
]
_Table = Annotated[
    str | None,
    typer.Option(
        "--table",
        metavar="NAME",
        rich_help_panel=_PLACE,
        help="The credits table, instead of CREDITS_TABLE in the environment.",
    ),
]
_Prefix = Annotated[
    str | None,
    typer.Option(
        "--prefix",
        metavar="TEXT",
        rich_help_panel=_PLACE,
        help="What the names of the secrets begin with, instead of ORG_SECRET_PREFIX.",
    ),
]
_Region = Annotated[
    str | None,
    typer.Option(
        "--region",
        metavar="NAME",
        rich_help_panel=_PLACE,
        help="The AWS region, instead of AWS_REGION.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="One JSON document, for scripts.")]


def everywhere(
    context: typer.Context,
    *,
    stack_name: _StackName = None,
    local: _Local = False,
    table: _Table = None,
    prefix: _Prefix = None,
    region: _Region = None,
    as_json: _Json = False,
) -> None:
    """Takes the options that every command has. They may stand before the command or after it."""
    said = Where(stack_name, table, prefix, region, local=local, as_json=as_json)
    where = said if context.obj is None else said.or_else(context.obj)
    if where.local and where.stack_name:
        raise typer.BadParameter("--local and --stack-name are two places; give one of them")
    context.obj = where


def command(
    app: typer.Typer, name: str, fields: str, *, negative: bool = False
) -> Callable[[Callable[Concatenate[Desk, P], bool | None]], None]:
    """Makes a command of a function that gets the desk and the command's own words.

    The options of ``everywhere`` are added to it. The function returns False for an exit status of
    1. ``fields`` describes what ``--json`` gives. ``negative`` lets an argument begin with a minus.
    """
    shared = list(inspect.signature(everywhere).parameters.values())[1:]

    def register(function: Callable[Concatenate[Desk, P], bool | None]) -> None:
        own = list(inspect.signature(function).parameters.values())[1:]

        def run(context: typer.Context, **given: Any) -> bool:
            everywhere(context, **{each.name: given.pop(each.name) for each in shared})
            where: Where = context.obj
            with desk_at(where, Screen(as_json=where.as_json)) as desk:
                return function(desk, **given) is not False  # type: ignore[call-arg]

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = {
            "context": inspect.Parameter("context", keyword, annotation=typer.Context),
            **{each.name: each.replace(kind=keyword) for each in [*own, *shared]},
        }
        run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        run.__annotations__ = {each: found.annotation for each, found in parameters.items()}
        run.__doc__ = function.__doc__
        settings = {"ignore_unknown_options": negative}
        app.command(name, epilog=f"--json: {fields}", context_settings=settings)(run)

    return register
