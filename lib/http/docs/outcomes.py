"""Every outcome of a request: what it costs, and whether to try again.

The docs page and ``infra/docs/API.md`` render this table. Codes and sentences come from the OpenAPI
document, costs and retries from the attributes of ``lib.errors`` that the service sends as headers.
Only API Gateway's own responses are written down here: the service never sees them. Their source:
"Quotas for HTTP APIs" and "Troubleshooting HTTP API Lambda integrations" (Amazon API Gateway
Developer Guide).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lib.errors import InvalidRequest, MethodNotAllowed, ServiceError
from lib.http.openai import OPENAI_PATHS
from lib.ledger.order import CREDITS_PER_IMAGE

__all__ = ["Outcome", "outcomes"]

FIRST_ERROR = 400
_HELD = f"{CREDITS_PER_IMAGE}, held"
_UNKNOWN = "unknown"
_REPEAT_WITH_KEY = (
    "Repeat the request with the same `Idempotency-Key`: if the first one was charged, the "
    "repetition returns its image. Without a key, look into the history first."
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table; texts may hold inline code in backticks.

    ``code`` is the ``X-Error-Code``, or says whose response it is. ``credits_charged`` is what the
    request costs, and ``should_retry`` whether the same request can succeed later.
    """

    status: str
    code: str
    sentence: str
    credits_charged: str
    should_retry: str
    advice: str


_ADVICE: Mapping[str, str] = {
    "missing_prompt": "Send a prompt that has a visible character.",
    "prompt_too_long": "Shorten the prompt.",
    "invalid_aspect_ratio": "Use one of the ten ratios.",
    "unknown_field": "Correct the field's name; the sentence suggests one.",
    "invalid_json": "Send one JSON object.",
    "invalid_encoding": "Encode the body as UTF-8.",
    "invalid_base64": "Report it, quoting `X-Request-Id`: API Gateway encodes bodies.",
    "invalid_idempotency_key": "Choose another key.",
    "invalid_limit": "Correct `limit`.",
    "invalid_cursor": "Pass `nextCursor` unchanged.",
    "unauthorized": "Check the key.",
    "insufficient_credits": "Buy credits.",
    "organisation_suspended": "Ask the operator. The balance and the history can still be read.",
    "not_found": "Check the path and the id. Another organisation's generation is also a 404.",
    "method_not_allowed": "Use a method that `Allow` names.",
    "generation_in_flight": "Repeat the request after `Retry-After` seconds.",
    "generation_reserved": "Repeat the request after `Retry-After` seconds.",
    "body_too_large": "Shorten the body. It was not parsed.",
    "idempotency_key_reused": "Choose another key.",
    "image_deleted": "Choose another key: the request is then a new one, and charged.",
    "rate_limited": "Repeat the request after `Retry-After` seconds.",
    "busy": "Repeat the request after `Retry-After` seconds.",
    "content_rejected": "Change the prompt: Gemini refused it, or the picture it led to.",
    "no_image": "Change the prompt.",
    "model_timeout": "Repeat the request with `Prefer: respond-async`, as `hint` says.",
    "model_overloaded": "Repeat the request after `Retry-After` seconds.",
    "model_budget_exhausted": "Wait: the operator must act.",
    "storage_failed": "Repeat the request.",
    "queue_failed": "Repeat the request.",
    "model_unavailable": "Wait: the operator must act, and is alerted.",
    "reservation_lost": "Repeat the request.",
    "internal_error": "Repeat the request. If it fails again, quote `X-Request-Id`.",
    "outcome_pending": "Get the generation at `Location` until it is `settled` (charged) or "
    "`refunded`. Repeating the request with its `Idempotency-Key` never pays twice.",
    "service_unavailable": "Repeat the request.",
}

_SUCCESSES = (
    Outcome("200", "", "The image", str(CREDITS_PER_IMAGE), "no", "Open `imageUrl`."),
    Outcome(
        "200",
        "",
        "The same image, with `Idempotent-Replayed: true`",
        "0",
        "no",
        "Open `imageUrl`. The first request paid for it.",
    ),
    Outcome(
        "202",
        "",
        "Accepted; with `Idempotent-Replayed: true` it costs 0",
        _HELD,
        "no",
        "Get the generation at `Location` until it is `settled` (charged) or `refunded`.",
    ),
)
_OF_API_GATEWAY = (
    Outcome(
        "413",
        "none: API Gateway",
        "Request Entity Too Large",
        "0",
        "no",
        "Shorten the body: it is over 10 MB.",
    ),
    Outcome(
        "429",
        "none: API Gateway",
        "Too Many Requests",
        "0",
        "yes",
        "Repeat the request after some seconds: all customers together exceed the limit.",
    ),
    Outcome("500", "none: API Gateway", "Internal Server Error", _UNKNOWN, "yes", _REPEAT_WITH_KEY),
    Outcome("503", "none: API Gateway", "Service Unavailable", _UNKNOWN, "yes", _REPEAT_WITH_KEY),
    Outcome("none", "no response", "The connection broke", _UNKNOWN, "yes", _REPEAT_WITH_KEY),
)


def outcomes(document: Mapping[str, Any]) -> list[Outcome]:
    """The rows: successes, errors by status, and what comes from outside of the service.

    ``document`` is the OpenAPI document.

    Raises:
        KeyError: an error has no advice yet.
    """
    kinds = {kind.code: kind for kind in _kinds(ServiceError) if "code" in vars(kind)}
    rows = [
        _error(status, code, sentence, kinds.get(code, InvalidRequest))
        for (status, code), sentence in _sentences(document).items()
    ]
    return [*_SUCCESSES, *sorted(rows, key=lambda row: row.status), *_OF_API_GATEWAY]


def _sentences(document: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """The public sentence of each status and error code of any route.

    OpenAI's routes have the same codes under OpenAI's statuses: see ``lib.http.openai``.
    """
    found = {}
    for path, methods in document["paths"].items():
        if path.startswith(OPENAI_PATHS):
            continue
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if int(status) < FIRST_ERROR:
                    continue
                for code, example in response["content"]["application/json"]["examples"].items():
                    body = example["value"]
                    found[status, code] = body.get("message", body["error"])
    # It belongs to no operation: the routes that exist accept their methods.
    other = MethodNotAllowed
    return found | {(str(other.status), other.code): other.error}


def _error(status: str, code: str, sentence: str, kind: type[ServiceError]) -> Outcome:
    return Outcome(
        status,
        code,
        sentence,
        _HELD if kind.credits_charged else "0",
        "yes" if kind.should_retry else "no",
        _ADVICE[code],
    )


def _kinds(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _kinds(child)
