"""The HTTP contract as data: every route with its parameters, statuses, headers and examples.

``openapi`` renders it as OpenAPI 3.1, from which the docs page takes its tables. Bodies come from
``lib.http.models`` and ``lib.http.request``, refusals and failures from ``lib.errors``: a text
changed there changes here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter

from lib.errors import (
    BodyTooLarge,
    Busy,
    GenerationFailed,
    GenerationInFlight,
    IdempotencyKeyReused,
    InsufficientCredits,
    InvalidRequest,
    NotFound,
    RateLimited,
    ServiceError,
    ServiceUnavailable,
    Unauthorized,
)
from lib.http.models import (
    DEFAULT_PAGE,
    MAX_BODY_BYTES,
    MAX_IDEMPOTENCY_KEY_CHARACTERS,
    MAX_PAGE,
    MAX_PROMPT_CHARACTERS,
    AcceptedResponse,
    CreditsResponse,
    ErrorResponse,
    FailureResponse,
    Field,
    GenerateResponse,
    GenerationResponse,
    HistoryResponse,
    InsufficientCreditsResponse,
    parse_history_request,
    parse_idempotency_key,
)
from lib.http.request import GenerateRequest, parse_generate_request
from lib.ledger.order import CREDITS_PER_IMAGE

__all__ = ["OPERATIONS", "Answer", "Operation", "openapi"]

VERSION = "1.0.0"
_SCHEMAS = "#/components/schemas/"

_PROMPT = "A log cabin by a frozen mountain lake at dusk"
_IMAGE_URL = "https://images.example.com/generated/gemini/acme/1795390356254.png"
_ID = "1795390356254"
_SETTLED = {
    "id": _ID,
    "status": "settled",
    "createdAt": "2026-11-23T06:12:36.254Z",
    "prompt": _PROMPT,
    "aspectRatio": "16:9",
    "imageUrl": _IMAGE_URL,
    "creditsCharged": CREDITS_PER_IMAGE,
    "durationMs": 3420,
}
_REFUNDED = {
    "id": "1795390301877",
    "status": "refunded",
    "createdAt": "2026-11-23T06:11:41.877Z",
    "prompt": "Something that Gemini refuses",
    "aspectRatio": "1:1",
    "message": "Content policy violation",
    "creditsRefunded": CREDITS_PER_IMAGE,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One status of an operation. ``headers`` are names of ``_HEADERS``."""

    status: int
    description: str
    body: type[object] | None
    examples: Mapping[str, Mapping[str, object]]
    headers: tuple[str, ...] = ()
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. ``parameters`` are OpenAPI's parameter objects."""

    method: str
    path: str
    name: str
    summary: str
    answers: tuple[Answer, ...]
    description: str = ""
    parameters: tuple[Mapping[str, object], ...] = ()
    body: type[object] | None = None
    needs_key: bool = True


_HEADERS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "X-Request-Id": ("Identifies the request in the service's logs", {"type": "string"}),
    "X-Error-Code": ("What went wrong, for programs", {"type": "string"}),
    "X-Credits-Charged": (
        "The credits that this request cost",
        {"type": "string", "enum": ["0", str(CREDITS_PER_IMAGE)]},
    ),
    "Retry-After": ("Seconds after which to try again", {"type": "string", "pattern": r"^\d+$"}),
    "RateLimit": ("What is left of this minute's generations", {"type": "string"}),
    "RateLimit-Policy": ("How many generations a minute may have", {"type": "string"}),
    "WWW-Authenticate": ("How to authenticate", {"type": "string", "enum": ["Bearer"]}),
    "Idempotent-Replayed": (
        "The answer is that of an earlier request with the same key",
        {"type": "string", "enum": ["true"]},
    ),
    "Location": ("Where the generation can be looked at", {"type": "string"}),
    "Preference-Applied": (
        "That nobody waited",
        {"type": "string", "enum": ["respond-async"]},
    ),
}


