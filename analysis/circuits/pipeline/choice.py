"""Which nodes make the circuit, and the smaller and larger circuits that its curve is made of."""

import numpy as np

from analysis.circuits.checks.choose import pruned
from analysis.circuits.checks.curve import by_effect, sizes
from analysis.circuits.effects.reference import Means
from analysis.circuits.nodes import ERROR, NodeEffects, Nodes
from analysis.circuits.pipeline.setup import Setup
from sae.errors import SaescopeError
from training.display import Display

LARGER = 10
"""The largest circuit of a curve has so many times the nodes that were asked for; pruning begins with as many."""


def curve_sizes(most: int, n_points: int) -> list[int]:
    """Sizes of the circuits of a curve: 1 to `most`, then on to LARGER times as many, each by equal ratios."""
    per_decade = max(2, n_points // 2)
    beyond = [round(most * LARGER ** (i / per_decade)) for i in range(per_decade + 1)]
    return sorted({*sizes(most, per_decade), *beyond})


def allowed(setup: Setup, effects: NodeEffects) -> NodeEffects:
    """The nodes that may be chosen."""
    return effects if setup.config.nodes.errors else effects.take(effects.nodes.feature != ERROR)


def circuits_of_sizes(setup: Setup, effects: NodeEffects, means: Means, display: Display) -> list[Nodes]:
    """Circuits of every size of the curve, each inside the next, from training examples.

    Raises:
        SaescopeError: no node has an effect.
    """
    config, effects = setup.config, allowed(setup, effects)
    n = curve_sizes(config.nodes.most, config.checks.n_points)
    found = by_effect(effects, n)
    if not len(found[-1]):
        raise SaescopeError(
            "No node has an effect: clean and reference runs have the same activations at every site."
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
    """The largest of some circuits with at most so many nodes."""
    return max((nodes for nodes in circuits if len(nodes) <= most), key=len)


def effects_of(effects: NodeEffects, nodes: Nodes) -> NodeEffects:
    """The effects of some nodes, in their order."""
    place = {triple: i for i, triple in enumerate(effects.nodes.triples)}
    return effects.take(np.array([place[triple] for triple in nodes.triples], dtype=np.int64))
