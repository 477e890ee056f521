"""Features as points: a scatter plot of two statistics, or the map of decoder directions.

Each point's `customdata` is its feature's number, which selections return.
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
"""Two columns, and [x0, x1, y0, y1]."""
HOVER_LIMIT = 60
"""Maximum characters of a label in a tooltip."""


def figure(
    features: Sequence[int], x: Sequence[float], y: Sequence[float], *, x_title: str, y_title: str,
    log_x: bool = False, log_y: bool = False, names: Sequence[str] | None = None, selected: int | None = None,
    box: Box | None = None,
) -> go.Figure:
    """Scatter plot of two statistics.

    Args:
        features: numbers of the features.
        x: x values; non-finite ones (and non-positive ones on a log axis) are omitted and counted.
        y: y values, likewise.
        x_title: x axis title with unit.
        y_title: y axis title with unit.
        log_x: logarithmic x axis.
        log_y: logarithmic y axis.
        names: labels, or "".
        selected: the feature to highlight with a ring.
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
        out.add_annotation(text=f"{count(left_out, 'feature')} {why} omitted", xref="paper", yref="paper", x=1, y=1,
                           xanchor="right", yanchor="bottom", showarrow=False)
    return _laid_out(_framed(out, box))


def layout_map(
    features: Sequence[int], x: Sequence[float], y: Sequence[float], *, names: Sequence[str] | None = None,
    depth: Sequence[float] | None = None, depth_title: str = "", selected: int | None = None,
    box: Box | None = None,
) -> go.Figure:
    """Map of decoder directions: nearby points have similar directions; the axes have no meaning.

    Args:
        features: numbers of the features.
        x: x coordinates on the map.
        y: y coordinates.
        names: labels, or "".
        depth: values shown as colour (pass the logarithm if they span decades).
        depth_title: title of the colour bar.
        selected: the feature to highlight with a ring.
        box: bounds to frame.
    """
    ids, xs, ys = np.asarray(features), np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    fits = np.isfinite(xs) & np.isfinite(ys)
    points = _points(ids, xs, ys, fits, names, "")
    if depth is not None:
        # cividis: perceptually uniform, also for most colour vision deficiencies
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
    # Plotly interprets some tags in hover text, so escape it like HTML
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
    """Draw a frame around the box selection."""
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
    """Alt text: ranges and rank correlation."""
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
    """Plotly config with a button that saves the figure as a PNG at twice its size, in the browser."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name)[:80] or "figure"
    return {"displaylogo": False, "toImageButtonOptions": {"format": "png", "filename": safe, "scale": 2}}
