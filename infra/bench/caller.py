"""The HTTP functions in this process, called as Lambda calls them."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import patch

from handlers import account, generate
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


def expect(status: int, event: Mapping[str, Any]) -> str:
    """Sends one request to its function; returns the body.

    Raises:
        UnexpectedAnswerError: the status is another one.
    """
    context: Any = LambdaContext("bench", "1024", FUNCTION_TIMEOUT_S)
    function = generate if event["routeKey"].startswith("POST") else account
    answer = function.handler(dict(event), context)
    if answer["statusCode"] != status:
        raise UnexpectedAnswerError(f"the service answered {answer['statusCode']}, not {status}")
    return str(answer["body"])


def paid_event(
    api_key: str, prompt: str, ratio: str, idempotency_key: str | None = None
) -> dict[str, Any]:
    """API Gateway's event of a request for an image."""
    event = event_of(api_key, ROUTE, {"prompt": prompt, "aspectRatio": ratio})
    if idempotency_key is not None:
        event["headers"]["idempotency-key"] = idempotency_key
    return event


def event_of(api_key: str, route: str, body: object = None, generation: str = "") -> dict[str, Any]:
    """API Gateway's event of a request; ``generation`` is the ``{id}`` of the route."""
    return {
        "version": "2.0",
        "routeKey": route,
        "headers": {"authorization": f"Bearer {api_key}"},
        "pathParameters": {"id": generation},
        "requestContext": {"requestId": "bench"},
        "body": json.dumps(body),
        "isBase64Encoded": False,
    }
