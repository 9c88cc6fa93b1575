"""Runs one command and ends everything that came of it when the parent goes away.

    python guard.py COMMAND [ARGUMENT ...]

Its standard input is a pipe whose other end only the parent holds. The pipe ends when the parent
closes it, and also when the parent is killed; then every process of this session gets a SIGKILL.
The Lambda emulator puts its runtime into a process group of its own, so a session it has to be.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process", "end_session", "session"]

ROUNDS = 5


@dataclass(frozen=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    state: str


def session(leader: int) -> Iterator[Process]:
    """The processes of the session that ``leader`` opened, itself included (proc(5), ``stat``)."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name stands in brackets and may hold anything, spaces and brackets too.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        state, parent, _, its_session = fields[:4]
        if int(its_session) == leader:
            yield Process(int(entry.name), int(parent), state)


def end_session(leader: int, spare: int) -> None:
    """Kills the whole session but ``spare``, and what it starts in the meantime."""
    for _ in range(ROUNDS):
        others = [each.pid for each in session(leader) if each.pid != spare and each.state != "Z"]
        if not others:
            return
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _end_with(process: "subprocess.Popen[bytes]") -> None:
    status = process.wait()
    end_session(os.getpid(), spare=os.getpid())
    os._exit(status if status >= 0 else 128 - status)


def main(command: list[str]) -> None:
    """Lives as long as the command and the parent do."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - our own command
    threading.Thread(target=_end_with, args=(process,), daemon=True).start()
    sys.stdin.buffer.read()
    end_session(os.getpid(), spare=os.getpid())
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
