"""The read routes: balance, history and receipts, the docs page, the health check.

This function never writes and does not load the model. It loads what a balance needs; the first
request for the docs page or OpenAPI loads the rest.
"""

import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from handlers.authentication import Act, answer, named_generation
from handlers.dependencies import Dependencies, dependencies
from handlers.documents import KEPT, as_document
from handlers.http import (
    Event,
    Response,
    failure,
    failure_of,
    json_text,
    origin,
    request_id,
    success,
    text,
)
from handlers.initialization import initialize
from lib.deadline import IN_FLIGHT_RETRY_AFTER_S, Deadline
from lib.errors import (
    GenerationReserved,
    MethodNotAllowed,
    NotFound,
    RequestFailed,
    public_message,
)
from lib.http.models import (
    MAX_PAGE_BYTES,
    CreditsResponse,
    GenerationResponse,
    HistoryResponse,
    KeyUsageResponse,
    UsageResponse,
    as_body,
    cursor_before,
    parse_history_request,
    parse_month,
)
from lib.http.openai import IMAGES_ROUTE, model_body, models_body
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.ledger.rows import Generation, Status
from lib.ledger.usage import month_of
from lib.receipts.receipt import RECEIPT_TYPE, payload_of, receipt_of
from lib.receipts.signer import SigningFailed
from lib.usage import by_key

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

__all__ = ["DELETE_ROUTE", "GENERATE_ROUTE", "handler"]

# The routes of the functions that write.
GENERATE_ROUTE = "POST /api/v1/models/gemini/generate"
DELETE_ROUTE = "DELETE /api/v1/generations/{id}"
# A compact JWS. Source: RFC 7515, section 9.2.1.
JOSE_TYPE = "application/jose"
# What is the same for everyone, and may be five minutes old.
CACHED = {"Cache-Control": "public, max-age=300"}


def handler(event: Event, context: "LambdaContext") -> Response:
    """The Lambda entry point."""
    open_route = _OPEN.get(event["routeKey"])
    if open_route is not None:
        return open_route(event, request_id(event))
    act = _ROUTES.get(event["routeKey"])
    if act is None:
        return _unrouted(event, request_id(event))
    return answer(dependencies(), event, context, act)


def _health(_event: Event, request: str) -> Response:
    return success(200, {"status": "ok"}, request, {})


def _openapi(event: Event, request: str) -> Response:
    written = _openapi_text(_public_url(event), dependencies().settings.support_url)
    headers = {"Content-Type": "application/json", **CACHED}
    return as_document(event, text(200, written, request, headers))


def _reference(event: Event, request: str) -> Response:
    settings = dependencies().settings
    written = _reference_text(_public_url(event), settings.support_url, settings.gemini_model)
    headers = {"Content-Type": "text/markdown; charset=utf-8", **CACHED}
    return as_document(event, text(200, written, request, headers))


@lru_cache(maxsize=KEPT)
def _openapi_text(url: str, support_url: str | None) -> str:
    from lib.http.openapi import openapi  # noqa: PLC0415 - it needs pydantic, which no other route here does

    return json_text(openapi(url, support_url))


@lru_cache(maxsize=KEPT)
def _reference_text(url: str, support_url: str | None, model: str) -> str:
    from lib.http.guide import guide  # noqa: PLC0415 - as above
    from lib.http.openapi import openapi  # noqa: PLC0415 - as above
    from lib.http.reference import reference  # noqa: PLC0415 - as above

    return reference(openapi(url, support_url), guide(support_url, model))


def _docs(event: Event, request: str) -> Response:
    from lib.http import docs  # noqa: PLC0415 - as above

    service = dependencies()
    page = docs.page(
        _public_url(event), service.settings.support_url, service.settings.gemini_model
    )
    headers = docs.headers(service.image_url(""))
    return as_document(event, text(200, page, request, headers))


def _public_url(event: Event) -> str:
    return dependencies().settings.public_url or origin(event)


def _jwks(_event: Event, request: str) -> Response:
    service = dependencies()
    if service.signer is None:
        return failure(NotFound(), request, {})
    try:
        keys = service.signer.jwks()
    except SigningFailed as fault:
        with service.telemetry.observe(request) as observation:
            observation.count("ServiceUnavailable")
            observation.warning("a service that we depend on failed", fault)
        return failure(RequestFailed(), request, {})
    return success(200, keys, request, CACHED)


def _unrouted(event: Event, request: str) -> Response:
    """The response to a request that no route of API Gateway matches: HEAD, 405 or 404."""
    path, method = str(event["rawPath"]), str(event["requestContext"]["http"]["method"])
    open_route = _OPEN.get(f"GET {path}")
    if method == "HEAD" and open_route is not None:
        return open_route(event, request) | {"body": "", "isBase64Encoded": False}
    # A mistyped request for an image is told that it cost nothing.
    failure, headers = failure_of(event), {"X-Credits-Charged": "0"}
    allowed = {verb for verb, pattern in _PATHS if pattern.fullmatch(path)}
    if not allowed:
        return failure(NotFound(), request, headers)
    if open_route is not None:
        allowed.add("HEAD")
    return failure(MethodNotAllowed(allowed), request, headers)


def _credits(
    service: Dependencies, organisation: str, event: Event, deadline: Deadline
) -> Response:
    balance = service.ledger.balance(organisation, deadline)
    return success(200, as_body(CreditsResponse(credits=balance)), request_id(event), {})


