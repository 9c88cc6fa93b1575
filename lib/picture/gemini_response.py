"""What a response of the Gemini API means: a picture, or an error and whether to retry.

Nothing that Google wrote leaves this module: errors have public messages and reasons of their own.

A refusal is sorted by who can mend it:

    the customer          400 for what the prompt asks: no image
    time                  409, 425, 499, 5xx, a rate quota: overloaded; 408, 504: timed out
    the operator, paying  402; a 429 for a quota of 0, a spend limit or a depleted prepayment
    the operator          any other 4xx, 501, redirects

Sources: ai.google.dev/api/generate-content, google.aip.dev/193, google/rpc/error_details.proto and,
for the sentences of a 429 or 400, public reports on discuss.ai.google.dev and GitHub.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import httpcore2
import httpx2
from google.genai import errors
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from lib.errors import (
    ContentRejected,
    GenerationFailed,
    ModelBudgetExhausted,
    ModelOverloaded,
    ModelTimedOut,
    ModelUnavailable,
    NoImageReturned,
)
from lib.picture.transport import ResponseTooLarge

__all__ = [
    "CONNECTION_FAULTS",
    "AttemptFailed",
    "api_failure",
    "connection_failure",
    "is_key_error",
    "picture_in",
]

# Quotas are per minute or per day. A delay over a minute means the daily one: do not wait for it.
LONGEST_WAIT_S = 60.0
# ``Retry-After`` for a 429 that states no delay, and its upper bound.
QUOTA_RETRY_AFTER_S = 60
MAX_RETRY_AFTER_S = 3600
_DURATION = r"(?:\d{1,9}(?:\.\d{1,9})?(?:ms|h|m|s))+"
_RETRY_DELAY = re.compile(_DURATION)
_RETRY_SENTENCE = re.compile(rf"retry in ({_DURATION})", re.IGNORECASE)
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class AttemptFailed(Exception):
    """A failed attempt: the error to report, and the least seconds to wait before a retry.

    ``wait_s`` is None if a retry cannot help.
    """

    def __init__(self, failure: GenerationFailed, wait_s: float | None = None) -> None:
        super().__init__(failure.code)
        self.failure = failure
        self.wait_s = wait_s


# The fields of a 200 that are used. All others are skipped unparsed.


class _ApiModel(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, val_json_bytes="base64", hide_input_in_errors=True
    )


class _InlineData(_ApiModel):
    data: bytes = b""


class _Part(_ApiModel):
    thought: bool | None = None
    text: object = None
    inline_data: _InlineData | None = None


class _Content(_ApiModel):
    parts: list[_Part] | None = None


class _Candidate(_ApiModel):
    content: _Content | None = None
    finish_reason: str | None = None


class _PromptFeedback(_ApiModel):
    block_reason: str | None = None


class _GenerateContentResponse(_ApiModel):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _PromptFeedback | None = None


# Substrings of finish reasons that mean a policy refusal. Google composes new reasons of them, such
# as IMAGE_PROHIBITED_CONTENT and IMAGE_RECITATION.
_POLICY = re.compile("SAFETY|RECITATION|BLOCKLIST|PROHIBITED|SPII|MODEL_ARMOR|JAILBREAK")


def picture_in(body: str) -> bytes:
    """The last non-thought picture in the body of a 200.

    Its presence decides, not the finish reason: STOP may come with text alone, and OTHER with a
    picture. Only a policy reason overrides a picture.

    Raises:
        ContentRejected, NoImageReturned: see ``lib.picture.gemini.Gemini.generate``.
    """
    try:
        response = _GenerateContentResponse.model_validate_json(body)
    except ValidationError as fault:
        raise NoImageReturned("unreadable" if body.strip() else "empty_body") from fault
    candidates = response.candidates or []
    feedback = response.prompt_feedback
    blocked = feedback is not None and feedback.block_reason
    if blocked or any(_POLICY.search(candidate.finish_reason or "") for candidate in candidates):
        raise ContentRejected
    pictures = [
        part.inline_data.data
        for part in _parts(candidates)
        if part.inline_data and part.inline_data.data and not part.thought
    ]
    if not pictures:
        raise NoImageReturned(_why_no_picture(candidates))
    return pictures[-1]


# The finish reasons that say why there is no picture and are no policy refusal.
_FINISH_REASONS = frozenset(
    {
        "IMAGE_OTHER",
        "LANGUAGE",
        "MALFORMED_FUNCTION_CALL",
        "MALFORMED_RESPONSE",
        "MAX_TOKENS",
        "NO_IMAGE",
        "OTHER",
        "UNEXPECTED_TOOL_CALL",
    }
)


def _why_no_picture(candidates: list[_Candidate]) -> str:
    """Which rule found no picture, as a constant of this module."""
    if not candidates:
        return "no_candidates"
    finished = candidates[-1].finish_reason or "STOP"
    if finished in _FINISH_REASONS:
        return f"finish_{finished.lower()}"
    if any(part.text and not part.thought for part in _parts(candidates)):
        return "text_only"
    if any(part.thought for part in _parts(candidates)):
        return "thought_only"
    return "no_parts" if finished == "STOP" else "finish_unknown"


def _parts(candidates: list[_Candidate]) -> Iterator[_Part]:
    for candidate in candidates:
        yield from (candidate.content and candidate.content.parts) or []


# The body of an error: google.rpc.Status with details, each of which is read by itself, because one
# odd detail must not hide what the others say.


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What could be read of an error's body. ``delay_s`` is the longest wait that it asks for."""

    status: str
    sentence: str
    reasons: tuple[str, ...]
    delay_s: float | None
    has_no_quota: bool
    blames_settings: bool


