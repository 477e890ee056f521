"""Exact ablation of direct paths: the definition that `edges` estimates, and how far the two agree.

    effect(u → d) = w_d · (d with u moved to its reference and every site at its clean target − d in the clean run)

d's value is what its SAE really gives: a feature may fall below its threshold, or be chosen no longer. With `ends="both"`,
half of it comes from the reference end, where u moves back to its clean value. Into OUTPUT it is the metric's own change.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from analysis.circuits.effects.edges import Cells, Progress, Weights, spans
from analysis.circuits.effects.ends import End, Ends
from analysis.circuits.effects.placed import Placed, Steps, by_node, place
from analysis.circuits.effects.reference import Means, Reference
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import OUTPUT, EdgeEffects, NodeEffects, Nodes
from analysis.circuits.tasks.examples import Examples, Metric, value
from training.model.splice import Forward, Reconstruct
from training.site import Site, SiteRows


@torch.no_grad()
def direct_effects(
    model: CircuitModel, examples: Examples, metric: Metric, effects: NodeEffects | Nodes, *,
    reference: Reference = "counterfactual", means: Means | None = None, weights: Weights | None = None,
    ends: Ends = "both", batch: int = 32, forward: Forward | None = None, progress: Progress | None = None,
) -> EdgeEffects:
    """What `edge_effects` estimates, exactly: one run for each upstream node, batch and end.

    Arguments, result and errors are those of `edge_effects`.
    """
    nodes = effects.nodes if isinstance(effects, NodeEffects) else effects
    found = Cells(len(nodes))
    for span, part_weights, start in spans(model, examples, metric, reference, means, weights, batch, forward):
        entries = place(model, nodes, span.examples.keep)
        steps = span.steps(model, entries)
        both = span.ends(ends, reference)
        for end in both:
            runs = _Direct(model, metric, span.examples, end, entries, part_weights, forward)
            for node in range(len(nodes)):
                site = model.sites[nodes.site[node]]
                chosen = torch.arange(len(nodes)) == node
                by_target, out = runs.moved(site, end.sign * steps[site].added(chosen), len(nodes))
                found.add(end.sign * by_target / len(both), start, node, np.arange(len(nodes)))
                found.add(end.sign * out[:, None] / len(both), start, np.array([node]), OUTPUT)
        if progress is not None:
            progress(start + len(span.examples), len(examples))
    return found.edges(nodes, len(examples))


class _Direct:
    """Runs from one end in which one site's target is moved and all others are held."""

    def __init__(
        self, model: CircuitModel, metric: Metric, examples: Examples, end: End, entries: Mapping[Site, Placed],
        weights: Weights, forward: Forward | None,
    ) -> None:
        self.model, self.metric, self.examples, self.end = model, metric, examples, end
        self.entries = {site: mine for site, mine in entries.items() if len(mine)}
        self.weights, self.forward = weights, forward
        self.base, self.value = self._run({})

    def moved(
        self, site: Site, by: Tensor, n_nodes: int
    ) -> tuple[Float64[np.ndarray, "n_examples n_nodes"], Float64[np.ndarray, " n_examples"]]:
        """What all downstream nodes, weighed, and the metric change by when a target is moved."""
        states, out = self._run({site: by})
        sites = [later for later in self.model.sites[self.model.index[site] + 1 :] if later in self.entries]
        saes, entries, base = self.model.saes, self.entries, self.base
        changes = {later: Steps.between(saes[later], entries[later], base[later], states[later]) for later in sites}
        weights = {later: self.weights[later] for later in sites}
        by_target = by_node(changes, weights, len(self.examples), n_nodes)
        return by_target.numpy(), (out - self.value).double().cpu().numpy()

    def _run(self, moved: Mapping[Site, Tensor]) -> tuple[dict[Site, State], Tensor]:
        states: dict[Site, State] = {}

        def hold(site: Site) -> Reconstruct:
            def put(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
                if site in self.entries:
                    states[site] = self.model.state(site, rows)
                return self.end.targets[site] + moved.get(site, 0)

            return put

        at = {site: hold(site) for site in self.model.sites}
        logits = self.model.run(self.end.tokens, self.examples.keep, at, self.forward)
        return states, value(self.metric, logits, self.examples)


def agreement(found: EdgeEffects, exact: EdgeEffects, *, by_example: bool = False) -> float:
    """Pearson correlation of two sets of edges between the same nodes, over all edges that either has.

    Args:
        found: estimates.
        exact: what they estimate.
        by_example: over all examples of every edge, rather than over the edges' means.

    Returns:
        NaN where one of the two does not vary.
    """
    assert found.nodes.triples == exact.nodes.triples
    pairs = [list(zip(e.source.tolist(), e.target.tolist(), strict=True)) for e in (found, exact)]
    place = {edge: i for i, edge in enumerate(dict.fromkeys(pairs[0] + pairs[1]))}
    n_examples = found.values.shape[0] if by_example else 1
    both = np.zeros((2, n_examples, len(place)))
    for side, edges, effects in zip(both, pairs, (found, exact), strict=True):
        side[:, [place[edge] for edge in edges]] = effects.values.toarray() if by_example else effects.mean
    if np.ptp(both[0]) == 0 or np.ptp(both[1]) == 0:
        return float("nan")
    return float(np.corrcoef(both.reshape(2, -1))[0, 1])
