"""A circuit as text for a terminal: test results, then the largest nodes and edges."""

from collections.abc import Sequence
from typing import Any

from analysis.circuits.graph import Circuit
from analysis.render.text import plain

_SCORES = {
    "faithfulness": "faithfulness, all else ablated",
    "faithfulness_errors_kept": "… with all errors kept",
    "faithfulness_errors_dropped": "… with no error kept",
    "edge_faithfulness": "… through its edges alone",
    "all_features": "all features, no errors",
    "completeness": "left without the circuit (completeness)",
}


def circuit_lines(circuit: Circuit, n: int = 10) -> list[str]:
    """Format a circuit as lines.

    Args:
        circuit: a circuit, with or without scores.
        n: number of nodes and of edges to list, largest first.
    """
    name, task = (plain(str(part), limit=None) for part in (circuit.name, circuit.task.get("name", "")))
    out = [
        f"{name}: {len(circuit.nodes)} nodes ({circuit.n_features} over all positions), {len(circuit.source)} edges, "
        f"{len(circuit.sites)} sites; task {task} on {plain(str(circuit.model.get('name', '?')), limit=None)}"
    ]
    out += [*_tested(circuit.scores), *_curves(circuit.scores), *_attribution(circuit.scores)]
    if n:
        out += ["", "largest nodes: change of the metric when one moves to its reference", *_nodes(circuit, n)]
    if n and len(circuit.source):
        out += ["", "largest edges", *_edges(circuit, n)]
    return out


def _tested(scores: dict[str, Any]) -> list[str]:
    found = scores.get("circuit", {})
    return [f"  {title:<42} {_interval(found, key)}" for key, title in _SCORES.items() if key in found]


def _curves(scores: dict[str, Any]) -> list[str]:
    """Each curve's value at the smallest size ≥ the circuit's, and its area."""
    curves = [*scores.get("curves", []), *([scores["mlp_activations"]] if "mlp_activations" in scores else [])]
    n = scores.get("circuit", {}).get("n_nodes", 0)
    lines = []
    for curve in curves:
        at = next((i for i, size in enumerate(curve["n_nodes"]) if size >= n), len(curve["n_nodes"]) - 1)
        value, size = _number(curve["values"][at]["value"]), curve["n_nodes"][at]
        name = plain(curve["name"], limit=None)
        lines.append(f"  {name:<18} {value} at {size} nodes, area over log k {_number(curve['area'])}")
    return ["curves on held-out examples", *lines] if lines else []


def _attribution(scores: dict[str, Any]) -> list[str]:
    """Scores of an attribution graph."""
    if "replacement_score" not in scores:
        return []
    counts, pruned, gap = scores["counts"], scores["pruned"], scores.get("frozen_patterns")
    both = [(name, scores[f"{name}_score"], pruned[f"{name}_score"]) for name in ("replacement", "completeness")]
    lines = [f"  {name:<42} {_number(whole)}, {_number(part)} pruned" for name, whole, part in both]
    lines.append(
        f"  {counts['n_nodes']:,} nodes and {counts['n_edges']:,} edges before pruning, of {counts['n_active_features']:,} "
        "active features"
    )
    if gap:
        lines.append(
            f"  live patterns change {int(gap['n_interventions'])} interventions by {gap['pattern_gap']:.0%}, everything "
            f"live by {gap['live_gap']:.0%}; predictions correlate with {_number(gap.get('agreement_live'))}"
        )
    return lines


def _nodes(circuit: Circuit, n: int) -> list[str]:
    return [
        f"  {_number(row['effect']):>8} {_between(row['low'], row['high']):<18} {row['node']}"
        f"{_where(circuit, row['position'])}"
        for row in circuit.table("nodes")[:n]
    ]


def _edges(circuit: Circuit, n: int) -> list[str]:
    return [
        f"  {_number(row['weight']):>8} {_between(row['low'], row['high']):<18} {row['source']} → {row['target']}"
        for row in circuit.table("edges")[:n]
    ]


def _where(circuit: Circuit, position: int | None) -> str:
    if position is None or position >= len(circuit.prompt):
        return ""
    return f"  at {plain(circuit.prompt[position])!r}"


def _interval(found: dict[str, Any], key: str) -> str:
    bounds: Sequence[float] | None = found.get(f"{key}_interval")
    return _number(found[key]) + (f" {_between(*bounds)}" if bounds else "")


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.3g}, {high:.3g}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
