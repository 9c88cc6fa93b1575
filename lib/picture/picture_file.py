"""A picture's file taken apart: what the decoder gets, and what it never sees.

Each format's module (``jpeg_file``, ``png_file``, ``webp_file``) walks the file's blocks before a
decoder does and stops at the first bound that is exceeded, because a decoder's time and memory
depend on the number of blocks as much as on the number of pixels: 26,000 empty scans in 1 MB kept
libjpeg busy for 36 s, and 7.5 million empty comments took 564 MB.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Literal

from PIL import ImageFile

__all__ = ["PictureFile", "Reason", "TailReader", "UnusablePicture"]

Reason = Literal[
    "cmyk", "colour", "damaged", "format", "pixels", "ratio", "structure", "too_large", "too_small"
]
"""Which rule a picture broke, as a code for the log:

- ``format``: not a JPEG, PNG or WebP by its first bytes;
- ``too_large``, ``pixels``: over ``MAX_IMAGE_BYTES``, over ``MAX_PIXELS``;
- ``structure``: more blocks than a real file has, or blocks in a disorder;
- ``damaged``: incomplete, altered or undecodable;
- ``cmyk``, ``colour``: CMYK with a profile; a profile over the bound;
- ``too_small``, ``ratio``: a side under ``MIN_SIDE_PX``; not the shape that was asked for.
"""


class UnusablePicture(Exception):
    """The picture breaks the rule ``reason``. ``size`` is width and height in pixels, if known."""

    def __init__(self, reason: Reason, size: tuple[int, int] | None = None) -> None:
        super().__init__(reason)
        self.reason: Reason = reason
        self.size = size


class TailReader(BytesIO):
    """A file that hands out its tail, from ``tail_start`` on, in a read of its own.

    Afterwards, ``is_tail_unread`` tells whether the decoder finished without it.
    """

    def __init__(self, data: bytes, tail_start: int = 0) -> None:
        super().__init__(data)
        self._tail_start = tail_start

    def read(self, size: int | None = -1, /) -> bytes:
        """The next ``size`` bytes, or fewer, up to the start of the tail."""
        before_tail = self._tail_start - self.tell()
        if before_tail > 0:
            size = before_tail if size is None or size < 0 else min(size, before_tail)
        return super().read(size)

    @property
    def is_tail_unread(self) -> bool:
        """Whether nothing after ``tail_start`` has been read."""
        return self._tail_start > 0 and self.tell() <= self._tail_start


@dataclass(frozen=True, slots=True)
class PictureFile:
    """What is needed from a file.

    ``opener`` is Pillow's class for the format, and ``data`` what that class gets to read.
    ``tail_start``, if not 0, is the position in ``data`` before which the pixels can't be complete.
    ``icc_profile`` and ``exif`` are as found, unchecked. ``png_colour`` holds the chunks of a PNG
    that say what its colours mean, by kind. ``transparent`` is the one colour of a PNG that is
    transparent: a level for each channel, in the file's own depth of ``depth`` bits.
    """

    opener: type[ImageFile.ImageFile]
    data: bytes
    tail_start: int = 0
    icc_profile: bytes | None = None
    exif: bytes = b""
    png_colour: Mapping[bytes, bytes] = field(default_factory=dict)
    transparent: tuple[int, ...] | None = None
    depth: int = 8
