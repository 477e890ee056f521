"""Histogram of a feature's active values, as a Plotly figure and as SVG.

The index has bins of equal width in log |value|, so on a logarithmic axis the bars show counts. On a linear axis the bins
differ in width, so the height is tokens per unit of value and the area is the count. Values are never re-binned. Negative
values have their own mirrored panel on the left.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from analysis.render.palette import COLOURS
from analysis.render.text import count, number, short

if TYPE_CHECKING:
    from analysis.index.types import Feature

WIDTH, HEIGHT = 320.0, 150.0
_LEFT, _TOP, _BOTTOM = 18.0, 16.0, 32.0


def bars(feature: "Feature", side: str, *, log_x: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower bound, upper bound (of |value|) and height of each bin, without empty bins at the ends.

    Heights are counts, or counts per unit of value for a linear axis. Returns empty arrays if the side has no values.
    """
    counts = np.asarray(feature.histogram.counts_pos if side == "+" else feature.histogram.counts_neg)
    edges = np.asarray(feature.histogram.edges, dtype=np.float64)
    filled = np.flatnonzero(counts)
    if not len(filled):
        return np.empty(0), np.empty(0), np.empty(0)
    bins = slice(filled[0], filled[-1] + 1)
    low, high = edges[:-1][bins], edges[1:][bins]
    return low, high, counts[bins] / (1 if log_x else high - low)


def figure(feature: "Feature", *, log_x: bool = True, log_y: bool = False, mark: float | None = None) -> go.Figure:
    """Plot the histogram over |value|, one panel per side.

    Args:
        feature: a feature with its histogram.
        log_x: logarithmic x axis with counts; else linear with counts per unit of value.
        log_y: logarithmic y axis.
        mark: a value to mark, such as a prompt's.
    """
    sides = [side for side in "-+" if len(bars(feature, side)[0])] or ["+"]
    out = go.Figure()
    tallest = max((bars(feature, side, log_x=log_x)[2].max(initial=0) for side in sides), default=1)
    for i, side in enumerate(sides, start=1):
        axis = "" if i == 1 else str(i)
        out.add_trace(_trace(feature, side, axis, log_x=log_x))
        share = 1 / len(sides)
        out.update_layout({
            f"xaxis{axis}": _x_axis(feature, side, [(i - 1) * share, i * share], log_x=log_x),
            f"yaxis{axis}": _y_axis(float(tallest), log_x=log_x, log_y=log_y, first=i == 1, anchor=f"x{axis}"),
        })
        if mark is not None and (mark < 0) == (side == "-") and mark:
            at = math.log10(abs(mark)) if log_x else abs(mark)
            out.add_shape(type="line", xref=f"x{axis}", yref="paper", x0=at, x1=at, y0=0, y1=1,
                          line={"dash": "dash", "width": 2})
            out.add_annotation(text=number(mark), xref=f"x{axis}", yref="paper", x=at, y=1, yanchor="bottom",
                               showarrow=False)
    out.update_layout(height=240, showlegend=False, bargap=0, margin={"l": 8, "r": 8, "t": 24, "b": 8})
    return out


def _trace(feature: "Feature", side: str, axis: str, *, log_x: bool) -> go.Bar:
    low, high, heights = bars(feature, side, log_x=log_x)
    counts = bars(feature, side)[2]
    sign = "−" if side == "-" else ""
    text = [
        f"{sign}{number(a)} to {sign}{number(b)}: {count(int(n), 'token')}"
        for a, b, n in zip(low, high, counts, strict=True)
    ]
    # on a logarithmic axis, Plotly expects bar positions and widths in data units
    return go.Bar(
        x=low, width=high - low, offset=0, y=heights, xaxis=f"x{axis}", yaxis=f"y{axis}", hovertext=text, hoverinfo="text",
        marker={"color": COLOURS[side == "-"], "line": {"width": 0}, "pattern": {"shape": "/" if side == "-" else ""}},
    )


