"""A prompt and a ratio become the bytes of a picture, by one deadline, or one of our errors.

The request goes through google-genai, which knows the URL, the headers and the errors of the
Gemini API. Two things are ours, because the SDK's own can't be relied on for a paid request:

- the transport under it (``lib.picture.transport``): the SDK's timeout is per read, so a body
  dripped a byte at a time never ends; it follows redirects and hands the API key to the other host;
  and it bounds no body;
- the reading of a 200: the SDK's typed response warns with Google's words, and raises half a dozen
  unrelated exceptions, on answers that it does not expect.

Facts about the API and the SDK: ai.google.dev/api/generate-content, google-genai 3.4.0's source.
"""

import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpcore2
import httpx2
from google import genai
from google.genai import errors, types
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from lib.deadline import Deadline
from lib.errors import (
    ContentRejected,
    GenerationFailed,
    ModelOverloaded,
    ModelTimedOut,
    ModelUnavailable,
    NoImageReturned,
)
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.transport import AnswerTooLarge, BoundedTransport

__all__ = ["RETRY_NEEDS_S", "Gemini"]

# A second attempt is only worth its price if a picture can still come of it: 4 s is the median
# of the fastest model.
RETRY_NEEDS_S = 10.0
RETRY_JITTER_S = (0.2, 1.0)
# Quotas are counted per minute; a longer delay is a day's quota, and not worth a paid wait.
LONGEST_WAIT_S = 60.0
# What to tell the customer after a 429 that names no delay, and at most.
QUOTA_RETRY_AFTER_S = 60
MAX_RETRY_AFTER_S = 3600

# Google refuses a request that asks it to be done in fewer seconds ("Minimum allowed deadline").
MIN_SERVER_TIMEOUT_S = 10

_SDK_LOGGERS = frozenset({"google_genai", "httpx2", "httpcore2"})
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Visible ASCII. The SDK keeps tokens of the live API, which begin like a path, from this call.
_USABLE_KEY = re.compile(r"(?!auth_tokens/)[!-~]{1,512}")
_RETRY_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")


@dataclass(frozen=True, slots=True)
class _Dialect:
    """What a model wants to be told. A ratio that it takes no field for goes into the prompt."""

    modalities: tuple[str, ...]
    takes_image_config: bool


_CURRENT = _Dialect(("IMAGE",), takes_image_config=True)
_GEMINI_2_0 = _Dialect(("TEXT", "IMAGE"), takes_image_config=False)

# A model that is not listed is spoken to as the current ones are: every image model since 2.5
# takes an imageConfig, so one that is younger than this table does too, and without the field it
# would choose a shape of its own, which nobody could sell.
_DIALECTS: Mapping[str, _Dialect] = {
    "gemini-2.0-flash": _GEMINI_2_0,
    "gemini-2.0-flash-exp": _GEMINI_2_0,
    "gemini-2.0-flash-exp-image-generation": _GEMINI_2_0,
    "gemini-2.0-flash-preview-image-generation": _GEMINI_2_0,
}


