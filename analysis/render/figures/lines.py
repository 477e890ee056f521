"""A few curves with intervals as a reproducible SVG file for a README."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from analysis.render.palette import COLOURS

WIDTH, HEIGHT = 520.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 16.0, 16.0, 44.0
GREY = "#888888"
"""Colour of axes and text, legible on light and dark backgrounds."""


@dataclass(frozen=True)
class Line:
    """A curve's points from left to right; bounds are None for points without an interval."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]


def lines(curves: Sequence[Line], *, x_title: str, y_title: str, log_x: bool = False) -> str:
    """Draw the curves: points joined by lines, intervals as bars, names in the upper left.

    Args:
        curves: the i-th gets the i-th palette colour.
        x_title: x axis title with unit.
        y_title: y axis title with unit.
        log_x: logarithmic x axis for positive values, with ticks at powers of ten.
    """
    xs = [x for curve in curves for x in curve.x]
    ys = [y for curve in curves for part in (curve.y, curve.low, curve.high) for y in part if y is not None]
    x_ticks = (decades if log_x else ticks)(min(xs, default=float(log_x)), max(xs, default=1.0))
    y_ticks = ticks(min([0.0, *ys]), max(ys, default=1.0))
    scale = math.log10 if log_x else float

    def at(x: float, y: float) -> tuple[float, float]:
        across = (scale(x) - scale(x_ticks[0])) / (scale(x_ticks[-1]) - scale(x_ticks[0]))
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}" '
           f'height="{HEIGHT:g}" font-family="sans-serif" font-size="12" fill="{GREY}">']
    for tick in y_ticks:
        (x0, y), (x1, _) = at(x_ticks[0], tick), at(x_ticks[-1], tick)
        out.append(f'<path d="M{x0:.1f} {y:.1f}H{x1:.1f}" stroke="{GREY}" stroke-opacity="0.3"/>')
        out.append(f'<text x="{x0 - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, y = at(tick, y_ticks[0])
        out.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{tick:g}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 8:.1f}" text-anchor="middle">'
               f'{escape(x_title)}</text>')
    out.append(f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)" text-anchor="middle">'
               f'{escape(y_title)}</text>')
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        points = [at(x, y) for x, y in zip(curve.x, curve.y, strict=True)]
        if points:
            way = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            out.append(f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        for x, low, high in zip(curve.x, curve.low, curve.high, strict=True):
            if low is not None and high is not None:
                (across, bottom), (_, top) = at(x, low), at(x, high)
                out.append(f'<path d="M{across:.1f} {bottom:.1f}V{top:.1f}" stroke="{colour}"/>')
        y = TOP + 14 + 18 * i
        out.append(f'<path d="M{LEFT + 12:g} {y - 4:g}h22" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{LEFT + 40:g}" y="{y:g}" fill="{colour}">{escape(curve.name)}</text>')
    return "\n".join([*out, "</svg>\n"])


def ticks(low: float, high: float, n: int = 6) -> list[float]:
    """About `n` round tick values that cover `low` to `high`."""
    span = (high - low) or 1.0
    rough = span / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten that cover `low` to `high`, at least two."""
    first = math.floor(math.log10(low) + 1e-9)
    last = max(math.ceil(math.log10(high) - 1e-9), first + 1)
    return [10.0**power for power in range(first, last + 1)]
