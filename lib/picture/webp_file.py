"""Takes a WebP apart: bounds and metadata. Source of the format: RFC 9649.

The decoder gets the file as it is: libwebp reads it in C, and only metadata that is asked for.
WebP has no checksum, and libwebp decodes altered pixels without complaint: a file that was cut
short is refused, but altered bytes of a lossy picture can't be noticed.
"""

import struct

from PIL.WebPImagePlugin import WebPImageFile

from lib.picture.picture_file import PictureFile, UnusablePicture

__all__ = ["MAX_CHUNKS", "is_webp", "read_webp"]

# A still picture has up to 6 chunks (VP8X, ICCP, ALPH, VP8, EXIF, XMP), and an animation one for
# each frame. No model sends an animation; a thousand frames leave it room.
MAX_CHUNKS = 1_024
_HEADER_BYTES = 12
_CHUNK_HEADER_BYTES = 8


def is_webp(data: bytes) -> bool:
    """Whether the first bytes are those of a WebP."""
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def read_webp(data: bytes) -> PictureFile:
    """Takes ``data`` apart; the walk ends at the first bound that is exceeded.

    Raises:
        UnusablePicture: ``structure``. A last chunk that is cut short is left to libwebp to refuse.
    """
    file_end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    metadata: dict[bytes, bytes] = {}
    start = _HEADER_BYTES
    for _ in range(MAX_CHUNKS):
        if start + _CHUNK_HEADER_BYTES > file_end:
            return PictureFile(
                WebPImageFile,
                data,
                icc_profile=metadata.get(b"ICCP"),
                exif=metadata.get(b"EXIF", b""),
            )
        kind, length = struct.unpack_from("<4sI", data, start)
        content = start + _CHUNK_HEADER_BYTES
        if kind in {b"ICCP", b"EXIF"}:
            metadata.setdefault(kind, data[content : content + length])
        # Chunks of an odd length are padded by one byte.
        start = content + length + length % 2
    raise UnusablePicture("structure")
