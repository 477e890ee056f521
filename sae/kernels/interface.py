"""What a backend of the sparse kernels offers, and the types that go in and out.

Memory layout: `W_enc [d_in, d_sae]` is stored feature-major (its transpose is contiguous), as `W_dec` is, so that the
weights of one feature are one contiguous run in both; gradients come in the layout of their parameter.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Float32
from torch import Tensor

from sae.code import SparseCode


@dataclass(frozen=True)
class Select:
    """Which pre-activations become active, and with what value.

    Unless `absolute`, values are relu(pre) and a pre-activation ≤ 0 is never active.
    """

    mode: Literal["topk", "batch_topk", "threshold"]
    k: int = 0
    """topk: active features per row. batch_topk: average per row; the `k * n_rows` largest of the batch are kept."""
    threshold: Tensor | float = 0.0
    """threshold: active where pre > threshold (scalar or `[d_sae]`); 0 is the ReLU."""
    absolute: bool = False
    """Rank by |pre| and keep the sign (AbsTopK)."""
    fixed: bool = False
    """threshold, in training: the code may be `complete`, so that its size does not depend on data; see `keeps_all`."""
    agree: "Agree | None" = field(default=None, compare=False)
    """In `autoencode`: told of the selected code, and gives back what is left of it once others have been heard."""


Agree = Callable[[SparseCode], SparseCode]
"""Leaves out entries of a code, by what ranks that hold other features or rows have selected."""


class Revival(NamedTuple):
    """The dead features, of which the `k` strongest of each row reconstruct it alone (AuxK, 2406.04093, §A.2)."""

    dead: Bool[Tensor, " d_sae"]
    k: int
    room: int | None = None
    """At least as many as there are dead, so that nobody has to wait for a device to count them; None: not known."""
    agree: Agree | None = None
    """As in `Select`; for the code over the dead features."""


class Autoencoded(NamedTuple):
    """What one forward pass returns: the code (value carries gradient) and the reconstructions."""

    code: SparseCode
    x_hat: Float[Tensor, "n_prefixes n_rows d_out"]
    """One reconstruction per prefix; without prefixes there is one, of all features."""
    aux_hat: Float[Tensor, "n_rows d_out"] | None = None
    """With a `Revival`: what the dead features reconstruct, without bias; zeros when none is dead."""

    def single(self) -> tuple[SparseCode, Float[Tensor, "n_rows d_out"]]:
        """Code and reconstruction of a pass without prefixes: a view, whose gradient need not be copied into a stack."""
        return self.code, self.x_hat.squeeze(0)


@dataclass
class ParamState:
    """One parameter with its Adam state; moments have the parameter's memory layout and fp32."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    unit_rows: bool = False
    """Rows (features) are kept at unit norm: the gradient loses its radial part, the rows are renormalised after."""
    common: bool = False
    """No feature's own: where ranks share the features, each holds all of it, and it counts once."""
    sparse_axis: int | None = None
    """Axis of the features, where only those step that have a gradient; None: every entry steps, as Adam defines it."""


@runtime_checkable
class Backend(Protocol):
    """The operations. All tensors lie on one device; gradients flow to every argument that requires them."""

    name: str
    last_route: Literal["sparse", "dense", "reference"]
    """How the last `autoencode` ran: `dense` where so many features were active that dense products were faster."""

    def keeps_all(self, n_rows: int, d_sae: int) -> bool:
        """Whether codes of so many rows are complete in training where `Select.fixed` allows it."""
        ...

    def encode(
        self, x: Float[Tensor, "n_rows d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
        select: Select,
    ) -> SparseCode:
        """Inference: select over `x @ W_enc + b_enc`. No gradient."""
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

        With `auxk` also what the `auxk.k` dead features of largest pre-activation (|pre| if `select.absolute`) of each
        row reconstruct.

        Gradients: to all weights and biases, and through `code.value` for losses on the activations. Those of `aux_hat`
        reach the encoder, its bias and the decoder of dead features, x and `b_pre`.
        """
        ...

    def optimizer_step(
        self, params: list[ParamState], *, step: int, lr: float, betas: tuple[float, float], eps: float,
        clip: float | None, rates: Float32[Tensor, "2"] | None = None,
    ) -> Float[Tensor, ""]:
        """One Adam step (`step` counts from 1) on `param.grad`, clipped by the global norm, which is returned.

        The norm is taken after the radial part of `unit_rows` gradients is removed. Gradients are consumed: their
        content afterwards is unspecified. Where a parameter has a `sparse_axis`, the features whose gradient (without
        that radial part) is zero keep value and moments to the bit: sparse Adam, of which Adam's bias correction
        counts every step (as `torch.optim.SparseAdam`, and 2508.16929, §5).

        `rates`, on the device of the parameters, are lr / (1 − beta1^step) and 1 / (1 − beta2^step): `step` and `lr` are
        then not looked at, so that a step captured in a CUDA graph can be replayed with others.
        """
        ...
