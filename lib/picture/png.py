"""Any image bytes in, a verified PNG of the right shape out.

The models send JPEG, and the declared type has been wrong, so the bytes alone say what a picture
is. It is decoded in full before anybody pays for it; base64 that was cut short often decodes.

Why an encoder of our own: Pillow's ``save`` takes most of the CPU of a request. Encoding alone, as
``python -m infra.bench.png_encoders`` measured it on a busy x86 machine, medians of 7 in one run
(the ratios mean something, the milliseconds little):

    ==========================  ==========  =======  ====  =====
    picture                     Pillow, ms  we, ms   CPU   bytes
    ==========================  ==========  =======  ====  =====
    photo by day, 1376x768             371       46  0.12   0.99
    photo by night, 1376x768           257       51  0.20   1.07
    illustration, 1376x768              97       28  0.29   1.08
    noise, 1376x768                    284       38  0.13   0.92
    photo by day, 2048x2048          1,521      190  0.12   0.96
    photo by night, 2048x2048        1,137      186  0.16   1.08
    illustration, 2048x2048            350      144  0.41   1.07
    noise, 2048x2048                 1,486      209  0.14   0.93
    ==========================  ==========  =======  ====  =====

Ten real photographs, each scaled and also tiled to 1K, and four of them scaled to 2K, came to
0.12-0.30 of the CPU and 0.96-1.08 of the bytes.

Pillow's own fast settings miss the size: level 1 gives 1.14 to 1.18 of the default's bytes, level 1
with RLE up to 1.42. A PNG is filtered rows under deflate, and both are to be had for less:

- ``deflate`` (libdeflate, 0.3 MB) at level 1 on noisy pictures, where no more effort pays; at level
  4 on smooth ones, where level 1 would give up to 1.15; at level 2 between.
- The filters Sub, Up and Paeth are exact when made of ``ImageChops`` operations on whole images.
  Each band of rows takes the one under which a strip of it compresses best, and Paeth only if it
  wins by 5 %, for it costs twenty times as much. (Pillow goes by the sum of differences, and so
  misses that rows filtered by Up often repeat.)
- A band is small enough for its dozen intermediate images to stay in the cache and to be allocated
  from the same pages again and again: Paeth over a whole 1K picture at once takes 31 ms, not 17.

Metadata is dropped: EXIF after its orientation has been applied, and the ICC profile without
converting. An untagged PNG is shown as sRGB, which the models' pictures are taken to be: conversion
would load a colour library into every cold start for a profile that has not been seen.
"""

import struct
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import NamedTuple

import deflate
from PIL import ExifTags, Image, ImageChops, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from lib.errors import NoImageReturned
from lib.picture.aspect_ratio import AspectRatio

__all__ = ["MAX_IMAGE_BYTES", "MAX_PIXELS", "MIN_SIDE_PX", "encode_png", "is_whole_png", "to_png"]

MAX_IMAGE_BYTES = 32 * 1024 * 1024
# The largest that a model offers is 4K: 4096x4096 when square, 6336x2688 (17.0 million) at 21:9.
MAX_PIXELS = 20_000_000
MIN_SIDE_PX = 64
# Documented 16:9 is 1376x768; 1408x768, 2.3 % wider, was seen live. Neighbours such as 3:4 and 4:5
# are 6.25 % apart.
_RATIO_TOLERANCE = 0.06

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK_OVERHEAD_BYTES = 12
_BYTES_PER_PIXEL = 3
_BANDS = 32
_MIN_BAND_BYTES = 128 * 1024
_STRIPS_PER_BAND = 16
_TRIAL_LEVEL = 1
# deflate's level by what a trial leaves of the bytes: the less, the more an effort finds.
_LEVELS = ((0.55, 1), (0.33, 2), (0.0, 4))

