"""The active subspace against known answers, and what starts from it."""

import math

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import SAE, Progress
from sae.errors import SaescopeError
from sae.init import HIGHEST, LOWEST, first_pass, initialise
from sae.subspace import Subspace
from sae.variants import VARIANTS

D, RANK, D_SAE = 24, 6, 80
FIELDS: dict[str, dict] = {
    "topk": {"k": 3}, "batchtopk": {"k": 3}, "abstopk": {"k": 3}, "absbatchtopk": {"k": 3}, "matryoshka": {"k": 3},
    "relu": {}, "gated": {"sparsity": {"target_l0": 3}}, "jumprelu": {"sparsity": {"target_l0": 3}},
    "mdl": {"start_l0": 3}, "icfl": {"rounds": 3, "per_round": 1},
}


def low_rank(n: int = 600, *, d: int = D, noise: float = 1e-3, seed: int = 0) -> Float[Tensor, "n d"]:
    """Rows off the origin that vary in RANK directions, of mean squared norm d."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, RANK, generator=draw) @ torch.randn(RANK, d, generator=draw)
    rows = rows - rows.mean(0) + noise * torch.randn(n, d, generator=draw)
    return rows * (d / rows.square().sum(1).mean()).sqrt() + torch.linspace(-0.1, 0.1, d)


def started(variant: str, rows: Tensor, inputs: Tensor | None = None, d_in: int = D, **init: object) -> SAE:
    cls, config = VARIANTS[variant]
    fields = FIELDS.get(variant, {}) | {"d_sae": D_SAE, "init": {"directions": "active_subspace", **init}}
    sae = cls(config.model_validate(fields), d_in, rows.shape[1])
    initialise(sae, rows, inputs)
    return sae


def outside(directions: Tensor, rows: Tensor, rank: int = RANK) -> float:
    """How far unit directions leave the span of the rows' first right singular vectors."""
    _, _, axes = torch.linalg.svd((rows - rows.mean(0)).double(), full_matrices=False)
    unit = directions.double() / directions.double().norm(dim=1, keepdim=True)
    return float((unit - unit @ axes[:rank].t() @ axes[:rank]).norm(dim=1).max())


def test_axes_are_the_right_singular_vectors() -> None:
    rows = low_rank(noise=0.3) + 5
    subspace = Subspace.of(rows)
    _, singular, axes = torch.linalg.svd((rows - rows.mean(0)).double(), full_matrices=False)
    torch.testing.assert_close(subspace.variance, singular.square() / len(rows))
    cosines = (subspace.axes * axes).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(D, dtype=torch.float64), rtol=0, atol=1e-6)


def test_dimensions_of_known_spectra() -> None:
    def of(variance: list[float]) -> Subspace:
        return Subspace(torch.eye(len(variance)).double(), torch.tensor(variance).double(), 100)

    even, steep = of([2.0] * 8), of([90.0, 9.0, 0.9, 0.1])
    assert [even.n_for(share) for share in (0.5, 0.51, 1.0)] == [4, 5, 8]
    assert [steep.n_for(share) for share in (0.5, 0.9, 0.95, 0.99, 0.995, 1.0)] == [1, 1, 2, 2, 3, 4]
    assert even.effective_rank() == pytest.approx(8) and even.participation_ratio() == pytest.approx(8)
    p = [math.sqrt(v) / sum(map(math.sqrt, (90, 9, 0.9, 0.1))) for v in (90, 9, 0.9, 0.1)]
    assert steep.effective_rank() == pytest.approx(math.exp(-sum(q * math.log(q) for q in p)))
    assert steep.participation_ratio() == pytest.approx(100**2 / (90**2 + 9**2 + 0.9**2 + 0.1**2))