def _usage(service: Dependencies, organisation: str, event: Event, deadline: Deadline) -> Response:
    now = datetime.now(UTC)
    this_month = month_of(now.timestamp())
    month = parse_month(event.get("queryStringParameters") or {}) or this_month
    # In a month to come there are no keys yet; a sandbox whose clock is ahead may have counted.
    records = () if month > this_month else service.key_verifier.records(organisation)
    keys = [
        KeyUsageResponse(
            id=each.id,
            name=each.name,
            credits=each.credits,
            images=each.images,
            monthlyBudget=each.monthly_budget,
        )
        for each in by_key(service.usage(organisation, month, deadline), records, now)
    ]
    body = UsageResponse(
        month=month,
        credits=sum(each.credits for each in keys),
        images=sum(each.images for each in keys),
        keys=keys,
    )
    # Null fields are sent too.
    return success(200, asdict(body), request_id(event), {})


def _generation(
    service: Dependencies, organisation: str, event: Event, deadline: Deadline
) -> Response:
    found = _named(service, organisation, event, deadline)
    return success(200, as_body(_response_of(service, found)), request_id(event), {})


def _receipt(
    service: Dependencies, organisation: str, event: Event, deadline: Deadline
) -> Response:
    if service.signer is None:
        raise NotFound
    found = _named(service, organisation, event, deadline)
    if found.status is Status.RESERVED:
        raise GenerationReserved(IN_FLIGHT_RETRY_AFTER_S)
    payload = payload_of(receipt_of(found, service.settings.service_name))
    receipt = service.signer.sign(payload, RECEIPT_TYPE)
    return text(200, receipt, request_id(event), {"Content-Type": JOSE_TYPE})


def _named(
    service: Dependencies, organisation: str, event: Event, deadline: Deadline
) -> Generation:
    """The generation that the path names."""
    found = service.ledger.generation(organisation, named_generation(event), deadline)
    if found is None:
        raise NotFound
    return found


def _history(
    service: Dependencies, organisation: str, event: Event, deadline: Deadline
) -> Response:
    asked = parse_history_request(event.get("queryStringParameters") or {})
    # One more than asked for tells whether there is another page.
    found = service.ledger.history(organisation, asked.limit + 1, asked.before_ms, deadline)
    page: list[GenerationResponse] = []
    size_bytes = 0
    for each in found[: asked.limit]:
        shown = _response_of(service, each)
        size_bytes += len(json_text(as_body(shown)).encode())
        if page and size_bytes > MAX_PAGE_BYTES:
            break
        page.append(shown)
    is_last = len(page) == len(found)
    cursor = None if is_last else cursor_before(found[len(page) - 1].created_ms)
    # ``nextCursor`` is sent even when it is null.
    body = as_body(HistoryResponse(generations=page, nextCursor=cursor)) | {"nextCursor": cursor}
    return success(200, body, request_id(event), {})


def _models(service: Dependencies, _organisation: str, event: Event, _: Deadline) -> Response:
    return success(200, models_body(service.settings.gemini_model), request_id(event), {})


def _model(service: Dependencies, _organisation: str, event: Event, _: Deadline) -> Response:
    name = service.settings.gemini_model
    if (event.get("pathParameters") or {}).get("id") != name:
        raise NotFound
    return success(200, model_body(name), request_id(event), {})


def _response_of(service: Dependencies, generation: Generation) -> GenerationResponse:
    """A generation as its organisation sees it."""
    deleted_at = generation.deleted_at
    settled = generation.status is Status.SETTLED
    refunded = generation.status is Status.REFUNDED
    return GenerationResponse(
        id=generation.id,
        status=generation.status.value,
        createdAt=_timestamp(generation.created_ms / 1000, "milliseconds"),
        prompt=generation.prompt if deleted_at is None else None,
        aspectRatio=generation.aspect_ratio,
        imageUrl=(
            service.image_url(generation.image_key) if settled and deleted_at is None else None
        ),
        creditsCharged=CREDITS_PER_IMAGE if settled else None,
        durationMs=generation.duration_ms if settled else None,
        message=public_message(generation.failure_code or "") if refunded else None,
        creditsRefunded=CREDITS_PER_IMAGE if refunded else None,
        deletedAt=None if deleted_at is None else _timestamp(deleted_at, "seconds"),
    )


def _timestamp(epoch_s: float, precision: str) -> str:
    """ISO 8601, in UTC."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec=precision)[:-6] + "Z"


_OPEN: dict[str, Callable[[Event, str], Response]] = {
    "GET /": _docs,
    "GET /openapi.json": _openapi,
    "GET /llms.txt": _reference,
    "GET /healthz": _health,
    "GET /.well-known/jwks.json": _jwks,
}
_ROUTES: dict[str, Act] = {
    "GET /api/v1/billing/credits": _credits,
    "GET /api/v1/billing/usage": _usage,
    "GET /api/v1/generations": _history,
    "GET /api/v1/generations/{id}": _generation,
    "GET /api/v1/generations/{id}/receipt": _receipt,
    "GET /v1/models": _models,
    "GET /v1/models/{id}": _model,
}
_DEPLOYED = (*_OPEN, *_ROUTES, GENERATE_ROUTE, DELETE_ROUTE, IMAGES_ROUTE)
_PATHS = tuple(
    (verb, re.compile(re.sub(r"\{\w+\}", "[^/]+", path)))
    for verb, path in (route.split(" ") for route in _DEPLOYED)
)


def _prime() -> None:
    from lib.http import docs  # noqa: PLC0415 - a snapshot has the time that a cold start lacks

    settings = dependencies().settings
    docs.page("https://prime.example", settings.support_url, settings.gemini_model)


initialize(build=lambda: (dependencies().key_verifier, dependencies().ledger), prime=_prime)
