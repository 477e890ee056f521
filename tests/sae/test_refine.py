"""Refined codes: what each step promises, against its definition row by row, and for every SAE that can have them."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from sae import refine as module
from sae.base import SAE, Transform
from sae.code import SparseCode, from_dense
from sae.errors import SaescopeError
from sae.kernels import backend
from sae.refine import refine
from sae.variants.imported import Imported, ImportedConfig
from tests.sae.variants.test_variants import ALL, D_IN, D_SAE, SIGNED, make, no_dead, rows

N_ROWS = 40


def ready(variant: str, **fields: object) -> SAE:
    """In the units of a model, with a learnt threshold where there is one."""
    sae = make(variant, **fields)
    sae.observe(sae.losses(rows(), rows(), no_dead(sae)))
    sae.input = Transform(torch.linspace(-2, 3, D_IN), torch.tensor(0.4)).double()
    sae.target = Transform(sae.input.mean, sae.input.scale)
    return sae


def many(n: int = N_ROWS) -> Float[Tensor, "n d"]:
    return 3 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def errors(sae: SAE, x: Tensor, code: SparseCode) -> Float[Tensor, " n"]:
    return (x - sae.decode(code)).square().sum(1)


@pytest.mark.parametrize("variant", [one for one in ALL if one != "icfl"])  # whose codes are pursued in any case
def test_no_row_is_explained_worse_or_by_more_features(variant: str) -> None:
    sae, x = ready(variant), many()
    codes = [sae.encode(x, refine=n) for n in range(5)]
    assert codes[0].to_dense().equal(sae.encode(x).to_dense())
    signed = variant in SIGNED
    for before, after in pairwise(codes):
        assert (errors(sae, x, after) <= errors(sae, x, before) + 1e-12).all()
        assert (after.l0() <= codes[0].l0()).all()
        assert after.indptr is not None and (after.value != 0).all()
        assert signed or (after.value > 0).all()
        for row in range(N_ROWS):
            mine = after.feature[after.indptr[row] : after.indptr[row + 1]]
            assert (mine.diff() > 0).all(), "ascending, each once"
    assert errors(sae, x, codes[1]).sum() < 0.9 * errors(sae, x, codes[0]).sum()
    if signed:
        assert (codes[1].value < 0).any()


def by_hand(z: Tensor, target: Tensor, W: Tensor, room: int, *, signed: bool) -> Tensor:
    """One step of one row, over all features at once."""
    g = W @ (target - z @ W)
    moved = z + g
    best = (moved.abs() if signed else moved).topk(room).indices
    best = best if signed else best[moved[best] > 0]
    for _ in range(1 if signed else 2):
        solved = torch.linalg.lstsq(W[best].t(), target[:, None]).solution[:, 0] if len(best) else z[:0]
        best, solved = (best, solved) if signed else (best[solved > 0], solved[solved > 0])
    # after the second time what is not above 0 is cut, as it would be in the last step of all
    new = torch.zeros_like(z).index_put((best,), solved)
    return new if (target - new @ W).square().sum() < (target - z @ W).square().sum() else z


@pytest.mark.parametrize("variant", ["topk", "abstopk", "jumprelu", "relu"])
def test_a_step_is_the_one_of_the_formula(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all features in fp64, row by row; whatever is computed together."""
    sae, x, signed = ready(variant), many(), variant in SIGNED
    monkeypatch.setattr(module, "RIDGE", 0.0)
    if variant in ("jumprelu", "relu"):
        sae.b_enc.data -= 2.5
    W = (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)).detach()
    expected = sae.encode(x).to_dense()
    room = (expected != 0).sum(1)
    assert room.max() <= D_IN, "or least squares have many solutions"
    assert variant in ("topk", "abstopk") or len(room.unique()) > 2
    target = x - sae.bias().detach()
    for n in (1, 2, 3):
        expected = torch.stack([
            by_hand(z, t, W, int(k), signed=signed) for z, t, k in zip(expected, target, room, strict=True)
        ])
        torch.testing.assert_close(sae.encode(x, refine=n).to_dense(), expected, atol=1e-9, rtol=1e-9)
    monkeypatch.setattr(module, "CHUNK", 1)
    torch.testing.assert_close(sae.encode(x, refine=3).to_dense(), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("signed", [False, True])
def test_a_bad_encoders_codes_become_the_true_ones(signed: bool) -> None:
    """Sums of 3 of 64 directions in 48 dimensions, from codes of which one feature in three is wrong."""
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(64, 48, generator=generator, dtype=torch.float64), dim=1)
    truth = torch.zeros(200, 64, dtype=torch.float64)
    for row in truth:
        sign = 1 - 2 * torch.randint(2, (3,), generator=generator) if signed else 1
        row[torch.randperm(64, generator=generator)[:3]] = sign * (1 + torch.rand(3, generator=generator).double())
    start = truth.clone()
    for row in start:
        row[row.nonzero()[0, 0]] = 0
        row[(row == 0).nonzero()[5, 0]] = 0.5
    target = truth @ W
    kernels = backend("cpu", "reference")
    found = [refine(from_dense(start), target, W, kernels, n, signed=signed).to_dense() for n in (1, 10)]
    right = [((one - truth).abs().amax(1) < 1e-4).double().mean() for one in found]
    assert right[0] > 0.5 and right[1] > 0.95


