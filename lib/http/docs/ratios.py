"""The ten aspect ratios on the docs page: drawn, named, and with what each is good for."""

import html
from collections.abc import Mapping
from dataclasses import dataclass

from lib.picture.aspect_ratio import AspectRatio

__all__ = ["DEFAULT_CHOICE", "SIZES", "ratio_cards", "ratio_choices"]

DEFAULT_CHOICE = AspectRatio.SQUARE
_LONGER_SIDE_PX = 26


@dataclass(frozen=True, slots=True)
class _Use:
    """``size`` is Gemini's for a picture of 1K, in pixels. Source: its image generation guide."""

    size: str
    good_for: str


_USES: Mapping[AspectRatio, _Use] = {
    AspectRatio.SQUARE: _Use("1024x1024", "avatars, album covers, product tiles"),
    AspectRatio.PORTRAIT_2_3: _Use("848x1264", "posters, book covers"),
    AspectRatio.LANDSCAPE_3_2: _Use("1264x848", "35 mm prints, article headers"),
    AspectRatio.PORTRAIT_3_4: _Use("896x1200", "catalogue pages, tablets in portrait"),
    AspectRatio.LANDSCAPE_4_3: _Use("1200x896", "illustrations in documents, projectors"),
    AspectRatio.PORTRAIT_4_5: _Use("928x1152", "tall posts in a feed"),
    AspectRatio.LANDSCAPE_5_4: _Use("1152x928", "framed prints, 10 by 8 inches"),
    AspectRatio.PORTRAIT_9_16: _Use("768x1376", "phone screens, covers of short videos"),
    AspectRatio.LANDSCAPE_16_9: _Use("1376x768", "slides, monitors, stills for video"),
    AspectRatio.ULTRA_WIDE_21_9: _Use("1584x672", "page banners, panoramas"),
}
SIZES: Mapping[AspectRatio, str] = {ratio: use.size for ratio, use in _USES.items()}
"""Width and height in pixels of a usual picture of each ratio, as OpenAI's API writes them."""


def ratio_choices() -> str:
    """The radio buttons of the playground."""
    return "".join(map(_choice, AspectRatio))


def ratio_cards() -> str:
    """The guide to the ratios."""
    return "".join(map(_card, AspectRatio))


def _outline(ratio: AspectRatio) -> str:
    """The ratio drawn as an SVG rectangle whose longer side is ``_LONGER_SIDE_PX``."""
    longest = max(ratio.width_over_height, 1 / ratio.width_over_height)
    width = _LONGER_SIDE_PX if ratio.width_over_height >= 1 else _LONGER_SIDE_PX / longest
    height = _LONGER_SIDE_PX if ratio.width_over_height <= 1 else _LONGER_SIDE_PX / longest
    x, y = (_LONGER_SIDE_PX - width) / 2 + 1, (_LONGER_SIDE_PX - height) / 2 + 1
    side = _LONGER_SIDE_PX + 2
    return (
        f'<svg class="shape" viewBox="0 0 {side} {side}" width="{side}" height="{side}"'
        f' aria-hidden="true"><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}"'
        f' height="{height:.1f}" rx="2"/></svg>'
    )


def _choice(ratio: AspectRatio) -> str:
    checked = " checked" if ratio is DEFAULT_CHOICE else ""
    return (
        f'<label class="ratio"><input type="radio" name="ratio" value="{ratio.value}"'
        f' data-size="{SIZES[ratio]}"{checked}>{_outline(ratio)}<span>{ratio.value}</span></label>'
    )


def _card(ratio: AspectRatio) -> str:
    use = _USES[ratio]
    return (
        f"<li>{_outline(ratio)}<div><strong>{ratio.value}</strong> {_orientation(ratio)}"
        f"<span>{html.escape(use.good_for)}</span></div></li>"
    )


def _orientation(ratio: AspectRatio) -> str:
    if ratio is AspectRatio.ULTRA_WIDE_21_9:
        return "ultra-wide"
    wide = ratio.width_over_height
    return "square" if wide == 1 else "landscape" if wide > 1 else "portrait"
