"""Takes a PNG apart: bounds, checksums, transparency, the meaning of its colours.

The decoder gets the header, the palette and the pixels. Text, profiles and everything else that is
compressed inside a PNG stays out of its sight, whatever it unpacks to. Source of the format: PNG
(W3C, third edition), sections 5 and 11.
"""

import struct

import deflate
from PIL.PngImagePlugin import PngImageFile

from lib.picture.colour import inflated_profile
from lib.picture.picture_file import PictureFile, UnusablePicture

__all__ = ["MAX_CHUNKS", "PNG_SIGNATURE", "png_chunk", "read_png"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# libpng splits pixels into chunks of 8 KB: 4,096 of them in the 32 MiB that a picture may have.
MAX_CHUNKS = 8_192
# Length, type and CRC, 4 bytes each.
_CHUNK_OVERHEAD_BYTES = 12
_COLOUR_CHUNK_BYTES = {b"cICP": 4, b"cHRM": 32, b"gAMA": 4, b"sRGB": 1}
_GREY, _RGB, _PALETTE = 0, 2, 3


def read_png(data: bytes) -> PictureFile:
    """Takes ``data`` apart; the walk ends at the first bound that is exceeded.

    Every chunk up to IEND must be present and match its CRC. Pillow verifies neither the CRC of the
    pixel data nor that there is an IEND.

    Raises:
        UnusablePicture: ``structure`` or ``damaged``.
    """
    chunks, pixels = _chunks(data)
    header = chunks.get(b"IHDR", b"")
    if len(header) != struct.calcsize(">IIBBBBB"):
        raise UnusablePicture("structure")
    _, _, depth, colour_type, *_ = struct.unpack(">IIBBBBB", header)
    transparency = chunks.get(b"tRNS", b"")
    transparent = None
    kept = [(b"IHDR", header)]
    if colour_type == _PALETTE:
        kept += [(kind, chunks[kind]) for kind in (b"PLTE", b"tRNS") if kind in chunks]
    elif len(transparency) == {_GREY: 2, _RGB: 6}.get(colour_type):
        # Only the low ``depth`` bits of each level count (section 11.3.1.1).
        levels = struct.unpack(f">{len(transparency) // 2}H", transparency)
        transparent = tuple(level & ((1 << depth) - 1) for level in levels)
    kept += [(b"IDAT", pixels), (b"IEND", b"")]
    return PictureFile(
        PngImageFile,
        PNG_SIGNATURE + b"".join(part for chunk in kept for part in png_chunk(*chunk)),
        icc_profile=inflated_profile(chunks.get(b"iCCP", b"")),
        exif=chunks.get(b"eXIf", b""),
        png_colour={
            kind: chunks[kind]
            for kind, length in _COLOUR_CHUNK_BYTES.items()
            if len(chunks.get(kind, b"")) == length
        },
        transparent=transparent,
        depth=depth,
    )


def png_chunk(kind: bytes, data: bytes | bytearray) -> tuple[bytes, bytes | bytearray, bytes]:
    """A PNG chunk in parts: length and type, data, CRC. Source: PNG (W3C), section 5.3."""
    crc = deflate.crc32(data, deflate.crc32(kind))
    return struct.pack(">I4s", len(data), kind), data, struct.pack(">I", crc)


_NEEDED = frozenset({b"IHDR", b"PLTE", b"eXIf", b"iCCP", b"tRNS", *_COLOUR_CHUNK_BYTES})


def _chunks(png: bytes) -> tuple[dict[bytes, bytes], bytes]:
    """The chunks that are needed, the first of each kind, and the pixel data in one piece."""
    view = memoryview(png)
    needed: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    start = len(PNG_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if start + _CHUNK_OVERHEAD_BYTES > len(png):
            raise UnusablePicture("damaged")
        length, kind = struct.unpack_from(">I4s", png, start)
        end = start + _CHUNK_OVERHEAD_BYTES + length
        crc = int.from_bytes(view[end - 4 : end], "big")
        if end > len(png) or deflate.crc32(view[start + 4 : end - 4]) != crc:
            raise UnusablePicture("damaged")
        if kind == b"IEND":
            return needed, b"".join(pixels)
        if kind == b"IDAT":
            pixels.append(view[start + 8 : end - 4])
        elif kind in _NEEDED:
            needed.setdefault(kind, bytes(view[start + 8 : end - 4]))
        start = end
    raise UnusablePicture("structure")
