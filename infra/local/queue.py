"""Delivers an SQS queue's messages to a function, as Lambda's event source mapping does.

Each invocation gets one message. A message is deleted unless the function reports it as failed,
crashes or times out; then the queue redelivers it after its visibility timeout and, after its last
receive, moves it to the dead-letter queue.
"""

import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from infra.local.functions import ACCOUNT_ID, FunctionCrashed, FunctionTimedOut, LocalFunction

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageTypeDef

__all__ = ["EventSource"]

_POLL_EVERY_S = 0.2
_CONCURRENCY = 4


class EventSource:
    """Polls one queue from ``start`` until ``stop``; delivers up to four messages concurrently."""

    def __init__(self, client: "SQSClient", queue_url: str, function: LocalFunction) -> None:
        self._client = client
        self._queue_url = queue_url
        self._function = function
        self._stopping = threading.Event()
        self._free = threading.Semaphore(_CONCURRENCY)
        self._thread = threading.Thread(target=self._poll, name="queue", daemon=True)

    def start(self) -> None:
        """Delivers from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Delivers no further message; does not wait for a running invocation."""
        self._stopping.set()

    def _poll(self) -> None:
        while not self._stopping.wait(_POLL_EVERY_S):
            try:
                while not self._stopping.is_set() and self._deliver_next():
                    pass
            except (BotoCoreError, ClientError):
                self._report()

    def _deliver_next(self) -> bool:
        """Whether there was a message and a free slot to deliver it."""
        if not self._free.acquire(blocking=False):
            return False
        messages: list[MessageTypeDef] = []
        try:
            response = self._client.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=1,
                MessageSystemAttributeNames=["All"],
            )
            messages = response.get("Messages", [])
        finally:
            if not messages:
                self._free.release()
        for message in messages:
            threading.Thread(target=self._deliver, args=(message,), daemon=True).start()
        return bool(messages)

    def _deliver(self, message: "MessageTypeDef") -> None:
        try:
            if self._is_done(message):
                self._client.delete_message(
                    QueueUrl=self._queue_url, ReceiptHandle=message["ReceiptHandle"]
                )
        except (BotoCoreError, ClientError):
            self._report()
        finally:
            self._free.release()

    def _report(self) -> None:
        # The queue disappears when the stack stops.
        if not self._stopping.is_set():
            print("the queue does not respond", file=sys.stderr)

    def _is_done(self, message: "MessageTypeDef") -> bool:
        try:
            result = self._function.invoke({"Records": [_record(message)]})
        except FunctionCrashed:
            # Its traceback is on stderr already.
            return False
        except FunctionTimedOut:
            print(f"{self._function.name} timed out", file=sys.stderr)
            return False
        failed = result.get("batchItemFailures", []) if isinstance(result, Mapping) else []
        return not failed


def _record(message: "MessageTypeDef") -> dict[str, Any]:
    """The message as Lambda passes it to a function.

    https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html
    """
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": message.get("Attributes", {}),
        "messageAttributes": {},
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:us-east-1:{ACCOUNT_ID}:jobs",
        "awsRegion": "us-east-1",
    }
