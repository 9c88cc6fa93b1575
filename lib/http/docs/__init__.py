"""The docs page: a single HTML document with the playground, loading nothing from other hosts.

Its tables are built from the OpenAPI document, so they match what the service does. Script and
styles are inline, and the content security policy allows them by hash and nothing else.
"""

import base64
import hashlib
import html
import json
import re
from functools import cache
from pathlib import Path

from lib.deadline import GATEWAY_TIMEOUT_S, REFUNDED_WITHIN_S
from lib.http.docs.examples import PROMPT, examples, tabs
from lib.http.docs.markup import section
from lib.http.docs.ratios import ratio_cards, ratio_choices
from lib.http.docs.reference import contents, open_routes, operations, outcome_rows
from lib.http.guide import CLIENT_TIMEOUT_S, JOB_REFUNDED_WITHIN_MIN, guide, typical_time
from lib.http.models import MAX_PROMPT_CHARACTERS
from lib.http.openapi import openapi
from lib.http.outcomes import outcomes
from lib.ledger.order import CREDITS_PER_IMAGE

__all__ = ["headers", "page"]

_HERE = Path(__file__).parent
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
_GENERATE = ("/api/v1/models/gemini/generate", "post")


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
    rows = outcomes(document)
    sections = guide(support_url, model)
    path, method = _GENERATE
    answer = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]
    values = {
        "style": _asset("page.css"),
        "script": _asset("page.js"),
        "price": str(CREDITS_PER_IMAGE),
        "time_fact": _time_fact(model),
        "client_timeout": str(CLIENT_TIMEOUT_S),
        "gateway_timeout": str(GATEWAY_TIMEOUT_S),
        "refund_minutes": str(REFUNDED_WITHIN_S // 60),
        "job_refund_minutes": str(JOB_REFUNDED_WITHIN_MIN),
        "prompt_limit": str(MAX_PROMPT_CHARACTERS),
        "prompt": PROMPT,
        "support": _support(support_url),
        "ratio_choices": ratio_choices(),
        "ratio_cards": ratio_cards(),
        "tabs": tabs(),
        "examples": examples(),
        "answer": html.escape(json.dumps(answer["examples"]["image"]["value"], indent=2)),
        "contents": contents(document, [(each.anchor, each.title) for each in sections]),
        "operations": operations(document, rows),
        "open_routes": open_routes(document),
        "outcome_rows": outcome_rows(rows),
        "guide": "".join(map(section, sections)),
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
    return f"<li>usually <strong>{usual}</strong></li>" if usual else ""


def _support(url: str | None) -> str:
    """Where a customer gets a key, as a sentence."""
    if url is None:
        return "Keys and credits come from the operator of this service."
    return f'<a href="{html.escape(url)}">Get a key, credits or help</a>.'
