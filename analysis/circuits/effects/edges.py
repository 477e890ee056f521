"""What an edge does to the metric, to first order and through the direct path alone (Marks et al. 2403.19647, eq. 5).

    effect(u → d) = Σ over rows of d   w_d · ∂d/∂u |direct · (u_ref − u_clean)
    w_d = ⟨G, W_d⟩ of a feature; of an error or a skip path G itself, by the vector trick: one gradient of ⟨G, d⟩

with G = ∂metric/∂target of d's site. ∂d/∂u comes from a run in which every site is cut off from what it is computed from
(`paths`), of pre-activations: a feature counts where it is active, in the clean prompt and, with `ends="both"`, in the
reference, each with half the weight. So a feature that only the counterfactual prompt has is still explained by the half of
its edges that acts there; what exact ablation of one parent does to it at the clean end is nothing.

Σ over every downstream node of all sites, and OUTPUT, is the node effect of u if G is the gradient at the clean point and
ends is "clean": the chain rule. Σ over every upstream node approximates the node effect of d.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from scipy import sparse
from torch import Tensor

from analysis.circuits.effects.ends import Ends, Span, Weights, spans
from analysis.circuits.effects.nodes import Method, site_gradients
from analysis.circuits.effects.paths import CutRun, Reach, cut_run, reach
from analysis.circuits.effects.placed import Placed, along, by_node, place
from analysis.circuits.effects.reference import Means, Reference, reference_states
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ERROR, OUTPUT, EdgeEffects, NodeEffects, Nodes
from analysis.circuits.tasks.examples import Examples, Metric, value
from training.site import Site, SiteRows


def edge_effects(
    model: CircuitModel, examples: Examples, metric: Metric, effects: NodeEffects | Nodes, *,
    reference: Reference = "counterfactual", means: Means | None = None, weights: Weights | None = None,
    ends: Ends = "both", batch: int = 32, freeze: Iterable[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> EdgeEffects:
    """Effects of all edges between nodes, and from them into the metric.

    Costs, for each batch and end, one forward with its graph kept (memory: the activations of `batch` prompts) and one
    backward for each downstream node, from its site to the sites that reach it: with residual sites in every few layers
    that is a few layers. Reading the gradients takes d_out products for each entry of an upstream node. The result has an
    entry for each example and edge whose effect is not 0.

    Args:
        model: the model with its SAEs.
        examples: of one length.
        metric: of the last logits.
        effects: the nodes; a node ANYWHERE is summed over its positions.
        reference: what nodes move to.
        means: what `mean` is read from.
        weights: G from the estimator of node effects, of the kept rows of all examples (`edge_weights`); the gradient at
            the clean point if None.
        ends: where ∂d/∂u is taken, see `ends`.
        batch: examples at a time.
        freeze: parts that are held at the clean run (`training.model.frozen.HELD`); None is the model itself.
        progress: told of examples that are done.

    Returns:
        effects by example and edge, edges without any left out, ordered by source, then target.

    Raises:
        SaescopeError: single prompts have no counterfactual; a position that the prompts do not have; without weights, a
            metric that is flat at the clean point.
    """
    nodes = effects.nodes if isinstance(effects, NodeEffects) else effects
    found, reached = Cells(len(nodes)), reach(model, examples)
    for span in spans(
        model, examples, metric, reference=reference, means=means, weights=weights, batch=batch, freeze=freeze
    ):
        placed = place(model, nodes, span.examples.keep)
        steps, both = span.steps(model, placed), span.ends(ends, reference)
        for end in both:
            run = cut_run(model, end.tokens, span.examples.keep, end.targets, span.forward)
            for target, output, cotangent in _watched(model, run, placed, span, metric):
                grads = _upstream(model, run, reached, nodes, target, output, cotangent)
                effect = by_node(steps, grads, len(span.examples), len(nodes)).numpy() / len(both)
                found.add(effect, span.start, np.arange(len(nodes)), target)
        if progress is not None:
            progress(len(span.examples))
    return found.edges(nodes, len(examples))


def edge_weights(
    model: CircuitModel, examples: Examples, metric: Metric, *, reference: Reference = "counterfactual",
    means: Means | None = None, method: Method = "ig", n_steps: int = 10, batch: int = 32,
    freeze: Iterable[str] | None = None,
) -> dict[Site, Float[Tensor, "n_rows d_out"]]:
    """What downstream nodes are weighed by, of all examples, from an estimator of node effects; arguments as there.

    Raises:
        SaescopeError: as `node_effects`.
    """
    parts = []
    for part in examples.batches(batch):
        clean, to = model.states(part.clean, part.keep)[0], reference_states(model, part, reference, means)
        parts.append(site_gradients(
            model, part, metric, clean, to, method=method, n_steps=n_steps, batch=batch, freeze=freeze
        ))
    return {site: torch.cat([part[site] for part in parts]) for site in model.sites}


def _watched(
    model: CircuitModel, run: CutRun, placed: Mapping[Site, Placed], span: Span, metric: Metric
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each downstream node: its index, what is differentiated, and by what that is weighed."""
    for site, mine in placed.items():
        rows = run.rows[site]
        if len(mine) and (rows.x.requires_grad or rows.target.requires_grad):
            yield from _features(model, site, rows, mine.take(mine.are_features), span.weights[site])
            yield from _vectors(model, site, rows, mine.take(~mine.are_features), span.weights[site])
    out = value(metric, run.logits, span.examples)
    if out.requires_grad:
        yield OUTPUT, out, torch.ones_like(out)


