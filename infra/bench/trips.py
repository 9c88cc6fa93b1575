"""Round trips of one warm request of each kind, counted at the HTTP clients."""

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import httpx2
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.httpsession import URLLib3Session

from infra.bench.caller import configured, expect, paid_event
from infra.bench.servers import Servers
from infra.bench.tables import section, table
from lib.keys.format import new_key
from lib.picture.transport import BoundedTransport

SUCCESS = "success"
SUCCESS_TARGET = 4
RATIO = "16:9"

Trips = Mapping[str, Counter[str]]
"""For each kind of request, the number of calls of each operation."""


def measure(servers: Servers, prompt: str) -> Trips:
    """Sends each request twice and counts the calls of the second.

    One thread makes all calls in sequence, so each round trip adds its latency.
    """
    key = str(uuid.uuid4())
    funded, empty = servers.api_key, servers.empty_key
    requests: dict[str, tuple[int, dict[str, Any]]] = {
        SUCCESS: (200, paid_event(funded, prompt, RATIO)),
        "replay of an idempotency key": (200, paid_event(funded, prompt, RATIO, key)),
        "400, no prompt": (400, paid_event(funded, "", RATIO)),
        "401, misspelt key": (401, paid_event(f"{funded}x", prompt, RATIO)),
        "401, unknown key": (401, paid_event(new_key("bench"), prompt, RATIO)),
        "402, no credits": (402, paid_event(empty, prompt, RATIO)),
        "refund, the model refuses": (500, paid_event(funded, "[fail:safety]", RATIO)),
    }
    found = {}
    with configured(servers.environment), _counting() as counts:
        expect(*requests["402, no credits"])
        for kind, (status, event) in requests.items():
            expect(status, event)
            counts.clear()
            expect(status, event)
            found[kind] = counts.copy()
    return found


@contextmanager
def _counting() -> Iterator[Counter[str]]:
    """Counts every HTTP request of boto3 and of the model's client, retries included."""
    counts = Counter[str]()
    send, call_model = URLLib3Session.send, BoundedTransport.handle_request

    def counted_send(session: URLLib3Session, request: AWSPreparedRequest) -> AWSResponse:
        target = request.headers.get("X-Amz-Target", b"")
        operation = target.decode() if isinstance(target, bytes) else target
        counts[operation.rpartition(".")[2] or f"{request.method.capitalize()}Object"] += 1
        return send(session, request)

    def counted_call(transport: BoundedTransport, request: httpx2.Request) -> httpx2.Response:
        counts["generateContent"] += 1
        return call_model(transport, request)

    with (
        patch.object(URLLib3Session, "send", counted_send),
        patch.object(BoundedTransport, "handle_request", counted_call),
    ):
        yield counts


def report(trips: Trips) -> Iterator[str]:
    """The section of the results."""
    yield from section(
        "Round trips",
        "HTTP requests of a warm function, one after the other, counted at its clients.",
        f"Target for a success: {SUCCESS_TARGET}.",
    )
    rows = []
    for kind, calls in trips.items():
        names = [f"{name} x {times}" if times > 1 else name for name, times in calls.items()]
        rows.append((kind, f"**{calls.total()}**", ", ".join(names) or "none"))
    yield from table(("request", "round trips", "calls"), rows)
