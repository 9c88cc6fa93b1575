"""A server between the service and one of its own servers: it counts, and refuses as AWS does.

DynamoDB Local makes transactions wait for each other; DynamoDB refuses the second one with
``TransactionConflict``. With ``conflicts`` a transaction, or a write, that touches an item which a
transaction holds at that moment is refused in DynamoDB's words, before it goes any further.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis.html
"""

import contextlib
import json
import queue
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from infra.lifetime import Runs
from infra.local.http_server import HttpServer, Limits, Request, Response

__all__ = ["CONFLICTS", "Counts", "Wire", "counts_at"]

CONFLICTS = "conflicts"
COUNTS_PATH = "/counts"
_LIMITS = Limits(body_bytes=64 * 1024 * 1024, header_bytes=32 * 1024)
_UPSTREAM_S = 60.0
_IDLE_S = 5.0
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "expect", "host"})
_OBJECT = {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}

Counts = Mapping[str, int]
_Key = tuple[str, str]


class Wire(Runs):
    """Forwards to ``upstream``, on a port of its own, from ``start`` (or ``with``) until ``stop``.

    How often each operation went through is at ``COUNTS_PATH``, for other processes too.
    """

    def __init__(self, upstream: str, *, conflicts: bool = False) -> None:
        self._upstream = urlsplit(upstream).netloc
        self._conflicts = conflicts
        self._server = HttpServer(limits=_LIMITS)
        self._idle: queue.LifoQueue[tuple[float, HTTPConnection]] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._held: set[_Key] = set()
        self.url = self._server.url

    def start(self) -> None:
        """Forwards from now on."""
        self._server.start(self._respond)

    def stop(self) -> None:
        """Closes the port and all connections."""
        self._server.stop()
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait()[1].close()

    def _respond(self, request: Request) -> Response:
        if request.target == COUNTS_PATH:
            with self._lock:
                return Response(200, body=json.dumps(self._counts).encode())
        with self._lock:
            self._counts[_operation(request)] += 1
        if not self._conflicts:
            return self._forward(request)
        with self._holding(request) as refusal:
            return refusal or self._forward(request)

    def _forward(self, request: Request) -> Response:
        headers = {name: value for name, value in request.headers if name not in _HOP_BY_HOP}
        connection = self._connection()
        try:
            connection.request(request.method, request.target, request.body, headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException):
            connection.close()
            raise
        self._idle.put((time.monotonic(), connection))
        kept = [
            (name, value) for name, value in answer.getheaders() if name.lower() != "connection"
        ]
        return Response(answer.status, tuple(kept), body)

    def _connection(self) -> HTTPConnection:
        """The one that was used last; or a new one, for the other side hangs up on idle ones."""
        with contextlib.suppress(queue.Empty):
            while True:
                used_at, connection = self._idle.get_nowait()
                if time.monotonic() < used_at + _IDLE_S:
                    return connection
                connection.close()
        return HTTPConnection(self._upstream, timeout=_UPSTREAM_S)

    @contextmanager
    def _holding(self, request: Request) -> Iterator[Response | None]:
        """Holds the items of a transaction; gives DynamoDB's refusal if one is taken."""
        operation, document = _operation(request), _document(request)
        keys = _keys(operation, document)
        is_transaction = operation == "TransactWriteItems"
        with self._lock:
            taken = [key in self._held for key in keys]
            held = keys if is_transaction and not any(taken) else []
            self._held.update(held)
            self._counts[CONFLICTS] += any(taken)
        try:
            if not any(taken):
                yield None
            elif is_transaction:
                yield _cancelled(taken)
            else:
                yield _error("TransactionConflictException", {})
        finally:
            with self._lock:
                self._held.difference_update(held)


def counts_at(url: str) -> Counter[str]:
    """How often each operation went over the wire at ``url`` so far."""
    with closing(urllib.request.urlopen(url + COUNTS_PATH, timeout=_UPSTREAM_S)) as answer:  # noqa: S310 - our own server
        return Counter(json.loads(answer.read()))


def _operation(request: Request) -> str:
    target = request.header("x-amz-target")
    if target is not None:
        return target.rpartition(".")[2]
    if request.target.partition("?")[0].endswith(":generateContent"):
        return "generateContent"
    return _OBJECT.get(request.method, request.method)


def _document(request: Request) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(request.body or b"{}")
    return document


def _keys(operation: str, document: Mapping[str, Any]) -> list[_Key]:
    """The items that are written, in order."""
    if operation == "TransactWriteItems":
        writes = [next(iter(each.values())) for each in document["TransactItems"]]
    elif operation in {"UpdateItem", "PutItem", "DeleteItem"}:
        writes = [document]
    else:
        writes = []
    items = [write.get("Key") or write["Item"] for write in writes]
    return [(item["pk"]["S"], item["sk"]["S"]) for item in items]


def _cancelled(taken: Sequence[bool]) -> Response:
    codes = ["TransactionConflict" if each else "None" for each in taken]
    reasons = [
        {"Code": code} | ({"Message": "Transaction is ongoing for the item"} if each else {})
        for code, each in zip(codes, taken, strict=True)
    ]
    return _error("TransactionCanceledException", {"CancellationReasons": reasons})


def _error(code: str, more: Mapping[str, object]) -> Response:
    document = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "Message": code, **more}
    content_type = (("content-type", "application/x-amz-json-1.0"),)
    return Response(400, content_type, json.dumps(document).encode())
