"""All features as points: two of their statistics against each other, or the map of their decoder directions.

Each point carries its feature's number as `customdata`, which is what a selection gives back.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analysis.render.figures.curves import log_ticks
from analysis.render.palette import COLOURS
from analysis.render.text import count, number, plain, short

Box = tuple[str, str, list[float]]
"""Two columns, and the bounds of the first and of the second."""
HOVER_LIMIT = 60
"""Characters of a label that are shown beside a point."""


def figure(
    features: Sequence[int], x: Sequence[float], y: Sequence[float], *, x_title: str, y_title: str,
    log_x: bool = False, log_y: bool = False, names: Sequence[str] | None = None, selected: int | None = None,
    box: Box | None = None,
) -> go.Figure:
    """One statistic against another.

    Args:
        features: their numbers.
        x: one value each; those that are not finite, or not positive on a logarithmic axis, are left out and counted.
        y: likewise.
        x_title: what x is, with its unit.
        y_title: likewise.
        log_x: logarithmic axis.
        log_y: likewise.
        names: a label each, or "".
        selected: the feature to ring.
        box: bounds to frame.
    """
    ids, xs, ys = np.asarray(features), np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    fits = np.isfinite(xs) & np.isfinite(ys) & ((xs > 0) | (not log_x)) & ((ys > 0) | (not log_y))
    out = go.Figure(_points(ids, xs, ys, fits, names, f"{x_title} %{{x:.3~g}}, {y_title} %{{y:.3~g}}"))
    if selected is not None:
        _ring(out, ids, xs, ys, fits, selected)
    for axis, title, log, values in (("x", x_title, log_x, xs[fits]), ("y", y_title, log_y, ys[fits])):
        ticks = log_ticks(values.tolist()) if log else []
        axes: dict[str, Any] = {"title": {"text": escape(title), "standoff": 6}, "type": "log" if log else "linear"}
        if ticks:
            axes |= {"tickvals": ticks, "ticktext": [short(tick) for tick in ticks]}
        out.update_layout({f"{axis}axis": axes | {"automargin": True, "exponentformat": "SI"}})
    left_out = int((~fits).sum())
    if left_out:
        why = "not above 0" if log_x or log_y else "without a value"
        out.add_annotation(text=f"{count(left_out, 'feature')} {why} left out", xref="paper", yref="paper", x=1, y=1,
                           xanchor="right", yanchor="bottom", showarrow=False)
    return _laid_out(_framed(out, box))


def layout_map(
    features: Sequence[int], x: Sequence[float], y: Sequence[float], *, names: Sequence[str] | None = None,
    depth: Sequence[float] | None = None, depth_title: str = "", selected: int | None = None,
    box: Box | None = None,
) -> go.Figure:
    """The map of decoder directions: near points are near directions; the axes themselves mean nothing.

    Args:
        features: their numbers.
        x: places of the map.
        y: likewise.
        names: a label each, or "".
        depth: a value each, shown as colour (its logarithm should be given where it spans decades).
        depth_title: what the colour means.
        selected: the feature to ring.
        box: bounds to frame.
    """
    ids, xs, ys = np.asarray(features), np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    fits = np.isfinite(xs) & np.isfinite(ys)
    points = _points(ids, xs, ys, fits, names, "")
    if depth is not None:
        # cividis: even steps of lightness, the same to most colour visions
        points.marker.update(color=np.asarray(depth, dtype=np.float64)[fits], colorscale="Cividis", showscale=True,
                             colorbar={"title": {"text": escape(depth_title)}, "thickness": 10})
    out = go.Figure(points)
    if selected is not None:
        _ring(out, ids, xs, ys, fits, selected)
    out.update_xaxes(visible=False)
    out.update_yaxes(visible=False, scaleanchor="x")
    return _laid_out(_framed(out, box))


def _points(
    ids: np.ndarray, xs: np.ndarray, ys: np.ndarray, fits: np.ndarray, names: Sequence[str] | None, where: str
) -> go.Scattergl:
    kept = np.flatnonzero(fits).tolist()
    # Plotly reads some tags in hover texts, so they are escaped like HTML
    text = [escape(plain(names[i], limit=HOVER_LIMIT)) if names and names[i] else "" for i in kept]
    return go.Scattergl(
        x=xs[kept], y=ys[kept], mode="markers", customdata=ids[kept], text=text,
        hovertemplate=f"#%{{customdata}} %{{text}}{'<br>' + where if where else ''}<extra></extra>",
        marker={"size": 5, "opacity": 0.7, "color": COLOURS[0]},
        selected={"marker": {"opacity": 0.9, "color": COLOURS[1]}}, unselected={"marker": {"opacity": 0.2}},
    )


def _ring(out: go.Figure, ids: np.ndarray, xs: np.ndarray, ys: np.ndarray, fits: np.ndarray, selected: int) -> None:
    at = np.flatnonzero((ids == selected) & fits)
    out.add_trace(go.Scattergl(
        x=xs[at], y=ys[at], mode="markers+text", text=[f"#{selected}"] * len(at), textposition="top center",
        customdata=ids[at], hoverinfo="skip",
        marker={"size": 14, "symbol": "circle-open", "line": {"width": 3}, "color": COLOURS[1]},
    ))


def _framed(out: go.Figure, box: Box | None) -> go.Figure:
    """A frame around the box that was drawn."""
    if box is not None:
        x0, x1, y0, y1 = box[2]
        line = {"width": 2, "dash": "dot", "color": COLOURS[1]}
        out.add_shape(type="rect", x0=x0, x1=x1, y0=y0, y1=y1, name="box", line=line)
    return out


def _laid_out(out: go.Figure) -> go.Figure:
    return out.update_layout(
        height=480, showlegend=False, margin={"l": 8, "r": 8, "t": 24, "b": 8}, dragmode="select", hovermode="closest",
        clickmode="event+select", uirevision="features",
    )


def alt(x: Sequence[float], y: Sequence[float], x_title: str, y_title: str) -> str:
    """What a scatter shows, in numbers: ranges and the rank correlation."""
    from scipy.stats import spearmanr

    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    fits = np.isfinite(xs) & np.isfinite(ys)
    xs, ys = xs[fits], ys[fits]
    if not len(xs):
        return f"{x_title} against {y_title}: no features."
    ranges = f"{x_title} from {number(float(xs.min()))} to {number(float(xs.max()))}, {y_title} from " \
             f"{number(float(ys.min()))} to {number(float(ys.max()))}"
    if len(xs) < 3 or xs.min() == xs.max() or ys.min() == ys.max():
        return f"{count(len(xs), 'feature')}: {ranges}."
    return f"{count(len(xs), 'feature')}: {ranges}; rank correlation {number(float(spearmanr(xs, ys).statistic))}."


def png_options(name: str) -> dict[str, Any]:
    """Plotly's settings with a button that saves the figure as a PNG at twice its size, drawn by the browser."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name)[:80] or "figure"
    return {"displaylogo": False, "toImageButtonOptions": {"format": "png", "filename": safe, "scale": 2}}
