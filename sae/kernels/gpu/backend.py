"""The GPU backend: cuBLAS for the encoder, Triton for everything sparse. Bitwise reproducible.

Below a density of 0.5 % (bf16) or 5 % (fp32) gathers beat GEMMs; denser codes use GEMMs for forward and backward
(`dense`), and `last_route` says which was used. fp64 goes to the reference backend. In triton's interpreter
(TRITON_INTERPRET=1 set before triton is imported) tensors are on the CPU, which is how kernels are tested without a GPU.
"""

import os
import weakref
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from sae.code import SparseCode, from_pairs
from sae.errors import SaescopeError
from sae.kernels.interface import Autoencoded, ParamState, Revival, Select
from sae.kernels.reference import Reference


def interpreted() -> bool:
    """Whether kernels run in triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Gpu:
    """cuBLAS and Triton; see `sae.kernels.Backend` for the operations.

    Args:
        precision: `fp32`, `bf16` (training GEMMs and gathers in bf16, values re-scored in fp32; sums, values, gradients
            and master weights in fp32), `fp8` (like bf16, but candidates in training come from an fp8 product, with 32
            instead of 8 extra candidates per row) or `auto`: bf16 on devices that support it (compute capability ≥ 8).
        chunk_bytes: maximum bytes of pre-activations held at once; default 1 GiB.
        dense_above: density above which codes use GEMMs; default: where these are faster (`DENSE_ABOVE`).
        fused_adam: compute the gradients of W_enc and W_dec from a sparse pass in `optimizer_step` instead of writing
            them to `.grad`. An optimiser step must follow each backward pass (`zero_grad` does not discard these
            gradients): see `sae.kernels.gpu.fused`.

    Raises:
        SaescopeError: triton is not installed.
    """

    name = "gpu"
    last_route: Literal["sparse", "dense", "reference"] = "sparse"

    def __init__(
        self, precision: str = "auto", chunk_bytes: int = 1 << 30, dense_above: float | None = None,
        fused_adam: bool = False,
    ) -> None:
        if precision not in ("auto", "fp32", "bf16", "fp8"):
            raise SaescopeError(f"kernels: no precision called {precision!r}; choose fp32, bf16, fp8 or auto.")
        try:
            from sae.kernels.gpu import autograd, caches
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            raise SaescopeError(
                "kernels: the gpu backend needs triton, which is not installed; "
                "run `pip install 'saescope[gpu]'` or choose kernels=reference."
            ) from error
        if precision == "auto":
            fast = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
            precision = "bf16" if fast else "fp32"
        if precision == "fp8" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
            raise SaescopeError("kernels: this device does not support fp8 (compute capability below 8.9); use bf16.")
        self._autograd: Any = autograd
        self._settings = autograd.Settings(
            precision="fp32" if precision == "fp32" else "bf16", chunk_bytes=chunk_bytes, dense_above=dense_above,
            eight=precision == "fp8",
        )
        self._reference = Reference()
        self.fused_adam = fused_adam
        self._waiting: list[Any] = []
        self.copies: Any = caches.Copies()
        self._kept: Any = None
        self._kept_stats: Any = caches.KeptStats

    def __reduce__(self) -> tuple:
        """Copies and pickles have no deferred gradients."""
        settings = self._settings
        precision = "fp8" if settings.eight else settings.precision
        return Gpu, (precision, settings.chunk_bytes, settings.dense_above, self.fused_adam)

    def keeps_all(self, n_rows: int, d_sae: int) -> bool:
        """True if a complete code is cheaper than a device sync for the number of active features."""
        return self._settings.keeps_all(n_rows, d_sae)

    @torch.no_grad()
    def encode(
        self, x: Float[Tensor, "n_rows d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
        select: Select,
    ) -> SparseCode:
        """Select from `x @ W_enc + b_enc`."""
        _check(select, x=x, W_enc=W_enc, b_enc=b_enc)
        if x.dtype == torch.float64:
            return self._reference.encode(x, W_enc, b_enc, select)
        with _plain(x):
            encoder = self._autograd.Encoder.of(_fp32(x), _fp32(W_enc.t()), _fp32(b_enc), self._settings)
            code = self._autograd.encode(encoder, select)
        return without_padding(code) if select.mode == "batch_topk" else code

    @torch.no_grad()
    def decode(
        self, code: SparseCode, W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"]
    ) -> Float[Tensor, "n_rows d_out"]:
        """`Σ value · W_dec[feature] + b_dec` per row, with the weights in their own dtype."""
        _check(None, W_dec=W_dec, b_dec=b_dec, value=code.value, feature=code.feature)
        if W_dec.dtype == torch.float64:
            return self._reference.decode(code, W_dec, b_dec)
        _check_features(code, W_dec.shape[0])
        from sae.kernels.gpu import products

        bounds = self._autograd.bounds(code, None)
        out = products.decode(
            code.feature.contiguous(), _fp32(code.value), bounds, W_dec.contiguous(), _fp32(b_dec)
        )
        return out[0].to(W_dec.dtype)

    def autoencode(
        self, x: Float[Tensor, "n_rows d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"], select: Select,
        *, b_pre: Float[Tensor, " d_in"] | None = None, prefixes: tuple[int, ...] | None = None,
        auxk: Revival | None = None,
    ) -> Autoencoded:
        """Encode `x − b_pre`, select, decode each prefix. Prefixes must be ascending."""
        dead = None if auxk is None else auxk.dead
        _check(select, x=x, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, b_pre=b_pre, dead=dead)
        assert prefixes is None or list(prefixes) == sorted(prefixes), prefixes
        if x.dtype == torch.float64:
            self.last_route = "reference"
            return self._reference.autoencode(
                x, W_enc, b_enc, W_dec, b_dec, select, b_pre=b_pre, prefixes=prefixes, auxk=auxk
            )
        chosen = None if auxk is None else self._autograd.Chosen.of(auxk)
        k_aux = 0 if auxk is None or chosen is None else min(auxk.k, chosen.ids.numel())
        with _plain(x), torch.no_grad():
            operands = self._autograd.Operands(self._operand(W_enc, W_enc.t()), self._operand(W_dec, W_dec))
        options = self._autograd.Options(
            select, prefixes or None, self._settings, k_aux, self._deferred(W_enc, W_dec), operands,
            partial(self._keep, weakref.ref(W_dec)), None if auxk is None else auxk.agree,
        )
        with _plain(x):
            value, x_hat, aux_hat, feature, indptr = self._autograd.Autoencode.apply(
                _fp32(x), _fp32(W_enc.t()), _fp32(b_enc), _fp32(W_dec), _fp32(b_dec),
                None if b_pre is None else _fp32(b_pre), chosen, options,
            )
        if auxk is not None and aux_hat is None:
            aux_hat = x_hat.new_zeros(x_hat.shape[1:])
        dense = self._settings.is_dense(feature.numel(), x.shape[0], W_enc.shape[1])
        self.last_route = "dense" if dense else "sparse"
        complete = indptr is None and select.mode == "threshold"
        k = None if indptr is not None else W_enc.shape[1] if complete else select.k
        code = SparseCode(feature, value, x.shape[0], W_enc.shape[1], indptr=indptr, k=k, complete=complete)
        return Autoencoded(code, x_hat, aux_hat)

    @torch.no_grad()
    def optimizer_step(
        self, params: list[ParamState], *, step: int, lr: float, betas: tuple[float, float], eps: float,
        clip: float | None, rates: Float32[Tensor, "2"] | None = None,
    ) -> Float[Tensor, ""]:
        """Adam with global-norm clipping and unit-norm rows."""
        tensors = [t for p in params for t in (p.param, p.param.grad, p.exp_avg, p.exp_avg_sq) if t is not None]
        arguments: dict[str, Any] = {"step": step, "lr": lr, "betas": betas, "eps": eps, "clip": clip, "rates": rates}
        other = any(t.dtype != torch.float32 for t in tensors)
        while other and self._waiting:
            self._waiting.pop().write_out()
        if other or (not self._waiting and all(p.param.grad is None for p in params)):
            return self._reference.optimizer_step(params, **arguments)
        _check(None, **{f"tensor {i}": t for i, t in enumerate(tensors)})
        from sae.kernels.gpu import optimizer

        kept, self._kept = self._kept, None
        return optimizer.optimizer_step(params, self._waiting, kept, self.copies, **arguments)

    def _operand(self, weight: Tensor, feature_major: Tensor) -> Tensor:
        """A weight in operand precision, feature-major; bf16 copies of parameters are cached."""
        if self._settings.precision == "bf16" and _may_wait(weight, feature_major):
            half = self.copies.of(weight)
            return half if weight is feature_major else half.t()
        return self._settings.operand(_fp32(feature_major))

    def _keep(self, W_dec: weakref.ref, grads: Any) -> None:
        """Keep gradient statistics for the optimiser step."""
        self._kept = self._kept_stats.of(grads, W_dec())

    def _deferred(self, W_enc: Tensor, W_dec: Tensor) -> Any:
        """Where weight gradients are deferred to a fused step, if it supports them; None: compute them in backward."""
        if not (self.fused_adam and _may_wait(W_enc, W_enc.t()) and _may_wait(W_dec, W_dec)):
            return None
        from sae.kernels.gpu.fused import Deferred

        return Deferred(weakref.ref(W_enc), weakref.ref(W_dec), self._waiting)


def without_padding(code: SparseCode) -> SparseCode:
    """A CSR code without padding zeros. Syncs with the device."""
    kept = code.active.nonzero().squeeze(-1)
    return from_pairs(code.rows()[kept], code.feature[kept], code.value[kept], code.n_rows, code.d_sae)


def _plain(x: Tensor) -> torch.autocast:
    """Disable autocast: the backend chooses the precision."""
    return torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False)


def _may_wait(weight: Tensor, feature_major: Tensor) -> bool:
    """Whether a weight can be updated without storing its gradient: an fp32 parameter in feature-major layout."""
    return weight.is_leaf and weight.requires_grad and _fp32(feature_major) is feature_major


def _fp32(tensor: Tensor) -> Tensor:
    """Convert to contiguous fp32; returns the tensor itself if it already is."""
    return tensor.float().contiguous()


def _check(select: Select | None, **tensors: Tensor | None) -> None:
    """Check that all tensors are on one supported device, that dtypes agree, and that k is in range.

    Without jaxtyping, because it checks calls by users.
    """
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    devices = {tensor.device for tensor in present.values()}
    if len(devices) > 1:
        where = ", ".join(f"{name} on {tensor.device}" for name, tensor in present.items())
        raise SaescopeError(f"kernels: all tensors must be on the same device, but got {where}.")
    if devices and next(iter(devices)).type != "cuda" and not interpreted():
        raise SaescopeError(
            f"kernels: the gpu backend runs on CUDA devices, but these tensors are on {next(iter(devices))}; "
            "choose kernels=cpu or kernels=reference."
        )
    kinds = {tensor.dtype for tensor in present.values() if tensor.is_floating_point()}
    if torch.float64 in kinds and len(kinds) > 1:
        raise SaescopeError(f"kernels: fp64 cannot be mixed with other dtypes, but got {sorted(map(str, kinds))}.")
    if select is not None and select.mode != "threshold" and not 0 < select.k <= present["b_enc"].shape[0]:
        raise SaescopeError(f"kernels: k = {select.k} must be between 1 and d_sae = {present['b_enc'].shape[0]}.")


def _check_features(code: SparseCode, d_sae: int) -> None:
    """Check that indices are in range: a code may come from a file, and a kernel would read out of bounds."""
    if code.indptr is not None and (
        int(code.indptr[0]) != 0 or int(code.indptr[-1]) != code.feature.numel() or bool((code.indptr.diff() < 0).any())
    ):
        raise SaescopeError(f"kernels: the code's indptr does not ascend from 0 to its {code.feature.numel()} entries.")
    if code.feature.numel() == 0:
        return
    low, high = code.feature.aminmax()
    if int(low) < 0 or int(high) >= d_sae:
        raise SaescopeError(f"kernels: the code has feature ids {int(low)} to {int(high)}, but there are {d_sae} features.")
