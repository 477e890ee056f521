"""A drawn circuit: every node and edge is there with its numbers, nothing overlaps, nothing of a text acts."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.circuits.formats.circuit_tracer.reading import read_graph
from analysis.render.graph_layout import placed
from tests.analysis.circuits.formats.test_circuit_tracer import theirs, write
from tests.analysis.circuits.graphs import PROMPT, circuit
from tests.analysis.markup import Page, check_visible
from tests.analysis.samples import HOSTILE


def test_every_node_and_edge_is_drawn() -> None:
    some = circuit(n=80, e=200)
    page = Page(some.figure().page())
    drawn = [e for e in page.elements if e.attributes.get("role") == "img"]
    assert len(drawn) == len(some.nodes)
    for element in drawn:
        i = int(element.attributes["data-k"])
        assert element.attributes["aria-label"].startswith(f"{some.names[i]}, effect")
        assert ("sx-pos" in element.attributes["class"]) == (some.effect[i] > 0)
        assert ("consensus" in element.attributes["aria-label"]) == (some.inclusion[i] >= 0.9)
    edges = [e for e in page.elements if "sx-edge" in e.attributes.get("class", "")]
    assert len(edges) == len(some.source)
    ends = {(f"k{s}", f"k{t}") if t >= 0 else (f"k{s}",) for s, t in zip(some.source, some.target, strict=True)}
    assert {tuple(e.attributes["class"].split()[2:]) for e in edges} == ends
    tips = [e.text for e in page.elements if "sx-tip" in e.attributes.get("class", "")]
    assert [tip.startswith(name) for tip, name in zip(tips, some.names, strict=True)] == [True] * len(tips)
    assert len(page.having("tr")) == 1 + len(some.nodes)


def test_widths_and_areas_go_with_what_they_show() -> None:
    some = circuit(n=80, e=200)
    radii = np.array(placed(some).radius)
    order = np.argsort(np.abs(some.effect))
    assert (np.diff(radii[order]) >= 0).all() and math.isclose(radii.max(), 11.0)
    html = some.figure().html
    widths = [float(w) for w in re.findall(r'stroke-width="([\d.]+)"', html)]
    assert widths == sorted(widths)  # the largest lie on top
    html = some.figure(max_edges=5).html
    assert len(re.findall('class="sx-edge', html)) == 5 and "5 largest of" in html


def test_nodes_do_not_overlap_and_edges_go_up() -> None:
    for some in (circuit(n=100, e=200), circuit(n=100, positional=False)):
        at = placed(some)
        points = np.array(at.nodes)
        gaps = np.hypot(*(points[:, None] - points[None]).T) + 1e9 * np.eye(len(points))
        assert gaps.min() > 30
        assert (points > 0).all() and (points[:, 0] < at.width).all() and (points[:, 1] < at.height).all()
        assert all(at.nodes[s][1] > at.end(t)[1] for s, t in zip(some.source.tolist(), some.target.tolist(), strict=True))
        for (x, _), position in zip(at.nodes, some.nodes.position.tolist(), strict=True):
            if some.positional:
                start, wide = at.columns[position]
                assert start < x < start + wide


def test_hostile_texts_are_only_text() -> None:
    texts = list(HOSTILE)[: len(PROMPT)]
    for k in range(0, len(HOSTILE), len(PROMPT)):
        texts = [HOSTILE[(k + i) % len(HOSTILE)] for i in range(len(PROMPT))]
        some = circuit(prompt=tuple(texts), name=texts[0], task={"metric": texts[1]}, model={"name": texts[2]})
        page = Page(some.figure(labels={some.names[0]: texts[3]}).page())
        check_visible(page.text)


def test_labels_reach_tips_and_table() -> None:
    some = circuit()
    label = "plural nouns"
    page = Page(some.figure(labels={some.names[0].rpartition("@")[0]: label}).page())
    named = [e.text for e in page.elements if "sx-tip" in e.attributes.get("class", "") and label in e.text]
    assert named and all(tip.startswith(some.names[0].rpartition("@")[0]) for tip in named)
    assert any(label in e.text for e in page.having("th"))


def test_equal_circuits_draw_alike_and_save_a_page(tmp_path: Path) -> None:
    assert circuit().figure().page() == circuit().figure().page() != circuit(1).figure().page()
    circuit().figure().save(tmp_path / "graph.html")
    assert (tmp_path / "graph.html").read_text() == circuit().figure().page()
    assert circuit()._repr_html_().startswith("<style>")


def test_odd_circuits_are_drawn_too(tmp_path: Path) -> None:
    nothing = circuit().take(np.zeros(len(circuit().nodes), dtype=bool))
    Page(nothing.figure().page())
    foreign = read_graph(write(tmp_path / "tiny.json", theirs()))
    page = Page(foreign.figure(labels=foreign.settings["clerps"]).page())
    assert len([e for e in page.elements if e.attributes.get("role") == "img"]) == len(foreign.nodes)
    flat = replace(circuit(), effect=np.zeros(len(circuit().nodes)))
    Page(flat.figure().page())
