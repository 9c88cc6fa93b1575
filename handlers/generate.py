"""``POST /api/v1/models/gemini/generate``: authenticate, validate, generate, answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from handlers.composition import Rooms
from handlers.http import Event, Response, body_of, failure, header, request_id, success
from handlers.sandbox import prepare
from lib.api_keys import ApiKeys
from lib.deadline import Deadline
from lib.errors import InvalidRequest, RequestRejected, ServiceError, ServiceUnavailable
from lib.gemini import Gemini
from lib.generation import Generations
from lib.ledger import Order
from lib.models import CREDITS_PER_IMAGE, GenerateResponse, parse_generate_request
from lib.observability import Observation, Telemetry
from lib.settings import Settings

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["Service", "handler", "service"]

ANSWER_TAKES_S = 0.5
MAX_IDEMPOTENCY_KEY_CHARACTERS = 255


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
        generations=Generations(rooms.ledger, model, rooms.images, key_suffix=suffix),
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
        order = _order(rooms.api_keys, event)
        finished = rooms.generations.generate(order, deadline, observation)
        body = GenerateResponse(imageUrl=finished.image_url, durationMs=finished.duration_ms)
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
    headers = {"X-Credits-Charged": str(CREDITS_PER_IMAGE)}
    if finished.replayed:
        headers = {"X-Credits-Charged": "0", "Idempotent-Replayed": "true"}
    return success(200, body.model_dump(), request, headers)


def _order(api_keys: ApiKeys, event: Event) -> Order:
    """Who asks for what. The key is checked before anything else is looked at."""
    organisation = api_keys.organisation_of(header(event, "authorization"))
    idempotency_key = _idempotency_key(event)
    request = parse_generate_request(body_of(event))
    return Order(organisation, request.prompt, request.aspectRatio, idempotency_key)


def _idempotency_key(event: Mapping[str, object]) -> str | None:
    key = header(event, "idempotency-key")
    if key is None:
        return None
    fits = 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_CHARACTERS
    if not (fits and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            "invalid_idempotency_key",
            "The Idempotency-Key header must be 1 to 255 printable ASCII characters",
        )
    return key


def _rehearse() -> None:
    service().model.rehearse()


prepare(build=service, rehearse=_rehearse)
