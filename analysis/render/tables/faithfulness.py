"""Faithfulness over the size of a circuit as a table for the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from analysis.circuits.checks.curve import Curve
from analysis.render.text import plain
from sae.metrics import Interval


def text(curves: Sequence[Curve], levels: Mapping[str, Interval] | None = None) -> Table:
    """A row per curve and level, a column per size, and the area over log n; intervals are left to the figure.

    Args:
        curves: of any sizes; where a curve has none of a size its cell is empty.
        levels: by name; they have no size.
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
    """With a real minus sign; a dash for what is not a number."""
    return "–" if value != value else f"{value:.2f}".replace("-", "−")
