"""A circuit as a networkx graph holds every node, edge and number."""

from analysis.circuits.formats.digraph import to_networkx
from tests.analysis.circuits.graphs import circuit


def test_nodes_and_edges_carry_their_rows() -> None:
    some = circuit()
    graph = to_networkx(some)
    assert set(graph) == {*some.names, "output"} and graph.number_of_edges() == len(some.source)
    for row in some.rows("nodes"):
        assert graph.nodes[row["node"]] == {key: value for key, value in row.items() if key != "node"}
    for row in some.rows("edges"):
        assert graph.edges[row["source"], row["target"]]["weight"] == row["weight"]
    assert graph.graph["scores"] == some.scores
