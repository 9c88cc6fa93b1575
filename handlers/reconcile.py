"""Every minute: expired reservations are settled or refunded."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING

from handlers.composition import Rooms
from handlers.http import Event
from handlers.sandbox import prepare
from lib.deadline import Deadline
from lib.observability import Telemetry
from lib.reconciliation import Reconciler
from lib.settings import Settings

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["Service", "handler", "service"]

LAST_HOLDS_TAKE_S = 15.0
HOLDS_IN_PARALLEL = 8


@dataclass(frozen=True, slots=True)
class Service:
    """The rooms of this function."""

    reconciler: Reconciler
    telemetry: Telemetry


@cache
def service() -> Service:
    """Built once a process; later calls return the same."""
    rooms = Rooms(Settings.from_environment())
    pool = ThreadPoolExecutor(HOLDS_IN_PARALLEL, thread_name_prefix="reconcile")
    return Service(Reconciler(rooms.ledger, rooms.images, run_all=pool.map), rooms.telemetry)


def handler(_event: Event, context: "LambdaContext") -> dict[str, int]:
    """The Lambda entry point; returns how many holds ended in which way.

    Raises:
        LedgerUnreachable: the holds can't be read; the function's error alarm tells.
    """
    time_left_s = context.get_remaining_time_in_millis() / 1000
    rooms = service()
    with rooms.telemetry.observe(context.aws_request_id) as observation:
        reconciled = rooms.reconciler.run(Deadline(time_left_s - LAST_HOLDS_TAKE_S), observation)
        counts = asdict(reconciled)
        observation.count("ReservationsSettledLate", reconciled.settled)
        observation.count("ReservationsExpired", reconciled.refunded)
        observation.count("ReconcileFailures", reconciled.failed)
        observation.count("HoldsLeft", reconciled.left)
        if any(counts.values()):
            observation.info("reconciled", **counts)
    return counts


prepare(build=service)
