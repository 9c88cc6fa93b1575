"""What the numbers of a picture's pixels mean, carried over into the PNG.

Pixels are never converted: that would load a colour library into every cold start. What says how to
show them is copied instead: an ICC profile for RGB as ``iCCP``, and from a PNG also ``cICP``,
``sRGB``, ``gAMA`` and ``cHRM``. Viewers show a picture without any of these as sRGB.

Not copied:

- a profile that is broken, or for another colour space than the picture's: viewers ignore it;
- a profile for grey: a PNG in RGB must not contain one, and it can't tint a picture, only bend its
  tones a little (sRGB, and the usual gamma of 2.2, hardly differ).

Sources: PNG (W3C, third edition), section 11.3.2; ICC.1:2022, section 7.2.
"""

import zlib
from collections.abc import Iterator

import deflate

from lib.picture.picture_file import PictureFile, UnusablePicture

__all__ = ["MAX_PROFILE_BYTES", "colour_chunks", "inflated_profile"]

# Most RGB profiles have 0.5 to 4 KB, and the largest in wide use, sRGB v4 preference, has 61 KB.
MAX_PROFILE_BYTES = 256 * 1024
_PROFILE_HEADER_BYTES = 128
_PROFILE_NAME = b"ICC profile"
_COMPRESSION_LEVEL = 6
_UNUSABLE_GAMMA = bytes(4)


def colour_chunks(file: PictureFile) -> Iterator[tuple[bytes, bytes]]:
    """The PNG chunks, type and data, that say what the colours of an RGB picture mean.

    Raises:
        UnusablePicture: ``colour``, if the profile is over ``MAX_PROFILE_BYTES``: without it, the
            colours would be wrong.
    """
    own = file.png_colour
    if b"cICP" in own:
        yield b"cICP", own[b"cICP"]
    profile = file.icc_profile or b""
    is_rgb = profile[36:40] == b"acsp" and profile[16:20] == b"RGB "
    if is_rgb and len(profile) > MAX_PROFILE_BYTES:
        raise UnusablePicture("colour")
    if is_rgb and int.from_bytes(profile[:4], "big") == len(profile) > _PROFILE_HEADER_BYTES:
        compressed = deflate.zlib_compress(profile, _COMPRESSION_LEVEL)
        yield b"iCCP", _PROFILE_NAME + b"\0\0" + compressed
    elif b"sRGB" in own:
        yield b"sRGB", own[b"sRGB"]
    if own.get(b"gAMA", _UNUSABLE_GAMMA) != _UNUSABLE_GAMMA:
        yield b"gAMA", own[b"gAMA"]
    if b"cHRM" in own:
        yield b"cHRM", own[b"cHRM"]


def inflated_profile(iccp: bytes) -> bytes | None:
    """The profile in the data of an ``iCCP`` chunk; None if it can't be read.

    At most one byte over the bound is unpacked, so a profile that is cut there is over the bound.
    """
    _, _, compressed = iccp.partition(b"\0")
    if not compressed.startswith(b"\0"):
        return None
    unpacker = zlib.decompressobj()
    try:
        return unpacker.decompress(compressed[1:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return None
