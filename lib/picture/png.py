"""Encodes a model's picture as an 8-bit RGB PNG.

This module has its own encoder because Pillow's ``save`` takes most of a request's CPU. Encoding
alone, as ``python -m infra.bench.png_encoders`` measured it on a busy x86 machine (medians of 7 in
one run; compare the ratios, not the milliseconds):

    ==========================  ==========  =======  ====  =====
    picture                     Pillow, ms  own, ms   CPU  bytes
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

Ten real photographs, each scaled and also tiled to 1K, and four of them scaled to 2K, took 0.12 to
0.30 of the CPU and 0.96 to 1.08 of the bytes.

Pillow's own fast settings miss the size target: level 1 gives 1.14 to 1.18 of the default's bytes,
level 1 with RLE up to 1.42. A PNG is filtered rows under deflate, and both can be done more
cheaply:

- ``deflate`` (libdeflate, 0.3 MB) runs at level 1 on noisy pictures, where more effort gains
  nothing; at level 4 on smooth ones, where level 1 would produce up to 1.15 times the bytes; and at
  level 2 in between.
- The filters Sub, Up and Paeth are exact as ``ImageChops`` operations on whole images. Each band of
  rows gets the filter under which a strip of it compresses best. Paeth must win by 5 %, because it
  costs twenty times as much. (Pillow compares sums of differences, and so misses that rows filtered
  by Up often repeat.)
- A band is small enough that its dozen intermediate images stay in the cache and reuse the same
  pages. Paeth over a whole 1K picture at once takes 31 ms instead of 17.

Of a picture's metadata, only what says how to show its colours is kept (``lib.picture.colour``).
Every PNG is marked as made by a model (``lib.picture.provenance``).
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import deflate
from PIL import Image, ImageChops

from lib.picture.aspect_ratio import AspectRatio
from lib.picture.check import checked_picture
from lib.picture.png_file import PNG_SIGNATURE, png_chunk
from lib.picture.provenance import PROVENANCE_CHUNK

__all__ = ["encode_png", "to_png"]

_BYTES_PER_PIXEL = 3
_BANDS = 32
_MIN_BAND_BYTES = 128 * 1024
_STRIPS_PER_BAND = 16
_TRIAL_LEVEL = 1
# deflate's level by the share of bytes that the trials left, at least: the smaller the share, the
# more a higher level saves.
_LEVELS = ((0.55, 1), (0.33, 2), (0.0, 4))


def to_png(image: bytes, ratio: AspectRatio) -> bytes:
    """``image`` (JPEG, PNG or WebP, whatever its declared type) as an 8-bit RGB PNG.

    Transparent pixels are composited on white, as viewers show them. Of an animation, the first
    frame is used. Thread-safe.

    Raises:
        NoImageReturned: ``image`` is not a complete picture of the shape ``ratio``; see
            ``lib.picture.check.checked_picture`` for the limits.
    """
    picture = checked_picture(image, ratio)
    return encode_png(picture.pixels, picture.colour_chunks)


def encode_png(image: Image.Image, colour_chunks: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """``image``, whose mode is RGB, as a PNG with exactly the same pixels.

    ``colour_chunks``, type and data of each, precede the pixels.

    Raises:
        ValueError: the mode is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"encode_png takes RGB, not {image.mode}")
    rows, density = _filtered_rows(image)
    level = next(level for least, level in _LEVELS if density >= least)
    header = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 0)
    chunks: list[tuple[bytes, bytes | bytearray]] = [
        (b"IHDR", header),
        *colour_chunks,
        PROVENANCE_CHUNK,
        (b"IDAT", deflate.zlib_compress(rows, level)),
        (b"IEND", b""),
    ]
    return PNG_SIGNATURE + b"".join(part for chunk in chunks for part in png_chunk(*chunk))


