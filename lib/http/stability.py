"""What may change without notice, and what may not."""

from lib.http.text import Bullets, Section

__all__ = ["STABILITY"]

STABILITY = Section(
    "stability",
    "What may change",
    (
        (
            "These may change at any time, without notice and without a new version in the path. "
            "Write clients that tolerate them:"
        ),
        Bullets(
            (
                (
                    "new fields in a response, and new values of `status`, `message`, `mimeType` "
                    "and `hint`;"
                ),
                "new response headers, and new error codes with an existing status;",
                (
                    "the wording of every sentence in `error`, `message` and `hint`: decide by the "
                    "status and by `X-Error-Code`;"
                ),
                "new optional fields and headers of a request, and new aspect ratios;",
                "new routes and new methods of a route;",
                (
                    "the form of ids, cursors, image URLs and `X-Request-Id`: treat them as opaque "
                    "strings of up to 1,024 characters;"
                ),
                "the order of fields in JSON, and its white space;",
                "rate limits, the configured model and how long it takes;",
                "the body and the headers of answers that API Gateway gives by itself.",
            )
        ),
        (
            "These stay as they are under `/api/v1`. A change of one of them gets a new path, "
            "such as `/api/v2`, beside the old one:"
        ),
        Bullets(
            (
                (
                    "routes, methods, and the names, types and meanings of the fields and "
                    "headers that the reference names;"
                ),
                "the status of each outcome, the error codes and what they mean;",
                (
                    "what a request costs, and that the price is in `creditsCharged` and "
                    "`X-Credits-Charged`;"
                ),
                (
                    "that a `0` in `X-Credits-Charged` is final, that a failure is refunded, and "
                    "how long that takes at most;"
                ),
                "the meaning of an `Idempotency-Key`;",
                "that a request without an optional field does what it did before.",
            )
        ),
        "The price of an image is in `creditsPerImage`: read it instead of writing it down.",
    ),
)
"""The policy; ``infra/docs/STABILITY.md`` is made from it."""