def _refusal(ask: Callable[[], object]) -> InvalidRequest:
    """The refusal that a bad request meets: met here, so that its sentence is the real one."""
    try:
        ask()
    except InvalidRequest as refusal:
        return refusal
    raise AssertionError("the request is not refused")


_BAD_REQUESTS: tuple[ServiceError, ...] = (
    _refusal(lambda: parse_generate_request(b"{}")),
    _refusal(lambda: parse_generate_request(b'{"prompt": "%s"}' % (b"a" * 4001))),
    _refusal(lambda: parse_generate_request(b'{"prompt": "A fox", "aspectRatio": "7:5"}')),
    _refusal(lambda: parse_generate_request(b"{")),
    _refusal(lambda: parse_generate_request(b"\xff")),
    _refusal(lambda: parse_idempotency_key("")),
)
_FAILURES: tuple[ServiceError, ...] = tuple(kind() for kind in GenerationFailed.__subclasses__())


def _refused(
    status: int, description: str, errors: Iterable[ServiceError], body: type[object], *more: str
) -> Answer:
    """The answers of one status that are errors; what they say comes from the errors."""
    found = tuple(errors)
    headers = dict.fromkeys(name for error in found for name in error.headers())
    return Answer(
        status,
        description,
        body,
        {error.code: error.body() for error in found},
        (*headers, *more),
    )


_CHARGED = "X-Credits-Charged"
_UNAUTHORIZED = (
    401,
    "The key is missing, misspelt, unknown, revoked or expired",
    (Unauthorized(),),
    ErrorResponse,
)
_UNAVAILABLE = (
    500,
    "A part of the service did not answer; try again",
    (ServiceUnavailable(),),
    FailureResponse,
)

_GENERATE = Operation(
    method="POST",
    path="/api/v1/models/gemini/generate",
    name="generateImage",
    summary="Make an image",
    description=(
        "Draws a picture from a prompt and stores it as a PNG under a public URL. It costs "
        f"{CREDITS_PER_IMAGE} credits, and only if that worked: whatever goes wrong, the credits "
        "come back before the answer leaves, or within 3 minutes."
    ),
    parameters=(
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": (
                "Any text of your own for this one image. A repetition with the same key and the "
                "same body within 24 hours brings the same image and costs nothing."
            ),
            "schema": {
                "type": "string",
                "pattern": r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$",
                "minLength": 1,
                "maxLength": MAX_IDEMPOTENCY_KEY_CHARACTERS,
            },
            "example": "order-1042",
        },
        {
            "name": "Prefer",
            "in": "header",
            "required": False,
            "description": (
                "`respond-async` does not wait for the picture: the answer is a 202 that names "
                "the URL it will have. Other preferences are ignored (RFC 7240)."
            ),
            "schema": {"type": "string"},
            "example": "respond-async",
        },
    ),
    body=GenerateRequest,
    answers=(
        Answer(
            200,
            "The image is stored and paid for",
            GenerateResponse,
            {
                "image": {
                    "imageUrl": _IMAGE_URL,
                    "mimeType": "image/png",
                    "creditsCharged": CREDITS_PER_IMAGE,
                    "durationMs": 3420,
                }
            },
            (_CHARGED, "Idempotent-Replayed"),
        ),
        Answer(
            202,
            "Accepted: the credits are taken, and come back if no image comes of it",
            AcceptedResponse,
            {
                "accepted": {
                    "id": _ID,
                    "status": "reserved",
                    "imageUrl": _IMAGE_URL,
                    "creditsCharged": CREDITS_PER_IMAGE,
                }
            },
            (_CHARGED, "Location", "Preference-Applied", "Idempotent-Replayed"),
        ),
        _refused(400, "The request can't be understood", _BAD_REQUESTS, ErrorResponse, _CHARGED),
        _refused(*_UNAUTHORIZED, _CHARGED),
        _refused(
            402,
            "Not enough credits",
            (InsufficientCredits(CREDITS_PER_IMAGE, 2),),
            InsufficientCreditsResponse,
            _CHARGED,
        ),
        _refused(
            409,
            "A request with this Idempotency-Key is still being worked on",
            (GenerationInFlight(3),),
            ErrorResponse,
            _CHARGED,
        ),
        _refused(
            413, "The body is too large", (BodyTooLarge(MAX_BODY_BYTES),), ErrorResponse, _CHARGED
        ),
        _refused(
            422,
            "This Idempotency-Key belongs to another body",
            (IdempotencyKeyReused(),),
            ErrorResponse,
            _CHARGED,
        ),
        _refused(
            429,
            "Too many requests of this organisation",
            (RateLimited(60, 30), Busy(2)),
            ErrorResponse,
            _CHARGED,
        ),
        _refused(
            500,
            "No image: nothing was charged, or it was refunded",
            (*_FAILURES, ServiceUnavailable()),
            FailureResponse,
            _CHARGED,
            "Retry-After",
        ),
    ),
)

