"""The use case: reserve -> generate -> encode -> store -> settle, or refund.

The ledger alone decides what happens to the 5 credits, and it decides before the store is cleaned
up: an image is deleted only after its generation is known to be refunded.

    reserve           commits before the first byte goes to the model
    failure after it  refund; if that fails too, the lease expires and the reconciler refunds
    settle refused    the reconciler refunded first: delete the image, respond with 500
    settle lost       the image is stored, so respond with 200; the reconciler settles

An asynchronous generation has a queue in the middle: ``accept`` reserves and queues, ``work``
extends the lease and fulfils the reservation. The row decides, not the message.
"""

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lib.deadline import (
    AFTER_MODEL_S,
    FIRST_EXTENSION_WITHIN_S,
    JOB_WAITS_S,
    LAST_EXTENSION_WITHIN_S,
    LEASE_S,
    QUEUED_WITHIN_S,
    STORAGE_CALL_S,
    WORKER_LEASE_S,
    Deadline,
)
from lib.errors import (
    GenerationFailed,
    JobNotQueued,
    ReservationLost,
    ServiceUnavailable,
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
from lib.picture.storage import Images, KeyTaken, StorageUnreachable

__all__ = ["Accepted", "Finished", "Generations", "ImageModel"]


class ImageModel(Protocol):
    """Turns a prompt into the bytes of a picture."""

    def generate(self, prompt: str, ratio: AspectRatio, deadline: Deadline) -> bytes:
        """The picture, in any format; raises ``GenerationFailed``. Returns by the deadline."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A paid image. ``replayed`` if an earlier request with the same key paid for it."""

    image_url: str
    duration_ms: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """A paid image that is still in progress; it will be at ``image_url``.

    ``replayed`` if an earlier request with the same key paid for it.
    """

    generation_id: str
    image_url: str
    replayed: bool = False


class Generations:
    """Makes images and accounts for their credits. ``clock`` gives epoch seconds."""

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
        """Whether there is a queue, so that ``accept`` is possible."""
        return self._jobs is not None

    def generate(self, order: Order, deadline: Deadline, observation: Observation) -> Finished:
        """One paid image, or the one that the order's idempotency key already paid for.

        Raises:
            RequestRejected, ServiceUnavailable: nothing was debited, or the reconciler refunds it.
            GenerationFailed: the credits are refunded, or the reconciler refunds them.
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
        """Reserves an asynchronous generation and queues it, without waiting for the model.

        Until the job is queued the lease is that of a request, so that a reservation whose process
        dies here is refunded soon.

        Returns:
            ``Finished`` if the order's idempotency key already has its image.

        Raises:
            RequestRejected, ServiceUnavailable: nothing was debited, or the reconciler refunds it.
            JobNotQueued: the credits are refunded, or the reconciler refunds them.
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
        """Makes the image of an accepted generation, unless it has ended; safe to repeat.

        Raises:
            LedgerUnreachable: before anything was begun; the queue redelivers the job.
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
            "job begun", organisation=generation.organisation, generation=generation.id
        )
        with contextlib.suppress(GenerationFailed):
            self.fulfil(generation, deadline, observation)

    def fulfil(
        self, generation: Generation, deadline: Deadline, observation: Observation
    ) -> Finished:
        """Makes, stores and settles the image of the caller's reservation.

        Raises:
            GenerationFailed
        """
        began = time.monotonic()
        try:
            self._make_and_store(generation, deadline, observation)
        except GenerationFailed as failure:
            failed = failure
        except Exception as fault:  # noqa: BLE001 - after the debit, a bug is refunded too
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
            # The worker extends the lease too, usually within a second.
            observation.warning("the lease of a queued generation stays short", fault)

    def _may_not_be_queued(self, generation: Generation) -> bool:
        """Whether the request that reserved it probably died before it queued the job.

        Its time is over, and the lease is still that of a request. A second message is safe for the
        credits, but two workers would pay Google for two pictures.
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
            observation.warning("settle failed: left to the reconciler", fault)
        return self._charged(generation, duration_ms, observation)

    def _refund(
        self,
        generation: Generation,
        failure: GenerationFailed,
        deadline: Deadline,
        observation: Observation,
    ) -> Finished:
        # Another delivery of the job may be storing its image, or may have died before settling.
        may_be_stored = failure.may_be_stored or (
            generation.asynchronous and not isinstance(failure, KeyTaken)
        )
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
        if may_be_stored and deadline.remaining_s() > STORAGE_CALL_S:
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
        """Removes the image of a refunded generation; the reconciler looks once more later."""
        try:
            self._images.delete(generation.image_key)
        except StorageUnreachable as fault:
            observation.warning("the image of a refunded generation remains", fault)

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
