"""Logistic probes in fp64, fitted to the optimum, so that the result depends on the data alone.

    minimise  Σ_r w_r · BCE(y_r, x̃_r · θ + b) / Σ_r w_r  +  λ/2 ‖θ‖²         x̃ = (x − mean) / std of the rows fitted on

The bias is not penalised. `balanced` weights give each class half of the total weight. With λ = 0.01 and these weights the
objective is that of transformer-lens' `sparse_probing` (`class_weight="balanced"`, `preprocess="standardize"`,
`std_floor=0`). Since inputs are standardised, λ means the same at any feature scale.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

L2 = 0.01
NARROW = 32
"""Maximum number of inputs for Newton's method; wider probes use L-BFGS, all at once."""
_NEWTON_STEPS, _HALVINGS, _TINY = 100, 40, 1e-14


@dataclass(frozen=True)
class Scale:
    """Standardisation of inputs; constant inputs become 0."""

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]

    @classmethod
    def of(cls, x: Float[Tensor, "n d"]) -> "Scale":
        """Mean and standard deviation (divided by n) of these rows."""
        std = x.double().std(0, correction=0)
        return cls(x.double().mean(0), torch.where(std > 0, std, 1.0))

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Standardise rows, in fp64."""
        return (x.double() - self.mean) / self.std


@dataclass(frozen=True)
class Probes:
    """Probes over the same inputs; `theta` acts on standardised inputs."""

    theta: Float[Tensor, "d n_probes"]
    bias: Float[Tensor, " n_probes"]
    scale: Scale

    def logits(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n n_probes"]:
        """Log odds of the positive class."""
        return self.scale(x) @ self.theta + self.bias

    @property
    def directions(self) -> Float[Tensor, "n_probes d"]:
        """Gradient of each probe's logit with respect to the raw inputs."""
        return (self.theta / self.scale.std[:, None]).t()


def balanced(y: Bool[Tensor, "n n_probes"], used: Bool[Tensor, "n n_probes"] | None = None) -> Float[Tensor, "n n_probes"]:
    """Weights that sum to 1 for each probe, half for each class; rows not `used` have weight 0."""
    used = torch.ones_like(y) if used is None else used
    both = (y & used).double(), (~y & used).double()
    return sum((0.5 * part / part.sum(0).clamp_min(1) for part in both), torch.zeros(y.shape, dtype=torch.float64))


def fit(
    x: Float[Tensor, "n d"], y: Bool[Tensor, "n n_probes"], weights: Float[Tensor, "n n_probes"] | None = None,
    *, l2: float = L2,
) -> Probes:
    """Fit one probe per column of `y`, over the same inputs.

    Args:
        x: inputs; standardised over all given rows.
        y: mask of positive rows.
        weights: weight of each row for each probe; default `balanced(y)`.
        l2: λ.
    """
    scale = Scale.of(x)
    z, target = scale(x), y.double()
    weights = balanced(y) if weights is None else weights / weights.sum(0).clamp_min(1e-300)
    if x.shape[1] > NARROW:
        return _wide(z, target, weights, l2, scale)
    design = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], 1)
    columns = [_newton(design, t, w, l2) for t, w in zip(target.t(), weights.t(), strict=True)]
    found = torch.stack(columns, 1) if columns else design.new_zeros(design.shape[1], 0)
    return Probes(found[:-1], found[-1], scale)


def _loss(design: Tensor, target: Tensor, weights: Tensor, l2: float, parameters: Tensor) -> Tensor:
    logits = design @ parameters
    nats = torch.nn.functional.softplus(logits) - target * logits
    return (weights * nats).sum() + 0.5 * l2 * parameters[:-1].square().sum()


def _newton(design: Tensor, target: Tensor, weights: Tensor, l2: float) -> Tensor:
    """Newton's method with step halving. The objective is convex, and strictly so except in the bias."""
    parameters = design.new_zeros(design.shape[1])
    penalty = torch.full_like(parameters, l2)
    penalty[-1] = 0
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(design @ parameters)
        gradient = design.t() @ (weights * (p - target)) + penalty * parameters
        hessian = (design * (weights * p * (1 - p))[:, None]).t() @ design + torch.diag(penalty + _TINY)
        step = torch.linalg.solve(hessian, gradient)
        if 0.5 * float(gradient @ step) < _TINY:
            break
        before, size = _loss(design, target, weights, l2, parameters), 1.0
        for _ in range(_HALVINGS):
            if _loss(design, target, weights, l2, parameters - size * step) <= before:
                break
            size /= 2
        parameters = parameters - size * step
    return parameters


def _wide(z: Tensor, target: Tensor, weights: Tensor, l2: float, scale: Scale) -> Probes:
    """Fit all probes at once: their objectives share no parameters, so their sum has the same optimum."""
    n, width = target.shape[1], z.shape[1] + 1
    design = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], 1)
    with torch.enable_grad():
        parameters = torch.zeros(width, n, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [parameters], max_iter=300, tolerance_grad=1e-7, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            logits = design @ parameters
            nats = torch.nn.functional.softplus(logits) - target * logits
            loss = (weights * nats).sum() + 0.5 * l2 * parameters[:-1].square().sum()
            (parameters.grad,) = torch.autograd.grad(loss, parameters)
            return loss.detach()

        optimiser.step(closure)  # type: ignore[arg-type]
    found = parameters.detach()
    return Probes(found[:-1], found[-1], scale)
