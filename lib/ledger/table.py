"""One DynamoDB table, with retries that end by a deadline.

botocore's own retries are off for DynamoDB: it would retry some faults for longer than a request
lives and others (``TransactionConflict``) not at all. Every call goes through
``_call_with_retries`` instead, which retries with full jitter and inside the deadline whatever a
later try can mend. Such a fault either certainly had no effect (a conflict, throttling) or may have
had one (a lost response); every writer must be prepared for both.
"""

import random
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar, cast

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from lib.clients import error_code, http_status
from lib.deadline import LEDGER_CALL_S, Deadline
from lib.ledger.rows import Item

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

__all__ = ["ConditionFailed", "LedgerUnreachable", "Reason", "Sleep", "Table", "longest_pause_s"]

Sleep = Callable[[float], None]
Reason = dict[str, Any]
T = TypeVar("T")

FIRST_PAUSE_S = 0.025
LONGEST_PAUSE_S = 0.8
# A conflict ends with the other transaction, in milliseconds. With pauses as long as those after
# a fault, a request that has lost a few times would wait while newcomers overtake it. So from the
# peak on, each conflict shortens the pause: a request that has lost often tries more often.
LONGEST_PAUSE_AFTER_CONFLICT_S = 0.2
SHORTENED_BY = 0.9
SHORTEST_PAUSE_AFTER_CONFLICT_S = 0.01
CONFLICTS_TO_THE_PEAK = 5
# The deadline ends a call sooner; this is for one that fails at once, each time.
MAX_TRIES = 500
# A page then takes a fraction of the time that a call may take, however many rows there are.
PAGE_ROWS = 500

_CONFLICT = frozenset({"TransactionConflict", "TransactionConflictException"})
_THROTTLED = frozenset(
    {
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ThrottlingError",
        "ThrottlingException",
    }
)
_NO_EFFECT = _CONFLICT | _THROTTLED
_MAYBE_AN_EFFECT = frozenset(
    {
        "InternalFailure",
        "InternalServerError",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "TransactionInProgressException",
    }
)
_DECISION = frozenset({"ConditionalCheckFailed", "ConditionalCheckFailedException"})
_LOST_RESPONSE = (
    HTTPClientError,
    BotoConnectionError,
    IncompleteReadError,
    ResponseParserError,
)


class LedgerUnreachable(Exception):
    """The call did not succeed in time, or cannot succeed.

    ``maybe_done``: some try may have taken effect and its response was lost.
    ``contended``: some try met another transaction on the same row.
    ``hopeless``: DynamoDB refused the call itself (permissions, a missing table).
    """

    def __init__(
        self, *, maybe_done: bool, hopeless: bool = False, contended: bool = False
    ) -> None:
        super().__init__("DynamoDB did not complete the call")
        self.maybe_done = maybe_done
        self.contended = contended
        self.hopeless = hopeless


class ConditionFailed(Exception):
    """The write's condition does not hold. ``item`` is the present row, if there is one."""

    def __init__(self, item: Item | None) -> None:
        super().__init__("the condition does not hold")
        self.item = item


