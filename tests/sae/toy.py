"""Sums of a few known directions, and a training of seconds on them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import SAE, Progress
from sae.controller import Controller, Sparsity
from sae.init import initialise
from sae.kernels import ParamState
from sae.variants import VARIANTS

D, N_TRUE, ACTIVE = 24, 48, 3.0


class Toy:
    """Rows of norm √D on average: each direction is present with the same probability, with a length of its own."""

    def __init__(self, *, bipolar: bool = False, n_true: int = N_TRUE, d: int = D) -> None:
        self.generator = torch.Generator().manual_seed(0)
        directions = torch.randn(n_true, d, generator=self.generator)
        self.directions = directions / directions.norm(dim=1, keepdim=True)
        self.bipolar, self.scale = bipolar, 1.0
        self.scale = float((d / self.rows(4096).square().sum(1).mean()).sqrt())

    def rows(self, n: int) -> Float[Tensor, "n d"]:
        """New rows."""
        size = (n, len(self.directions))
        present = torch.rand(size, generator=self.generator) < ACTIVE / len(self.directions)
        lengths = present * (1 + torch.rand(size, generator=self.generator))
        if self.bipolar:
            lengths *= 1 - 2 * (torch.rand(size, generator=self.generator) < 0.5).float()
        x = lengths @ self.directions
        return self.scale * (x + 0.05 * torch.randn(x.shape, generator=self.generator))


def train(
    toy: Toy, variant: str, *, n_steps: int = 800, lr: float = 3e-3, d_sae: int = N_TRUE, decay: float = 0.3,
    **fields: object,
) -> SAE:
    """A trained SAE; the schedule is that of the configs, made short, its rate falling over the last share `decay`."""
    with one_thread():
        return _train(toy, variant, n_steps, lr, decay, d_sae, fields)


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads that wait for each other at every tiny operation cost more than they save, on a busy machine fortyfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(
    toy: Toy, variant: str, n_steps: int, lr: float, decay: float, d_sae: int, fields: dict[str, object]
) -> SAE:
    sae_class, config = VARIANTS[variant]
    sae = sae_class(config.model_validate({"d_sae": d_sae, **fields}), toy.directions.shape[1])
    initialise(sae, toy.rows(1024))
    sparsity = getattr(sae.config, "sparsity", Sparsity(coefficient=1.0))
    controller = Controller(sparsity, round(n_steps * sparsity.approach.value / 100))
    params = [
        ParamState(p, torch.zeros_like(p), torch.zeros_like(p), unit_rows=name == "W_dec" and sae.unit_norm_decoder)
        for name, p in sae.named_parameters() if p.requires_grad
    ]
    nothing = torch.zeros(d_sae, dtype=torch.bool)
    for n in range(n_steps):
        x = toy.rows(512)
        progress = Progress(
            nothing, lambda over, n=n: min(1.0, n / (n_steps * over.value / 100)), controller.coefficient, n
        )
        step = sae.losses(x, x, progress)
        step.loss.backward()
        pace = min(1.0, (n_steps - n) / (decay * n_steps)) if decay else 1.0
        sae.kernels.optimizer_step(params, step=n + 1, lr=lr * pace, betas=(0.9, 0.999), eps=1e-8, clip=1.0)
        sae.zero_grad(set_to_none=True)
        sae.observe(step)
        controller.update(float(step.code.n_active / step.code.n_rows))
    return sae


def fve(sae: SAE, x: Float[Tensor, "n d"]) -> float:
    """Fraction of variance explained."""
    return float(1 - (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum())
