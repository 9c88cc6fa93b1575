"""Parses the body of a generate request: bytes in; a valid prompt and aspect ratio out.

A field that would not be honoured is refused before any charge: a misspelt ``aspect_ratio`` must
not buy a square.
"""

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping
from difflib import get_close_matches

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from lib.errors import InvalidRequest
from lib.http.models import MAX_PROMPT_CHARACTERS
from lib.picture.aspect_ratio import AspectRatio

__all__ = [
    "VISIBLE",
    "VISIBLE_PATTERN",
    "GenerateRequest",
    "given_fields",
    "not_unicode",
    "parse_generate_request",
]

# What other image APIs call the ratio, where the spelling gives no hint.
_SYNONYMS = {"size": "aspectRatio", "imageconfig": "aspectRatio", "dimensions": "aspectRatio"}
_SIMILAR_ENOUGH = 0.55
MAX_FIELD_NAME_CHARACTERS = 64

# White space, control characters, the code points that Unicode tells renderers to ignore
# (DerivedCoreProperties.txt, Default_Ignorable_Code_Point), and the empty braille pattern.
_INVISIBLE = (
    r"\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
)
_INVISIBLE_ASTRAL = r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
VISIBLE = re.compile(f"[^{_INVISIBLE}{_INVISIBLE_ASTRAL}]")
# For the OpenAPI document. Many validators run it without the flag ``u``, where a range of code
# points over U+FFFF is a syntax error, so a prompt of nothing but those is refused by the code
# alone.
VISIBLE_PATTERN = f"[^{_INVISIBLE}]"


class GenerateRequest(BaseModel):
    """The body of ``POST /api/v1/models/gemini/generate``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(
        min_length=1,
        max_length=MAX_PROMPT_CHARACTERS,
        description="Description of the image, in plain language, with a visible character",
        # A prompt without a visible character is rejected like an empty one.
        json_schema_extra={"pattern": VISIBLE_PATTERN},
    )
    aspectRatio: AspectRatio = Field(  # noqa: N815 - the name of the JSON field
        default=AspectRatio.SQUARE, description="Aspect ratio of the image, width to height"
    )
    model: object = Field(
        default=None,
        description="Accepted from clients of other image APIs, and ignored",
    )


def parse_generate_request(body: bytes) -> GenerateRequest:
    """The request in ``body``, which is UTF-8 JSON.

    The caller bounds the body's size: ``handlers.http.body_of`` does.

    Raises:
        InvalidRequest: with one sentence that tells the customer what to change.
    """
    try:
        return GenerateRequest.model_validate(given_fields(body, GenerateRequest, _SYNONYMS))
    except ValidationError as fault:
        if any(error["loc"] == ("aspectRatio",) for error in fault.errors()):
            choices = ", ".join(AspectRatio)
            sentence = f"Invalid aspectRatio: use one of {choices}"
            raise InvalidRequest("invalid_aspect_ratio", sentence, "aspectRatio") from fault
        raise not_unicode() from fault


def given_fields(
    body: bytes, form: type[BaseModel], synonyms: Mapping[str, str]
) -> dict[str, object]:
    """The fields of the request in ``body``, all of which ``form`` has. A null field is missing.

    Raises:
        InvalidRequest: it is not a JSON object in UTF-8, its prompt is missing, has no visible
            character or is too long, or it has an unknown field.
    """
    fields = _json_object(body)
    _check_prompt(fields)
    _refuse_unknown_fields(fields, list(form.model_fields), synonyms)
    return {name: value for name, value in fields.items() if value is not None}


def not_unicode() -> InvalidRequest:
    """The refusal of a prompt that JSON can hold and UTF-8 can't: half of a surrogate pair."""
    return InvalidRequest("invalid_prompt", "The prompt must be valid Unicode text", "prompt")


def _json_object(body: bytes) -> dict[str, object]:
    """The JSON object in ``body``, which must be UTF-8."""
    if b"\x00" in body[:2] or body.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        sentence = "The request body must be UTF-8 text, not UTF-16 or UTF-32"
        raise InvalidRequest("invalid_encoding", sentence)
    try:
        # PowerShell puts a byte order mark before JSON.
        text = body.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as fault:
        raise InvalidRequest("invalid_encoding", "The request body must be UTF-8 text") from fault
    try:
        fields = from_json(text, allow_inf_nan=False)
    except ValueError as fault:
        raise InvalidRequest("invalid_json", "The request body must be valid JSON") from fault
    if not isinstance(fields, dict):
        raise InvalidRequest("invalid_json", "The request body must be a JSON object")
    return fields


def _check_prompt(fields: Mapping[str, object]) -> None:
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or VISIBLE.search(prompt) is None:
        raise InvalidRequest("missing_prompt", "Missing required field: prompt (string)", "prompt")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(
            "prompt_too_long",
            f"The prompt is {len(prompt)} characters long; the limit is {MAX_PROMPT_CHARACTERS}",
            "prompt",
        )


def _refuse_unknown_fields(
    fields: Mapping[str, object], known: list[str], synonyms: Mapping[str, str]
) -> None:
    """Names the first field that isn't ``known``, with the known one that it resembles."""
    for name in fields:
        if name not in known:
            raise InvalidRequest("unknown_field", *_unknown_field(name, known, synonyms))


def _unknown_field(name: str, known: list[str], synonyms: Mapping[str, str]) -> tuple[str, str]:
    """The sentence about an unknown field, and its name as it may be shown."""
    by_letters = {_letters(each): each for each in known}
    letters = _letters(name)
    close = get_close_matches(letters, by_letters, n=1, cutoff=_SIMILAR_ENOUGH)
    meant = synonyms.get(letters) or (by_letters[close[0]] if close else None)
    shown = name[:MAX_FIELD_NAME_CHARACTERS]
    if not (shown.isascii() and shown.isprintable()):
        shown = ascii(shown)[1:-1]
    hint = f" (did you mean {meant}?)" if meant else f"; the fields are {', '.join(known)}"
    return f"Unknown field: {shown}{hint}", shown


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name[:MAX_FIELD_NAME_CHARACTERS].lower())