class _Band(NamedTuple):
    """A band of rows as four grey images: its bytes, and each byte's three neighbours.

    Neighbours are the bytes that PNG's filters predict from, one pixel left, one row above, and
    both. The first column is reserved for the filter type.
    """

    own: Image.Image
    left: Image.Image
    above: Image.Image
    above_left: Image.Image

    @property
    def height(self) -> int:
        return self.own.height

    def strip(self) -> "_Band":
        """The middle rows, one ``_STRIPS_PER_BAND``-th of the band."""
        height = -(-self.height // _STRIPS_PER_BAND)
        top = (self.height - height) // 2
        return _Band(*(view.crop((0, top, view.width, top + height)) for view in self))


def _filtered_rows(image: Image.Image) -> tuple[bytearray, float]:
    """The filtered rows, each preceded by its filter type, and how well they compress.

    The second value is the share of bytes that the trial compressions left, from 0 to about 1.
    """
    rows_at_least = _MIN_BAND_BYTES // (_BYTES_PER_PIXEL * image.width)
    band_rows = max(rows_at_least, -(-image.height // _BANDS))
    filtered = bytearray()
    strip_bytes, compressed_bytes = 0, 0.0
    for top in range(0, image.height, band_rows):
        band = _band(image, top, min(top + band_rows, image.height))
        strip = band.strip()
        size, kind = min((_trial_bytes(strip, kind), kind) for kind in _FILTERS)
        compressed_bytes += size
        strip_bytes += strip.own.width * strip.height
        rows = _FILTERS[kind](band)
        rows.paste(kind, (0, 0, 1, rows.height))
        filtered += rows.tobytes()
    return filtered, compressed_bytes / strip_bytes


def _trial_bytes(strip: _Band, kind: int) -> float:
    """The compressed size of ``strip`` under the filter ``kind``; Paeth's includes its handicap."""
    compressed = deflate.zlib_compress(_FILTERS[kind](strip).tobytes(), _TRIAL_LEVEL)
    return len(compressed) * (_PAETH_HANDICAP if kind == _PAETH else 1.0)


def _band(image: Image.Image, top: int, bottom: int) -> _Band:
    """Rows ``top`` to ``bottom`` (exclusive) as four views of one buffer, a pixel or a row apart.

    Outside the picture, neighbours are zero (PNG, section 9.2): a black column on the left and a
    black row on top.
    """
    padded = image.crop((-1, top - 1, image.width, bottom)).tobytes()
    stride = _BYTES_PER_PIXEL * (image.width + 1)
    buffer = memoryview(b"\0" + padded + b"\0\0")
    size = (_BYTES_PER_PIXEL * image.width + 1, bottom - top)

    def view(offset: int) -> Image.Image:
        shifted = buffer[offset:]
        # Pillow accepts any buffer and does not copy it; its type hints allow bytes only.
        return Image.frombuffer("L", size, shifted, "raw", "L", stride, 1)  # type: ignore[arg-type]

    return _Band(
        own=view(stride + _BYTES_PER_PIXEL),
        left=view(stride),
        above=view(_BYTES_PER_PIXEL),
        above_left=view(0),
    )


def _sub(band: _Band) -> Image.Image:
    """Each byte minus the one to its left."""
    return ImageChops.subtract_modulo(band.own, band.left)


def _up(band: _Band) -> Image.Image:
    """Each byte minus the one above it."""
    return ImageChops.subtract_modulo(band.own, band.above)


def _paeth(band: _Band) -> Image.Image:
    """Each byte minus whichever neighbour is closest to left + above - above_left.

    PNG breaks ties in the order left, above, above_left (section 9.4). Let ``low`` and ``high`` be
    the smaller and the larger of left and above, ``span`` their distance, ``rise`` the distance of
    above_left over ``low``, clamped to 0..span, and ``fall`` = span - rise. The closest neighbour
    is ``low`` if rise >= 2 fall, ``high`` if fall >= 2 rise, and above_left otherwise. Every step
    fits in 8 bits.
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
    # The step from low + rise, which is above_left, to low or high. ``smaller`` applies the masks,
    # which are 0 or 255.
    step = smaller(minus(smaller(span, is_high), rise), is_low_or_high)
    return minus(minus(minus(band.own, low), rise), step)


_255_IF_ZERO = [255] + [0] * 255
_255_IF_NOT_ZERO = [0] + [255] * 255
# PNG's filter types (section 9.2).
_SUB, _UP, _PAETH = 1, 2, 4
_FILTERS: Mapping[int, Callable[[_Band], Image.Image]] = {_SUB: _sub, _UP: _up, _PAETH: _paeth}
_PAETH_HANDICAP = 1.05
