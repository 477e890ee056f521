"""Gradients of a metric at the clean run, for all sites at once: attribution patching (Marks et al. 2403.19647, eq. 3).

One forward and one backward pass of the model itself. Zero is added at each site; its gradient is ∂metric/∂target through
everything downstream. No reconstruction is in the path.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.circuits.model import CircuitModel
from analysis.circuits.tasks.examples import Examples, Metric, value
from analysis.circuits.tasks.metrics import require_gradient
from sae.errors import SaescopeError
from training.model.splice import Forward, Reconstruct
from training.site import Site, SiteRows


def clean_gradients(
    model: CircuitModel, examples: Examples, metric: Metric, forward: Forward | None = None
) -> dict[Site, Float[Tensor, "n_rows d_out"]]:
    """∂metric/∂target of every site at the clean run, for one batch.

    Args:
        forward: the model, or a linear version of it, or one with other backward rules.

    Raises:
        SaescopeError: the metric has no gradient, or it is zero at the clean run.
    """
    leaves: dict[Site, Tensor] = {}

    def add(site: Site) -> Reconstruct:
        def zero(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
            leaf = leaves[site] = torch.zeros_like(rows.target, requires_grad=True)
            return rows.target + leaf

        return zero

    with torch.enable_grad():
        logits = model.run(examples.clean, examples.keep, {site: add(site) for site in model.sites}, forward)
        total = differentiable(metric, logits, examples).sum()
        last = logits[:, -1:].detach()
        # measure a distance from the clean run against this very run, so that rounding can't hide a zero gradient
        own = examples if examples.reference is None else replace(examples, reference=last[:, 0])
        require_gradient(metric, last, own)
        found = torch.autograd.grad(total, [leaves[site] for site in model.sites])
    return dict(zip(model.sites, found, strict=True))


def differentiable(
    metric: Metric, logits: Float[Tensor, "n_examples n_logits d_vocab"], examples: Examples
) -> Float[Tensor, " n_examples"]:
    """The metric of a run, with its autograd graph.

    Raises:
        SaescopeError: the metric has no gradient.
    """
    found = value(metric, logits, examples)
    if not found.requires_grad:
        raise SaescopeError(
            "The metric has no gradient with respect to the logits, which attribution, relp and ig need: write it with "
            "differentiable torch functions (a logit difference rather than whether the answer is right)."
        )
    return found
