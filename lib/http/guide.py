"""What a customer has to know beside routes, fields and errors, as data.

The docs page, ``/llms.txt`` and ``infra/docs/API.md`` render these sections. Figures come from the
constants that the service enforces. Texts may hold inline code in backticks, and no other markup.
"""

from lib.deadline import (
    FUNCTION_TIMEOUT_S,
    GATEWAY_TIMEOUT_S,
    IDEMPOTENCY_TTL_S,
    JOB_WAITS_S,
    RATE_WINDOW_S,
    REFUNDED_WITHIN_S,
    WORKER_TIMEOUT_S,
)
from lib.http.gateway import REPEAT_WITH_KEY
from lib.http.models import (
    DEFAULT_PAGE,
    MAX_BODY_BYTES,
    MAX_IDEMPOTENCY_KEY_CHARACTERS,
    MAX_PAGE,
    MAX_PAGE_BYTES,
    MAX_PROMPT_CHARACTERS,
)
from lib.http.spec import HEADERS
from lib.http.stability import STABILITY
from lib.http.text import Bullets, Code, Section, Table
from lib.ledger.order import CREDITS_PER_IMAGE
from lib.ledger.rows import DEFAULT_RATE_LIMIT
from lib.limits import READS_AT_ONCE, READS_PER_S, UNPAID_AT_ONCE, UNPAID_PER_S
from lib.receipts.receipt import CLAIMS

__all__ = [
    "CLIENT_TIMEOUT_S",
    "JOB_REFUNDED_WITHIN_MIN",
    "TYPICAL_TIMES",
    "Guide",
    "guide",
    "typical_time",
]

CLIENT_TIMEOUT_S = GATEWAY_TIMEOUT_S + 5
"""What a client's timeout should be: longer than the gateway waits for the service."""
JOB_REFUNDED_WITHIN_MIN = 45
"""By then every asynchronous generation has been settled or refunded."""

# Medians for one picture of 1K, of a published live test in November 2026; a range for a model
# whose tests disagree.
TYPICAL_TIMES = {
    "gemini-2.5-flash-image": "about 8 seconds",
    "gemini-3.1-flash-image": "about 12 seconds",
    "gemini-3.1-flash-lite-image": "about 4 seconds",
    "gemini-3-pro-image": "about 19 seconds",
    "gemini-nano-banana-2.1": "12 to 40 seconds",
}
"""How long a picture of each known model usually takes."""

Guide = tuple[Section, ...]


def typical_time(model: str) -> str | None:
    """How long a picture of ``model`` usually takes; None for a model that was not measured."""
    return TYPICAL_TIMES.get(model)


def guide(support_url: str | None = None, model: str | None = None) -> Guide:
    """The sections, in reading order, for a deployment with these settings.

    ``support_url`` is where a customer gets a key, credits and help.
    """
    return (
        _access(support_url),
        _timeouts(model),
        _CONVENTIONS,
        _COSTS,
        _IDEMPOTENCY,
        _ASYNCHRONOUS,
        _CREDITS,
        _USAGE,
        _RATE_LIMITS,
        _HEADERS,
        _PAGINATION,
        _DELETION,
        _RECEIPTS,
        _PROVENANCE,
        _LIMITS,
        STABILITY,
    )


def _access(support_url: str | None) -> Section:
    where = (
        f"Keys, credits and help: {support_url}"
        if support_url
        else "The operator of this deployment, who gave you its address, issues keys and sells "
        "credits."
    )
    return Section(
        "access",
        "Keys, credits and help",
        (
            where,
            (
                "A key looks like `gg_<organisation>_...`, and belongs to an organisation, which "
                "has one balance for all of its keys. It is shown once, when it is issued: keep "
                "it on your server, not in a web page or an app. A key that leaked can be "
                "revoked and replaced."
            ),
            (
                "Quote the `X-Request-Id` of a response when you ask for help: it names the "
                "request in the logs of the service. An answer that API Gateway gave by itself has "
                "`Apigw-Requestid` instead."
            ),
        ),
    )


