"""Runs the functions of a local stack as Lambda does: in sandboxes, from what is deployed."""

import os
import queue
from collections.abc import Mapping
from pathlib import Path

from infra.lifetime import Stops
from infra.local.functions import LambdaContext
from infra.local.stack import Handler
from infra.template import Function
from infra.verify.lambda_runtime import Crashed, LambdaRuntime, Task

__all__ = ["Sandboxes", "environment_of"]

# Each has a core busy while it starts, and this machine has few.
_AT_ONCE = 3
_LONGER_THAN_ITS_TIMEOUT_S = 5.0
_SHARED = ("AWS_", "GOOGLE_")


class Sandboxes(Stops):
    """Up to three sandboxes for each function, made when they are needed; all end with ``stop``.

    ``root`` is what is deployed, and ``packages`` more directories to import from.
    """

    def __init__(self, root: Path, packages: tuple[Path, ...] = ()) -> None:
        self._root = root
        self._packages = packages
        self._started: list[LambdaRuntime] = []

    def handler(self, function: Function) -> Handler:
        """Calls the function in a free sandbox; waits for one if all are taken.

        Its environment is ``environment_of`` it.
        """
        task = Task(
            self._root, self._packages, function.handler, function.timeout_s, function.memory_mb
        )
        environment = environment_of(function)
        free: queue.LifoQueue[LambdaRuntime | None] = queue.LifoQueue()
        for _ in range(_AT_ONCE):
            free.put(None)

        def call(event: dict[str, object], _context: LambdaContext) -> object:
            sandbox = free.get(timeout=function.timeout_s)
            try:
                sandbox = sandbox or self._start(task, environment)
                return sandbox.invoke(event, function.timeout_s + _LONGER_THAN_ITS_TIMEOUT_S)
            except Crashed as fault:
                if sandbox is not None:
                    fault.add_note(sandbox.last_words())
                raise
            finally:
                free.put(sandbox)

        return call

    def stop(self) -> None:
        """Kills them all."""
        for sandbox in self._started:
            sandbox.stop()

    def _start(self, task: Task, environment: Mapping[str, str]) -> LambdaRuntime:
        sandbox = LambdaRuntime(task, environment)
        sandbox.start()
        self._started.append(sandbox)
        return sandbox


def environment_of(function: Function) -> dict[str, str]:
    """The variables that the template gives it, the AWS SDK's and Google's, as they are here now.

    So they are those of the local stack that runs in this process.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name in function.environment or name.startswith(_SHARED)
    }
