"""Suspends an organisation whose prompts Google refuses too often.

All organisations share one Google key, which a hundred refused prompts in a row endanger. The count
is a row for each day, apart from the money: a write that is lost or repeated moves it by one.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from lib.deadline import Deadline
from lib.ledger.rows import account_key, number, refusals_key, string
from lib.ledger.table import Table

__all__ = ["SUSPENDED_BY", "Refusals"]

SUSPENDED_BY = "the limit of refused prompts"
# Time-to-live may delete a row from then on: its day is over everywhere.
_KEPT_S = 2 * 24 * 60 * 60


class Refusals:
    """Counts refused prompts, and suspends at ``limit`` of them in one UTC day.

    ``clock`` gives epoch seconds.
    """

    def __init__(self, table: Table, limit: int, clock: Callable[[], float] = time.time) -> None:
        self._table = table
        self._limit = limit
        self._clock = clock

    def count(self, organisation: str, deadline: Deadline) -> bool:
        """Counts one refused prompt; returns whether it suspended the organisation.

        Raises:
            LedgerUnreachable
        """
        now_s = int(self._clock())
        key = refusals_key(organisation, f"{datetime.fromtimestamp(now_s, UTC):%Y-%m-%d}")
        counted = self._table.update(
            {
                "Key": key,
                "UpdateExpression": "ADD refusals :one SET expiresAt = :end",
                "ExpressionAttributeValues": {
                    ":one": number(1),
                    ":end": number(now_s + _KEPT_S),
                },
                "ReturnValues": "UPDATED_NEW",
            },
            deadline,
        )
        refusals = int(counted["refusals"]["N"])
        if refusals < self._limit:
            return False
        self._suspend(organisation, f"{refusals} refused prompts in a day", now_s, deadline)
        # The operator who resumes the organisation gives it a whole day's count again.
        start_again = {
            "Key": key,
            "UpdateExpression": "SET refusals = :none",
            "ExpressionAttributeValues": {":none": number(0)},
        }
        self._table.update(start_again, deadline)
        return True

    def _suspend(self, organisation: str, reason: str, now_s: int, deadline: Deadline) -> None:
        # An operator's own suspension keeps its reason.
        suspension = {
            "Key": account_key(organisation),
            "UpdateExpression": (
                "SET suspendedAt = if_not_exists(suspendedAt, :now),"
                " suspension = if_not_exists(suspension, :reason),"
                " suspendedBy = if_not_exists(suspendedBy, :by)"
            ),
            "ExpressionAttributeValues": {
                ":now": number(now_s),
                ":reason": string(reason),
                ":by": string(SUSPENDED_BY),
            },
        }
        self._table.update(suspension, deadline)
