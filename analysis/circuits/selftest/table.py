"""The self-test: every estimator on models whose circuit is known, as a table.

AUROC is the probability that a true node has a larger |effect| than another node that also changes, both drawn from the
features of all examples. For edges it is over all causally possible pairs of nodes that change.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from analysis.circuits.effects.agreement import pearson
from analysis.circuits.effects.direct import direct_effects
from analysis.circuits.effects.edges import edge_effects, edge_weights
from analysis.circuits.effects.nodes import Method, node_effects
from analysis.circuits.nodes import OUTPUT, EdgeEffects, NodeEffects, Nodes
from analysis.circuits.selftest.boolean import boolean_two_hops
from analysis.circuits.selftest.compiled import compiled_induction
from analysis.circuits.selftest.doubling import doubling_cases
from analysis.circuits.selftest.known import ROUNDING, Known, moving_features
from analysis.circuits.selftest.lookup import copy_head, two_hop_lookup
from analysis.circuits.selftest.planted import planted_dictionary

MODELS: tuple[Callable[[], Known], ...] = (
    copy_head, two_hop_lookup, boolean_two_hops, compiled_induction, planted_dictionary,
)
METHODS: tuple[Method, ...] = ("attribution", "relp", "ig", "exact")
Row = dict[str, Any]
DEFAULT: Method = "ig"
"""Estimator that the thresholds apply to."""
AUROC, MARGIN, LINEAR, INDIRECT, DOUBLING = 0.95, 0.02, 1e-6, 1e-6, 1e-3
"""Thresholds: minimum AUROC of the default estimator, or how far it may be below exact ablation's; the largest difference
from exact ablation on linear models; the largest effect of an indirect pair, as a share of the largest edge; the largest
gap in the doubling test."""


def selftest() -> list[Row]:
    """Run the self-test: one row per model and estimator, for nodes and edges, and one per case of the doubling test."""
    rows: list[Row] = []
    for make in MODELS:
        known = make()
        rows += node_rows(known)
        rows += edge_rows(known) if known.edges is not None else []
    return rows + [
        {"model": case.name, "what": "doubling", "largest_gap": case.gap, "passed": case.gap < DOUBLING}
        for case in doubling_cases()
    ]


def node_rows(known: Known, methods: Sequence[Method] = METHODS) -> list[Row]:
    """How well each estimator separates true nodes from others, and how far it is from exact ablation."""
    moving = moving_features(known.circuit, known.examples)
    effects = {
        method: node_effects(known.circuit, known.examples, known.task.metric, method=method)
        for method in dict.fromkeys((*methods, "exact"))
    }
    true, entries = _true(known, moving), moving.values.toarray() != 0
    flat = {method: _of(found, moving.nodes)[entries] for method, found in effects.items()}
    exact = flat["exact"]
    own = auroc(exact, true[entries])
    rows: list[Row] = []
    for method in methods:
        row: Row = {"model": known.name, "what": "nodes", "estimator": method, "n_true": int(true[entries].sum()),
               "n_others": int((~true[entries]).sum()), "auroc": auroc(flat[method], true[entries]),
               "correlation": _correlation(flat[method], exact), "largest_gap": float(np.abs(flat[method] - exact).max())}
        if method == DEFAULT:
            row["passed"] = row["auroc"] >= min(AUROC, own - MARGIN)
        if known.linear:
            row["passed"] = row.get("passed", True) and row["largest_gap"] < LINEAR
        rows.append(row)
    return rows


def edge_rows(known: Known) -> list[Row]:
    """How well edge estimates, and exact ablation of direct paths, separate true edges from other pairs of nodes."""
    assert known.edges is not None
    nodes = moving_features(known.circuit, known.examples).nodes
    metric = known.task.metric
    weights = edge_weights(known.circuit, known.examples, metric)
    both = {
        "ig": edge_effects(known.circuit, known.examples, metric, nodes, weights=weights),
        "exact": direct_effects(known.circuit, known.examples, metric, nodes, weights=weights),
    }
    pairs = _pairs(nodes)
    rows: list[Row] = []
    sizes = {method: _sizes(found, pairs) for method, found in both.items()}
    true, indirect = (np.array([pair in which for pair in pairs]) for which in (known.edges, known.indirect))
    for method, size in sizes.items():
        leak = float(size[indirect].max() / size.max())
        row: Row = {"model": known.name, "what": "edges", "estimator": method, "n_true": int(true.sum()),
                    "n_others": int((~true).sum()), "auroc": auroc(size, true),
                    "correlation": _correlation(size, sizes["exact"]),
                    "largest_gap": float(np.abs(size - sizes["exact"]).max()), "indirect": leak}
        if method == DEFAULT:
            row["passed"] = row["auroc"] >= min(AUROC, auroc(sizes["exact"], true) - MARGIN) and leak < INDIRECT
        rows.append(row)
    return rows


def auroc(size: Float64[np.ndarray, " n"], true: Bool[np.ndarray, " n"]) -> float:
    """Probability that a true one has the larger |size|; ties up to rounding count half."""
    from scipy.stats import rankdata

    size = np.abs(size)
    ranks = rankdata(np.round(size / max(size.max(), 1e-300), -round(np.log10(ROUNDING))))
    n_true, n_others = int(true.sum()), int((~true).sum())
    return float((ranks[true].sum() - n_true * (n_true + 1) / 2) / (n_true * n_others))


def passed(rows: Sequence[Row]) -> bool:
    """Whether every check passed."""
    return all(row.get("passed", True) for row in rows)


def shown(rows: Sequence[Row]) -> str:
    """The table as text for a terminal."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the table as CSV."""
    from analysis.reproduce.tables import write_table

    write_table(path, [{key: _cell(value) for key, value in row.items()} for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    # rounding differs between machines
    return f"<{ROUNDING:g}" if 0 < abs(value) < ROUNDING else f"{value:.3g}"


def _true(known: Known, moving: NodeEffects) -> Bool[np.ndarray, "n_examples n_nodes"]:
    """Mask of true nodes per example; all of them must change."""
    place = {triple: i for i, triple in enumerate(moving.nodes.triples)}
    true = np.zeros(moving.values.shape, dtype=bool)
    for example, nodes in enumerate(known.nodes):
        true[example, [place[node] for node in nodes]] = True
    assert (moving.values.toarray() != 0)[true].all(), "a true node does not move"
    return true


def _of(found: NodeEffects, nodes: Nodes) -> Float64[np.ndarray, "n_examples n_nodes"]:
    """Effects of the given nodes, dense."""
    place = {triple: i for i, triple in enumerate(found.nodes.triples)}
    return found.values.toarray()[:, [place[triple] for triple in nodes.triples]]


def _correlation(found: Float64[np.ndarray, " n"], exact: Float64[np.ndarray, " n"]) -> float | None:
    value = pearson(found, exact)
    return None if np.isnan(value) else value


def _pairs(nodes: Nodes) -> list[tuple[tuple[int, int, int], Any]]:
    """All pairs of nodes where the second can depend on the first, and every node with the metric."""
    triples = nodes.triples
    edges = [(u, d) for u in triples for d in triples if u[0] < d[0] and u[1] <= d[1]]
    return edges + [(u, OUTPUT) for u in triples]


def _sizes(edges: EdgeEffects, pairs: Sequence[Any]) -> Float64[np.ndarray, " n_pairs"]:
    """Mean |effect| over examples, for every pair."""
    triples = edges.nodes.triples
    mean = np.asarray(abs(edges.values).mean(axis=0)).ravel()
    ends = zip(edges.source.tolist(), edges.target.tolist(), strict=True)
    found = {(triples[u], OUTPUT if d == OUTPUT else triples[d]): size for (u, d), size in zip(ends, mean, strict=True)}
    return np.array([found.get(pair, 0.0) for pair in pairs])
