"""Routes with a key: who asks comes first, and each request has one answer and one log line."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from handlers.dependencies import Dependencies
from handlers.http import Event, Response, failure_of, header, log_answer, request_id
from lib.deadline import RESPONSE_TAKES_S, Deadline
from lib.errors import NotFound, RequestFailed, ServiceError, ServiceUnavailable
from lib.keys.verification import DeadKey, VerifiedKey
from lib.ledger.rows import parse_id
from lib.ledger.table import LedgerUnreachable
from lib.observability import Observation
from lib.picture.storage import StorageUnreachable
from lib.receipts.signer import SigningFailed

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["Act", "answer", "authenticate", "named_generation"]

Act = Callable[[Dependencies, str, Event, Deadline], Response]
"""What a route does for an organisation; it raises ``ServiceError``, or what ``answer`` names."""


def answer(service: Dependencies, event: Event, context: "LambdaContext", act: Act) -> Response:
    """The response of a route that spends nothing. ``act`` runs once the organisation is admitted.

    A ledger, a store or a signer that cannot be reached is a ``RequestFailed``.
    """
    deadline = Deadline(context.get_remaining_time_in_millis() / 1000 - RESPONSE_TAKES_S)
    request, failure = request_id(event), failure_of(event)
    with service.telemetry.observe(request) as observation:
        try:
            response = _acted(service, event, deadline, observation, act)
        except ServiceUnavailable as error:
            observation.count("ServiceUnavailable")
            observation.warning("a service that we depend on failed", error.__cause__)
            response = failure(RequestFailed(), request, {})
        except ServiceError as error:
            response = failure(error, request, {})
        except Exception as fault:  # noqa: BLE001 - a bug must not show its text to a customer
            observation.count("UnexpectedErrors")
            observation.warning("unexpected failure", fault)
            response = failure(RequestFailed(), request, {})
        log_answer(observation, event, response)
        return response


def _acted(
    service: Dependencies, event: Event, deadline: Deadline, observation: Observation, act: Act
) -> Response:
    organisation = authenticate(service, event, observation).organisation
    service.read_limit.admit(organisation)
    created_ms = _created_ms(event)
    if created_ms is not None:
        observation.identify(generation=f"{created_ms:013d}")
    try:
        return act(service, organisation, event, deadline)
    except (LedgerUnreachable, StorageUnreachable, SigningFailed) as fault:
        raise ServiceUnavailable from fault


def authenticate(service: Dependencies, event: Event, observation: Observation) -> VerifiedKey:
    """The key of the request; its id is on every later line of the request's log.

    Raises:
        Unauthorized: the key is missing, malformed, unknown, revoked or expired.
        ServiceUnavailable: the keys could not be read.
    """
    try:
        key = service.key_verifier.verify(header(event, "authorization"))
    except DeadKey as dead:
        observation.identify(organisation=dead.organisation, key=dead.key_id)
        observation.count("RevokedKeyUsed")
        raise
    observation.identify(organisation=key.organisation, key=key.id)
    return key


def named_generation(event: Event) -> int:
    """The creation time, in milliseconds, of the generation that the path names.

    Raises:
        NotFound: the path names none.
    """
    created_ms = _created_ms(event)
    if created_ms is None:
        raise NotFound
    return created_ms


def _created_ms(event: Event) -> int | None:
    return parse_id(str((event.get("pathParameters") or {}).get("id", "")))
