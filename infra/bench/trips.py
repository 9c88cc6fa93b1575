"""Round trips and CPU of one warm request of each kind."""

import json
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import httpx2
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.httpsession import URLLib3Session

from infra.bench.caller import configured, event_of, expect, paid_event
from infra.bench.contention import reserve_and_settle
from infra.bench.servers import Servers, credits_table
from infra.bench.tables import section, spread, table
from lib.deadline import FUNCTION_TIMEOUT_S
from lib.keys.format import new_key
from lib.ledger.ledger import Ledger
from lib.picture.transport import BoundedTransport

SUCCESS, SUCCESS_TARGET = "success", 4
WITH_USAGE, WITHOUT_USAGE = "reserve and settle", "reserve and settle without a usage row"
RATIO = "16:9"
# A key's refused and replayed requests are limited from the 60th on.
ROUNDS = 20

Trips = Mapping[str, tuple[Counter[str], list[float]]]
"""For each kind of request, how often it calls each operation, and CPU ms of each request."""


def measure(servers: Servers, prompt: str) -> Trips:
    """Sends a request of each kind in turn, ``ROUNDS`` times, and counts the calls of the last.

    One thread makes all calls in sequence, so each round trip adds its latency.
    """
    found: dict[str, tuple[Counter[str], list[float]]] = {}
    with configured(servers.environment), _counting() as counts:
        expect(200, paid_event(servers.api_key, prompt, RATIO))
        kinds = _kinds(servers, prompt)
        for _ in range(1 + ROUNDS):
            for kind, send in kinds.items():
                counts.clear()
                began = time.process_time()
                send()
                took_ms = (time.process_time() - began) * 1000
                # The first request of a kind may load what the later ones find.
                cpu_ms = [*found[kind][1], took_ms] if kind in found else []
                found[kind] = (counts.copy(), cpu_ms)
    return found


def _kinds(servers: Servers, prompt: str) -> dict[str, Callable[[], object]]:
    key = str(uuid.uuid4())
    funded, empty = servers.api_key, servers.empty_key
    latest, *_ = json.loads(expect(200, event_of(funded, "GET /api/v1/generations")))["generations"]
    openai = {"prompt": prompt, "size": "1792x1024", "model": "gpt-image-2"}
    ledger = Ledger(credits_table(servers, servers.dynamodb_url))
    ledger_only = partial(reserve_and_settle, ledger, "bench", FUNCTION_TIMEOUT_S)

    def get(route: str) -> Callable[[], object]:
        return partial(expect, 200, event_of(funded, f"GET /api/v1/{route}", None, latest["id"]))

    def paid(status: int, api_key: str, prompt: str) -> Callable[[], object]:
        return partial(expect, status, paid_event(api_key, prompt, RATIO))

    return {
        SUCCESS: paid(200, funded, prompt),
        "success in OpenAI's form": partial(
            expect, 200, event_of(funded, "POST /v1/images/generations", openai)
        ),
        "replay of an idempotency key": partial(
            expect, 200, paid_event(funded, prompt, RATIO, key)
        ),
        "400, no prompt": paid(400, funded, ""),
        "401, misspelt key": paid(401, f"{funded}x", prompt),
        "401, unknown key": paid(401, new_key("bench"), prompt),
        "402, no credits": paid(402, empty, prompt),
        "refund, the model refuses": paid(500, funded, "[fail:safety]"),
        "balance": get("billing/credits"),
        "usage of a month": get("billing/usage"),
        "receipt": get("generations/{id}/receipt"),
        WITH_USAGE: ledger_only,
        WITHOUT_USAGE: partial(ledger_only, spender=None),
    }


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
    added_ms = [statistics.median(trips[kind][1]) for kind in (WITH_USAGE, WITHOUT_USAGE)]
    yield from section(
        "Each kind of request",
        "HTTP requests of a warm function, one after the other, counted at its clients, and CPU",
        f"of {ROUNDS} requests each, alternating. Target for a success: {SUCCESS_TARGET} round",
        f"trips. The key's usage row costs {added_ms[0] - added_ms[1]:.1f} ms, within the same",
        "transactions.",
    )
    rows = []
    for kind, (calls, cpu_ms) in trips.items():
        names = [f"{name} x {times}" if times > 1 else name for name, times in calls.items()]
        rows.append(
            (kind, f"**{calls.total()}**", ", ".join(names) or "none", spread(cpu_ms, ".1f"))
        )
    yield from table(("request", "round trips", "calls", "CPU ms: median (min to max)"), rows)
