"""Convert durations to steps; the learning rate schedule."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae.errors import SaescopeError
from sae.units import Duration
from training.config.schema import OptimConfig


@dataclass(frozen=True)
class Clock:
    """The length of a run, used to convert durations to rows and steps."""

    budget_rows: int
    batch_rows: int
    epoch_rows: int

    @classmethod
    def of(cls, budget: Duration, *, batch_rows: int, epoch_rows: int) -> "Clock":
        """The clock of a budget.

        Raises:
            SaescopeError: the budget is a percentage, or shorter than one batch.
        """
        if budget.unit == "%":
            raise SaescopeError(f"train.budget = {budget}: a budget cannot be a percentage; use for example '4 epochs'.")
        rows = budget.rows(budget_rows=0, batch_rows=batch_rows, epoch_rows=epoch_rows)
        if rows < batch_rows:
            raise SaescopeError(
                f"train.budget = {budget} is {rows} rows, less than one batch of data.batch_rows = {batch_rows}."
            )
        return cls(rows, batch_rows, epoch_rows)

    @property
    def n_steps(self) -> int:
        """Steps in the budget."""
        return self.budget_rows // self.batch_rows

    def rows(self, duration: Duration) -> int:
        """Convert a duration to training rows."""
        return duration.rows(
            budget_rows=self.budget_rows, batch_rows=self.batch_rows, epoch_rows=self.epoch_rows
        )

    def shortest(self, durations: Sequence[Duration]) -> int:
        """The shortest of several durations, in training rows; at least one."""
        return max(1, min(map(self.rows, durations)))

    def steps(self, duration: Duration) -> int:
        """Convert a duration to steps, at least one."""
        return max(1, round(self.rows(duration) / self.batch_rows))

    def through(self, duration: Duration, step: int) -> float:
        """The fraction of a duration, counted from the start, that has passed after `step` steps; 1 if it is zero."""
        rows = self.rows(duration)
        return 1.0 if rows == 0 else min(1.0, step * self.batch_rows / rows)


def learning_rate(optim: OptimConfig, clock: Clock, step: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, plateau, linear decay to 0 at one step after the last."""
    assert optim.lr is not None, "set where a config is read"
    rise = clock.rows(optim.warmup) / clock.batch_rows
    fall = clock.rows(optim.decay) / clock.batch_rows
    up = min(1.0, (step + 1) / rise) if rise >= 1 else 1.0
    down = min(1.0, (clock.n_steps - step) / fall) if fall >= 1 else 1.0
    return optim.lr * up * down
