"""Read a circuit-tracer or Neuronpedia graph file as a circuit.

Saescope's own graphs are read back as written. Their graphs become read-only circuits: one site per layer and kind of
feature, with an unknown SAE; sites for token embeddings and for logits, whose features are token ids; an edge from each
logit to the output, weighted by its probability as in their influence. Their weights are changes of the target's
pre-activation, not of a metric; effects are unknown (NaN), and `settings` keeps metadata, influence and labels.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from analysis.circuits.formats.circuit_tracer.schema import EMBEDDING, LOGIT, SCHEMA_VERSION, Graph, Node, unpaired
from analysis.circuits.graph import Circuit, SiteInfo
from analysis.circuits.nodes import ERROR, OUTPUT, SKIP, Nodes
from sae.errors import SaescopeError
from sae.io.files import read_json
from sae.io.paths import user_path
from training.site import Site

_FAMILIES = {"mlp reconstruction error": "cross layer transcoder", "lorsa error": "lorsa"}
"""Kind of dictionary behind each kind of error."""
_SHORT = {"cross layer transcoder": "transcoder"}


def read_graph(path: Path | str) -> Circuit:
    """Read a graph file.

    Raises:
        SaescopeError: no such file, invalid JSON, another schema_version, or invalid nodes.
    """
    path = user_path(path)
    found = read_json(path)
    version = found["metadata"].get("schema_version") if isinstance(found.get("metadata"), dict) else None
    if version != SCHEMA_VERSION:
        raise SaescopeError(
            f"{path}: has schema_version {version!r}, and this code reads {SCHEMA_VERSION} (features paired with layers); "
            "export the graph again with circuit-tracer 0.4 or Neuronpedia."
        )
    try:
        graph = Graph.model_validate(found)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise SaescopeError(f"{path}: is not a circuit-tracer or Neuronpedia graph ({where}: {fault['msg']}).") from error
    try:
        return _own(graph) if graph.metadata.saescope else _theirs(graph)
    except (ValueError, OverflowError) as error:
        raise SaescopeError(f"{path}: {error}.") from error


_NUMBER, _TEXT, _OBJECT = TypeAdapter(int), TypeAdapter(str), TypeAdapter(dict[str, Any])


def _own(graph: Graph) -> Circuit:
    own = graph.metadata.saescope or {}
    rows = own.get("sites", [])
    try:
        sites = TypeAdapter(tuple[SiteInfo, ...]).validate_python(
            [{k: v for k, v in row.items() if k in SiteInfo.__dataclass_fields__} for row in rows]
        )
        by_rank = {
            (str(row["layer"]), _NUMBER.validate_python(row["rank"])): (i, _NUMBER.validate_python(row["first_feature"]))
            for i, row in enumerate(rows)
        }
        facts: dict[str, Any] = {key: _OBJECT.validate_python(own[key]) for key in ("model", "task", "settings", "scores")}
        facts["name"] = _TEXT.validate_python(own["name"])
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("metadata.saescope is malformed") from error

    # our attribution graphs have sites for tokens and logits, like theirs
    ends = {info.variant: i for i, info in enumerate(sites) if info.variant in (EMBEDDING, LOGIT)}

    def triple(node: Node) -> tuple[int, int, int]:
        if node.feature_type in ends:
            return ends[node.feature_type], node.ctx_idx, _feature(node)
        layer, number = str(node.layer), _number(node)
        if number < 0:
            rank, kind = (-number - 1) // 2, ERROR if number % 2 else SKIP
            site = by_rank.get((layer, rank), (None, 0))[0]
            feature = kind
        else:
            within = [(i, first) for (at, _), (i, first) in by_rank.items()
                      if at == layer and first <= number and sites[i].d_sae]
            site, first = max(within, key=lambda one: one[1], default=(None, 0))
            feature = number - first
        if site is None:
            raise ValueError(f"the site of node {node.node_id} is not listed in metadata.saescope")
        return site, node.ctx_idx, feature

    inner = [node for node in graph.nodes if node.feature_type not in (EMBEDDING, LOGIT) or node.feature_type in ends]
    place = {node.node_id: triple(node) for node in inner}
    logits = [node for node in graph.nodes if node.feature_type == LOGIT]
    outputs = {} if ends else {node.node_id: 1.0 for node in logits}
    shares = {place[node.node_id]: node.token_prob for node in logits} if ends else None
    return _circuit(graph, sites, place, outputs, {**facts, "prompt": tuple(graph.metadata.prompt_tokens)}, shares)


def _theirs(graph: Graph) -> Circuit:
    families = {node.node_id: _family(node) for node in graph.nodes}
    keys = sorted(set(families.values()))
    sites = tuple(_site(key, graph.nodes, families) for key in keys)
    number = {key: i for i, key in enumerate(keys)}
    place = {node.node_id: (number[families[node.node_id]], node.ctx_idx, _feature(node)) for node in graph.nodes}
    meta = graph.metadata
    logits = [node for node in graph.nodes if node.feature_type == LOGIT]
    names = {node.node_id: _name(sites, *place[node.node_id]) for node in graph.nodes}
    layers = [int(node.layer) for node in graph.nodes if node.feature_type not in (EMBEDDING, LOGIT)]
    facts = {
        "name": meta.slug, "prompt": tuple(meta.prompt_tokens), "scores": {}, "task": {"metric": "logits by probability"},
        "model": {"name": meta.scan, "n_layers": int(logits[0].layer) - 1 if logits else max(layers, default=0) + 1},
        "settings": {
            "source": "circuit-tracer", "metadata": meta.model_dump(exclude_none=True),
            "qParams": graph.qParams.model_dump(),
            "clerps": {names[n.node_id]: n.clerp for n in graph.nodes if n.clerp},
            "influence": {names[n.node_id]: n.influence for n in graph.nodes if n.influence is not None},
        },
    }
    return _circuit(graph, sites, place, {}, facts, {place[node.node_id]: node.token_prob for node in logits})


def _circuit(
    graph: Graph, sites: tuple[SiteInfo, ...], place: dict[str, tuple[int, int, int]], outputs: dict[str, float],
    facts: dict[str, Any], logits: dict[tuple[int, int, int], float] | None = None,
) -> Circuit:
    """Sort nodes and resolve links; links to missing nodes are dropped, as on their pages."""
    called = Counter(node.node_id for node in graph.nodes)
    if twice := [name for name, n in called.items() if n > 1]:
        raise ValueError(f"several of its nodes are called {twice[0]}, so their links are ambiguous")
    nodes = Nodes.of(list(place.values()))
    if len(nodes) < len(place):
        raise ValueError(f"{len(place) - len(nodes)} of its {len(place)} nodes are duplicates of another")
    index = {triple: i for i, triple in enumerate(nodes.triples)}
    by_triple = {place[node.node_id]: node for node in graph.nodes if node.node_id in place}
    ordered = [by_triple[triple] for triple in nodes.triples]
    ends = {**{name: index[triple] for name, triple in place.items()}, **dict.fromkeys(outputs, OUTPUT)}
    links = [(ends[x.source], ends[x.target], x.weight, x.low, x.high, x.inclusion) for x in graph.links
             if x.source in ends and x.target in ends and ends[x.source] != OUTPUT]
    links += [(index[triple], OUTPUT, share, None, None, None) for triple, share in (logits or {}).items()]
    columns = list(zip(*links, strict=True)) if links else [()] * 6
    return Circuit(
        **facts, sites=sites, nodes=nodes, effect=_floats([n.effect for n in ordered]),
        low=_floats([n.low for n in ordered]), high=_floats([n.high for n in ordered]),
        value=_floats([n.activation for n in ordered]), reference=_floats([n.reference for n in ordered]),
        inclusion=_floats([n.inclusion for n in ordered]), source=np.array(columns[0], dtype=np.int64),
        target=np.array(columns[1], dtype=np.int64), weight=_floats(columns[2]), weight_low=_floats(columns[3]),
        weight_high=_floats(columns[4]), edge_inclusion=_floats(columns[5]),
    )


def _family(node: Node) -> tuple[int, int, str]:
    """Sort key of a node's site: group, layer, kind of feature."""
    if node.feature_type == EMBEDDING:
        return 0, 0, EMBEDDING
    if node.feature_type == LOGIT:
        return 2, 0, LOGIT
    return 1, _layer(node), _FAMILIES.get(node.feature_type, node.feature_type)