def test_without_an_encoder_there_is_no_scale_to_search() -> None:
    rows = low_rank()
    sae = started("icfl", rows)
    assert outside(sae.W_dec.detach(), rows) < 1e-4
    torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.ones(D_SAE))


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"icfl"}))
def test_every_variant_with_an_encoder_starts_in_the_subspace_at_the_best_scale(variant: str) -> None:
    rows = low_rank()
    sae = started(variant, rows)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert outside(sae.W_dec.detach(), rows) < 1e-4
    unit = sae.W_enc.detach().t() / sae.W_enc.detach().t().norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit, sae.W_dec.detach(), rtol=0, atol=1e-5)
    scale = float(sae.W_enc.detach()[:, 0].norm())
    assert LOWEST**2 < scale < HIGHEST**2
    # no other scale on a grid of its own is better by more than a grid's step can tell
    other, now = started(variant, rows, search=False), 1.0

    def error(factor: float) -> float:
        nonlocal now
        with torch.no_grad():
            other.W_enc.mul_(factor / now)
            other.fold_norms(torch.full((D_SAE,), factor / now))
            now = factor
            return float((rows - first_pass(other, rows, rows)).square().mean())

    found = error(scale)
    assert found <= min(error(s) for s in torch.linspace(0.02, 4, 40).tolist()) * 1.02
    assert found < error(1.0) * 1.001


@pytest.mark.parametrize("variant", ["jumprelu", "topk"])
def test_the_search_moves_lengths_and_not_which_features_are_active(variant: str) -> None:
    rows = low_rank()
    searched, plain = started(variant, rows), started(variant, rows, search=False)
    codes = [s.losses(rows, rows, Progress(torch.zeros(D_SAE, dtype=torch.bool))).code.csr() for s in (searched, plain)]
    same = (codes[0].to_dense() != 0) == (codes[1].to_dense() != 0)
    assert same.float().mean() > 0.999
    assert float(searched.W_enc.detach()[:, 0].norm()) != pytest.approx(1.0, abs=0.02)


def test_thresholds_begin_where_the_target_l0_is() -> None:
    """Rows of a subspace are longer along its directions; without regard to that four times as many would be active."""
    rows = low_rank()
    l0 = started("jumprelu", rows, explained=0.999).encode(rows).l0().float().mean().item()
    assert 1.5 < l0 < 6


def test_a_given_size_and_a_share_of_the_variance() -> None:
    rows = low_rank()
    assert outside(started("topk", rows, subspace=3).W_dec.detach(), rows, 3) < 1e-4
    assert outside(started("topk", rows, subspace=4).W_dec.detach(), rows, 3) > 0.1
    few = Subspace.of(rows).n_for(0.7)
    assert few < RANK
    assert outside(started("topk", rows, explained=0.7).W_dec.detach(), rows, few) < 1e-4


@pytest.mark.parametrize("d_in", [D, 10])
def test_a_transcoder_has_a_subspace_on_either_side(d_in: int) -> None:
    inputs, targets = low_rank(d=d_in, seed=3), low_rank(seed=4)
    sae = started("topk", targets, inputs, d_in=d_in)
    assert outside(sae.W_dec.detach(), targets) < 1e-4
    assert outside(sae.W_enc.detach().t(), inputs) < 1e-4


def test_it_is_drawn_from_the_seed_alone() -> None:
    rows = low_rank()
    assert torch.equal(started("topk", rows).W_enc, started("topk", rows).W_enc)


@pytest.mark.parametrize(("rows", "init", "message"), [
    (low_rank(), {"subspace": D + 1}, r"init.subspace = 25 exceeds the width 24"),
    (torch.ones(50, D) * 3, {}, "the 50 calibration rows are all equal"),
    (low_rank(5), {"subspace": 5}, "5 calibration rows do not span a subspace of 5 dimensions"),
    (low_rank().index_fill(0, torch.tensor([1]), float("nan")), {}, "NaN or infinite values"),
])
def test_impossible_subspaces_are_refused(rows: Tensor, init: dict, message: str) -> None:
    with pytest.raises(SaescopeError, match=message):
        started("topk", rows, **init)
