"""Gated: the forward pass and every gradient written out, the frozen decoder, targets that are reached."""

import pytest
import torch
from torch import Tensor, nn

from sae.variants.gated import Gated
from tests.sae.toy import Toy, fve, train
from tests.sae.variants.test_variants import check_gradients, make, no_dead, rows


class ByHand(nn.Module):
    """The paper's loss, term by term, with frozen copies of the decoder where the paper freezes it."""

    def __init__(self, sae: Gated, term: str) -> None:
        super().__init__()
        self.sae, self.term = sae, term
        self.frozen = sae.W_dec.detach().clone(), sae.b_dec.detach().clone()

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        s = self.sae
        h = (x - s.b_dec) @ s.W_enc
        pi = h + s.b_enc
        if self.term == "l1":
            return 0.7 * pi.relu().sum(1).mean()
        if self.term == "gate":
            return (target - pi.relu() @ self.frozen[0] - self.frozen[1]).square().sum(1).mean()
        acts = (pi.detach() > 0) * (h * s.r_mag.exp() + s.b_mag).relu()
        return (target - acts @ s.W_dec - s.b_dec).square().sum(1).mean()


@pytest.mark.parametrize("term", ["reconstruction", "l1", "gate"])
def test_terms_and_gradients_are_the_papers(term: str) -> None:
    sae = make("gated")
    assert isinstance(sae, Gated)
    by_hand, x, target = ByHand(sae, term), rows(), rows().flip(0)
    check_gradients(by_hand, x, target)
    expected = by_hand(x, target)
    expected.backward()
    gradients = {name: p.grad for name, p in sae.named_parameters() if p.grad is not None and p.grad.any()}
    sae.zero_grad(set_to_none=True)
    step = sae.losses(x, target, no_dead(sae))
    torch.testing.assert_close(step.terms[term], expected)
    step.terms[term].backward()
    got = {name: p.grad for name, p in sae.named_parameters() if p.grad is not None and p.grad.any()}
    torch.testing.assert_close(got, gradients)
    if term != "reconstruction":
        assert not set(got) & {"W_dec", "r_mag", "b_mag"}, "the auxiliary terms train the gate alone"


def test_the_gate_decides_and_the_magnitude_is_its_own() -> None:
    sae = make("gated")
    x = rows()
    h = (x - sae.b_dec) @ sae.W_enc
    acts = (h + sae.b_enc > 0) * (h * sae.r_mag.exp() + sae.b_mag).relu()
    dense = sae.losses(x, x, no_dead(sae)).code.to_dense()
    torch.testing.assert_close(dense, acts)
    torch.testing.assert_close(sae.encode(x).to_dense(), (acts * sae.W_dec.norm(dim=1)).detach())
    assert ((h + sae.b_enc > 0) != (acts > 0)).any(), "some open gates let nothing through, or the case is too easy"


@pytest.mark.parametrize("target", [2, 6])
def test_a_target_l0_is_reached(target: int) -> None:
    toy = Toy()
    sae = train(toy, "gated", n_steps=1000, sparsity={"target_l0": target})
    x = toy.rows(8192)
    assert sae.encode(x).l0().float().mean().item() == pytest.approx(target, rel=0.05)
    assert fve(sae, x) > (0.5 if target == 2 else 0.9)
