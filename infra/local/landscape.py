"""A landscape that depends on a prompt, with the prompt written in it.

Pillow paints it in about 0.1 s: a sky, a sun, six ridges, a caption.
"""

import hashlib
import random
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import pi, sin

from PIL import Image, ImageColor, ImageDraw, ImageFont

__all__ = ["SIZES", "paint"]

# Width and height in pixels at 1K, as Google documents them for the ten ratios.
SIZES: Mapping[str, tuple[int, int]] = {
    "1:1": (1024, 1024),
    "2:3": (848, 1264),
    "3:2": (1264, 848),
    "3:4": (896, 1200),
    "4:3": (1200, 896),
    "4:5": (928, 1152),
    "5:4": (1152, 928),
    "9:16": (768, 1376),
    "16:9": (1376, 768),
    "21:9": (1584, 672),
}

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Light:
    """A time of day: the sky from top to horizon, the sun, the hills from far to near."""

    sky: str
    sun: str
    far: str
    near: str
    stars: int = 0

    def sky_colours(self) -> list[Colour]:
        return [_rgb(name) for name in self.sky.split()]


_LIGHTS = (
    _Light("#26365c #81668f #f5b08e", sun="#ffecbe", far="#b08496", near="#26223c"),
    _Light("#3e80c4 #84b8e2 #e2eef0", sun="#fffce6", far="#96b8c4", near="#1e4842"),
    _Light("#181636 #742c5c #f67648", sun="#ffd078", far="#96425c", near="#1c1026", stars=60),
    _Light("#080c22 #16224a #405880", sun="#eceeff", far="#384c6e", near="#080c18", stars=320),
    _Light("#5c9696 #baceb2 #fae8be", sun="#fff6d6", far="#a4b494", near="#303e2c"),
    _Light("#3a2c60 #b26092 #ffc6ac", sun="#ffe4ce", far="#be80a4", near="#341c46", stars=90),
)
_LAYERS = 6


def _rgb(name: str) -> Colour:
    red, green, blue = ImageColor.getrgb(name)[:3]
    return red, green, blue


def paint(prompt: str, ratio: str) -> Image.Image:
    """A landscape that depends only on prompt and ratio, with both written in it."""
    size = SIZES[ratio]
    seed = int.from_bytes(hashlib.sha256(prompt.encode("utf-8", "replace")).digest()[:8], "big")
    chance = random.Random(seed)  # noqa: S311 - it paints
    light = chance.choice(_LIGHTS)
    picture = _gradient(light.sky_colours(), size)
    _put_stars(picture, light, chance)
    _put_sun(picture, light, chance)
    for layer in range(_LAYERS):
        _put_hills(picture, light, layer, chance)
    _write(picture, prompt, ratio)
    return picture


def _gradient(colours: Sequence[Colour], size: tuple[int, int]) -> Image.Image:
    strip = Image.new("RGB", (1, len(colours)))
    strip.putdata(colours)
    return strip.resize((1, size[1]), Image.Resampling.BICUBIC).resize(size)


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _put_stars(picture: Image.Image, light: _Light, chance: random.Random) -> None:
    width, height = picture.size
    draw = ImageDraw.Draw(picture)
    for _ in range(light.stars):
        x, y = chance.random() * width, chance.random() ** 1.6 * height * 0.55
        radius = chance.choice((0.6, 0.8, 1.3))
        shade = _mix(light.sky_colours()[0], _rgb(light.sun), chance.uniform(0.4, 1.0))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shade)


def _put_sun(picture: Image.Image, light: _Light, chance: random.Random) -> None:
    width, height = picture.size
    x, y = width * chance.uniform(0.2, 0.8), height * chance.uniform(0.18, 0.42)
    glow = round(max(picture.size) * 0.75)
    halo = Image.radial_gradient("L").point([max(0, 150 - value) for value in range(256)])
    corner = (round(x - glow / 2), round(y - glow / 2))
    picture.paste(light.sun, corner, halo.resize((glow, glow), Image.Resampling.BILINEAR))
    disc = round(min(picture.size) * chance.uniform(0.07, 0.12))
    mask = Image.new("L", (disc * 4, disc * 4))
    ImageDraw.Draw(mask).ellipse((0, 0, disc * 4 - 1, disc * 4 - 1), fill=255)
    picture.paste(light.sun, (round(x - disc), round(y - disc)), mask.reduce(2))


def _put_hills(picture: Image.Image, light: _Light, layer: int, chance: random.Random) -> None:
    """One ridge, the sum of three waves; nearer ridges are darker and steeper."""
    width, height = picture.size
    nearness = layer / (_LAYERS - 1)
    top = height * (0.46 + 0.4 * nearness)
    waves = [
        (
            height * (0.035 + 0.045 * nearness) * chance.uniform(0.5, 1.0) / count,
            chance.uniform(0.6, 1.4) * count * 2 * pi / width,
            chance.uniform(0, 2 * pi),
        )
        for count in (1, 2.3, 5.1)
    ]
    step = 4
    ridge = [
        (x, top + sum(rise * sin(pitch * x + shift) for rise, pitch, shift in waves))
        for x in range(-step, width + 2 * step, step)
    ]
    begin = max(0, int(min(y for _, y in ridge)) - 2)
    depth = height - begin
    mask = Image.new("L", (width * 2, depth * 2))
    outline = [(x * 2, (y - begin) * 2) for x, y in ridge]
    ImageDraw.Draw(mask).polygon([*outline, (width * 2, depth * 2), (0, depth * 2)], fill=255)
    colour = _mix(_rgb(light.far), _rgb(light.near), nearness)
    mist = _mix(colour, light.sky_colours()[-1], 0.35 * (1 - nearness))
    picture.paste(_gradient([colour, mist], (width, depth)), (0, begin), mask.reduce(2))


def _write(picture: Image.Image, prompt: str, ratio: str) -> None:
    """The prompt, at most six lines of it, and the size on a dark panel at the bottom."""
    width, height = picture.size
    size = max(18, round(min(width, height) / 30))
    font = ImageFont.load_default(size)
    small = ImageFont.load_default(round(size * 0.7))
    margin, pad = round(size * 1.2), round(size * 0.8)
    lines = _wrapped(prompt, font, width - 2 * (margin + pad), 6)
    facts = f"{ratio}   {width} x {height}   painted by the Gemini stand-in"
    line_height = round(size * 1.35)
    panel_top = height - margin - 2 * pad - line_height * len(lines) - size
    box = (margin, panel_top, width - margin, height - margin)
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).rounded_rectangle(box, radius=size // 2, fill=150)
    picture.paste((10, 12, 20), (0, 0), mask)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        at = (margin + pad, panel_top + pad + number * line_height)
        draw.text(at, line, font=font, fill=(255, 255, 255))
    foot = (margin + pad, height - margin - pad - round(size * 0.75))
    draw.text(foot, facts, font=small, fill=(200, 204, 214))


def _wrapped(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, most: int
) -> list[str]:
    lines, line = [], ""
    for word in _breakable(" ".join(_plain(text).split())[:600]):
        if line and font.getlength(f"{line} {word}") > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    lines.append(line)
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + " ..."]


def _plain(text: str) -> str:
    """The text in ASCII, all that Pillow's built-in font can write."""
    letters = (
        sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign)
    )
    return "".join(letters).encode("ascii", "replace").decode()


def _breakable(text: str) -> Iterator[str]:
    longest = 24
    for word in text.split(" "):
        yield from (word[at : at + longest] for at in range(0, max(len(word), 1), longest))
