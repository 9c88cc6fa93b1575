"""Deterministic pictures: like a photo, like an illustration, noise, gradients.

Each kind is a function from width and height in pixels to an RGB image; ``as_jpeg``, ``as_png`` and
``as_webp`` encode an image.
"""

import random
from io import BytesIO
from math import cos, sin, tau

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lib.picture.aspect_ratio import AspectRatio

__all__ = [
    "as_jpeg",
    "as_png",
    "as_webp",
    "gradient",
    "illustration",
    "night_photo",
    "noise",
    "photo",
    "size_of",
]

Size = tuple[int, int]


def size_of(ratio: AspectRatio, longest_side_px: int = 160) -> Size:
    """Width and height of a picture of this shape."""
    width_over_height = ratio.width_over_height
    if width_over_height >= 1:
        return longest_side_px, round(longest_side_px / width_over_height)
    return round(longest_side_px * width_over_height), longest_side_px


def photo(size: Size, seed: int = 1) -> Image.Image:
    """Shapes of many colours, with shade and texture at every scale, and sensor grain."""
    chance = random.Random(seed)  # noqa: S311 - it paints
    light = _patches(chance, size, cell_px=300, mode="RGB")
    picture = Image.blend(light, Image.new("RGB", size, "white"), 0.4)
    things = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(things)
    for _ in range(60):
        colour = (chance.randrange(90, 256), chance.randrange(90, 256), chance.randrange(90, 256))
        draw.polygon(_polygon(chance, size), fill=colour)
    picture = ImageChops.multiply(picture, things)
    for cell_px, depth in ((60, 0.4), (20, 0.4), (6, 0.3), (2, 0.2)):
        texture = _patches(chance, size, cell_px, mode="L")
        shade = Image.blend(Image.new("L", size, "white"), texture, depth)
        picture = ImageChops.multiply(picture, Image.merge("RGB", [shade] * 3))
    return _grainy(picture, chance, 0.01).filter(ImageFilter.GaussianBlur(0.7))


def night_photo(size: Size, seed: int = 1) -> Image.Image:
    """A photo of high contrast with black shadows."""
    return photo(size, seed).point([max(0, round(1.6 * level) - 110) for level in range(256)] * 3)


def illustration(size: Size, seed: int = 1) -> Image.Image:
    """Flat shapes with smooth edges on a gradient."""
    chance = random.Random(seed)  # noqa: S311 - it paints
    large = (2 * size[0], 2 * size[1])
    picture = gradient(large)
    draw = ImageDraw.Draw(picture)
    for _ in range(40):
        colour = (chance.randrange(256), chance.randrange(256), chance.randrange(256))
        draw.polygon(_polygon(chance, large), fill=colour, outline=(20, 20, 20), width=5)
    return picture.resize(size, Image.Resampling.BOX)


def noise(size: Size, seed: int = 1) -> Image.Image:
    """A smooth picture under strong grain."""
    chance = random.Random(seed)  # noqa: S311 - it paints
    return _grainy(_patches(chance, size, cell_px=200, mode="RGB"), chance, 0.1)


def gradient(size: Size) -> Image.Image:
    """Slowly changing colours without grain."""
    down = Image.linear_gradient("L").resize(size, Image.Resampling.BICUBIC)
    around = Image.radial_gradient("L").resize(size, Image.Resampling.BICUBIC)
    return Image.merge("RGB", (down, around, ImageChops.invert(down)))


def as_jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """The bytes that an image model would send."""
    return _saved(image, "JPEG", quality=quality)


def as_png(image: Image.Image) -> bytes:
    """A PNG by Pillow."""
    return _saved(image, "PNG", compress_level=1)


def as_webp(image: Image.Image, *, lossless: bool = False) -> bytes:
    """A WebP by Pillow."""
    return _saved(image, "WEBP", lossless=lossless, method=0)


def _saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _patches(chance: random.Random, size: Size, cell_px: int, mode: str) -> Image.Image:
    """Random colours or greys, one for each cell, interpolated."""
    cells = (size[0] // cell_px + 2, size[1] // cell_px + 2)
    values = chance.randbytes(cells[0] * cells[1] * len(mode))
    return Image.frombytes(mode, cells, values).resize(size, Image.Resampling.BICUBIC)


def _grainy(picture: Image.Image, chance: random.Random, weight: float) -> Image.Image:
    width, height = picture.size
    grain = Image.frombytes("L", (width, height), chance.randbytes(width * height))
    return Image.blend(picture, Image.merge("RGB", [grain] * 3), weight)


def _polygon(chance: random.Random, size: Size) -> list[tuple[float, float]]:
    x, y = chance.randrange(size[0]), chance.randrange(size[1])
    corners = chance.choice((3, 4, 5, 40))
    radius = chance.uniform(0.03, 0.2) * max(size)
    turn = chance.random()
    angles = [tau * (turn + corner / corners) for corner in range(corners)]
    return [(x + radius * cos(angle), y + radius * sin(angle)) for angle in angles]
