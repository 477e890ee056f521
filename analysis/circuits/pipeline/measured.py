"""Build a circuit from measurements on training examples: effects with intervals, values, inclusion probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from analysis.circuits.checks.stability import Stability, stability
from analysis.circuits.effects.reference import Means, Reference, position_of_rows, reference_states
from analysis.circuits.graph import Circuit
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import ANYWHERE, EdgeEffects, NodeEffects, Nodes
from analysis.circuits.pipeline.choice import allowed
from analysis.circuits.pipeline.setup import Setup
from analysis.circuits.tasks.examples import Examples


def measured_circuit(
    setup: Setup, effects: NodeEffects, chosen: NodeEffects, all_edges: EdgeEffects, means: Means
) -> Circuit:
    """Build the circuit of these nodes and edges, without scores.

    Args:
        effects: effects of all nodes; inclusion is measured against them.
        chosen: effects of the circuit's nodes.
        all_edges: edges between the circuit's nodes; the largest are kept.
        means: mean activations, for the reference `mean`.
    """
    checks, edges = setup.config.checks, all_edges.largest(setup.config.edges.most)
    options = {"n_bootstraps": checks.bootstraps, "seed": checks.seed}
    effects = allowed(setup, effects)
    of_nodes = stability(effects, len(chosen.nodes), **options)
    of_edges = stability(all_edges, len(edges), **options)
    place = _places(effects.nodes, chosen.nodes)
    edge_place = _edge_places(all_edges, edges)
    value, reference = node_values(setup.model, setup.train, chosen.nodes, setup.reference, means)
    at = _columns(of_nodes, len(effects.nodes), place)
    on = _columns(of_edges, len(all_edges), edge_place)
    model = setup.model.model
    facts = {"name": model.name, **model.identity, "n_layers": model.n_layers, "d_vocab": model.d_vocab}
    return Circuit(
        name=setup.config.name, model=facts, sites=setup.sites, task=setup.task_facts, settings=setup.config.plain(),
        prompt=setup.prompt, nodes=chosen.nodes, effect=chosen.mean, value=value, reference=reference, **at,
        source=edges.source, target=edges.target, weight=edges.mean, weight_low=on["low"], weight_high=on["high"],
        edge_inclusion=on["inclusion"],
    )


def _columns(found: Stability, n_all: int, place: np.ndarray) -> dict[str, Any]:
    """Intervals and inclusion of the nodes or edges at these indices."""
    return {name: found.by_index(getattr(found, name), n_all)[place] for name in ("low", "high", "inclusion")}


def _places(all_nodes: Nodes, some: Nodes) -> np.ndarray:
    place = {triple: i for i, triple in enumerate(all_nodes.triples)}
    return np.array([place[triple] for triple in some.triples], dtype=np.int64)


def _edge_places(all_edges: EdgeEffects, some: EdgeEffects) -> np.ndarray:
    ends = zip(all_edges.source.tolist(), all_edges.target.tolist(), strict=True)
    place = {pair: i for i, pair in enumerate(ends)}
    return np.array([place[pair] for pair in zip(some.source.tolist(), some.target.tolist(), strict=True)], dtype=np.int64)


@torch.no_grad()
def node_values(
    model: CircuitModel, groups: Sequence[Examples], nodes: Nodes, reference: Reference, means: Means | None,
    batch: int = 32,
) -> tuple[Float64[np.ndarray, " n_nodes"], Float64[np.ndarray, " n_nodes"]]:
    """Mean values of nodes in the clean and in the reference run: a feature's value, the norm of an error or skip path.

    Nodes with position ANYWHERE are summed over positions before the mean over examples.
    """
    sums = np.zeros((2, len(nodes)))
    for part in (part for group in groups for part in group.batches(batch)):
        clean, _ = model.states(part.clean, part.keep)
        to = reference_states(model, part, reference, means)
        rows = position_of_rows(part)
        for i, states in enumerate((clean, to)):
            for s, site in enumerate(model.sites):
                here = nodes.site == s
                sums[i, here] += _values(states[site], model.saes[site].bias(), rows, nodes.take(here))
    value, moved = sums / sum(map(len, groups))
    return value, moved


def _values(state: State, bias: Tensor, rows: Tensor, nodes: Nodes) -> Float64[np.ndarray, " n_nodes"]:
    """Sum over rows of each node's value, at one site."""
    code_at, feature = rows[state.code.rows()].numpy(), state.code.feature.numpy()
    value = state.code.value.double().numpy()
    norms = [vector.double().norm(dim=1).numpy() for vector in (state.error, state.offset - bias)]  # ERROR, SKIP
    out = np.zeros(len(nodes))
    for i, (_, position, which) in enumerate(nodes.triples):
        if which >= 0:
            mine = feature == which
            out[i] = value[mine if position == ANYWHERE else mine & (code_at == position)].sum()
        else:
            norm = norms[-1 - which]
            out[i] = norm.sum() if position == ANYWHERE else norm[rows.numpy() == position].sum()
    return out