def _features(
    model: CircuitModel, site: Site, rows: SiteRows, placed: Placed, weights: Float[Tensor, "n_rows d_out"]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Features, by their pre-activations where they are active in this run."""
    sae, x = model.saes[site], rows.x.to(model.saes[site].W_dec)
    active = placed.take(placed.stored(sae.encode(x.detach()).csr()) != 0)
    if len(active):
        where = active.code(x.new_zeros(len(active)), len(x), sae.d_sae)
        with torch.enable_grad():
            pre = sae.pre_activations(x, where)
        by = along(sae, weights, active)
        for node in active.node.unique().tolist():
            yield node, pre, torch.where(active.node == node, by, 0)


def _vectors(
    model: CircuitModel, site: Site, rows: SiteRows, placed: Placed, weights: Float[Tensor, "n_rows d_out"]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Errors and skip paths."""
    if not len(placed):
        return
    with torch.enable_grad():
        state = model.state(site, rows)
    for node in placed.node.unique().tolist():
        mine = placed.take(placed.node == node)
        vector = state.error if int(mine.feature[0]) == ERROR else state.offset
        if vector.requires_grad:
            cotangent = torch.zeros_like(vector)
            cotangent[mine.row] = weights[mine.row].to(vector)
            yield node, vector, cotangent


def _upstream(
    model: CircuitModel, run: CutRun, reached: Reach, nodes: Nodes, target: int, output: Tensor, cotangent: Tensor
) -> dict[Site, Tensor]:
    """The gradient of a downstream node at each site that reaches it and has nodes."""
    site = OUTPUT if target == OUTPUT else int(nodes.site[target])
    sites = [model.sites[u] for u in reached.upstream(site) if u in nodes.site]
    if not sites:
        return {}
    leaves = [run.leaves[u] for u in sites]
    grads = torch.autograd.grad(output, leaves, cotangent, retain_graph=True, materialize_grads=True)
    return dict(zip(sites, grads, strict=True))


class Cells:
    """Collects effects by example and edge, summing those of one cell; zeros are not kept."""

    def __init__(self, n_nodes: int) -> None:
        self.n_nodes = n_nodes
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(
        self, effect: Float64[np.ndarray, "n_examples n"], start: int, source: Int[np.ndarray, " n"] | int,
        target: Int[np.ndarray, " n"] | int,
    ) -> None:
        """Effects of n edges in examples from `start` on; `target` may be OUTPUT."""
        example, column = effect.nonzero()
        # OUTPUT is −1 and comes first in the order of targets
        key = np.broadcast_to(np.asarray(source) * (self.n_nodes + 1) + np.asarray(target) + 1, effect.shape[1])
        self._parts.append((example + start, key[column], effect[example, column]))

    def edges(self, nodes: Nodes, n_examples: int) -> EdgeEffects:
        """All that was added, edges by source, then target."""
        example, key, effect = (np.concatenate([np.zeros(0, dtype), *(part[i] for part in self._parts)])
                                for i, dtype in enumerate((np.int64, np.int64, np.float64)))
        keys, column = np.unique(key, return_inverse=True)
        values = sparse.csr_array((effect, (example, column)), shape=(n_examples, len(keys)))
        return EdgeEffects(nodes, keys // (self.n_nodes + 1), keys % (self.n_nodes + 1) - 1, values)
