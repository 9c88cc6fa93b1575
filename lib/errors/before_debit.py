"""Errors before anything was debited."""

from collections.abc import Iterable

from lib.errors.service_error import ServiceError

__all__ = [
    "BodyTooLarge",
    "Busy",
    "GenerationInFlight",
    "GenerationReserved",
    "IdempotencyKeyReused",
    "ImageDeleted",
    "InsufficientCredits",
    "InvalidRequest",
    "KeyBudgetExhausted",
    "MethodNotAllowed",
    "NotFound",
    "OrganisationSuspended",
    "RateLimited",
    "RequestFailed",
    "RequestRejected",
    "ServiceUnavailable",
    "Unauthorized",
]


class RequestRejected(ServiceError):
    """Refused before anything was debited."""

    @property
    def is_fault(self) -> bool:
        return False


class InvalidRequest(RequestRejected):
    """The request is malformed; ``sentence`` tells the customer what to change.

    ``field`` names the field of the body that is at fault, if one is.
    """

    status = 400

    def __init__(self, code: str, sentence: str, field: str | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.error = sentence
        self.field = field


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


class KeyBudgetExhausted(InsufficientCredits):
    """The monthly budget of the API key has less than the price left."""

    code = "key_budget_exhausted"
    error = "The monthly budget of this API key is used up"


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


class ImageDeleted(RequestRejected):
    """The idempotency key has paid for an image that was deleted since: no second one is made."""

    status = 422
    code = "image_deleted"
    error = "The image of this Idempotency-Key was deleted"


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


class GenerationReserved(_Later):
    """The generation is neither settled nor refunded yet."""

    status = 409
    code = "generation_reserved"
    error = "This generation is still in progress"


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
    """Concurrent requests contended for one account until time ran out; nothing was debited."""

    status = 429
    code = "busy"
    error = "Too many simultaneous requests, please retry"


class ServiceUnavailable(ServiceError):
    """A dependency failed before the debit."""

    code = "service_unavailable"
    should_retry = True
    error = "Failed to generate image"
    message = "Image generation is unavailable"


class RequestFailed(ServiceUnavailable):
    """A dependency failed on a route that generates nothing."""

    error = "Failed to answer the request"
    message = "The service is unavailable"
