"""``POST /api/v1/models/gemini/generate``: authenticate, validate, generate or accept, answer."""

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from handlers.composition import Rooms
from handlers.http import Event, Response, body_of, failure, header, request_id, success
from handlers.sandbox import prepare
from lib.api_keys import ApiKeys
from lib.deadline import Deadline
from lib.errors import RequestRejected, ServiceError, ServiceUnavailable
from lib.gemini import Gemini
from lib.generation import Accepted, Finished, Generations
from lib.ledger import Order
from lib.models import (
    CREDITS_PER_IMAGE,
    AcceptedResponse,
    GenerateResponse,
    as_body,
    parse_idempotency_key,
)
from lib.observability import Observation, Telemetry
from lib.request_body import parse_generate_request
from lib.settings import Settings

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["Service", "handler", "service"]

ANSWER_TAKES_S = 0.5
RESPOND_ASYNC = "respond-async"
# What stands between commas, and between semicolons, that are not in a quoted string.
_PREFERENCE = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*")+')
_PARAMETER = re.compile(r'(?:[^";]|"(?:[^"\\]|\\.)*")+')


@dataclass(frozen=True, slots=True)
class Service:
    """The rooms of this function."""

    api_keys: ApiKeys
    model: Gemini
    generations: Generations
    telemetry: Telemetry


@cache
def service() -> Service:
    """Built once a process; later calls return the same."""
    rooms = Rooms(Settings.from_environment())
    model = Gemini(rooms.gemini_api_key, rooms.settings.gemini_model)
    suffix = rooms.settings.image_key_suffix
    return Service(
        api_keys=rooms.api_keys,
        model=model,
        generations=Generations(rooms.ledger, model, rooms.images, rooms.jobs, key_suffix=suffix),
        telemetry=rooms.telemetry,
    )


def handler(event: Event, context: "LambdaContext") -> Response:
    """The Lambda entry point."""
    time_left_s = context.get_remaining_time_in_millis() / 1000
    deadline = Deadline(time_left_s - ANSWER_TAKES_S)
    rooms = service()
    with rooms.telemetry.observe(request_id(event)) as observation:
        return answer(rooms, event, deadline, observation)


def answer(rooms: Service, event: Event, deadline: Deadline, observation: Observation) -> Response:
    """The response to one request."""
    request = observation.request_id
    try:
        order = _order(rooms, event)
        if order.asynchronous:
            outcome = rooms.generations.accept(order, deadline, observation)
        else:
            outcome = rooms.generations.generate(order, deadline, observation)
    except ServiceError as error:
        if isinstance(error, RequestRejected):
            observation.count("Rejections")
            observation.info("request rejected", code=error.code, status=error.status)
        elif isinstance(error, ServiceUnavailable):
            observation.count("ServiceUnavailable")
            observation.warning("no answer from a service of ours", error.__cause__)
        return failure(error, request, {"X-Credits-Charged": "0"})
    except Exception as fault:  # noqa: BLE001 - a bug of ours must not show its words to anybody
        observation.count("UnexpectedErrors")
        observation.warning("unexpected failure outside the generation", fault)
        return failure(ServiceUnavailable(), request, {"X-Credits-Charged": "0"})
    return _told(outcome, request)


def _told(outcome: Finished | Accepted, request: str) -> Response:
    match outcome:
        case Finished(image_url, duration_ms, replayed):
            image = GenerateResponse(imageUrl=image_url, durationMs=duration_ms)
            return success(200, as_body(image), request, _charged(replayed))
        case Accepted(generation_id, image_url, repeated):
            accepted = AcceptedResponse(id=generation_id, imageUrl=image_url)
            headers = {
                "Location": f"/api/v1/generations/{generation_id}",
                "Preference-Applied": RESPOND_ASYNC,
                **_charged(repeated),
            }
            return success(202, as_body(accepted), request, headers)


def _charged(before: bool) -> dict[str, str]:  # noqa: FBT001 - both callers name it
    if before:
        return {"X-Credits-Charged": "0", "Idempotent-Replayed": "true"}
    return {"X-Credits-Charged": str(CREDITS_PER_IMAGE)}


def _order(rooms: Service, event: Event) -> Order:
    """Who asks for what. The key is checked before anything else is looked at."""
    organisation = rooms.api_keys.organisation_of(header(event, "authorization"))
    idempotency_key = parse_idempotency_key(header(event, "idempotency-key"))
    request = parse_generate_request(body_of(event))
    return Order(
        organisation,
        request.prompt,
        request.aspectRatio,
        idempotency_key,
        asynchronous=rooms.generations.takes_jobs and _prefers_async(event),
    )


def _prefers_async(event: Event) -> bool:
    """Whether a preference of RFC 7240 asks not to wait; others, and parameters, are ignored."""
    for preference in _PREFERENCE.findall(header(event, "prefer") or ""):
        name, _, value = _PARAMETER.findall(preference)[0].partition("=")
        # An empty value is the same as none.
        if name.strip().lower() == RESPOND_ASYNC and value.strip() in ("", '""'):
            return True
    return False


def _rehearse() -> None:
    service().model.rehearse()


prepare(build=service, rehearse=_rehearse)
