"""Errors after the reservation, which is refunded, or whose outcome is open."""

from collections.abc import Mapping
from typing import ClassVar

from lib.errors.service_error import ServiceError

__all__ = [
    "ContentRejected",
    "GenerationFailed",
    "JobNotQueued",
    "ModelBudgetExhausted",
    "ModelOverloaded",
    "ModelTimedOut",
    "ModelUnavailable",
    "NoImageReturned",
    "OutcomePending",
    "ReservationLost",
    "StorageFailed",
    "UnexpectedFailure",
    "public_message",
]


class GenerationFailed(ServiceError):
    """A failure after the reservation, which is refunded. ``message`` is one of a closed list.

    ``may_be_stored`` says that the image may be in the store, or may still arrive there.
    ``counts_against_limit`` is False where the customer's prompt has no part in the failure: such
    an attempt does not use up the rate limit. ``reason`` tells an operator which rule decided: a
    constant of this service, or None.
    """

    code = "generation_failed"
    error = "Failed to generate image"
    message: ClassVar[str]
    counts_against_limit: ClassVar[bool] = False

    def __init__(
        self,
        retry_after_s: int | None = None,
        *,
        reason: str | None = None,
        may_be_stored: bool = False,
    ) -> None:
        super().__init__(self.code)
        self.retry_after_s = retry_after_s
        self.reason = reason
        self.may_be_stored = may_be_stored

    @property
    def is_fault(self) -> bool:
        return not self.counts_against_limit

    def log_fields(self) -> dict[str, object]:
        """What a log line says about the failure beside its code: constants and sizes."""
        return {} if self.reason is None else {"reason": self.reason}


class ContentRejected(GenerationFailed):
    """The prompt or the picture was refused: safety, blocklist, recitation or a block."""

    code = "content_rejected"
    message = "Content policy violation"
    counts_against_limit = True


class NoImageReturned(GenerationFailed):
    """The model's answer holds no usable picture. ``facts`` are for a log line about it."""

    code = "no_image"
    message = "The model returned no image"
    counts_against_limit = True

    def __init__(
        self, reason: str | None = None, facts: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(reason=reason)
        self._facts = facts or {}

    def log_fields(self) -> dict[str, object]:
        return {**super().log_fields(), **self._facts}


class ModelTimedOut(GenerationFailed):
    """The model sent no picture by the deadline."""

    code = "model_timeout"
    message = "Image generation timed out"
    should_retry = True
    hint = "Send the header `Prefer: respond-async` to give a slow model minutes"


class ModelOverloaded(GenerationFailed):
    """The model has no capacity: a used-up quota, an overload, or a fault of its own."""

    code = "model_overloaded"
    message = "The image model is overloaded"
    should_retry = True

    def __init__(self, retry_after_s: int = 10, *, reason: str | None = None) -> None:
        super().__init__(retry_after_s, reason=reason)


class ModelBudgetExhausted(GenerationFailed):
    """Google's billing refuses: an operator must top up, raise a cap or raise the tier."""

    code = "model_budget_exhausted"
    message = "Image generation is unavailable"


class StorageFailed(GenerationFailed):
    """The object store did not confirm the picture."""

    code = "storage_failed"
    message = "The image could not be stored"
    should_retry = True


class JobNotQueued(GenerationFailed):
    """The queue did not confirm an accepted generation; ``may_be_queued`` says it may have it."""

    code = "queue_failed"
    message = "Image generation is unavailable"
    should_retry = True

    def __init__(self, *, may_be_queued: bool = False) -> None:
        super().__init__()
        self.may_be_queued = may_be_queued


class ModelUnavailable(GenerationFailed):
    """Google refuses the service's key, model or region: an operator must act."""

    code = "model_unavailable"
    message = "Image generation is unavailable"


class ReservationLost(GenerationFailed):
    """The reconciler refunded the generation before it was settled; its picture is removed."""

    code = "reservation_lost"
    message = "Image generation timed out"
    should_retry = True


class UnexpectedFailure(GenerationFailed):
    """A bug in this service, met after the debit. It is refunded like any other failure."""

    code = "internal_error"
    message = "Image generation is unavailable"
    should_retry = True


class OutcomePending(ServiceError):
    """The ending could not be written: the reservation settles or is refunded later."""

    code = "outcome_pending"
    error = "Failed to generate image"
    message = "Image generation timed out"
    hint = "The outcome is not known yet: get the generation at Location until it has ended"
    credits_charged = 5
    retry_after_s = 60

    def __init__(self, generation_id: str) -> None:
        super().__init__(self.code)
        self.generation_id = generation_id

    def headers(self) -> dict[str, str]:
        return super().headers() | {"Location": f"/api/v1/generations/{self.generation_id}"}


def public_message(code: str) -> str:
    """The public message of a generation refunded with ``code``; an unknown one is a timeout."""
    known = {failure.code: failure.message for failure in GenerationFailed.__subclasses__()}
    return known.get(code, ModelTimedOut.message)
