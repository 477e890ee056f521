"""Write a circuit as a graph file for circuit-tracer and Neuronpedia.

The format assumes one dictionary per layer and names a node LAYER_FEATURE_POSITION. Here `layer` is always the block of
the site's output. If a block has several sites, their features share one numbering: the first site in causal order keeps
its own, the next start at the sum of the preceding d_sae (`metadata.saescope.sites[].first_feature`); errors and skip
paths are −1, −2, then −3, −4 and so on. With one site per layer, numbers are the SAE's own. Sites outside blocks count as
layer 0.

The metric is a single logit node with a token id beyond the vocabulary, as circuit-tracer numbers functions of logits,
with probability 1. Link weights are our edge weights: effects on the metric, not on the target's pre-activation.
`influence` is the share of Σ |effect| held by nodes of at least this size.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from analysis.circuits.formats.circuit_tracer.schema import (
    EMBEDDING,
    ERROR_TYPE,
    FEATURE,
    LOGIT,
    SCHEMA_VERSION,
    SKIP_TYPE,
    Graph,
    Link,
    Metadata,
    Node,
    QParams,
    paired,
)
from analysis.circuits.formats.store import plain
from analysis.circuits.graph import Circuit, SiteInfo, layer_of
from analysis.circuits.nodes import ERROR, OUTPUT
from analysis.circuits.view import params_of, view_of
from sae.errors import SaescopeError
from sae.io import files
from sae.io.paths import user_path

MEANING = (
    "A link's weight and a node's effect are changes of the metric when the source is patched to its reference value, the "
    "link's through its direct path alone; nodes that support the clean answer are negative. A node's influence is the "
    "share of the sum of |effect| held by nodes of at least its size. The logit node is the metric, not a token. "
    "layer is the block; a feature's number is its site's first_feature plus its index in the site's SAE."
)

ATTRIBUTION = "attribution graph"
"""`settings.kind` of Saescope's own attribution graphs."""
MEANING_OF_ATTRIBUTION = (
    "A link's weight is the source's direct effect on the target's pre-activation or logit, with attention patterns and "
    "norms frozen. A node's effect is the predicted change of the most probable logit when the node is ablated, over all "
    "paths. A node's influence is the share of all influence held by nodes with at least as much."
)


def write_graph(
    circuit: Circuit, path: Path | str, *, tokens: Sequence[int] | None = None, scan: str | None = None
) -> None:
    """Write a circuit as a graph file (JSON); see `to_graph`.

    Raises:
        SaescopeError: as `to_graph`.
    """
    graph = to_graph(circuit, tokens=tokens, scan=scan)
    files.write_json(user_path(path), plain(graph.model_dump(exclude_none=True)))


def to_graph(circuit: Circuit, *, tokens: Sequence[int] | None = None, scan: str | None = None) -> Graph:
    """Convert a circuit to their format; see the module docstring.

    A graph read from their format converts back unchanged, except for the scores and settings of its run.

    Args:
        circuit: circuit whose nodes have positions.
        tokens: token ids of the prompt, which become embedding nodes (without links); None leaves them out.
        scan: the model's id on Neuronpedia; default: the last part of its name.

    Raises:
        SaescopeError: nodes are summed over positions, or the prompt or the model's size is unknown.
    """
    theirs = any(info.variant == LOGIT for info in circuit.sites)
    _check(circuit, tokens, theirs)
    place = Numbering(circuit.sites, circuit.model["n_layers"])
    nodes = [*(_embedding(token, i) for i, token in enumerate(tokens or ())), *_nodes(circuit, place)]
    ids = [place.node_id(*triple) for triple in circuit.nodes.triples]
    if not theirs:
        nodes.append(_output(circuit))
        ids.append(nodes[-1].node_id)  # index −1 is OUTPUT
    links = [
        Link(source=ids[source], target=ids[target], weight=row["weight"], **_known(row, "low", "high", "inclusion"))
        for source, target, row in zip(circuit.source.tolist(), circuit.target.tolist(), circuit.rows("edges"), strict=True)
        if not (theirs and target == OUTPUT)
    ]
    return Graph(metadata=_metadata(circuit, place, scan), nodes=nodes, links=links,
                 qParams=QParams.model_validate(_params(circuit)))


