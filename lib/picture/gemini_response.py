"""What a response of the Gemini API means: a picture, or an error and whether to retry.

Nothing that Google wrote leaves this module: errors have public messages of their own.

Sources: ai.google.dev/api/generate-content and google.aip.dev/193.
"""

import math
import re
from http import HTTPStatus

import httpcore2
import httpx2
from google.genai import errors
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from lib.errors import (
    ContentRejected,
    GenerationFailed,
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
_RETRY_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")


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
        raise NoImageReturned from fault
    candidates = response.candidates or []
    feedback = response.prompt_feedback
    blocked = feedback is not None and feedback.block_reason
    if blocked or any(_POLICY.search(candidate.finish_reason or "") for candidate in candidates):
        raise ContentRejected
    pictures = [
        part.inline_data.data
        for candidate in candidates
        for part in (candidate.content and candidate.content.parts) or []
        if part.inline_data and part.inline_data.data and not part.thought
    ]
    if not pictures:
        raise NoImageReturned
    return pictures[-1]


# The body of an error: google.rpc.Status with ErrorInfo and RetryInfo.


class _Detail(_ApiModel):
    reason: str | None = None
    retry_delay: str | None = None


class _RpcStatus(_ApiModel):
    status: str | None = None
    details: list[_Detail] = []


class _ErrorBody(_ApiModel):
    error: _RpcStatus = _RpcStatus()


_UNAUTHORIZED = frozenset({401, 403})
_TIMED_OUT = frozenset({408, 504})
_RETRYABLE = frozenset({500, 502, 503, 504})


def _status_of(error: errors.APIError) -> _RpcStatus:
    """The status in an error's body; an empty one if the body has another shape."""
    try:
        return _ErrorBody.model_validate(error.details).error
    except ValidationError:
        # A load balancer's page, for example. The HTTP status alone decides.
        return _RpcStatus()


def is_key_error(error: errors.APIError) -> bool:
    """Whether Google rejected the API key, and not the request."""
    reasons = [detail.reason or "" for detail in _status_of(error).details]
    return error.code in _UNAUTHORIZED or any(name.startswith("API_KEY") for name in reasons)


def api_failure(error: errors.APIError) -> AttemptFailed:
    """The failure that a response other than a 200 means."""
    code, status = error.code, _status_of(error)
    if code == HTTPStatus.TOO_MANY_REQUESTS:
        return _quota_failure(status)
    if code in _TIMED_OUT or code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        failure = ModelTimedOut() if code in _TIMED_OUT else ModelOverloaded()
        return AttemptFailed(failure, 0.0 if code in _RETRYABLE else None)
    is_wrong_url = code == HTTPStatus.NOT_FOUND or 300 <= code < 400  # noqa: PLR2004 - the redirects
    # FAILED_PRECONDITION: the API is not available in this region, or billing is not enabled.
    if is_wrong_url or is_key_error(error) or status.status == "FAILED_PRECONDITION":
        return AttemptFailed(ModelUnavailable())
    return AttemptFailed(NoImageReturned())


def _quota_failure(status: _RpcStatus) -> AttemptFailed:
    """The failure that a 429 means, whose RetryInfo may state the seconds to wait."""
    delays = [_RETRY_DELAY.fullmatch(detail.retry_delay or "") for detail in status.details]
    delay_s = max((float(delay[1]) for delay in delays if delay), default=None)
    if delay_s is None:
        return AttemptFailed(ModelOverloaded(QUOTA_RETRY_AFTER_S))
    retry_after_s = min(max(1, math.ceil(delay_s)), MAX_RETRY_AFTER_S)
    wait_s = delay_s if delay_s <= LONGEST_WAIT_S else None
    return AttemptFailed(ModelOverloaded(retry_after_s), wait_s)


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
            return AttemptFailed(NoImageReturned())
        case httpcore2.NetworkError() | httpcore2.RemoteProtocolError():
            return AttemptFailed(ModelOverloaded(), 0.0)
        case _:
            return AttemptFailed(ModelUnavailable())
