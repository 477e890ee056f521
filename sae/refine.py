"""Refined codes: a few steps of pursuit from the encoder's code, with as many active features in each row as it has.

An encoder is one product with the row; it is quick, and its codes are not the best ones for its own decoder. Kavukcuoglu,
Ranzato & LeCun (1010.3467) begin an iterative coder at the encoder's prediction, so that few iterations are enough. Here
an iteration is a step of hard thresholding pursuit (Foucart 2011, algorithm HTP), from z, with unit decoder rows W_f:

    r = x − x̂(z)      g_f = ⟨r, W_f⟩      S = where |z + g| is largest, as many as the row has
    z ← argmin ‖x − x̂(z)‖² over the values on S

Values of unsigned codes stay above 0: S is where z + g is largest, and what is not above 0 in the least squares leaves S,
for which the others are solved again. A row keeps its code where a step does not make its error smaller: no row is ever
explained worse than by its encoder, nor by more features.

The features that come in are found by the kernels' `encode` of r, as an encoder finds its own, and no array of size
n_rows × d_sae is made that encoding would not make. The least squares of |S| unknowns take most of the time: on a CPU a
step costs as much as ten encodings with 32 active features (docs/results/refine.csv). A third or more of the active
features are others after it, so that refined codes want an index of their own (`sae index --refine`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae.code import SparseCode, from_pairs
from sae.kernels import Backend, Select

CHUNK = 1 << 24
"""Numbers of gathered decoder rows and their products that are in memory at once."""
RIDGE = 1e-6
"""Added to the squared norms, which are 1: values of two rows that are the same would not be determined."""


@torch.no_grad()
def refine(
    code: SparseCode, target: Float[Tensor, "n_rows d"], directions: Float[Tensor, "d_sae d"], kernels: Backend,
    n_steps: int, *, signed: bool,
) -> SparseCode:
    """The code after so many steps; what else it carries stays.

    Args:
        code: of the encoder, CSR; values are lengths along `directions`.
        target: what the features of each row should add up to: without the point around which it is decoded.
        directions: unit decoder rows.
        kernels: by which features are found.
        n_steps: 0 leaves the code as it is.
        signed: values may be below 0.
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
    """Codes of some rows, side by side; where a row has fewer features than the widest, values are 0."""

    feature: Int64[Tensor, "n width"]
    value: Float[Tensor, "n width"]
    room: Int64[Tensor, " n"]
    """How many features each row may have."""


def _chunks(code: SparseCode, d: int) -> Iterator[tuple[Int64[Tensor, " n"], _Padded]]:
    """Rows with features, those with about as many together, so that the rectangle they are padded to is filled."""
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
    """Steps through one dictionary."""

    def __init__(self, directions: Float[Tensor, "d_sae d"], kernels: Backend, *, signed: bool) -> None:
        self.directions, self.kernels, self.signed = directions, kernels, signed
        # one tensor for all steps: kernels keep what they have made of weights that they have seen
        self.columns, self.no_bias = directions.t(), directions.new_zeros(len(directions))

    def step(self, z: _Padded, target: Float[Tensor, "n d"]) -> _Padded:
        """One step of each row, where it makes the error smaller."""
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
        """z + g on S: the largest among what is active and the largest g of all.

        Of unsigned codes as many g as S has are enough: an active feature whose g is larger than another's stands before
        it with z + g too. Of signed codes z and g may cancel, so that twice as many are looked for.
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
        """The values that explain most where `value` is not 0; of unsigned codes those above 0, solved for again."""
        products, wanted, active = rows @ rows.mT, _read(rows, target), value != 0
        found = _solve(products, wanted, active)
        return found if self.signed else _solve(products, wanted, active & (found > 0)).relu()


def _solve(
    products: Float[Tensor, "n width width"], wanted: Float[Tensor, "n width"], active: Bool[Tensor, "n width"]
) -> Float[Tensor, "n width"]:
    """The values of the active ones; 0 elsewhere."""
    on = active.to(products.dtype)
    system = products * on[:, :, None] * on[:, None, :]
    system.diagonal(dim1=1, dim2=2).add_(RIDGE + 1 - on)
    # one that cannot be solved gives NaN, and the row is left as it was
    factor, _ = torch.linalg.cholesky_ex(system)
    return torch.cholesky_solve((wanted * on)[:, :, None], factor).squeeze(2)


def _sum(value: Float[Tensor, "n width"], rows: Float[Tensor, "n width d"]) -> Float[Tensor, "n d"]:
    """Σ value · row."""
    return (value[:, None, :] @ rows).squeeze(1)


def _read(rows: Float[Tensor, "n width d"], x: Float[Tensor, "n d"]) -> Float[Tensor, "n width"]:
    """⟨row, x⟩."""
    return (rows @ x[:, :, None]).squeeze(2)
