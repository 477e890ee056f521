"""Plot faithfulness over circuit size, with all baselines."""

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go

from analysis.circuits.checks.curve import Curve
from analysis.render.figures.curves import log_ticks
from analysis.render.figures.lines import Line, lines
from analysis.render.palette import fade, style
from analysis.render.text import plain, short
from sae.metrics import Interval

GREY = "#888888"
"""Colour of level lines, legible on light and dark backgrounds."""
X_TITLE, Y_TITLE = "nodes in the circuit", "faithfulness"


def figure(curves: Sequence[Curve], levels: Mapping[str, Interval] | None = None) -> go.Figure:
    """Plot curves with interval bands, and size-independent levels as horizontal lines.

    Args:
        curves: the i-th gets the i-th palette style; size 0 is omitted, as the axis is logarithmic.
        levels: levels by name, such as all features without errors; they use the next palette styles.
    """
    out = go.Figure()
    for i, curve in enumerate(curves):
        _add(out, i, curve)
    for i, (name, level) in enumerate((levels or {}).items(), start=len(curves)):
        out.add_hline(y=level.value, line={"color": style(i)[0], "dash": "dot", "width": 1.5},
                      annotation={"text": f"{_shown(name)}: {level.value:.2f}", "font": {"size": 11}})
    for y in (0, 1):
        out.add_hline(y=y, line={"color": GREY, "width": 1}, opacity=0.5)
    ticks = log_ticks([float(n) for curve in curves for n in curve.n_nodes])
    out.update_layout(
        xaxis={"title": {"text": X_TITLE, "standoff": 6}, "type": "log", "automargin": True, "tickvals": ticks,
               "ticktext": [short(tick) for tick in ticks]},
        yaxis={"title": {"text": Y_TITLE}, "automargin": True, "zeroline": False},
        hovermode="x unified", showlegend=True, legend={"orientation": "h", "y": -0.25},
        margin={"l": 8, "r": 8, "t": 16, "b": 8},
    )
    return out


def _add(out: go.Figure, i: int, curve: Curve) -> None:
    colour, dash, symbol = style(i)
    points = [(n, s, v) for n, s, v in zip(curve.n_nodes, curve.n_summed, curve.values, strict=True) if n]
    n_nodes, name = [n for n, _, _ in points], _shown(curve.name)
    known = [(n, v.low, v.high) for n, _, v in points if v.low is not None and v.high is not None]
    if known:
        x, low, high = zip(*known, strict=True)
        out.add_trace(go.Scatter(
            x=[*x, *x[::-1]], y=[*high, *low[::-1]], fill="toself", fillcolor=fade(colour, 0.15), line={"width": 0},
            mode="lines", hoverinfo="skip", legendgroup=str(i), showlegend=False, name=name,
        ))
    out.add_trace(go.Scatter(
        x=n_nodes, y=[v.value for _, _, v in points], mode="lines+markers", name=name, legendgroup=str(i),
        line={"color": colour, "dash": dash, "width": 2}, marker={"symbol": symbol, "size": 6},
        customdata=[(s, _between(v)) for _, s, v in points],
        hovertemplate="%{y:.3f} %{customdata[1]}, %{customdata[0]} without positions",
    ))


def picture(curves: Sequence[Curve]) -> str:
    """The same curves as a reproducible SVG file for results pages."""
    drawn = []
    for curve in curves:
        points = [(n, v) for n, v in zip(curve.n_nodes, curve.values, strict=True) if n]
        drawn.append(Line(
            plain(curve.name, limit=None), [float(n) for n, _ in points], [v.value for _, v in points],
            [v.low for _, v in points], [v.high for _, v in points],
        ))
    return lines(drawn, x_title=X_TITLE, y_title=Y_TITLE, log_x=True)


def alt(curves: Sequence[Curve], levels: Mapping[str, Interval] | None = None) -> str:
    """Alt text: final value of each curve and level."""
    ends = [
        f"{plain(curve.name, limit=None)} {curve.values[-1].value:.2f} with {curve.n_nodes[-1]:,} nodes"
        for curve in curves if curve.values
    ]
    ends += [f"{plain(name, limit=None)} {level.value:.2f}" for name, level in (levels or {}).items()]
    return f"Faithfulness over the number of nodes: {'; '.join(ends) or 'nothing yet'}."


def _between(value: Interval) -> str:
    return "" if value.low is None or value.high is None else f"[{value.low:.3f}, {value.high:.3f}]"


def _shown(name: str) -> str:
    """Escape a name for Plotly, which interprets tags."""
    return escape(plain(name, limit=None))