class Gemini:
    """The image model. Thread-safe: all threads share one SDK client and its idle connections."""

    def __init__(
        self, api_key: Callable[[], str], model: str, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Makes no network call.

        ``api_key`` is asked on first use, and again after Google has refused the key, which may
        have been rotated since.

        Raises:
            ValueError: ``model`` can't be a model's id.
        """
        if not _MODEL_ID.fullmatch(model):
            raise ValueError("the Gemini model's id may hold letters, digits, '.', '_' and '-'")
        _silence_the_sdk()
        self._api_key = api_key
        self._model = model
        self._dialect = _DIALECTS.get(model, _CURRENT)
        self._sleep = sleep
        self._tls = httpx2.create_ssl_context()
        self._http = httpx2.Client(
            transport=BoundedTransport(self._tls),
            follow_redirects=False,
            trust_env=False,
            # A picture does not compress, and a compressed answer has no size until it is open.
            headers={"Accept-Encoding": "identity"},
        )
        self._lock = threading.Lock()
        self._client: genai.Client | None = None

    def generate(self, prompt: str, ratio: AspectRatio, deadline: Deadline) -> bytes:
        """The picture that the model drew: the last one of its answer that is no thought.

        The bytes are what came: JPEG, PNG or something else entirely, whatever the answer calls
        them. One retry at most, only for a fault that it can mend, and only if ``RETRY_NEEDS_S``
        are left after the wait.

        Raises:
            ContentRejected: the prompt was blocked, or the answer ended for a reason of policy,
                even if a picture came with it: a picture that Google flags is not ours to sell.
            NoImageReturned: text, nothing, or something unreadable came instead; or Google finds
                fault with the request (a 400 that is not about the key), as it does with some
                prompts.
            ModelTimedOut: ``deadline`` passed, or Google ran out of time by itself. Resolving
                Google's name ends with the resolver's own timeout, all else with the deadline.
            ModelOverloaded: quota, overload, a fault of Google's, or no connection.
            ModelUnavailable: the key, the model, the region or the base URL is wrong.

        What ``api_key`` raises passes through.
        """
        try:
            return self._attempt(prompt, ratio, deadline)
        except _Fault as fault:
            wait_s = fault.wait_s
            if wait_s is None or deadline.remaining_s() < wait_s + RETRY_NEEDS_S:
                raise fault.failure from fault
        self._sleep(wait_s)
        try:
            return self._attempt(prompt, ratio, deadline)
        except _Fault as fault:
            raise fault.failure from fault

    def prime(self) -> None:
        """Builds an SDK client with a made-up key and forgets it, so that the SDK is all loaded."""
        self._new_client("primal")

    def close(self) -> None:
        """Closes the idle connections. For the end of a process or of a test."""
        self._http.close()

    def _attempt(self, prompt: str, ratio: AspectRatio, deadline: Deadline) -> bytes:
        client = self._client_with_key(deadline)
        if deadline.passed():
            raise ModelTimedOut
        try:
            answer = client.models.generate_content(
                model=self._model,
                contents=prompt if self._dialect.takes_image_config else _with_ratio(prompt, ratio),
                config=self._config(ratio, deadline.remaining_s()),
            )
        except errors.APIError as refusal:
            if _is_about_the_key(refusal):
                self._forget(client)
            raise _fault_of_refusal(refusal) from refusal
        except _CONNECTION_FAULTS as fault:
            raise _fault_of_connection(fault) from fault
        except (ValueError, RecursionError) as fault:
            # The SDK could not read the body of an error: not Google speaking, but something
            # between us and it.
            raise _Fault(ModelOverloaded(), _jitter_s()) from fault
        raw = answer.sdk_http_response
        return _picture_in((raw.body if raw else None) or "")

    def _config(self, ratio: AspectRatio, left_s: float) -> types.GenerateContentConfig:
        image_config = types.ImageConfig(aspect_ratio=ratio.value)
        return types.GenerateContentConfig(
            response_modalities=list(self._dialect.modalities),
            image_config=image_config if self._dialect.takes_image_config else None,
            # The body as it came. Its continuations are not followed either.
            should_return_http_response=True,
            http_options=types.HttpOptions(
                # Milliseconds; 0 would mean no limit.
                timeout=max(1, int(left_s * 1000)),
                headers={"X-Server-Timeout": str(max(MIN_SERVER_TIMEOUT_S, math.ceil(left_s)))},
            ),
        )

    def _client_with_key(self, deadline: Deadline) -> genai.Client:
        if not self._lock.acquire(timeout=deadline.remaining_s()):
            raise ModelTimedOut
        try:
            if self._client is None:
                self._client = self._new_client(self._api_key().strip())
            return self._client
        finally:
            self._lock.release()

    def _new_client(self, key: str) -> genai.Client:
        # An empty key would make the SDK look for one in the environment.
        if not _USABLE_KEY.fullmatch(key):
            raise ModelUnavailable
        options = types.HttpOptions(
            api_version="v1beta",
            httpx_client=self._http,
            # Keeps the SDK from loading two more bundles of certificates for clients not used.
            async_client_args={"verify": self._tls, "ssl": self._tls},
        )
        return genai.Client(api_key=key, vertexai=False, http_options=options)

    def _forget(self, client: genai.Client) -> None:
        with self._lock:
            if self._client is client:
                self._client = None


def _silence_the_sdk() -> None:
    """Switches its loggers off, at every level: they tell URLs, header lines and Google's words."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in _SDK_LOGGERS:
            logger.disabled = True


def _with_ratio(prompt: str, ratio: AspectRatio) -> str:
    return f"{prompt}\n\nDraw the picture with an aspect ratio of {ratio.value} (width to height)."


def _jitter_s() -> float:
    # From the operating system: processes restored from one snapshot share the other generators.
    return random.SystemRandom().uniform(*RETRY_JITTER_S)


class _Fault(Exception):
    """An attempt that failed: what to say of it, and the wait after which a retry may mend it."""

    def __init__(self, failure: GenerationFailed, wait_s: float | None = None) -> None:
        super().__init__(failure.code)
        self.failure = failure
        self.wait_s = wait_s


# What a 200 holds, and of it only what is used. Everything else in it is skipped unread.


class _Wire(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, val_json_bytes="base64", hide_input_in_errors=True
    )


class _InlineData(_Wire):
    data: bytes = b""


class _Part(_Wire):
    thought: bool | None = None
    inline_data: _InlineData | None = None


class _Content(_Wire):
    parts: list[_Part] | None = None


class _Candidate(_Wire):
    content: _Content | None = None
    finish_reason: str | None = None


class _PromptFeedback(_Wire):
    block_reason: str | None = None


class _Answer(_Wire):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _PromptFeedback | None = None


# Parts of the finish reasons that mean a refusal. Google adds new ones that are made of them, as
# IMAGE_PROHIBITED_CONTENT and IMAGE_RECITATION were.
_POLICY = re.compile("SAFETY|RECITATION|BLOCKLIST|PROHIBITED|SPII|MODEL_ARMOR|JAILBREAK")


def _picture_in(body: str) -> bytes:
    """The last picture in the body of a 200 that is no thought.

    Whether there is one decides, not the finish reason: STOP comes with text alone, and OTHER
    with pictures. Only a reason of policy outweighs a picture.
    """
    try:
        answer = _Answer.model_validate_json(body)
    except ValidationError as fault:
        raise NoImageReturned from fault
    candidates = answer.candidates or []
    blocked = answer.prompt_feedback is not None and answer.prompt_feedback.block_reason
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


# What an answer that is not a 200 holds: google.rpc.Status with ErrorInfo and RetryInfo.


class _Detail(_Wire):
    reason: str | None = None
    retry_delay: str | None = None


class _Status(_Wire):
    status: str | None = None
    details: list[_Detail] = []


class _Refusal(_Wire):
    error: _Status = _Status()


_UNAUTHORIZED = frozenset({401, 403})
_TIMED_OUT = frozenset({408, 504})
_MENDABLE = frozenset({500, 502, 503, 504})


def _status_of(refusal: errors.APIError) -> _Status:
    try:
        return _Refusal.model_validate(refusal.details).error
    except ValidationError:
        # A load balancer's page, or a shape of Google's that is not known: the code has to do.
        return _Status()


def _is_about_the_key(refusal: errors.APIError) -> bool:
    reasons = [detail.reason or "" for detail in _status_of(refusal).details]
    return refusal.code in _UNAUTHORIZED or any(name.startswith("API_KEY") for name in reasons)


def _fault_of_refusal(refusal: errors.APIError) -> _Fault:
    code, status = refusal.code, _status_of(refusal)
    if code == 429:  # noqa: PLR2004 - Too Many Requests
        return _fault_of_quota(status)
    if code in _TIMED_OUT or code >= 500:  # noqa: PLR2004 - the first of the server's faults
        failure = ModelTimedOut() if code in _TIMED_OUT else ModelOverloaded()
        return _Fault(failure, _jitter_s() if code in _MENDABLE else None)
    # FAILED_PRECONDITION: no service in this region, or no billing.
    for_the_operator = code == 404 or 300 <= code < 400  # noqa: PLR2004 - HTTP's own numbers
    if for_the_operator or _is_about_the_key(refusal) or status.status == "FAILED_PRECONDITION":
        return _Fault(ModelUnavailable())
    return _Fault(NoImageReturned())


def _fault_of_quota(status: _Status) -> _Fault:
    delays = [_RETRY_DELAY.fullmatch(detail.retry_delay or "") for detail in status.details]
    delay_s = max((float(delay[1]) for delay in delays if delay), default=None)
    if delay_s is None:
        return _Fault(ModelOverloaded(QUOTA_RETRY_AFTER_S))
    retry_after_s = min(max(1, math.ceil(delay_s)), MAX_RETRY_AFTER_S)
    wait_s = delay_s + _jitter_s() if delay_s <= LONGEST_WAIT_S else None
    return _Fault(ModelOverloaded(retry_after_s), wait_s)


_CONNECTION_FAULTS = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.UnsupportedProtocol,
    httpx2.InvalidURL,
    AnswerTooLarge,
)


def _fault_of_connection(fault: Exception) -> _Fault:
    match fault:
        case httpcore2.TimeoutException():
            # At the deadline no time is left for the retry; it is for addresses that don't answer.
            return _Fault(ModelTimedOut(), _jitter_s())
        case AnswerTooLarge():
            return _Fault(NoImageReturned())
        case httpcore2.NetworkError() | httpcore2.RemoteProtocolError():
            return _Fault(ModelOverloaded(), _jitter_s())
        case _:
            return _Fault(ModelUnavailable())
