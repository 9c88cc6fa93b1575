"""Picture files put together block by block, and what becomes of them.

``png_of`` and ``chunks_of`` make and read PNG chunks; ``segment`` makes a JPEG segment, and
``progressive_jpeg`` a JPEG of any scans.
"""

import base64
import struct
import zlib
from collections.abc import Iterable, Sequence
from io import BytesIO

import pytest
from PIL import Image

from lib.errors import NoImageReturned
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.check import UnusablePicture
from lib.picture.png import to_png

__all__ = [
    "ADOBE_RGB",
    "DISPLAY_P3",
    "SIGNATURE",
    "SQUARE",
    "chunks_of",
    "opened",
    "pixel",
    "png_of",
    "progressive_jpeg",
    "reason",
    "refusal",
    "saved",
    "segment",
    "sold",
]

SQUARE = (96, 96)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    """The file that Pillow makes."""
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def opened(png: bytes) -> Image.Image:
    """What a viewer sees, after checking that the file is sound from end to end."""
    with Image.open(BytesIO(png)) as checked:
        checked.verify()
    image = Image.open(BytesIO(png))
    image.load()
    return image


def sold(data: bytes, ratio: AspectRatio = AspectRatio.SQUARE) -> Image.Image:
    """What a viewer sees of the PNG that is made of ``data``."""
    return opened(to_png(data, ratio))


def refusal(data: bytes, ratio: AspectRatio = AspectRatio.SQUARE) -> NoImageReturned:
    """The error that ``data`` ends in."""
    with pytest.raises(NoImageReturned) as caught:
        to_png(data, ratio)
    return caught.value


def reason(data: bytes, ratio: AspectRatio = AspectRatio.SQUARE) -> str:
    """Which rule ``data`` breaks, as the log tells it."""
    cause = refusal(data, ratio).__cause__
    assert isinstance(cause, UnusablePicture)
    return cause.reason


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    """One pixel's levels."""
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return tuple(int(level) for level in found)


def chunks_of(png: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of every chunk, after checking each length and CRC and that none follows."""
    assert png.startswith(SIGNATURE)
    chunks, start = [], len(SIGNATURE)
    while start < len(png):
        length, kind = struct.unpack_from(">I4s", png, start)
        content = png[start + 8 : start + 8 + length]
        (crc,) = struct.unpack_from(">I", png, start + 8 + length)
        assert crc == zlib.crc32(kind + content)
        chunks.append((kind, content))
        start += 12 + length
    return chunks


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of chunks whose CRCs are right, whatever they hold."""
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def segment(marker: int, content: bytes) -> bytes:
    """A JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def progressive_jpeg(side: int, scans: Iterable[Sequence[int]]) -> bytes:
    """A grey square of one level in 36 bytes a scan or less, whatever its size.

    Each scan sends the coefficients ``first`` to ``last`` from the bit ``before`` (0: from the
    highest) down to the bit ``after``.
    """
    blocks = ((side + 7) // 8) ** 2
    one_code = bytes([1] + [0] * 15)
    head = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    head += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\0")
    head += segment(0xC4, b"\x00" + one_code + b"\0") + segment(0xC4, b"\x10" + one_code + b"\xe0")
    no_difference = b"\0" * ((blocks + 7) // 8)
    # Runs of up to 32,767 blocks without any coefficient: code 0, then the length of the run.
    runs, left = "", blocks
    while left > 0:
        run = min(left, 32_767)
        runs += "0" + format(max(run - 16_384, 0), "014b")
        left -= max(run, 16_384)
    runs += "1" * (-len(runs) % 8)
    nothing = int(runs, 2).to_bytes(len(runs) // 8, "big").replace(b"\xff", b"\xff\0")
    body = b"".join(
        segment(0xDA, bytes([1, 1, 0, first, last, before << 4 | after]))
        + (nothing if first else no_difference)
        for first, last, before, after in scans
    )
    return head + body + b"\xff\xd9"


def _unpacked(*lines: str) -> bytes:
    return base64.b64decode("".join(lines))


# Display P3, an ICC profile, by saucecontrol/Compact-ICC-Profiles (CC0).
DISPLAY_P3 = _unpacked(
    "AAAB4GxjbXMEIAAAbW50clJHQiBYWVogB+IAAwAUAAkADgAdYWNzcE1TRlQAAAAAc2F3c2N0cmwAAAAAAAAAAAAA",
    "AAAAAPbWAAEAAAAA0y1oYW5kwzc6zlf4VsuhS9h6V6sQYQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAK",
    "ZGVzYwAAAPwAAAAiY3BydAAAASAAAAAid3RwdAAAAUQAAAAUY2hhZAAAAVgAAAAsclhZWgAAAYQAAAAUZ1hZWgAA",
    "AZgAAAAUYlhZWgAAAawAAAAUclRSQwAAAcAAAAAgZ1RSQwAAAcAAAAAgYlRSQwAAAcAAAAAgbWx1YwAAAAAAAAAB",
    "AAAADGVuVVMAAAAGAAAAHABzAFAAMwAAbWx1YwAAAAAAAAABAAAADGVuVVMAAAAGAAAAHABDAEMAMAAAWFlaIAAA",
    "AAAAAPbWAAEAAAAA0y1zZjMyAAAAAAABDEIAAAXe///zJQAAB5MAAP2Q///7of///aIAAAPcAADAblhZWiAAAAAA",
    "AACD3wAAPb////+7WFlaIAAAAAAAAEq/AACxNwAACrlYWVogAAAAAAAAKDgAABEKAADIuXBhcmEAAAAAAAMAAAAC",
    "ZmkAAPKnAAANWQAAE9AAAApb",
)
# compatible with Adobe RGB (1998), by saucecontrol/Compact-ICC-Profiles (CC0).
ADOBE_RGB = _unpacked(
    "AAAB4EFEQkUEIAAAbW50clJHQiBYWVogB+UABAAbAAoAGwAAYWNzcE1TRlQAAAAAc2F3c2N0cmwAAAAAAAAAAAAA",
    "AAAAAPbWAAEAAAAA0y1oYW5kQJL/Hmc0tW0AHE42cz9OcQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAK",
    "ZGVzYwAAAPwAAAAkY3BydAAAASAAAAAid3RwdAAAAUQAAAAUY2hhZAAAAVgAAAAsclhZWgAAAYQAAAAUZ1hZWgAA",
    "AZgAAAAUYlhZWgAAAawAAAAUclRSQwAAAcAAAAAgZ1RSQwAAAcAAAAAgYlRSQwAAAcAAAAAgbWx1YwAAAAAAAAAB",
    "AAAADGVuVVMAAAAIAAAAHABBADkAOABDbWx1YwAAAAAAAAABAAAADGVuVVMAAAAGAAAAHABDAEMAMAAAWFlaIAAA",
    "AAAAAPbWAAEAAAAA0y1zZjMyAAAAAAABDEIAAAXe///zJQAAB5MAAP2Q///7of///aIAAAPcAADAblhZWiAAAAAA",
    "AACcGAAAT6UAAAT8WFlaIAAAAAAAADSNAACgLAAAD5VYWVogAAAAAAAAJjEAABAvAAC+nHBhcmEAAAAAAAMAAAAC",
    "MzMAAQAAAAAAAAAACAAAAA5B",
)
