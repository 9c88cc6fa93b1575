"""Decides whether bytes are a complete picture of the right shape.

The bytes alone decide: the models send JPEG, and their declared MIME type has been wrong. A picture
is taken apart first (``lib.picture.picture_file``), which bounds its structure, and then decoded in
full before anyone is charged for it, because truncated base64 often still decodes.

What "complete" covers: a file cut short anywhere is refused, in all three formats. A PNG is also
refused if any byte of it was altered, because it has checksums. JPEG and WebP have none: altered or
missing bytes in the middle are noticed in most JPEGs (``lib.picture.jpeg_file`` says which), and
not in a lossy WebP.
"""

from dataclasses import dataclass

from PIL import Image, ImageFile

from lib.errors import NoImageReturned
from lib.picture.aspect_ratio import AspectRatio
from lib.picture.colour import colour_chunks
from lib.picture.jpeg_file import JPEG_SIGNATURE, read_jpeg
from lib.picture.orientation import upright
from lib.picture.picture_file import PictureFile, TailReader, UnusablePicture
from lib.picture.png_file import PNG_SIGNATURE, read_png
from lib.picture.transparency import on_white
from lib.picture.webp_file import is_webp, read_webp

__all__ = [
    "MAX_IMAGE_BYTES",
    "MAX_PIXELS",
    "MIN_SIDE_PX",
    "PNG_SIGNATURE",
    "CheckedPicture",
    "UnusablePicture",
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
# The longest signature of an image format: a RIFF, AVIF or HEIC file names its format in byte 8 on.
_MAGIC_BYTES = 12


@dataclass(frozen=True, slots=True)
class CheckedPicture:
    """A picture for sale: ``pixels`` in the mode RGB, upright, composited on white.

    ``colour_chunks`` are the PNG chunks, type and data, that say how to show its colours.
    """

    pixels: Image.Image
    colour_chunks: tuple[tuple[bytes, bytes], ...]


def checked_picture(data: bytes, ratio: AspectRatio) -> CheckedPicture:
    """The picture in ``data``, a JPEG, PNG or WebP.

    Raises:
        NoImageReturned: ``data`` is not a complete picture in one of the three formats, exceeds
            ``MAX_IMAGE_BYTES``, ``MAX_PIXELS`` or the bounds of its format's structure, has a side
            under ``MIN_SIDE_PX``, is more than 6 % off ``ratio``, or is in CMYK with a profile. Its
            cause is an ``UnusablePicture``, which says which.
    """
    try:
        return _checked(data, ratio)
    except UnusablePicture as unusable:
        raise NoImageReturned(unusable.reason, _described(data, unusable.size)) from unusable


def _described(data: bytes, size_px: tuple[int, int] | None) -> dict[str, object]:
    """What an operator may know about a refused picture; a log must not hold more of it."""
    described: dict[str, object] = {"magic": data[:_MAGIC_BYTES].hex(), "length": len(data)}
    if size_px is not None:
        described["size"] = f"{size_px[0]}x{size_px[1]}"
    return described


def is_whole_png(data: bytes) -> bool:
    """Whether ``data`` is a PNG with every chunk intact and every pixel decodable.

    It is judged as stored: lossless, it may be larger than any file that a model may send.
    """
    if not data.startswith(PNG_SIGNATURE):
        return False
    try:
        _decoded(_taken_apart(data))
    except UnusablePicture:
        return False
    return True


def _checked(data: bytes, ratio: AspectRatio) -> CheckedPicture:
    """The picture in ``data``.

    Raises:
        UnusablePicture: see ``checked_picture``.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise UnusablePicture("too_large")
    file = _taken_apart(data)
    picture = _decoded(file)
    if picture.mode == "CMYK" and file.icc_profile:
        # Pillow mixes the inks as if they were light; only the profile knows the colours.
        raise UnusablePicture("cmyk", picture.size)
    pixels = upright(on_white(picture, file), file.exif)
    _check_shape(pixels.size, ratio)
    return CheckedPicture(pixels, tuple(colour_chunks(file)))


def _taken_apart(data: bytes) -> PictureFile:
    """What is needed from ``data``, whose first bytes identify its format.

    Raises:
        UnusablePicture: the format is not supported, or its structure exceeds a bound.
    """
    if data.startswith(JPEG_SIGNATURE):
        return read_jpeg(data)
    if data.startswith(PNG_SIGNATURE):
        return read_png(data)
    if is_webp(data):
        return read_webp(data)
    raise UnusablePicture("format")


def _decoded(file: PictureFile) -> ImageFile.ImageFile:
    """The picture in ``file`` with its pixels loaded; its size is checked before they are.

    This calls the format's own class, not ``Image.open``: that one warns about large pictures
    according to a process-wide setting, and imports every other format on an unknown one.

    Raises:
        UnusablePicture: it can't be decoded to the last pixel, or is too large.
    """
    source = TailReader(file.data, file.tail_start)
    try:
        picture = file.opener(source)
        if picture.width * picture.height > MAX_PIXELS:
            raise UnusablePicture("pixels", picture.size)
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as fault:
        raise UnusablePicture("damaged") from fault
    if source.is_tail_unread or (picture.mode == "P" and picture.palette is None):
        raise UnusablePicture("damaged", picture.size)
    return picture


def _check_shape(size: tuple[int, int], ratio: AspectRatio) -> None:
    """Raises UnusablePicture if ``size`` is too small, or not of the shape ``ratio``."""
    width, height = size
    if min(size) < MIN_SIDE_PX:
        raise UnusablePicture("too_small", size)
    if abs(width / height / ratio.width_over_height - 1) > _RATIO_TOLERANCE:
        raise UnusablePicture("ratio", size)
