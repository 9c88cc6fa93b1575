"""``verify``: checks receipts and statements against the issuer's public keys."""

import ipaddress
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import urlsplit

import typer

from infra.cli.errors import CommandFailed
from infra.cli.output import escaped
from infra.cli.session import OfflineCommand, Session
from lib.receipts.receipt import RECEIPT_TYPE

if TYPE_CHECKING:
    from infra.receipts.verification import Checked, Signed

__all__ = ["app"]

app = typer.Typer()
MAX_KEYS_BYTES = 64 * 1024
FETCH_S = 10
BESIDE = "jwks.json"

_File = Annotated[Path, typer.Argument(metavar="FILE", help="A receipt, or a signed statement.")]
_Jwks = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|URL",
        help=f"The issuer's public keys; {BESIDE} beside FILE if omitted. https only.",
    ),
]
_Image = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The picture that the receipt is about.")
]
_Receipts = Annotated[
    Path | None,
    typer.Option(
        metavar="DIRECTORY",
        help="The statement's receipts (*.jws), and pictures of theirs (*.png).",
    ),
]
_Previous = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The signed statement of the month before.")
]


@app.command(
    "verify",
    cls=OfflineCommand,
    epilog="--json: kind, issuer, key, claims, and what else was checked: image, receipts, "
    "pictures, previous; null if it was not",
)
def verify(
    session: Session,
    file: _File,
    jwks: _Jwks = None,
    image: _Image = None,
    receipts: _Receipts = None,
    previous: _Previous = None,
) -> None:
    """Check a receipt or a statement: who signed it, and whether anything was altered.

    Needs no account, and no network unless --jwks is a URL. Exits with 1 if anything is wrong.
    """
    # It loads cryptography, which no other command needs.
    from infra.receipts import verification  # noqa: PLC0415 - as above

    read, checked = verification.read_file, None
    try:
        keys = verification.keys_in(_public_keys(jwks, file, read))
        signed = verification.opened(read(file), keys)
        is_receipt = signed.kind == RECEIPT_TYPE
        if image is not None:
            _require(is_receipt, "--image is for a receipt; pass --receipts with a statement")
            verification.check_image(signed, read(image))
        if receipts is not None or previous is not None:
            _require(not is_receipt, "--receipts and --previous are for a statement")
        if previous is not None:
            verification.check_predecessor(signed, verification.opened(read(previous), keys))
        if receipts is not None:
            checked = verification.check_receipts(signed, receipts, keys)
    except verification.VerificationFailed as reason:
        raise CommandFailed(escaped(f"{file.name}: {reason}")) from reason
    session.output.result(
        {
            "kind": signed.kind,
            "issuer": signed.claims["iss"],
            "key": signed.key,
            "claims": dict(signed.claims),
            "image": None if image is None else image.name,
            "receipts": None if checked is None else checked.receipts,
            "pictures": None if checked is None else checked.pictures,
            "previous": None if previous is None else previous.name,
        },
        *map(escaped, _lines(signed, image, checked, previous)),
    )


def _lines(
    signed: "Signed", image: Path | None, checked: "Checked | None", previous: Path | None
) -> list[str]:
    claims = signed.claims
    lines = [_receipt(claims) if signed.kind == RECEIPT_TYPE else _statement(claims)]
    lines.append(f"signed by {claims['iss']} with key {signed.key}")
    if image is not None:
        lines.append(f"{image.name} is its picture")
    if checked is not None:
        lines.append(f"checked with its {checked.receipts} receipts, {checked.pictures} pictures")
    if previous is not None:
        lines.append(f"follows {previous.name}")
    return lines


def _receipt(claims: Any) -> str:
    why = f" ({claims['message']})" if claims["message"] else ""
    return (
        "receipt of generation {generation} of {organisation}, {createdAt}, key {key}: "
        "{outcome}{why}, {creditsCharged} credits charged, {creditsRefunded} refunded"
    ).format_map({**claims, "why": why})


def _statement(claims: Any) -> str:
    return (
        "statement of {organisation} for {month}: opening {opening} + grants {grants} - charges "
        "{charges} = closing {closing}; {images} images, {refunds} refunds"
    ).format_map(claims)


def _require(holds: bool, sentence: str) -> None:  # noqa: FBT001 - it is the condition
    if not holds:
        raise typer.BadParameter(sentence)


def _public_keys(jwks: str | None, file: Path, read: Callable[[Path], bytes]) -> bytes:
    if jwks is None:
        beside = file.parent / BESIDE
        if not beside.exists():
            raise CommandFailed(
                "name the issuer's public keys with --jwks, such as "
                "https://api.example.com/.well-known/jwks.json"
            )
        return read(beside)
    return _fetched(jwks) if "://" in jwks else read(Path(jwks))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The API never redirects, so a redirect leads to someone else's keys."""

    def redirect_request(self, *_: object) -> NoReturn:
        raise CommandFailed("the address of the public keys redirects; pass the final one")


def _fetched(url: str) -> bytes:
    address = urlsplit(url)
    is_secure = address.scheme == "https"
    if not is_secure and not (address.scheme == "http" and _is_loopback(address.hostname or "")):
        raise typer.BadParameter("the URL of --jwks must begin with https://")
    try:
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(url, timeout=FETCH_S) as answer:
            content: bytes = answer.read(MAX_KEYS_BYTES)
    except (OSError, HTTPException, ValueError) as fault:
        raise CommandFailed(
            f"the public keys could not be fetched ({type(fault).__name__}); check the URL, or "
            "download them and pass the file"
        ) from fault
    return content


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
