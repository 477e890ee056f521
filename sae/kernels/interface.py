"""The interface of kernel backends and its argument and result types.

Memory layout: `W_enc [d_in, d_sae]` is stored feature-major (its transpose is contiguous), like `W_dec`, so the weights
of a feature are contiguous in both. Gradients have the layout of their parameter.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Float32
from torch import Tensor

from sae.code import SparseCode


@dataclass(frozen=True)
class Select:
    """Selection rule: which pre-activations become active, and their values.

    Unless `absolute`, values are relu(pre), and pre-activations ≤ 0 are never active.
    """

    mode: Literal["topk", "batch_topk", "threshold"]
    k: int = 0
    """topk: active features per row. batch_topk: average per row; the `k * n_rows` largest of the batch are kept."""
    threshold: Tensor | float = 0.0
    """threshold: active where pre > threshold (scalar or `[d_sae]`); 0 is the ReLU."""
    absolute: bool = False
    """Rank by |pre| and keep the sign (AbsTopK)."""
    fixed: bool = False
    """threshold, in training: the code may be `complete`, so that its size is static; see `keeps_all`."""
    agree: "Agree | None" = field(default=None, compare=False)
    """In `autoencode`: called with the selected code to reduce the selection across ranks."""


Agree = Callable[[SparseCode], SparseCode]
"""Drops entries of a code that lose against those selected by other ranks, which hold other features or rows."""


class Revival(NamedTuple):
    """AuxK request: reconstruct each row from its `k` strongest dead features alone (2406.04093, §A.2)."""

    dead: Bool[Tensor, " d_sae"]
    k: int
    room: int | None = None
    """Upper bound on the number of dead features, to avoid a device sync for the exact count; None: unknown."""
    agree: Agree | None = None
    """As in `Select`, for the code over the dead features."""


class Autoencoded(NamedTuple):
    """Result of a forward pass: the code (with gradient to its values) and the reconstructions."""

    code: SparseCode
    x_hat: Float[Tensor, "n_prefixes n_rows d_out"]
    """One reconstruction per prefix; without prefixes, a single one from all features."""
    aux_hat: Float[Tensor, "n_rows d_out"] | None = None
    """With a `Revival`: reconstruction from dead features, without bias; zeros if there are none."""

    def single(self) -> tuple[SparseCode, Float[Tensor, "n_rows d_out"]]:
        """Code and reconstruction of a pass without prefixes. Returns a view, so backward does not copy its gradient."""
        return self.code, self.x_hat.squeeze(0)


@dataclass
class ParamState:
    """A parameter with its Adam state; moments are fp32 and have the parameter's memory layout."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    unit_rows: bool = False
    """Keep rows (features) at unit norm: remove the radial part of the gradient, renormalise rows after the step."""
    common: bool = False
    """Not per feature: with feature shards, every rank holds all of it, and it counts once in the gradient norm."""
    sparse_axis: int | None = None
    """Feature axis for sparse Adam, which updates only features with a gradient; None: plain Adam."""


@runtime_checkable
class Backend(Protocol):
    """Kernel operations. All tensors must be on one device; gradients flow to every argument that requires them."""

    name: str
    last_route: Literal["sparse", "dense", "reference"]
    """How the last `autoencode` ran: `dense` if so many features were active that dense products were faster."""

    def keeps_all(self, n_rows: int, d_sae: int) -> bool:
        """Whether training codes with this many rows are complete if `Select.fixed` allows it."""
        ...

    def encode(
        self, x: Float[Tensor, "n_rows d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
        select: Select,
    ) -> SparseCode:
        """Inference: select from `x @ W_enc + b_enc`. No gradient."""
        ...

    def decode(
        self, code: SparseCode, W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"]
    ) -> Float[Tensor, "n_rows d_out"]:
        """Inference: `Σ value · W_dec[feature] + b_dec` per row. No gradient."""
        ...

    def autoencode(
        self, x: Float[Tensor, "n_rows d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"], select: Select,
        *, b_pre: Float[Tensor, " d_in"] | None = None, prefixes: tuple[int, ...] | None = None,
        auxk: Revival | None = None,
    ) -> Autoencoded:
        """Training: encode `x − b_pre`, select, decode each prefix of features (Matryoshka) or all of them.

        With `auxk`, also reconstruct each row from its `auxk.k` dead features with the largest pre-activation (|pre| if
        `select.absolute`).

        Gradients flow to all weights and biases, also through `code.value` for losses on the activations. Those of
        `aux_hat` flow to encoder, encoder bias and decoder of the dead features, to x and to `b_pre`.
        """
        ...

    def optimizer_step(
        self, params: list[ParamState], *, step: int, lr: float, betas: tuple[float, float], eps: float,
        clip: float | None, rates: Float32[Tensor, "2"] | None = None,
    ) -> Float[Tensor, ""]:
        """One Adam step (`step` counts from 1) on `param.grad`, clipped by the global norm; returns that norm.

        The norm is computed after removing the radial part of `unit_rows` gradients. Gradients are consumed: their
        contents afterwards are undefined. With a `sparse_axis`, features whose gradient (without the radial part) is zero
        keep value and moments bitwise: sparse Adam, with a bias correction that counts every step (as in
        `torch.optim.SparseAdam`, and 2508.16929, §5).

        `rates`, on the device of the parameters, are lr / (1 − beta1^step) and 1 / (1 − beta2^step). They replace `step`
        and `lr`, so that a step captured in a CUDA graph can be replayed with other values.
        """
        ...
