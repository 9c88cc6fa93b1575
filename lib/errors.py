"""Every way a request can end badly, as one tree.

    ServiceError
    ├── RequestRejected                nothing was debited
    │   ├── InvalidRequest       400   the sentence says what to change
    │   ├── Unauthorized         401   one sentence for every cause
    │   ├── InsufficientCredits  402   carries the balance
    │   ├── OrganisationSuspended 403  an operator suspended the organisation
    │   ├── NotFound             404   also for another organisation's generation
    │   ├── MethodNotAllowed     405   names the methods of the path
    │   ├── GenerationInFlight   409   a request with this idempotency key is in progress
    │   ├── GenerationInProgress 409   it has no receipt before it has ended
    │   ├── BodyTooLarge         413
    │   ├── IdempotencyKeyReused 422   the key was used with another body
    │   ├── RateLimited          429   the organisation used up this minute's requests
    │   └── Busy                 429   no reservation could be made in time; try again
    ├── GenerationFailed         500   after the reservation, which is refunded
    │   ├── ContentRejected            Content policy violation
    │   ├── NoImageReturned            The model returned no image
    │   ├── ModelTimedOut              Image generation timed out
    │   ├── ModelOverloaded            The image model is overloaded
    │   ├── ModelBudgetExhausted       Image generation is unavailable (top up, or raise the tier)
    │   ├── StorageFailed              The image could not be stored
    │   ├── JobNotQueued               Image generation is unavailable (asynchronous only)
    │   ├── ModelUnavailable           Image generation is unavailable (an operator must act)
    │   ├── ReservationLost            Image generation timed out (the reconciler refunded it)
    │   └── UnexpectedFailure          Image generation is unavailable (a bug in this service)
    ├── OutcomePending           500   after the reservation: settled or refunded later
    └── ServiceUnavailable       500   a dependency failed before the debit

``status``, ``code`` (sent as ``X-Error-Code``), ``should_retry`` (``X-Should-Retry``),
``credits_charged`` (``X-Credits-Charged``) and the public texts are the contract. An exception
of this tree carries nothing that must not reach a customer or a log: its cause is ``__cause__``.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar

__all__ = [
    "BodyTooLarge",
    "Busy",
    "ContentRejected",
    "GenerationFailed",
    "GenerationInFlight",
    "GenerationInProgress",
    "IdempotencyKeyReused",
    "InsufficientCredits",
    "InvalidRequest",
    "JobNotQueued",
    "MethodNotAllowed",
    "ModelBudgetExhausted",
    "ModelOverloaded",
    "ModelTimedOut",
    "ModelUnavailable",
    "NoImageReturned",
    "NotFound",
    "OrganisationSuspended",
    "OutcomePending",
    "RateLimited",
    "RequestRejected",
    "ReservationLost",
    "ServiceError",
    "ServiceUnavailable",
    "StorageFailed",
    "Unauthorized",
    "UnexpectedFailure",
    "public_message",
]


class ServiceError(Exception):
    """An error response: ``status``, ``code``, a JSON body and headers.

    ``retry_after_s`` is in whole seconds; ``message`` and ``hint`` are in the body where they are
    not None.
    """

    status: ClassVar[int] = 500
    code: str = "internal_error"
    error: str = "Internal error"
    message: ClassVar[str | None] = None
    hint: ClassVar[str | None] = None
    should_retry: ClassVar[bool] = False
    retry_after_s: int | None = None
    credits_charged: ClassVar[int] = 0

    @property
    def is_fault(self) -> bool:
        """Whether the service or one that it depends on failed; alarms watch the share of these."""
        return True

    def body(self) -> dict[str, object]:
        """The JSON body of the response."""
        fields = {"error": self.error, "message": self.message, "hint": self.hint}
        return {name: text for name, text in fields.items() if text is not None}

    def headers(self) -> dict[str, str]:
        """The headers that this error adds to the response."""
        headers = {
            "X-Error-Code": self.code,
            "X-Should-Retry": "true" if self.should_retry else "false",
        }
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        return headers


class RequestRejected(ServiceError):
    """Refused before anything was debited."""

    @property
    def is_fault(self) -> bool:
        return False


class InvalidRequest(RequestRejected):
    """The request is malformed; ``sentence`` tells the customer what to change."""

    status = 400

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code)
        self.code = code
        self.error = sentence


class Unauthorized(RequestRejected):
    """The same words whether the key is missing, malformed, unknown, revoked or expired."""

    status = 401
    code = "unauthorized"
    error = "Invalid or missing API key"

    def headers(self) -> dict[str, str]:
        return super().headers() | {"WWW-Authenticate": "Bearer"}


class InsufficientCredits(RequestRejected):
    """The balance is below the price."""

    status = 402
    code = "insufficient_credits"
    error = "Insufficient credits"

    def __init__(self, required: int, remaining: int) -> None:
        super().__init__(self.code)
        self.required = required
        self.remaining = remaining

    def body(self) -> dict[str, object]:
        return {
            "error": self.error,
            "creditsRequired": self.required,
            "creditsRemaining": self.remaining,
        }


class OrganisationSuspended(RequestRejected):
    """An operator suspended the organisation. It can still read, and accepted jobs go on."""

    status = 403
    code = "organisation_suspended"
    error = "This organisation is suspended"


class NotFound(RequestRejected):
    """It does not exist, or it belongs to another organisation."""

    status = 404
    code = "not_found"
    error = "Not found"


class MethodNotAllowed(RequestRejected):
    """The path exists, with other methods."""

    status = 405
    code = "method_not_allowed"
    error = "Method not allowed"

    def __init__(self, allowed: Iterable[str]) -> None:
        super().__init__(self.code)
        self.allowed = ", ".join(sorted(allowed))

    def headers(self) -> dict[str, str]:
        return super().headers() | {"Allow": self.allowed}


class BodyTooLarge(RequestRejected):
    """The body is over the limit and was not parsed."""

    status = 413
    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(self.code)
        self.error = f"The request body is larger than {limit_bytes // 1024} KiB"


class IdempotencyKeyReused(RequestRejected):
    """The idempotency key belongs to a request with another body."""

    status = 422
    code = "idempotency_key_reused"
    error = "This Idempotency-Key was used with a different request body"


class _Later(RequestRejected):
    """Refused for now; the customer may retry after ``retry_after_s`` whole seconds."""

    should_retry = True
    retry_after_s: int

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(self.code)
        self.retry_after_s = retry_after_s


class GenerationInFlight(_Later):
    """A request with this idempotency key is in progress."""

    status = 409
    code = "generation_in_flight"
    error = "A request with this Idempotency-Key is still in progress"


class GenerationInProgress(_Later):
    """The generation is reserved, so its outcome is open."""

    status = 409
    code = "generation_in_progress"
    error = "The generation is still in progress"


class RateLimited(_Later):
    """The organisation used up this minute's requests."""

    status = 429
    code = "rate_limited"
    error = "Too many requests for this organisation"

    def __init__(self, limit: int, retry_after_s: int, policy: str = "default") -> None:
        super().__init__(retry_after_s)
        self.limit = limit
        self.policy = policy

    def headers(self) -> dict[str, str]:
        return super().headers() | {
            "RateLimit": f'"{self.policy}";r=0;t={self.retry_after_s}',
            "RateLimit-Policy": f'"{self.policy}";q={self.limit};w=60',
        }


class Busy(_Later):
    """Too many concurrent requests contended for one account; nothing was debited."""

    status = 429
    code = "busy"
    error = "Too many simultaneous requests, please retry"


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


class ServiceUnavailable(ServiceError):
    """A dependency failed before the debit."""

    code = "service_unavailable"
    should_retry = True
    error = "Failed to generate image"
    message = "Image generation is unavailable"


def public_message(code: str) -> str:
    """The public message of a generation refunded with ``code``; an unknown one is a timeout."""
    known = {failure.code: failure.message for failure in GenerationFailed.__subclasses__()}
    return known.get(code, ModelTimedOut.message)
