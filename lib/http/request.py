"""Parses the body of a generate request: bytes in; a valid prompt and aspect ratio out."""

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from lib.errors import InvalidRequest
from lib.http.models import MAX_PROMPT_CHARACTERS
from lib.picture.aspect_ratio import AspectRatio

__all__ = ["GenerateRequest", "parse_generate_request"]


class GenerateRequest(BaseModel):
    """The body of ``POST /api/v1/models/gemini/generate``. Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str = Field(
        min_length=1,
        max_length=MAX_PROMPT_CHARACTERS,
        description="Description of the image, in plain language",
        # A blank prompt is rejected like an empty one.
        json_schema_extra={"pattern": r"\S"},
    )
    aspectRatio: AspectRatio = Field(  # noqa: N815 - the name of the JSON field
        default=AspectRatio.SQUARE, description="Aspect ratio of the image, width to height"
    )


def parse_generate_request(body: bytes) -> GenerateRequest:
    """The request in ``body``, which is UTF-8 JSON.

    The caller bounds the body's size: ``handlers.http.body_of`` does.

    Raises:
        InvalidRequest: with one sentence that tells the customer what to change.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise InvalidRequest("invalid_encoding", "The request body must be UTF-8 text") from fault
    try:
        fields = from_json(text, allow_inf_nan=False)
    except ValueError as fault:
        raise InvalidRequest("invalid_json", "The request body must be valid JSON") from fault
    if not isinstance(fields, dict):
        raise InvalidRequest("invalid_json", "The request body must be a JSON object")
    return _validated(fields)


def _validated(fields: dict[str, object]) -> GenerateRequest:
    """The request in a JSON object. A null field counts as missing.

    Raises:
        InvalidRequest: as above.
    """
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidRequest("missing_prompt", "Missing required field: prompt (string)")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(
            "prompt_too_long",
            f"The prompt is {len(prompt)} characters long; the limit is {MAX_PROMPT_CHARACTERS}",
        )
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return GenerateRequest.model_validate(given)
    except ValidationError as fault:
        if any(error["loc"] == ("aspectRatio",) for error in fault.errors()):
            choices = ", ".join(AspectRatio)
            sentence = f"Invalid aspectRatio: use one of {choices}"
            raise InvalidRequest("invalid_aspect_ratio", sentence) from fault
        sentence = "The prompt must be valid Unicode text"
        raise InvalidRequest("invalid_prompt", sentence) from fault
