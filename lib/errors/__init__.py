"""Every way a request can end badly, as one tree.

    ServiceError
    ├── RequestRejected                nothing was debited
    │   ├── InvalidRequest       400   the sentence says what to change
    │   ├── Unauthorized         401   one sentence for every cause
    │   ├── InsufficientCredits  402   carries the balance
    │   │   └── KeyBudgetExhausted     the key's own monthly budget; carries what it has left
    │   ├── OrganisationSuspended 403  an operator suspended the organisation
    │   ├── NotFound             404   also for another organisation's generation
    │   ├── MethodNotAllowed     405   names the methods of the path
    │   ├── GenerationInFlight   409   a request with this idempotency key is in progress
    │   ├── GenerationReserved   409   the generation has not ended yet
    │   ├── BodyTooLarge         413
    │   ├── IdempotencyKeyReused 422   the key was used with another body
    │   ├── ImageDeleted         422   the image that the key paid for was deleted
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
        └── RequestFailed              the same, on a route that generates nothing

``status``, ``code`` (sent as ``X-Error-Code``), ``should_retry`` (``X-Should-Retry``),
``credits_charged`` (``X-Credits-Charged``) and the public texts are the contract. An exception
of this tree carries nothing that must not reach a customer or a log: its cause is ``__cause__``.
"""

from lib.errors.after_debit import (
    ContentRejected,
    GenerationFailed,
    JobNotQueued,
    ModelBudgetExhausted,
    ModelOverloaded,
    ModelTimedOut,
    ModelUnavailable,
    NoImageReturned,
    OutcomePending,
    ReservationLost,
    StorageFailed,
    UnexpectedFailure,
    public_message,
)
from lib.errors.before_debit import (
    BodyTooLarge,
    Busy,
    GenerationInFlight,
    GenerationReserved,
    IdempotencyKeyReused,
    ImageDeleted,
    InsufficientCredits,
    InvalidRequest,
    KeyBudgetExhausted,
    MethodNotAllowed,
    NotFound,
    OrganisationSuspended,
    RateLimited,
    RequestFailed,
    RequestRejected,
    ServiceUnavailable,
    Unauthorized,
)
from lib.errors.service_error import ServiceError

__all__ = [
    "BodyTooLarge",
    "Busy",
    "ContentRejected",
    "GenerationFailed",
    "GenerationInFlight",
    "GenerationReserved",
    "IdempotencyKeyReused",
    "ImageDeleted",
    "InsufficientCredits",
    "InvalidRequest",
    "JobNotQueued",
    "KeyBudgetExhausted",
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
    "RequestFailed",
    "RequestRejected",
    "ReservationLost",
    "ServiceError",
    "ServiceUnavailable",
    "StorageFailed",
    "Unauthorized",
    "UnexpectedFailure",
    "public_message",
]
