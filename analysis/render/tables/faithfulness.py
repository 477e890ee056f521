"""Faithfulness over circuit size as a table for the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from analysis.circuits.checks.curve import Curve
from analysis.render.text import plain
from sae.metrics import Interval


def text(curves: Sequence[Curve], levels: Mapping[str, Interval] | None = None) -> Table:
    """A row per curve and level, a column per size, and the area over log n; for intervals see the figure.

    Args:
        curves: curves with any sizes; missing sizes give empty cells.
        levels: size-independent values by name.
    """
    sizes = sorted({n for curve in curves for n in curve.n_nodes})
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("faithfulness of n nodes", no_wrap=True)
    for heading in (*(f"{n:,}" for n in sizes), "area"):
        table.add_column(heading, justify="right", no_wrap=True)
    for curve in curves:
        found = dict(zip(curve.n_nodes, curve.values, strict=True))
        cells = [two_digits(found[n].value) if n in found else "" for n in sizes]
        table.add_row(Text(plain(curve.name, limit=None)), *cells, two_digits(curve.area.value))
    for name, level in (levels or {}).items():
        last = f"{two_digits(level.value)}"
        table.add_row(Text(plain(name, limit=None)), *([""] * len(sizes)), last)
    return table


def two_digits(value: float) -> str:
    """Two decimals with a proper minus sign; a dash for NaN."""
    return "–" if value != value else f"{value:.2f}".replace("-", "−")
