"""Metrics on last-position logits: one differentiable number per example.

    logit_difference        mean logit of the right answers − mean logit of the wrong ones
    log_probability         log of the right answers' total probability
    probability_difference  probability of the right answers − that of the wrong ones (Hanna et al. 2305.00586)
    kl                      KL(clean ‖ run) in nats, over the whole next-token distribution
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analysis.circuits.tasks.examples import Examples, Metric, value
from sae.errors import SaescopeError
from training.model.language_model import Model

_FLAT = 1e-4
"""A gradient at the clean point below this share of its size elsewhere counts as rounding."""


def logit_difference(
    logits: Float[Tensor, "n_examples d_vocab"], examples: Examples
) -> Float[Tensor, " n_examples"]:
    """Mean logit of the right answers − mean logit of the wrong answers."""
    return _mean(logits, examples.right) - _mean(logits, examples.wrong)


def log_probability(logits: Float[Tensor, "n_examples d_vocab"], examples: Examples) -> Float[Tensor, " n_examples"]:
    """log Σ p over the right answers, in nats."""
    return _log_sum(logits, examples.right)


def probability_difference(
    logits: Float[Tensor, "n_examples d_vocab"], examples: Examples
) -> Float[Tensor, " n_examples"]:
    """Σ p over the right answers − Σ p over the wrong answers."""
    return _log_sum(logits, examples.right).exp() - _log_sum(logits, examples.wrong).exp()


def kl(logits: Float[Tensor, "n_examples d_vocab"], examples: Examples) -> Float[Tensor, " n_examples"]:
    """KL(reference ‖ logits) in nats; 0 in the clean run, where its gradient is 0 too (`require_gradient`).

    Unlike with the other metrics, nodes that support the clean answer have positive effects.
    """
    assert examples.reference is not None, "kl compares with the logits that `with_reference` adds"
    clean = examples.reference.to(logits).log_softmax(-1)
    return (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)


METRICS: dict[str, Metric] = {
    "logit_difference": logit_difference, "log_probability": log_probability,
    "probability_difference": probability_difference, "kl": kl,
}
"""Metrics by their names in configs."""
COMPARES: frozenset[Metric] = frozenset({logit_difference, probability_difference})
"""Metrics that need wrong answers."""


@torch.no_grad()
def with_reference(model: Model, examples: Examples, *, batch: int = 32) -> Examples:
    """Add the logits of the clean runs to the examples, for `kl`."""
    parts = [model.logits(part.clean)[:, -1].float().cpu() for part in examples.batches(batch)]
    return replace(examples, reference=torch.cat(parts))


def require_gradient(metric: Metric, logits: Float[Tensor, "n_examples n_logits d_vocab"], examples: Examples) -> None:
    """Check that the metric has a non-zero gradient at the clean run.

    For estimators that only use the gradient there. KL to the clean run has its minimum there, so its gradient is 0.

    Args:
        logits: logits of the clean prompts of `examples`.

    Raises:
        SaescopeError: the metric isn't differentiable, or its gradient is zero at the clean run of every example.
    """
    here, half = _steepness(metric, logits, examples), _steepness(metric, logits / 2, examples)
    if not here > _FLAT * half:
        raise SaescopeError(
            f"The metric {name_of(metric)} has no gradient at the clean run (a distance from the clean run is minimal "
            "there), so attribution would give every node an effect of 0: use integrated gradients (ig), exact ablation, "
            "or another metric such as log_probability."
        )


def name_of(metric: Metric) -> str:
    """Name of a metric, as in configs or Python."""
    return str(getattr(metric, "__name__", type(metric).__name__))


def _steepness(metric: Metric, logits: Tensor, examples: Examples) -> float:
    """Largest |gradient| of any logit of any example; 0 without a gradient."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        total = value(metric, leaf, examples).sum()
        if not total.requires_grad:
            return 0.0
        (grad,) = torch.autograd.grad(total, leaf, allow_unused=True)
    return 0.0 if grad is None else float(grad.abs().max())


def _mean(logits: Tensor, tokens: Int64[Tensor, "n_examples n"]) -> Float[Tensor, " n_examples"]:
    there = tokens >= 0
    found = logits.gather(1, tokens.clamp_min(0).to(logits.device)) * there.to(logits)
    return found.sum(1) / there.sum(1).to(logits)


def _log_sum(logits: Tensor, tokens: Int64[Tensor, "n_examples n"]) -> Float[Tensor, " n_examples"]:
    tokens = tokens.to(logits.device)
    found = logits.log_softmax(-1).gather(1, tokens.clamp_min(0))
    return found.masked_fill(tokens < 0, -torch.inf).logsumexp(1)
