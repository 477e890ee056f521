"""ICFL: its code by dense least squares written out, its gradient, duplicates drawn anew, and features that stay alive."""

from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.base import SAE
from sae.code import from_pairs
from sae.errors import SaescopeError
from sae.variants.icfl import ICFL, RIDGE, ICFLConfig, duplicates
from tests.sae.toy import Toy, fve, train
from tests.sae.variants.test_variants import D_SAE, N, check_gradients, make, no_dead, rows


def icfl(rounds: int = 3, per_round: int = 2, **fields: object) -> ICFL:
    sae = make("icfl", rounds=rounds, per_round=per_round, **fields)
    assert isinstance(sae, ICFL)
    sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    return sae


def by_hand(sae: ICFL, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d_sae"]:
    """Row by row, round by round, with torch's own least squares; the ridge as further equations √RIDGE · z = 0."""
    W, out = sae.W_dec.detach(), torch.zeros(len(x), sae.d_sae, dtype=x.dtype)
    for row, code in zip(x - sae.b_dec.detach(), out, strict=True):
        residual = row.clone()
        for _ in range(sae.config.rounds):
            score = W @ residual
            chosen = [f for f in score.argsort(descending=True)[: sae.config.per_round].tolist() if score[f] > 0]
            equations = torch.cat([W[chosen].t(), RIDGE**0.5 * torch.eye(len(chosen)).double()])
            right = torch.cat([residual, torch.zeros(len(chosen)).double()])
            z = torch.linalg.lstsq(equations, right[:, None], driver="gelsd").solution[:, 0]
            residual = residual - z @ W[chosen]
            for f, value in zip(chosen, z, strict=True):
                code[f] += value
    return out


@pytest.mark.parametrize(("rounds", "per_round"), [(1, 1), (4, 1), (3, 2), (1, 5), (2, 6)])
def test_the_code_is_that_of_least_squares_in_rounds(rounds: int, per_round: int) -> None:
    sae = icfl(rounds, per_round)
    code = sae.losses(rows(), rows(), no_dead(sae)).code
    expected = by_hand(sae, rows())
    torch.testing.assert_close(code.to_dense(), expected, atol=1e-7, rtol=1e-7)
    assert int(code.l0().max()) <= sae.config.k == rounds * per_round
    torch.testing.assert_close(sae.encode(rows()).to_dense(), code.to_dense(), atol=1e-12, rtol=1e-12)


def test_correlated_features_share_a_row_and_may_be_negative() -> None:
    """x = 2 w_0 − w_1 exactly, though ⟨w_1, x⟩ > 0: least squares find it, where a projection would not."""
    sae = icfl(1, 2)
    with torch.no_grad():
        sae.b_dec.zero_()
        sae.W_dec.zero_()[:, 0] = torch.where(torch.arange(D_SAE) == 0, 1.0, -1.0)
        sae.W_dec[1] = torch.tensor([0.8, 0.6, 0, 0, 0, 0])
    x = (2 * sae.W_dec[0] - sae.W_dec[1])[None].detach()
    code = sae.encode(x)
    assert code.feature.tolist() == [0, 1]
    torch.testing.assert_close(code.value, torch.tensor([2.0, -1.0], dtype=torch.float64), atol=1e-5, rtol=1e-5)


class Held(nn.Module):
    """The loss, at a code that is held as it was found."""

    def __init__(self, sae: SAE, code: Tensor) -> None:
        super().__init__()
        self.sae, self.code = sae, code

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.code @ self.sae.W_dec - self.sae.b_dec).square().sum(1).mean()


def test_gradients_of_several_rounds_are_those_of_a_constant_code() -> None:
    sae = icfl(3, 2)
    step = sae.losses(rows(), rows(), no_dead(sae))
    held = Held(sae, step.code.to_dense().detach())
    check_gradients(held, rows())
    step.loss.backward()
    found = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    assert set(found) == {"W_dec", "b_dec"}, "there is no encoder to learn"
    sae.zero_grad()
    held(rows()).backward()
    for name, p in sae.named_parameters():
        torch.testing.assert_close(found[name], p.grad)


