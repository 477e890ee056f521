"""Room for dead features: at least as many as there are, so that nobody waits for a device to count them.

Once in a while the device is asked how many features can be dead until the next look: those that are if none of them
fires. A look reaches no further than the dead window, for what fires after it cannot be dead before the next.

The room comes in few sizes, for a step of another size is captured anew. It grows at once, and shrinks when much less
has been needed for a while. Where looking costs nothing it is the number itself.
"""

from typing import Any

EVERY = 32
"""Steps between two looks."""
LEAST = 128
"""Features that there is room for, if for any."""
PATIENCE = 8
"""Looks in a row that need at most half of the room before it shrinks."""


class Room:
    """The room, and what it was needed for."""

    def __init__(self, d_sae: int, every: int) -> None:
        """`every`: steps between two looks; 1 where looking costs nothing."""
        self.d_sae, self.every = d_sae, every
        self.n: int | None = None
        """None: nobody has looked yet."""
        self._n_idle = 0

    def is_due(self, n_steps: int) -> bool:
        """Whether to look before the step after `n_steps`."""
        return self.n is None or n_steps % self.every == 0

    def last(self, n_steps: int) -> int:
        """The last step before the next look, as steps before it."""
        return n_steps - n_steps % self.every + self.every - 1

    def found(self, n_dead: int) -> None:
        """So many features can be dead until the next look."""
        if self.every == 1:
            self.n = n_dead
            return
        needed = min(self.d_sae, max(LEAST, 1 << (n_dead - 1).bit_length())) if n_dead else 0
        before = self.n or 0
        self._n_idle = self._n_idle + 1 if 2 * needed <= before else 0
        if self.n is None or n_dead > before or self._n_idle >= PATIENCE:
            self.n, self._n_idle = needed, 0

    def state(self) -> dict[str, int | None]:
        """For a checkpoint."""
        return {"n": self.n, "n_idle": self._n_idle}

    def load(self, state: dict[str, Any] | None) -> None:
        """From a checkpoint; None: of an older one, which had none."""
        self.n, self._n_idle = (None, 0) if state is None else (state["n"], state["n_idle"])
