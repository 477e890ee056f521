"""Edge effects on the metric, to first order and through direct paths alone (Marks et al. 2403.19647, eq. 5).

    effect(u → d) = Σ over rows of d   w_d · ∂d/∂u |direct · (u_ref − u_clean)
    w_d = ⟨G, W_d⟩ for a feature; for an error or a skip path G itself, by one vector–Jacobian product: grad of ⟨G, d⟩

where G = ∂metric/∂target of d's site. ∂d/∂u is taken in a run with every site's target detached (`paths`), and of
pre-activations. A feature counts where it is active: in the clean prompt and, with `ends="both"`, in the reference, with
half the weight each. So a feature that is active only in the counterfactual prompt still gets the half of its edges that
act there, while exact ablation of one parent has no effect on it at the clean end.

By the chain rule, the sum over all downstream nodes of all sites, and OUTPUT, is the node effect of u if G is the gradient
at the clean point and ends is "clean". The sum over all upstream nodes approximates the node effect of d.
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
    """Effects of all edges between nodes, and from nodes into the metric.

    Costs, per batch and end, one forward pass (memory: the activations of `batch` prompts) and one backward pass per
    downstream node, from its site to the sites that reach it; with residual sites every few layers that is a few layers.
    Reading the gradients takes d_out products per entry of an upstream node. The result has an entry for each example and
    edge whose effect is not 0.

    Args:
        model: the model with its SAEs.
        examples: examples of one length.
        metric: metric on the last position's logits.
        effects: the nodes; a node ANYWHERE is summed over its positions.
        reference: what nodes are patched to.
        means: mean states, for the reference `mean`.
        weights: G at the kept rows of all examples, from a node-effect estimator (`edge_weights`); None is the gradient at
            the clean point.
        ends: where ∂d/∂u is taken, see `ends`.
        batch: examples per forward pass.
        freeze: parts frozen at the clean run (`training.model.frozen.HELD`); None freezes nothing.
        progress: called with the number of newly finished examples.

    Returns:
        Effects by example and edge, ordered by source, then target; edges without any effect are left out.

    Raises:
        SaescopeError: single prompts have no counterfactual; a node's position is beyond the prompts; without weights, the
            metric's gradient is zero at the clean point.
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
    """Weights G of downstream nodes for all examples, from a node-effect estimator; arguments as in `node_effects`.

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
    """Yield, per downstream node, its index, the tensor to differentiate, and the cotangent."""
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
    """Yield features: their pre-activations where they are active in this run."""
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
    """Yield errors and skip paths."""
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
    """Gradient of a downstream node at each site that reaches it and has nodes."""
    site = OUTPUT if target == OUTPUT else int(nodes.site[target])
    sites = [model.sites[u] for u in reached.upstream(site) if u in nodes.site]
    if not sites:
        return {}
    leaves = [run.leaves[u] for u in sites]
    grads = torch.autograd.grad(output, leaves, cotangent, retain_graph=True, materialize_grads=True)
    return dict(zip(sites, grads, strict=True))


class Cells:
    """Accumulates effects by example and edge, summing duplicates; zeros are not stored."""

    def __init__(self, n_nodes: int) -> None:
        self.n_nodes = n_nodes
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(
        self, effect: Float64[np.ndarray, "n_examples n"], start: int, source: Int[np.ndarray, " n"] | int,
        target: Int[np.ndarray, " n"] | int,
    ) -> None:
        """Add effects of n edges in the examples from `start` on; `target` may be OUTPUT."""
        example, column = effect.nonzero()
        # OUTPUT is −1, so it sorts first among targets
        key = np.broadcast_to(np.asarray(source) * (self.n_nodes + 1) + np.asarray(target) + 1, effect.shape[1])
        self._parts.append((example + start, key[column], effect[example, column]))

    def edges(self, nodes: Nodes, n_examples: int) -> EdgeEffects:
        """All accumulated effects, ordered by source, then target."""
        example, key, effect = (np.concatenate([np.zeros(0, dtype), *(part[i] for part in self._parts)])
                                for i, dtype in enumerate((np.int64, np.int64, np.float64)))
        keys, column = np.unique(key, return_inverse=True)
        values = sparse.csr_array((effect, (example, column)), shape=(n_examples, len(keys)))
        return EdgeEffects(nodes, keys // (self.n_nodes + 1), keys % (self.n_nodes + 1) - 1, values)
