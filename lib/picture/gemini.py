"""Generates a picture from a prompt with Gemini, within one deadline.

Requests go through google-genai, which knows the URL, headers and errors of the Gemini API. Two
parts of the SDK are replaced, because a paid request cannot rely on them:

- the transport (``lib.picture.transport``): the SDK's timeout is per read, so a body dripped a byte
  at a time never times out; it follows redirects and sends the API key to the new host; and it does
  not limit the size of a body;
- the parsing of a 200 (``lib.picture.gemini_response``): on an unexpected response, the SDK's typed
  model logs warnings that quote Google's text, or raises one of half a dozen unrelated exceptions.

Sources: ai.google.dev/api/generate-content and the source of google-genai 3.4.0.
"""

import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx2
from google import genai
from google.genai import errors, types

from lib.deadline import Deadline
from lib.errors import ModelOverloaded, ModelTimedOut, ModelUnavailable
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.gemini_key import is_usable_key
from lib.picture.gemini_response import (
    CONNECTION_FAULTS,
    AttemptFailed,
    api_failure,
    connection_failure,
    is_key_error,
    picture_in,
)
from lib.picture.transport import BoundedTransport

__all__ = ["RETRY_NEEDS_S", "Gemini"]

# A retry with less time than this is unlikely to succeed: the fastest model's median is 4 s.
RETRY_NEEDS_S = 10.0
RETRY_JITTER_S = (0.2, 1.0)
# Google rejects a shorter server timeout ("Minimum allowed deadline").
MIN_SERVER_TIMEOUT_S = 10

_SDK_LOGGERS = frozenset({"google_genai", "httpx2", "httpcore2"})
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class _Dialect:
    """What a model's request contains. Without ``imageConfig``, the ratio goes into the prompt."""

    modalities: tuple[str, ...]
    has_image_config: bool


_CURRENT = _Dialect(("IMAGE",), has_image_config=True)
_GEMINI_2_0 = _Dialect(("TEXT", "IMAGE"), has_image_config=False)

# Models that are not listed use ``_CURRENT``: every image model since 2.5 accepts an imageConfig.
# Without that field a model chooses the ratio itself, and the picture would be refused.
_DIALECTS: Mapping[str, _Dialect] = {
    "gemini-2.0-flash": _GEMINI_2_0,
    "gemini-2.0-flash-exp": _GEMINI_2_0,
    "gemini-2.0-flash-exp-image-generation": _GEMINI_2_0,
    "gemini-2.0-flash-preview-image-generation": _GEMINI_2_0,
}


