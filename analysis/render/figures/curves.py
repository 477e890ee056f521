"""Training curves: one metric of several runs over training tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from analysis.render.palette import fade, style
from analysis.render.text import plain, short

N_POINTS = 2000
"""Maximum points per curve; longer curves are thinned to the minimum and maximum of each interval."""

TITLES = {
    "l0": "L0: active features per row", "fve": "FVE: fraction of variance explained", "dead": "Dead features",
    "lr": "Learning rate", "grad_norm": "Gradient norm", "tokens_per_s": "Training rows per second",
    "heldout/fve": "Held-out FVE", "heldout/l0": "Held-out L0",
    "heldout/dense": "Held-out dense features (fire on over 10 % of rows)",
    "heldout/silent": "Held-out silent features (never fire)",
}
SHARES = ("dead", "heldout/dense", "heldout/silent")
"""Metrics that are shares of features, shown in percent."""


@dataclass(frozen=True)
class Curve:
    """A run's metric over training rows, with held-out points and intervals."""

    name: str
    rows: Sequence[float]
    values: Sequence[float]
    points: Sequence[tuple[float, float]] = ()
    """(rows, value) of the metric on held-out data."""
    intervals: Sequence[tuple[float, float]] | None = None
    """Bounds (low, high) for each point."""
    style: int = 0
    """Index of its style in the palette."""


def title(metric: str) -> str:
    """Display name of a metric."""
    return TITLES.get(metric, f"Loss: {metric[5:].replace('_', ' ')}" if metric.startswith("loss/") else metric)


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Bias-corrected exponential moving average: weight 0 is no smoothing, close to 1 is strong."""
    out: list[float] = []
    mean, mass = 0.0, 0.0
    for value in values:
        mean, mass = weight * mean + (1 - weight) * value, weight * mass + (1 - weight)
        out.append(mean / mass)
    return out


def thin(rows: Sequence[float], values: Sequence[float], n_points: int = N_POINTS) -> tuple[list[float], list[float]]:
    """Thin a curve to at most `n_points`, keeping the minimum and maximum of each interval, so that no spike is lost."""
    if len(rows) <= n_points:
        return list(rows), list(values)
    kept = {0, len(rows) - 1}
    n_stretches = n_points // 2 - 1
    for i in range(n_stretches):
        stretch = range(i * len(rows) // n_stretches, (i + 1) * len(rows) // n_stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    order = sorted(kept)
    return [rows[i] for i in order], [values[i] for i in order]


def figure(
    metric: str, curves: Sequence[Curve], *, smoothing: float = 0.0, log_x: bool = False, log_y: bool = False
) -> go.Figure:
    """Plot one metric of several runs; raw values stay faintly visible behind smoothed ones.

    Args:
        metric: name in metrics.jsonl.
        curves: one curve per run.
        smoothing: weight of the moving average, 0 to 1.
        log_x: logarithmic x axis.
        log_y: logarithmic y axis; non-positive values are omitted.
    """
    out = go.Figure()
    for curve in curves:
        rows, values = thin(curve.rows, curve.values)
        if smoothing and len(values) > 1:
            out.add_trace(_raw(curve.style, rows, values))
        out.add_trace(_line(curve.style, curve.name, *thin(curve.rows, smooth(curve.values, smoothing))))
        if curve.points:
            out.add_trace(_points(curve.style, curve))
    out.update_layout(
        title={"text": title(metric), "font": {"size": 15}, "x": 0, "xanchor": "left"}, height=300, showlegend=False,
        hovermode="x unified", margin={"l": 8, "r": 8, "t": 44, "b": 8},
        hoverlabel={"namelength": 40}, modebar={"orientation": "v"},
    )
    if log_x:
        out.update_xaxes(**_ticks([row for curve in curves for row in curve.rows], percent=False))
    if log_y:
        out.update_yaxes(**_ticks([value for curve in curves for value in curve.values], percent=metric in SHARES))
    out.update_xaxes(title={"text": "training tokens", "standoff": 6}, type="log" if log_x else "linear", automargin=True,
                     rangemode="normal" if log_x else "tozero", exponentformat="SI", hoverformat=",.0f")
    out.update_yaxes(type="log" if log_y else "linear", automargin=True, hoverformat=_format(metric),
                     tickformat=".3~%" if metric in SHARES else None, exponentformat="SI",
                     range=_range(metric, curves, log_y))
    if log_y and not any(value > 0 for curve in curves for value in curve.values):
        out.add_annotation(text="no positive values to show on a logarithmic axis", showarrow=False, xref="paper",
                           yref="paper", x=0.5, y=0.5)
    return out


def _range(metric: str, curves: Sequence[Curve], log_y: bool) -> list[float] | None:
    """Fixed range up to 1 % for shares that are all below it; Plotly would show zeros on −100 % to 100 %."""
    shown = [value for curve in curves for value in (*curve.values, *(value for _, value in curve.points))]
    tiny = metric in SHARES and not log_y and max(shown, default=0.0) < 0.01
    return [-0.0005, 0.0105] if tiny else None


def log_ticks(values: Sequence[float]) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2, 5 per decade, more for ranges below one decade, fewer above three.

    They extend a decade beyond the values on both sides, so that an axis with one value has ticks too.
    """
    positive = [value for value in values if value > 0]
    if not positive:
        return []
    low, high = math.log10(min(positive)), math.log10(max(positive))
    digits = (1, 2, 3, 4, 5, 6, 8) if 0.01 < high - low < 0.8 else (1, 2, 5) if high - low <= 3 else (1,)
    return [digit * 10.0**decade for decade in range(math.floor(low) - 1, math.floor(high) + 2) for digit in digits]


