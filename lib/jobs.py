"""The queue of accepted generations, which tells a worker that one is waiting.

A message carries the generation's identity and nothing of the request: the row has that, and the
row decides. So a message may arrive twice, late, out of order, or for a generation that has ended.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from lib.clients import error_code, http_status
from lib.deadline import LEDGER_CALL_S, QUEUE_CALL_S, Deadline
from lib.errors import JobNotQueued
from lib.keys.format import is_organisation
from lib.ledger.rows import parse_id

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["Job", "Jobs", "UnreadableJob"]

MAX_SENDS = 3
MAX_MESSAGE_CHARACTERS = 1_000


class UnreadableJob(Exception):
    """A message that this service did not write."""


@dataclass(frozen=True, slots=True)
class Job:
    """The identity of a generation that is waiting: its organisation and creation time."""

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
            JobNotQueued: no send was confirmed. The message may be in the queue all the same; the
                worker that receives it finds a refunded generation.
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
            if tries == MAX_SENDS or deadline.remaining_s() < QUEUE_CALL_S + LEDGER_CALL_S:
                raise JobNotQueued from last
            self._sleep(0.1 * tries)


def _is_transient(fault: ClientError) -> bool:
    status = http_status(fault)
    throttled = "Throttl" in error_code(fault) or status == HTTPStatus.TOO_MANY_REQUESTS
    return throttled or status >= HTTPStatus.INTERNAL_SERVER_ERROR