class Gemini:
    """The image model. Thread-safe: threads share one SDK client, and no connection."""

    def __init__(
        self, api_key: Callable[[], str], model: str, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Builds the client without a network call.

        ``api_key`` returns the API key. It is called on first use, and again after Google rejects
        the key, in case it has been rotated.

        Raises:
            ValueError: ``model`` is not a valid model id.
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
            # Pictures do not compress, and the size limit applies to what is sent.
            headers={"Accept-Encoding": "identity"},
        )
        self._lock = threading.Lock()
        self._client: genai.Client | None = None

    def generate(self, prompt: str, ratio: AspectRatio, deadline: Deadline) -> bytes:
        """Returns the picture's bytes: the last non-thought image part of the response.

        The bytes are unchecked: JPEG, PNG or anything else, whatever their declared MIME type.
        Makes at most one retry, only after a transient fault and only if ``RETRY_NEEDS_S`` seconds
        remain after the wait.

        Raises:
            ContentRejected: the prompt was blocked, or the response ended for a policy reason,
                even if it contains a picture: a picture that Google flags is not for sale.
            NoImageReturned: the response is empty, unreadable or text only; or Google rejected
                the request with a 400 for what it asks, as it does for some prompts.
            ModelTimedOut: ``deadline`` passed, or Google timed out. DNS resolution is bounded by
                the resolver's own timeout, everything else by the deadline.
            ModelOverloaded: a rate quota, overload, a server error of Google's, or no connection.
            ModelBudgetExhausted: Google's billing stops the service: no billing, a spend limit or
                a depleted prepayment.
            ModelUnavailable: the key, the model, the region or the base URL is wrong, or Google
                refuses the service for a reason that is not known here.

        Exceptions of ``api_key`` propagate.
        """
        try:
            return self._attempt(prompt, ratio, deadline)
        except AttemptFailed as fault:
            if fault.wait_s is None:
                raise fault.failure from fault
            wait_s = fault.wait_s + _jitter_s()
            if deadline.remaining_s() < wait_s + RETRY_NEEDS_S:
                raise fault.failure from fault
        self._sleep(wait_s)
        try:
            return self._attempt(prompt, ratio, deadline)
        except AttemptFailed as fault:
            raise fault.failure from fault

    def prime(self) -> None:
        """Loads the whole SDK before a snapshot, by building a client with a placeholder key."""
        self._new_client("placeholder")

    def close(self) -> None:
        """Closes the connections in use."""
        self._http.close()

    def _attempt(self, prompt: str, ratio: AspectRatio, deadline: Deadline) -> bytes:
        """One call of the model.

        Raises:
            AttemptFailed: the call failed; it says whether a retry may succeed.
            ContentRejected, NoImageReturned, ModelTimedOut, ModelUnavailable: see ``generate``.
        """
        client = self._client_with_key(deadline)
        if deadline.passed():
            raise ModelTimedOut
        try:
            response = client.models.generate_content(
                model=self._model,
                contents=prompt if self._dialect.has_image_config else _with_ratio(prompt, ratio),
                config=self._config(ratio, deadline.remaining_s()),
            )
        except errors.APIError as error:
            if is_key_error(error):
                self._discard(client)
            raise api_failure(error) from error
        except CONNECTION_FAULTS as fault:
            raise connection_failure(fault) from fault
        except (ValueError, RecursionError) as fault:
            # The SDK could not parse the body of an error, so a proxy sent it and not Google.
            raise AttemptFailed(ModelOverloaded(), 0.0) from fault
        raw = response.sdk_http_response
        return picture_in((raw.body if raw else None) or "")

    def _config(self, ratio: AspectRatio, left_s: float) -> types.GenerateContentConfig:
        image_config = types.ImageConfig(aspect_ratio=ratio.value)
        return types.GenerateContentConfig(
            response_modalities=list(self._dialect.modalities),
            image_config=image_config if self._dialect.has_image_config else None,
            # Gives the unparsed body.
            should_return_http_response=True,
            http_options=types.HttpOptions(
                # In milliseconds; 0 would mean no limit.
                timeout=max(1, int(left_s * 1000)),
                headers={"X-Server-Timeout": str(max(MIN_SERVER_TIMEOUT_S, math.ceil(left_s)))},
            ),
        )

    def _client_with_key(self, deadline: Deadline) -> genai.Client:
        """The shared SDK client; the first caller reads the key while the others wait.

        Raises:
            ModelTimedOut: ``deadline`` passed while waiting.
            ModelUnavailable: the key is malformed.
        """
        if not self._lock.acquire(timeout=deadline.remaining_s()):
            raise ModelTimedOut
        try:
            if self._client is None:
                self._client = self._new_client(self._api_key().strip())
            return self._client
        finally:
            self._lock.release()

    def _new_client(self, key: str) -> genai.Client:
        """A client of the SDK on the shared transport.

        Raises:
            ModelUnavailable: ``key`` is malformed.
        """
        # Given an empty key, the SDK would read one from the environment.
        if not is_usable_key(key):
            raise ModelUnavailable(reason="key_unusable")
        options = types.HttpOptions(
            api_version="v1beta",
            httpx_client=self._http,
            # Stops the SDK from loading two more certificate bundles for its async clients.
            async_client_args={"verify": self._tls, "ssl": self._tls},
        )
        return genai.Client(api_key=key, vertexai=False, http_options=options)

    def _discard(self, client: genai.Client) -> None:
        """Drops ``client``, unless another thread has replaced it."""
        with self._lock:
            if self._client is client:
                self._client = None


def _silence_the_sdk() -> None:
    """Disables the SDK's loggers at every level: they log URLs, headers and Google's text."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in _SDK_LOGGERS:
            logger.disabled = True


def _with_ratio(prompt: str, ratio: AspectRatio) -> str:
    """The prompt for a model that takes the ratio in no other way."""
    return f"{prompt}\n\nDraw the picture with an aspect ratio of {ratio.value} (width to height)."


def _jitter_s() -> float:
    """Seconds to add to the wait before a retry, so that clients do not retry in step."""
    # Processes restored from one snapshot share the state of every other random generator.
    return random.SystemRandom().uniform(*RETRY_JITTER_S)
