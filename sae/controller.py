"""Drives a sparsity coefficient until the mean L0 is the one asked for.

The coefficient acts on L0 slowly (through the weights) and over orders of magnitude, so the controller works on its
logarithm: proportional and integral feedback on log(L0 / target), with the L0 averaged over the last steps.

    u ← u + gain · log(L0 / target)        coefficient = exp(u + damping · log(L0 / target))
"""

import math
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Sparsity(BaseModel):
    """A fixed coefficient, or the L0 that a controller steers it to. Give exactly one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    coefficient: float | None = Field(default=None, gt=0)
    """A fixed coefficient of the sparsity term."""
    target_l0: float | None = Field(default=None, gt=0)
    """Mean active features per row that the controller reaches by moving the coefficient."""
    start: float = Field(default=1.0, gt=0)
    """Coefficient the controller begins with."""
    gain: float = Field(default=0.02, gt=0)
    """How fast log(coefficient) follows log(L0 / target), per step."""
    damping: float = Field(default=1.0, ge=0)
    """Weight of the proportional part, which keeps the integral from overshooting."""

    @model_validator(mode="after")
    def _one_of(self) -> "Sparsity":
        if (self.coefficient is None) == (self.target_l0 is None):
            raise ValueError("give either a coefficient or a target_l0")
        return self


@dataclass
class Controller:
    """The state: two numbers, saved with a checkpoint."""

    config: Sparsity
    log_coefficient: float = 0.0
    log_l0: float | None = None

    def __post_init__(self) -> None:
        """Begin at the configured coefficient."""
        self.log_coefficient = math.log(self.config.start)

    @property
    def coefficient(self) -> float:
        """The coefficient in force."""
        if self.config.target_l0 is None:
            assert self.config.coefficient is not None
            return self.config.coefficient
        error = 0.0 if self.log_l0 is None else self.log_l0 - math.log(self.config.target_l0)
        return math.exp(self.log_coefficient + self.config.damping * error)

    @property
    def steers(self) -> bool:
        """Whether the coefficient moves at all."""
        return self.config.target_l0 is not None

    def update(self, l0: float) -> None:
        """One step's mean L0 has been measured."""
        if self.config.target_l0 is None:
            return
        now = math.log(max(l0, 1e-3))
        self.log_l0 = now if self.log_l0 is None else 0.9 * self.log_l0 + 0.1 * now
        error = self.log_l0 - math.log(self.config.target_l0)
        # a coefficient that cannot act yet (warm-up) must not wind up without bound
        moved = self.log_coefficient + self.config.gain * max(-1.0, min(1.0, error))
        # a target out of reach: far beyond any use, and far from overflow
        self.log_coefficient = max(-50.0, min(50.0, moved))

    def state(self) -> dict[str, float | None]:
        """What a checkpoint keeps."""
        return {"log_coefficient": self.log_coefficient, "log_l0": self.log_l0}

    def load(self, state: dict[str, float | None]) -> None:
        """Continue from a checkpoint."""
        assert state["log_coefficient"] is not None
        self.log_coefficient, self.log_l0 = state["log_coefficient"], state["log_l0"]
