"""The route that deletes the image and the prompt of a generation.

It is a function of its own, with a role of its own, so that the account function needs no
permission to write or delete.
"""

from typing import TYPE_CHECKING

from handlers.authentication import authenticate
from handlers.dependencies import Dependencies, dependencies
from handlers.http import Event, Response, failure, log_answer, request_id, text
from handlers.initialization import initialize
from lib.deadline import RESPONSE_TAKES_S, Deadline
from lib.errors import NotFound, ServiceError, ServiceUnavailable
from lib.ledger.rows import Generation, parse_id
from lib.ledger.table import LedgerUnreachable
from lib.observability import Observation
from lib.picture.storage import StorageUnreachable

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["handler"]


def handler(event: Event, context: "LambdaContext") -> Response:
    """The Lambda entry point."""
    deadline = Deadline(context.get_remaining_time_in_millis() / 1000 - RESPONSE_TAKES_S)
    service = dependencies()
    with service.telemetry.observe(request_id(event)) as observation:
        response = _respond(service, event, deadline, observation)
        log_answer(observation, event, response)
        return response


def _respond(
    service: Dependencies, event: Event, deadline: Deadline, observation: Observation
) -> Response:
    request = observation.request_id
    try:
        deleted = _delete(service, event, deadline, observation)
    except ServiceUnavailable as error:
        observation.count("ServiceUnavailable")
        observation.warning("a service that we depend on failed", error.__cause__)
        return failure(error, request, {})
    except ServiceError as error:
        return failure(error, request, {})
    except Exception as fault:  # noqa: BLE001 - a bug must not show its text to a customer
        observation.count("UnexpectedErrors")
        observation.warning("unexpected failure", fault)
        return failure(ServiceUnavailable(), request, {})
    observation.info("generation deleted", generation=deleted.id)
    return text(204, "", request, {})


def _delete(
    service: Dependencies, event: Event, deadline: Deadline, observation: Observation
) -> Generation:
    organisation = authenticate(service, event, observation).organisation
    service.read_limit.admit(organisation)
    created_ms = parse_id(str((event.get("pathParameters") or {}).get("id", "")))
    if created_ms is None:
        raise NotFound
    try:
        return service.deletions.delete(organisation, created_ms, deadline)
    except (LedgerUnreachable, StorageUnreachable) as fault:
        raise ServiceUnavailable from fault


initialize(build=lambda: (dependencies().key_verifier, dependencies().deletions))
