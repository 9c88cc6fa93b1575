"""The paid routes: authenticate, validate, generate or accept, respond.

``POST /api/v1/models/gemini/generate`` and, in the form of OpenAI's Images API,
``POST /v1/images/generations`` differ in how a request is read and how its outcome is written.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING

from handlers.authentication import authenticate
from handlers.dependencies import Dependencies, dependencies
from handlers.http import (
    RESPOND_ASYNC,
    Event,
    Response,
    body_of,
    failure_of,
    header,
    log_answer,
    prefers_async,
    request_id,
    success,
)
from handlers.initialization import initialize
from lib.deadline import RESPONSE_TAKES_S, Deadline
from lib.errors import RequestRejected, ServiceError, ServiceUnavailable
from lib.generation import Accepted, Finished
from lib.http.models import AcceptedResponse, GenerateResponse, as_body, parse_idempotency_key
from lib.http.openai import IMAGES_ROUTE, image_of, images_body
from lib.http.request import parse_generate_request
from lib.keys.verification import VerifiedKey
from lib.ledger.order import CREDITS_PER_IMAGE, Order, Spender
from lib.observability import Observation
from lib.picture.aspect_ratio import AspectRatio

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["handler", "respond"]


def handler(event: Event, context: "LambdaContext") -> Response:
    """The Lambda entry point."""
    time_left_s = context.get_remaining_time_in_millis() / 1000
    deadline = Deadline(time_left_s - RESPONSE_TAKES_S)
    with dependencies().telemetry.observe(request_id(event)) as observation:
        response = respond(dependencies(), event, deadline, observation)
        log_answer(observation, event, response)
        return response


def respond(
    service: Dependencies, event: Event, deadline: Deadline, observation: Observation
) -> Response:
    """The response to one request."""
    request = observation.request_id
    count = observation.count_job if _is_job(service, event) else observation.count_request
    failure = failure_of(event)
    try:
        order, outcome = _ordered(service, event, deadline, observation)
    except ServiceError as error:
        response = failure(error, request, {"X-Credits-Charged": str(error.credits_charged)})
        if isinstance(error, RequestRejected):
            observation.count("Rejections")
        else:
            count(error)
            # An alarm subtracts these from API Gateway's 5xx. OpenAI's form refuses with a 400.
            if not error.is_fault and response["statusCode"] >= HTTPStatus.INTERNAL_SERVER_ERROR:
                observation.count("RequestsRefused")
        if isinstance(error, ServiceUnavailable):
            observation.count("ServiceUnavailable")
            observation.warning("a service that we depend on failed", error.__cause__)
        return response
    except Exception as fault:  # noqa: BLE001 - a bug must not show its text to a customer
        unavailable = ServiceUnavailable()
        observation.count("UnexpectedErrors")
        count(unavailable)
        observation.warning("unexpected failure outside the generation", fault)
        return failure(unavailable, request, {"X-Credits-Charged": "0"})
    if isinstance(outcome, Finished):  # What is accepted counts when a worker has made it.
        count()
        if _is_openai(event):
            return _image(outcome, request, as_base64=order.wants_png)
    return _success(outcome, request)


def _is_openai(event: Event) -> bool:
    return bool(event["routeKey"] == IMAGES_ROUTE)


def _is_job(service: Dependencies, event: Event) -> bool:
    """Whether the image is to be made later. OpenAI's form knows no such preference."""
    has_queue = service.settings.jobs_queue_url is not None
    return has_queue and prefers_async(event) and not _is_openai(event)


def _ordered(
    service: Dependencies, event: Event, deadline: Deadline, observation: Observation
) -> tuple[Order, Finished | Accepted]:
    """Authentication comes before validation. What buys nothing counts against a limit.

    Each key has its own: a program that goes on when its budget is used up stops no other.
    """
    key = authenticate(service, event, observation)
    name = f"{key.organisation} {key.meter}"
    service.unpaid_limit.check(name)
    try:
        order = _order(service, event, key)
        if order.asynchronous:
            outcome = service.jobs.accept(order, deadline, observation)
        else:
            outcome = service.generations.generate(order, deadline, observation)
    except RequestRejected:
        service.unpaid_limit.count(name)
        raise
    if outcome.replayed:
        service.unpaid_limit.count(name)
    return order, outcome


def _order(service: Dependencies, event: Event, key: VerifiedKey) -> Order:
    """What is asked for, in either form.

    Raises:
        InvalidRequest, BodyTooLarge
    """
    idempotency_key = parse_idempotency_key(header(event, "idempotency-key"))
    body = body_of(event)
    read = _openai_request if _is_openai(event) else _request
    prompt, ratio, wants_png = read(body)
    return Order(
        key.organisation,
        prompt,
        ratio,
        idempotency_key,
        spender=Spender(key.id, key.meter, key.monthly_budget),
        asynchronous=_is_job(service, event),
        model=service.settings.gemini_model,
        wants_png=wants_png,
    )


def _request(body: bytes) -> tuple[str, AspectRatio, bool]:
    request = parse_generate_request(body)
    return request.prompt, request.aspectRatio, False


def _openai_request(body: bytes) -> tuple[str, AspectRatio, bool]:
    # It builds a model of pydantic's, for which a cold start of the other route has no use.
    from lib.http.openai_request import parse_images_request  # noqa: PLC0415

    request = parse_images_request(body)
    return request.prompt, request.aspect_ratio, request.as_base64


def _image(outcome: Finished, request: str, *, as_base64: bool) -> Response:
    """The response in OpenAI's form."""
    image = image_of(outcome.image_url, outcome.png, as_base64=as_base64)
    headers = _credit_headers(replayed=outcome.replayed)
    return success(200, images_body(outcome.created_ms // 1000, image), request, headers)


def _success(outcome: Finished | Accepted, request: str) -> Response:
    match outcome:
        case Finished(image_url, duration_ms, replayed):
            image = GenerateResponse(imageUrl=image_url, durationMs=duration_ms)
            return success(200, as_body(image), request, _credit_headers(replayed=replayed))
        case Accepted(generation_id, image_url, replayed):
            accepted = AcceptedResponse(id=generation_id, imageUrl=image_url)
            headers = {
                "Location": f"/api/v1/generations/{generation_id}",
                "Preference-Applied": RESPOND_ASYNC,
                **_credit_headers(replayed=replayed),
            }
            return success(202, as_body(accepted), request, headers)


def _credit_headers(*, replayed: bool) -> dict[str, str]:
    if replayed:
        return {"X-Credits-Charged": "0", "Idempotent-Replayed": "true"}
    return {"X-Credits-Charged": str(CREDITS_PER_IMAGE)}


initialize(
    build=lambda: (dependencies().key_verifier, dependencies().jobs),
    prime=lambda: dependencies().model.prime(),  # noqa: PLW0108 - inlined, it builds the model now
)
