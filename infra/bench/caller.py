"""The real handler in this process, called as Lambda calls it."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from handlers import generate
from handlers.dependencies import dependencies
from infra.bench.servers import variables
from infra.local.functions import LambdaContext
from lib.deadline import FUNCTION_TIMEOUT_S

__all__ = ["ROUTE", "Caller", "UnexpectedAnswerError", "calling", "paid_event", "silenced"]

ROUTE = "POST /api/v1/models/gemini/generate"


class UnexpectedAnswerError(Exception):
    """What is measured does not work: no figure of it would mean anything."""


class Caller:
    """Sends requests to the generate function; made by ``calling``."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def paid(self, prompt: str, ratio: str) -> None:
        """One image.

        Raises:
            UnexpectedAnswerError: there is none.
        """
        self.expect(200, paid_event(self._api_key, prompt, ratio))

    def expect(self, status: int, event: Mapping[str, Any]) -> None:
        """Any request.

        Raises:
            UnexpectedAnswerError: the answer's status is another.
        """
        context: Any = LambdaContext("bench", "1024", FUNCTION_TIMEOUT_S)
        answer = generate.handler(dict(event), context)
        if answer["statusCode"] != status:
            raise UnexpectedAnswerError(f"the service answered {answer['statusCode']}")


@contextmanager
def calling(environment: Mapping[str, str], api_key: str) -> Iterator[Caller]:
    """The function with ``environment``, new, until the block ends; its log goes nowhere."""
    dependencies.cache_clear()
    with silenced(), variables(environment):
        try:
            yield Caller(api_key)
        finally:
            dependencies().model.close()
            dependencies.cache_clear()


@contextmanager
def silenced() -> Iterator[None]:
    """Nothing is written to standard output until the block ends.

    The service's logger keeps, for good, the standard output that it finds first.
    """
    with redirect_stdout(_nowhere()):
        yield


@cache
def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def paid_event(
    api_key: str, prompt: str, ratio: str, idempotency_key: str | None = None
) -> dict[str, Any]:
    """What API Gateway sends for a request for an image."""
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
