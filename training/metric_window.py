"""Accumulate training metrics on the device between two log lines."""

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor


class Window:
    """Sums of the logged values since the last log line, kept on the device and read all at once."""

    N = 64
    """Maximum number of logged values."""

    def __init__(self, device: torch.device) -> None:
        self.n_steps, self.lr = 0, 0.0
        self._names: list[str] = []
        self._sums = torch.zeros(self.N, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)

    def count(self, lr: float) -> None:
        """Count one more step, at this learning rate."""
        self.n_steps, self.lr = self.n_steps + 1, lr

    def add(self, values: dict[str, float | Tensor]) -> None:
        """Add one step's values, all scalars."""
        self._names += [name for name in values if name not in self._names]
        device = self._sums.device
        row = (values.get(name, 0.0) for name in self._names)
        numbers = [v.float() if isinstance(v, Tensor) else torch.full((), v, device=device) for v in row]
        self._sums[: len(numbers)] += torch.stack(numbers)

    def _read(self, *more: Tensor) -> list[float]:
        sums = self._sums[: len(self._names)]
        return torch.cat([sums, *(number.to(sums.dtype).view(1) for number in more)]).tolist()

    def means(self, n: Int64[Tensor, ""]) -> tuple[dict[str, float], float]:
        """Mean per step of each value, with the last learning rate; and `n`, read in the same transfer."""
        *sums, number = self._read(n)
        means = {name: value / max(1, self.n_steps) for name, value in zip(self._names, sums, strict=True)}
        return {"lr": self.lr} | means, number

    def clear(self) -> None:
        """Reset the sums."""
        self.n_steps = 0
        self._sums.zero_()

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"n_steps": self.n_steps, "lr": self.lr, "sums": dict(zip(self._names, self._read(), strict=True))}

    def load(self, n_steps: int, lr: float, sums: dict[str, float]) -> None:
        """Restore the state from a checkpoint."""
        self.n_steps, self.lr, self._names = n_steps, lr, list(sums)
        self._sums.zero_()
        self._sums[: len(sums)] = torch.tensor(list(sums.values()), dtype=self._sums.dtype)
