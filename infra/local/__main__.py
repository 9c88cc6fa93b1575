"""``python -m infra.local [--sam-local]``: the whole service on this machine, until Ctrl-C.

Reads ``PORT`` (default 8000), ``GEMINI_API_KEY`` (calls Google instead of the stand-in) and
``GEMINI_MODEL``. While it runs it keeps in ``.local`` under the current directory:

    api-key             the API key
    service.log         the log of the functions
    environment.json    the variables that point ``gemini-generate --local`` at this stack

and with ``--sam-local``, which lets Lambda's containers reach this stack:

    sam-template.json    the built functions and their routes
    sam-variables.json   the variables that point them to this stack
"""

import argparse
import contextlib
import errno
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

from infra.local.http_server import HttpServer

if TYPE_CHECKING:
    from infra.local.stack import LocalStack

DEFAULT_PORT = "8000"
LAST_PORT = 65_535
DIRECTORY = Path(".local")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _CannotStart(Exception):
    """Its message is one sentence for the terminal."""


def main() -> int:
    """Runs the stack until a signal ends it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m infra.local")
    parser.add_argument("--sam-local", action="store_true", help="serve Lambda's containers too")
    options = parser.parse_args()
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        with _listening(os.environ.get("PORT", DEFAULT_PORT)) as server:
            _run(server, terminal=sys.stdout, for_sam=options.sam_local)
    except _CannotStart as reason:
        print(reason, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    # A second Ctrl-C must not interrupt the clean-up after the first.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _listening(port: str) -> HttpServer:
    """Takes the port before anything else is started."""
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= LAST_PORT):
        raise _CannotStart(f"PORT must be a number from 1 to {LAST_PORT}, not {port!r}.")
    try:
        return HttpServer(int(port))
    except OSError as fault:
        if fault.errno == errno.EADDRINUSE:
            sentence = f"Port {port} is in use; stop what uses it, or choose another with PORT=..."
        elif fault.errno == errno.EACCES:
            sentence = f"Port {port} needs privileges; choose one from 1024 up with PORT=..."
        else:
            sentence = f"Port {port} can't be used: {os.strerror(fault.errno or 0)}."
        raise _CannotStart(sentence) from fault


def _run(server: HttpServer, terminal: TextIO, *, for_sam: bool) -> NoReturn:
    key = os.environ.get("GEMINI_API_KEY", "").strip() or None
    if key and for_sam:
        raise _CannotStart("The containers call a stand-in for Gemini: unset GEMINI_API_KEY.")
    screen = _Screen(terminal)
    screen.line("Starting ...")
    log_path = DIRECTORY / "service.log"
    with _private_file(log_path) as log, contextlib.redirect_stdout(log):
        # Imported here: the port is taken by now, and the functions' log on standard output goes to
        # the file.
        from infra.local.samples import environment  # noqa: PLC0415
        from infra.local.stack import LocalStack  # noqa: PLC0415

        with (
            LocalStack(server=server, gemini_api_key=key, log=screen.line) as stack,
            contextlib.ExitStack() as files,
        ):
            key_path = DIRECTORY / "api-key"
            files.enter_context(_file(key_path, stack.api_key + "\n"))
            files.enter_context(_file(DIRECTORY / "environment.json", environment(stack)))
            if for_sam:
                files.enter_context(_serving_containers(stack))
            screen.line(_welcome(stack, key_path, log_path, _SAM_COMMANDS if for_sam else ""))
            while True:
                signal.pause()


@contextlib.contextmanager
def _serving_containers(stack: "LocalStack") -> Iterator[None]:
    from infra.local import bridge, samples  # noqa: PLC0415 - as above

    with contextlib.ExitStack() as opened:
        try:
            host = opened.enter_context(bridge.reachable_from_containers(stack.ports))
        except OSError as fault:
            raise _CannotStart(
                f"Containers can't reach this machine at {bridge.DOCKER}: {fault.strerror}. Start"
                " Docker; rootless Docker has no such bridge."
            ) from fault
        stack.aws.accept(url=stack.aws.url.replace("127.0.0.1", host))
        samples.open_sample_accounts(stack)
        for name, text in {
            "sam-template.json": samples.sam_template(stack),
            "sam-variables.json": samples.sam_variables(stack, host),
        }.items():
            opened.enter_context(_file(DIRECTORY / name, text))
        yield


def _welcome(stack: "LocalStack", key_path: Path, log_path: Path, more: str) -> str:
    from infra.local.stack import FIRST_CREDITS  # noqa: PLC0415 - as above

    authorization = shlex.quote(f"Authorization: Bearer {stack.api_key}")
    prompt = "A log cabin by a frozen mountain lake at dusk, smoke rising from the chimney"
    body = f'{{"prompt": "{prompt}", "aspectRatio": "16:9"}}'
    if stack.stand_in is None:
        model = "Google, called with your GEMINI_API_KEY and at your cost"
        failures = ""
    else:
        model = "a stand-in that paints; set GEMINI_API_KEY to call Google instead"
        failures = _FAILURES.format(python=_python())
    return f"""
  URL           {stack.url}
  API key       {stack.api_key}
                {FIRST_CREDITS} credits; also in {key_path}, and valid until this ends
  Model         {model}
  Service log   {log_path}

Generate an image (5 credits), then check the balance:

  curl -sS {stack.url}/api/v1/models/gemini/generate -H {authorization} \
-H 'Content-Type: application/json' -d {shlex.quote(body)}

  curl -sS {stack.url}/api/v1/billing/credits -H {authorization}
{failures}{more}
Everything is in memory; Ctrl-C stops it. Requests:
"""


_FAILURES = """
Put [fail:safety], [fail:overloaded], [fail:cut-image] or [fail:hang] in a prompt to see a failure
refund its credits. List all failures:

  {python} -m infra.local.gemini_stand_in --help
"""


_SAM_COMMANDS = """
Run the built functions in Lambda's container, from another terminal:

  sam local invoke GenerateFunction -t .local/sam-template.json -n .local/sam-variables.json \
-e infra/events/generate.json

  sam local start-api -t .local/sam-template.json -n .local/sam-variables.json
"""


def _python() -> str:
    executable = Path(sys.executable)
    inside = executable.is_relative_to(Path.cwd())
    return str(executable.relative_to(Path.cwd()) if inside else executable)


class _Screen:
    """Prints lines to a terminal, from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(self, text: str) -> None:
        # A closed terminal must not make requests fail.
        with contextlib.suppress(OSError):
            self._stream.write(text + "\n")
            self._stream.flush()


@contextlib.contextmanager
def _file(path: Path, text: str) -> Iterator[None]:
    """A file that exists for as long as the block runs."""
    with _private_file(path) as stream:
        stream.write(text)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _private_file(path: Path) -> TextIO:
    """An empty file, in a directory, both readable by their owner alone."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.parent.chmod(0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "w", buffering=1, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
