"""The use case: reserve -> generate -> encode -> store -> settle, or refund.

What happens to the five credits is decided in the ledger alone, and the ledger decides before the
store is tidied: an image is only ever deleted after its generation is known to be refunded.

    reserve          the debit has committed before the first byte goes to the model
    fail afterwards  refund; should that fail too, the lease runs out and the reconciler refunds
    settle refused   the reconciler was here first: delete the image, answer 500
    settle unheard   the image is stored, so the answer is 200; the reconciler settles
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lib.deadline import AFTER_MODEL_S, LEASE_S, Deadline
from lib.errors import (
    GenerationFailed,
    ReservationLost,
    ServiceUnavailable,
    StorageFailed,
    UnexpectedFailure,
)
from lib.ledger import Ledger, Order, ReservationGone
from lib.ledger_rows import Generation, Status
from lib.models import AspectRatio
from lib.observability import Observation
from lib.png import to_png
from lib.storage import CALL_TAKES_S, Images, KeyTaken, StorageUnreachable
from lib.table import LedgerUnreachable

__all__ = ["Finished", "Generations", "ImageModel"]


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


class Generations:
    """Makes images and answers for their credits. ``clock`` gives epoch seconds."""

    def __init__(
        self,
        ledger: Ledger,
        model: ImageModel,
        images: Images,
        *,
        key_suffix: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._model = model
        self._images = images
        self._key_suffix = key_suffix
        self._clock = clock

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
        with observation.timed("LedgerMs"):
            generation = self._ledger.reserve(order, self._image_key(order.organisation), deadline)
        if generation.status is Status.SETTLED:
            observation.count("Replays")
            return self._finished(generation, generation.duration_ms or 0, replayed=True)
        return self.fulfil(generation, deadline, observation)

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

    def _make_and_store(
        self, generation: Generation, deadline: Deadline, observation: Observation
    ) -> None:
        ratio = AspectRatio(generation.aspect_ratio)
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
        in_doubt = isinstance(failure, StorageFailed | UnexpectedFailure)
        may_be_stored = in_doubt and not isinstance(failure, KeyTaken)
        revisit_at = int(self._clock()) + LEASE_S if may_be_stored else None
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
