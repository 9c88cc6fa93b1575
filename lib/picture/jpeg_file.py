"""Takes a JPEG apart: bounds, gaps that libjpeg fills in silently, and metadata.

The decoder gets the tables, frame and scans, and the two markers that tell how colours are coded
(JFIF and Adobe). All other metadata stays out of its sight. Source of the format: ITU-T T.81,
annexes B (markers) and G (progressive).

**Damage.** JPEG has no checksum. On a gap, libjpeg only warns, which Pillow does not report, and
fills the rest with grey. Three things are checked at next to no cost:

- *A file in a single sequential scan* is given to libjpeg without its EOI. libjpeg invents data
  only after it has met a marker; without one it asks for more, and Pillow refuses the picture as
  truncated. Likewise, if the last rows are complete before the last bytes have been read, the data
  in between was altered.
- *In a progressive file*, every bit of every coefficient must have been sent.
- *Restart markers* must come in order.

What that finds, in files of five encoders (libjpeg-turbo, mozjpeg, jpegli, FFmpeg, jpeg-js) with
one damage each at a random place; each row is 540 sequential and 432 progressive files:

    ===============================  ==========  ===========
    damage                           sequential  progressive
    ===============================  ==========  ===========
    cut, and closed with an EOI           100 %         85 %
    4 KB missing                          100 %         52 %
    512 bytes missing                      98 %         12 %
    1 KB overwritten with zeros            95 %         20 %
    64 bytes overwritten                   74 %         21 %
    one byte altered                       32 %          2 %
    ===============================  ==========  ===========

The rest is sold as it is: what follows the damage happens to decode to the right number of blocks,
the damage is inside one of several scans (a cut in the last progressive one loses a bit of
precision and nothing else), or in the last 16 bytes. None of the 243 undamaged files was refused.
"""

import re
import struct
from collections.abc import Mapping
from itertools import count

from PIL.JpegImagePlugin import JpegImageFile

from lib.picture.picture_file import PictureFile, UnusablePicture

__all__ = [
    "JPEG_SIGNATURE",
    "MAX_FILL_BYTES",
    "MAX_RESTARTS",
    "MAX_SCANS",
    "MAX_SEGMENTS",
    "read_jpeg",
]

JPEG_SIGNATURE = b"\xff\xd8\xff"

# libjpeg's own progressive script has 10 scans for a colour picture; the densest that optimisers
# write have about 20.
MAX_SCANS = 64
# The longest metadata that is split into segments of 64 KB is an ICC profile, in at most 255.
# A C2PA manifest with thumbnails takes a dozen. Scans and tables add fewer than 300.
MAX_SEGMENTS = 1_024
# T.81 allows any number of 0xFF before a marker. Encoders write none; tools that align segments to
# blocks of a disk write less than 4,096.
MAX_FILL_BYTES = 4_096
# One restart per block of 8x8 pixels, the most there can be, in a picture of the largest size.
MAX_RESTARTS = 20_000_000 // 64

_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_RESTARTS = range(0xD0, 0xD8)
_LENGTH_BYTES = 2
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})  # DHT, DAC, DQT, DRI
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Coded by Huffman. In arithmetic coding, libjpeg can't pause to ask for more.
_SEQUENTIAL = frozenset({0xC0, 0xC1})
_PROGRESSIVE = frozenset({0xC2, 0xCA})
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_ICC, _EXIF = b"ICC_PROFILE\0", b"Exif\0\0"
# In entropy-coded data, 0xFF 0x00 stands for the byte 0xFF; anything else is a marker.
_MARKER = re.compile(rb"\xff[^\x00]", re.DOTALL)
_FILL = re.compile(rb"\xff*")
# Ones, stuffed. T.81 forbids a Huffman code of ones alone, so that libjpeg, which looks 8 bytes
# ahead, can complete the last block but decodes no further one.
_PADDING = b"\xff\x00" * 8
# libjpeg may be done 8 bytes, each stuffed, before the end. The rest is a margin for encoders that
# pad; altered data misses the end by more.
_TAIL_BYTES = 64

_COEFFICIENTS = 64
_MAX_COMPONENTS = 4
_NOT_SENT = -1


def read_jpeg(data: bytes) -> PictureFile:
    """Takes ``data`` apart; the walk ends at the first bound that is exceeded.

    Raises:
        UnusablePicture: ``structure`` or ``damaged``.
    """
    return _Walk(data).file()


