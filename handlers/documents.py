"""The documents that need no key: compressed for a client that can read that, and sent once.

A client that names the version it has in ``If-None-Match`` gets a 304 without a body (RFC 9110,
sections 8.8.3 and 13.1.2).
"""

import base64
import gzip
import hashlib
import re
from functools import lru_cache

from handlers.http import Event, Response, header

__all__ = ["KEPT", "as_document"]

# What differs is the host name under which the service was asked.
KEPT = 16
_NO_WEIGHT = re.compile(r"\s*q\s*=\s*0(\.0*)?\s*")


def as_document(event: Event, response: Response) -> Response:
    """``response``, whose body is text, as what ``event`` asks for."""
    body = response["body"]
    tag = _tag(body)
    # Shared caches must not give a compressed body to a client that can't read it.
    headers = response["headers"] | {"ETag": tag, "Vary": "Accept-Encoding"}
    if _has(event, tag):
        kept = {name: value for name, value in headers.items() if name != "Content-Type"}
        return response | {"statusCode": 304, "headers": kept, "body": ""}
    if not _reads_gzip(event):
        return response | {"headers": headers}
    return response | {
        "headers": headers | {"Content-Encoding": "gzip"},
        "body": _gzip(body),
        "isBase64Encoded": True,
    }


@lru_cache(maxsize=KEPT)
def _tag(body: str) -> str:
    """A weak tag: the same for the text and for its compressed form."""
    return f'W/"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'


@lru_cache(maxsize=KEPT)
def _gzip(body: str) -> str:
    """The compressed text, in base64 as API Gateway takes bytes."""
    return base64.b64encode(gzip.compress(body.encode(), mtime=0)).decode()


def _has(event: Event, tag: str) -> bool:
    """Whether the client has the version that ``tag`` names; RFC 9110 compares weakly here."""
    known = [each.strip() for each in (header(event, "if-none-match") or "").split(",")]
    return "*" in known or tag.removeprefix("W/") in {each.removeprefix("W/") for each in known}


def _reads_gzip(event: Event) -> bool:
    """Whether ``Accept-Encoding`` (RFC 9110, section 12.5.3) names gzip, with a weight over 0."""
    accepted = {}
    for each in (header(event, "accept-encoding") or "").lower().split(","):
        coding, _, weight = each.partition(";")
        accepted[coding.strip()] = _NO_WEIGHT.fullmatch(weight) is None
    return accepted.get("gzip", accepted.get("*", False))
