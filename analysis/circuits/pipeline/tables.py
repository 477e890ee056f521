"""Export a circuit's scores for a results page: tables as CSV, the curves as one SVG."""

from pathlib import Path
from typing import Any

from analysis.circuits.checks.curve import Curve
from analysis.circuits.graph import Circuit
from sae.io.files import write_bytes
from sae.io.paths import user_path


def curves_of(circuit: Circuit) -> list[Curve]:
    """The measured curves of a circuit, MLP activations last."""
    scores = circuit.scores
    others = [scores["mlp_activations"]] if "mlp_activations" in scores else []
    return [Curve.read(one) for one in [*scores.get("curves", []), *others]]


def write_results(circuit: Circuit, folder: str | Path) -> list[Path]:
    """Write the tables and the plot; equal circuits give equal bytes.

        NAME.csv               faithfulness of the circuit: errors as nodes, kept, dropped; edges alone; completeness
        NAME-curves.csv, .svg  over the number of nodes, with the baselines; and over the number of edges
        NAME-estimators.csv    agreement of estimators with exact ablation, site by site

    Returns:
        Paths of the written files.
    """
    from analysis.render.figures.faithfulness import picture
    from analysis.reproduce.tables import write_table

    folder, scores = user_path(folder), circuit.scores
    tables = {
        "": _numbers(scores.get("circuit", {})), "-curves": [row for curve in curves_of(circuit) for row in _points(curve)],
        "-edges": _edge_points(scores.get("edge_curve")), "-specificity": scores.get("specificity", []),
        "-estimators": scores.get("agreement", []),
    }
    written = []
    for end, rows in tables.items():
        if rows:
            written.append(folder / f"{circuit.name}{end}.csv")
            write_table(written[-1], [_flat(row) for row in rows])
    if curves_of(circuit):
        written.append(folder / f"{circuit.name}-curves.svg")
        write_bytes(written[-1], picture(curves_of(circuit)).encode())
    return written


def _numbers(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per number, with its interval if there is one."""
    names = [name for name in found if not name.endswith("_interval")]
    rows = [(name, found[name], found.get(f"{name}_interval") or (None, None)) for name in names]
    return [{"what": name, "value": value, "low": low, "high": high} for name, value, (low, high) in rows]


def _points(curve: Curve) -> list[dict[str, Any]]:
    return [
        {"curve": curve.name, "n_nodes": n, "n_summed": summed, "value": v.value, "low": v.low, "high": v.high}
        for n, summed, v in zip(curve.n_nodes, curve.n_summed, curve.values, strict=True)
    ]


def _edge_points(plain: dict[str, Any] | None) -> list[dict[str, Any]]:
    if plain is None:
        return []
    points = zip(plain["n_edges"], plain["n_nodes"], plain["values"], strict=True)
    return [{"n_edges": edges, "n_nodes": nodes, **value} for edges, nodes, value in points]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Split intervals into two columns."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        if key.endswith("_interval"):
            out["low"], out["high"] = value or (None, None)
        else:
            out[key] = value
    return out
