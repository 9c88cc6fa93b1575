"""``python -m infra.docs.api``: writes ``infra/docs/API.md`` from the service's OpenAPI document.

Fields, statuses, headers and sentences come from ``lib/http``, figures from the constants
that the service enforces. Only what an OpenAPI document has no place for is written here.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from infra.docs.markdown import table
from infra.template import PROJECT_ROOT
from lib.deadline import (
    FUNCTION_TIMEOUT_S,
    IDEMPOTENCY_TTL_S,
    JOB_WAITS_S,
    REFUNDED_WITHIN_S,
    WORKER_TIMEOUT_S,
)
from lib.http.docs.outcomes import FIRST_ERROR, Outcome, outcomes
from lib.http.models import (
    DEFAULT_PAGE,
    MAX_BODY_BYTES,
    MAX_IDEMPOTENCY_KEY_CHARACTERS,
    MAX_PAGE,
    MAX_PAGE_BYTES,
    MAX_PROMPT_CHARACTERS,
)
from lib.http.openai import OPENAI_PATHS
from lib.http.openapi import openapi
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.ledger.rows import DEFAULT_RATE_LIMIT
from lib.limits import READS_AT_ONCE, READS_PER_S, UNPAID_AT_ONCE, UNPAID_PER_S
from lib.picture.aspect_ratio import AspectRatio
from lib.receipts.receipt import CLAIMS

__all__ = ["JOB_REFUNDED_WITHIN_MIN", "PATH", "main", "reference"]

PATH = PROJECT_ROOT / "infra" / "docs" / "API.md"
SERVER = "https://api.example.com"
JOB_REFUNDED_WITHIN_MIN = 45
"""By then every asynchronous generation has been settled or refunded."""

CONVENTIONS = """\
- Send the API key as `Authorization: Bearer <key>`. `/`, `/openapi.json` and `/healthz` need none.
- Bodies are JSON in UTF-8.
- Every response carries `X-Request-Id`, which identifies the request in the service's logs.
- A request body with a field that is not in the table is refused before any charge.
- An error's body has `error`, a sentence. The header `X-Error-Code` is for programs, and stays the
  same when a sentence changes.
- Any web page may call the API: CORS is open. The API never redirects.
- The key is checked first: an invalid request with an invalid key is a 401.
- A path or method that does not exist is a 404, or a 405 with `Allow`. `HEAD` works wherever `GET`
  needs no key."""

OUTCOMES = f"""\
Every response of the generate route states in `X-Credits-Charged` what the request costs: `0` or
`{CREDITS_PER_IMAGE}`. A `0` is final: no later charge follows. A `{CREDITS_PER_IMAGE}` is charged
on a 200, and held on a 202 or an error, until the generation is `settled` or `refunded`. Every
error states in `X-Should-Retry` whether the same request can succeed later.

API Gateway answers some requests itself, with `{{"message": ...}}` and none of these headers. After
its 500 or 503, and when no response arrives, it is not known whether the request was charged."""

OUTCOME_COLUMNS = (*("status", "`X-Error-Code`", "sentence", "credits", "try again", "what to do"),)

PROVENANCE = """\
Every PNG says in its metadata that a model made it: XMP with the IPTC property `DigitalSourceType`
set to `trainedAlgorithmicMedia`. It names no person, prompt or model and isn't signed. Google's
SynthID watermark is in the pixels and stays. Google's C2PA manifest signs the original file's bytes
and would read as tampered with in another, so it is dropped. Leave the XMP in place when you
publish a picture: the law may require a mark that machines can read.

Colours are Gemini's: an ICC profile, or a PNG's own colour chunks, are copied. A picture of another
ratio, one that can't be decoded, and one with too many parts to decode in time are refused, and
cost nothing.

Damage in a PNG from Gemini is found by its checksums. JPEG and WebP have none, so not all damage is
found. A WebP that was cut short is refused. Of JPEGs that were cut and closed again, tests found
100 of 100 with a single scan and 85 of 100 progressive ones; of those with one altered byte, 32 and
2 of 100."""

IDEMPOTENCY = f"""\
A request whose response was lost may have been charged. With an `Idempotency-Key` of your choice
you can repeat it and pay once:

- If the first request succeeded, the repetition returns the same image with `Idempotent-Replayed:
  true` and `X-Credits-Charged: 0`.
- If the first request died after its image was stored, the repetition makes the charge final and
  returns that image, in the same way.
- While the first request is in progress, the repetition is a 409 with `Retry-After`; if both
  requests prefer `respond-async`, it is the same 202 again, and free.
