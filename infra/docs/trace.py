"""``python -m infra.docs.trace``: every function that a warm, paid request runs, and its lines.

The local stack makes one image to warm up. The next request is called in this thread and traced;
only ``handlers/`` and ``lib/`` count. A comprehension or a nested function belongs to the function
around it.
"""

import contextlib
import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from infra.template import PROJECT_ROOT
from lib.deadline import FUNCTION_TIMEOUT_S

__all__ = ["Trace", "main", "trace_a_paid_request"]

TRACED = ("handlers", "lib")
OK = 200


@dataclass
class Trace:
    """The functions that ran, in the order of their first calls, with the lines that ran."""

    lines: dict[tuple[str, str], set[int]] = field(default_factory=dict)

    def files(self) -> dict[str, dict[str, int]]:
        """For each file the number of lines that ran in each of its functions."""
        files: dict[str, dict[str, int]] = {}
        for (file, function), lines in self.lines.items():
            files.setdefault(file, {})[function] = len(lines)
        return files

    def functions(self) -> list[str]:
        """The functions as ``package.module:qualified.name``, in the order of their first calls."""
        return [
            f"{file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}:{function}"
            for file, function in self.lines
        ]

    def __call__(self, frame: FrameType, event: str, _arg: object) -> Any:
        """A trace function for ``sys.settrace``."""
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(PROJECT_ROOT):
            return None
        file = path.relative_to(PROJECT_ROOT)
        if file.parts[0] not in TRACED:
            return None
        function = frame.f_code.co_qualname.partition(".<locals>")[0]
        ran = self.lines.setdefault((file.as_posix(), function), set())
        if event == "line":
            ran.add(frame.f_lineno)
        return self


def trace_a_paid_request() -> Trace:
    """Runs the local stack, warms it up and traces the request after that.

    Raises:
        RuntimeError: a request was not answered with 200.
    """
    # The handlers read the environment when they are imported, and the stack sets it.
    from infra.local.stack import LocalStack  # noqa: PLC0415

    trace = Trace()
    with contextlib.redirect_stdout(io.StringIO()), LocalStack(latency_s=0) as stack:
        _request(stack.api_key)
        sys.settrace(trace)
        try:
            _request(stack.api_key)
        finally:
            sys.settrace(None)
    return trace


def _request(api_key: str) -> None:
    from handlers.generate import handler  # noqa: PLC0415 - as above
    from infra.local.functions import LambdaContext  # noqa: PLC0415 - as above

    event = {
        "version": "2.0",
        "routeKey": "POST /api/v1/models/gemini/generate",
        "headers": {"authorization": f"Bearer {api_key}", "content-type": "application/json"},
        "requestContext": {"requestId": "traced"},
        "body": json.dumps({"prompt": "A fox asleep in the snow", "aspectRatio": "16:9"}),
        "isBase64Encoded": False,
    }
    context: Any = LambdaContext("GenerateFunction", "1024", FUNCTION_TIMEOUT_S)
    response = handler(event, context)
    if response["statusCode"] != OK:
        raise RuntimeError(f"the request was answered with {response['statusCode']}")


def main() -> int:
    """Prints the trace; the exit status."""
    trace = trace_a_paid_request()
    files = trace.files()
    for file, functions in files.items():
        print(f"{sum(functions.values()):4}  {file}")
        for function, lines in functions.items():
            print(f"{lines:10}  {function}")
    total = sum(sum(functions.values()) for functions in files.values())
    count = len(trace.lines)
    print(f"\nA warm 200 runs {total} lines of {count} functions in {len(files)} files.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
