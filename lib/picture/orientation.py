"""Which way up a picture is stored, according to its EXIF.

Pillow's EXIF reader loads every tag and prints a warning for each that it can't read: 5,400 lines
for one crafted file. This one reads a single tag and prints nothing.
"""

import struct
from collections.abc import Mapping

from PIL import Image

__all__ = ["upright"]

# Source: Exif 2.32, tag 0x0112.
_ORIENTATION, _SHORT = 0x0112, 3
# How to undo each orientation; 1 is upright.
_UPRIGHT: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PREFIX = b"Exif\0\0"
# TIFF 6.0, section 2: the byte order, the offset of the first directory; entries of 12 bytes.
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ENTRY = "HHIH2x"
_ENTRY_BYTES = 12


def upright(picture: Image.Image, exif: bytes) -> Image.Image:
    """``picture`` with the orientation in ``exif`` applied; unreadable EXIF counts as none."""
    method = _UPRIGHT.get(_orientation(exif.removeprefix(_PREFIX)))
    return picture if method is None else picture.transpose(method)


def _orientation(tiff: bytes) -> int:
    """The orientation in the first directory, 1 to 8; 1 if there is none."""
    order = _BYTE_ORDERS.get(tiff[:4])
    try:
        if order is None:
            return 1
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, offset)
    except struct.error:
        return 1
    directory = tiff[offset + 2 : offset + 2 + entries * _ENTRY_BYTES]
    whole = len(directory) // _ENTRY_BYTES * _ENTRY_BYTES
    for tag, kind, _, value in struct.iter_unpack(f"{order}{_ENTRY}", directory[:whole]):
        if (tag, kind) == (_ORIENTATION, _SHORT):
            return int(value)
    return 1
