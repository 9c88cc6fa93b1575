"""Decides whether bytes are a complete picture of the right shape.

The bytes alone decide: the models send JPEG, and their declared MIME type has been wrong. A picture
is decoded in full before anyone is charged for it, because truncated base64 often still decodes.
"""

import struct
from collections.abc import Mapping
from io import BytesIO

import deflate
from PIL import ExifTags, Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from lib.errors import NoImageReturned
from lib.picture.aspect_ratio import AspectRatio

__all__ = [
    "MAX_IMAGE_BYTES",
    "MAX_PIXELS",
    "MIN_SIDE_PX",
    "PNG_SIGNATURE",
    "checked_picture",
    "is_whole_png",
]

MAX_IMAGE_BYTES = 32 * 1024 * 1024
# The largest output of any model is 4K: 4096x4096 when square, 6336x2688 (17.0 million) at 21:9.
# Source: ai.google.dev/gemini-api/docs/image-generation.
MAX_PIXELS = 20_000_000
MIN_SIDE_PX = 64
# Google documents 16:9 as 1376x768; 1408x768, 2.3 % wider, was seen live. The closest neighbours,
# such as 3:4 and 4:5, are 6.25 % apart.
_RATIO_TOLERANCE = 0.06

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Length, type and CRC, 4 bytes each. Source: PNG (W3C), section 5.3.
_CHUNK_OVERHEAD_BYTES = 12

# How to undo each EXIF orientation; 1 is upright. Source: Exif 2.32, tag 0x0112.
_UPRIGHT: Mapping[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def checked_picture(data: bytes, ratio: AspectRatio) -> Image.Image:
    """The upright picture in ``data`` (JPEG, PNG or WebP), in the mode that it was sent in.

    Raises:
        NoImageReturned: ``data`` is not a complete picture in one of the three formats, exceeds
            ``MAX_IMAGE_BYTES`` or ``MAX_PIXELS``, has a side under ``MIN_SIDE_PX``, or is more
            than 6 % off ``ratio``.
    """
    picture = _upright(_decoded(data))
    width, height = picture.size
    stretch = width / height / ratio.width_over_height
    if min(width, height) < MIN_SIDE_PX or abs(stretch - 1) > _RATIO_TOLERANCE:
        raise NoImageReturned
    return picture


def is_whole_png(data: bytes) -> bool:
    """Whether ``data`` is a PNG with every chunk intact and every pixel decodable."""
    if not data.startswith(PNG_SIGNATURE):
        return False
    try:
        _decoded(data)
    except NoImageReturned:
        return False
    return True


def _decoded(data: bytes) -> ImageFile.ImageFile:
    """The picture in ``data`` with its pixels loaded; its size is checked before they are.

    This calls the format's own class, not ``Image.open``: that one warns about large pictures
    according to a process-wide setting, and imports every other format on an unknown one.

    Raises:
        NoImageReturned: ``data`` is not complete, is too large, or has no known format.
    """
    opener = _opener_of(data)
    if opener is None or len(data) > MAX_IMAGE_BYTES:
        raise NoImageReturned
    if opener is PngImageFile and not _has_whole_chunks(data):
        raise NoImageReturned
    try:
        picture = opener(BytesIO(data))
        if picture.width * picture.height > MAX_PIXELS:
            raise NoImageReturned
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as fault:
        raise NoImageReturned from fault
    if picture.mode == "P" and picture.palette is None:
        raise NoImageReturned
    return picture


def _opener_of(data: bytes) -> type[ImageFile.ImageFile] | None:
    """Pillow's class for the format that the first bytes identify; None if it is not supported."""
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data.startswith(PNG_SIGNATURE):
        return PngImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    return None


def _has_whole_chunks(png: bytes) -> bool:
    """Whether every chunk up to IEND is present and matches its CRC.

    Pillow verifies neither the CRC of the pixel data nor that there is an IEND.
    """
    view = memoryview(png)
    start = len(PNG_SIGNATURE)
    while start + _CHUNK_OVERHEAD_BYTES <= len(png):
        length, kind = struct.unpack_from(">I4s", png, start)
        end = start + _CHUNK_OVERHEAD_BYTES + length
        crc = int.from_bytes(view[end - 4 : end], "big")
        if end > len(png) or deflate.crc32(view[start + 4 : end - 4]) != crc:
            return False
        if kind == b"IEND":
            return True
        start = end
    return False


def _upright(picture: Image.Image) -> Image.Image:
    """``picture`` with its EXIF orientation applied."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, struct.error):
        # The pixels are complete: unreadable EXIF counts as none.
        return picture
    method = _UPRIGHT.get(orientation)
    return picture if method is None else picture.transpose(method)
