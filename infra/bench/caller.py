"""The generate function in this process, called as Lambda calls it."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import patch

from handlers import generate
from handlers.dependencies import dependencies
from infra.local.functions import LambdaContext
from lib.deadline import FUNCTION_TIMEOUT_S

ROUTE = "POST /api/v1/models/gemini/generate"


class UnexpectedAnswerError(Exception):
    """The measured request failed, so its figures would mean nothing."""


@contextmanager
def configured(environment: Mapping[str, str]) -> Iterator[None]:
    """Runs handlers with ``environment`` and new dependencies, silently, until the block ends.

    Standard output is redirected because the service's logger keeps the stream it finds first.
    """
    dependencies.cache_clear()
    with redirect_stdout(_devnull()), patch.dict(os.environ, environment):
        yield
    dependencies.cache_clear()


@cache
def _devnull() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def expect(status: int, event: Mapping[str, Any]) -> None:
    """Sends one request to the generate function; UnexpectedAnswerError for another status."""
    context: Any = LambdaContext("bench", "1024", FUNCTION_TIMEOUT_S)
    answer = generate.handler(dict(event), context)
    if answer["statusCode"] != status:
        raise UnexpectedAnswerError(f"the service answered {answer['statusCode']}, not {status}")


def paid_event(
    api_key: str, prompt: str, ratio: str, idempotency_key: str | None = None
) -> dict[str, Any]:
    """API Gateway's event of a request for an image."""
    headers = {"authorization": f"Bearer {api_key}"}
    if idempotency_key is not None:
        headers["idempotency-key"] = idempotency_key
    return {
        "version": "2.0",
        "routeKey": ROUTE,
        "headers": headers,
        "requestContext": {"requestId": "bench"},
        "body": json.dumps({"prompt": prompt, "aspectRatio": ratio}),
        "isBase64Encoded": False,
    }
