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
from dataclasses import dataclass

from pydantic import Field, model_validator

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


@dataclass
class Controller:
    """The state: four numbers, saved with a checkpoint."""

    config: Sparsity
    steps: int
    """Length of the approach."""
    log_coefficient: float = 0.0
    log_l0: float | None = None
    first: float | None = None
    """log L0 of the first step."""
    n: int = 0
    """Steps seen."""

    def __post_init__(self) -> None:
        """Begin at the configured coefficient."""
        self.log_coefficient = math.log(self.config.start)

    @property
    def error(self) -> float:
        """log(L0 / wanted) of this moment; 0 before anything was seen."""
        if self.log_l0 is None or self.first is None or self.config.target_l0 is None:
            return 0.0
        return self.log_l0 - (1 - self.share) * self.first - self.share * math.log(self.config.target_l0)

    @property
    def share(self) -> float:
        """How much of the approach is behind."""
        return min(1.0, self.n / max(1, self.steps))

    @property
    def coefficient(self) -> float:
        """The coefficient in force."""
        if self.config.coefficient is not None:
            return self.config.coefficient
        return math.exp(self.log_coefficient + self.config.damping * self.error)

    @property
    def steers(self) -> bool:
        """Whether the coefficient moves at all."""
        return self.config.target_l0 is not None

    def update(self, l0: float) -> None:
        """One step's mean L0, active features per row, has been measured."""
        if self.config.target_l0 is None:
            return
        now = math.log(max(l0, 1e-3))
        self.log_l0 = now if self.log_l0 is None else AVERAGE * self.log_l0 + (1 - AVERAGE) * now
        self.first = now if self.first is None else self.first
        self.n += 1
        # while the target is out of reach the integral must not wind up: a bounded error, and in the end a bounded sum
        # far beyond any use, and far from overflow
        gain = self.config.gain * self.share / max(1, self.steps)
        moved = self.log_coefficient + gain * max(-1.0, min(1.0, self.error))
        self.log_coefficient = max(-50.0, min(50.0, moved))

    def state(self) -> dict[str, float | None]:
        """What a checkpoint keeps."""
        return {"log_coefficient": self.log_coefficient, "log_l0": self.log_l0, "first": self.first, "n": self.n}

    def load(self, state: dict[str, float | None]) -> None:
        """Continue from a checkpoint."""
        assert state["log_coefficient"] is not None
        self.log_coefficient, self.log_l0 = state["log_coefficient"], state["log_l0"]
        self.first, self.n = state["first"], int(state["n"] or 0)
