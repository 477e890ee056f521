"""Views: from an address and back, through graph files, and what is refused."""

import json
from pathlib import Path
from urllib.parse import urlencode

import pytest

from analysis.circuits.formats.circuit_tracer.reading import read_graph
from analysis.circuits.formats.circuit_tracer.writing import write_graph
from analysis.circuits.view import View, view_of, with_view
from analysis.render.circuit_data import graph_data
from sae.errors import SaescopeError
from tests.analysis.circuits.graphs import attributed, circuit


def some_view(names: list[str]) -> View:
    return View(
        pins=(names[3], names[1], names[2]), groups=(("keys & <b>", (names[1], names[2])),), labels={names[0]: "plural?"},
        judged={names[3]: True, names[4]: False}, clicked=names[0], node_share=0.8, edge_share=0.5,
    )


def test_a_view_is_an_address_and_nodes_for_a_notebook() -> None:
    graph = circuit()
    view = some_view(graph.names)
    url = "http://localhost:8501/?" + urlencode({"page": "circuits", "circuit": "keys", "view": view.text()})
    assert View.read(url) == View.read(view.text()) == view.of(graph) == view
    assert View.read("http://localhost:8501/?page=circuits") == View()
    assert view.nodes(graph).triples == graph.select(*view.pins).triples
    assert view.nodes(graph, "keys & <b>").triples == graph.select(*graph.names[1:3]).triples
    assert "n" not in json.loads(View(pins=("a",)).text())


@pytest.mark.parametrize("theirs", [False, True])
def test_a_graph_file_brings_its_view_back(theirs: bool, tmp_path: Path) -> None:
    graph = circuit()
    if theirs:  # ids of their own kind, no settings of ours
        write_graph(attributed(), tmp_path / "theirs.json")
        graph = read_graph(tmp_path / "theirs.json")
    view = some_view(graph.names)
    write_graph(with_view(graph, view), tmp_path / "graph.json")
    back = read_graph(tmp_path / "graph.json")
    assert view_of(back) == view and back.names == graph.names
    params = json.loads((tmp_path / "graph.json").read_text())["qParams"]
    ids = {node["node_id"] for node in json.loads((tmp_path / "graph.json").read_text())["nodes"]}
    assert len(params["pinnedIds"]) == 3 and set(params["pinnedIds"]) <= ids and params["supernodes"][0][0] == "keys & <b>"
    assert view_of(graph) == View()


def test_what_a_circuit_has_not_is_left_out() -> None:
    graph = circuit()
    names = graph.names
    view = View(pins=("x", names[0], names[0]), groups=(("a", (names[1], "y")), ("b", (names[2], names[3])),
                ("c", (names[3], names[4]))), labels={"z": "?"}, judged={"z": True}, clicked="z")
    assert view.of(graph) == View(pins=(names[0],), groups=(("b", (names[2], names[3])),))
    with pytest.raises(SaescopeError, match="x"):
        view.nodes(graph)


@pytest.mark.parametrize("bad", ["{", "[]", '{"p": 3}', '{"n": 7}', '{"q": 1}', "x?view=%7B", '{"g": [["a"]]}'])
def test_what_is_no_view_is_refused(bad: str) -> None:
    with pytest.raises(SaescopeError):
        View.read(bad)


def test_the_browser_gets_numbers_and_plain_text() -> None:
    graph = circuit(n=80, e=200)
    data = graph_data(graph)
    nodes, edges = data["nodes"], data["edges"]
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert all(len(column) == len(graph.nodes) for column in nodes.values())
    assert all(len(column) == len(graph.source) for column in edges.values())
    largest = max(range(len(graph.nodes)), key=lambda i: abs(graph.effect[i]))
    assert nodes["share"][largest] == min(nodes["share"]) and max(nodes["share"]) == pytest.approx(1)
    assert data["id"] == graph_data(circuit(n=80, e=200))["id"] != graph_data(circuit(n=81, e=200))["id"]
    with pytest.raises(SaescopeError, match="nodes"):
        graph_data(large())


def large():
    """More nodes than a page shows."""
    import numpy as np

    from analysis.circuits.nodes import Nodes

    n = 20_001
    nodes = Nodes(np.zeros(n, dtype=np.int64), np.ones(n, dtype=np.int64), np.arange(n))
    zero, none = np.zeros(n), np.zeros(0)
    ends = np.zeros(0, dtype=np.int64)
    return circuit(nodes=nodes, effect=zero, low=zero, high=zero, value=zero, reference=zero, inclusion=zero, source=ends,
                   target=ends, weight=none, weight_low=none, weight_high=none, edge_inclusion=none)