def _timeouts(model: str | None) -> Section:
    usual = typical_time(model) if model else None
    takes = f" A picture of the configured model usually takes {usual}." if usual else ""
    return Section(
        "timeouts",
        "Timeouts",
        (
            (
                f"Set your client's timeout to {CLIENT_TIMEOUT_S} seconds. The service answers "
                f"within {FUNCTION_TIMEOUT_S} seconds, and API Gateway within "
                f"{GATEWAY_TIMEOUT_S}.{takes} A client that gives up earlier may have paid for an "
                "image that it never sees; some give up after 5 seconds by default. With an "
                "`Idempotency-Key`, a retry returns that image."
            ),
            Table(
                ("client", f"a timeout of {CLIENT_TIMEOUT_S} seconds"),
                (
                    ("curl", f"`--max-time {CLIENT_TIMEOUT_S}`"),
                    ("Python: httpx, requests, urllib", f"`timeout={CLIENT_TIMEOUT_S}`"),
                    (
                        "JavaScript: fetch",
                        f"`signal: AbortSignal.timeout({CLIENT_TIMEOUT_S * 1000})`",
                    ),
                ),
            ),
            (
                "A model that needs longer than that belongs on the asynchronous route: "
                "`Prefer: respond-async`."
            ),
        ),
    )


_CONVENTIONS = Section(
    "conventions",
    "Conventions",
    (
        Bullets(
            (
                (
                    "Send the API key as `Authorization: Bearer <key>`. `/`, `/openapi.json`, "
                    "`/llms.txt`, `/healthz` and `/.well-known/jwks.json` need none."
                ),
                "Bodies are JSON in UTF-8, with or without a byte order mark.",
                (
                    "Every response of the service carries `X-Request-Id`, which identifies the "
                    "request in its logs."
                ),
                (
                    "A request body with a field that is not in the table is refused before any "
                    "charge."
                ),
                (
                    "An error's body has `error`, a sentence. The header `X-Error-Code` is for "
                    "programs, and stays the same when a sentence changes."
                ),
                "Any web page may call the API: CORS is open. The API never redirects.",
                "The key is checked first: an invalid request with an invalid key is a 401.",
                (
                    "A path or method that does not exist is a 404, or a 405 with `Allow`. `HEAD` "
                    "works wherever `GET` needs no key."
                ),
            )
        ),
    ),
)

_COSTS = Section(
    "costs",
    "Outcomes",
    (
        (
            "Every response of the generate route states in `X-Credits-Charged` what the request "
            f"costs: `0` or `{CREDITS_PER_IMAGE}`. A `0` is final: no later charge follows. A "
            f"`{CREDITS_PER_IMAGE}` is charged on a 200, and held on a 202 or an error, until the "
            "generation is `settled` or `refunded`. Every error states in `X-Should-Retry` whether "
            "the same request can succeed later."
        ),
        (
            "API Gateway, in front of the service, answers some requests by itself, with "
            '`{"message": ...}` and none of these headers. A 413 or 429 of API Gateway costs '
            "nothing: the service never saw the request. After its 500 or 503, and when no "
            f"response arrives, it is not known whether the request was charged. {REPEAT_WITH_KEY}"
        ),
    ),
)

_IDEMPOTENCY = Section(
    "idempotency",
    "Idempotency",
    (
        (
            "A request whose response was lost may have been charged. With an `Idempotency-Key` of "
            "your choice you can repeat it and pay once:"
        ),
        Bullets(
            (
                (
                    "If the first request succeeded, the repetition returns the same image with "
                    "`Idempotent-Replayed: true` and `X-Credits-Charged: 0`."
                ),
                (
                    "If the first request died after its image was stored, the repetition makes "
                    "the charge final and returns that image, in the same way."
                ),
                (
                    "While the first request is in progress, the repetition is a 409 with "
                    "`Retry-After`; if both requests prefer `respond-async`, it is the same 202 "
                    "again, and free."
                ),
                (
                    "If the first request died before, the repetition is a 409 for up to a minute. "
                    "Then the first one is refunded, and the next repetition is a new attempt."
                ),
                "With a different prompt or ratio it is a 422.",
                (
                    "Once the image is deleted it is a 422 `image_deleted`: within the "
                    f"{IDEMPOTENCY_TTL_S // 3600} hours no second image is made and charged."
                ),
                "After a refund the key is free again: the next request is a new attempt.",
                (
                    "Keys belong to the organisation and are remembered for "
                    f"{IDEMPOTENCY_TTL_S // 3600} hours."
                ),
            )
        ),
    ),
)