def node_ids(circuit: Circuit) -> dict[str, str]:
    """The `node_id` of every node, by node name."""
    place = Numbering(circuit.sites, circuit.model.get("n_layers", 0))
    return {name: place.node_id(*triple) for name, triple in zip(circuit.names, circuit.nodes.triples, strict=True)}


def _params(circuit: Circuit) -> dict[str, Any]:
    """Initial view of a page: the imported `qParams`, updated with the user's view."""
    before = circuit.settings.get("qParams", {})
    return {**before, **params_of(view_of(circuit), node_ids(circuit))} if "view" in circuit.settings else before


class Numbering:
    """Numbering of features where several sites share a layer."""

    def __init__(self, sites: Sequence[SiteInfo], n_layers: int) -> None:
        self.kinds = [info.variant for info in sites]
        self.layers = [
            n_layers + 1 if info.variant == LOGIT else "E" if info.variant == EMBEDDING else layer_of(info.site) or 0
            for info in sites
        ]
        before = [[j for j in range(i) if self.layers[j] == self.layers[i]] for i in range(len(sites))]
        self.rank = [len(others) for others in before]
        self.first = [sum(sites[j].d_sae for j in others) for others in before]

    def feature(self, site: int, feature: int) -> int:
        """The feature's number in the layer; negative for errors and skip paths."""
        return self.first[site] + feature if feature >= 0 else feature - 2 * self.rank[site]

    def node_id(self, site: int, position: int, feature: int) -> str:
        """The node's id, unique in the graph."""
        return f"{self.layers[site]}_{self.feature(site, feature)}_{position}"


def _check(circuit: Circuit, tokens: Sequence[int] | None, theirs: bool) -> None:
    if not circuit.positional:
        raise SaescopeError(
            f"The nodes of {circuit.name} are summed over positions, but in this format every node belongs to a token; "
            "find the circuit with positions, on prompts of equal length."
        )
    last = int(circuit.nodes.position.max()) if len(circuit.nodes) else 0
    if last >= len(circuit.prompt):
        raise SaescopeError(f"{circuit.name} has a node at position {last}; its prompt has {len(circuit.prompt)} tokens.")
    if tokens is not None and len(tokens) != len(circuit.prompt):
        raise SaescopeError(f"{len(tokens)} token ids were given for a prompt of {len(circuit.prompt)} tokens.")
    needed = ("n_layers",) if theirs else ("n_layers", "d_vocab")
    if missing := [key for key in needed if key not in circuit.model]:
        raise SaescopeError(f"The circuit {circuit.name} doesn't record its model's {missing[0]}, which this format needs.")


def _metadata(circuit: Circuit, place: Numbering, scan: str | None) -> Metadata:
    name = str(circuit.model.get("name", ""))
    facts = {
        "slug": re.sub(r"[^a-z0-9]+", "-", circuit.name.lower()).strip("-") or "circuit",
        "scan": scan or name.rpartition(":")[2].rpartition("/")[2], "prompt": "".join(circuit.prompt),
        "prompt_tokens": list(circuit.prompt), "schema_version": SCHEMA_VERSION,
    }
    attribution = circuit.settings.get("kind") == ATTRIBUTION
    if any(info.variant == LOGIT for info in circuit.sites) and not attribution:
        return Metadata.model_validate({**circuit.settings.get("metadata", {}), **facts, "scan": scan or name})
    sites = [
        {**asdict(info), "site": info.site.model_dump(), "layer": place.layers[i], "first_feature": place.first[i],
         "rank": place.rank[i]} for i, info in enumerate(circuit.sites)
    ]
    own = {key: getattr(circuit, key) for key in ("name", "model", "task", "settings", "scores")}
    meaning = MEANING_OF_ATTRIBUTION if attribution else MEANING
    generator = {"name": "saescope", "version": files.code_version()}
    return Metadata.model_validate({
        **facts, "saescope": {**own, "sites": sites}, "info": {"description": meaning, "generator": generator},
    })