def _ticks(values: Sequence[float], *, percent: bool) -> dict[str, Any]:
    ticks = log_ticks(values)
    return {"tickvals": ticks, "ticktext": [_short(100 * tick) + "%" if percent else _short(tick) for tick in ticks]}


def _short(value: float) -> str:
    """`20k` for 20,000; at most six digits."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{letter}"
    return short(value)


def _format(metric: str) -> str:
    return ".2%" if metric in SHARES else ".4~g"


def _raw(i: int, rows: list[float], values: list[float]) -> go.Scatter:
    return go.Scatter(x=rows, y=values, mode="lines", line={"color": fade(style(i)[0], 0.35), "width": 1}, hoverinfo="skip")


def _line(i: int, name: str, rows: list[float], values: list[float]) -> go.Scatter:
    colour, dash, _ = style(i)
    # a single point draws no line
    mode = "lines" if len(rows) > 1 else "markers"
    return go.Scatter(x=rows, y=values, mode=mode, name=_shown(name), line={"color": colour, "dash": dash, "width": 2})


def _points(i: int, curve: Curve) -> go.Scatter:
    colour, _, symbol = style(i)
    values = [value for _, value in curve.points]
    error = None
    if curve.intervals is not None:
        low, high = zip(*curve.intervals, strict=True)
        error = {
            "type": "data", "symmetric": False, "thickness": 1.5, "width": 4,
            "array": [h - v for h, v in zip(high, values, strict=True)],
            "arrayminus": [v - w for w, v in zip(low, values, strict=True)],
        }
    return go.Scatter(
        x=[rows for rows, _ in curve.points], y=values, mode="markers", name=f"{_shown(curve.name)}, held out",
        marker={"color": colour, "symbol": symbol, "size": 8, "line": {"width": 1, "color": "rgba(255,255,255,0.8)"}},
        error_y=error,
    )


def _shown(name: str) -> str:
    """Escape a run's name for Plotly, which interprets tags."""
    return escape(plain(name, limit=None))


def alt(metric: str, curves: Sequence[Curve]) -> str:
    """Alt text: final value of each curve."""
    ends = [f"{plain(curve.name, limit=None)} ends at {_number(metric, curve.values[-1])}"
            for curve in curves if len(curve.values)]
    return f"{title(metric)} over training tokens: {'; '.join(ends) or 'no values yet'}."


def _number(metric: str, value: float) -> str:
    return f"{value:.2%}" if metric in SHARES else f"{value:.4g}"
