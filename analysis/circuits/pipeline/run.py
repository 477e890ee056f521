"""From a config to a tested circuit: every stage, with progress and resuming.

    1 behaviour   does the model do the task, on held-out examples
    2 agreement   of the estimator with exact ablation, per site
    3 effects     of every node, batch by batch, on training examples
    4 edges       between the chosen nodes, through direct paths; then orphans are dropped
    5 tests       on held-out examples (`scores`)

Finished stages are kept in `DIR/.work/NAME`, each with a hash of its inputs. `DIR/NAME` is written at the end.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.circuits.effects.agreement import ESTIMATORS, Agreement, Estimator, cheapest, compare_estimators
from analysis.circuits.effects.edges import edge_effects
from analysis.circuits.effects.nodes import batch_effects
from analysis.circuits.effects.reference import Means, mean_states
from analysis.circuits.formats.store import save_circuit
from analysis.circuits.graph import Circuit
from analysis.circuits.nodes import EdgeEffects, NodeEffects, Nodes, joined, joined_edges
from analysis.circuits.pipeline import scores
from analysis.circuits.pipeline.choice import circuit_of, circuits_of_sizes, effects_of
from analysis.circuits.pipeline.config import CircuitConfig, read_config
from analysis.circuits.pipeline.estimate import estimate
from analysis.circuits.pipeline.measured import measured_circuit
from analysis.circuits.pipeline.setup import Setup, open_setup
from analysis.circuits.pipeline.stages import Stages, edge_effects_of, edge_tensors, node_effects_of, node_tensors
from analysis.circuits.prune import without_orphans
from analysis.circuits.tasks.behaviour import require_behaviour
from analysis.circuits.tasks.examples import Examples
from sae.io.paths import user_path
from training.display import Display
from training.site import Site

Gradients = dict[Site, Tensor]
"""Gradients at each site's kept rows, over all examples of a group."""


def find_circuit(
    config: CircuitConfig | str | Path, overrides: Sequence[str] = (), *, quiet: bool = False, again: bool = False
) -> Circuit:
    """Find a circuit, test it, and save it to `DIR/NAME`.

    Args:
        config: a config, or the path of a YAML file.
        overrides: dotted overrides of a YAML file: `["nodes.most=50"]`.
        quiet: show no progress.
        again: redo every stage, even those finished earlier.

    Raises:
        SaescopeError: config, SAEs and prompts don't fit together, or the model can't do the task.
    """
    if not isinstance(config, CircuitConfig):
        config = read_config(config, overrides)
    display = Display(quiet=quiet)
    setup = open_setup(config)
    stages = Stages(user_path(config.dir) / ".work" / config.name, setup.inputs, again=again)
    display.say(f"{len(setup.sites)} sites of {setup.model.model.name}: {', '.join(info.name for info in setup.sites)}")
    behaviour = stages.json("behaviour", lambda: _behaviour(setup, display), "code", "model", "task")
    display.say(f"estimate: {estimate(config, setup.model, setup.train, setup.test, setup.metric)}")
    means = mean_states(setup.model, setup.train, batch=config.effects.batch)
    agreement = _agreement(setup, stages, means, display)
    estimator = _estimator(config, agreement, display)
    effects, gradients = _effects(setup, stages, estimator, means, display)
    circuits = _choose(setup, stages, effects, means, estimator, display)
    chosen = effects_of(effects, circuit_of(circuits, config.nodes.most))
    edges = _edges(setup, stages, chosen, gradients, means, display)
    circuit = measured_circuit(setup, effects, chosen, edges, means)
    circuit = without_orphans(circuit) if config.edges.most else circuit
    tests = scores.Tests(setup, circuit, circuits, stages, effects, edges, means, estimator, display)
    found = replace(circuit, scores={
        "behaviour": behaviour, "estimator": str(estimator), "agreement": agreement, **tests.measure(),
    })
    save_circuit(found, user_path(config.dir) / config.name)
    return found


def _behaviour(setup: Setup, display: Display) -> dict[str, Any]:
    found = require_behaviour(setup.model.model, setup.task, batch=setup.config.effects.batch)
    display.say(str(found))
    return found.figures()


def _agreement(setup: Setup, stages: Stages, means: Means, display: Display) -> list[dict[str, Any]]:
    """One row per site and estimator; times are left out, so equal circuits have equal bytes."""
    config = setup.config.effects
    if not config.n_exact or config.method == "exact":
        return []
    examples = setup.train[0].take(slice(0, config.batch))
    estimators = _candidates(setup.config)
    steps = len(examples) * len(setup.sites) * (len(estimators) + 1)

    def compare() -> list[dict[str, Any]]:
        with display.task("agreement with exact ablation", steps, "site passes") as task:
            found = compare_estimators(
                setup.model, examples, setup.metric, estimators=estimators, n_largest=config.n_exact // 2,
                n_random=config.n_exact - config.n_exact // 2, reference=setup.reference, means=means, batch=config.batch,
                progress=task.advance,
            )
        return [{key: value for key, value in row.items() if key != "seconds"} for row in found.rows]

    return stages.json("agreement", compare, "code", "model", "saes", "task", "effects")