_ASYNCHRONOUS = Section(
    "asynchronous",
    "Asynchronous generation",
    (
        (
            f"A request has {FUNCTION_TIMEOUT_S} seconds, and the larger models take longer. With "
            "the header `Prefer: respond-async` (RFC 7240) the credits are reserved and the "
            "response is an immediate 202. It already contains the final `imageUrl`, and "
            "`Location` points to the generation. Poll that every few seconds. Its status is "
            "`reserved` (in progress), then `settled` (succeeded: the image is stored and "
            "charged) or `refunded` (failed: the credits are back)."
        ),
        (
            f"A generation waits for a worker for {JOB_WAITS_S // 60} minutes at most, and is "
            f"refunded otherwise. The worker has {WORKER_TIMEOUT_S // 60} minutes. If it dies, or "
            "the store does not say whether it has the image, another one takes over, at most "
            "twice. An image that was stored is not made again."
        ),
    ),
)

_CREDITS = Section(
    "credits",
    "Credits",
    (
        (
            f"An image costs {CREDITS_PER_IMAGE} credits, whatever its ratio and prompt. `GET "
            "/api/v1/billing/credits` returns the organisation's balance, from which generations "
            "in progress are already taken, and the price of an image. Reading it costs nothing."
        ),
        (
            "If the balance is below the price the response is a 402 with `creditsRequired` (the "
            "price) and `creditsRemaining` (the balance). Nothing was held, and nothing was sent "
            "to the model. Whole images only: a balance of 2 buys none. With `X-Error-Code: "
            "key_budget_exhausted` it is the key's monthly budget that is short, and "
            "`creditsRemaining` is what that has left."
        ),
        Code(
            "json",
            '{"error": "Insufficient credits", '
            f'"creditsRequired": {CREDITS_PER_IMAGE}, "creditsRemaining": 2}}',
        ),
        (
            "A refund puts the credits back into the same balance before the response is sent, or "
            f"within {REFUNDED_WITHIN_S // 60} minutes."
        ),
    ),
)

_USAGE = Section(
    "usage-and-budgets",
    "Usage and budgets",
    (
        (
            "`GET /api/v1/billing/usage?month=YYYY-MM` returns what the month's requests cost, in "
            "all and by API key: charged, or in progress. A refund takes its credits out again. "
            "Months are in UTC, and the current one is the default. A key may have a monthly "
            "budget, `monthlyBudget`; `null` is no limit. A rotated key spends from the budget of "
            "the key that it replaces, and both are one entry."
        ),
    ),
)

_RATE_LIMITS = Section(
    "rate-limits",
    "Rate limits",
    (
        (
            f"An organisation may start {DEFAULT_RATE_LIMIT} generations per clock minute by "
            "default; the operator can change that. An asynchronous generation counts when it is "
            "accepted. A request that is refused before the reservation does not count. A "
            "failure that isn't the prompt's gives its place back if it is refunded in the same "
            "minute; `content_rejected` and `no_image` count. A request over the limit is a 429 "
            "with `Retry-After`, `RateLimit` and `RateLimit-Policy`, and costs nothing."
        ),
        (
            "What costs nothing has limits of its own, which each process of the service keeps: "
            f"{READS_PER_S} reads a second after the first {READS_AT_ONCE}, and for each API key "
            f"{UNPAID_PER_S} generate requests a second that are refused or replayed, after the "
            f"first {UNPAID_AT_ONCE}. Until the second is over, every generate request of that key "
            "is then a 429."
        ),
        Table(
            ("policy", "what it counts", "limit"),
            (
                (
                    '`"default"`',
                    "generations that were started",
                    f"{DEFAULT_RATE_LIMIT} in {RATE_WINDOW_S} seconds",
                ),
                ('`"reads"`', "reads and deletions", f"{READS_PER_S} a second"),
                (
                    '`"unpaid"`',
                    "generate requests that are refused or replayed",
                    f"{UNPAID_PER_S} a second",
                ),
            ),
        ),
        Code(
            "http",
            "HTTP/1.1 429 Too Many Requests\n"
            "Retry-After: 30\n"
            'RateLimit: "default";r=0;t=30\n'
            f'RateLimit-Policy: "default";q={DEFAULT_RATE_LIMIT};w={RATE_WINDOW_S}\n'
            "X-Error-Code: rate_limited\n"
            "X-Should-Retry: true\n"
            "X-Credits-Charged: 0",
        ),
    ),
)

