"""The queue of accepted generations: what says to a worker that one waits to be made.

A message carries the generation's identity and nothing of what was asked for: the row has that,
and the row decides. So a message may come twice, late, out of order, or for a generation that has
ended.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from lib.clients import error_code, http_status
from lib.deadline import REFUND_TAKES_S, Deadline
from lib.errors import JobNotQueued
from lib.keys.format import is_organisation
from lib.ledger.rows import parse_id

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["CALL_TAKES_S", "Job", "Jobs", "UnreadableJob"]

# What one call may take at most: the client's timeouts, and a little for what is around it.
CALL_TAKES_S = 3.5
MAX_SENDS = 3
MAX_MESSAGE_CHARACTERS = 1_000


class UnreadableJob(Exception):
    """A message that this service didn't write."""


@dataclass(frozen=True, slots=True)
class Job:
    """Which generation waits to be made: an organisation's, by its creation time."""

    organisation: str
    created_ms: int

    def to_message(self) -> str:
        """The text of the message."""
        return json.dumps(
            {"organisation": self.organisation, "generation": f"{self.created_ms:013d}"}
        )

    @classmethod
    def from_message(cls, text: str) -> "Job":
        """Reads a message.

        Raises:
            UnreadableJob
        """
        if len(text) > MAX_MESSAGE_CHARACTERS:
            raise UnreadableJob
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as fault:
            raise UnreadableJob from fault
        match fields:
            case {"organisation": str(organisation), "generation": str(generation)} if (
                is_organisation(organisation)
            ):
                created_ms = parse_id(generation)
            case _:
                raise UnreadableJob
        if created_ms is None:
            raise UnreadableJob
        return cls(organisation, created_ms)


class Jobs:
    """The sending end of the queue."""

    def __init__(
        self,
        client: "SQSClient",
        queue_url: str,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._queue_url = queue_url
        self._sleep = sleep

    def put(self, job: Job, deadline: Deadline) -> None:
        """Queues ``job``, perhaps twice.

        Raises:
            JobNotQueued: nobody can say that it is queued. It may be, so a worker may come across
                it, and finds a generation that has been refunded.
        """
        for tries in range(1, MAX_SENDS + 1):
            try:
                self._client.send_message(QueueUrl=self._queue_url, MessageBody=job.to_message())
            except ClientError as fault:
                if not _is_transient(fault):
                    raise JobNotQueued from fault
                last: Exception = fault
            except BotoCoreError as fault:
                last = fault
            else:
                return
            if tries == MAX_SENDS or deadline.remaining_s() < CALL_TAKES_S + REFUND_TAKES_S:
                raise JobNotQueued from last
            self._sleep(0.1 * tries)


def _is_transient(fault: ClientError) -> bool:
    status = http_status(fault)
    throttled = "Throttl" in error_code(fault) or status == HTTPStatus.TOO_MANY_REQUESTS
    return throttled or status >= HTTPStatus.INTERNAL_SERVER_ERROR