def _x_axis(feature: "Feature", side: str, domain: list[float], *, log_x: bool) -> dict[str, Any]:
    low, high, _ = bars(feature, side)
    ends = (low[0], high[-1]) if len(low) else (0.1, 1.0)
    bounds = [math.log10(end) for end in ends] if log_x else [0, ends[1]]
    ticks = ticks_of(*ends, log=log_x)
    sign = "−" if side == "-" else ""
    gap = 0.01
    return {
        "type": "log" if log_x else "linear", "range": bounds[::-1] if side == "-" else bounds, "tickvals": ticks,
        "ticktext": [(sign if tick else "") + short(tick) for tick in ticks], "anchor": "y",
        "domain": [domain[0] + (gap if domain[0] else 0), domain[1] - (gap if domain[1] < 1 else 0)],
        "title": {"text": "value", "standoff": 4}, "automargin": True,
    }


def _y_axis(tallest: float, *, log_x: bool, log_y: bool, first: bool, anchor: str) -> dict[str, Any]:
    bounds = [math.log10(0.5), math.log10(max(tallest, 1) * 1.5)] if log_y else [0, tallest * 1.05 or 1]
    title = "tokens" if log_x else "tokens per unit"
    return {
        "type": "log" if log_y else "linear", "range": bounds, "anchor": anchor, "automargin": True,
        "showticklabels": first, "title": {"text": title if first else ""}, "exponentformat": "SI",
        "dtick": 1 if log_y else None, "rangemode": "normal",
    }