def _candidates(config: CircuitConfig) -> tuple[Estimator, ...]:
    """The estimators to measure: all of them for `auto`, otherwise the configured one."""
    if config.effects.method == "auto":
        return ESTIMATORS
    steps = config.effects.n_steps if config.effects.method == "ig" else 0
    return (Estimator(config.effects.method, steps),)


def _estimator(config: CircuitConfig, agreement: list[dict[str, Any]], display: Display) -> Estimator:
    if config.effects.method != "auto":
        return _candidates(config)[0]
    name = cheapest([Agreement(**line, seconds=0.0) for line in agreement], config.effects.agreement)
    if name is None:
        best = ESTIMATORS[-1]
        display.say(f"no estimator correlates {config.effects.agreement} with exact ablation at every site; using {best}")
        return best
    display.say(f"{name} is the cheapest estimator that correlates {config.effects.agreement} with exact ablation")
    return next(one for one in ESTIMATORS if str(one) == name)


def _effects(
    setup: Setup, stages: Stages, estimator: Estimator, means: Means, display: Display
) -> tuple[NodeEffects, list[Gradients]]:
    """Effects of all nodes on the training examples, and the gradients they were computed from, per group."""
    config = setup.config.effects
    found: list[NodeEffects] = []
    gradients: list[Gradients] = []
    keys = ("code", "model", "saes", "task", "effects", "method")
    stages = stages.given(method=str(estimator))
    total = sum(map(len, setup.train)) * len(setup.sites)
    with display.task(f"effects by {estimator}", total, "site passes") as task:
        for g, group in enumerate(setup.train):
            parts: list[Gradients] = []
            for b, part in enumerate(group.batches(config.batch)):
                def make(part: Examples = part) -> dict[str, Tensor]:
                    effects, by_site = batch_effects(
                        setup.model, part, setup.metric, reference=setup.reference, method=estimator.method,
                        n_steps=estimator.n_steps, means=means, batch=config.batch, progress=task.advance,
                    )
                    named = {f"gradient {setup.model.index[site]}": value for site, value in by_site.items()}
                    return {**node_tensors(effects), **named}

                name = f"effects-{g}-{b}"
                if stages.has(name, *keys):
                    task.skip(len(part) * len(setup.sites))
                tensors = stages.tensors(name, make, *keys)
                found.append(node_effects_of(tensors))
                parts.append({
                    site: tensors[f"gradient {i}"] for i, site in enumerate(setup.model.sites) if f"gradient {i}" in tensors
                })
            gradients.append({site: torch.cat([part[site] for part in parts]) for site in parts[0]})
    effects = joined(found)
    return (effects if setup.positional else effects.over_positions()), gradients


def _choose(
    setup: Setup, stages: Stages, effects: NodeEffects, means: Means, estimator: Estimator, display: Display
) -> list[Nodes]:
    """Circuits of all sizes."""
    def make() -> list[list[tuple[int, int, int]]]:
        return [nodes.triples for nodes in circuits_of_sizes(setup, effects, means, display)]

    stages = stages.given(method=str(estimator))
    found = stages.json("choice", make, "code", "model", "saes", "task", "effects", "nodes", "checks", "method")
    return [Nodes.of([tuple(triple) for triple in triples]) for triples in found]


def _edges(
    setup: Setup, stages: Stages, chosen: NodeEffects, gradients: list[Gradients], means: Means, display: Display
) -> EdgeEffects:
    """Effects of all edges between the chosen nodes and into the metric."""
    if not setup.config.edges.most:
        return EdgeEffects.none(chosen.nodes, chosen.values.shape[0])
    keys = ("code", "model", "saes", "task", "effects", "nodes", "chosen")
    stages = stages.given(chosen=chosen.nodes.triples)
    found = []
    with display.task("edges", sum(map(len, setup.train)), "prompts") as task:
        for g, (group, weights) in enumerate(zip(setup.train, gradients, strict=True)):
            def make(group: Examples = group, weights: Gradients = weights) -> dict[str, Tensor]:
                return edge_tensors(edge_effects(
                    setup.model, group, setup.metric, chosen.nodes, reference=setup.reference, means=means,
                    weights=weights or None, batch=setup.config.effects.batch, progress=task.advance,
                ))

            found.append(edge_effects_of(stages.tensors(f"edges-{g}", make, *keys)))
    return joined_edges(found)
