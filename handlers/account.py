"""What an organisation reads about itself, and the service's health. It never writes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from handlers.composition import Rooms
from handlers.http import Event, Response, failure, header, request_id, success
from handlers.sandbox import prepare
from lib.api_keys import ApiKeys
from lib.deadline import Deadline
from lib.errors import NotFound, ServiceError, ServiceUnavailable
from lib.ledger import Ledger
from lib.models import CreditsResponse
from lib.observability import Telemetry
from lib.settings import Settings
from lib.table import LedgerUnreachable

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["Service", "handler", "service"]

ANSWER_TAKES_S = 0.5


@dataclass(frozen=True, slots=True)
class Service:
    """The rooms of this function."""

    api_keys: ApiKeys
    ledger: Ledger
    telemetry: Telemetry


@cache
def service() -> Service:
    """Built once a process; later calls return the same."""
    rooms = Rooms(Settings.from_environment())
    return Service(rooms.api_keys, rooms.ledger, rooms.telemetry)


def handler(event: Event, context: "LambdaContext") -> Response:
    """The Lambda entry point."""
    deadline = Deadline(context.get_remaining_time_in_millis() / 1000 - ANSWER_TAKES_S)
    request = request_id(event)
    if event["routeKey"] == "GET /healthz":
        return success(200, {"status": "ok"}, request, {})
    rooms = service()
    with rooms.telemetry.observe(request) as observation:
        try:
            route = _ROUTES.get(event["routeKey"], _unknown)
            return success(200, route(rooms, event, deadline), request, {})
        except ServiceUnavailable as error:
            observation.count("ServiceUnavailable")
            observation.warning("no answer from a service of ours", error.__cause__)
            return failure(error, request, {})
        except ServiceError as error:
            observation.info("request rejected", code=error.code, status=error.status)
            return failure(error, request, {})
        except Exception as fault:  # noqa: BLE001 - a bug of ours must not show its words to anybody
            observation.count("UnexpectedErrors")
            observation.warning("unexpected failure", fault)
            return failure(ServiceUnavailable(), request, {})


def _unknown(_rooms: Service, _event: Event, _deadline: Deadline) -> dict[str, object]:
    raise NotFound


def _credits(rooms: Service, event: Event, deadline: Deadline) -> dict[str, object]:
    organisation = rooms.api_keys.organisation_of(header(event, "authorization"))
    try:
        balance = rooms.ledger.balance(organisation, deadline)
    except LedgerUnreachable as fault:
        raise ServiceUnavailable from fault
    return CreditsResponse(credits=balance).model_dump()


_ROUTES: dict[str, Callable[[Service, Event, Deadline], dict[str, object]]] = {
    "GET /api/v1/billing/credits": _credits,
}


prepare(build=service)
