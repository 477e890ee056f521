"""PI controller that moves the sparsity coefficient λ until the mean L0 reaches its target.

λ acts on L0 slowly (through the weights) and over orders of magnitude, so the controller works on logarithms. It does
not jump to the target: λ would overshoot, and the features this kills stay dead. The set point moves in a straight line,
on a log scale, from the first measured L0 to the target, over the `approach`:

    wanted = first^(1 − t) target^t,   t = min(1, n / steps)      e = log(L0 / wanted), L0 averaged over about ten steps
    λ = exp(u + damping · e)                                      u ← u + gain · t / steps · e

`steps` is the length of the approach, so longer runs are steered more slowly. The integral gain ramps up during the
approach: earlier it would only accumulate the lag of the weights behind a moving set point. It is not scaled down with
the learning rate, because the decay of the learning rate changes the L0 that a given λ gives. With a plant that settles
log L0 at c − a·log λ after a lag of τ steps, the loop is of second order with damping ratio
(1 + a·damping) / (2 √(a·gain·τ / steps)): above 0.7 while τ is below a fifth of the approach, for a = 1.

A short approach costs quality, because λ overshoots: on a residual stream, in 312 steps to an L0 of 32, ReLU + L1 ends at
an FVE of 0.77 with an approach of 40 %, and of 0.71 with one of 20 %.
"""

import math

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae.section import Section
from sae.units import Duration

AVERAGE = 0.9
"""Decay per step of the moving average of log L0."""


class Sparsity(Section):
    """A fixed sparsity coefficient, or a target L0 for the controller. Give exactly one."""

    coefficient: float | None = Field(default=None, gt=0)
    """Fixed coefficient of the sparsity penalty."""
    target_l0: float | None = Field(default=None, gt=0)
    """Target for the mean number of active features per row; the controller moves the coefficient to reach it."""
    approach: Duration = Duration(40, "%")
    """How long the controller's set point takes from the initial L0 to the target."""
    start: float = Field(default=1.0, gt=0)
    """Initial coefficient of the controller."""
    gain: float = Field(default=10.0, gt=0)
    """Integral gain: how far log(coefficient) moves during one approach per unit of log(L0 / wanted)."""
    damping: float = Field(default=1.0, ge=0)
    """Proportional gain, which keeps the integral from overshooting."""

    @model_validator(mode="after")
    def _one_of(self) -> "Sparsity":
        if (self.coefficient is None) == (self.target_l0 is None):
            raise ValueError("give either a coefficient or a target_l0")
        return self


class Controller:
    """Controller state: four numbers on the device where L0 is measured, so no step has to sync. Saved in checkpoints."""

    def __init__(self, config: Sparsity, steps: int, device: torch.device | str = "cpu") -> None:
        """`steps` is the length of the approach."""
        self.config, self.steps = config, steps
        kind = torch.device(device).type
        # log λ; the average of log L0 and log L0 of the first step, NaN before it; steps seen
        self._numbers = torch.tensor(
            [math.log(config.start), math.nan, math.nan, 0.0], dtype=torch.float32 if kind == "mps" else torch.float64
        ).to(device)

    @property
    def error(self) -> Float[Tensor, ""]:
        """Current log(L0 / wanted); 0 before the first measurement."""
        assert self.config.target_l0 is not None
        _, log_l0, first, _ = self._numbers
        share = self.share
        return torch.nan_to_num(log_l0 - (1 - share) * first - share * math.log(self.config.target_l0), nan=0.0)

    @property
    def share(self) -> Float[Tensor, ""]:
        """Fraction of the approach completed, 0 to 1."""
        return (self._numbers[3] / max(1, self.steps)).clamp(max=1.0)

    @property
    def coefficient(self) -> float | Float[Tensor, ""]:
        """The current coefficient: a number if fixed, a tensor if the controller moves it."""
        if self.config.coefficient is not None:
            return self.config.coefficient
        return (self._numbers[0] + self.config.damping * self.error).exp()

    @property
    def steers(self) -> bool:
        """Whether the controller moves the coefficient."""
        return self.config.target_l0 is not None

    @torch.no_grad()
    def update(self, l0: float | Float[Tensor, ""]) -> None:
        """Advance by one step, given its mean L0 (active features per row)."""
        if self.config.target_l0 is None:
            return
        log_coefficient, log_l0, first, n = self._numbers
        now = torch.as_tensor(l0, dtype=first.dtype, device=first.device).clamp_min(1e-3).log()
        unseen = first.isnan()
        log_l0.copy_(torch.where(unseen, now, AVERAGE * log_l0 + (1 - AVERAGE) * now))
        first.copy_(torch.where(unseen, now, first))
        n += 1
        # anti-windup while the target is out of reach: clamp the error, and the sum well below overflow
        gain = self.config.gain * self.share / max(1, self.steps)
        log_coefficient.add_(gain * self.error.clamp(-1, 1)).clamp_(-50, 50)

    def state(self) -> dict[str, float | None]:
        """State for a checkpoint."""
        values = zip(("log_coefficient", "log_l0", "first", "n"), self._numbers.tolist(), strict=True)
        return {name: None if math.isnan(value) else value for name, value in values}

    def load(self, state: dict[str, float | None]) -> None:
        """Restore the state of a checkpoint."""
        names = ("log_coefficient", "log_l0", "first", "n")
        values = [math.nan if (value := state[name]) is None else value for name in names]
        self._numbers.copy_(torch.tensor(values, dtype=self._numbers.dtype))
