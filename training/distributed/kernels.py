"""Distributed sparse operations, with features, rows, or both split over ranks: local kernels plus collectives.

Each rank encodes its rows with its features. For TopK, ranks exchange the sizes of their k largest per row; for BatchTopK,
counts of values above some thresholds (`selection`). Reconstructions are summed over the shards. So values, gradients and
reconstructions equal those of a single process, up to the order of sums; a rank's codes only cover its own features.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from sae.code import SparseCode
from sae.io.snapshot import is_turned
from sae.kernels import Autoencoded, Backend, ParamState, Revival, Select
from sae.kernels.reference import remove_radial_
from sae.part import Part
from training.distributed import selection
from training.distributed.wire import Group, Wire


class Sum(torch.autograd.Function):
    """Σ over a group. Every rank goes on with the same sum, so the gradient that comes back is each addend's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wire: Wire, group: Group, what: str) -> Tensor:  # noqa: ARG004
        """In memory of its own."""
        return wire.sum_(x.clone(memory_format=torch.contiguous_format), group, what)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ARG004
        """As it is."""
        return grads[0], None, None, None


class SumOfGradients(torch.autograd.Function):
    """A tensor that every rank of a group uses for its own features: as it is; the gradient is Σ over the group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wire: Wire, group: Group, what: str) -> Tensor:
        """A view."""
        ctx.wire, ctx.group, ctx.what = wire, group, what
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Summed."""
        return ctx.wire.sum_(grads[0].clone(memory_format=torch.contiguous_format), ctx.group, ctx.what), None, None, None


