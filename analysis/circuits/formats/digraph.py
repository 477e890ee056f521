"""A circuit as a networkx graph."""

import networkx

from analysis.circuits.graph import OUTPUT_NAME, Circuit


def to_networkx(circuit: Circuit) -> networkx.DiGraph:
    """Convert a circuit to networkx: nodes by name, edges, and `output`; attributes are those of `Circuit.rows`.

    Edges carry `weight`; the graph carries `name`, `model`, `task`, `settings` and `scores`.
    """
    graph = networkx.DiGraph(
        name=circuit.name, model=circuit.model, task=circuit.task, settings=circuit.settings, scores=circuit.scores
    )
    for row in circuit.rows("nodes"):
        graph.add_node(row["node"], **{key: value for key, value in row.items() if key != "node"})
    graph.add_node(OUTPUT_NAME, kind=OUTPUT_NAME)
    for row in circuit.rows("edges"):
        graph.add_edge(row["source"], row["target"], **{k: v for k, v in row.items() if k not in ("source", "target")})
    return graph
