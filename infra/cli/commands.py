"""All commands in one tree; each noun is a room of its own."""

import typer
from typer.main import get_command

from infra.cli import audit, generations, keys, org, reconcile
from infra.cli import credits as credits_
from infra.cli.words import everywhere

__all__ = ["root"]

EPILOG = """
The first customer: `org create acme`, `credits grant acme 100 --note "Paid"`, `keys issue acme`.

The exit status is 0 when it is done, 1 when it is not or an audit finds something, 2 when the
words can't be understood.
"""

_app = typer.Typer(
    name="gemini-generate",
    help="Organisations, their API keys and credits: the operator's command.",
    epilog=EPILOG,
    callback=everywhere,
    add_completion=False,
    rich_markup_mode="markdown",
)
_app.add_typer(org.app, name="org")
_app.add_typer(keys.app, name="keys")
_app.add_typer(credits_.app, name="credits")
_app.add_typer(generations.app, name="generations")
_app.add_typer(audit.app)
_app.add_typer(reconcile.app)

root = get_command(_app)
"""The whole tree, made once: that takes longer than most commands."""