def test_rows_without_features_stay_empty() -> None:
    sae, x = ready("jumprelu"), many()
    sae.get_parameter("theta").data.mul_(3)
    x[3] = x[17] = sae.bias().detach()
    code = sae.encode(x)
    assert (code.l0() == 0).any() and (code.l0() > 0).any()
    refined = sae.encode(x, refine=2)
    assert (refined.l0()[code.l0() == 0] == 0).all()
    sae.get_parameter("theta").data.mul_(1e6)
    assert sae.encode(x, refine=2).n_active == 0


def test_near_duplicates_are_no_obstacle() -> None:
    """Two decoder rows that are the same, and one that is zero."""
    sae, x = ready("topk"), many()
    with torch.no_grad():
        sae.W_dec[1] = sae.W_dec[0]
        sae.W_enc[:, 1] = sae.W_enc[:, 0]
        sae.W_dec[2] = 0
    code = sae.encode(x, refine=3)
    assert code.value.isfinite().all()
    assert (errors(sae, x, code) <= errors(sae, x, sae.encode(x)) + 1e-12).all()


@pytest.mark.parametrize("variant", ["topk", "abstopk", "jumprelu"])
def test_the_cpu_kernels_find_the_same(variant: str) -> None:
    sae, x = ready(variant).float(), many().float()
    expected = sae.encode(x, refine=2)
    sae.kernels = backend("cpu", "cpu", "fp32")
    torch.testing.assert_close(sae.encode(x, refine=2).to_dense(), expected.to_dense(), atol=1e-3, rtol=1e-3)


def test_rows_normalised_one_by_one_keep_their_points() -> None:
    """An SAE of SAELens whose rows have offsets of their own."""
    config = ImportedConfig(variant="imported", architecture="topk", d_sae=D_SAE, k=3, row_norm="layer_norm")
    sae, source = Imported(config, D_IN).double(), make("topk")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(sae, name).data.copy_(getattr(source, name).data)
    x = many()
    before, after = sae.encode(x), sae.encode(x, refine=3)
    assert torch.equal(before.offset, after.offset)  # type: ignore[attr-defined]
    assert (errors(sae, x, after) <= errors(sae, x, before) + 1e-12).all()
    assert errors(sae, x, after).sum() < 0.9 * errors(sae, x, before).sum()


def test_what_cannot_be_refined_is_said() -> None:
    sae, x = ready("topk"), many()
    for bad in (-1, True):
        with pytest.raises(SaescopeError, match="whole number"):
            sae.encode(x, refine=bad)
    wide = make("topk", d_out=4)
    with pytest.raises(SaescopeError, match="transcoder"):
        wide.encode(x, refine=1)
    assert wide.encode(x, refine=0).n_rows == N_ROWS
    sae.provenance = {"site": {"input": "a", "target": "b", "update": True}}
    with pytest.raises(SaescopeError, match="transcoder"):
        sae.encode(x, refine=1)
    sae.provenance = {"site": {"input": "a", "target": "b", "update": "both"}}
    assert sae.encode(x, refine=1).n_rows == N_ROWS, "it reads the update that it reconstructs"
    sae.target = replace_mean(sae.target)
    with pytest.raises(SaescopeError, match="transcoder"):
        sae.encode(x, refine=1)


def replace_mean(transform: Transform) -> Transform:
    """The same with another mean."""
    return Transform(transform.mean + 1, transform.scale)


def test_what_else_a_code_carries_stays() -> None:
    code = from_dense(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    refined = refine(code, torch.eye(2), torch.eye(2), backend("cpu", "reference"), 1, signed=False)
    assert refined == replace(code, feature=refined.feature, value=refined.value, indptr=refined.indptr)
    torch.testing.assert_close(refined.to_dense(), torch.eye(2), atol=1e-5, rtol=0)
