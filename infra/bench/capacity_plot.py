"""The plot of the operations guide, as an SVG with its own background: light and dark pages."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Curve", "draw"]

WIDTH, HEIGHT = 900, 430
TOP, BOTTOM = 92, 352
LEFTS, PANEL_WIDTH = (70, 530), 340
COLOURS = ("#b45309", "#1d4ed8")
MOST_RATE, MOST_S = 1000.0, 30.0
DECADES = (1, 10, 100, 1000)
SECONDS = range(0, 31, 5)
INK, FAINT, GRID = "#1f2937", "#6b7280", "#e5e7eb"


@dataclass(frozen=True, slots=True)
class Curve:
    """What came of each offered rate, all in images a second, or seconds."""

    name: str
    offered: Sequence[float]
    succeed: Sequence[float]
    p50_s: Sequence[float]
    p99_s: Sequence[float]


def draw(title: str, description: str, curves: Sequence[Curve]) -> str:
    """Two panels, one line of each curve in the first, two in the second. At most two curves."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-labelledby="title desc" font-size="13" fill="{INK}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
    )
    page = (
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8" fill="#ffffff" '
        f'stroke="{GRID}"/>'
    )
    lines = [
        head,
        f'<title id="title">{title}</title>',
        f'<desc id="desc">{description}</desc>',
        page,
        _text(24, 32, title, 'font-size="17" font-weight="600"'),
        *_legend(curves),
        *_frame(LEFTS[0], "images a second that succeed", _log_y, DECADES),
        *_frame(LEFTS[1], "seconds until the answer of a 200", _linear_y, SECONDS),
        *_lines(curves),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _legend(curves: Sequence[Curve]) -> Iterator[str]:
    at = 24
    for curve, colour in zip(curves, COLOURS, strict=True):
        yield f'<path d="M{at} 56h26" stroke="{colour}" stroke-width="3"/>'
        yield _text(at + 34, 60, curve.name)
        at += 52 + 7 * len(curve.name)
    for name, dashes in (("p50", ""), ("p99", ' stroke-dasharray="6 4"')):
        yield f'<path d="M{at} 56h26" stroke="{FAINT}" stroke-width="2"{dashes}/>'
        yield _text(at + 34, 60, name)
        at += 76


def _frame(
    left: int, label: str, y: Callable[[float], float], ticks: Sequence[int]
) -> Iterator[str]:
    """The grid of a panel, its ticks, and what its axes show."""
    for rate in DECADES:
        at = _x(left, rate)
        yield f'<path d="M{at:.1f} {TOP}V{BOTTOM}" stroke="{GRID}"/>'
        yield _text(at, BOTTOM + 20, f"{rate:,d}", 'text-anchor="middle"')
    for tick in ticks:
        yield f'<path d="M{left} {y(tick):.1f}h{PANEL_WIDTH}" stroke="{GRID}"/>'
        yield _text(left - 8, y(tick) + 4, f"{tick:,d}", 'text-anchor="end"')
    yield f'<path d="M{left} {TOP}V{BOTTOM}h{PANEL_WIDTH}" fill="none" stroke="{FAINT}"/>'
    middle = left + PANEL_WIDTH / 2
    yield _text(middle, BOTTOM + 46, "images a second asked for", 'text-anchor="middle"')
    turned = f'text-anchor="middle" transform="rotate(-90 {left - 46} {(TOP + BOTTOM) / 2})"'
    yield _text(left - 46, (TOP + BOTTOM) / 2, label, turned)


def _lines(curves: Sequence[Curve]) -> Iterator[str]:
    for curve, colour in zip(curves, COLOURS, strict=True):
        yield _line(LEFTS[0], curve.offered, curve.succeed, _log_y, colour)
        yield _line(LEFTS[1], curve.offered, curve.p50_s, _linear_y, colour)
        dashed = 'stroke-dasharray="6 4"'
        yield _line(LEFTS[1], curve.offered, curve.p99_s, _linear_y, colour, dashed)


def _line(
    left: int,
    offered: Sequence[float],
    values: Sequence[float],
    y: Callable[[float], float],
    colour: str,
    style: str = "",
) -> str:
    points = [
        f"{_x(left, rate):.1f},{y(value):.1f}"
        for rate, value in zip(offered, values, strict=True)
        if math.isfinite(value)
    ]
    return (
        f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2.5" '
        f'stroke-linejoin="round" {style}/>'
    )


def _text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {style}>{words}</text>'


def _x(left: int, rate: float) -> float:
    return left + PANEL_WIDTH * math.log10(rate) / math.log10(MOST_RATE)


def _log_y(value: float) -> float:
    share = math.log10(max(1.0, value)) / math.log10(MOST_RATE)
    return BOTTOM - (BOTTOM - TOP) * min(1.0, share)


def _linear_y(value: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * min(1.0, value / MOST_S)