def test_under_autograd_values_follow_x_and_the_dictionary() -> None:
    """Of the rounds as they are, with the features that were chosen."""
    sae = icfl(3, 2)
    feature = sae.encode(rows()).feature

    def values(x: Tensor, W: Tensor) -> Tensor:
        code = torch.func.functional_call(Traced(sae), {"sae.W_dec": W}, (x,))
        return code[1]

    assert torch.equal(Traced(sae)(rows())[0], feature)
    x, W = rows().requires_grad_(), sae.W_dec.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(values, (x, W), eps=1e-7, atol=1e-4)


class Traced(nn.Module):
    def __init__(self, sae: SAE) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.sae.encode_traced(x)
        return code.feature, code.value


def test_there_is_a_value_only_where_a_feature_is_active() -> None:
    sae = icfl(3, 2)
    code = sae.encode(rows())
    torch.testing.assert_close(sae.pre_activations(rows(), code), code.value)
    some = from_pairs(code.rows()[::3], code.feature[::3], code.value[::3], N, D_SAE)
    torch.testing.assert_close(sae.pre_activations(rows(), some), code.value[::3])
    silent = int((code.to_dense()[0] == 0).nonzero()[0])
    other = from_pairs(torch.tensor([0]), torch.tensor([silent]), torch.zeros(1), N, D_SAE)
    with pytest.raises(SaescopeError, match="not active"):
        sae.pre_activations(rows(), other)


def test_duplicates_are_the_later_of_a_pair() -> None:
    W = torch.eye(5)
    W[3] = torch.tensor([0.95, (1 - 0.95**2) ** 0.5, 0, 0, 0])
    W[4] = -W[0]
    assert duplicates(W, 0.9).tolist() == [3] and duplicates(W, 0.96).tolist() == []
    many = torch.randn(2500, 3, generator=torch.Generator().manual_seed(0))
    many /= many.norm(dim=1, keepdim=True)
    close = (many @ many.t()) > 0.9
    assert duplicates(many, 0.9).tolist() == [f for f in range(2500) if close[f, :f].any()]


def test_duplicates_are_drawn_anew_at_their_time_and_the_same_each_time() -> None:
    drawn = []
    for seed in (0, 0, 1):
        sae = icfl(seed=seed, redraw_every=3)
        sae.W_dec.data[7] = sae.W_dec.data[2]
        before = sae.W_dec.detach().clone()
        for n in range(1, 4):
            sae.observe(sae.losses(rows(), rows(), no_dead(sae)))
            assert torch.equal(sae.W_dec.detach()[7], before[7]) == (n < 3)
        assert int(sae.redrawn) >= 1 and not duplicates(sae.W_dec.detach()[[2, 7]], 0.99).numel()
        assert torch.equal(sae.W_dec.detach()[2], before[2])
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE, dtype=torch.float64))
        drawn.append(sae.W_dec.detach()[7])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_planted_directions_are_found_and_none_dies() -> None:
    toy = Toy()
    sae = train(toy, "icfl", n_steps=150, rounds=4, per_round=1, redraw_every=20)
    x = toy.rows(8192)
    assert fve(sae, x) > 0.88
    assert (toy.directions @ sae.W_dec.detach().T).max(1).values.mean() > 0.95
    assert (sae.encode(x).counts() > 0).all()


@pytest.mark.parametrize(("fields", "message"), [
    ({"rounds": 7, "per_round": 3}, r"rounds · per_round = 21 exceeds d_sae = 20"), ({"rounds": 0}, "greater than 0"),
    ({"per_round": 0}, "greater than 0"), ({"duplicate_cosine": 1.5}, "less than or equal to 1"),
    ({"redraw_every": 0}, "greater than 0"),
])
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ICFLConfig.model_validate({"d_sae": 20, "rounds": 2, "per_round": 2, **fields})
