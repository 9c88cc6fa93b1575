"""Parses the body of a request in the form of OpenAI's Images API.

A field that would change the picture and that this service would not honour is refused before any
charge, by name. Fields of OpenAI's that change nothing here are accepted and ignored.
"""

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.errors import InvalidRequest
from lib.http.models import MAX_PROMPT_CHARACTERS
from lib.http.openai import MAX_INLINE_PNG_BYTES
from lib.http.request import VISIBLE_PATTERN, given_fields, not_unicode
from lib.picture.aspect_ratio import AspectRatio

__all__ = ["ImagesOrder", "ImagesRequest", "parse_images_request"]

# As far as a size may be from a ratio: 1792x1024 of DALL-E is 1.6 % from 16:9.
SIZE_TOLERANCE_PERCENT = 6
# Models of these names always answer in base64; their clients read nothing else.
_BASE64_MODELS = "gpt-image"
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_SYNONYMS = {"aspectratio": "size", "dimensions": "size", "responsetype": "response_format"}
_IGNORED = "Changes nothing"
_CHOICES = {
    "n": "1; send one request for each image",
    "response_format": "url or b64_json",
    "output_format": "png",
    "background": "auto or opaque",
    "stream": "false",
}


class ImagesRequest(BaseModel):
    """The body of ``POST /v1/images/generations``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(
        min_length=1,
        max_length=MAX_PROMPT_CHARACTERS,
        description="Description of the image, in plain language",
        json_schema_extra={"pattern": VISIBLE_PATTERN},
    )
    model: str | None = Field(
        default=None,
        description=(
            "Any name is accepted, and the deployment's model draws; a name that begins with "
            f"`{_BASE64_MODELS}` makes `b64_json` the default"
        ),
    )
    size: str | None = Field(
        default=None,
        description=(
            "`auto`, which is square, or `WIDTHxHEIGHT` within 6 % of one of the ten ratios: "
            "it chooses the ratio, and the model the pixels"
        ),
        json_schema_extra={"pattern": f"^(auto|{_SIZE.pattern})$"},
    )
    n: int | None = Field(default=None, ge=1, le=1, strict=True, description="Number of images")
    response_format: Literal["url", "b64_json"] | None = Field(
        default=None,
        description=(
            "`b64_json` for the PNG itself; an image over "
            f"{MAX_INLINE_PNG_BYTES / 1e6:.1f} MB comes as its `url` all the same"
        ),
    )
    output_format: Literal["png"] | None = Field(default=None, description="Format of the image")
    background: Literal["auto", "opaque"] | None = Field(default=None, description=_IGNORED)
    stream: bool | None = Field(
        default=None, strict=True, description="`false`: an image comes whole"
    )
    quality: str | None = Field(default=None, description=_IGNORED)
    style: str | None = Field(default=None, description=_IGNORED)
    moderation: str | None = Field(default=None, description=_IGNORED)
    user: str | None = Field(default=None, description=_IGNORED)
    safety_identifier: str | None = Field(default=None, description=_IGNORED)


@dataclass(frozen=True, slots=True)
class ImagesOrder:
    """What a request asks for. ``as_base64``: the answer holds the PNG and not its URL."""

    prompt: str
    aspect_ratio: AspectRatio
    as_base64: bool


def parse_images_request(body: bytes) -> ImagesOrder:
    """The request in ``body``, which is UTF-8 JSON. A null field counts as missing.

    The caller bounds the body's size: ``handlers.http.body_of`` does.

    Raises:
        InvalidRequest: with one sentence that tells the customer what to change.
    """
    try:
        request = ImagesRequest.model_validate(given_fields(body, ImagesRequest, _SYNONYMS))
    except ValidationError as fault:
        field = str(fault.errors()[0]["loc"][0])
        if field == "prompt":
            raise not_unicode() from fault
        raise (_invalid_size() if field == "size" else _invalid(field)) from fault
    if request.stream:
        raise _invalid("stream")
    return ImagesOrder(request.prompt, _ratio(request.size), _wants_base64(request))


def _wants_base64(request: ImagesRequest) -> bool:
    if request.response_format is not None:
        return request.response_format == "b64_json"
    return (request.model or "").startswith(_BASE64_MODELS)


def _ratio(size: str | None) -> AspectRatio:
    """The ratio that is nearest to ``size``.

    Raises:
        InvalidRequest: none is within ``SIZE_TOLERANCE_PERCENT``, or it is no size.
    """
    if size is None or size == "auto":
        return AspectRatio.SQUARE
    found = _SIZE.fullmatch(size)
    if found is None:
        raise _invalid_size()
    nearest = min(AspectRatio, key=lambda ratio: _percent_apart(found, ratio))
    if _percent_apart(found, nearest) > SIZE_TOLERANCE_PERCENT:
        raise _invalid_size()
    return nearest


def _percent_apart(size: re.Match[str], ratio: AspectRatio) -> float:
    """How far the shape of ``size`` is from ``ratio``, exact for whole percents."""
    width, height = ratio.split(":")
    wanted, given = int(size[2]) * int(width), int(size[1]) * int(height)
    return abs(given - wanted) * 100 / wanted


def _invalid(field: str) -> InvalidRequest:
    choices = _CHOICES.get(field, "a string")
    return InvalidRequest(f"invalid_{field}", f"Invalid {field}: use {choices}", field)


def _invalid_size() -> InvalidRequest:
    ratios = ", ".join(AspectRatio)
    return InvalidRequest(
        "invalid_size",
        f"Invalid size: use auto, or WIDTHxHEIGHT within 6 % of one of the ratios {ratios}",
        "size",
    )
