"""One run of the command: from words to an exit status, with a sentence for all that goes wrong."""

import errno
import os
import sys
from collections.abc import Sequence

import typer
from botocore.exceptions import BotoCoreError, ClientError
from typer.exceptions import TyperException

from infra.cli.commands import root
from infra.cli.faults import NotDoneError, why, why_refused
from lib.keys.key_ring import KeyRingError
from lib.ledger.accounts import GrantRejectedError
from lib.ledger.table import LedgerUnreachable
from lib.observability import describe_fault

__all__ = ["run"]


def run(program: str, argv: Sequence[str]) -> int:
    """Does what ``argv`` says; the exit status.

    Raises:
        BrokenPipeError, KeyboardInterrupt: for the caller, who sees them from the first moment on.
    """
    try:
        with root.make_context(program, list(argv) or ["--help"]) as context:
            return 0 if root.invoke(context) else 1
    except typer.Exit as ended:
        return ended.exit_code if argv else 2
    except TyperException as misuse:
        return _misused(program, misuse)
    except (NotDoneError, GrantRejectedError) as reason:
        sentence = str(reason)
    except (LedgerUnreachable, KeyRingError) as fault:
        sentence = why(fault)
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except (ClientError, BotoCoreError) as fault:
        sentence = why_refused(fault) or f"AWS can't do it ({type(fault).__name__}); repeat this"
    except OSError as fault:
        sentence = f"{os.strerror(fault.errno or errno.EIO)}; look at where the output goes"
    except Exception as fault:  # noqa: BLE001 - a sentence for people, whatever happens
        # Types and lines of code alone: an exception's own words may hold anything.
        sentence = f"this is a fault of {program} itself; report it with {describe_fault(fault)[0]}"
    print(f"error: {sentence}.", file=sys.stderr)
    return 1


def _misused(program: str, misuse: TyperException) -> int:
    context: typer.Context | None = getattr(misuse, "ctx", None)
    path = context.command_path if context else program
    message = misuse.format_message().rstrip(".")
    print(f"error: {message}; see `{path} --help`.", file=sys.stderr)
    return misuse.exit_code