class Table:
    """Reads and conditional writes of one table. Every method may raise ``LedgerUnreachable``."""

    def __init__(
        self,
        client: "DynamoDBClient",
        name: str,
        sleep: Sleep = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self.name = name
        self._sleep = sleep
        self._jitter = jitter

    def transact(self, writes: list[dict[str, dict[str, Any]]], deadline: Deadline) -> list[Reason]:
        """Commits all of ``writes`` or none.

        The token makes DynamoDB recognise a repetition of this call for ten minutes; the writes'
        own conditions hold for ever.

        Returns:
            An empty list if it committed, otherwise DynamoDB's reasons, one per write in order.
        """
        arguments: dict[str, Any] = {
            "TransactItems": [
                {kind: self._write(write) for kind, write in each.items()} for each in writes
            ],
            "ClientRequestToken": str(uuid.uuid4()),
        }
        try:
            self._call_with_retries(
                lambda: self._client.transact_write_items(**arguments), deadline
            )
        except ClientError as fault:
            return cast("list[Reason]", fault.response["CancellationReasons"])
        return []

    def update(self, write: dict[str, Any], deadline: Deadline) -> Item:
        """One conditional update; returns what ``ReturnValues`` asks for.

        Raises:
            ConditionFailed
        """
        arguments = self._write(write)
        try:
            answer = self._call_with_retries(
                lambda: self._client.update_item(**arguments), deadline
            )
        except ClientError as fault:
            raise ConditionFailed(cast("Item | None", fault.response.get("Item"))) from fault
        return cast("Item", answer.get("Attributes", {}))

    def put(self, write: dict[str, Any], deadline: Deadline) -> None:
        """One conditional put.

        Raises:
            ConditionFailed
        """
        arguments = self._write(write)
        try:
            self._call_with_retries(lambda: self._client.put_item(**arguments), deadline)
        except ClientError as fault:
            raise ConditionFailed(cast("Item | None", fault.response.get("Item"))) from fault

    def get(self, key: Item, deadline: Deadline) -> Item | None:
        """The item, read consistently; None if it does not exist."""
        arguments: dict[str, Any] = {"TableName": self.name, "Key": key, "ConsistentRead": True}
        answer = self._call_with_retries(lambda: self._client.get_item(**arguments), deadline)
        return answer.get("Item")

    def query(self, query: dict[str, Any], deadline: Deadline) -> Iterator[Item]:
        """A query's items, page by page."""
        request: dict[str, Any] = {"TableName": self.name, "Limit": PAGE_ROWS, **query}
        while True:
            if deadline.passed():
                raise LedgerUnreachable(maybe_done=False)
            page = self._call_with_retries(partial(self._client.query, **request), deadline)
            yield from page["Items"]
            if "LastEvaluatedKey" not in page:
                return
            request = request | {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    def _write(self, write: dict[str, Any]) -> dict[str, Any]:
        """Adds the table; a refused write then returns the item that refused it, without a read."""
        return {
            "TableName": self.name,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        } | write

    def _call_with_retries(self, call: Callable[[], T], deadline: Deadline) -> T:
        """The result of ``call``, retried while a retry can help and a whole call fits.

        Raises:
            ClientError: a decision about the data, that is a condition that does not hold.
            LedgerUnreachable: no decision.
        """
        maybe_done = contended = False
        for tries in range(MAX_TRIES):
            conflict = False
            try:
                return call()
            except ClientError as fault:
                codes = _codes(fault)
                if codes and codes <= _DECISION:
                    raise
                if not _is_transient(fault):
                    raise LedgerUnreachable(maybe_done=maybe_done, hopeless=True) from fault
                maybe_done = maybe_done or not codes & _NO_EFFECT
                contended = contended or bool(codes & _CONFLICT)
                conflict = bool(codes & _CONFLICT) and not codes & _THROTTLED
            except _LOST_RESPONSE:
                maybe_done = True
            except BotoCoreError as fault:
                raise LedgerUnreachable(maybe_done=maybe_done, hopeless=True) from fault
            pause_s = self._jitter() * longest_pause_s(tries, after_conflict=conflict)
            if deadline.remaining_s() <= pause_s + LEDGER_CALL_S:
                break
            self._sleep(pause_s)
        raise LedgerUnreachable(maybe_done=maybe_done, contended=contended)


def longest_pause_s(tries: int, *, after_conflict: bool) -> float:
    """The longest pause, in seconds, before the next try; ``tries`` pauses came before it."""
    growing = FIRST_PAUSE_S * float(2 ** min(tries, CONFLICTS_TO_THE_PEAK))
    if not after_conflict:
        return min(LONGEST_PAUSE_S, growing)
    shortened = SHORTENED_BY ** max(0, tries - CONFLICTS_TO_THE_PEAK)
    return max(
        SHORTEST_PAUSE_AFTER_CONFLICT_S, min(LONGEST_PAUSE_AFTER_CONFLICT_S, growing) * shortened
    )


def _codes(fault: ClientError) -> set[str]:
    """The codes of a cancelled transaction's items, or the code of any other error."""
    code = error_code(fault)
    if code != "TransactionCanceledException":
        return {code}
    reasons = cast("list[Reason]", fault.response.get("CancellationReasons", []))
    return {reason.get("Code", "None") for reason in reasons} - {"None"}


def _is_transient(fault: ClientError) -> bool:
    server_side = http_status(fault) >= HTTPStatus.INTERNAL_SERVER_ERROR
    return server_side or bool(_codes(fault) & (_NO_EFFECT | _MAYBE_AN_EFFECT))