_CREDITS = Operation(
    method="GET",
    path="/api/v1/billing/credits",
    name="getCredits",
    summary="Tell the balance",
    answers=(
        Answer(
            200,
            "The balance and the price",
            CreditsResponse,
            {"balance": {"credits": 95, "creditsPerImage": CREDITS_PER_IMAGE}},
        ),
        _refused(*_UNAUTHORIZED),
        _refused(*_UNAVAILABLE),
    ),
)

_HISTORY = Operation(
    method="GET",
    path="/api/v1/generations",
    name="listGenerations",
    summary="List what was generated",
    description="The organisation's generations, the newest first, page by page.",
    parameters=(
        {
            "name": "limit",
            "in": "query",
            "required": False,
            "description": "How many of them a page has at most",
            "schema": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_PAGE,
                "default": DEFAULT_PAGE,
            },
        },
        {
            "name": "cursor",
            "in": "query",
            "required": False,
            "description": "`nextCursor` of the page before, as it is",
            "schema": {"type": "string"},
        },
    ),
    answers=(
        Answer(
            200,
            "A page",
            HistoryResponse,
            {"page": {"generations": [_SETTLED, _REFUNDED], "nextCursor": None}},
        ),
        _refused(
            400,
            "The limit or the cursor can't be understood",
            (
                _refusal(lambda: parse_history_request({"limit": "0"})),
                _refusal(lambda: parse_history_request({"cursor": "made up"})),
            ),
            ErrorResponse,
        ),
        _refused(*_UNAUTHORIZED),
        _refused(*_UNAVAILABLE),
    ),
)

_GENERATION = Operation(
    method="GET",
    path="/api/v1/generations/{id}",
    name="getGeneration",
    summary="Look at one generation",
    description="It is `reserved` at first, and then `settled` or `refunded` for good.",
    parameters=(
        {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "`id` of a 202 or of the list",
            "schema": {"type": "string"},
            "example": _ID,
        },
    ),
    answers=(
        Answer(
            200,
            "The generation as it is now",
            GenerationResponse,
            {
                "reserved": {name: _SETTLED[name] for name in list(_SETTLED)[:5]}
                | {"status": "reserved"},
                "settled": _SETTLED,
                "refunded": _REFUNDED,
            },
        ),
        _refused(*_UNAUTHORIZED),
        _refused(404, "The organisation has no such generation", (NotFound(),), ErrorResponse),
        _refused(*_UNAVAILABLE),
    ),
)


@dataclass(frozen=True, slots=True)
class _Health:
    """The body of ``GET /healthz``."""

    status: Annotated[Literal["ok"], Field("It answers")]


_OPEN = (
    Operation(
        method="GET",
        path="/healthz",
        name="getHealth",
        summary="See whether the service answers",
        answers=(Answer(200, "It does", _Health, {"ok": {"status": "ok"}}),),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/openapi.json",
        name="getOpenApi",
        summary="This description",
        answers=(Answer(200, "OpenAPI 3.1", None, {}),),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/",
        name="getDocs",
        summary="The docs page, with a playground",
        answers=(Answer(200, "A page for people", None, {}, media_type="text/html"),),
        needs_key=False,
    ),
)

