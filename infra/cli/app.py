"""The tree of commands, and one run of it: from the command line to an exit status."""

import errno
import os
import sys
from collections.abc import Sequence

import typer
from botocore.exceptions import BotoCoreError, ClientError
from typer.exceptions import TyperException
from typer.main import get_command

from infra.cli import (
    audit,
    deletion,
    doctor,
    generations,
    keys,
    logs,
    org,
    reconcile,
    restore,
    statement,
    usage,
    verify,
)
from infra.cli import credits as credits_
from infra.cli.errors import CommandFailed, explain, explain_aws
from infra.cli.options import shared
from infra.cli.output import escaped
from lib.keys.key_ring import KeyRingError
from lib.ledger.accounts import GrantRejectedError
from lib.ledger.table import LedgerUnreachable
from lib.observability import describe_fault

__all__ = ["root", "run"]

EPILOG = """
To set up a customer: `org create acme`, `credits grant acme 100 --note "Paid"`, `keys issue acme`.

Exits with 0 on success, 1 on failure or when an audit finds something, 2 on a usage error.
"""

_app = typer.Typer(
    name="gemini-generate",
    help="Manage organisations, their API keys and their credits.",
    epilog=EPILOG,
    callback=shared,
    add_completion=False,
    rich_markup_mode="markdown",
)
generations.app.add_typer(deletion.of_generations)
org.app.add_typer(deletion.of_organisations)
_app.add_typer(org.app, name="org")
_app.add_typer(keys.app, name="keys")
_app.add_typer(credits_.app, name="credits")
_app.add_typer(generations.app, name="generations")
for module in (usage, audit, reconcile, statement, verify, doctor, logs, restore):
    _app.add_typer(module.app)

root = get_command(_app)
"""Built once: that takes longer than most commands."""


def run(program: str, argv: Sequence[str]) -> int:
    """Runs ``argv``; returns the exit status.

    Raises:
        BrokenPipeError: the reader of standard output has gone.
        KeyboardInterrupt
    """
    try:
        with root.make_context(program, list(argv) or ["--help"]) as context:
            root.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code if argv else 2
    except TyperException as misuse:
        return _usage_error(program, misuse)
    except (CommandFailed, GrantRejectedError) as reason:
        sentence = str(reason)
    except (LedgerUnreachable, KeyRingError) as fault:
        sentence = explain(fault)
    except BrokenPipeError:
        raise
    except (ClientError, BotoCoreError) as fault:
        failed = f"the AWS call failed ({type(fault).__name__}); repeat the command"
        sentence = explain_aws(fault) or failed
    except OSError as fault:
        sentence = f"{os.strerror(fault.errno or errno.EIO)}; check where the output goes"
    except Exception as fault:  # noqa: BLE001 - an operator gets a sentence, not a traceback
        # Types and lines of code only: an exception's message may quote a prompt or a key.
        sentence = f"this is a bug in {program}; report it with {describe_fault(fault)[0]}"
    else:
        return 0
    print(f"error: {escaped(sentence)}.", file=sys.stderr)
    return 1


def _usage_error(program: str, misuse: TyperException) -> int:
    context: typer.Context | None = getattr(misuse, "ctx", None)
    path = context.command_path if context else program
    message = misuse.format_message().rstrip(".")
    print(f"error: {escaped(message)}; see `{path} --help`.", file=sys.stderr)
    return misuse.exit_code
