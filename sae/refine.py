"""Refine codes by a few steps of pursuit that start from the encoder's code and keep each row's L0.

An encoder is one matrix product: fast, but its codes are not optimal for its own decoder. Kavukcuoglu, Ranzato & LeCun
(1010.3467) start an iterative coder from the encoder's prediction, so that few iterations suffice. Here an iteration is a
step of hard thresholding pursuit (Foucart 2011, algorithm HTP), from z, with unit decoder rows W_f:

    r = x − x̂(z)      g_f = ⟨r, W_f⟩      S = support of the largest |z + g|, of the row's own size
    z ← argmin ‖x − x̂(z)‖² over the values on S

Unsigned codes stay non-negative: S is the support of the largest z + g; features with a least-squares value ≤ 0 are
dropped from S and the others are solved again. A step that does not lower a row's error is discarded, so no row ends with
a larger error, or more features, than its encoder gives.

New features are found by the kernels' `encode` of r, so no n_rows × d_sae array is allocated beyond those of encoding.
The least squares over |S| unknowns dominate: on a CPU a step costs as much as ten encodings with 32 active features
(docs/results/refine.csv). It replaces a third or more of the active features, so refined codes need their own index
(`sae index --refine`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae.code import SparseCode, from_pairs
from sae.kernels import Backend, Select

CHUNK = 1 << 24
"""Elements of gathered decoder rows and their Gram matrices held in memory at once."""
RIDGE = 1e-6
"""Added to the squared norms (1), because values of identical decoder rows would be undetermined."""


@torch.no_grad()
def refine(
    code: SparseCode, target: Float[Tensor, "n_rows d"], directions: Float[Tensor, "d_sae d"], kernels: Backend,
    n_steps: int, *, signed: bool,
) -> SparseCode:
    """Run `n_steps` pursuit steps on a code. Offsets of the code are kept.

    Args:
        code: the encoder's code, CSR; values are norms along `directions`.
        target: what the features of each row should sum to, without the decoder offset.
        directions: unit decoder rows.
        kernels: backend that finds new features.
        n_steps: 0 leaves the code unchanged.
        signed: values may be negative.
    """
    pursuit = _Pursuit(directions, kernels, signed=signed)
    parts = []
    for rows, now in _chunks(code, target.shape[1]):
        wanted = target[rows]
        for _ in range(n_steps):
            now = pursuit.step(now, wanted)
        active = now.value != 0
        parts.append((rows[:, None].expand_as(active)[active], now.feature[active], now.value[active]))
    if not parts:
        return code
    row, feature, value = (torch.cat(part) for part in zip(*parts, strict=True))
    order = torch.argsort(row * code.d_sae + feature)
    made = from_pairs(row[order], feature[order], value[order], code.n_rows, code.d_sae)
    return replace(code, feature=made.feature, value=made.value, indptr=made.indptr)


@dataclass(frozen=True)
class _Padded:
    """Codes of some rows, zero-padded to the largest L0."""

    feature: Int64[Tensor, "n width"]
    value: Float[Tensor, "n width"]
    room: Int64[Tensor, " n"]
    """Maximum number of features per row."""


def _chunks(code: SparseCode, d: int) -> Iterator[tuple[Int64[Tensor, " n"], _Padded]]:
    """Rows with active features, grouped by similar L0 to waste little padding."""
    assert code.indptr is not None, "a CSR code"
    l0 = code.indptr.diff()
    order = l0.argsort(descending=True, stable=True)[: int((l0 > 0).sum())]
    while len(order):
        width = int(l0[order[0]])
        n = max(1, CHUNK // (width * (d + width)))
        rows, order = order[:n], order[n:]
        at = torch.arange(width, device=l0.device).expand(len(rows), -1)
        inside = at < l0[rows][:, None]
        entry = torch.where(inside, code.indptr[rows][:, None] + at, 0)
        yield rows, _Padded(code.feature[entry].long(), code.value[entry].masked_fill(~inside, 0), l0[rows])


class _Pursuit:
    """Pursuit steps with one dictionary."""

    def __init__(self, directions: Float[Tensor, "d_sae d"], kernels: Backend, *, signed: bool) -> None:
        self.directions, self.kernels, self.signed = directions, kernels, signed
        # reuse one tensor in all steps: kernels cache what they derive from weights
        self.columns, self.no_bias = directions.t(), directions.new_zeros(len(directions))

    def step(self, z: _Padded, target: Float[Tensor, "n d"]) -> _Padded:
        """One step per row, kept only if it lowers the error."""
        before = self.directions[z.feature]
        residual = target - _sum(z.value, before)
        moved = self.moved(z, before, residual)
        rows = self.directions[moved.feature]
        value = self.least_squares(moved.value, rows, target)
        better = ((target - _sum(value, rows)).square().sum(1) < residual.square().sum(1))[:, None]
        return replace(
            z, feature=torch.where(better, moved.feature, z.feature), value=torch.where(better, value, z.value)
        )

    def moved(self, z: _Padded, rows: Float[Tensor, "n width d"], residual: Float[Tensor, "n d"]) -> _Padded:
        """z + g on S, from the active features and those with the largest g.

        For unsigned codes the |S| largest g suffice: an active feature with a larger g than an inactive one also has a
        larger z + g. In signed codes z and g may cancel, so twice as many candidates are taken.
        """
        n, width = z.feature.shape
        k = min(2 * width, len(self.directions)) if self.signed else width
        found = self.kernels.encode(residual, self.columns, self.no_bias, Select("topk", k=k, absolute=self.signed))
        feature, gain = found.feature.long().view(n, k), found.value.view(n, k)
        active = z.value != 0
        known = ((feature[:, :, None] == z.feature[:, None, :]) & active[:, None, :]).any(2)
        own = (z.value + _read(rows, residual)) * active
        value = torch.cat([own, gain.masked_fill(known, 0)], 1)
        best = (value.abs() if self.signed else value).topk(width, dim=1).indices
        beyond = torch.arange(width, device=best.device) >= z.room[:, None]
        kept = value.gather(1, best).masked_fill(beyond, 0)
        return replace(
            z, feature=torch.cat([z.feature, feature], 1).gather(1, best), value=kept if self.signed else kept.relu()
        )

    def least_squares(
        self, value: Float[Tensor, "n width"], rows: Float[Tensor, "n width d"], target: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n width"]:
        """Least-squares values where `value` is not 0; for unsigned codes, solved again on the positive ones."""
        products, wanted, active = rows @ rows.mT, _read(rows, target), value != 0
        found = _solve(products, wanted, active)
        return found if self.signed else _solve(products, wanted, active & (found > 0)).relu()


def _solve(
    products: Float[Tensor, "n width width"], wanted: Float[Tensor, "n width"], active: Bool[Tensor, "n width"]
) -> Float[Tensor, "n width"]:
    """Solve for the active values; 0 elsewhere."""
    on = active.to(products.dtype)
    system = products * on[:, :, None] * on[:, None, :]
    system.diagonal(dim1=1, dim2=2).add_(RIDGE + 1 - on)
    # a singular system gives NaN, and the row's step is discarded
    factor, _ = torch.linalg.cholesky_ex(system)
    return torch.cholesky_solve((wanted * on)[:, :, None], factor).squeeze(2)


def _sum(value: Float[Tensor, "n width"], rows: Float[Tensor, "n width d"]) -> Float[Tensor, "n d"]:
    """Σ value · row."""
    return (value[:, None, :] @ rows).squeeze(1)


def _read(rows: Float[Tensor, "n width d"], x: Float[Tensor, "n d"]) -> Float[Tensor, "n width"]:
    """⟨row, x⟩."""
    return (rows @ x[:, :, None]).squeeze(2)
