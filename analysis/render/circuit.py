"""A circuit's graph as static HTML: sites on the vertical axis, positions on the horizontal one, the metric on top.

A node's area scales with |effect|, an edge's width with |weight|. Blue and filled (or a solid line): the metric rises when
the node moves to its reference; orange and hollow (or a dashed line): it falls. Features are circles, errors diamonds, skip
paths squares; a ring marks the consensus. Hovering or focusing a node shows its numbers and edges.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.render import graph_layout as layout
from analysis.render.css import CSS
from analysis.render.text import attribute, count, inner, number, plain, shown
from sae.io.files import write_bytes
from sae.io.paths import user_path

if TYPE_CHECKING:
    from analysis.circuits.graph import Circuit

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_PAGE = (
    ":root{color-scheme:light dark}body{margin:0;padding:1rem;font-family:system-ui,sans-serif;background:Canvas;"
    "color:CanvasText}"
)
_ERROR = -1
"""`nodes.ERROR`; lower values are SKIP."""
_LINE, _CHARACTER = 15, 6.3
"""Line height and character width of tooltips, in pixels."""


@dataclass(frozen=True)
class Drawing:
    """A drawn circuit, displayed by notebooks."""

    title: str
    html: str
    """HTML for a page that includes `analysis.render.css.CSS`."""

    def _repr_html_(self) -> str:
        return f"<style>{CSS}</style>{self.html}"

    def page(self) -> str:
        """A self-contained HTML file without scripts."""
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
            f'content="{_POLICY}"><meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{attribute(self.title, spaces=False, limit=200)}</title><style>{_PAGE}{CSS}</style></head>"
            f"<body><main>{self.html}</main></body></html>\n"
        )

    def save(self, path: Path | str) -> None:
        """Write the page."""
        write_bytes(user_path(path), self.page().encode())


def draw(
    circuit: "Circuit", *, consensus: float = 0.9, max_edges: int = 300, labels: Mapping[str, str] | None = None
) -> Drawing:
    """Draw the graph with its legend and a collapsible table of nodes; see `Circuit.figure`."""
    graph = _Graph(circuit, consensus, max_edges, labels or {})
    html = (
        f'<article class="sx sx-circuit {graph.scope}" aria-label="Circuit {attribute(circuit.name, limit=200)}"><style>'
        f"{graph.highlights()}</style><header><h2>{shown(circuit.name, limit=200)}</h2>{_facts(circuit)}</header>"
        f'{_legend(circuit, consensus)}<div class="sx-graph">{graph.rows()}<div class="sx-scroll">{graph.svg()}</div></div>'
        f"{graph.left_out()}{_table(circuit, graph.labels)}</article>"
    )
    return Drawing(circuit.name, html)


def page(circuit: "Circuit", **options: Any) -> str:
    """The same as a complete file; options as for `draw`."""
    return draw(circuit, **options).page()


class _Graph:
    """Builds the parts of the drawing."""

    def __init__(self, circuit: "Circuit", consensus: float, max_edges: int, labels: Mapping[str, str]) -> None:
        self.circuit, self.place = circuit, layout.placed(circuit)
        self.names = circuit.names
        self.labels = {name: labels.get(name) or labels.get(name.rpartition("@")[0], "") for name in self.names}
        self.ringed = circuit.inclusion >= consensus
        order = np.argsort(-np.nan_to_num(np.abs(circuit.weight)), kind="stable")
        self.edges = order[:max_edges][::-1]  # largest last, so that they are drawn on top
        facts = f"{circuit.name}{self.names}{circuit.effect.tolist()}{circuit.weight.tolist()}{max_edges}"
        self.scope = "sx-g" + hashlib.sha256(facts.encode("utf-8", "replace")).hexdigest()[:8]

    def highlights(self) -> str:
        """CSS that shows a node's tooltip and edges on hover; browsers without `:has` show all edges alike."""
        rules = []
        for i in range(len(self.names)):
            on = f'.{self.scope}:has([data-k="{i}"]:is(:hover,:focus-visible))'
            rules += [f"{on} .sx-edge:not(.k{i}){{stroke-opacity:.05}}", f"{on} .k{i}{{stroke-opacity:1}}",
                      f"{on} .t{i}{{display:inline}}"]
        return "".join(rules)

    def rows(self) -> str:
        """Site names, which stay visible while the graph scrolls."""
        p = self.place
        names = [(p.output_y, str(self.circuit.task.get("metric", "output")))]
        names += [(y, self.circuit.sites[site].name) for site, y in p.rows.items()]
        text = "".join(
            f'<text x="{layout.LABELS - 8}" y="{y + 4:.1f}" text-anchor="end"><title>{attribute(name)}</title>'
            f"{_cut(name, layout.LABELS)}</text>" for y, name in names
        )
        return f'<svg width="{layout.LABELS:g}" height="{p.height:.0f}" aria-hidden="true">{text}</svg>'

    def svg(self) -> str:
        """Bands, edges, nodes and tooltips, in this order."""
        p = self.place
        bands = "".join(
            f'<line class="sx-rule" x1="0" x2="{p.width:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>' for y in p.rules
        )
        nodes = "".join(self._node(i) for i in range(len(self.names)))
        tips = "".join(self._tip(i) for i in range(len(self.names)))
        return (
            f'<svg width="{p.width:.0f}" height="{p.height:.0f}" viewBox="0 0 {p.width:.0f} {p.height:.0f}" role="group" '
            f'aria-label="{count(len(self.names), "node")}, {count(len(self.edges), "edge")}">{bands}{self._columns()}'
            f"<g>{''.join(self._edge(int(e)) for e in self.edges)}</g>{self._output()}<g>{nodes}</g><g>{tips}</g></svg>"
        )

    def left_out(self) -> str:
        """A note if not all edges are drawn."""
        n, drawn = len(self.circuit.source), len(self.edges)
        return f'<p class="sx-quiet">Showing the {drawn:,} largest of {count(n, "edge")}.</p>' if n > drawn else ""

    def _columns(self) -> str:
        out = []
        for position, (x, wide) in self.place.columns.items():
            piece = self.circuit.prompt[position] if 0 <= position < len(self.circuit.prompt) else ""
            y = self.place.height - layout.BOTTOM
            out.append(
                f'<line class="sx-rule" x1="{x:.1f}" x2="{x:.1f}" y1="{layout.TOP:g}" y2="{y:.1f}"/>'
                f'<text class="sx-piece" x="{x + wide / 2:.1f}" y="{y + 16:.1f}" text-anchor="middle">'
                f"<title>{attribute(piece)}</title>{_cut(piece, wide)}</text>"
                f'<text class="sx-quiet" x="{x + wide / 2:.1f}" y="{y + 30:.1f}" text-anchor="middle">{position}</text>'
            )
        return "".join(out)

    def _output(self) -> str:
        x, y = self.place.output
        return f'<rect class="sx-out" x="{x - 9:.1f}" y="{y - 7:.1f}" width="18" height="14" rx="3"/>'

    def _edge(self, e: int) -> str:
        source, target = int(self.circuit.source[e]), int(self.circuit.target[e])
        (x0, y0), (x1, y1) = self.place.nodes[source], self.place.end(target)
        bend = max((y0 - y1) / 2, 14)
        weight = self.circuit.weight[e]
        size = np.nan_to_num(np.abs(weight)) / (np.nan_to_num(np.abs(self.circuit.weight)).max() or 1.0)
        way = f"M{x0:.1f} {y0:.1f}C{x0:.1f} {y0 - bend:.1f} {x1:.1f} {y1 + bend:.1f} {x1:.1f} {y1:.1f}"
        bounds = _bounds(self.circuit.weight_low[e], self.circuit.weight_high[e])
        said = f"{self.circuit.node_name(source)} → {self.circuit.node_name(target)}: {number(weight)}{bounds}"
        ends = f"k{source}" + (f" k{target}" if target >= 0 else "")
        return (
            f'<path class="sx-edge {_sign(weight)} {ends}" d="{way}" '
            f'stroke-width="{0.6 + 4.4 * size:.2f}">'
            f"<title>{attribute(said, spaces=False, limit=200)}</title></path>"
        )

    def _node(self, i: int) -> str:
        x, y = self.place.nodes[i]
        r, effect = self.place.radius[i], self.circuit.effect[i]
        feature = int(self.circuit.nodes.feature[i])
        hit = f'<rect class="sx-hit" x="{x - 14:.1f}" y="{y - 14:.1f}" width="28" height="40"/>'
        ring = f'<circle class="sx-ring" cx="{x:.1f}" cy="{y:.1f}" r="{1.3 * r + 3:.1f}"/>' if self.ringed[i] else ""
        below = f'<text x="{x:.1f}" y="{y + 24:.1f}" text-anchor="middle">{feature}</text>' if feature >= 0 else ""
        said = f"{self.names[i]}, effect {number(effect)}" + (", consensus" if self.ringed[i] else "")
        return (
            f'<g class="sx-node {_sign(effect)}" data-k="{i}" tabindex="0" role="img" '
            f'aria-label="{attribute(said, spaces=False, limit=200)}">{hit}{_shape(feature, x, y, r)}{ring}{below}</g>'
        )

    def _tip(self, i: int) -> str:
        row = self.circuit
        lines = [self.names[i], *([plain(self.labels[self.names[i]], limit=60)] if self.labels[self.names[i]] else [])]
        lines.append(f"effect {number(row.effect[i])}{_bounds(row.low[i], row.high[i])}")
        lines.append(f"value {number(row.value[i])} → reference {number(row.reference[i])}")
        if row.inclusion[i] == row.inclusion[i]:
            lines.append(f"in {100 * row.inclusion[i]:.0f} % of bootstraps")
        wide, high = max(map(len, lines)) * _CHARACTER + 14, _LINE * len(lines) + 8
        x, y = self.place.nodes[i]
        left = min(max(x - wide / 2, 2), max(self.place.width - wide - 2, 2))
        top = y + 30 if y + 30 + high < self.place.height else y - 16 - high
        spans = "".join(
            f'<text x="{left + 7:.1f}" y="{top + _LINE * (k + 1):.1f}">{escape(line)}</text>'
            for k, line in enumerate(lines)
        )
        return (
            f'<g class="sx-tip t{i}" aria-hidden="true"><rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" '
            f'height="{high}" rx="4"/>{spans}</g>'
        )


