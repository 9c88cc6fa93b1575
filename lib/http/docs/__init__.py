"""The docs page: a single HTML document with the playground, loading nothing from other hosts.

Its tables are built from the OpenAPI document, so they match what the service does. Script and
styles are inline, and the content security policy allows them by hash and nothing else.
"""

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lib.http.guide import typical_time
from lib.http.models import MAX_PROMPT_CHARACTERS
from lib.http.openapi import openapi
from lib.http.outcomes import Outcome, outcomes
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.picture.aspect_ratio import AspectRatio

__all__ = ["headers", "page"]

_HERE = Path(__file__).parent
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
_RATIO_PX = 48
_GENERATE = ("/api/v1/models/gemini/generate", "post")

_SUGGESTED_USES: Mapping[AspectRatio, str] = {
    AspectRatio.SQUARE: "avatars, album covers, product tiles",
    AspectRatio.PORTRAIT_2_3: "posters, book covers",
    AspectRatio.LANDSCAPE_3_2: "35 mm prints, article headers",
    AspectRatio.PORTRAIT_3_4: "catalogue pages, tablets in portrait",
    AspectRatio.LANDSCAPE_4_3: "illustrations in documents, projectors",
    AspectRatio.PORTRAIT_4_5: "tall posts in a feed",
    AspectRatio.LANDSCAPE_5_4: "framed prints, 10 by 8 inches",
    AspectRatio.PORTRAIT_9_16: "phone screens, covers of short videos",
    AspectRatio.LANDSCAPE_16_9: "slides, monitors, stills for video",
    AspectRatio.ULTRA_WIDE_21_9: "page banners, panoramas",
}


def page(origin: str, support_url: str | None = None, model: str | None = None) -> str:
    """The page as HTML, with examples for the service at ``origin``, such as ``https://host``.

    ``support_url`` and ``model`` are the deployment's, as ``lib.http.guide`` describes them.
    """
    return _page(support_url, model).replace("{{origin}}", html.escape(origin))


def headers(image_base_url: str) -> dict[str, str]:
    """The response headers of the page.

    The content security policy (https://www.w3.org/TR/CSP3/) allows images from this service and
    from the origin of ``image_base_url``.
    """
    images = re.sub(r"^(https?://[^/]+).*", r"\1", image_base_url)
    policy = {
        "default-src": "'none'",
        "script-src": _hash_of("page.js"),
        "style-src": _hash_of("page.css"),
        "img-src": f"'self' data: {images}",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "public, max-age=300",
        "Referrer-Policy": "no-referrer",
        # For a year; a browser ignores it over plain HTTP, as on localhost.
        "Strict-Transport-Security": "max-age=31536000",
        "X-Content-Type-Options": "nosniff",
    }


@cache
def _page(support_url: str | None, model: str | None) -> str:
    """The page with ``{{origin}}`` still to be filled in. Built once per process."""
    document = openapi("{{origin}}", support_url)
    schemas = document["components"]["schemas"]
    path, method = _GENERATE
    values = {
        "style": _asset("page.css"),
        "script": _asset("page.js"),
        "price": str(CREDITS_PER_IMAGE),
        "time_fact": _time_fact(model),
        "prompt_limit": str(MAX_PROMPT_CHARACTERS),
        "request_rows": _request_rows(schemas["GenerateRequest"]),
        "response_rows": _field_rows(schemas["GenerateResponse"]),
        "accepted_rows": _field_rows(schemas["AcceptedResponse"]),
        "generation_rows": _field_rows(schemas["GenerationResponse"]),
        "parameter_rows": _parameter_rows(document["paths"][path][method]["parameters"]),
        "route_rows": _route_rows(document["paths"]),
        "outcome_rows": "".join(map(_outcome_row, outcomes(document))),
        "ratio_choices": "".join(_ratio_choice(ratio) for ratio in AspectRatio),
        "ratio_cards": "".join(_ratio_card(ratio) for ratio in AspectRatio),
        "origin": "{{origin}}",
    }
    return _PLACEHOLDER.sub(lambda match: values[match[1]], _asset("page.html"))


@cache
def _asset(name: str) -> str:
    """The text of a file beside this module."""
    return (_HERE / name).read_text(encoding="utf-8")


