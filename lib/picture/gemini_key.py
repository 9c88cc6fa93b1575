"""Finds the Gemini API key in the text of a secret, as operators write it there.

The console of Secrets Manager offers key/value pairs first, which it stores as JSON, and editors
add quotes, line ends and byte order marks.
"""

import json
import re

__all__ = ["UnusableKeyError", "is_usable_key", "key_in"]

# Visible ASCII. Keys that begin with auth_tokens/ are for the Live API, and the SDK rejects them.
_USABLE_KEY = re.compile(r"(?!auth_tokens/)[!-~]{1,512}")
_WRAPPING = " \t\r\n\ufeff\u200b\"'`"


class UnusableKeyError(Exception):
    """The secret's text holds no key that could be sent."""


def key_in(secret: str) -> str:
    """The key in ``secret``: plain, quoted, or the only string field of a JSON object.

    Raises:
        UnusableKeyError
    """
    key = _only_string(secret).strip(_WRAPPING)
    # Braces, brackets and quotes mean structure that was not understood, not a key.
    if not is_usable_key(key) or re.search(r"[{}\[\]\"']", key):
        raise UnusableKeyError
    return key


def is_usable_key(key: str) -> bool:
    """Whether ``key`` could be sent in a header as an API key."""
    return _USABLE_KEY.fullmatch(key) is not None


def _only_string(secret: str) -> str:
    try:
        document = json.loads(secret.strip().strip("\ufeff"))
    except (ValueError, RecursionError):
        return secret
    values = list(document.values()) if isinstance(document, dict) else [document]
    strings = [value for value in values if isinstance(value, str)]
    return strings[0] if len(strings) == 1 else ""