_HEADERS = Section(
    "headers",
    "Response headers",
    (
        Table(
            ("header", "meaning"),
            tuple((f"`{name}`", meaning) for name, (meaning, _) in HEADERS.items()),
        ),
    ),
)

_PAGINATION = Section(
    "pagination",
    "Pagination",
    (
        (
            "Pass `nextCursor` unchanged as `cursor` to get the next page; it is `null` on the "
            "last. An empty `cursor` is the first page. New generations appear before the first "
            "page, so paging neither skips nor repeats any. A page may hold fewer than `limit` "
            "generations and not be the last. A cursor does not expire, and has no meaning of "
            "its own."
        ),
    ),
)

_DELETION = Section(
    "deletion",
    "Deletion",
    (
        (
            "`DELETE /api/v1/generations/{id}` removes the image and the prompt. The generation "
            "stays in the history with `deletedAt`, and so do its credits: a deletion is no "
            "refund. It cannot be undone, and repeating it is safe. While the generation is in "
            "progress it is a 409 with `Retry-After`. Caches may keep the image for a day."
        ),
    ),
)

_RECEIPTS = Section(
    "receipts",
    "Receipts",
    (
        (
            "A receipt states what one generation cost, for the customer to keep and to check "
            "without this service. It is a JWS in compact form (RFC 7515), signed with ES256. "
            "Its header has `alg` `ES256`, `typ` `receipt+jws`, and in `kid` the key of "
            "`/.well-known/jwks.json` that signed it; accept no other algorithm. Keys that "
            "signed earlier stay there while receipts are on. A receipt that is requested again "
            "has another signature and the same payload: a JSON object with exactly these claims."
        ),
        Table(("claim", "meaning"), tuple((f"`{name}`", text) for name, text in CLAIMS.items())),
        "The command checks one with no network and no account:",
        Code("sh", "gemini-generate verify receipt.jws --jwks jwks.json --image fox.png"),
        (
            "A monthly statement, which the operator makes, names the hash of all of the month's "
            "receipts and of the statement before; `gemini-generate verify statement.csv "
            "--receipts DIRECTORY --previous FILE` checks that too. A deployment may issue no "
            "receipts: then both routes are 404."
        ),
    ),
)

_PROVENANCE = Section(
    "png",
    "The PNG",
    (
        (
            "Every PNG says in its metadata that a model made it: XMP with the IPTC property "
            "`DigitalSourceType` set to `trainedAlgorithmicMedia`. It names no person, prompt or "
            "model and isn't signed. Google's SynthID watermark is in the pixels and stays. "
            "Google's C2PA manifest signs the original file's bytes and would read as tampered "
            "with in another, so it is dropped. Leave the XMP in place when you publish a "
            "picture: the law may require a mark that machines can read."
        ),
        (
            "Colours are Gemini's: an ICC profile, or a PNG's own colour chunks, are copied. A "
            "picture of another ratio, one that can't be decoded, and one with too many parts to "
            "decode in time are refused, and cost nothing."
        ),
        (
            "Damage in a PNG from Gemini is found by its checksums. JPEG and WebP have none, so "
            "not all damage is found. A WebP that was cut short is refused. Of JPEGs that were "
            "cut and closed again, tests found 100 of 100 with a single scan and 85 of 100 "
            "progressive ones; of those with one altered byte, 32 and 2 of 100."
        ),
    ),
)

_LIMITS = Section(
    "limits",
    "Limits",
    (
        Table(
            ("what", "limit"),
            (
                ("prompt", f"{MAX_PROMPT_CHARACTERS:,} characters"),
                ("request body", f"{MAX_BODY_BYTES // 1024} KiB"),
                (
                    "`Idempotency-Key`",
                    f"1 to {MAX_IDEMPOTENCY_KEY_CHARACTERS} printable ASCII characters",
                ),
                (
                    "page of the history",
                    (
                        f"1 to {MAX_PAGE} generations, {DEFAULT_PAGE} by default; "
                        f"{MAX_PAGE_BYTES // 1024} KiB"
                    ),
                ),
                ("time to a response", f"{FUNCTION_TIMEOUT_S} seconds"),
                (
                    "time to a refund",
                    f"{REFUNDED_WITHIN_S // 60} minutes; {JOB_REFUNDED_WITHIN_MIN} if asynchronous",
                ),
            ),
        ),
    ),
)
