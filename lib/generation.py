"""The use case: reserve -> generate -> encode -> store -> settle, or refund.

What happens to the five credits is decided in the ledger alone, and the ledger decides before the
store is tidied: an image is only ever deleted after its generation is known to be refunded.

    reserve          the debit has committed before the first byte goes to the model
    fail afterwards  refund; should that fail too, the lease runs out and the reconciler refunds
    settle refused   the reconciler was here first: delete the image, answer 500
    settle unheard   the image is stored, so the answer is 200; the reconciler settles

An asynchronous generation is the same with a queue in the middle: ``accept`` reserves and queues,
``work`` takes the reservation over and fulfils it. Its row decides, not the message.
"""

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lib.deadline import AFTER_MODEL_S, JOB_WAITS_S, LEASE_S, WORKER_LEASE_S, Deadline
from lib.errors import (
    GenerationFailed,
    JobNotQueued,
    ReservationLost,
    ServiceUnavailable,
    StorageFailed,
    UnexpectedFailure,
)
from lib.jobs import Job, Jobs
from lib.ledger.ledger import Ledger, ReservationGone
from lib.ledger.order import Order
from lib.ledger.reservation import AlreadyAccepted
from lib.ledger.rows import Generation, Status
from lib.ledger.table import LedgerUnreachable
from lib.observability import Observation
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.png import to_png
from lib.picture.storage import CALL_TAKES_S, Images, KeyTaken, StorageUnreachable

__all__ = ["Accepted", "Finished", "Generations", "ImageModel"]

# A worker that finds no ledger makes room for the next; the queue delivers the job again.
FIRST_EXTENSION_WITHIN_S = 10.0
# The customer waits for nothing but this any more.
LAST_EXTENSION_WITHIN_S = 4.0
# What a request takes at most from its reservation until its job is queued and has a longer lease.
QUEUED_WITHIN_S = 20


class ImageModel(Protocol):
    """Whatever turns a prompt into the bytes of a picture."""

    def generate(self, prompt: str, ratio: AspectRatio, deadline: Deadline) -> bytes:
        """The picture, in any format; raises ``GenerationFailed`` by the deadline at the latest."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A paid image. ``replayed`` when it was paid by an earlier request with the same key."""

    image_url: str
    duration_ms: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """A paid image that is still to be made; it will be under ``image_url``.

    ``replayed`` when an earlier request with the same key paid for it.
    """

    generation_id: str
    image_url: str
    replayed: bool = False


