"""A circuit's graph as numbers and texts for the component that draws it in the browser; texts are shown as text only."""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.render.text import plain
from sae.errors import SaescopeError

if TYPE_CHECKING:
    from analysis.circuits.graph import Circuit

MAX_NODES, MAX_EDGES = 20_000, 200_000
"""Limits of what a page can usefully show."""
_ERROR = -1


def graph_data(circuit: "Circuit") -> dict[str, Any]:
    """Node and edge columns in JSON types.

        nodes   name, text, row, position, kind, value, effect, low, high, inclusion, share
        edges   source, target, weight, inclusion, share        target −1 is the output

    `share` is used by the sliders: the cumulative share of influence (|effect| if influence is unknown, |weight| for edges)
    of an entry and all larger ones. Kinds: feature, error, skip, token, logit.

    Raises:
        SaescopeError: the graph is too large to display.
    """
    n, e = len(circuit.nodes), len(circuit.source)
    if n > MAX_NODES or e > MAX_EDGES:
        raise SaescopeError(
            f"The graph {circuit.name} has {n:,} nodes and {e:,} edges; a page shows at most {MAX_NODES:,} and "
            f"{MAX_EDGES:,}, so prune it first (analysis.circuits.prune, or the thresholds of the tool that created it)."
        )
    known, said = circuit.settings.get("influence", {}), circuit.settings.get("clerps", {})
    kinds = [_kind(circuit.sites[site].variant, feature) for site, _, feature in circuit.nodes.triples]
    size = np.nan_to_num(np.abs(circuit.effect))
    of_effect = _shares(size if size.any() else np.ones(n))
    share = [known.get(name, float(of_effect[i])) for i, name in enumerate(circuit.names)]
    named = enumerate(zip(circuit.names, kinds, strict=True))
    texts = [_text(circuit, i, kind, str(said.get(name, ""))) for i, (name, kind) in named]
    nodes = {
        "name": circuit.names, "text": texts, "kind": kinds, "row": circuit.nodes.site.tolist(),
        "position": circuit.nodes.position.tolist(), "share": share, "feature": circuit.nodes.feature.tolist(),
        **{key: _numbers(getattr(circuit, key)) for key in ("value", "effect", "low", "high", "inclusion")},
    }
    weight = np.nan_to_num(np.abs(circuit.weight))
    edges = {
        "source": circuit.source.tolist(), "target": circuit.target.tolist(), "weight": _numbers(circuit.weight),
        "inclusion": _numbers(circuit.edge_inclusion), "share": _shares(weight).tolist(),
    }
    prompt = [plain(piece, limit=40) for piece in circuit.prompt]
    found = {
        "title": plain(circuit.name), "rows": [plain(info.name) for info in circuit.sites], "prompt": prompt,
        "nodes": nodes, "edges": edges, "scored": bool({"token", "logit"} <= set(kinds)),
        "metric": plain(str(circuit.task.get("metric", "output"))),
    }
    found["id"] = hashlib.sha256(repr((found["title"], nodes, edges)).encode("utf-8", "replace")).hexdigest()[:16]
    return found


def _kind(variant: str, feature: int) -> str:
    if variant in ("embedding", "logit"):
        return "token" if variant == "embedding" else "logit"
    return "feature" if feature >= 0 else "error" if feature == _ERROR else "skip"


def _text(circuit: "Circuit", i: int, kind: str, said: str) -> str:
    """A node's label: from its file, or its token."""
    if said:
        return plain(said, limit=120)
    position = int(circuit.nodes.position[i])
    piece = circuit.prompt[position] if 0 <= position < len(circuit.prompt) else ""
    return plain(f"token {piece!r}") if kind == "token" else ""


def _shares(size: np.ndarray) -> np.ndarray:
    """Cumulative share of each number and all larger ones."""
    order = np.argsort(-size, kind="stable")
    share = np.empty(len(size))
    share[order] = np.cumsum(size[order]) / max(float(size.sum()), 1e-300)
    return share


def _numbers(column: np.ndarray) -> list[float | None]:
    return [float(f"{x:.6g}") if x == x and abs(x) != np.inf else None for x in column.tolist()]
