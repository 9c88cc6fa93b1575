"""Signs with a KMS key: JWS (RFC 7515), compact, ES256 (RFC 7518, section 3.4).

The private key never leaves KMS. KMS writes signatures and keys as DER, JOSE as raw numbers, so
that much is translated here. Nothing is verified here: customers verify with a JOSE library.
"""

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

__all__ = ["Jwk", "Signer", "SigningFailed"]

Jwk = dict[str, str]
# The bytes of one number of P-256.
NUMBER_BYTES = 32
# A P-256 public key as DER, up to x and y: RFC 5480, section 2. KMS returns no other form.
_SPKI = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")


class SigningFailed(Exception):
    """KMS did not sign, or did not return the public key."""


class Signer:
    """Signs with the KMS key ``key_id``, and publishes the keys that customers verify with.

    ``retired`` holds the public keys that signed earlier, as ``kid.x.y``, separated by commas.
    """

    def __init__(self, client: "KMSClient", key_id: str, retired: str | None = None) -> None:
        self._client = client
        self._key_id = key_id
        self._retired = [_jwk(*key.split(".")) for key in (retired or "").split(",") if key]
        self._own: Jwk | None = None

    def sign(self, payload: bytes, kind: str) -> str:
        """A compact JWS over ``payload``, whose header says in ``typ`` that it is a ``kind``.

        KMS signs 4,096 bytes at most: about 2,900 of payload. Source: Sign in KMS's API reference.

        Raises:
            SigningFailed
        """
        header = {"alg": "ES256", "kid": self._key_id, "typ": kind}
        written = json.dumps(header, separators=(",", ":")).encode()
        signing_input = f"{_base64url(written)}.{_base64url(payload)}"
        try:
            signed = self._client.sign(
                KeyId=self._key_id,
                Message=signing_input.encode(),
                MessageType="RAW",
                SigningAlgorithm="ECDSA_SHA_256",
            )
        except (ClientError, BotoCoreError) as fault:
            raise SigningFailed from fault
        return f"{signing_input}.{_base64url(_raw_signature(signed['Signature']))}"

    def jwks(self) -> Mapping[str, list[Jwk]]:
        """The public keys, as a JWK Set (RFC 7517): the one that signs, then the retired ones.

        Raises:
            SigningFailed
        """
        if self._own is None:
            self._own = self._public_key()
        return {"keys": [self._own, *self._retired]}

    def _public_key(self) -> Jwk:
        try:
            der = self._client.get_public_key(KeyId=self._key_id)["PublicKey"]
        except (ClientError, BotoCoreError) as fault:
            raise SigningFailed from fault
        if not der.startswith(_SPKI) or len(der) != len(_SPKI) + 2 * NUMBER_BYTES:
            raise SigningFailed
        x, y = der[-2 * NUMBER_BYTES : -NUMBER_BYTES], der[-NUMBER_BYTES:]
        return _jwk(self._key_id, _base64url(x), _base64url(y))


def _jwk(kid: str, x: str, y: str) -> Jwk:
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid, "use": "sig", "alg": "ES256"}


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _raw_signature(der: bytes) -> bytes:
    """Two numbers of 32 bytes from ``SEQUENCE { r INTEGER, s INTEGER }`` (RFC 3279, 2.2.3).

    Each length takes one byte: no part of a P-256 signature is longer than 127.
    """
    s_at = 4 + der[3]
    numbers = der[4:s_at], der[s_at + 2 :]
    return b"".join(
        int.from_bytes(number, "big").to_bytes(NUMBER_BYTES, "big") for number in numbers
    )
