"""The format of an API key.

A key is ``gg_<organisation>_<43 base62 characters><6 base62 characters of CRC-32>``. It has 256
random bits, secret scanners can recognise it, and a mistyped key is rejected without a lookup.
"""

import hashlib
import re
import secrets
import zlib

__all__ = ["ALPHABET", "fingerprint", "is_organisation", "new_key", "parse_key"]

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_BITS = 256
_RANDOM_DIGITS = 43
_CHECKSUM_DIGITS = 6
_MAX_KEY_CHARACTERS = len("gg_") + 63 + len("_") + _RANDOM_DIGITS + _CHECKSUM_DIGITS

_ORGANISATION = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
# An organisation may contain underscores; what follows it has a fixed length, so parsing is exact.
_KEY = re.compile(r"gg_(?P<organisation>[a-z0-9][a-z0-9_-]{0,62})_[0-9A-Za-z]{49}")


def new_key(organisation: str) -> str:
    """A new key for ``organisation``, with 256 bits from the operating system's generator.

    Raises:
        ValueError: ``organisation`` is not a valid name.
    """
    if not is_organisation(organisation):
        raise ValueError("not the name of an organisation")
    random = _base62(secrets.randbits(_RANDOM_BITS), _RANDOM_DIGITS)
    body = f"gg_{organisation}_{random}"
    return body + _checksum(body)


def parse_key(text: str) -> str | None:
    """The organisation named in the key ``text``; None if its format or checksum is wrong.

    This is an offline check: a well-formed key may still be unknown, revoked or expired.
    """
    if len(text) > _MAX_KEY_CHARACTERS:
        return None
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    body, checksum = text[:-_CHECKSUM_DIGITS], text[-_CHECKSUM_DIGITS:]
    return match["organisation"] if checksum == _checksum(body) else None


def is_organisation(text: str) -> bool:
    """Whether ``text`` is a valid organisation name: 1-63 of ``a-z 0-9 _ -``, alphanumeric first.

    The name is part of API keys, secret names and image URLs, hence the small alphabet.
    """
    return _ORGANISATION.fullmatch(text) is not None


def _checksum(body: str) -> str:
    """The CRC-32 of ``body`` in base62."""
    return _base62(zlib.crc32(body.encode("utf-8")), _CHECKSUM_DIGITS)


def _base62(number: int, width: int) -> str:
    """``number`` in base62, most significant digit first, zero-padded to ``width`` digits."""
    digits = []
    for _ in range(width):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))


def fingerprint(key: str) -> str:
    """The form in which a key is stored: its SHA-256, as 64 hex digits.

    A fast hash is enough, because 256 random bits cannot be guessed.
    """
    return hashlib.sha256(key.encode("utf-8")).hexdigest()
