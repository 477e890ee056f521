"""Gradients of a metric at the clean run, all sites at once: attribution patching (Marks et al. 2403.19647, eq. 3).

One forward and one backward pass of the model itself: zero is added at each site, and the gradient of that zero is
∂metric/∂target with everything behind the site answering. No reconstruction lies in the path.
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
    """∂metric/∂target of every site at the clean run; one batch.

    Args:
        forward: the model, or one that is linear, or has other backward rules.

    Raises:
        SaescopeError: a metric that has no gradient, or none at the clean run.
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
        # a distance from the clean run is taken from this very run, so that rounding does not hide that it is flat
        own = examples if examples.reference is None else replace(examples, reference=last[:, 0])
        require_gradient(metric, last, own)
        found = torch.autograd.grad(total, [leaves[site] for site in model.sites])
    return dict(zip(model.sites, found, strict=True))


def differentiable(
    metric: Metric, logits: Float[Tensor, "n_examples n_logits d_vocab"], examples: Examples
) -> Float[Tensor, " n_examples"]:
    """The metric of a run under autograd.

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
