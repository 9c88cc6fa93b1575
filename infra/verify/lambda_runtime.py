"""One Lambda sandbox on this machine: AWS's emulator, its runtime loop, and a handler in it.

The emulator starts the runtime at the first request, ends it at the function's timeout, and starts
a new one at the request after a death. A runtime that dies between two requests is found dead by
the second, which fails.
"""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.lifetime import Runs
from infra.verify import tools
from infra.verify.child import Child, NotReadyError, free_ports

__all__ = ["Crashed", "LambdaRuntime", "Task", "TimedOut"]

_INVOCATIONS = "/2015-03-31/functions/function/invocations"
_START_TAKES_S = 10.0
_STARTS = 3


class Crashed(Exception):
    """The runtime process died before it answered, or the handler raised."""


class TimedOut(Exception):
    """The emulator ended the runtime at the function's timeout."""


@dataclass(frozen=True)
class Task:
    """What is deployed: ``root`` holds the handler, ``packages`` what else is to be imported."""

    root: Path
    packages: tuple[Path, ...]
    handler: str
    timeout_s: int
    memory_mb: int = 1024


class LambdaRuntime(Runs):
    """A sandbox that takes one request at a time, from ``start`` (or ``with``) until ``stop``.

    ``environment`` is all that the function sees of variables, beside Lambda's own.
    """

    def __init__(self, task: Task, environment: Mapping[str, str]) -> None:
        self._task = task
        self._environment = environment
        self._directory = TemporaryDirectory(prefix="lambda-")
        self._child: Child | None = None
        self._port = 0

    def start(self) -> None:
        """Returns when the emulator listens; the function itself starts with the first request.

        Raises:
            ToolMissingError: a part is not installed.
            NotReadyError: the emulator does not come up.
        """
        for attempt in range(1, _STARTS + 1):
            try:
                self._start()
            except NotReadyError:
                # Another process may have taken a port since it was found free.
                self._stop()
                if attempt == _STARTS:
                    self._directory.cleanup()
                    raise
            else:
                return

    def stop(self) -> None:
        """Kills the emulator and the runtime."""
        self._stop()
        self._directory.cleanup()

    def invoke(self, event: Mapping[str, Any], timeout_s: float) -> Any:
        """What the handler answers to ``event``; waits ``timeout_s`` seconds at most.

        Raises:
            Crashed, TimedOut
            OSError: the emulator itself does not answer in time.
        """
        connection = HTTPConnection("127.0.0.1", self._port, timeout=timeout_s)
        try:
            connection.request("POST", _INVOCATIONS, json.dumps(event).encode())
            answer = connection.getresponse().read()
        except HTTPException as fault:
            raise ConnectionError("the emulator ended the connection") from fault
        finally:
            connection.close()
        if answer.startswith(b"Task timed out after "):
            raise TimedOut
        result = json.loads(answer)
        if isinstance(result, dict) and "errorType" in result:
            raise Crashed(str(result["errorType"]))
        return result

    def runtime_pid(self) -> int | None:
        """The process id of the runtime, if there is one."""
        children = self._child.children() if self._child else []
        return children[0] if children else None

    def last_words(self) -> str:
        """The end of what the emulator and the function wrote."""
        return self._child.last_words() if self._child else ""

    def _start(self) -> None:
        self._port, api_port = free_ports(2)
        command = [
            str(tools.emulator()),
            "--runtime-interface-emulator-address",
            f"127.0.0.1:{self._port}",
            "--runtime-api-address",
            f"127.0.0.1:{api_port}",
            str(tools.python313()),
            "-m",
            "awslambdaric",
            self._task.handler,
        ]
        log = Path(self._directory.name, "log")
        self._child = Child(command, self._variables(), self._task.root, log)
        self._child.wait_until(self._listens, _START_TAKES_S)

    def _stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True

    def _variables(self) -> dict[str, str]:
        """The function's own and those that Lambda sets.

        https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html
        """
        task = self._task
        return {
            "PATH": os.defpath,
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "LAMBDA_TASK_ROOT": str(task.root),
            "PYTHONPATH": os.pathsep.join(map(str, task.packages)),
            "AWS_LAMBDA_FUNCTION_NAME": "under-verification",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(task.memory_mb),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(task.timeout_s),
            "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/under-verification",
            "AWS_LAMBDA_LOG_STREAM_NAME": "here",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "_HANDLER": task.handler,
            **self._environment,
        }
