"""Round trips of a request, counted on the wire: one warm request of each kind."""

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from infra.bench.caller import calling, paid_event
from infra.bench.servers import Reach
from infra.bench.wire import counts_at
from infra.bench.words import table
from lib.keys.format import new_key

__all__ = ["SUCCESS", "SUCCESS_TARGET", "Trips", "measure", "report"]

SUCCESS = "success"
SUCCESS_TARGET = 4
RATIO = "16:9"

Trips = Mapping[str, Counter[str]]
"""By the kind of request: how often each operation was called."""


def measure(reach: Reach, prompt: str) -> Trips:
    """Sends each kind twice; the second time is counted, when everything is warm.

    Everything is sent one after the other by one thread, so a round trip more is a wait more.
    """
    key = str(uuid.uuid4())
    good, poor = reach.api_key, reach.poor_key
    kinds: dict[str, tuple[int, dict[str, Any]]] = {
        SUCCESS: (200, paid_event(good, prompt, RATIO)),
        "replay of an idempotency key": (200, paid_event(good, prompt, RATIO, key)),
        "400, no prompt": (400, paid_event(good, "", RATIO)),
        "401, misspelt key": (401, paid_event(f"{good}x", prompt, RATIO)),
        "401, unknown key": (401, paid_event(new_key("bench"), prompt, RATIO)),
        "402, no credits": (402, paid_event(poor, prompt, RATIO)),
        "refund, the model refuses": (500, paid_event(good, "[fail:safety]", RATIO)),
    }
    found = {}
    with calling(reach.over_wires, good) as caller:
        caller.expect(402, paid_event(poor, prompt, RATIO))
        for kind, (status, event) in kinds.items():
            caller.expect(status, event)
            before = _counts(reach)
            caller.expect(status, event)
            found[kind] = _counts(reach) - before
    return found


def _counts(reach: Reach) -> Counter[str]:
    return sum((counts_at(url) for url in reach.wires), Counter[str]())


def report(trips: Trips) -> Iterator[str]:
    """The section of the results."""
    yield from (
        "## Round trips",
        "",
        "Counted on the wire, of a warm function, one after the other.",
    )
    yield f"Target for a success: {SUCCESS_TARGET}."
    yield ""
    yield from table(
        ("request", "round trips", "which"),
        (
            (
                kind,
                f"**{sum(calls.values())}**",
                ", ".join(
                    f"{name} x {count}" if count > 1 else name for name, count in calls.items()
                )
                or "none",
            )
            for kind, calls in trips.items()
        ),
    )