def _nodes(circuit: Circuit, place: Numbering) -> Iterator[Node]:
    influence, said = cumulative(circuit.effect), circuit.settings.get("clerps", {})
    before = circuit.settings.get("influence", {})
    probability = dict(zip(circuit.source[circuit.target == OUTPUT].tolist(),
                           circuit.weight[circuit.target == OUTPUT].tolist(), strict=True))
    for i, ((site, position, feature), row) in enumerate(zip(circuit.nodes.triples, circuit.rows("nodes"), strict=True)):
        name, kind = row["node"], circuit.sites[site].variant
        if kind == EMBEDDING:
            yield _embedding(feature, position, said.get(name, ""), **_numbers(row, before.get(name)))
        elif kind == LOGIT:
            share, numbers = probability.get(i, 0.0), _numbers(row, before.get(name))
            yield _logit(place.layers[site], feature, position, share, said.get(name, ""), **numbers)
        else:
            layer, number = int(place.layers[site]), place.feature(site, feature)
            yield Node(
                node_id=place.node_id(site, position, feature), layer=str(layer), ctx_idx=position,
                feature=paired(layer, number) if feature >= 0 else number, feature_type=_type(circuit.sites[site], feature),
                clerp=said.get(name, name if feature < 0 and circuit.sites[site].sae else ""),
                jsNodeId=f"{layer}_{number}-0",
                **_numbers(row, before.get(name, influence[i])),
            )


def _numbers(row: dict[str, Any], influence: float | None) -> dict[str, Any]:
    """The known measurements of a node."""
    known = _known(row, "effect", "low", "high", "reference", "inclusion")
    return {"influence": influence, "activation": row["value"], **known}


def _type(info: SiteInfo, feature: int) -> str:
    if feature < 0:
        return ERROR_TYPE if feature == ERROR else SKIP_TYPE
    return FEATURE if info.sae else info.variant  # an imported graph has no SAE, only its own feature type


def _output(circuit: Circuit) -> Node:
    """The metric's node, at the last token."""
    said = str(circuit.task.get("metric", "metric")).replace('"', "'")
    last = len(circuit.prompt) - 1
    return _logit(circuit.model["n_layers"] + 1, circuit.model["d_vocab"], last, 1.0, f'Output "{said}" (p=1.000)', True)


def _logit(
    layer: int | str, token: int, position: int, share: float, said: str, target: bool = False, **numbers: Any
) -> Node:
    return Node(
        node_id=f"{layer}_{token}_{position}", feature=token, layer=str(layer), ctx_idx=position, feature_type=LOGIT,
        token_prob=share, is_target_logit=target, jsNodeId=f"L_{token}-{position}", clerp=said, **numbers,
    )


def _embedding(token: int, position: int, said: str = "", **numbers: Any) -> Node:
    return Node(
        node_id=f"E_{token}_{position}", feature=position, layer="E", ctx_idx=position, feature_type=EMBEDDING,
        jsNodeId=f"E_{token}-{position}", clerp=said, **numbers,
    )


def cumulative(effect: Float64[np.ndarray, " n"]) -> list[float | None]:
    """Share of Σ |effect| held by nodes of at least this size; ties keep their order; None for NaN."""
    size = np.nan_to_num(np.abs(effect))
    order = np.argsort(-size, kind="stable")
    share = np.empty(len(size))
    share[order] = np.cumsum(size[order]) / max(size.sum(), 1e-300)
    return [None if value != value else one for value, one in zip(effect.tolist(), share.tolist(), strict=True)]


def _known(row: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: row[key] for key in keys if row[key] is not None}
