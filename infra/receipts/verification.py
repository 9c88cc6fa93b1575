"""Checks receipts and statements against the issuer's public keys, with no network and no account.

joserfc verifies the signatures. What this module adds is what a signature alone doesn't say: that
the algorithm and the kind are the expected ones, that a picture is the receipt's, and that a
statement adds up, follows its predecessor, and counts exactly these receipts.
"""

import csv
import errno
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import Key, KeySet
from joserfc.util import urlsafe_b64decode, urlsafe_b64encode

from infra.receipts.statement import (
    Digest,
    Line,
    Month,
    Statement,
    Usage,
    lines_as_csv,
    sha256_of,
    totals_of,
    with_signature,
)
from lib.receipts.receipt import RECEIPT_TYPE, STATEMENT_TYPE

__all__ = [
    "Checked",
    "Signed",
    "VerificationFailed",
    "check_image",
    "check_predecessor",
    "check_receipts",
    "keys_in",
    "opened",
    "read_file",
    "set_of",
]

ALGORITHM = "ES256"
MAX_RECEIPT_BYTES = 16 * 1024
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_SHOWN = 64


class VerificationFailed(Exception):
    """What is wrong, as one sentence without a full stop."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A verified receipt or statement. ``key`` is the ``kid`` that signed, ``lines`` its lines."""

    kind: str
    key: str
    claims: Mapping[str, Any]
    payload: bytes
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """How many receipts and pictures a statement was checked against."""

    receipts: int
    pictures: int


def keys_in(content: bytes) -> KeySet:
    """The keys of a JWK Set.

    Raises:
        VerificationFailed
    """
    try:
        return KeySet.import_key_set(json.loads(content))
    except (JoseError, ValueError, TypeError, LookupError, AttributeError) as fault:
        raise VerificationFailed("the public keys are not a JWK Set") from fault


def set_of(jwks: Mapping[str, Any]) -> KeySet:
    """The keys of a JWK Set of this service's own."""
    return keys_in(json.dumps(jwks).encode())


