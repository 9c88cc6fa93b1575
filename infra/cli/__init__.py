"""``gemini-generate``, the operator's command: organisations, API keys, credits, audit.

Results go to standard output, an issued key alone on its line; everything else goes to standard
error. Exits with 0 on success, 1 on failure or when an audit finds something, 2 on a usage error,
and 141 without a message when the reader of its output has closed the pipe.
"""

import io
import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["main"]

PROGRAM = "gemini-generate"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv``, without the program's name; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # Escapes what the terminal's encoding cannot represent, instead of failing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Imported here, so that Ctrl-C is handled while the SDKs load.
        from infra.cli.app import run  # noqa: PLC0415

        return run(PROGRAM, sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("error: interrupted; check what was done, then repeat it.", file=sys.stderr)
        return 1
    except (BrokenPipeError, SystemExit):
        # Rich, which prints the help, turns a closed pipe into SystemExit; nothing else raises it.
        # Python would report the closed pipe again when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # What a shell reports for a program that SIGPIPE ends, as in `cat FILE | head`. A status
        # of 1 would look like a finding to a script with `set -o pipefail`.
        return 128 + signal.SIGPIPE