def _site(key: tuple[int, int, str], nodes: Sequence[Node], families: dict[str, tuple[int, int, str]]) -> SiteInfo:
    _, layer, kind = key
    if kind in (EMBEDDING, LOGIT):
        return SiteInfo(kind, Site(input="hook_embed" if kind == EMBEDDING else "unembed.hook_out"), "", 0, kind)
    mlp = Site(input=f"blocks.{layer}.mlp.hook_in", target=f"blocks.{layer}.hook_mlp_out")
    site = mlp if kind in _FAMILIES.values() and kind != "lorsa" else Site(input=f"blocks.{layer}.hook_attn_out")
    highest = max((_feature(node) for node in nodes if families[node.node_id] == key), default=-1)
    name = f"{_SHORT.get(kind, kind.replace(' ', '-'))}-{layer}"
    return SiteInfo(name, site, "", max(highest + 1, 1), kind)


def _feature(node: Node) -> int:
    """A token id, ERROR, or the feature's index in its layer."""
    if node.feature_type == EMBEDDING:
        return _token(node)
    if node.feature_type == LOGIT:
        return int(node.feature or 0)
    return ERROR if node.feature_type in _FAMILIES else _number(node)


def _token(node: Node) -> int:
    token = node.node_id.split("_")[1:2]
    if not (token and token[0].isdecimal()):
        raise ValueError(f"the embedding {node.node_id} is not named E_TOKEN_POSITION")
    return int(token[0])


def _layer(node: Node) -> int:
    if not str(node.layer).isdecimal():
        raise ValueError(f"the layer {node.layer!r} of node {node.node_id} is not a number")
    return int(node.layer)


def _number(node: Node) -> int:
    """The feature's index in its layer."""
    if node.feature is None or node.feature < 0:
        return -1 if node.feature is None else node.feature
    layer, feature = unpaired(node.feature)
    if layer != _layer(node):
        raise ValueError(f"the feature number {node.feature} of node {node.node_id} is paired with layer {layer}, "
                         f"but the node is in layer {node.layer}")
    return feature


def _name(sites: Sequence[SiteInfo], site: int, position: int, feature: int) -> str:
    from analysis.circuits.graph import name_of

    return name_of(sites, site, position, feature)


def _floats(numbers: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if number is None else number for number in numbers], dtype=np.float64)
