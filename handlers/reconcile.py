"""Every minute: due reservations are settled or refunded."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from handlers.dependencies import dependencies
from handlers.initialization import initialize
from lib.deadline import LAST_ROWS_TAKE_S, Deadline

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["handler"]


def handler(_event: Mapping[str, Any], context: "LambdaContext") -> dict[str, int]:
    """The Lambda entry point; returns how many due rows ended in which way.

    Raises:
        LedgerUnreachable: the due rows can't be read; the function's error alarm rings.
    """
    time_left_s = context.get_remaining_time_in_millis() / 1000
    reconciler, telemetry = dependencies().reconciler, dependencies().telemetry
    with telemetry.observe(context.aws_request_id) as observation:
        reconciled = reconciler.run(Deadline(time_left_s - LAST_ROWS_TAKE_S), observation)
        counts = asdict(reconciled)
        observation.count("ReservationsSettledLate", reconciled.settled)
        observation.count("ReservationsExpired", reconciled.refunded)
        observation.count("ReconcileFailures", reconciled.failed)
        observation.count("DueRowsLeft", reconciled.left)
        if any(counts.values()):
            observation.info("reconciled", **counts)
    return counts


initialize(build=lambda: dependencies().reconciler)
