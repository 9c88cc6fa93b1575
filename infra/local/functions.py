"""Runs a Lambda handler in this process, as close to Lambda as a thread allows."""

import json
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime

__all__ = [
    "ACCOUNT_ID",
    "FunctionCrashed",
    "FunctionTimedOut",
    "LambdaContext",
    "LocalFunction",
    "Schedule",
]

# moto's default account number.
ACCOUNT_ID = "123456789012"


class FunctionCrashed(Exception):
    """The handler raised, or returned something other than JSON; its traceback is on stderr."""


class FunctionTimedOut(Exception):
    """The handler was still running at its timeout; what it returns later is discarded."""


@dataclass(frozen=True)
class LambdaContext:
    """What Lambda passes as ``context``, with the types of the Python runtime."""

    function_name: str
    memory_limit_in_mb: str
    timeout_s: float
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    function_version: str = "$LATEST"
    log_stream_name: str = "local"
    started_at: float = field(default_factory=time.monotonic)

    @property
    def invoked_function_arn(self) -> str:
        """The ARN under which the function was called."""
        return f"arn:aws:lambda:us-east-1:{ACCOUNT_ID}:function:{self.function_name}"

    @property
    def log_group_name(self) -> str:
        """The log group that Lambda would write to."""
        return f"/aws/lambda/{self.function_name}"

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the timeout; never negative."""
        left_s = self.started_at + self.timeout_s - time.monotonic()
        return max(0, int(left_s * 1000))


class LocalFunction:
    """A handler with its name, timeout and memory; any thread may invoke it.

    Every invocation runs on its own thread. Lambda kills the process at the timeout; a thread can't
    be killed, so the caller stops waiting instead.
    """

    def __init__(
        self,
        name: str,
        handler: Callable[[dict[str, object], LambdaContext], object],
        timeout_s: float,
        memory_mb: int = 128,
    ) -> None:
        self.name = name
        self.timeout_s = timeout_s
        self._handler = handler
        self._memory_mb = memory_mb
        self._lock = threading.Lock()
        self._running: set[threading.Thread] = set()

    def invoke(self, event: dict[str, object], give_up_s: float | None = None) -> object:
        """The handler's result for ``event``; both pass through JSON, as they do in Lambda.

        Raises:
            FunctionCrashed: it raised, or returned something that JSON can't hold.
            FunctionTimedOut: no result within its timeout, or within ``give_up_s`` seconds.
        """
        result: Future[str] = Future()
        thread = threading.Thread(
            target=self._run, args=(json.dumps(event), result), name=self.name, daemon=True
        )
        with self._lock:
            self._running.add(thread)
        thread.start()
        patience_s = self.timeout_s if give_up_s is None else min(give_up_s, self.timeout_s)
        if not wait([result], timeout=patience_s).done:
            raise FunctionTimedOut(self.name)
        if result.exception() is not None:
            raise FunctionCrashed(self.name) from result.exception()
        return json.loads(result.result())

    def drain(self, ends_at: float) -> None:
        """Waits for running invocations, until ``ends_at`` on the monotonic clock."""
        with self._lock:
            running = list(self._running)
        for thread in running:
            thread.join(max(0.0, ends_at - time.monotonic()))

    def _run(self, event: str, result: "Future[str]") -> None:
        context = LambdaContext(self.name, str(self._memory_mb), self.timeout_s)
        try:
            result.set_result(json.dumps(self._handler(json.loads(event), context)))
        except Exception as fault:  # noqa: BLE001 - Lambda survives whatever a handler raises
            traceback.print_exc()
            result.set_exception(fault)
        finally:
            with self._lock:
                self._running.discard(threading.current_thread())


class Schedule:
    """Invokes a function periodically, as an EventBridge rule ``rate(...)`` does."""

    def __init__(self, function: LocalFunction, period_s: float) -> None:
        self._function = function
        self._period_s = period_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._tick, name=f"every-{period_s:.0f}-s", daemon=True
        )

    def start(self) -> None:
        """Invokes the function for the first time after one period."""
        self._thread.start()

    def stop(self) -> None:
        """Starts no further invocation; does not wait for a running one."""
        self._stopping.set()

    def _tick(self) -> None:
        while not self._stopping.wait(self._period_s):
            try:
                self._function.invoke(_scheduled_event())
            except FunctionCrashed:
                # Its traceback is on stderr already, and the next run may succeed.
                continue
            except FunctionTimedOut:
                print(f"{self._function.name} timed out", file=sys.stderr)


def _scheduled_event() -> dict[str, object]:
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": ACCOUNT_ID,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": "us-east-1",
        "resources": [f"arn:aws:events:us-east-1:{ACCOUNT_ID}:rule/local"],
        "detail": {},
    }
