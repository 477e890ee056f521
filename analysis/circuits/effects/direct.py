"""Exact ablation of direct paths, which `edges` estimates, and how well the two agree.

    effect(u → d) = w_d · (d with u patched to its reference and every site at its clean target − d in the clean run)

d is the SAE's actual output: a feature may fall below its threshold or out of the top k. With `ends="both"`, half of the
effect comes from the reference end, where u is patched back to its clean value. Into OUTPUT it is the metric's own change.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from analysis.circuits.effects.agreement import pearson
from analysis.circuits.effects.edges import Cells
from analysis.circuits.effects.ends import End, Ends, Span, Weights, spans
from analysis.circuits.effects.placed import Placed, Steps, by_node, place
from analysis.circuits.effects.reference import Means, Reference
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import OUTPUT, EdgeEffects, NodeEffects, Nodes
from analysis.circuits.tasks.examples import Examples, Metric, value
from training.model.splice import Reconstruct
from training.site import Site, SiteRows


@torch.no_grad()
def direct_effects(
    model: CircuitModel, examples: Examples, metric: Metric, effects: NodeEffects | Nodes, *,
    reference: Reference = "counterfactual", means: Means | None = None, weights: Weights | None = None,
    ends: Ends = "both", batch: int = 32, freeze: Iterable[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> EdgeEffects:
    """Exact version of `edge_effects`: one run for each upstream node, batch and end.

    Arguments, result and errors are those of `edge_effects`.
    """
    nodes = effects.nodes if isinstance(effects, NodeEffects) else effects
    found = Cells(len(nodes))
    for span in spans(
        model, examples, metric, reference=reference, means=means, weights=weights, batch=batch, freeze=freeze
    ):
        placed = place(model, nodes, span.examples.keep)
        steps, both = span.steps(model, placed), span.ends(ends, reference)
        for end in both:
            runs = _Direct(model, metric, span, end, placed)
            for node in range(len(nodes)):
                site = model.sites[nodes.site[node]]
                by = end.sign * steps[site].added(torch.arange(len(nodes)) == node)
                effect = end.sign * runs.moved(site, by, len(nodes)) / len(both)
                found.add(effect, span.start, node, np.append(np.arange(len(nodes)), OUTPUT))
        if progress is not None:
            progress(len(span.examples))
    return found.edges(nodes, len(examples))


class _Direct:
    """Runs from one end in which one site's target is shifted and all others are held fixed."""

    def __init__(
        self, model: CircuitModel, metric: Metric, span: Span, end: End, placed: Mapping[Site, Placed]
    ) -> None:
        self.model, self.metric, self.span, self.end = model, metric, span, end
        self.placed = {site: mine for site, mine in placed.items() if len(mine)}
        self.base, self.value = self._run({})

    def moved(self, site: Site, by: Tensor, n_nodes: int) -> Float64[np.ndarray, "n_examples n_nodes_and_output"]:
        """Weighted changes of all downstream nodes, and the metric's change, when a target is shifted."""
        states, out = self._run({site: by})
        later = [s for s in self.model.sites[self.model.index[site] + 1 :] if s in self.placed]
        changes = {s: Steps.between(self.model.saes[s], self.placed[s], self.base[s], states[s]) for s in later}
        by_target = by_node(changes, {s: self.span.weights[s] for s in later}, len(self.span.examples), n_nodes)
        return torch.cat([by_target, (out - self.value).double().cpu()[:, None]], dim=1).numpy()

    def _run(self, moved: Mapping[Site, Tensor]) -> tuple[dict[Site, State], Tensor]:
        states: dict[Site, State] = {}

        def hold(site: Site) -> Reconstruct:
            def put(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
                if site in self.placed:
                    states[site] = self.model.state(site, rows)
                return self.end.targets[site] + moved.get(site, 0)

            return put

        at = {site: hold(site) for site in self.model.sites}
        logits = self.model.run(self.end.tokens, self.span.examples.keep, at, self.span.forward)
        return states, value(self.metric, logits, self.span.examples)


def agreement(found: EdgeEffects, exact: EdgeEffects, *, by_example: bool = False) -> float:
    """Pearson correlation of two sets of edge effects between the same nodes, over the union of their edges.

    Args:
        found: estimated effects.
        exact: exact effects.
        by_example: correlate over all examples of every edge, rather than over the edges' means.

    Returns:
        The correlation; NaN if either is constant.
    """
    assert found.nodes.triples == exact.nodes.triples
    pairs = [list(zip(e.source.tolist(), e.target.tolist(), strict=True)) for e in (found, exact)]
    place = {edge: i for i, edge in enumerate(dict.fromkeys(pairs[0] + pairs[1]))}
    n_examples = found.values.shape[0] if by_example else 1
    both = np.zeros((2, n_examples, len(place)))
    for side, edges, effects in zip(both, pairs, (found, exact), strict=True):
        side[:, [place[edge] for edge in edges]] = effects.values.toarray() if by_example else effects.mean
    return pearson(*both.reshape(2, -1))
