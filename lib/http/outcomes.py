"""Every outcome of a request: what it costs, and whether to try again.

The docs page and ``infra/docs/API.md`` render this table. Codes and sentences come from the OpenAPI
document, costs and retries from the attributes of ``lib.errors`` that the service sends as headers.
When each happens, and what to do, is written down here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lib.deadline import RATE_WINDOW_S
from lib.errors import InvalidRequest, MethodNotAllowed, ServiceError
from lib.http.gateway import GATEWAY_ANSWERS, REPEAT_WITH_KEY
from lib.http.models import MAX_BODY_BYTES, MAX_PAGE, MAX_PROMPT_CHARACTERS
from lib.ledger.order import CREDITS_PER_IMAGE

__all__ = ["EXPLANATIONS", "FIRST_ERROR", "Explanation", "Outcome", "outcomes"]

FIRST_ERROR = 400
_HELD = f"{CREDITS_PER_IMAGE}, held"
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table; texts may hold inline code in backticks.

    ``code`` is the ``X-Error-Code``, or says whose response it is. ``when`` tells what happened.
    ``credits_charged`` is what the request costs, and ``should_retry`` whether the same request can
    succeed later; ``wait`` says after how long, where there is more to say.
    """

    status: str
    code: str
    sentence: str
    when: str
    credits_charged: str
    should_retry: str
    wait: str
    advice: str

    @property
    def try_again(self) -> str:
        """``should_retry`` and ``wait`` as one cell."""
        return f"{self.should_retry}: {self.wait}" if self.wait else self.should_retry


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a row says about an error code beside what its headers state."""

    when: str
    advice: str
    wait: str = ""


_RETRY_AFTER = "after `Retry-After` seconds"

EXPLANATIONS: Mapping[str, Explanation] = {
    "missing_prompt": Explanation(
        "`prompt` is absent, null, not a string, or has no visible character.",
        "Send a prompt that has a visible character.",
    ),
    "prompt_too_long": Explanation(
        f"The prompt is longer than {MAX_PROMPT_CHARACTERS:,} characters.", "Shorten the prompt."
    ),
    "invalid_aspect_ratio": Explanation(
        "`aspectRatio` is not one of the ten.", "Use one of the ten ratios."
    ),
    "unknown_field": Explanation(
        "The body has a field that the request table does not name.",
        "Correct the field's name; the sentence suggests one.",
    ),
    "invalid_json": Explanation("The body is not a JSON object.", "Send one JSON object."),
    "invalid_encoding": Explanation(
        "The body is not UTF-8: a Latin-1 or UTF-16 file, for example.", "Encode the body as UTF-8."
    ),
    "invalid_base64": Explanation(
        "The gateway passed on a body that is not the base64 that it says it is.",
        "Report it, quoting `X-Request-Id`: API Gateway encodes bodies.",
    ),
    "invalid_idempotency_key": Explanation(
        "The `Idempotency-Key` is empty, too long or not printable ASCII.", "Choose another key."
    ),
    "invalid_limit": Explanation(
        f"`limit` is not a whole number from 1 to {MAX_PAGE}.", "Correct `limit`."
    ),
    "invalid_month": Explanation("`month` is not of the form YYYY-MM.", "Correct `month`."),
    "invalid_cursor": Explanation(
        "`cursor` is not the `nextCursor` of an earlier page.", "Pass `nextCursor` unchanged."
    ),
    "unauthorized": Explanation(
        "The API key is missing, malformed, unknown, revoked or expired.", "Check the key."
    ),
    "insufficient_credits": Explanation(
        "The balance is below the price of an image.",
        "Buy credits.",
        "not before the organisation has credits",
    ),
    "key_budget_exhausted": Explanation(
        "The API key has spent its monthly budget; `creditsRemaining` is what that has left.",
        "Wait for the next month in UTC, use another key, or ask the operator.",
        "not before the next month",
    ),
    "organisation_suspended": Explanation(
        "The operator suspended the organisation: for refused prompts, or a bill.",
        "Ask the operator. The balance and the history can still be read.",
    ),
    "not_found": Explanation(
        "No route has this path, or the organisation has no generation with this id.",
        "Check the path and the id. Another organisation's generation is also a 404.",
    ),
    "method_not_allowed": Explanation(
        "The path exists, with other methods.", "Use a method that `Allow` names."
    ),
    "generation_in_flight": Explanation(
        "An earlier request with this `Idempotency-Key` has not ended yet.",
        "Repeat the request: it returns the image once there is one.",
        _RETRY_AFTER,
    ),
    "generation_reserved": Explanation(
        "The generation is in progress: it has no receipt yet and cannot be deleted.",
        "Repeat the request.",
        _RETRY_AFTER,
    ),
    "body_too_large": Explanation(
        f"The body is larger than {MAX_BODY_BYTES // 1024} KiB.",
        "Shorten the body. It was not parsed.",
    ),
    "idempotency_key_reused": Explanation(
        "This `Idempotency-Key` came with another prompt or ratio within the last 24 hours.",
        "Choose another key.",
    ),
    "image_deleted": Explanation(
        "This `Idempotency-Key` paid for an image that was deleted since.",
        "Choose another key: the request is then a new one, and charged.",
    ),
    "rate_limited": Explanation(
        "The organisation used up a limit; `RateLimit-Policy` names it.",
        "Repeat the request, and spread requests out.",
        f"{_RETRY_AFTER}, {RATE_WINDOW_S} at most",
    ),
    "busy": Explanation(
        "So many requests of the organisation arrived at once that this one found no turn.",
        "Repeat the request.",
        _RETRY_AFTER,
    ),
    "content_rejected": Explanation(
        "Gemini refused the prompt, or the picture that it led to: safety, a block list, "
        "prohibited content or recitation.",
        "Change the prompt.",
    ),
    "no_image": Explanation(
        "Gemini answered with text only, or with a file that is no whole picture of the ratio.",
        "Change the prompt: describe one picture.",
    ),
    "model_timeout": Explanation(
        "Gemini sent no picture in the time that a request has.",
        "Repeat the request with `Prefer: respond-async`, as `hint` says: that gives it minutes.",
        "at once",
    ),
    "model_overloaded": Explanation(
        "Gemini has no capacity: an overload, a fault of its own, or a quota that is used up.",
        "Repeat the request.",
        _RETRY_AFTER,
    ),
    "model_budget_exhausted": Explanation(
        "Google refuses for billing: the operator's spend limit or prepaid credit is used up.",
        "Wait: the operator must act.",
        "not before the operator has raised the limit",
    ),
    "storage_failed": Explanation(
        "The picture was made, and the store did not take it.", "Repeat the request.", "at once"
    ),
    "queue_failed": Explanation(
        "An asynchronous request could not be queued.", "Repeat the request.", "at once"
    ),
    "model_unavailable": Explanation(
        "Google refuses the service's key, model or region: a fault of the deployment.",
        "Wait: the operator must act, and is alerted.",
        "not before the operator has mended it",
    ),
    "reservation_lost": Explanation(
        "The generation took longer than its lease, and was refunded before it ended.",
        "Repeat the request.",
        "at once",
    ),
    "internal_error": Explanation(
        "A bug in this service, met after the credits were held, which are back.",
        "Repeat the request. If it fails again, quote `X-Request-Id`.",
        "at once",
    ),
    "outcome_pending": Explanation(
        "The service could not write how the generation ended: it is charged or refunded later.",
        "Get the generation at `Location` until it is `settled` (charged) or "
        "`refunded`. Repeating the request with its `Idempotency-Key` never pays twice.",
        "ask `Location` after `Retry-After` seconds",
    ),
    "service_unavailable": Explanation(
        "The ledger, the keys or another part of the service did not respond. Nothing is debited, "
        "or the debit's response was lost and it is refunded within 3 minutes.",
        "Repeat the request.",
        "after a second, then twice as long each time",
    ),
}
"""What there is to say about each error code."""

_SUCCESSES = (
    Outcome(
        "200",
        "",
        "The image",
        "The image is stored.",
        str(CREDITS_PER_IMAGE),
        "no",
        "",
        "Open `imageUrl`.",
    ),
    Outcome(
        "200",
        "",
        "The same image, with `Idempotent-Replayed: true`",
        "An earlier request with this `Idempotency-Key` paid for the image.",
        "0",
        "no",
        "",
        "Open `imageUrl`.",
    ),
    Outcome(
        "202",
        "",
        "Accepted; with `Idempotent-Replayed: true` it costs 0",
        "The request preferred `respond-async`, and is queued.",
        _HELD,
        "no",
        "",
        "Get the generation at `Location` until it is `settled` (charged) or `refunded`.",
    ),
)


def _of_api_gateway() -> Iterator[Outcome]:
    for each in GATEWAY_ANSWERS:
        yield Outcome(
            str(each.status),
            "none: API Gateway",
            each.message,
            each.when,
            "0" if each.is_free else _UNKNOWN,
            "yes" if each.should_retry else "no",
            each.wait,
            each.advice,
        )
    yield Outcome(
        "none",
        "no response",
        "The connection broke",
        "The network failed, or the client gave up before the response.",
        _UNKNOWN,
        "yes",
        "at once",
        REPEAT_WITH_KEY,
    )


def outcomes(document: Mapping[str, Any]) -> list[Outcome]:
    """The rows: successes, errors by status, and what comes from outside of the service.

    ``document`` is the OpenAPI document.

    Raises:
        KeyError: an error has no explanation yet.
    """
    kinds = {kind.code: kind for kind in _kinds(ServiceError) if "code" in vars(kind)}
    rows = [
        _error(status, code, sentence, kinds.get(code, InvalidRequest))
        for (status, code), sentence in _sentences(document).items()
    ]
    return [*_SUCCESSES, *sorted(rows, key=lambda row: row.status), *_of_api_gateway()]


def _sentences(document: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """The public sentence of each status and error code, of the routes with this form of error.

    The generate route comes first: its sentence counts where another route has its own.
    """
    found: dict[tuple[str, str], str] = {}
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if int(status) < FIRST_ERROR:
                    continue
                for code, example in response["content"]["application/json"]["examples"].items():
                    body = example["value"]
                    if isinstance(body.get("error"), str):
                        found.setdefault((status, code), body.get("message", body["error"]))
    # It belongs to no operation: the routes that exist accept their methods.
    other = MethodNotAllowed
    return found | {(str(other.status), other.code): other.error}


def _error(status: str, code: str, sentence: str, kind: type[ServiceError]) -> Outcome:
    explained = EXPLANATIONS[code]
    return Outcome(
        status,
        code,
        sentence,
        explained.when,
        _HELD if kind.credits_charged else "0",
        "yes" if kind.should_retry else "no",
        explained.wait,
        explained.advice,
    )


def _kinds(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _kinds(child)