OPERATIONS: tuple[Operation, ...] = (_GENERATE, _CREDITS, _GENERATION, _HISTORY, *_OPEN)
"""Every route that is deployed."""


def openapi(server_url: str) -> dict[str, Any]:
    """The contract as an OpenAPI 3.1 document, for the service at ``server_url``."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gemini Generate",
            "version": VERSION,
            "summary": "A prompt in, a PNG out, 5 credits if and only if it worked",
            "description": (
                f"A prompt has at most {MAX_PROMPT_CHARACTERS:,} characters, a body at most "
                f"{MAX_BODY_BYTES // 1024} KiB. Any web page may call the API; keys are bearer "
                "tokens. Nothing redirects."
            ),
        },
        "servers": [{"url": server_url}],
        "security": [{"apiKey": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "apiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key of your organisation: gg_...",
                }
            },
            "headers": {
                name: {"description": description, "schema": schema}
                for name, (description, schema) in _HEADERS.items()
            },
            "schemas": _schemas(),
        },
    }


def _schemas() -> dict[str, Any]:
    models = {
        model
        for operation in OPERATIONS
        for model in (operation.body, *(answer.body for answer in operation.answers))
        if model is not None
    }
    ordered = sorted(models, key=lambda model: model.__name__)
    _, definitions = TypeAdapter.json_schemas(
        [(model.__name__, "validation", TypeAdapter(model)) for model in ordered],
        ref_template=_SCHEMAS + "{model}",
    )
    schemas: dict[str, Any] = _without_titles(definitions["$defs"])
    for schema in schemas.values():
        schema.pop("description", None)
    for model in filter(is_dataclass, ordered):
        # An answer has no defaults: a field is always sent, or may be missing.
        schema = schemas[model.__name__]
        schema["additionalProperties"] = False
        schema["required"] = [each.name for each in fields(model) if each.default is not None]
        for field in schema["properties"].values():
            field.pop("default", None)
    messages = sorted({str(failure.body()["message"]) for failure in _FAILURES})
    for name in ("FailureResponse", "GenerationResponse"):
        _text_of(schemas[name]["properties"]["message"])["enum"] = messages
    # Not what pydantic writes for a default: null means the default too.
    ratio = schemas["GenerateRequest"]["properties"]["aspectRatio"]
    ratio["anyOf"] = [{"$ref": ratio.pop("$ref")}, {"type": "null"}]
    return schemas


def _text_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of the text in a field that may be null."""
    found: dict[str, Any] = schema["anyOf"][0] if "anyOf" in schema else schema
    return found


def _without_titles(schema: Any) -> Any:
    """A schema without the titles that pydantic makes of names."""
    if isinstance(schema, list):
        return [_without_titles(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _without_titles(value)
        for name, value in schema.items()
        if name != "title" or not isinstance(value, str)
    }


def _operation(operation: Operation) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {str(answer.status): _answer(answer) for answer in operation.answers},
    }
    if operation.description:
        document["description"] = operation.description
    if operation.parameters:
        document["parameters"] = list(operation.parameters)
    if operation.body is not None:
        document["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": _SCHEMAS + operation.body.__name__},
                    "example": {"prompt": _PROMPT, "aspectRatio": "16:9"},
                }
            },
        }
    if not operation.needs_key:
        document["security"] = []
    return document


def _answer(answer: Answer) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if answer.body is not None:
        content["schema"] = {"$ref": _SCHEMAS + answer.body.__name__}
    if answer.examples:
        content["examples"] = {name: {"value": value} for name, value in answer.examples.items()}
    names = dict.fromkeys(("X-Request-Id", *answer.headers))
    return {
        "description": answer.description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": {answer.media_type: content},
    }