def _refusal_in(body: object) -> _Refusal:
    """Reads an error's body; a load balancer's page, for example, has none of the fields."""
    error = _mapping(_mapping(body).get("error"))
    details = error.get("details")
    each = [_mapping(detail) for detail in details] if isinstance(details, list) else []
    sentence = _text(error.get("message"))
    durations = [_RETRY_DELAY.fullmatch(_text(detail.get("retryDelay"))) for detail in each]
    delays = [_seconds(found[0]) for found in durations if found]
    delays += [_seconds(found[1]) for found in _RETRY_SENTENCE.finditer(sentence)]
    violations = [_mapping(found) for detail in each for found in _list(detail.get("violations"))]
    limits = [violation.get("quotaValue") for violation in violations]
    limits += [_mapping(detail.get("metadata")).get("quota_limit_value") for detail in each]
    fields = [
        _text(_mapping(found).get("field"))
        for detail in each
        for found in _list(detail.get("fieldViolations"))
    ]
    return _Refusal(
        status=_text(error.get("status")),
        sentence=sentence,
        reasons=tuple(_text(name) for detail in each for name in _one_or_many(detail, "reason")),
        delay_s=max(delays, default=None),
        has_no_quota=any(str(limit) == "0" for limit in limits),
        blames_settings=any(field.startswith(_OUR_FIELDS) for field in fields),
    )


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _one_or_many(detail: Mapping[str, object], name: str) -> list[object]:
    value = detail.get(name)
    return value if isinstance(value, list) else [value]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _seconds(duration: str) -> float:
    """Seconds of a duration such as ``34.28s``, ``650ms`` or ``11h33m30s``."""
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", duration)
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


_UNAUTHORIZED = frozenset({401, 403})
_TIMED_OUT = frozenset({408, 504})
# 409 ABORTED, 425 and 499 CANCELLED are seen under load: a server of Google's gave the request up.
_ABANDONED = frozenset({409, 425, 499})
_RETRYABLE = frozenset({500, 502, 503}) | _ABANDONED | _TIMED_OUT
# The fields of a request that the customer has no part in.
_OUR_FIELDS = ("generation_config", "generationConfig", "model", "safety_settings")
_KEY_SENTENCE = re.compile(r"\bAPI key\b", re.IGNORECASE)
# What a 400 says of the account, the region, or a model that cannot do what this service needs.
_OPERATOR_SENTENCE = re.compile(
    r"billed users|billing|location is not supported|for this model|model does not support"
    r"|modalit|aspect.?ratio|deadline|Invalid JSON payload|Unknown name",
    re.IGNORECASE,
)
# Each names what is used up. Ordinary quotas mention "billing details" too.
_BUDGETS: Mapping[str, re.Pattern[str]] = {
    "quota_zero": re.compile(r"\blimit: ?0(?!\d|\.\d)", re.IGNORECASE),
    "spend_limit": re.compile(r"\bspend(?:ing)?[ _-](?:based|cap|limit|rate)", re.IGNORECASE),
    "prepayment_depleted": re.compile(
        r"\b(?:prepa(?:id|y|yment)|credits?)\b.{0,60}\b(?:depleted|exhausted)", re.IGNORECASE
    ),
}


