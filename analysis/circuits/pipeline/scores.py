"""Scores of a circuit on held-out examples, with baselines.

    circuit         faithfulness and completeness of the circuit itself: errors as nodes, kept, dropped; edges alone
    curves          the same for the first 1, 2, … nodes; all features; random features; MLP activations
    specificity     the circuit on other tasks, and at all positions
    stability       Jaccard index of the nodes and edges chosen by bootstraps of the training examples
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy import sparse

from analysis.circuits.checks import baselines
from analysis.circuits.checks.ablation import ALL_FEATURES, Ablation
from analysis.circuits.checks.curve import Series, by_effect, curves, sizes
from analysis.circuits.checks.edge_faithfulness import edge_curve, edge_faithfulness
from analysis.circuits.checks.faithfulness import faithfulness
from analysis.circuits.checks.specificity import Behaviour, specificity
from analysis.circuits.checks.stability import stability
from analysis.circuits.coordinates import mlp_activations
from analysis.circuits.effects.agreement import Estimator
from analysis.circuits.effects.nodes import node_effects
from analysis.circuits.effects.reference import Means, mean_states
from analysis.circuits.graph import Circuit
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import EdgeEffects, NodeEffects, Nodes, joined
from analysis.circuits.pipeline.choice import allowed, curve_sizes
from analysis.circuits.pipeline.setup import Setup
from analysis.circuits.pipeline.stages import Stages
from analysis.circuits.tasks.behaviour import check_behaviour
from analysis.circuits.tasks.config import TaskConfig, make_task
from analysis.circuits.tasks.tokens import tokenise
from training.display import Display

_KEYS = ("code", "model", "saes", "task", "effects", "nodes", "edges", "checks", "method", "circuit")


@dataclass(frozen=True)
class Tests:
    """Everything needed to test a circuit.

    Attributes:
        circuit: the circuit under test.
        circuits: circuits of other sizes, chosen in the same way.
        effects: effects of all nodes on training examples; curves choose from them.
        edges: all edges between the circuit's nodes and into the metric.
        means: mean activations over the training examples, for ablating everything outside a circuit.
        estimator: the estimator that chose the nodes; it also chooses MLP activations.
    """

    setup: Setup
    circuit: Circuit
    circuits: Sequence[Nodes]
    stages: Stages
    effects: NodeEffects
    edges: EdgeEffects
    means: Means
    estimator: Estimator
    display: Display

    def measure(self) -> dict[str, Any]:
        """Measure all scores, in JSON types; each one is a stage."""
        checks = self.setup.config.checks
        parts = {"circuit": self._circuit, "curves": self._curves, "stability": self._stability}
        if len(self.edges):
            parts["edge_curve"] = self._edge_curve
        if checks.neurons:
            parts["mlp_activations"] = self._neurons
        if checks.tasks:
            parts["specificity"] = self._specificity
        edges = [self.circuit.source.tolist(), self.circuit.target.tolist()]
        stages = self.stages.given(method=str(self.estimator), circuit=[self.circuit.nodes.triples, *edges])
        found = {}
        with self.display.task("tests on held-out examples", len(parts), "tests") as task:
            for name, measure in parts.items():
                found[name] = stages.json(f"score-{name}", measure, *_KEYS)
                task.advance(1)
        return found

    @property
    def _options(self) -> dict[str, Any]:
        config = self.setup.config
        return {"reference": config.checks.ablation, "means": self.means, "batch": config.effects.batch}

    @property
    def _draws(self) -> dict[str, Any]:
        checks = self.setup.config.checks
        return {"n_bootstraps": checks.bootstraps, "seed": checks.seed}

    def _circuit(self) -> dict[str, Any]:
        """Scores of the circuit itself."""
        circuit = self.circuit
        runs = {
            "faithfulness": Ablation(circuit.nodes), "faithfulness_errors_kept": Ablation(circuit.nodes, errors="kept"),
            "faithfulness_errors_dropped": Ablation(circuit.nodes, errors="dropped"),
            "completeness": Ablation(circuit.nodes, "inside"), "all_features": ALL_FEATURES,
        }
        found = faithfulness(
            self.setup.model, self.setup.test, self.setup.metric, list(runs.values()), **self._options
        )
        counts = {"n_nodes": len(circuit.nodes), "n_features": circuit.n_features, "n_edges": len(circuit.source)}
        out: dict[str, Any] = {**counts}
        for name, one in zip(runs, found, strict=True):
            out |= one.interval(**self._draws).named(name)
        return out | self._edges_alone()

    def _edges_alone(self) -> dict[str, Any]:
        circuit, setup = self.circuit, self.setup
        if not len(circuit.source):
            return {}
        none = sparse.csr_array((1, len(circuit.source)))
        graph = EdgeEffects(circuit.nodes, circuit.source, circuit.target, none)
        (alone,) = edge_faithfulness(setup.model, setup.test, setup.metric, [graph], **self._options)
        return alone.interval(**self._draws).named("edge_faithfulness")

    def _edge_curve(self) -> dict[str, Any]:
        """Faithfulness of growing sets of edges, largest effects first."""
        setup, checks = self.setup, self.setup.config.checks
        n = sizes(len(self.edges), max(2, checks.n_points // 3))
        return edge_curve(
            setup.model, setup.test, setup.metric, self.edges, n, **self._draws, **self._options
        ).plain()

    def _curves(self) -> list[dict[str, Any]]:
        """Curves of circuits of growing size, up to ten times `nodes.most` nodes, and the baselines."""
        config, setup = self.setup.config, self.setup
        n = curve_sizes(config.nodes.most, config.checks.n_points)
        series = [
            Series("circuit", self.circuits),
            Series("errors kept", self.circuits, errors="kept"),
            Series("errors dropped", by_effect(self.effects, n, "dropped"), errors="dropped"),
            Series("completeness", self.circuits, "inside"),
        ]
        if config.nodes.choose != "effects":
            series.append(Series("largest effects", by_effect(allowed(setup, self.effects), n)))
        found = curves(setup.model, setup.test, setup.metric, series, **self._draws, **self._options)
        if config.checks.n_random:
            active = baselines.active_features(
                setup.model, setup.train, positions=setup.positional, batch=config.effects.batch
            )
            found.append(baselines.random_curve(
                setup.model, setup.test, setup.metric, n, active=active, n_random=config.checks.n_random,
                seed=config.checks.seed, **self._options,
            ))
        return [one.plain() for one in found]

    def _neurons(self) -> dict[str, Any]:
        """Curve of the same numbers of MLP activations, chosen by the same estimator, all others ablated."""
        config, setup = self.setup.config, self.setup

        def effects(model: CircuitModel, means: Means) -> NodeEffects:
            found = joined([
                node_effects(
                    model, group, setup.metric, reference=setup.reference, method=self.estimator.method,
                    n_steps=self.estimator.n_steps, means=means, batch=config.effects.batch,
                ) for group in setup.train
            ])
            return found if setup.positional else found.over_positions()

        return baselines.coordinate_curve(
            "MLP activations", mlp_activations(setup.model), setup.train, setup.test, setup.metric,
            curve_sizes(config.nodes.most, config.checks.n_points), effects, **self._draws,
            reference=config.checks.ablation, batch=config.effects.batch,
        ).plain()

    def _specificity(self) -> list[dict[str, Any]]:
        """The circuit on its own task and on other built-in tasks; tasks the model can't do are skipped."""
        setup = self.setup
        tasks = {setup.task.name: Behaviour(setup.test, setup.metric, self.means)}
        for name in setup.config.checks.tasks:
            own = setup.config.task
            other = make_task(TaskConfig(builtin=name, n_train=own.n_train, n_held_out=own.n_held_out), setup.model.model)
            if other.name != setup.task.name and check_behaviour(setup.model.model, other).holds:
                train = tokenise(other.train, setup.model.model)
                tasks[name] = Behaviour(
                    tokenise(other.held_out, setup.model.model), other.metric, mean_states(setup.model, train)
                )
        options = {**self._draws, "reference": setup.config.checks.ablation, "batch": setup.config.effects.batch}
        return [cell.plain() for cell in specificity(setup.model, {setup.task.name: self.circuit.nodes}, tasks, **options)]

    def _stability(self) -> dict[str, Any]:
        circuit = self.circuit
        nodes = stability(self.effects, len(circuit.nodes), **self._draws)
        out = nodes.jaccard.named("nodes_jaccard")
        if len(self.edges):
            out |= stability(self.edges, len(circuit.source), **self._draws).jaccard.named("edges_jaccard")
        return out | {"n_bootstraps": self._draws["n_bootstraps"]}
