"""Asynchronous generations: accept an order and queue it; later, a worker fulfils it.

    accept   reserve, send a message, extend the lease: the customer has a 202
    work     extend the lease, then fulfil as for a request

A message carries the generation's identity and nothing of the request: the row has that, and the
row decides. So a message may arrive twice, late, out of order, or for a generation that has ended.
A job whose image may be stored is delivered again, and that delivery looks into the store before it
draws.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from lib.clients import is_transient, may_have_taken_effect
from lib.deadline import (
    FIRST_EXTENSION_WITHIN_S,
    JOB_WAITS_S,
    LAST_EXTENSION_WITHIN_S,
    LEDGER_CALL_S,
    MAX_SENDS,
    QUEUE_CALL_S,
    WORKER_LEASE_S,
    Deadline,
)
from lib.errors import GenerationFailed, JobNotQueued, OutcomePending, ServiceUnavailable
from lib.generation import Accepted, Finished, Generations, bugs_leave_it_open
from lib.keys.format import is_organisation
from lib.ledger.endings import Ending
from lib.ledger.ledger import Ledger
from lib.ledger.order import Order
from lib.ledger.reconciliation import Reconciler
from lib.ledger.rows import Generation, Status, parse_id
from lib.ledger.table import LedgerUnreachable
from lib.observability import Observation
from lib.picture.storage import Images, StorageUnreachable

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["Job", "JobQueue", "Jobs", "UnreadableJob"]

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


class JobQueue:
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
            JobNotQueued: no send was confirmed. With ``may_be_queued`` the message may be in the
                queue all the same.
        """
        may_be_queued = False
        for tries in range(1, MAX_SENDS + 1):
            try:
                self._client.send_message(QueueUrl=self._queue_url, MessageBody=job.to_message())
            except (ClientError, BotoCoreError) as fault:
                may_be_queued = may_be_queued or may_have_taken_effect(fault)
                is_final = isinstance(fault, ClientError) and not is_transient(fault)
                no_time = deadline.remaining_s() < QUEUE_CALL_S + LEDGER_CALL_S
                if is_final or no_time or tries == MAX_SENDS:
                    raise JobNotQueued(may_be_queued=may_be_queued) from fault
            else:
                return
            self._sleep(0.1 * tries)


class Jobs:
    """Accepts orders and works on them. ``clock`` gives epoch seconds; a worker needs no queue."""

    def __init__(
        self,
        generations: Generations,
        ledger: Ledger,
        images: Images,
        queue: JobQueue | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._generations = generations
        self._ledger = ledger
        self._images = images
        self._reconciler = Reconciler(ledger, images, clock)
        self._queue = queue

    def accept(
        self, order: Order, deadline: Deadline, observation: Observation
    ) -> Accepted | Finished:
        """Reserves a generation and queues it, without waiting for the model.

        Until the job is queued the lease is that of a request, so that a reservation whose process
        dies here is refunded soon.

        Returns:
            ``Finished`` if the order's idempotency key already has its image.

        Raises:
            RequestRejected, ServiceUnavailable: nothing was debited, or the reconciler refunds it.
            JobNotQueued: the credits are refunded, or the reconciler refunds them.
            ReservationLost: a retry, which took this request for dead, had the credits refunded.
            OutcomePending: the job may be in the queue, and its refund failed.
        """
        if self._queue is None:
            raise ServiceUnavailable
        reserved = self._generations.reserve(order, deadline, observation)
        if not isinstance(reserved, Generation):
            return reserved
        with bugs_leave_it_open(reserved, observation):
            return self._enqueue(self._queue, reserved, deadline, observation)

    def work(
        self, job: Job, deadline: Deadline, observation: Observation, *, redelivered: bool = False
    ) -> None:
        """Makes the image of an accepted generation, unless it has ended; safe to repeat.

        Raises:
            LedgerUnreachable: before anything was begun; the queue must redeliver the job.
            OutcomePending: the image may be stored; the queue must redeliver the job.
        """
        with observation.timed("LedgerMs"):
            generation = self._ledger.extend_lease(
                job.organisation,
                job.created_ms,
                WORKER_LEASE_S,
                deadline.within(FIRST_EXTENSION_WITHIN_S),
            )
        if generation is None or generation.status is not Status.RESERVED:
            observation.count("JobsAlreadyEnded")
            return
        observation.identify(
            organisation=generation.organisation, generation=generation.id, key=generation.key_id
        )
        observation.info("job begun")
        if redelivered and self._ended_by_earlier_delivery(generation, deadline, observation):
            return
        try:
            self._generations.fulfil(generation, deadline, observation)
        except GenerationFailed as failure:
            observation.count_job(failure)
        else:
            observation.count_job()

    def _enqueue(
        self,
        queue: JobQueue,
        generation: Generation,
        deadline: Deadline,
        observation: Observation,
    ) -> Accepted | Finished:
        try:
            with observation.timed("QueueMs"):
                queue.put(Job(generation.organisation, generation.created_ms), deadline)
        except JobNotQueued as failure:
            return self._generations.refund(generation, failure, deadline, observation)
        try:
            with observation.timed("LedgerMs"):
                queued = self._ledger.extend_lease(
                    generation.organisation,
                    generation.created_ms,
                    JOB_WAITS_S,
                    deadline.within(LAST_EXTENSION_WITHIN_S),
                )
        except LedgerUnreachable as fault:
            # The worker extends the lease too, usually within a second.
            observation.warning("the lease of a queued generation stays short", fault)
        else:
            if queued is not None and queued.status is Status.REFUNDED:
                # A retry gave this request up while it was queueing the job.
                raise self._generations.lost(generation, observation)
        observation.count("Accepted")
        return self._generations.accepted(generation)

    def _ended_by_earlier_delivery(
        self, generation: Generation, deadline: Deadline, observation: Observation
    ) -> bool:
        """Ends the job if an earlier delivery left an image, or a tombstone, in the store."""
        try:
            if self._images.read(generation.image_key) is None:
                return False
            ending = self._reconciler.end(generation, deadline)
        except StorageUnreachable as fault:
            raise OutcomePending(generation.id) from fault
        observation.info("job ended by a redelivery", generation=generation.id, ending=ending)
        if ending is Ending.SETTLED:
            observation.count("Generations")
            observation.count("CreditsCharged", generation.credits)
        elif ending is Ending.REFUNDED:
            observation.count("Refunds")
        return True