class _Walk:
    """One pass over the segments of a JPEG, up to its EOI."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 2
        self._fill_bytes = 0
        self._restarts = 0
        self._kept: list[bytes | memoryview] = [data[:2]]
        self._exif = b""
        self._icc: dict[int, bytes] = {}
        self._scans = 0
        self._blocks_to_last_scan = 0
        self._is_sequential = False
        self._coverage: _Coverage | None = None

    def file(self) -> PictureFile:
        for segments in count(1):
            if segments > MAX_SEGMENTS or self._scans > MAX_SCANS:
                raise UnusablePicture("structure")
            marker = self._next_marker()
            if marker == _EOI:
                break
            self._segment(marker)
        if self._coverage is None or not self._coverage.is_complete:
            raise UnusablePicture("damaged")
        profile = b"".join(self._icc[number] for number in sorted(self._icc))
        end, tail_start = b"\xff\xd9", 0
        if self._is_sequential and self._scans == 1:
            del self._kept[self._blocks_to_last_scan :]
            pixels = len(self._kept[-1])
            tail_start = sum(map(len, self._kept)) - min(_TAIL_BYTES, pixels)
            end = _PADDING
        data = b"".join((*self._kept, end))
        return PictureFile(JpegImageFile, data, tail_start, profile or None, self._exif)

    def _next_marker(self) -> int:
        """The marker at the current position, without the fill bytes before it."""
        limit = self._position + MAX_FILL_BYTES - self._fill_bytes + 2
        found = _FILL.match(self._data, self._position, limit)
        ones = found.end() - self._position if found else 0
        self._fill_bytes += max(ones - 1, 0)
        self._position += ones + 1
        if self._fill_bytes > MAX_FILL_BYTES:
            raise UnusablePicture("structure")
        if self._position > len(self._data):
            raise UnusablePicture("damaged")
        if ones == 0:
            raise UnusablePicture("structure")
        return self._data[self._position - 1]

    def _segment(self, marker: int) -> None:
        """Reads one segment and, after SOS, the entropy-coded data."""
        if marker in {0, _TEM, _SOI} or marker in _RESTARTS:
            raise UnusablePicture("structure")
        content = self._content()
        if marker in _FRAMES:
            if self._coverage is not None:
                raise UnusablePicture("structure")
            self._is_sequential = marker in _SEQUENTIAL
            self._coverage = _Coverage(content, is_progressive=marker in _PROGRESSIVE)
        elif marker == _SOS:
            if self._coverage is None:
                raise UnusablePicture("structure")
            self._scans += 1
            self._coverage.add(content)
        elif marker == _APP1 and content.startswith(_EXIF):
            self._exif = self._exif or content
        elif marker == _APP2 and content.startswith(_ICC):
            self._icc.setdefault(content[len(_ICC)], content[len(_ICC) + 2 :])
        is_colour_coding = (marker == _APP0 and content.startswith(b"JFIF\0")) or (
            marker == _APP14 and content.startswith(b"Adobe")
        )
        if marker in _TABLES or marker in _FRAMES or marker == _SOS or is_colour_coding:
            self._kept.append(struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content)
        if marker == _SOS:
            self._entropy_coded()

    def _content(self) -> bytes:
        """The content of the segment whose length is next."""
        start = self._position + _LENGTH_BYTES
        length = int.from_bytes(self._data[self._position : start], "big")
        self._position += length
        if length < _LENGTH_BYTES:
            raise UnusablePicture("structure")
        if self._position > len(self._data):
            raise UnusablePicture("damaged")
        return self._data[start : self._position]

    def _entropy_coded(self) -> None:
        """Steps over entropy-coded data; its restart markers must count 0 to 7 and over again."""
        start = self._position
        for index, found in enumerate(_MARKER.finditer(self._data, start)):
            marker = self._data[found.end() - 1]
            if marker not in _RESTARTS:
                self._position = found.start()
                self._kept.append(memoryview(self._data)[start : self._position])
                self._blocks_to_last_scan = len(self._kept)
                return
            self._restarts += 1
            if self._restarts > MAX_RESTARTS:
                raise UnusablePicture("structure")
            if marker != _RESTARTS[index % len(_RESTARTS)]:
                raise UnusablePicture("damaged")
        raise UnusablePicture("damaged")


class _Coverage:
    """Which coefficients of which components have been sent, and down to which bit."""

    def __init__(self, frame: bytes, *, is_progressive: bool) -> None:
        self._is_progressive = is_progressive
        components = frame[6::3]
        if not 1 <= len(components) <= _MAX_COMPONENTS or len(frame) != 6 + 3 * frame[5]:
            raise UnusablePicture("structure")
        self._sent: Mapping[int, list[int]] = {
            component: [_NOT_SENT] * _COEFFICIENTS for component in components
        }

    def add(self, scan: bytes) -> None:
        """A scan sends what has not been sent, or refines it by exactly one bit (T.81, G.1.1.1).

        Any other scan is one that a decoder would spend time on to no effect.
        """
        if not scan or len(scan) != 4 + 2 * scan[0]:
            raise UnusablePicture("structure")
        first, last, bits = scan[-3:]
        before, after = bits >> 4, bits & 15
        if not self._is_progressive:
            first, last, before, after = 0, _COEFFICIENTS - 1, 0, 0
        if first > last or last >= _COEFFICIENTS or (before and before != after + 1):
            raise UnusablePicture("structure")
        expected = {before or _NOT_SENT}
        for component in scan[1:-3:2]:
            sent = self._sent.get(component)
            if sent is None or set(sent[first : last + 1]) != expected:
                raise UnusablePicture("structure")
            sent[first : last + 1] = [after] * (last + 1 - first)

    @property
    def is_complete(self) -> bool:
        """Whether all coefficients of all components have been sent, down to their last bit."""
        return all(set(sent) == {0} for sent in self._sent.values())