def read_file(path: Path, limit_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The content of a file that is to be verified.

    Raises:
        VerificationFailed: it cannot be read, or is larger than any that this service writes.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(limit_bytes + 1)
    except OSError as fault:
        reason = os.strerror(fault.errno or errno.EIO)
        raise VerificationFailed(f"{path.name} cannot be read ({reason})") from fault
    if len(content) > limit_bytes:
        raise VerificationFailed(f"{path.name} is too large")
    return content


def opened(content: bytes, keys: KeySet) -> Signed:
    """What a file says, once its signature and its form are verified.

    Raises:
        VerificationFailed
    """
    if content.startswith(b"{"):
        return _opened_json(content, keys)
    if content.startswith(b"kind,"):
        return _opened_csv(content, keys)
    # One line end is the most that a download may add.
    signed = _verified(content.removesuffix(b"\n"), keys)
    if signed.kind != RECEIPT_TYPE:
        raise VerificationFailed(f"it is no receipt but a {_shown(signed.kind)}")
    return signed


def check_image(signed: Signed, image: bytes) -> None:
    """Whether the receipt is about this picture.

    Raises:
        VerificationFailed
    """
    expected = signed.claims["imageSha256"]
    if expected is None:
        raise VerificationFailed("the receipt names no picture: nothing was charged for one")
    if hashlib.sha256(image).hexdigest() != expected:
        raise VerificationFailed("the picture is not the one that the receipt is about")


def check_predecessor(signed: Signed, previous: Signed) -> None:
    """Whether the statement follows ``previous``.

    Raises:
        VerificationFailed
    """
    claims, before = signed.claims, previous.claims
    if claims["previousSha256"] != sha256_of(before):
        raise VerificationFailed("the statement names another predecessor than this one")
    same = all(claims[name] == before[name] for name in ("iss", "organisation"))
    if not same or str(Month.parse(before["month"]).next()) != claims["month"]:
        raise VerificationFailed("the predecessor is not of the month before")
    if before["closing"] != claims["opening"]:
        raise VerificationFailed(
            f"the predecessor closes with {before['closing']} credits, and the statement opens "
            f"with {claims['opening']}"
        )


def check_receipts(signed: Signed, directory: Path, keys: KeySet) -> Checked:
    """Whether the statement counts exactly the receipts (``*.jws``) in ``directory``.

    Each picture (``*.png``) there must be that of a receipt; receipts may lack theirs. Of each
    receipt a hash is kept in memory.

    Raises:
        VerificationFailed
        OSError
    """
    claims = signed.claims
    payloads: dict[str, bytes] = {}
    usage, pictures = Usage(), set()
    for path in sorted(directory.glob("*.jws")):
        receipt = _receipt_in(path, keys)
        stated = receipt.claims
        of_this = all(stated[name] == claims[name] for name in ("iss", "organisation"))
        if not of_this or not stated["createdAt"].startswith(claims["month"]):
            raise VerificationFailed(f"{path.name}: it belongs to another statement")
        if stated["generation"] in payloads:
            raise VerificationFailed(f"{path.name}: another file holds the same receipt")
        payloads[stated["generation"]] = hashlib.sha256(receipt.payload).digest()
        usage.add(stated)
        pictures.add(stated["imageSha256"])
    if len(payloads) != claims["receipts"]:
        raise VerificationFailed(
            f"the statement counts {claims['receipts']} receipts, and there are {len(payloads)}"
        )
    digest = Digest()
    for generation in sorted(payloads):
        digest.add_hash(payloads[generation])
    if digest.hex() != claims["receiptsSha256"]:
        raise VerificationFailed("the statement was made of other receipts than these")
    if usage.lines() != [line for line in signed.lines if line.kind == "usage"]:
        raise VerificationFailed("the statement's lines are not what the receipts add up to")
    return Checked(len(payloads), _check_pictures(directory, pictures))


def _check_pictures(directory: Path, known: set[str | None]) -> int:
    count = 0
    for path in sorted(directory.glob("*.png")):
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found not in known:
            raise VerificationFailed(f"{path.name}: it is not the picture of any of the receipts")
        count += 1
    return count


def _receipt_in(path: Path, keys: KeySet) -> Signed:
    content = read_file(path, MAX_RECEIPT_BYTES)
    try:
        return opened(content, keys)
    except VerificationFailed as fault:
        raise VerificationFailed(f"{path.name}: {fault}") from fault


def _verified(token: bytes, keys: KeySet) -> Signed:
    try:
        found = jws.extract_compact(token)
        header = found.headers()
        kind, kid = str(header.get("typ")), str(header.get("kid"))
        algorithm = header.get("alg")
        if algorithm != ALGORITHM:
            raise VerificationFailed(
                f"it is signed with {_shown(algorithm)}; only {ALGORITHM} is accepted"
            )
        key = _key(keys, kid)
        verified = jws.deserialize_compact(token, key, algorithms=[ALGORITHM])
        claims = json.loads(verified.payload)
    except (JoseError, ValueError, TypeError) as fault:
        raise VerificationFailed(
            "the signature is wrong: the file was altered, or another key signed it"
        ) from fault
    # The last character of a signature in base64url has bits that decoding drops.
    written = found.segments["signature"]
    if urlsafe_b64encode(urlsafe_b64decode(written)) != written:
        raise VerificationFailed("the signature's encoding was altered")
    return Signed(kind, kid, claims, verified.payload)


def _key(keys: KeySet, kid: str) -> Key:
    for key in keys:
        if key.kid == kid:
            return key
    raise VerificationFailed(f"it names the key {_shown(kid)}, which the issuer does not publish")


def _opened_json(content: bytes, keys: KeySet) -> Signed:
    try:
        document = json.loads(content)
        token = document["jws"]
        lines = [Line(**each) for each in document["lines"]]
        signed = _statement(token.encode(), lines, keys)
    except (ValueError, TypeError, LookupError, AttributeError) as fault:
        raise VerificationFailed("it is neither a receipt nor a statement") from fault
    return _unaltered(content, signed, token, as_csv=False)


def _opened_csv(content: bytes, keys: KeySet) -> Signed:
    try:
        _, *rows, last = csv.reader(io.StringIO(content.decode()), strict=True)
        token = last[-1]
        lines = [_line(row) for row in rows]
        signed = _statement(token.encode(), lines, keys)
    except (ValueError, TypeError, LookupError, csv.Error) as fault:
        raise VerificationFailed("it is neither a receipt nor a statement") from fault
    return _unaltered(content, signed, token, as_csv=True)


def _line(row: list[str]) -> Line:
    kind, date, key, grant, images, credits_, refunds, refunded = row
    return Line(kind, date, key, grant, int(images), int(credits_), int(refunds), int(refunded))


def _statement(token: bytes, lines: list[Line], keys: KeySet) -> Signed:
    """A verified statement, whose lines are the signed ones and add up."""
    signed = _verified(token, keys)
    claims = signed.claims
    if signed.kind != STATEMENT_TYPE:
        raise VerificationFailed(f"it is no statement but a {_shown(signed.kind)}")
    if hashlib.sha256(lines_as_csv(lines)).hexdigest() != claims["linesSha256"]:
        raise VerificationFailed("the lines of the statement were altered")
    totals = totals_of(lines)
    wrong = [name for name, total in totals.items() if claims[name] != total]
    if wrong:
        raise VerificationFailed(f"the lines of the statement do not add up to its {wrong[0]}")
    expected = totals["opening"] + totals["grants"] - totals["charges"]
    if totals["closing"] != expected:
        raise VerificationFailed(
            f"opening {totals['opening']} + grants {totals['grants']} - charges "
            f"{totals['charges']} is {expected}, and the statement closes with {totals['closing']}"
        )
    return Signed(signed.kind, signed.key, claims, signed.payload, tuple(lines))


def _unaltered(content: bytes, signed: Signed, token: str, *, as_csv: bool) -> Signed:
    """The file must be, byte by byte, what such a statement is written as."""
    if (
        with_signature(Statement(signed.claims, list(signed.lines)), token, as_csv=as_csv)
        != content
    ):
        raise VerificationFailed("the file was altered outside of what is signed")
    return signed


def _shown(text: object) -> str:
    """A text from a file that is not trusted, for a terminal."""
    return ascii(str(text))[1:-1][:MAX_SHOWN] or "nothing"
