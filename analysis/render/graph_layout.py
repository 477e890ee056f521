"""Layout of a circuit's graph: a row per site with nodes, a column per position."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from analysis.circuits.graph import Circuit

LABELS, TOP, BOTTOM = 112.0, 8.0, 38.0
STEP, LINE, PAD = 40.0, 40.0, 14.0
"""Pixels between neighbours on a line, between lines of a row, and around a row."""
PER_LINE = {True: 7, False: 24}
"""Maximum nodes per line, for graphs with positions (True) and without (False)."""
EMPTY, WIDTH = 44.0, 1000.0
"""Width of a position without nodes, and minimum width of the graph if its nodes leave room."""
SMALLEST, LARGEST = 3.5, 11.0
"""Range of node radii."""


@dataclass(frozen=True)
class Placed:
    """Positions in pixels; y points down."""

    width: float
    height: float
    nodes: list[tuple[float, float]]
    radius: list[float]
    rows: Mapping[int, float]
    """Site → y of its row's centre."""
    rules: list[float]
    """y of the lines between rows."""
    columns: Mapping[int, tuple[float, float]]
    """Position → (x, width) of its column; empty if positions are summed."""
    output: tuple[float, float]

    @property
    def output_y(self) -> float:
        """y of the output row's centre."""
        return self.output[1]

    def end(self, target: int) -> tuple[float, float]:
        """End point of an edge: a node, or the output."""
        return self.nodes[target] if target >= 0 else self.output


def placed(circuit: "Circuit") -> Placed:
    """Compute the layout. Nodes of a cell are side by side, strongest first, with up to `PER_LINE` per line."""
    nodes, per_line = circuit.nodes, PER_LINE[circuit.positional]
    cells: dict[tuple[int, int], list[int]] = {}
    for i in np.argsort(-np.nan_to_num(np.abs(circuit.effect)), kind="stable").tolist():
        cells.setdefault((int(nodes.site[i]), int(nodes.position[i])), []).append(i)
    columns = _columns(circuit, {at: min(len(cell), per_line) for at, cell in cells.items()})
    width = sum(wide for _, wide in columns.values())
    rows, rules, y = {}, [], TOP + 36.0
    for site in sorted({site for site, _ in cells}, reverse=True):
        rules.append(y)
        lines = max(-(-len(cell) // per_line) for (s, _), cell in cells.items() if s == site)
        rows[site] = y + PAD / 2 + LINE * lines / 2
        y += LINE * lines + PAD
    places = [(0.0, 0.0)] * len(nodes)
    for (site, position), cell in cells.items():
        for k, place in enumerate(_in_cell(len(cell), per_line, *columns[position], rows[site])):
            places[cell[k]] = place
    last = max(columns, default=0)
    start, wide = columns[last] if columns else (0.0, WIDTH)
    return Placed(
        width=width, height=y + (BOTTOM if circuit.positional else PAD), nodes=places, radius=_radii(circuit.effect),
        rows=rows, rules=[*rules, y], columns=columns if circuit.positional else {}, output=(start + wide / 2, TOP + 16.0),
    )


def _columns(circuit: "Circuit", most: Mapping[tuple[int, int], int]) -> dict[int, tuple[float, float]]:
    """(x, width) of each position's column."""
    slots = {position: max(n for (_, p), n in most.items() if p == position) for _, position in most}
    positions = range(len(circuit.prompt)) if circuit.positional and circuit.prompt else sorted(slots)
    wide = {p: max(STEP * slots[p] + 8, EMPTY) if p in slots else EMPTY for p in [*positions, *slots]}
    spare = max(WIDTH - sum(wide.values()), 0.0) / max(len(slots), 1)
    columns, x = {}, 0.0
    for position in sorted(wide):
        across = wide[position] + (min(spare, STEP * slots[position]) if position in slots else 0.0)
        columns[position] = (x, across)
        x += across
    return columns


def _in_cell(n: int, per_line: int, x: float, wide: float, y: float) -> list[tuple[float, float]]:
    lines = -(-n // per_line)
    found = []
    for k in range(n):
        line, at = divmod(k, per_line)
        here = min(n - line * per_line, per_line)
        found.append((x + wide * (at + 0.5) / here, y + LINE * (line - (lines - 1) / 2) - 6))
    return found


def _radii(effect: np.ndarray) -> list[float]:
    size = np.sqrt(np.nan_to_num(np.abs(effect)))
    largest = size.max() if len(size) and size.max() > 0 else 1.0
    return [float(SMALLEST + (LARGEST - SMALLEST) * one / largest) for one in size]
