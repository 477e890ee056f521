"""Drives a sparsity coefficient λ until the mean L0 is the one asked for.

λ acts on L0 slowly (through the weights) and over orders of magnitude, so the controller works on logarithms. It does
not ask for the target at once: a λ that has to do so overshoots, and the features it kills on the way stay dead. The L0
it wants goes in a straight line, on a logarithmic scale, from the first one seen to the target, over the `approach`:

    wanted = first^(1 − t) target^t,   t = min(1, n / steps)      e = log(L0 / wanted), L0 averaged over some ten steps
    λ = exp(u + damping · e)                                      u ← u + gain · t / steps · e

`steps` is the length of the approach, so that a longer training is steered more slowly. The integral comes in as the
approach goes on: before, it would add up how far the weights lag behind a target that moves. It does not slow down with
the learning rate, whose fall moves what λ buys. With a plant that settles log L0 at c − a·log λ after a lag of τ steps
the loop is of second order, its damping ratio (1 + a·damping) / (2 √(a·gain·τ / steps)): above 0.7 while τ is below a
fifth of the approach, for a = 1.

A quick approach costs quality, as λ has to hurry and overshoots: on a residual stream, in 312 steps to an L0 of 32, ReLU +
L1 ends at an FVE of 0.77 with an approach of 40 %, and of 0.71 with one of 20 %.
"""

import math

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae.section import Section
from sae.units import Duration

AVERAGE = 0.9
"""Decay per step of the average of log L0."""


class Sparsity(Section):
    """A fixed coefficient, or the L0 that a controller steers it to. Give exactly one."""

    coefficient: float | None = Field(default=None, gt=0)
    """A fixed coefficient of the sparsity term."""
    target_l0: float | None = Field(default=None, gt=0)
    """Mean active features per row that the controller reaches by moving the coefficient."""
    approach: Duration = Duration(40, "%")
    """The stretch over which the L0 asked for goes from the first one to the target."""
    start: float = Field(default=1.0, gt=0)
    """Coefficient the controller begins with."""
    gain: float = Field(default=10.0, gt=0)
    """How far log(coefficient) moves in the length of an approach for each unit of log(L0 / wanted)."""
    damping: float = Field(default=1.0, ge=0)
    """Weight of the proportional part, which keeps the integral from overshooting."""

    @model_validator(mode="after")
    def _one_of(self) -> "Sparsity":
        if (self.coefficient is None) == (self.target_l0 is None):
            raise ValueError("give either a coefficient or a target_l0")
        return self


class Controller:
    """The state: four numbers, kept where L0 is measured, so that nobody waits for it; saved with a checkpoint."""

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
        """log(L0 / wanted) of this moment; 0 before anything was seen."""
        assert self.config.target_l0 is not None
        _, log_l0, first, _ = self._numbers
        share = self.share
        return torch.nan_to_num(log_l0 - (1 - share) * first - share * math.log(self.config.target_l0), nan=0.0)

    @property
    def share(self) -> Float[Tensor, ""]:
        """How much of the approach is behind."""
        return (self._numbers[3] / max(1, self.steps)).clamp(max=1.0)

    @property
    def coefficient(self) -> float | Float[Tensor, ""]:
        """The coefficient in force: a number, or where it is steered a tensor."""
        if self.config.coefficient is not None:
            return self.config.coefficient
        return (self._numbers[0] + self.config.damping * self.error).exp()

    @property
    def steers(self) -> bool:
        """Whether the coefficient moves at all."""
        return self.config.target_l0 is not None

    @torch.no_grad()
    def update(self, l0: float | Float[Tensor, ""]) -> None:
        """One step's mean L0, active features per row, has been measured."""
        if self.config.target_l0 is None:
            return
        log_coefficient, log_l0, first, n = self._numbers
        now = torch.as_tensor(l0, dtype=first.dtype, device=first.device).clamp_min(1e-3).log()
        unseen = first.isnan()
        log_l0.copy_(torch.where(unseen, now, AVERAGE * log_l0 + (1 - AVERAGE) * now))
        first.copy_(torch.where(unseen, now, first))
        n += 1
        # while the target is out of reach the integral must not wind up: a bounded error, and in the end a bounded sum
        # far beyond any use, and far from overflow
        gain = self.config.gain * self.share / max(1, self.steps)
        log_coefficient.add_(gain * self.error.clamp(-1, 1)).clamp_(-50, 50)

    def state(self) -> dict[str, float | None]:
        """What a checkpoint keeps."""
        values = zip(("log_coefficient", "log_l0", "first", "n"), self._numbers.tolist(), strict=True)
        return {name: None if math.isnan(value) else value for name, value in values}

    def load(self, state: dict[str, float | None]) -> None:
        """Continue from a checkpoint."""
        names = ("log_coefficient", "log_l0", "first", "n")
        values = [math.nan if (value := state[name]) is None else value for name in names]
        self._numbers.copy_(torch.tensor(values, dtype=self._numbers.dtype))
