"""Pruning leaves no orphans, by networkx' own reachability."""

import networkx
import numpy as np
import pytest

from analysis.circuits.graph import Circuit
from analysis.circuits.nodes import OUTPUT
from analysis.circuits.prune import connected, prune, without_orphans
from tests.analysis.circuits.graphs import circuit


def graph_of(some: Circuit) -> networkx.DiGraph:
    graph = networkx.DiGraph()
    graph.add_nodes_from([*some.names, "output"])
    graph.add_edges_from((row["source"], row["target"]) for row in some.table("edges"))
    return graph


@pytest.mark.parametrize("seed", range(12))
def test_what_stays_is_what_reaches_the_output(seed: int) -> None:
    whole = circuit(seed, e=50)
    part = without_orphans(whole)
    assert set(part.names) == networkx.ancestors(graph_of(whole), "output")
    assert set(part.names) == networkx.ancestors(graph_of(part), "output")
    kept = set(part.names) | {"output"}
    assert part.table("edges") == [r for r in whole.table("edges") if {r["source"], r["target"]} <= kept]
    assert without_orphans(part) is part


@pytest.mark.parametrize("seed", range(12))
def test_grounded_features_are_driven_too(seed: int) -> None:
    whole = circuit(seed, e=120)
    part = prune(whole, grounded=True)
    graph = graph_of(part)
    assert set(part.names) == networkx.ancestors(graph, "output")
    first = whole.nodes.site.min()
    for name, site, feature in zip(part.names, part.nodes.site, part.nodes.feature, strict=True):
        assert site == first or feature < 0 or graph.in_degree(name)
    # nothing more was dropped than had to go, one by one
    full = graph_of(whole)
    begins = {n for n, s, f in zip(whole.names, whole.nodes.site, whole.nodes.feature, strict=True) if s == first or f < 0}
    while bad := [n for n in full if n != "output" and (
            not networkx.has_path(full, n, "output") or (n not in begins and not full.in_degree(n)))]:
        full.remove_node(bad[0])
    assert set(full) == set(part.names) | {"output"}


def test_thresholds_and_counts() -> None:
    whole = circuit(3, e=200)
    part = prune(whole, min_effect=0.5, min_weight=0.3)
    assert len(part.nodes) and (np.abs(part.effect) >= 0.5).all() and (np.abs(part.weight) >= 0.3).all()
    few = prune(whole, n_nodes=10, n_edges=12)
    assert 0 < len(few.nodes) <= 10 and 0 < len(few.source) <= 12
    assert np.abs(few.effect).min() >= np.sort(np.abs(whole.effect))[-10]
    assert set(few.names) == networkx.ancestors(graph_of(few), "output")
    assert len(prune(whole, n_nodes=0).nodes) == 0


def test_an_edge_into_nothing_is_no_way_to_the_output() -> None:
    nodes = circuit().nodes.take(np.arange(4))
    chain = np.array([0, 1, 2]), np.array([1, 2, OUTPUT])
    assert connected(nodes, *chain).tolist() == [True, True, True, False]
    assert not connected(nodes, np.array([0, 1]), np.array([1, 2])).any()
