"""Scatter plot of two evaluation metrics over runs, with intervals and controls."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import plotly.graph_objects as go

from analysis.render.palette import COLOURS, SYMBOLS
from analysis.render.text import number, plain

if TYPE_CHECKING:
    from analysis.evals.overview import Row

LIMIT = 40
"""Maximum characters of a run's name."""


def figure(
    rows: "Sequence[Row]", x: str, y: str, *, x_title: str, y_title: str, log_x: bool = False, log_y: bool = False,
    selected: str | None = None,
) -> go.Figure:
    """Plot each run and, smaller, its controls; `customdata` is the run's URL-encoded name.

    Args:
        rows: runs and controls; those without either metric are omitted.
        x: column key for x.
        y: column key for y.
        x_title: x axis title with unit.
        y_title: y axis title with unit.
        log_x: logarithmic x axis.
        log_y: logarithmic y axis.
        selected: the run to highlight with a ring.
    """
    out = go.Figure()
    known = [row for row in rows if _value(row, x) is not None and _value(row, y) is not None]
    kinds = dict.fromkeys(row.control for row in known)
    for i, control in enumerate(sorted(kinds, key=bool)):
        out.add_trace(_points([row for row in known if row.control == control], control, x, y, i))
    ring = [row for row in known if row.run == selected and not row.control]
    out.add_trace(go.Scatter(
        x=[_value(row, x) for row in ring], y=[_value(row, y) for row in ring], mode="markers", hoverinfo="skip",
        customdata=[quote(row.run, safe="") for row in ring], showlegend=False,
        marker={"size": 18, "symbol": "circle-open", "line": {"width": 2}, "color": COLOURS[1]}))
    for axis, title, log in (("x", x_title, log_x), ("y", y_title, log_y)):
        out.update_layout({f"{axis}axis": {"title": {"text": escape(title), "standoff": 6}, "automargin": True,
                                           "type": "log" if log else "linear"}})
    return out.update_layout(
        height=420, margin={"l": 8, "r": 8, "t": 24, "b": 8}, hovermode="closest", dragmode="zoom", clickmode="event",
        uirevision=f"{x} {y}", showlegend=len(kinds) > 1, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})


def _points(rows: "Sequence[Row]", control: str, x: str, y: str, i: int) -> go.Scatter:
    names = [escape(plain(row.run, limit=LIMIT)) for row in rows]
    text = {} if control else {"text": names, "textposition": "top center"}
    colour = COLOURS[i % len(COLOURS)]
    return go.Scatter(
        x=[_value(row, x) for row in rows], y=[_value(row, y) for row in rows], error_x=_bars(rows, x, colour),
        error_y=_bars(rows, y, colour), mode="markers" if control else "markers+text", name=control or "runs",
        customdata=[quote(row.run, safe="") for row in rows], hovertext=names,
        hovertemplate="%{hovertext}: %{x:.4~g}, %{y:.4~g}",
        marker={"size": 7 if control else 10, "symbol": SYMBOLS[i % len(SYMBOLS)], "color": colour}, **text)


def _value(row: "Row", key: str) -> float | None:
    metric = row.figures.get(key)
    return None if metric is None else metric.value


def _bars(rows: "Sequence[Row]", key: str, colour: str) -> dict[str, Any]:
    up, down = [], []
    for row in rows:
        metric = row.figures[key]
        known = metric.value is not None and metric.low is not None and metric.high is not None
        up.append(metric.high - metric.value if known else 0.0)  # type: ignore[operator]
        down.append(metric.value - metric.low if known else 0.0)  # type: ignore[operator]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.2, "width": 3,
            "color": colour}


def alt(rows: "Sequence[Row]", x: str, y: str, titles: Mapping[str, str]) -> str:
    """Alt text: the values of each run."""
    said = [f"{plain(row.run)}: {number(_value(row, x))}, {number(_value(row, y))}" for row in rows
            if not row.control and _value(row, x) is not None and _value(row, y) is not None]
    return f"{titles[x]} and {titles[y]} of runs: {'; '.join(said) or 'no run has both'}."