- If the first request died before, the repetition is a 409 for up to a minute. Then the first one
  is refunded, and the next repetition is a new attempt.
- With a different prompt or ratio it is a 422.
- Once the image is deleted it is a 422 `image_deleted`: within the 24 hours no second image is made
  and charged.
- After a refund the key is free again: the next request is a new attempt.
- Keys belong to the organisation and are remembered for {IDEMPOTENCY_TTL_S // 3600} hours."""

ASYNCHRONOUS = f"""\
A request has {FUNCTION_TIMEOUT_S} seconds, and the larger models take longer. With the header
`Prefer: respond-async` (RFC 7240) the credits are reserved and the response is an immediate 202. It
already contains the final `imageUrl`, and `Location` points to the generation. Poll that every few
seconds. Its status is `reserved` (in progress), then `settled` (succeeded: the image is stored and
charged) or `refunded` (failed: the credits are back).

A generation waits for a worker for {JOB_WAITS_S // 60} minutes at most, and is refunded otherwise.
The worker has {WORKER_TIMEOUT_S // 60} minutes. If it dies, or the store does not say whether it
has the image, another one takes over, at most twice. An image that was stored is not made again.
"""

RECEIPTS = """\
A receipt states what one generation cost, for the customer to keep and to check without this
service. It is a JWS in compact form (RFC 7515), signed with ES256. Its header has `alg` `ES256`,
`typ` `receipt+jws`, and in `kid` the key of `/.well-known/jwks.json` that signed it; accept no
other algorithm. Keys that signed earlier stay there. A receipt that is requested again has another
signature and the same payload: a JSON object with exactly these claims.

```sh
gemini-generate verify receipt.jws --jwks jwks.json --image fox.png
```

checks one with no network and no account. A monthly statement, which the operator makes, names the
hash of all of the month's receipts and of the statement before; `gemini-generate verify
statement.csv --receipts DIRECTORY --previous FILE` checks that too. A deployment may issue no
receipts: then both routes are 404."""

RATE_LIMITS = f"""\
An organisation may start {DEFAULT_RATE_LIMIT} generations per clock minute by default; the operator
can change that. An asynchronous generation counts when it is accepted. A request that is refused
before the reservation does not count. A failure that isn't the prompt's gives its place back if it
is refunded in the same minute; `content_rejected` and `no_image` count. A request over the limit is
a 429 with `Retry-After`, `RateLimit` (`"default";r=0;t=30`: none left for 30 seconds) and
`RateLimit-Policy` (`"default";q=60;w=60`: 60 in 60 seconds).

What costs nothing has limits of its own, which each process of the service keeps: {READS_PER_S}
reads a second after the first {READS_AT_ONCE} (`"reads"`), and {UNPAID_PER_S} generate requests a
second that are refused or replayed, after the first {UNPAID_AT_ONCE} (`"unpaid"`). Until the second
is over, every generate request is then a 429."""

PAGINATION = """\
Pass `nextCursor` unchanged as `cursor` to get the next page; it is `null` on the last. New
generations appear before the first page, so paging neither skips nor repeats any. A page may hold
fewer than `limit` generations and not be the last."""

LIMITS = (
    ("prompt", f"{MAX_PROMPT_CHARACTERS:,} characters"),
    ("request body", f"{MAX_BODY_BYTES // 1024} KiB"),
    ("`Idempotency-Key`", f"1 to {MAX_IDEMPOTENCY_KEY_CHARACTERS} printable ASCII characters"),
    (
        "page of the history",
        f"1 to {MAX_PAGE} generations, {DEFAULT_PAGE} by default; {MAX_PAGE_BYTES // 1024} KiB",
    ),
    ("time to a response", f"{FUNCTION_TIMEOUT_S} seconds"),
    (
        "time to a refund",
        f"{REFUNDED_WITHIN_S // 60} minutes; {JOB_REFUNDED_WITHIN_MIN} if asynchronous",
    ),
)


def reference() -> str:
    """The document as Markdown."""
    document = openapi(SERVER)
    return "\n\n".join(_parts(document)) + "\n"


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    yield "<!-- Made by `python -m infra.docs.api`; change lib/http instead. -->"
    yield f"# {document['info']['title']}: API reference"
    yield f"Version {document['info']['version']}. {document['info']['summary']}."
    yield (
        "Each deployment serves this contract as a page with a playground at `/`, and as OpenAPI\n"
        f"{document['openapi']} at `/openapi.json`."
    )
    yield table(
        ("route", "what it does"), ((f"`{route}`", each["summary"]) for route, each in operations)
    )
    for title, text in (
        ("Conventions", CONVENTIONS),
        ("Outcomes", f"{OUTCOMES}\n\n{table(OUTCOME_COLUMNS, map(_outcome, outcomes(document)))}"),
        ("Idempotency", IDEMPOTENCY),
        ("Asynchronous generation", ASYNCHRONOUS),
        ("Receipts", f"{RECEIPTS}\n\n{table(('claim', 'meaning'), _claims())}"),
        ("Rate limits", RATE_LIMITS),
        ("Pagination", PAGINATION),
        ("The PNG", PROVENANCE),
        ("Limits", table(("what", "limit"), LIMITS)),
        ("Aspect ratios", table(("ratio", "shape"), map(_ratio, AspectRatio))),
    ):
        yield f"## {title}"
        yield text.strip()
    for route, operation in operations:
        if "security" not in operation:  # it needs a key: the others are for machines and readers
            yield from _operation(route, operation, document["components"]["schemas"])


def _claims() -> Iterator[tuple[str, str]]:
    return ((f"`{name}`", meaning) for name, meaning in CLAIMS.items())


def _ratio(ratio: AspectRatio) -> tuple[str, str]:
    wide = ratio.width_over_height
    return f"`{ratio.value}`", "square" if wide == 1 else "landscape" if wide > 1 else "portrait"


def _operation(
    route: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]
) -> Iterator[str]:
    yield f"## {operation['summary']}"
    yield f"`{route}`"
    if "description" in operation:
        yield operation["description"]
    if "parameters" in operation:
        yield table(("parameter", "in", "meaning"), map(_parameter, operation["parameters"]))
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        yield "The body:"
        yield _fields(content["schema"], schemas, of_a_request=True)
        yield _json(content["example"])
    responses = {int(status): each for status, each in operation["responses"].items()}
    for status, response in responses.items():
        if status < FIRST_ERROR:
            yield from _success(status, response, schemas)
    errors = [code for status, each in responses.items() for code in _error_codes(status, each)]
    if errors:
        details = "[Outcomes](#outcomes)"
        if OPENAI_PATHS in route:
            details = "[OpenAI's Images API](OPENAI.md#errors)"
        yield f"Errors, of which {details} has the details:\n{', '.join(errors)}."


