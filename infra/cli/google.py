"""A question to Google that costs nothing: whether a key is valid, and a model exists."""

import httpx2
from google import genai
from google.genai import errors, types

from lib.picture.gemini_response import is_key_error

__all__ = ["refusal_of"]

WITHIN_S = 10
NOT_FOUND = 404


def refusal_of(key: str, model: str) -> str | None:
    """Why Google would not serve ``model`` to ``key``, and what to do; None if it would.

    Asks the Gemini API, or what GOOGLE_GEMINI_BASE_URL names, to describe the model.
    """
    with httpx2.Client(follow_redirects=False, timeout=WITHIN_S) as http:
        options = types.HttpOptions(api_version="v1beta", httpx_client=http)
        client = genai.Client(api_key=key, vertexai=False, http_options=options)
        try:
            client.models.get(model=model)
        except errors.APIError as fault:
            if is_key_error(fault):
                return "Google refuses it; put a valid key into the secret"
            if fault.code == NOT_FOUND:
                return f"Google has no model {model}; change GeminiModel"
            return f"Google answered {fault.code}; see its status page, then repeat this"
        except httpx2.TransportError:
            return "Google does not answer; check the network, then repeat this"
    return None
