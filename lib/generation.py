"""The use case: reserve -> generate -> encode -> store -> settle, or refund.

The ledger alone decides what happens to the 5 credits, and it decides before the store is cleaned
up: an image is deleted only after its generation is known to be refunded.

    reserve           commits before the first byte goes to the model
    failure after it  refund; if that fails too, the lease expires and the reconciler refunds
    store in doubt    a tombstone decides (``lib.ledger.endings``): settle or refund
    still in doubt    respond that the outcome is pending; the reconciler decides
    settle refused    the reconciler refunded first: delete the image, respond with 500
    settle lost       the image is stored, so respond with 200; the reconciler settles
    deleted           the customer was faster: delete the image, respond with 200; it is charged

An asynchronous generation has a queue in the middle: see ``lib.jobs``.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from lib.deadline import (
    AFTER_MODEL_S,
    IN_FLIGHT_RETRY_AFTER_S,
    SETTLE_WITHIN_S,
    STORAGE_CALL_S,
    Deadline,
)
from lib.errors import (
    Busy,
    ContentRejected,
    GenerationFailed,
    ImageDeleted,
    JobNotQueued,
    OutcomePending,
    ReservationLost,
    ServiceError,
    ServiceUnavailable,
    UnexpectedFailure,
)
from lib.ledger.endings import Ending, Endings
from lib.ledger.ledger import KeyInFlight, Ledger, ReservationGone
from lib.ledger.order import Order
from lib.ledger.reconciliation import Reconciler
from lib.ledger.refusals import Refusals
from lib.ledger.replay import Replay, Replays
from lib.ledger.rows import Generation, Status
from lib.ledger.table import LedgerUnreachable
from lib.observability import Observation
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.png import to_png
from lib.picture.storage import FoundImage, Images, KeyTaken, StorageUnreachable

__all__ = ["Accepted", "Finished", "Generations", "ImageModel", "bugs_leave_it_open"]

RANDOM_DIGITS = 39


class ImageModel(Protocol):
    """Turns a prompt into the bytes of a picture."""

    def generate(self, prompt: str, ratio: AspectRatio, deadline: Deadline) -> bytes:
        """The picture, in any format; raises ``GenerationFailed``. Returns by the deadline."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A paid image. ``replayed`` if an earlier request with the same key paid for it.

    ``png`` is the image if this request stored it, or if the order wants it. ``created_ms`` is in
    epoch milliseconds.
    """

    image_url: str
    duration_ms: int
    replayed: bool = False
    created_ms: int = 0
    png: bytes | None = field(default=None, repr=False)


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
        refusals: Refusals | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._model = model
        self._images = images
        self._endings = Endings(ledger, images, clock)
        self._reconciler = Reconciler(ledger, images, clock)
        self._replays = Replays(self._reconciler, clock)
        self._refusals = refusals
        self._clock = clock

    def generate(
        self, order: Order, deadline: Deadline, observation: Observation
    ) -> Finished | Accepted:
        """One paid image, or the one that the order's idempotency key already paid for.

        Raises:
            RequestRejected, ServiceUnavailable: nothing was debited, or the reconciler refunds it.
            GenerationFailed: the credits are refunded, or the reconciler refunds them.
            OutcomePending: the reconciler settles or refunds.
        """
        try:
            self._images.prepare()
        except StorageUnreachable as fault:
            raise ServiceUnavailable from fault
        reserved = self.reserve(order, deadline, observation)
        if not isinstance(reserved, Generation):
            return reserved
        with bugs_leave_it_open(reserved, observation):
            return self.fulfil(reserved, deadline, observation)

    def fulfil(
        self, generation: Generation, deadline: Deadline, observation: Observation
    ) -> Finished:
        """Makes, stores and settles the image of the caller's reservation.

        Raises:
            GenerationFailed: it is refunded, or the reconciler refunds it.
            OutcomePending: its image may be stored; the reconciler settles or refunds it.
        """
        began = time.monotonic()
        png: bytes | None = None
        try:
            png = self._draw(generation, deadline, observation)
            with observation.timed("StoreMs"):
                sha256 = self._images.put(
                    generation.image_key, png, generation.attempt_id, deadline
                )
        except GenerationFailed as failure:
            failed = failure
        except Exception as fault:  # noqa: BLE001 - after the debit, a bug is refunded too
            observation.count("UnexpectedErrors")
            observation.warning("unexpected failure after the reservation", fault)
            failed = UnexpectedFailure(may_be_stored=png is not None)
            failed.__cause__ = fault
        else:
            duration_ms = round((time.monotonic() - began) * 1000)
            paid = self._settle(generation, duration_ms, sha256, deadline, observation)
            return replace(paid, png=png)
        return self.refund(generation, failed, deadline, observation)

    def reserve(
        self, order: Order, deadline: Deadline, observation: Observation
    ) -> Generation | Finished | Accepted:
        """A reservation for the caller to fulfil, or what the idempotency key already stands for.

        An abandoned reservation under the key is never adopted: it is ended, and then a new one is
        made, unless its image turned out to be stored.
        """
        for _ in range(2):
            try:
                with observation.timed("LedgerMs"):
                    generation = self._ledger.reserve(
                        order, partial(_image_key, order.organisation), deadline
                    )
            except KeyInFlight as earlier:
                replay = self._replay(earlier.generation, order, deadline, observation)
                if replay is not None:
                    return replay
                continue
            observation.identify(generation=generation.id)
            if generation.status is Status.SETTLED:
                observation.count("Replays")
                return self._replayed(generation, generation.duration_ms or 0, order, deadline)
            return generation
        raise Busy(IN_FLIGHT_RETRY_AFTER_S)

    def _replay(
        self, earlier: Generation, order: Order, deadline: Deadline, observation: Observation
    ) -> Finished | Accepted | None:
        """The response that ``earlier`` stands for; None once the idempotency key is free."""
        match self._replays.resolve(earlier, deadline, asynchronous=order.asynchronous):
            case Replay.KEY_FREE:
                observation.count("AbandonedReservationsRefunded")
                return None
            case Replay.ACCEPTED:
                observation.count("Replays")
                return self.accepted(earlier, replayed=True)
            case Replay.SETTLED:
                observation.count("Replays")
                return self._replayed(earlier, self._age_ms(earlier), order, deadline)

    def _draw(self, generation: Generation, deadline: Deadline, observation: Observation) -> bytes:
        with observation.timed("ModelMs"):
            picture = self._model.generate(
                generation.prompt, generation.aspect_ratio, deadline.sooner_by(AFTER_MODEL_S)
            )
        with observation.timed("EncodeMs"):
            return to_png(picture, generation.aspect_ratio)

    def _settle(
        self,
        generation: Generation,
        duration_ms: int,
        image_sha256: str | None,
        deadline: Deadline,
        observation: Observation,
    ) -> Finished:
        try:
            with observation.timed("LedgerMs"):
                settle_by = deadline.within(SETTLE_WITHIN_S)
                may_stay = self._ledger.settle(generation, duration_ms, settle_by, image_sha256)
        except ReservationGone as fault:
            self._delete(generation, observation)
            raise self.lost(generation, observation) from fault
        except Exception as fault:  # noqa: BLE001 - the image is stored: the reconciler settles
            observation.count("SettlesLeftToReconciler")
            observation.warning("settle failed: left to the reconciler", fault)
        else:
            if not may_stay:
                self._delete(generation, observation)
        return self._charged(generation, duration_ms, observation)

    def refund(
        self,
        generation: Generation,
        failure: GenerationFailed,
        deadline: Deadline,
        observation: Observation,
    ) -> Finished:
        """Refunds a failed generation and raises ``failure``, unless its image is stored after all.

        Raises:
            GenerationFailed: ``failure``; it is refunded, or can never be settled any more.
            OutcomePending: it may still be settled.
        """
        may_be_queued = isinstance(failure, JobNotQueued) and failure.may_be_queued
        # Another delivery of the job may be storing its image, and then removes it; if it dies
        # before that, the reconciler's next visit does.
        is_job = generation.asynchronous and not isinstance(failure, JobNotQueued)
        try:
            with observation.timed("LedgerMs"):
                ending = self._endings.refund(
                    generation,
                    failure.code,
                    deadline,
                    in_doubt=failure.may_be_stored,
                    # A worker may be drawing already, or a tombstone took the image's key.
                    revisit=is_job or may_be_queued or isinstance(failure, KeyTaken),
                    frees_place=not failure.counts_against_limit,
                )
        except StorageUnreachable as fault:
            _report(failure, generation, observation)
            raise _pending(generation, observation) from fault
        except LedgerUnreachable as fault:
            observation.count("RefundFailures")
            observation.warning("refund failed: left to the reconciler", fault)
            _report(failure, generation, observation)
            if may_be_queued:
                raise _pending(generation, observation) from fault
            # No image can arrive any more: the reservation can only be refunded.
            raise failure from failure.__cause__
        if isinstance(ending, FoundImage):
            age_ms = self._age_ms(generation)
            return self._settle(generation, age_ms, ending.sha256, deadline, observation)
        if ending.is_charged:
            return self._charged(generation, self._age_ms(generation), observation)
        if ending is Ending.REFUNDED:
            observation.count("Refunds")
            if isinstance(failure, ContentRejected):
                self._count_refusal(generation.organisation, deadline, observation)
        _report(failure, generation, observation)
        raise failure from failure.__cause__

    def _count_refusal(
        self, organisation: str, deadline: Deadline, observation: Observation
    ) -> None:
        if self._refusals is None:
            return
        try:
            if self._refusals.count(organisation, deadline):
                observation.count("OrganisationsSuspended")
                observation.warning("suspended after refused prompts", organisation=organisation)
        except LedgerUnreachable as fault:
            observation.warning("a refused prompt was not counted", fault)

    def _charged(
        self, generation: Generation, duration_ms: int, observation: Observation
    ) -> Finished:
        observation.count("Generations")
        observation.count("CreditsCharged", generation.credits)
        observation.identify(generation=generation.id, duration_ms=duration_ms)
        return self._finished(generation, duration_ms)

    def lost(self, generation: Generation, observation: Observation) -> ReservationLost:
        """The error of a request whose reservation was refunded before it was done with it."""
        lost = ReservationLost()
        _report(lost, generation, observation)
        return lost

    def accepted(self, generation: Generation, *, replayed: bool = False) -> Accepted:
        """The outcome of a generation that is queued."""
        return Accepted(generation.id, self._images.url(generation.image_key), replayed)

    def _replayed(
        self, generation: Generation, duration_ms: int, order: Order, deadline: Deadline
    ) -> Finished:
        """The image that an earlier request paid for, read from the store if the order wants it.

        Raises:
            ServiceUnavailable: the store does not answer; a retry gets the image.
            ImageDeleted: it is no longer there.
        """
        replayed = replace(self._finished(generation, duration_ms), replayed=True)
        if not order.wants_png:
            return replayed
        if deadline.remaining_s() < STORAGE_CALL_S:
            raise ServiceUnavailable
        try:
            stored = self._images.read(generation.image_key)
        except StorageUnreachable as fault:
            raise ServiceUnavailable from fault
        if stored is None:
            raise ImageDeleted
        return replace(replayed, png=stored.content)

    def _finished(self, generation: Generation, duration_ms: int) -> Finished:
        url = self._images.url(generation.image_key)
        return Finished(url, duration_ms, created_ms=generation.created_ms)

    def _delete(self, generation: Generation, observation: Observation) -> None:
        """Removes the image of a generation that lost it; the reconciler looks once more later."""
        try:
            self._images.delete(generation.image_key)
        except StorageUnreachable as fault:
            observation.warning("an image that has to go remains", fault)

    def _age_ms(self, generation: Generation) -> int:
        return max(0, round(self._clock() * 1000) - generation.created_ms)


def _image_key(organisation: str, created_ms: int) -> str:
    """The key of a new image: sorted by time, and not to be guessed from the keys of others.

    13 digits of time and 39 random ones, which are 129 bits from the operating system's generator.
    """
    name = f"{created_ms:013d}{secrets.randbelow(10**RANDOM_DIGITS):0{RANDOM_DIGITS}d}"
    return f"generated/gemini/{organisation}/{name}.png"


@contextlib.contextmanager
def bugs_leave_it_open(generation: Generation, observation: Observation) -> Iterator[None]:
    """Says of an unexpected failure after the reservation that the outcome is pending."""
    try:
        yield
    except ServiceError:
        raise
    except Exception as fault:
        observation.count("UnexpectedErrors")
        raise _pending(generation, observation) from fault


def _pending(generation: Generation, observation: Observation) -> OutcomePending:
    observation.count("OutcomesPending")
    observation.warning(
        "outcome pending: left to the reconciler",
        organisation=generation.organisation,
        generation=generation.id,
    )
    return OutcomePending(generation.id)


def _report(failure: GenerationFailed, generation: Generation, observation: Observation) -> None:
    observation.count_failure(failure.code)
    observation.warning(
        "generation failed",
        failure.__cause__,
        organisation=generation.organisation,
        generation=generation.id,
        code=failure.code,
        **failure.log_fields(),
    )