def _shape(feature: int, x: float, y: float, r: float) -> str:
    """A circle (feature), diamond (error) or square (skip path) of about equal area."""
    if feature >= 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'
    a = r * (1.25 if feature == _ERROR else 0.9)
    if feature == _ERROR:
        return f'<path d="M{x:.1f} {y - a:.1f}l{a:.1f} {a:.1f}l{-a:.1f} {a:.1f}l{-a:.1f} {-a:.1f}z"/>'
    return f'<rect x="{x - a:.1f}" y="{y - a:.1f}" width="{2 * a:.1f}" height="{2 * a:.1f}"/>'


def _facts(circuit: "Circuit") -> str:
    scores = circuit.scores.get("circuit", circuit.scores)
    tests = [
        (name.replace("_", " "), number(scores[name]) + _bounds(*(scores.get(f"{name}_interval") or (None, None))))
        for name in ("faithfulness", "completeness", "edge_faithfulness") if isinstance(scores.get(name), float)
    ]
    items = [
        ("model", plain(str(circuit.model.get("name", "–")))), ("nodes", f"{len(circuit.nodes):,}"),
        *([("over positions", f"{circuit.n_features:,}")] if circuit.positional else []),
        ("edges", f"{len(circuit.source):,}"), *tests,
    ]
    cells = "".join(f"<div><dt>{inner(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in items)
    return f'<dl class="sx-facts">{cells}</dl>'


def _legend(circuit: "Circuit", consensus: float) -> str:
    """Legend of the shapes and colours that occur."""
    nodes, known = circuit.nodes, bool(np.isfinite(circuit.effect).any())
    some = [("pos", "<circle cx='9' cy='9' r='6'/>", "raises the metric when moved to its reference"),
            ("neg", "<circle cx='9' cy='9' r='5'/>", "lowers it, so it supports the answer")] if known else []
    if (nodes.feature == _ERROR).any():
        some.append(("any", "<path d='M9 2l7 7l-7 7l-7 -7z'/>", "error"))
    if (nodes.feature < _ERROR).any():
        some.append(("any", "<rect x='4' y='4' width='10' height='10'/>", "skip path"))
    if (circuit.inclusion >= consensus).any():
        ring = "<circle class='sx-ring' cx='9' cy='9' r='7'/>"
        some.append(("any", ring, f"in ≥ {100 * consensus:.0f} % of bootstraps"))
    items = "".join(
        f'<span><svg width="18" height="18" aria-hidden="true"><g class="sx-node sx-{kind}">{shape}</g></svg>{text}</span>'
        for kind, shape, text in some
    )
    items += f"<span>{'edges likewise, dashed where they lower it' if known else 'dashed edges are negative'}</span>"
    return f'<div class="sx-legend sx-graph-legend">{items}</div>'


def _table(circuit: "Circuit", labels: Mapping[str, str]) -> str:
    head = ("node", "effect", "interval", "value", "reference", "inclusion")
    rows = "".join(_table_row(row, labels.get(row["node"], "")) for row in circuit.table())
    cells = "".join(f'<th scope="col"{" class=sx-num" if k else ""}>{name}</th>' for k, name in enumerate(head))
    return (
        f'<details><summary>{count(len(circuit.nodes), "node")} as a table</summary><div class="sx-scroll">'
        f'<table class="sx-list"><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def _table_row(row: Mapping[str, Any], label: str) -> str:
    numbers = (number(row["effect"]), _bounds(row["low"], row["high"]).strip(" ()"), number(row["value"]),
               number(row["reference"]), number(row["inclusion"]))
    said = f' <span class="sx-quiet">{shown(label, limit=100)}</span>' if label else ""
    cells = "".join(f'<td class="sx-num">{escape(value)}</td>' for value in numbers)
    return f'<tr><th scope="row">{shown(row["node"], limit=100)}{said}</th>{cells}</tr>'


def _bounds(low: float | None, high: float | None) -> str:
    known = low is not None and high is not None and low == low and high == high
    return f" ({number(low)} to {number(high)})" if known else ""


def _sign(value: float) -> str:
    return "sx-pos" if value > 0 else "sx-neg" if value < 0 else "sx-any"


def _cut(text: str, wide: float) -> str:
    """As much of a text as fits, every character of it visible."""
    fits = max(int(wide / _CHARACTER) - 1, 1)
    text = plain(text, spaces=False, limit=None).strip() or plain(text, spaces=True, limit=None)
    return escape(text if len(text) <= fits else text[: max(fits - 1, 1)] + "…")
