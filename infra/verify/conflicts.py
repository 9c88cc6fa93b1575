"""DynamoDB Local with the conflicts of AWS: a proxy that refuses instead of waiting.

DynamoDB Local serialises transactions on the same item; DynamoDB refuses the second one with
``TransactionConflict``. The proxy refuses, in DynamoDB's form, any write to an item that a
transaction in flight has locked, and forwards everything else.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis.html
"""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import urllib3
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

COUNT_PATH = "/conflicts"
_TIMEOUT_S = 60.0
_CONNECTIONS = 64
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "expect", "host"})
_JSON = "application/x-amz-json-1.0"


class _ConflictHandler(WSGIRequestHandler):
    # Headers and body leave in two packets; Nagle's algorithm would delay the second by 40 ms.
    disable_nagle_algorithm = True

    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002 - werkzeug's name
        """Logs nothing."""


@contextmanager
def conflict_proxy(upstream: str) -> Iterator[str]:
    """The URL of a proxy of the DynamoDB Local at ``upstream``, until the block ends."""
    application = _Proxy(upstream)
    options: dict[str, Any] = {"threaded": True, "request_handler": _ConflictHandler}
    server = make_server("127.0.0.1", 0, application, **options)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()
    application.upstream.close()


class _Proxy:
    def __init__(self, upstream: str) -> None:
        options = {"maxsize": _CONNECTIONS, "timeout": _TIMEOUT_S}
        self.upstream = urllib3.connection_from_url(upstream, **options)
        self._lock = threading.Lock()
        self._locked: set[tuple[str, str]] = set()
        self._conflicts = 0

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        if request.path == COUNT_PATH:
            return Response(str(self._conflicts))(environ, start_response)
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        is_transaction = operation == "TransactWriteItems"
        keys = _written(operation, json.loads(request.get_data()))
        with self._lock:
            conflicts = [key in self._locked for key in keys]
            mine = keys if is_transaction and not any(conflicts) else []
            self._locked.update(mine)
            self._conflicts += any(conflicts)
        try:
            if any(conflicts):
                answer = _refusal(conflicts, is_transaction=is_transaction)
            else:
                answer = self._forward(request)
        finally:
            with self._lock:
                self._locked.difference_update(mine)
        return answer(environ, start_response)

    def _forward(self, request: Request) -> Response:
        sent = {name: value for name, value in request.headers if name.lower() not in _HOP_BY_HOP}
        body = request.get_data()
        answer = self.upstream.urlopen(request.method, request.path, body, sent, retries=False)
        kept = [each for each in answer.headers.items() if each[0].lower() not in _HOP_BY_HOP]
        return Response(answer.data, answer.status, kept)


def conflicts_at(url: str) -> int:
    """How many calls the proxy at ``url`` has refused so far; also from another process."""
    return int(urllib3.request("GET", url + COUNT_PATH, timeout=_TIMEOUT_S).data)


def _written(operation: str, document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The keys of the items that a call writes, in its order."""
    writes: list[Any] = []
    if operation == "TransactWriteItems":
        writes = [next(iter(each.values())) for each in document["TransactItems"]]
    elif operation in {"UpdateItem", "PutItem", "DeleteItem"}:
        writes = [document]
    items = [write.get("Key") or write["Item"] for write in writes]
    return [(item["pk"]["S"], item["sk"]["S"]) for item in items]


def _refusal(conflicts: Sequence[bool], *, is_transaction: bool) -> Response:
    code, more = "TransactionConflictException", {}
    if is_transaction:
        code = "TransactionCanceledException"
        conflict = {"Code": "TransactionConflict", "Message": "Transaction is ongoing for the item"}
        reasons = [conflict if each else {"Code": "None"} for each in conflicts]
        more = {"CancellationReasons": reasons}
    document = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "Message": code, **more}
    return Response(json.dumps(document), 400, content_type=_JSON)