def ticks_of(low: float, high: float, *, log: bool) -> list[float]:
    """Three to seven round tick values between two bounds; 1, 2, 5 per decade on short logarithmic axes."""
    if log:
        span = math.log10(high / low)
        digits = (1, 2, 5) if span < 2.5 else (1,)
        step = max(1, math.ceil(span / 6))
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [d * 10.0**e for e in decades if e % step == 0 for d in digits]
        found = [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        return found if len(found) > 1 else [low, high]
    raw = high / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step_size = next(d * size for d in (1, 2, 2.5, 5, 10) if d * size >= raw * 0.999)
    return [i * step_size for i in range(int(high / step_size * 1.0001) + 1)]


def svg(
    feature: "Feature", *, log_x: bool = True, log_y: bool = False, mark: float | None = None, marked: str = "here"
) -> str:
    """The same as a small static SVG; `marked` names the marked value.

    A value beyond the bars is marked at their end. Each panel is covered by a `rect` of class `sx-brush` whose data
    attributes describe its scale, so that a script can let users select a range of values.
    """
    sides = [side for side in "-+" if len(bars(feature, side)[0])]
    if not sides:
        return ""
    tallest = max(float(bars(feature, side, log_x=log_x)[2].max()) for side in sides)
    width = (WIDTH - _LEFT) / len(sides)
    panels = "".join(
        _panel(feature, side, _LEFT + i * width, width, tallest, log_x=log_x, log_y=log_y,
               mark=(mark, marked) if mark and (mark < 0) == (side == "-") else None) for i, side in enumerate(sides)
    )
    unit = f"tokens{'' if log_x else ' per unit'}{', logarithmic' if log_y else ''}"
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    return (
        f'<svg class="sx-histogram" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{alt(feature)}">'
        f'<text x="{_LEFT:g}" y="10" font-weight="600">Feature {feature.feature}</text>'
        f'<text x="{WIDTH:g}" y="10" text-anchor="end">up to {count(round(tallest), "token")}'
        f"{'' if log_x else ' per unit'}</text>"
        f'<text x="10" y="{middle:g}" text-anchor="middle" transform="rotate(-90 10 {middle:g})">{unit}</text>'
        f'<text x="{(WIDTH + _LEFT) / 2:g}" y="{HEIGHT - 3:g}" text-anchor="middle">value where active</text>{panels}</svg>'
    )


def _panel(
    feature: "Feature", side: str, left: float, width: float, tallest: float, *, log_x: bool, log_y: bool,
    mark: tuple[float, str] | None = None,
) -> str:
    low, high, heights = bars(feature, side, log_x=log_x)
    start, stop = (low[0], high[-1]) if log_x else (0.0, high[-1])

    def across(value: float) -> float:
        share = math.log(value / start) / math.log(stop / start) if log_x else value / stop
        return left + width * (1 - share if side == "-" else share)

    floor = HEIGHT - _BOTTOM
    kind = 'fill-opacity=".55" stroke-width="1"' if side == "-" else ""
    colour = COLOURS[side == "-"]
    drawn = []
    for a, b, height in zip(low, high, heights, strict=True):
        if height:
            share = math.log1p(height) / math.log1p(tallest) if log_y else height / tallest
            x, tall = sorted((across(a), across(b))), max(1.0, share * (floor - _TOP))
            drawn.append(f'<rect x="{x[0]:.1f}" y="{floor - tall:.1f}" width="{max(x[1] - x[0] - 0.4, 0.4):.1f}" '
                         f'height="{tall:.1f}"/>')
    sign = "−" if side == "-" else ""
    labels = _labels(ticks_of(start or low[0], stop, log=log_x), across, left, width, sign, floor)
    ends = f'x1="{left:g}" x2="{left + width:g}" y1="{floor:g}" y2="{floor:g}"'
    line = f'<line {ends} stroke="currentColor" stroke-opacity=".4"/>'
    brush = (
        f'<rect class="sx-brush" data-side="{side}" data-start="{start:.9g}" data-stop="{stop:.9g}" '
        f'data-log="{str(log_x).lower()}" x="{left:g}" y="{_TOP:g}" width="{width:g}" height="{floor - _TOP:g}" '
        'fill-opacity="0"/>'
    )
    bars_drawn = f'<g fill="{colour}" stroke="{colour}" stroke-width="0" {kind}>{"".join(drawn)}</g>'
    marked = "" if mark is None else _mark(*mark, across(min(max(abs(mark[0]), start), stop)), left + width / 2)
    return f"{bars_drawn}{line}{labels}{marked}{brush}"


def _mark(value: float, said: str, x: float, middle: float) -> str:
    """A line at a value, labelled on the side with more room."""
    anchor, dx = ("end", -4) if x > middle else ("start", 4)
    return (
        f'<g class="sx-mark"><line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP:g}" y2="{HEIGHT - _BOTTOM:g}" stroke="currentColor" '
        f'stroke-width="1.5" stroke-dasharray="4 2"/><text x="{x + dx:.1f}" y="{_TOP + 8:g}" text-anchor="{anchor}">'
        f"{escape(said)} {number(value)}</text></g>"
    )


def _labels(ticks: Sequence[float], across: Any, left: float, width: float, sign: str, floor: float) -> str:
    out, last = [], -math.inf
    for tick in sorted(ticks, key=across):
        x = across(tick)
        anchor = "start" if x < left + 12 else "end" if x > left + width - 12 else "middle"
        if x - last >= 38:
            text = (sign if tick else "") + short(tick)
            out.append(f'<text x="{x:.1f}" y="{floor + 13:g}" text-anchor="{anchor}">{text}</text>')
            last = x
    return "".join(out)


def alt(feature: "Feature") -> str:
    """Alt text: counts and ranges of the values."""
    parts = []
    for side, name in (("+", "positive"), ("-", "negative")):
        low, high, counts = bars(feature, side)
        if len(low):
            at = int(np.argmax(counts))
            sign = "−" if side == "-" else ""
            parts.append(
                f"{count(int(counts.sum()), f'{name} value')} from {sign}{number(low[0])} to {sign}{number(high[-1])}, "
                f"most between {sign}{number(low[at])} and {sign}{number(high[at])}"
            )
    return f"Histogram of feature {feature.feature}: {'; '.join(parts) or 'no active values'}."