@cache
def _hash_of(name: str) -> str:
    """The CSP hash source of an inline script or style sheet."""
    digest = hashlib.sha256(_asset(name).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _time_fact(model: str | None) -> str:
    """How long a picture takes, or nothing about a model that was not measured."""
    usual = typical_time(model) if model else None
    return f"<li><strong>{usual}</strong> usually</li>" if usual else ""


def _row(*cells: str) -> str:
    """A table row of HTML cells, headed by the first."""
    first, *others = cells
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{each}</td>" for each in others)}</tr>'


def _code(text: object) -> str:
    """``text``, escaped, as inline code."""
    return f"<code>{html.escape(str(text))}</code>"


def _prose(text: str) -> str:
    """``text``, escaped, with backticks rendered as inline code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _request_rows(schema: Mapping[str, Any]) -> str:
    return "".join(
        _row(
            _code(name),
            html.escape(_type_of(field)),
            _presence(name, schema),
            _prose(field["description"]),
        )
        for name, field in schema["properties"].items()
    )


def _field_rows(schema: Mapping[str, Any]) -> str:
    return "".join(
        _row(_code(name), html.escape(_type_of(field)), _prose(field["description"]))
        for name, field in schema["properties"].items()
    )


def _presence(name: str, schema: Mapping[str, Any]) -> str:
    """Whether a request must have the field, and what it is otherwise."""
    if name in schema["required"]:
        return "required"
    default = schema["properties"][name].get("default")
    return "optional" if default is None else f"default {_code(default)}"


def _type_of(field: Mapping[str, Any]) -> str:
    """The type of a field as a reader would name it, from its JSON schema."""
    if "const" in field:
        return f"always {field['const']}"
    if "anyOf" in field:
        kinds: Sequence[Mapping[str, Any]] = field["anyOf"]
        return " or ".join(_type_of(kind) for kind in kinds if kind.get("type") != "null")
    if "$ref" in field:
        return "one of ten"
    kind = str(field.get("type", "any"))
    return "number" if kind == "integer" else kind


def _parameter_rows(parameters: Iterable[Mapping[str, Any]]) -> str:
    return "".join(
        _row(_code(each["name"]), _code(each["example"]), _prose(each["description"]))
        for each in parameters
    )


def _route_rows(paths: Mapping[str, Mapping[str, Any]]) -> str:
    return "".join(
        _row(_code(f"{method.upper()} {path}"), html.escape(operation["summary"]))
        for path, operations in paths.items()
        for method, operation in operations.items()
    )


def _outcome_row(outcome: Outcome) -> str:
    code = outcome.code
    return _row(
        outcome.status,
        _code(code) if re.fullmatch(r"\w+", code) else html.escape(code),
        _prose(outcome.sentence),
        outcome.credits_charged,
        outcome.should_retry,
        _prose(outcome.advice),
    )


def _outline(ratio: AspectRatio) -> str:
    """The ratio drawn as an SVG rectangle whose longer side is ``_RATIO_PX``."""
    longest = max(ratio.width_over_height, 1 / ratio.width_over_height)
    width = _RATIO_PX if ratio.width_over_height >= 1 else _RATIO_PX / longest
    height = _RATIO_PX if ratio.width_over_height <= 1 else _RATIO_PX / longest
    x, y = (_RATIO_PX - width) / 2 + 1, (_RATIO_PX - height) / 2 + 1
    side = _RATIO_PX + 2
    return (
        f'<svg class="shape" viewBox="0 0 {side} {side}" width="{side}" height="{side}"'
        f' aria-hidden="true"><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}"'
        f' height="{height:.1f}" rx="3"/></svg>'
    )


def _ratio_choice(ratio: AspectRatio) -> str:
    checked = " checked" if ratio is AspectRatio.SQUARE else ""
    return (
        f'<label class="ratio"><input type="radio" name="ratio" value="{ratio.value}"{checked}>'
        f"{_outline(ratio)}<span>{ratio.value}</span></label>"
    )


def _ratio_card(ratio: AspectRatio) -> str:
    return (
        f"<li>{_outline(ratio)}<div><strong>{ratio.value}</strong>"
        f"<span>{html.escape(_SUGGESTED_USES[ratio])}</span></div></li>"
    )
