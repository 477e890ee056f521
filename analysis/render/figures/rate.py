"""Rate–distortion plot: bits per row against FVE for each run, from coarse to fine quantisation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go

from analysis.render.palette import style
from sae.errors import SaescopeError
from sae.io.files import write_bytes

SUFFIXES = (".html", ".png", ".svg")


def figure(curves: Mapping[str, Sequence[tuple[float, float]]], level: float | None = None) -> go.Figure:
    """Plot bits per row over FVE, one curve per run; lower is better.

    Args:
        curves: (FVE, bits) points by name; the i-th gets the i-th palette style.
        level: the FVE at which runs are compared, to mark.
    """
    out = go.Figure()
    for i, (name, points) in enumerate(curves.items()):
        colour, dash, symbol = style(i)
        out.add_trace(go.Scatter(
            x=[fve for fve, _ in points], y=[bits for _, bits in points], name=name, mode="lines+markers",
            line={"color": colour, "dash": dash}, marker={"symbol": symbol, "size": 6},
            hovertemplate="%{fullData.name}: %{y:.1f} bits at FVE %{x:.3f}<extra></extra>",
        ))
    if level is not None:
        out.add_vline(x=level, line={"dash": "dot", "width": 1})
    out.update_layout(
        xaxis={"title": {"text": "FVE with quantised values"}, "automargin": True},
        yaxis={"title": {"text": "bits per row"}, "rangemode": "tozero", "automargin": True},
        hovermode="closest", showlegend=True,
    )
    return out


def check(path: Path) -> None:
    """Check the suffix of a figure file before any work.

    Raises:
        SaescopeError: the suffix isn't .html, .png or .svg.
    """
    if path.suffix not in SUFFIXES:
        raise SaescopeError(f"{path}: cannot draw a {path.suffix or 'file without suffix'}; use {', '.join(SUFFIXES)}.")


def write(path: Path, drawn: go.Figure) -> None:
    """Write a figure as a self-contained HTML page, or as an image if kaleido and a browser are installed.

    Raises:
        SaescopeError: an image can't be drawn here.
    """
    check(path)
    if path.suffix == ".html":
        write_bytes(path, drawn.to_html(include_plotlyjs=True).encode())
        return
    try:
        picture = drawn.to_image(format=path.suffix[1:], width=900, height=540)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SaescopeError(
            f"{path}: Plotly cannot draw an image here ({reason}); install kaleido and Chrome, or use .html."
        ) from None
    write_bytes(path, picture)
