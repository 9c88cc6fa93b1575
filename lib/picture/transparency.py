"""Composites a picture on white, as viewers show transparent pixels."""

from PIL import Image, ImageChops

from lib.picture.picture_file import PictureFile, TailReader

__all__ = ["on_white"]

_WHITE = (255, 255, 255)
# What Pillow keeps of a level.
_LEVEL_BITS = 8


def on_white(picture: Image.Image, file: PictureFile) -> Image.Image:
    """``picture``, decoded from ``file``, in the mode RGB and without transparency."""
    eight_bits = _eight_bits(picture)
    if picture.has_transparency_data:
        translucent = picture.convert("RGBA")
        opaque = Image.new("RGB", picture.size, _WHITE)
        opaque.paste(translucent, mask=translucent)
        return opaque
    opaque = eight_bits if eight_bits.mode == "RGB" else eight_bits.convert("RGB")
    if file.transparent is not None:
        opaque.paste(_WHITE, mask=_transparent_pixels(picture, file, file.transparent))
    return opaque


def _eight_bits(picture: Image.Image) -> Image.Image:
    """``picture`` with 8 bits a channel: of 16 bits of grey, the high byte, where Pillow clips."""
    if picture.mode != "I;16":
        return picture
    return Image.frombytes("L", picture.size, picture.tobytes()[1::2])


def _transparent_pixels(
    picture: Image.Image, file: PictureFile, colour: tuple[int, ...]
) -> Image.Image:
    """A mask that is 255 where every bit of the pixel in the file equals ``colour``.

    Pillow's own handling compares 16-bit levels with 8-bit ones, and unscaled levels of 2 and 4
    bits with scaled ones.
    """
    if file.depth > _LEVEL_BITS:
        channels = [*_eight_bits(picture).split(), *_low_bytes(picture, file)]
        levels = [level >> 8 for level in colour] + [level & 255 for level in colour]
    else:
        channels = [*(picture.convert("L") if picture.mode == "1" else picture).split()]
        levels = [level * 255 // ((1 << file.depth) - 1) for level in colour]
    mask = Image.new("L", picture.size, 255)
    for channel, level in zip(channels, levels, strict=True):
        is_level = [255 * (value == level) for value in range(256)]
        mask = ImageChops.darker(mask, channel.point(is_level))
    return mask


def _low_bytes(picture: Image.Image, file: PictureFile) -> tuple[Image.Image, ...]:
    """The low byte of each channel of a 16-bit PNG.

    Pillow reduces RGB to its high bytes while it decodes. A PNG is big-endian: decoded once more,
    as if it were little-endian, it is reduced to its low bytes.
    """
    if picture.mode == "I;16":
        return (Image.frombytes("L", picture.size, picture.tobytes()[0::2]),)
    swapped = file.opener(TailReader(file.data))
    swapped.tile = [tile._replace(args="RGB;16L") for tile in swapped.tile]
    swapped.load()
    return swapped.split()
