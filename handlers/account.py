"""What is read: an organisation's own balance and history, the docs page, the service's health.

This function never writes, and knows nothing of the model. Of all that the artifact holds it loads
what a balance needs; whoever looks at the docs page first waits a moment longer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from handlers.composition import Rooms
from handlers.http import Event, Response, failure, header, origin, request_id, success, text
from handlers.sandbox import prepare
from lib.api_keys import ApiKeys
from lib.deadline import Deadline
from lib.errors import NotFound, ServiceError, ServiceUnavailable, public_message
from lib.ledger import Ledger
from lib.ledger_rows import Generation, Status, parse_id
from lib.models import (
    CREDITS_PER_IMAGE,
    CreditsResponse,
    GenerationResponse,
    HistoryResponse,
    as_body,
    cursor_before,
    parse_history_request,
)
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
    image_url: Callable[[str], str]
    telemetry: Telemetry


@cache
def service() -> Service:
    """Built once a process; later calls return the same."""
    rooms = Rooms(Settings.from_environment())
    return Service(rooms.api_keys, rooms.ledger, rooms.image_url, rooms.telemetry)


def handler(event: Event, context: "LambdaContext") -> Response:
    """The Lambda entry point."""
    deadline = Deadline(context.get_remaining_time_in_millis() / 1000 - ANSWER_TAKES_S)
    request = request_id(event)
    open_route = _OPEN.get(event["routeKey"])
    if open_route is not None:
        return open_route(event, request)
    rooms = service()
    with rooms.telemetry.observe(request) as observation:
        try:
            return success(200, _read(rooms, event, deadline), request, {})
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


def _health(_event: Event, request: str) -> Response:
    return success(200, {"status": "ok"}, request, {})


def _openapi(event: Event, request: str) -> Response:
    from lib.contract import openapi  # noqa: PLC0415 - it needs pydantic, which nothing else does

    return success(200, openapi(origin(event)), request, {"Cache-Control": "public, max-age=300"})


def _docs(event: Event, request: str) -> Response:
    from lib import docs  # noqa: PLC0415 - as above

    return text(200, docs.page(origin(event)), request, docs.headers(service().image_url("")))


def _read(rooms: Service, event: Event, deadline: Deadline) -> dict[str, object]:
    route = _ROUTES.get(event["routeKey"])
    if route is None:
        raise NotFound
    organisation = rooms.api_keys.organisation_of(header(event, "authorization"))
    try:
        return route(rooms, organisation, event, deadline)
    except LedgerUnreachable as fault:
        raise ServiceUnavailable from fault


def _credits(
    rooms: Service, organisation: str, _event: Event, deadline: Deadline
) -> dict[str, object]:
    return as_body(CreditsResponse(credits=rooms.ledger.balance(organisation, deadline)))


def _generation(
    rooms: Service, organisation: str, event: Event, deadline: Deadline
) -> dict[str, object]:
    created_ms = parse_id(str((event.get("pathParameters") or {}).get("id", "")))
    if created_ms is None:
        raise NotFound
    found = rooms.ledger.generation(organisation, created_ms, deadline)
    if found is None:
        raise NotFound
    return as_body(_shown(rooms, found))


def _history(
    rooms: Service, organisation: str, event: Event, deadline: Deadline
) -> dict[str, object]:
    asked = parse_history_request(event.get("queryStringParameters") or {})
    # One more than asked for tells whether there is another page.
    found = rooms.ledger.history(organisation, asked.limit + 1, asked.before_ms, deadline)
    page = found[: asked.limit]
    cursor = cursor_before(page[-1].created_ms) if len(found) > len(page) else None
    shown = HistoryResponse(generations=[_shown(rooms, each) for each in page], nextCursor=cursor)
    # The one field that is sent when there is nothing in it.
    return as_body(shown) | {"nextCursor": cursor}


def _shown(rooms: Service, generation: Generation) -> GenerationResponse:
    """What an organisation is told of one of its generations."""
    created_at = datetime.fromtimestamp(generation.created_ms / 1000, UTC)
    settled = generation.status is Status.SETTLED
    refunded = generation.status is Status.REFUNDED
    return GenerationResponse(
        id=generation.id,
        status=generation.status.value,
        createdAt=created_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        prompt=generation.prompt,
        aspectRatio=generation.aspect_ratio,
        imageUrl=rooms.image_url(generation.image_key) if settled else None,
        creditsCharged=CREDITS_PER_IMAGE if settled else None,
        durationMs=generation.duration_ms if settled else None,
        message=public_message(generation.failure_code or "") if refunded else None,
        creditsRefunded=CREDITS_PER_IMAGE if refunded else None,
    )


_OPEN: dict[str, Callable[[Event, str], Response]] = {
    "GET /": _docs,
    "GET /openapi.json": _openapi,
    "GET /healthz": _health,
}
_ROUTES: dict[str, Callable[[Service, str, Event, Deadline], dict[str, object]]] = {
    "GET /api/v1/billing/credits": _credits,
    "GET /api/v1/generations": _history,
    "GET /api/v1/generations/{id}": _generation,
}


def _rehearse() -> None:
    from lib import docs  # noqa: PLC0415 - a snapshot has the time that a cold start has not

    docs.page("https://rehearsal.example")


prepare(build=service, rehearse=_rehearse)
