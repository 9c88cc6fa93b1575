"""``gemini-generate``, the operator's command: organisations, API keys, credits, audit.

What was asked for goes to standard output, a key alone on its line; all else goes to standard
error. The exit status is 0 when it is done, 1 when it is not or when an audit finds something, 2
when the words can't be understood.
"""

import io
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

PROGRAM = "gemini-generate"


def main(argv: Sequence[str] | None = None) -> int:
    """Does what ``argv`` says (without the program's name); the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # What a terminal's encoding has no sign for is written out, and is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Imported here, so that Ctrl-C has its sentence from the first moment on.
        from infra.cli.run import run  # noqa: PLC0415

        return run(PROGRAM, sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        sentence = "interrupted; look at what was done, then repeat it"
    except BrokenPipeError:
        # Python would complain once more when it flushes the stream at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sentence = "nobody reads the output any more; look at what was done, then repeat it"
    print(f"error: {sentence}.", file=sys.stderr)
    return 1
