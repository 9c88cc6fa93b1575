"""Server processes that a test starts: bounded, logged, and never left behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from infra.verify import guard

__all__ = ["Child", "NotReadyError", "free_ports"]

_GUARD = Path(guard.__file__)
_STOP_TAKES_S = 5.0
_LOG_BYTES = 4000


class NotReadyError(Exception):
    """A server did not come up in time; the message ends with its last words."""


def free_ports(count: int) -> list[int]:
    """Free ports of 127.0.0.1; another process may take one before the server does."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class Child:
    """A command that runs from now until ``stop``, or until this process dies.

    What it and its children write goes to the end of ``log``.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path
    ) -> None:
        self._log = log
        with log.open("ab") as output:
            self._guard = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-I", "-S", str(_GUARD), *command],
                env=dict(environment),
                cwd=directory,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def running(self) -> bool:
        """Whether the command still runs."""
        return self._guard.poll() is None

    def children(self) -> list[int]:
        """The process ids of the command's own children that are alive."""
        alive = [each for each in guard.session(self._guard.pid) if each.state != "Z"]
        command = [each.pid for each in alive if each.parent == self._guard.pid]
        return [each.pid for each in alive if each.parent in command]

    def wait_until(self, ready: Callable[[], bool], within_s: float) -> None:
        """Returns when ``ready`` says so.

        Raises:
            NotReadyError: the command ended, or ``within_s`` seconds passed.
        """
        ends_at = time.monotonic() + within_s
        while not ready():
            if not self.running():
                raise NotReadyError(f"the server ended by itself: {self.last_words()}")
            if time.monotonic() > ends_at:
                raise NotReadyError(f"the server was not up in {within_s} s: {self.last_words()}")
            time.sleep(0.02)

    def last_words(self) -> str:
        """The end of what it wrote."""
        with self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
            return log.read().decode(errors="replace")

    def stop(self) -> None:
        """Kills the command and all that it started."""
        if self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()
        try:
            self._guard.wait(_STOP_TAKES_S)
        except subprocess.TimeoutExpired:
            guard.end_session(self._guard.pid, spare=0)
            os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.wait()