_WHITE = (255, 255, 255)
_UPRIGHT: Mapping[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_png(image: bytes, ratio: AspectRatio) -> bytes:
    """``image`` (JPEG, PNG or WebP, whatever it is said to be) as an 8-bit RGB PNG.

    Transparency is laid on white, as a viewer would show it; of an animation the first frame
    counts. May be called by several threads at once.

    Raises:
        NoImageReturned: the bytes are no whole picture of one of the three formats, are over
            ``MAX_IMAGE_BYTES`` or ``MAX_PIXELS``, have a side under ``MIN_SIDE_PX``, or are more
            than 6 % off ``ratio``.
    """
    picture = _as_rgb(_turned_upright(_decoded(image)))
    width, height = picture.size
    stretch = width / height / ratio.width_over_height
    if min(width, height) < MIN_SIDE_PX or abs(stretch - 1) > _RATIO_TOLERANCE:
        raise NoImageReturned
    return encode_png(picture)


def is_whole_png(data: bytes) -> bool:
    """Whether ``data`` is a PNG with every chunk intact and every pixel decodable."""
    if not data.startswith(_SIGNATURE):
        return False
    try:
        _decoded(data)
    except NoImageReturned:
        return False
    return True


def _decoded(data: bytes) -> ImageFile.ImageFile:
    """The picture in ``data``, its pixels loaded. The size is checked before they are.

    The format's own class rather than ``Image.open``, which warns about large pictures, a setting
    of the whole process, and imports every other format when it meets an unknown one.
    """
    opener = _opener_of(data)
    if opener is None or len(data) > MAX_IMAGE_BYTES:
        raise NoImageReturned
    if opener is PngImageFile and not _chunks_are_whole(data):
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
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data.startswith(_SIGNATURE):
        return PngImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    return None


def _chunks_are_whole(png: bytes) -> bool:
    """Whether every chunk up to IEND is there and has the right CRC.

    Pillow checks neither the CRC of the pixels nor that there is an end.
    """
    view = memoryview(png)
    start = len(_SIGNATURE)
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


def _turned_upright(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, struct.error):
        # The pixels are whole: EXIF that can't be read is as good as none.
        return picture
    method = _UPRIGHT.get(orientation)
    return picture if method is None else picture.transpose(method)


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I;16":
        # Pillow would clip at 255; of each little-endian pair the second byte is the 8-bit grey.
        picture = Image.frombytes("L", picture.size, picture.tobytes()[1::2])
    if picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        picture = Image.new("RGB", picture.size, _WHITE)
        picture.paste(coloured, mask=coloured)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def encode_png(image: Image.Image) -> bytes:
    """``image``, of mode RGB, as a PNG without metadata: the same pixels, bit by bit.

    Raises:
        ValueError: the mode is another.
    """
    if image.mode != "RGB":
        raise ValueError(f"encode_png takes RGB, not {image.mode}")
    rows, density = _filtered(image)
    level = next(level for least, level in _LEVELS if density >= least)
    header = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 0)
    pixels = deflate.zlib_compress(rows, level)
    return b"".join(
        (_SIGNATURE, *_chunk(b"IHDR", header), *_chunk(b"IDAT", pixels), *_chunk(b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes | bytearray) -> tuple[bytes | bytearray, ...]:
    crc = deflate.crc32(data, deflate.crc32(kind))
    return struct.pack(">I4s", len(data), kind), data, struct.pack(">I", crc)


class _Bytes(NamedTuple):
    """Grey images of a band: each row's bytes, and for each byte its three neighbours.

    The first column is room for the filter's type.
    """

    own: Image.Image
    left: Image.Image
    above: Image.Image
    above_left: Image.Image

    @property
    def height(self) -> int:
        return self.own.height

    def strip(self) -> "_Bytes":
        """A few rows from the middle."""
        height = -(-self.height // _STRIPS_PER_BAND)
        top = (self.height - height) // 2
        return _Bytes(*(view.crop((0, top, view.width, top + height)) for view in self))


def _filtered(image: Image.Image) -> tuple[bytearray, float]:
    """The filtered rows, each behind its filter's type; and what trials left of their bytes."""
    rows_at_least = _MIN_BAND_BYTES // (_BYTES_PER_PIXEL * image.width)
    band_rows = max(rows_at_least, -(-image.height // _BANDS))
    filtered = bytearray()
    tried_bytes, left_bytes = 0, 0.0
    for top in range(0, image.height, band_rows):
        band = _band(image, top, min(top + band_rows, image.height))
        strip = band.strip()
        left, kind = min((_trial_bytes(strip, kind), kind) for kind in _FILTERS)
        left_bytes += left
        tried_bytes += strip.own.width * strip.height
        rows = _FILTERS[kind](band)
        rows.paste(kind, (0, 0, 1, rows.height))
        filtered += rows.tobytes()
    return filtered, left_bytes / tried_bytes


def _trial_bytes(strip: _Bytes, kind: int) -> float:
    compressed = deflate.zlib_compress(_FILTERS[kind](strip).tobytes(), _TRIAL_LEVEL)
    return len(compressed) * (_PAETH_HANDICAP if kind == _PAETH else 1.0)


def _band(image: Image.Image, top: int, bottom: int) -> _Bytes:
    """Rows ``top`` to ``bottom`` as four views of one buffer, shifted by a pixel, a row and both.

    A column of black left of the picture and a row of black above it are the zeros that PNG
    prescribes for neighbours outside.
    """
    padded = image.crop((-1, top - 1, image.width, bottom)).tobytes()
    stride = _BYTES_PER_PIXEL * (image.width + 1)
    buffer = memoryview(b"\0" + padded + b"\0\0")
    size = (_BYTES_PER_PIXEL * image.width + 1, bottom - top)

    def view(offset: int) -> Image.Image:
        shifted = buffer[offset:]
        # Any buffer will do, without a copy, though Pillow's types name bytes alone.
        return Image.frombuffer("L", size, shifted, "raw", "L", stride, 1)  # type: ignore[arg-type]

    return _Bytes(
        own=view(stride + _BYTES_PER_PIXEL),
        left=view(stride),
        above=view(_BYTES_PER_PIXEL),
        above_left=view(0),
    )


def _sub(band: _Bytes) -> Image.Image:
    return ImageChops.subtract_modulo(band.own, band.left)


def _up(band: _Bytes) -> Image.Image:
    return ImageChops.subtract_modulo(band.own, band.above)


def _paeth(band: _Bytes) -> Image.Image:
    """Each byte less the neighbour that is nearest to left + above - above_left.

    Let low and high be the smaller and the larger of left and above, ``span`` their distance, and
    ``rise`` how far above_left lies over low, cut to 0..span. The nearest neighbour (PNG's ties go
    to left, then above, then above_left) is low if rise >= 2 fall, high if fall >= 2 rise, and
    above_left otherwise, where fall = span - rise. No step leaves 8 bits.
    """
    minus, smaller, larger = ImageChops.subtract_modulo, ImageChops.darker, ImageChops.lighter
    low = smaller(band.left, band.above)
    span = ImageChops.difference(band.left, band.above)
    rise = smaller(minus(larger(band.above_left, low), low), span)
    fall = minus(span, rise)
    less = smaller(rise, fall)
    gap = ImageChops.difference(rise, fall)
    is_low_or_high = minus(larger(less, gap), gap).point(_255_IF_ZERO)
    is_high = minus(fall, less).point(_255_IF_NOT_ZERO)
    # From low + rise, which is above_left, to low or high; masks of 0 and 255 act by the minimum.
    step = smaller(minus(smaller(span, is_high), rise), is_low_or_high)
    return minus(minus(minus(band.own, low), rise), step)


_255_IF_ZERO = [255] + [0] * 255
_255_IF_NOT_ZERO = [0] + [255] * 255
# By the type that PNG gives to each.
_SUB, _UP, _PAETH = 1, 2, 4
_FILTERS: Mapping[int, Callable[[_Bytes], Image.Image]] = {_SUB: _sub, _UP: _up, _PAETH: _paeth}
_PAETH_HANDICAP = 1.05
