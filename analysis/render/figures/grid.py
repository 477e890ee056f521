"""Annotated heat maps over two axes, as static SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float

from analysis.render.palette import COLOURS, fade

_CELL, _TALL, _LEFT, _TOP, _GAP = 46, 24, 56, 44, 24


@dataclass(frozen=True)
class Grid:
    """One heat map."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Float[np.ndarray, "n_rows n_columns"]
    """NaN for missing values."""


def grids(maps: Sequence[Grid], across: str, down: str) -> str:
    """Draw heat maps side by side; smaller values are darker, and the minimum is framed.

    Args:
        maps: one or more heat maps.
        across: title of the columns.
        down: title of the rows.
    """
    wide = [_LEFT + _CELL * len(m.columns) + _GAP for m in maps]
    tall = _TOP + _TALL * max(len(m.rows) for m in maps) + 8
    parts = [
        f'<g transform="translate({sum(wide[:i])} 0)">{_map(m, across, down)}</g>' for i, m in enumerate(maps)
    ]
    said = "; ".join(_said(m, across, down) for m in maps)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {sum(wide)} {tall}" width="{sum(wide)}" height="{tall}" '
        f'font-family="sans-serif" font-size="11" role="img" aria-label="{escape(said)}">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def least(one: Grid) -> tuple[int, int] | None:
    """Row and column of the minimum, if any."""
    if not np.isfinite(one.values).any():
        return None
    row, column = np.unravel_index(int(np.nanargmin(one.values)), one.values.shape)
    return int(row), int(column)


def _said(one: Grid, across: str, down: str) -> str:
    at = least(one)
    if at is None:
        return f"{one.title}: no number"
    return (f"{one.title}: least {one.values[at]:.1f} at {down} {one.rows[at[0]]}, {across} {one.columns[at[1]]}")


def _map(one: Grid, across: str, down: str) -> str:
    out = [
        f'<text x="{_LEFT}" y="14" font-weight="bold">{escape(one.title)}</text>',
        f'<text x="{_LEFT}" y="30" opacity=".7">{escape(across)} →</text>',
        f'<text x="{_LEFT - 6}" y="30" text-anchor="end" opacity=".7">{escape(down)} ↓</text>',
    ]
    out += [f'<text x="{_LEFT + _CELL * (c + 0.5):g}" y="{_TOP - 3}" text-anchor="middle">{escape(name)}</text>'
            for c, name in enumerate(one.columns)]
    out += [f'<text x="{_LEFT - 6}" y="{_TOP + _TALL * r + 16}" text-anchor="end">{escape(name)}</text>'
            for r, name in enumerate(one.rows)]
    shades = _shades(one.values)
    for (r, c), value in np.ndenumerate(one.values):
        if np.isfinite(value):
            x, y = _LEFT + _CELL * c, _TOP + _TALL * r
            ink = "white" if shades[r, c] > 0.6 else "black"
            frame = ' stroke="#D55E00" stroke-width="3"' if (r, c) == least(one) else ""
            out.append(f'<rect x="{x + 1}" y="{y + 1}" width="{_CELL - 2}" height="{_TALL - 2}" '
                       f'fill="{fade(COLOURS[0], float(shades[r, c]))}"{frame}/>')
            out.append(f'<text x="{x + _CELL / 2:g}" y="{y + 16}" text-anchor="middle" fill="{ink}">{value:.1f}</text>')
    return "".join(out)


def _shades(values: Float[np.ndarray, "n_rows n_columns"]) -> Float[np.ndarray, "n_rows n_columns"]:
    """Shade from 1 for the minimum to 0.05 for the maximum, on a log scale if all values are positive."""
    finite = values[np.isfinite(values)]
    scaled = np.log(values) if finite.size and finite.min() > 0 else values
    low, high = (np.nanmin(scaled), np.nanmax(scaled)) if finite.size else (0.0, 0.0)
    share = (scaled - low) / (high - low) if high > low else np.zeros_like(scaled)
    return 1 - 0.95 * share
