"""Integrated gradients over activations (Marks et al. 2403.19647, eq. 4; Sundararajan et al. 1703.01365), midpoint rule.

    G = (1/n) Σ_i ∂metric/∂target at target_clean + α_i · (target_ref − target_clean)        α_i = (i + ½)/n

One site at a time: its whole target (features, error and skip path together) goes to the reference, and everything
downstream is recomputed; the rest of the run is clean. Σ over the site's nodes of ⟨G, step⟩ converges to the change of the
metric when the site alone is patched (completeness), with an error of order n⁻².
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.circuits.effects.gradients import differentiable
from analysis.circuits.effects.repeats import Repeats
from analysis.circuits.model import CircuitModel, State
from analysis.circuits.tasks.examples import Examples, Metric
from training.site import Site, SiteRows


def integrated_gradients(
    model: CircuitModel, examples: Examples, metric: Metric, clean: Mapping[Site, State], reference: Mapping[Site, State],
    *, n_steps: int = 10, batch: int = 32, freeze: Iterable[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[Site, Float[Tensor, "n_rows d_out"]]:
    """Mean gradient of every site along the path to the reference, for one batch of examples.

    Blocks before a site run once; steps are batched together where they fit.

    Args:
        n_steps: gradients per site.
        batch: prompts per forward pass.
        freeze: parts frozen at the clean run, as in `SplicedModel.run`; None freezes nothing.
        progress: called with the number of newly finished (site, example) passes.

    Raises:
        SaescopeError: the metric has no gradient.
    """
    together = max(n for n in range(1, n_steps + 1) if n_steps % n == 0 and (n == 1 or n * len(examples) <= batch))
    runs = Repeats(model, examples, together, freeze)
    found = {}
    for site in model.sites:
        start, way = clean[site].target, reference[site].target.to(clean[site].target) - clean[site].target
        total = torch.zeros_like(start)
        with runs.at(site):
            for first in range(0, n_steps, together):
                steps = torch.arange(first, first + together, dtype=start.dtype, device=start.device)
                path = start + ((steps + 0.5) / n_steps)[:, None, None] * way
                total += _gradient(runs, site, metric, path.flatten(0, 1)).unflatten(0, (together, -1)).sum(0)
        found[site] = total / n_steps
        if progress:
            progress(len(examples))
    return found


def _gradient(
    runs: Repeats, site: Site, metric: Metric, target: Float[Tensor, "n_rows d_out"]
) -> Float[Tensor, "n_rows d_out"]:
    """∂metric/∂target of one site, at this value of its target."""
    leaf = target.detach().requires_grad_()

    def put(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
        return leaf

    with torch.enable_grad():
        logits = runs.logits({site: put})
        (found,) = torch.autograd.grad(differentiable(metric, logits, runs.examples).sum(), leaf)
    return found
