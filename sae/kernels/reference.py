"""Reference backend, which defines the results: dense torch under autograd, any dtype up to fp64, any device."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from sae.code import SparseCode, from_dense
from sae.kernels.interface import Agree, Autoencoded, ParamState, Revival, Select


def select_dense(pre: Float[Tensor, "n_rows d_sae"], select: Select) -> Float[Tensor, "n_rows d_sae"]:
    """Dense activations; differentiable where a pre-activation is active."""
    acts = pre if select.absolute else pre.relu()
    score = acts.detach().abs()
    if select.mode == "threshold":
        active = (score if select.absolute else pre.detach()) > select.threshold
    elif select.mode == "topk":
        active = torch.zeros_like(score, dtype=torch.bool).scatter_(1, score.topk(select.k, dim=1).indices, True)
    else:
        n_kept = min(select.k * pre.shape[0], score.numel())
        active = torch.zeros_like(score, dtype=torch.bool).view(-1)
        active[score.view(-1).topk(n_kept).indices] = True
        active = active.view_as(score)
    return acts * active


def select_topk(pre: Float[Tensor, "n_rows d_sae"], k: int, absolute: bool) -> SparseCode:
    """The k largest (absolute) pre-activations of each row, in the fixed-k layout."""
    feature = (pre.detach().abs() if absolute else pre.detach()).topk(k, dim=1).indices
    value = pre.gather(1, feature)
    value = value if absolute else value.relu()
    return SparseCode(feature.to(torch.int32).reshape(-1), value.reshape(-1), pre.shape[0], pre.shape[1], k=k)


def select_code(pre: Float[Tensor, "n_rows d_sae"], select: Select) -> SparseCode:
    """Code of the selected pre-activations, differentiable in its values."""
    if select.mode == "topk":
        return select_topk(pre, select.k, select.absolute)
    return from_dense(select_dense(pre, select))


def agreed(code: SparseCode, agree: Agree | None) -> SparseCode:
    """Apply `agree` to a selected code, if given."""
    return code if agree is None else agree(code)


class Reference:
    """Dense torch; see `sae.kernels.Backend` for the operations."""

    name = "reference"
    last_route: Literal["sparse", "dense", "reference"] = "reference"

    def keeps_all(self, n_rows: int, d_sae: int) -> bool:
        """Never: data-dependent sizes cost no device sync here."""
        del n_rows, d_sae
        return False

    @torch.no_grad()
    def encode(
        self, x: Float[Tensor, "n_rows d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
        select: Select,
    ) -> SparseCode:
        """Select from `x @ W_enc + b_enc`."""
        return select_code(x @ W_enc + b_enc, select)

    @torch.no_grad()
    def decode(
        self, code: SparseCode, W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"]
    ) -> Float[Tensor, "n_rows d_out"]:
        """`Σ value · W_dec[feature] + b_dec` per row."""
        return code.to_dense().to(W_dec.dtype) @ W_dec + b_dec

    def autoencode(
        self, x: Float[Tensor, "n_rows d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"], select: Select,
        *, b_pre: Float[Tensor, " d_in"] | None = None, prefixes: tuple[int, ...] | None = None,
        auxk: Revival | None = None,
    ) -> Autoencoded:
        """Encode `x − b_pre`, select, decode each prefix; likewise over the compacted set of dead features."""
        x = x if b_pre is None else x - b_pre
        code = agreed(select_code(x @ W_enc + b_enc, select), select.agree)
        acts = code.to_dense()
        ends = prefixes or (W_dec.shape[0],)
        x_hat = torch.stack([acts[:, :end] @ W_dec[:end] + b_dec for end in ends])
        if auxk is None:
            return Autoencoded(code, x_hat)
        ids = auxk.dead.nonzero().squeeze(-1)
        # index rows of the transpose, where a feature's weights are contiguous
        pre = x @ W_enc.T[ids].T + b_enc[ids]
        aux = agreed(select_topk(pre, min(auxk.k, ids.numel()), select.absolute), auxk.agree)
        return Autoencoded(code, x_hat, aux.to_dense() @ W_dec[ids])

    @torch.no_grad()
    def optimizer_step(
        self, params: list[ParamState], *, step: int, lr: float, betas: tuple[float, float], eps: float,
        clip: float | None, rates: Float32[Tensor, "2"] | None = None,
    ) -> Float[Tensor, ""]:
        """Adam with global-norm clipping and unit-norm rows (Kingma & Ba 1412.6980, algorithm 1)."""
        live = [(p, p.param.grad) for p in params if p.param.grad is not None]
        for p, grad in live:
            if p.unit_rows:
                remove_radial_(grad, p.param)
        norm = torch.stack([grad.norm() for _, grad in live]).norm()
        scale = torch.ones_like(norm) if clip is None else clip / norm.clamp_min(clip)
        for p, grad in live:
            before = Still.of(p)
            grad = grad * scale
            p.exp_avg.lerp_(grad, 1 - betas[0])
            p.exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
            if rates is None:
                denominator = (p.exp_avg_sq / (1 - betas[1] ** step)).sqrt_().add_(eps)
                p.param.addcdiv_(p.exp_avg, denominator, value=-lr / (1 - betas[0] ** step))
            else:
                denominator = (p.exp_avg_sq * rates[1]).sqrt_().add_(eps)
                p.param.sub_(rates[0] * p.exp_avg / denominator)
            if p.unit_rows:
                p.param.div_(p.param.norm(dim=1, keepdim=True).clamp_min(1e-12))
            before.restore(p)
        return norm


class Still(NamedTuple):
    """Mask of features that a sparse Adam step must not change, and the values before the step."""

    mask: Tensor
    values: tuple[Tensor, ...]

    @classmethod
    def of(cls, p: ParamState) -> "Still":
        """Record the state before a step; empty if every entry is updated."""
        grad = p.param.grad
        if p.sparse_axis is None or grad is None:
            return cls(torch.empty(0), ())
        others = [axis for axis in range(grad.dim()) if axis != p.sparse_axis]
        mask = (grad == 0).all(dim=others[0], keepdim=True) if others else grad == 0
        return cls(mask, tuple(tensor.detach().clone() for tensor in (p.param, p.exp_avg, p.exp_avg_sq)))

    def restore(self, p: ParamState) -> None:
        """Undo the step for features without a gradient."""
        for tensor, value in zip((p.param, p.exp_avg, p.exp_avg_sq), self.values, strict=False):
            tensor.copy_(torch.where(self.mask, value, tensor))


def remove_radial_(grad: Float[Tensor, "d_sae d_out"], rows: Float[Tensor, "d_sae d_out"]) -> None:
    """Project each row of the gradient, in place, orthogonal to the parameter's (unit) row."""
    grad.sub_((grad * rows).sum(1, keepdim=True) * rows)
