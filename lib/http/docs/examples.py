"""The same request in four languages, with an idempotency key and a timeout.

What the form of the playground decides is in ``data-part`` elements, which the page's script fills.
Without the script the examples are complete as they are.
"""

import html
import json
import re
from collections.abc import Callable, Mapping

from lib.http.docs.ratios import DEFAULT_CHOICE, SIZES
from lib.http.guide import CLIENT_TIMEOUT_S

__all__ = ["examples", "tabs"]

PROMPT = "A log cabin by a frozen mountain lake at dusk, smoke rising from the chimney"
_PART = re.compile(r"\[\[(\w+)\]\]")

_CURL = """\
curl -sS --max-time [[timeout]] {{origin}}/api/v1/models/gemini/generate \\
  -H "Authorization: Bearer $API_KEY" \\
  -H 'Content-Type: application/json' \\
  -H 'Idempotency-Key: [[key]]' \\
  -d [[shell]]"""

_PYTHON = """\
import os
import requests

response = requests.post(
    "{{origin}}/api/v1/models/gemini/generate",
    headers={
        "Authorization": f"Bearer {os.environ['API_KEY']}",
        # One for each image. A retry with the same key never pays twice.
        "Idempotency-Key": "[[key]]",
    },
    json={
        "prompt": [[prompt]],
        "aspectRatio": [[ratio]],
    },
    timeout=[[timeout]],
)
if response.ok:
    print(response.json()["imageUrl"])
else:
    print(response.status_code, response.headers.get("X-Error-Code"), response.text)"""

_JAVASCRIPT = """\
const response = await fetch("{{origin}}/api/v1/models/gemini/generate", {
  method: "POST",
  headers: {
    Authorization: `Bearer ${process.env.API_KEY}`,
    "Content-Type": "application/json",
    // One for each image. A retry with the same key never pays twice.
    "Idempotency-Key": "[[key]]",
  },
  body: JSON.stringify({
    prompt: [[prompt]],
    aspectRatio: [[ratio]],
  }),
  signal: AbortSignal.timeout([[timeout]]_000),
});
const answer = await response.json();
console.log(answer.imageUrl ?? answer.message ?? answer.error);"""

_OPENAI = """\
import os
from openai import OpenAI

client = OpenAI(
    base_url="{{origin}}/v1",
    api_key=os.environ["API_KEY"],
    timeout=[[timeout]],
)
answer = client.images.generate(
    model="gemini",
    prompt=[[prompt]],
    size=[[size]],
    response_format="url",
    # One for each image. A retry with the same key never pays twice.
    extra_headers={"Idempotency-Key": "[[key]]"},
)
print(answer.data[0].url)"""

_EXAMPLES: Mapping[str, tuple[str, str]] = {
    "curl": ("curl", _CURL),
    "python": ("Python", _PYTHON),
    "javascript": ("JavaScript", _JAVASCRIPT),
    "openai": ("OpenAI SDK", _OPENAI),
}
_REQUEST = {"prompt": PROMPT, "aspectRatio": DEFAULT_CHOICE.value}
_STATIC: Mapping[str, Callable[[str], str]] = {
    "key": lambda language: f"cabin-{language}-1",
    "shell": lambda _: f"'{json.dumps(_REQUEST)}'",
    "prompt": lambda _: json.dumps(PROMPT),
    "ratio": lambda _: json.dumps(DEFAULT_CHOICE.value),
    "size": lambda _: json.dumps(SIZES[DEFAULT_CHOICE]),
}


def tabs() -> str:
    """The tabs, which the script shows."""
    return "".join(
        f'<button type="button" role="tab" id="tab-{name}" aria-controls="panel-{name}">'
        f"{title}</button>"
        for name, (title, _) in _EXAMPLES.items()
    )


def examples() -> str:
    """The examples, all visible until the script puts them behind the tabs."""
    return "".join(
        f'<div id="panel-{name}"><h3>{title}</h3><pre tabindex="0">'
        f'<code data-example="{name}">{_filled(name, text)}</code></pre></div>'
        for name, (title, text) in _EXAMPLES.items()
    )


def _filled(language: str, text: str) -> str:
    def fill(match: re.Match[str]) -> str:
        part = match[1]
        if part == "timeout":
            return str(CLIENT_TIMEOUT_S)
        value = html.escape(_STATIC[part](language), quote=False)
        return f'<span data-part="{part}">{value}</span>'

    return _PART.sub(fill, html.escape(text, quote=False))