def is_key_error(error: errors.APIError) -> bool:
    """Whether Google rejected the API key, and not the request."""
    return _rejects_key(error.code, _refusal_in(error.details))


def _rejects_key(code: int, refusal: _Refusal) -> bool:
    if code in _UNAUTHORIZED or any(name.startswith("API_KEY") for name in refusal.reasons):
        return True
    return code == HTTPStatus.BAD_REQUEST and bool(_KEY_SENTENCE.search(refusal.sentence))


def api_failure(error: errors.APIError) -> AttemptFailed:
    """The failure that a response other than a 200 means."""
    code, refusal = error.code, _refusal_in(error.details)
    if code in _TIMED_OUT or code in _ABANDONED or _is_server_error(code):
        kind = ModelTimedOut if code in _TIMED_OUT else ModelOverloaded
        return AttemptFailed(kind(reason=f"http_{code}"), 0.0 if code in _RETRYABLE else None)
    if code == HTTPStatus.TOO_MANY_REQUESTS:
        return _quota_failure(refusal)
    return AttemptFailed(_final_failure(code, refusal))


def _final_failure(code: int, refusal: _Refusal) -> GenerationFailed:
    """The failure of a request that no retry can mend."""
    if code == HTTPStatus.PAYMENT_REQUIRED:
        return ModelBudgetExhausted(reason="payment_required")
    if code < 300:  # noqa: PLR2004 - a success that is no 200
        return NoImageReturned("no_content")
    if _rejects_key(code, refusal):
        return ModelUnavailable(reason="key_refused")
    if code == HTTPStatus.BAD_REQUEST and not _blames_operator(refusal):
        return NoImageReturned("request_refused")
    return ModelUnavailable(reason=f"http_{code}")


def _is_server_error(code: int) -> bool:
    """Whether a 5xx is a passing fault: 501 says that the model cannot do this."""
    return code >= HTTPStatus.INTERNAL_SERVER_ERROR and code != HTTPStatus.NOT_IMPLEMENTED


def _blames_operator(refusal: _Refusal) -> bool:
    """Whether a 400 is about the account, the region or this service's own fields."""
    # FAILED_PRECONDITION: the API is not available in this region, or billing is not enabled.
    return (
        refusal.status == "FAILED_PRECONDITION"
        or refusal.blames_settings
        or bool(_OPERATOR_SENTENCE.search(refusal.sentence))
    )


def _quota_failure(refusal: _Refusal) -> AttemptFailed:
    """The failure that a 429 means: a rate, which time mends, or a budget, which it does not.

    A budget's 429 may ask to retry within seconds all the same.
    """
    budget = _exhausted_budget(refusal)
    if budget is not None:
        return AttemptFailed(ModelBudgetExhausted(reason=budget))
    delay_s = refusal.delay_s
    if delay_s is None:
        return AttemptFailed(ModelOverloaded(QUOTA_RETRY_AFTER_S, reason="http_429"))
    retry_after_s = min(max(1, math.ceil(delay_s)), MAX_RETRY_AFTER_S)
    wait_s = delay_s if delay_s <= LONGEST_WAIT_S else None
    return AttemptFailed(ModelOverloaded(retry_after_s, reason="http_429"), wait_s)


def _exhausted_budget(refusal: _Refusal) -> str | None:
    """Which budget a 429 is about; None if it is a rate."""
    if refusal.has_no_quota:
        return "quota_zero"
    texts = (refusal.sentence, *refusal.reasons)
    found = (name for name, words in _BUDGETS.items() if any(map(words.search, texts)))
    return next(found, None)


CONNECTION_FAULTS = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.UnsupportedProtocol,
    httpx2.InvalidURL,
    ResponseTooLarge,
)


def connection_failure(fault: Exception) -> AttemptFailed:
    """The failure that an exception of the transport, one of ``CONNECTION_FAULTS``, means."""
    match fault:
        case httpcore2.TimeoutException():
            # Only a connect timeout leaves time for a retry; the deadline itself leaves none.
            return AttemptFailed(ModelTimedOut(), 0.0)
        case ResponseTooLarge():
            return AttemptFailed(NoImageReturned("too_large"))
        case httpcore2.NetworkError() | httpcore2.RemoteProtocolError():
            return AttemptFailed(ModelOverloaded(), 0.0)
        case _:
            return AttemptFailed(ModelUnavailable())