class DistributedKernels:
    """See `sae.kernels.Backend` for what each operation means."""

    def __init__(self, local: Backend, wire: Wire, shards: Group, rows: Group, world: Group) -> None:
        """`local` computes; `shards` hold the other features of the same rows, `rows` the same features of others."""
        self.local, self.wire, self.shards, self.rows, self.world = local, wire, shards, rows, world
        self.name = local.name
        self.last_route: Literal["sparse", "dense", "reference"] = local.last_route
        """The route of this rank's part of the last pass."""
        self.compact = local.name == "cpu"
        """Whether codes must be compact: the CPU loops don't support padding between entries."""

    def keeps_all(self, n_rows: int, d_sae: int) -> bool:
        """As on this rank."""
        return self.local.keeps_all(n_rows, d_sae)

    @torch.no_grad()
    def encode(
        self, x: Float[Tensor, "n_rows d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
        select: Select,
    ) -> SparseCode:
        """Select over all features (in `batch_topk` over all rows too); the code is of those of this rank."""
        select = self._among_all(select, len(x), len(b_enc), "evaluation")
        code = self.local.encode(x, W_enc, b_enc, select)
        return code if select.agree is None else select.agree(code)

    @torch.no_grad()
    def decode(
        self, code: SparseCode, W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"]
    ) -> Float[Tensor, "n_rows d_out"]:
        """Σ over all features."""
        if self.shards.n == 1:
            return self.local.decode(code, W_dec, b_dec)
        return self.wire.sum_(self.local.decode(code, W_dec, torch.zeros_like(b_dec)), self.shards, "evaluation") + b_dec

    def autoencode(
        self, x: Float[Tensor, "n_rows d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"], select: Select,
        *, b_pre: Float[Tensor, " d_in"] | None = None, prefixes: tuple[int, ...] | None = None,
        auxk: Revival | None = None,
    ) -> Autoencoded:
        """The pass over all features; `prefixes` are of all of them. A rank may have no feature at all."""
        n_rows, n_features = len(x), len(b_enc)
        select = self._among_all(select, n_rows, n_features)
        if self.shards.n == 1:
            out = self.local.autoencode(
                x, W_enc, b_enc, W_dec, b_dec, select, b_pre=b_pre, prefixes=prefixes, auxk=auxk
            )
            self.last_route = self.local.last_route
            return out
        if b_pre is not None:
            b_pre = SumOfGradients.apply(b_pre, self.wire, self.shards, "gradients")
        if n_features == 0:
            return self._without_features(x, b_dec, select)
        part = Part(n_features * self.shards.n, self.shards.index, self.shards.n)
        ends = [part.n_below(end) for end in prefixes] if prefixes else [n_features]
        here = tuple(sorted({end for end in ends if end}))
        mine, tell = self._of_dead(auxk, n_rows)
        out = self.local.autoencode(
            x, W_enc, b_enc, W_dec, torch.zeros_like(b_dec), select, b_pre=b_pre,
            prefixes=None if here == (n_features,) else here, auxk=mine,
        )
        tell()
        self.last_route = self.local.last_route
        x_hat = by_prefix(out.x_hat, ends, here)
        x_hat = Sum.apply(x_hat, self.wire, self.shards, "reconstructions") + b_dec
        aux_hat = None
        if auxk is not None:
            aux_hat = torch.zeros_like(x_hat[0]) if out.aux_hat is None else out.aux_hat
            aux_hat = Sum.apply(aux_hat, self.wire, self.shards, "revival")
        return Autoencoded(out.code, x_hat, aux_hat)

    def _among_all(self, select: Select, n_rows: int, n_features: int, what: str = "candidates") -> Select:
        """This rank's local selection, with the callback that reduces it to the global one."""
        if select.mode == "topk" and self.shards.n > 1:
            def agree(code: SparseCode) -> SparseCode:
                chosen = selection.of_rows(self.wire, self.shards, code, select.k, select.k, what)
                return selection.kept(code, chosen, compact=self.compact)

            return replace(select, k=min(select.k, n_features), agree=agree)
        if select.mode == "batch_topk" and self.world.n > 1:
            n_kept = select.k * n_rows * self.rows.n

            def agree(code: SparseCode) -> SparseCode:
                chosen = selection.of_batch(self.wire, self.world, code, n_kept, what)
                return selection.kept(code, chosen, compact=self.compact)

            return replace(select, k=min(select.k * self.rows.n, n_features), agree=agree)
        return select

    def _of_dead(
        self, auxk: Revival | None, n_rows: int
    ) -> tuple[Revival | None, Callable[[], object]]:
        """AuxK for this rank's features; and a callback for after the pass, which takes part if none of them is dead."""
        if auxk is None:
            return None, lambda: None
        k, width = auxk.k, auxk.k if auxk.room is None else min(auxk.k, auxk.room)

        def agree(code: SparseCode) -> SparseCode:
            chosen = selection.of_rows(self.wire, self.shards, code, k, width, "revival")
            return selection.kept(code, chosen, compact=self.compact)

        if bool(auxk.dead.any()):
            return auxk._replace(agree=agree), lambda: None
        return None, lambda: agree(empty(n_rows, len(auxk.dead), auxk.dead.device))

    def _without_features(
        self, x: Float[Tensor, "n_rows d_in"], b_dec: Float[Tensor, " d_out"], select: Select
    ) -> Autoencoded:
        """The pass of a rank without features, which still takes part in the collectives."""
        code = empty(len(x), 0, x.device)
        if select.agree is not None:
            code = select.agree(code)
        x_hat = self.wire.sum_(x.new_zeros(1, len(x), len(b_dec)), self.shards, "reconstructions")
        return Autoencoded(code, x_hat + b_dec)

    @torch.no_grad()
    def optimizer_step(
        self, params: list[ParamState], *, step: int, lr: float, betas: tuple[float, float], eps: float,
        clip: float | None, rates: Float32[Tensor, "2"] | None = None,
    ) -> Float[Tensor, ""]:
        """Each rank steps what it holds, clipped by the norm over all features."""
        if self.shards.n == 1:
            return self.local.optimizer_step(params, step=step, lr=lr, betas=betas, eps=eps, clip=clip, rates=rates)
        live = [(p, p.param.grad) for p in params if p.param.grad is not None]
        for p, grad in live:
            if p.unit_rows:
                remove_radial_(grad, p.param)
        own = [square(grad) for p, grad in live if not p.common]
        total = self.wire.sum_(torch.stack(own).sum(), self.shards, "scalars")
        total = sum((square(grad) for p, grad in live if p.common), total)
        norm = total.sqrt().to(torch.promote_types(live[0][1].dtype, torch.float32))
        if clip is not None:
            scale = clip / norm.clamp_min(clip)
            for _, grad in live:
                grad.mul_(scale)
        self.local.optimizer_step(params, step=step, lr=lr, betas=betas, eps=eps, clip=None, rates=rates)
        return norm


def square(grad: Tensor) -> Float[Tensor, ""]:
    """‖grad‖² in fp64, summed by feature: a norm in fp32 would sum too many numbers to be exact."""
    by_feature = grad.t() if is_turned(grad) else grad
    norms = by_feature.norm(dim=1) if grad.dim() == 2 else by_feature
    return norms.double().square().sum()


def empty(n_rows: int, n_features: int, device: torch.device) -> SparseCode:
    """An empty code."""
    nothing = torch.empty(0, device=device)
    return SparseCode(nothing.int(), nothing, n_rows, n_features, k=0)


def by_prefix(
    x_hat: Float[Tensor, "n_here n_rows d"], ends: list[int], here: tuple[int, ...]
) -> Float[Tensor, "n n_rows d"]:
    """This rank's contribution to each global prefix: zero for some, the same for several others."""
    if ends == list(here):
        return x_hat
    nothing = torch.zeros_like(x_hat[0])
    return torch.stack([x_hat[here.index(end)] if end else nothing for end in ends])
