"""Weights, rows and a loss, through any backend: what the tests of the cpu backend share."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sae.kernels import Autoencoded, Backend, ParamState, Revival, Select, backend

MODES = list(itertools.product(("topk", "batch_topk", "threshold"), (False, True)))
SIZES = {  # n_rows, d_in, d_sae, d_out, k
    "sparse": (33, 24, 600, 24, 5),
    "one row": (1, 16, 64, 16, 1),
    "transcoder, k = d_sae": (33, 24, 72, 40, 72),
    "odd": (7, 19, 1001, 23, 3),
}


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    yield
    torch.set_num_threads(before)


@dataclass
class Weights:
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_pre: Tensor | None

    @classmethod
    def random(cls, d_in: int, d_sae: int, d_out: int) -> "Weights":
        draw = torch.Generator().manual_seed(0)
        return cls(
            (torch.randn(d_sae, d_in, generator=draw) / d_in**0.5).t(), torch.randn(d_sae, generator=draw) * 0.1,
            F.normalize(torch.randn(d_sae, d_out, generator=draw), dim=1), torch.randn(d_out, generator=draw) * 0.1,
            torch.randn(d_in, generator=draw) * 0.1,
        )

    def leaves(self, dtype: torch.dtype = torch.float32) -> "Weights":
        def leaf(tensor: Tensor) -> Tensor:
            # preserve_format keeps W_enc feature-major
            return tensor.detach().clone(memory_format=torch.preserve_format).to(dtype).requires_grad_()

        return Weights(*(None if w is None else leaf(w) for w in vars(self).values()))

    def named(self) -> dict[str, Tensor]:
        return {name: w for name, w in vars(self).items() if w is not None}


def rows(n_rows: int, d_in: int, seed: int = 1) -> Tensor:
    return torch.randn(n_rows, d_in, generator=torch.Generator().manual_seed(seed))


def autoencode(kernels: Backend, x: Tensor, w: Weights, select: Select, **options: object) -> Autoencoded:
    return kernels.autoencode(x, w.W_enc, w.b_enc, w.W_dec, w.b_dec, select, b_pre=w.b_pre, **options)


def losses_and_grads(
    kernels: Backend, x: Tensor, weights: Weights, select: Select, dtype: torch.dtype = torch.float32,
    prefixes: tuple[int, ...] | None = None, dead: Tensor | None = None, k_aux: int = 4,
) -> tuple[Autoencoded, dict[str, Tensor]]:
    """One step whose loss touches every output; the gradients of everything."""
    w, x = weights.leaves(dtype), x.detach().to(dtype).clone().requires_grad_()
    out = autoencode(kernels, x, w, select, prefixes=prefixes, auxk=None if dead is None else Revival(dead, k_aux))
    loss = (out.x_hat - 0.5).square().sum() / x.shape[0] + (out.code.value**2).sum() * 0.1
    if out.aux_hat is not None:
        loss = loss + (out.aux_hat - 1).square().sum() / x.shape[0]
    loss.backward()
    return out, {name: leaf.grad for name, leaf in {"x": x, **w.named()}.items()}


def assert_agree(out: Autoencoded, grads: dict, expected: Autoencoded, expected_grads: dict) -> None:
    """Equal to fp32 rounding."""
    torch.testing.assert_close(out.x_hat.double(), expected.x_hat, rtol=1e-5, atol=2e-5)
    assert (out.aux_hat is None) == (expected.aux_hat is None)
    if out.aux_hat is not None:
        torch.testing.assert_close(out.aux_hat.double(), expected.aux_hat, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(out.code.to_dense().double(), expected.code.to_dense(), rtol=1e-5, atol=1e-5)
    for name, grad in expected_grads.items():
        scale = float(grad.abs().max()) + 1e-6
        torch.testing.assert_close(grads[name].double() / scale, grad / scale, rtol=0, atol=5e-6, msg=name)


REFERENCE = backend("cpu", "reference")


def states(w: Weights) -> list[ParamState]:
    return [
        ParamState(p, torch.zeros_like(p), torch.zeros_like(p), unit_rows=name == "W_dec")
        for name, p in w.named().items()
    ]


def optimise(kernels: Backend, params: list[ParamState]) -> Tensor:
    """One step at settings of no consequence; the gradients' norm."""
    return kernels.optimizer_step(params, step=1, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, clip=1.0)
