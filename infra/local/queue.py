"""Delivers an SQS queue's messages to a function, as Lambda's event source mapping does.

One message a time and call; the function names those that are to come again, and a function that
crashes or runs out of time has named them all. They come when their visibility timeout has passed,
and go to the dead-letter queue when they came too often: that is the queue's own doing.
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
_AT_ONCE = 4


class EventSource:
    """Polls one queue from ``start`` until ``stop``, and delivers up to four messages at once."""

    def __init__(self, client: "SQSClient", queue_url: str, function: LocalFunction) -> None:
        self._client = client
        self._queue_url = queue_url
        self._function = function
        self._stopping = threading.Event()
        self._free = threading.Semaphore(_AT_ONCE)
        self._thread = threading.Thread(target=self._poll, name="queue", daemon=True)

    def start(self) -> None:
        """Delivers from now on."""
        self._thread.start()

    def stop(self) -> None:
        """No message is delivered after this; a call that runs is left to end by itself."""
        self._stopping.set()

    def _poll(self) -> None:
        while not self._stopping.wait(_POLL_EVERY_S):
            try:
                while not self._stopping.is_set() and self._hand_out():
                    pass
            except (BotoCoreError, ClientError):
                self._complain()

    def _hand_out(self) -> bool:
        """Whether there was a message, and somebody free to take it."""
        if not self._free.acquire(blocking=False):
            return False
        messages: list[MessageTypeDef] = []
        try:
            answer = self._client.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=1,
                MessageSystemAttributeNames=["All"],
            )
            messages = answer.get("Messages", [])
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
            self._complain()
        finally:
            self._free.release()

    def _complain(self) -> None:
        # The queue goes away when the stack stops.
        if not self._stopping.is_set():
            print("the queue does not answer", file=sys.stderr)

    def _is_done(self, message: "MessageTypeDef") -> bool:
        try:
            answer = self._function.invoke({"Records": [_record(message)]})
        except FunctionCrashed:
            # Its traceback is on stderr already.
            return False
        except FunctionTimedOut:
            print(f"{self._function.name} did not end within its timeout", file=sys.stderr)
            return False
        failed = answer.get("batchItemFailures", []) if isinstance(answer, Mapping) else []
        return not failed


def _record(message: "MessageTypeDef") -> dict[str, Any]:
    """The message as Lambda hands it to a function.

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