class Generations:
    """Makes images and answers for their credits. ``clock`` gives epoch seconds."""

    def __init__(
        self,
        ledger: Ledger,
        model: ImageModel,
        images: Images,
        jobs: Jobs | None = None,
        *,
        key_suffix: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._model = model
        self._images = images
        self._jobs = jobs
        self._key_suffix = key_suffix
        self._clock = clock

    @property
    def takes_jobs(self) -> bool:
        """Whether there is a queue, so that ``accept`` can be called."""
        return self._jobs is not None

    def generate(self, order: Order, deadline: Deadline, observation: Observation) -> Finished:
        """One paid image, or the one that the order's idempotency key already paid for.

        Raises:
            RequestRejected, ServiceUnavailable: nothing was debited, or it will be refunded.
            GenerationFailed: the credits are back, or the reconciler brings them back.
        """
        try:
            self._images.prepare()
        except StorageUnreachable as fault:
            raise ServiceUnavailable from fault
        generation = self._reserve(order, deadline, observation)
        if generation.status is Status.SETTLED:
            return self._replayed(generation, observation)
        return self.fulfil(generation, deadline, observation)

    def accept(
        self, order: Order, deadline: Deadline, observation: Observation
    ) -> Accepted | Finished:
        """Reserves an asynchronous generation and queues it; nobody waits for the model.

        The reservation's lease is that of a request until the job is queued, so that it is refunded
        soon when this process dies before.

        Returns:
            A finished one when the order's idempotency key has its image already.

        Raises:
            RequestRejected, ServiceUnavailable: nothing was debited, or it will be refunded.
            JobNotQueued: the credits are back, or the reconciler brings them back.
        """
        try:
            generation = self._reserve(order, deadline, observation)
        except AlreadyAccepted as earlier:
            observation.count("Replays")
            if self._may_not_be_queued(earlier.generation):
                with contextlib.suppress(JobNotQueued):
                    self._queue(earlier.generation, deadline, observation)
            return self._accepted(earlier.generation, replayed=True)
        if generation.status is Status.SETTLED:
            return self._replayed(generation, observation)
        try:
            self._queue(generation, deadline, observation)
        except JobNotQueued as failure:
            return self._refund(generation, failure, deadline, observation)
        observation.count("Accepted")
        return self._accepted(generation)

    def work(self, job: Job, deadline: Deadline, observation: Observation) -> None:
        """Makes the image of an accepted generation, unless it has ended; harmless to repeat.

        Raises:
            LedgerUnreachable: before anything was begun; the queue delivers the job again.
        """
        with observation.timed("LedgerMs"):
            generation = self._ledger.extend_lease(
                job.organisation,
                job.created_ms,
                WORKER_LEASE_S,
                deadline.within(FIRST_EXTENSION_WITHIN_S),
            )
        if generation is None:
            observation.count("JobsAlreadyEnded")
            return
        observation.info(
            "job taken", organisation=generation.organisation, generation=generation.id
        )
        with contextlib.suppress(GenerationFailed):
            self.fulfil(generation, deadline, observation)

    def fulfil(
        self, generation: Generation, deadline: Deadline, observation: Observation
    ) -> Finished:
        """Makes, stores and settles the image of a reservation that is the caller's.

        Raises:
            GenerationFailed
        """
        began = time.monotonic()
        try:
            self._make_and_store(generation, deadline, observation)
        except GenerationFailed as failure:
            failed = failure
        except Exception as fault:  # noqa: BLE001 - after the debit, our own bugs are refunded too
            observation.warning("unexpected failure after the reservation", fault)
            failed = UnexpectedFailure()
            failed.__cause__ = fault
        else:
            duration_ms = round((time.monotonic() - began) * 1000)
            return self._settle(generation, duration_ms, deadline, observation)
        return self._refund(generation, failed, deadline, observation)

    def _reserve(self, order: Order, deadline: Deadline, observation: Observation) -> Generation:
        with observation.timed("LedgerMs"):
            return self._ledger.reserve(order, self._image_key(order.organisation), deadline)

    def _queue(self, generation: Generation, deadline: Deadline, observation: Observation) -> None:
        if self._jobs is None:
            raise JobNotQueued
        with observation.timed("QueueMs"):
            self._jobs.put(Job(generation.organisation, generation.created_ms), deadline)
        try:
            with observation.timed("LedgerMs"):
                self._ledger.extend_lease(
                    generation.organisation,
                    generation.created_ms,
                    JOB_WAITS_S,
                    deadline.within(LAST_EXTENSION_WITHIN_S),
                )
        except LedgerUnreachable as fault:
            # The worker does the same when the job comes to it, which is mostly at once.
            observation.warning("the lease of a queued generation stays short", fault)

    def _may_not_be_queued(self, generation: Generation) -> bool:
        """Whether the request that made it seems to have died before it queued the job.

        It has had its time, and the lease is still that of a request. A second message for a job
        would be harmless, but two workers would pay for two pictures.
        """
        created_s = generation.created_ms // 1000
        lease_is_short = (generation.due_at or 0) <= created_s + LEASE_S
        return lease_is_short and self._clock() > created_s + QUEUED_WITHIN_S

    def _make_and_store(
        self, generation: Generation, deadline: Deadline, observation: Observation
    ) -> None:
        ratio = generation.aspect_ratio
        with observation.timed("ModelMs"):
            picture = self._model.generate(
                generation.prompt, ratio, deadline.sooner_by(AFTER_MODEL_S)
            )
        with observation.timed("EncodeMs"):
            png = to_png(picture, ratio)
        with observation.timed("StoreMs"):
            self._images.put(generation.image_key, png, generation.attempt_id, deadline)

    def _settle(
        self,
        generation: Generation,
        duration_ms: int,
        deadline: Deadline,
        observation: Observation,
    ) -> Finished:
        try:
            with observation.timed("LedgerMs"):
                self._ledger.settle(generation, duration_ms, deadline)
        except ReservationGone as fault:
            self._delete(generation, observation)
            lost = ReservationLost()
            _report(lost, generation, observation)
            raise lost from fault
        except Exception as fault:  # noqa: BLE001 - the image is stored: the reconciler settles
            observation.count("SettlesLeftToReconciler")
            observation.warning("settle unheard: left to the reconciler", fault)
        return self._charged(generation, duration_ms, observation)

    def _refund(
        self,
        generation: Generation,
        failure: GenerationFailed,
        deadline: Deadline,
        observation: Observation,
    ) -> Finished:
        # Another delivery of a job may be storing its image now, or died before it was settled.
        in_doubt = generation.asynchronous or isinstance(failure, StorageFailed | UnexpectedFailure)
        may_be_stored = in_doubt and not isinstance(failure, KeyTaken)
        revisit_at = int(self._clock()) + generation.lease_s if may_be_stored else None
        try:
            with observation.timed("LedgerMs"):
                status = self._ledger.refund(generation, failure.code, deadline, revisit_at)
        except LedgerUnreachable as fault:
            observation.count("RefundFailures")
            observation.warning("refund failed: left to the reconciler", fault)
            _report(failure, generation, observation)
            raise failure from failure.__cause__
        if status is Status.SETTLED:
            observation.info("the reconciler had settled this generation", generation=generation.id)
            duration_ms = max(0, round(self._clock() * 1000) - generation.created_ms)
            return self._charged(generation, duration_ms, observation)
        observation.count("Refunds")
        if may_be_stored and deadline.remaining_s() > CALL_TAKES_S:
            self._delete(generation, observation)
        _report(failure, generation, observation)
        raise failure from failure.__cause__

    def _charged(
        self, generation: Generation, duration_ms: int, observation: Observation
    ) -> Finished:
        observation.count("Generations")
        observation.count("CreditsCharged", generation.credits)
        observation.info(
            "generation charged",
            organisation=generation.organisation,
            generation=generation.id,
            duration_ms=duration_ms,
        )
        return self._finished(generation, duration_ms)

    def _replayed(self, generation: Generation, observation: Observation) -> Finished:
        observation.count("Replays")
        return self._finished(generation, generation.duration_ms or 0, replayed=True)

    def _accepted(self, generation: Generation, *, replayed: bool = False) -> Accepted:
        return Accepted(generation.id, self._images.url(generation.image_key), replayed)

    def _finished(
        self, generation: Generation, duration_ms: int, *, replayed: bool = False
    ) -> Finished:
        return Finished(self._images.url(generation.image_key), duration_ms, replayed)

    def _delete(self, generation: Generation, observation: Observation) -> None:
        """Removes the image of a refunded generation; the reconciler comes by once more."""
        try:
            self._images.delete(generation.image_key)
        except StorageUnreachable as fault:
            observation.warning("an image of a refunded generation is left", fault)

    def _image_key(self, organisation: str) -> Callable[[int], str]:
        suffix = f"-{secrets.token_urlsafe(16)}" if self._key_suffix else ""
        return lambda created_ms: f"generated/gemini/{organisation}/{created_ms:013d}{suffix}.png"


def _report(failure: GenerationFailed, generation: Generation, observation: Observation) -> None:
    observation.count_failure(failure.code)
    observation.warning(
        "generation failed",
        failure.__cause__,
        organisation=generation.organisation,
        generation=generation.id,
        code=failure.code,
    )
