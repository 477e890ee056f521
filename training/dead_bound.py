"""An upper bound on the number of dead features, so that AuxK needn't synchronise with the device in every step.

Every few steps the device counts how many features can be dead until the next check, if none of them fires. The interval
between checks is at most the dead window, so a feature that fires after a check cannot be dead before the next one.

The bound takes few sizes, since the step is captured again whenever it changes. It grows at once, and shrinks after much
less has been needed for a while. Where counting costs nothing it is the exact count.
"""

from typing import Any

EVERY = 32
"""Steps between two checks."""
LEAST = 128
"""Smallest bound above 0."""
PATIENCE = 8
"""Consecutive checks that need at most half of the bound before it shrinks."""


class DeadBound:
    """The bound `n`, with the state that decides when it shrinks."""

    def __init__(self, d_sae: int, every: int) -> None:
        """`every`: steps between two checks; 1 if counting costs nothing."""
        self.d_sae, self.every = d_sae, every
        self.n: int | None = None
        """None before the first check."""
        self._n_idle = 0

    def is_due(self, n_steps: int) -> bool:
        """Whether to check before the step after `n_steps`."""
        return self.n is None or n_steps % self.every == 0

    def last(self, n_steps: int) -> int:
        """The last step before the next check, as the number of steps before it."""
        return n_steps - n_steps % self.every + self.every - 1

    def found(self, n_dead: int) -> None:
        """Update the bound: at most `n_dead` features can be dead until the next check."""
        if self.every == 1:
            self.n = n_dead
            return
        needed = min(self.d_sae, max(LEAST, 1 << (n_dead - 1).bit_length())) if n_dead else 0
        before = self.n or 0
        self._n_idle = self._n_idle + 1 if 2 * needed <= before else 0
        if self.n is None or n_dead > before or self._n_idle >= PATIENCE:
            self.n, self._n_idle = needed, 0

    def state(self) -> dict[str, int | None]:
        """State for a checkpoint."""
        return {"n": self.n, "n_idle": self._n_idle}

    def load(self, state: dict[str, Any] | None) -> None:
        """Restore from a checkpoint; None for an older one without this state."""
        self.n, self._n_idle = (None, 0) if state is None else (state["n"], state["n_idle"])
