"""Choose the nodes of the circuit, and the smaller and larger circuits for its curve."""

import numpy as np

from analysis.circuits.checks.choose import pruned
from analysis.circuits.checks.curve import by_effect, sizes
from analysis.circuits.effects.reference import Means
from analysis.circuits.nodes import ERROR, NodeEffects, Nodes
from analysis.circuits.pipeline.setup import Setup
from sae.errors import SaescopeError
from training.display import Display

LARGER = 10
"""The largest circuit of a curve has LARGER × `nodes.most` nodes; pruning starts from it."""


def curve_sizes(most: int, n_points: int) -> list[int]:
    """Circuit sizes on a curve: 1 to `most`, then up to LARGER × `most`, both spaced geometrically."""
    per_decade = max(2, n_points // 2)
    beyond = [round(most * LARGER ** (i / per_decade)) for i in range(per_decade + 1)]
    return sorted({*sizes(most, per_decade), *beyond})


def allowed(setup: Setup, effects: NodeEffects) -> NodeEffects:
    """Effects of the nodes that may be chosen (without errors, if the config excludes them)."""
    return effects if setup.config.nodes.errors else effects.take(effects.nodes.feature != ERROR)


def circuits_of_sizes(setup: Setup, effects: NodeEffects, means: Means, display: Display) -> list[Nodes]:
    """Nested circuits of every size on the curve, chosen on training examples.

    Raises:
        SaescopeError: no node has an effect.
    """
    config, effects = setup.config, allowed(setup, effects)
    n = curve_sizes(config.nodes.most, config.checks.n_points)
    found = by_effect(effects, n)
    if not len(found[-1]):
        raise SaescopeError(
            "No node has an effect: the clean and reference runs have the same activations at every site."
        )
    if config.nodes.choose == "effects":
        return found
    start = found[-1]
    with display.task("choosing nodes: dropped", len(start) - min(n[0], len(start)), "nodes") as task:
        return pruned(
            setup.model, setup.train, setup.metric, n, start=start, reference=config.checks.ablation, means=means,
            batch=config.effects.batch, progress=task.advance,
        )


def circuit_of(circuits: list[Nodes], most: int) -> Nodes:
    """The largest circuit with at most `most` nodes."""
    return max((nodes for nodes in circuits if len(nodes) <= most), key=len)


def effects_of(effects: NodeEffects, nodes: Nodes) -> NodeEffects:
    """Effects of the given nodes, in their order."""
    place = {triple: i for i, triple in enumerate(effects.nodes.triples)}
    return effects.take(np.array([place[triple] for triple in nodes.triples], dtype=np.int64))