def _success(status: int, response: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    ((media_type, content),) = response.get("content", {"": {}}).items()
    headers = ", ".join(f"`{name}`" for name in response["headers"])
    form = "" if media_type in {"", "application/json"} else f" Form: `{media_type}`."
    yield f"**{status}**: {response['description']}.{form} Headers: {headers}."
    if "schema" in content:
        yield _fields(content["schema"], schemas)
    for example in content.get("examples", {}).values():
        yield _json(example["value"])


def _error_codes(status: int, response: Mapping[str, Any]) -> list[str]:
    if status < FIRST_ERROR:
        return []
    return [f"{status} `{code}`" for code in response["content"]["application/json"]["examples"]]


def _outcome(outcome: Outcome) -> tuple[str, ...]:
    code = outcome.code
    return (
        outcome.status,
        f"`{code}`" if re.fullmatch(r"\w+", code) else code,
        outcome.sentence,
        outcome.credits_charged,
        outcome.should_retry,
        outcome.advice,
    )


def _parameter(parameter: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"`{parameter['name']}`", parameter["in"], parameter["description"]


def _fields(
    reference: Mapping[str, Any], schemas: Mapping[str, Any], *, of_a_request: bool = False
) -> str:
    schema = schemas[reference["$ref"].rpartition("/")[2]]
    rows = []
    for name, field in schema["properties"].items():
        presence = "required" if of_a_request else "always"
        if name not in schema.get("required", ()):
            default = field.get("default")
            presence = f"default `{default}`" if default else "optional"
        elif {"type": "null"} in field.get("anyOf", ()):
            presence = "always, may be null"
        rows.append((f"`{name}`", _type(field), presence, field.get("description", "")))
    return table(("field", "type", "presence", "meaning"), rows)


def _type(field: Mapping[str, Any]) -> str:
    if "const" in field:
        return f"always `{field['const']}`"
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"] if each.get("type") != "null")
    if "$ref" in field:
        return "string"
    kind = str(field["type"])
    return {"integer": "number", "array": "list"}.get(kind, kind)


def _json(value: object) -> str:
    return f"```json\n{json.dumps(value, indent=2)}\n```"


def main() -> int:
    """Writes the file; the exit status."""
    PATH.write_text(reference(), encoding="utf-8")
    print(PATH.relative_to(PROJECT_ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
