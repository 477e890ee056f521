"""TopK as a k-sparse autoencoder (1312.5663): one dictionary that reads and writes, α · k active features at inference."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sae import store
from sae.errors import SaescopeError
from tests.sae.toy import Toy, train
from tests.sae.variants.test_variants import D_IN, D_SAE, Loss, check_gradients, make, no_dead, rows, saved, started
from training.config.reading import resolve

TIED = {"tied": True, "apply_b_dec_to_input": False, "auxk": {"coefficient": 0}}


def test_the_gradient_is_that_of_both_uses_of_the_dictionary() -> None:
    sae = make("topk", **TIED)
    assert not sae.W_enc.requires_grad
    x = rows()
    check_gradients(Loss(sae, "reconstruction", no_dead(sae)), x, x, but={"W_enc"})

    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W, self.b, self.c = (nn.Parameter(p.detach().clone()) for p in (sae.W_dec, sae.b_enc, sae.b_dec))

        def forward(self, x: Tensor) -> Tensor:
            pre = (x @ self.W.t() + self.b).relu()
            top = pre.topk(3, dim=1)
            acts = torch.zeros_like(pre).scatter(1, top.indices, top.values)
            return (x - acts @ self.W - self.c).square().sum(1).mean()

    by_hand = ByHand()
    loss = sae.losses(x, x, no_dead(sae)).loss
    torch.testing.assert_close(loss, by_hand(x))
    loss.backward()
    by_hand(x).backward()
    for mine, theirs in ((sae.W_dec, by_hand.W), (sae.b_enc, by_hand.b), (sae.b_dec, by_hand.c)):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert sae.W_enc.grad is None


@pytest.mark.parametrize("variant", ["topk", "abstopk", "batchtopk", "matryoshka"])
def test_training_keeps_the_two_tied_and_so_do_saved_weights(variant: str, tmp_path: Path) -> None:
    sae = train(Toy(), variant, n_steps=20, k=3, tied=True)
    assert torch.equal(sae.W_enc, sae.W_dec.t())
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae))
    store.save(sae, tmp_path / "saved", provenance={})
    again = store.load(tmp_path / "saved")
    x = torch.randn(50, sae.d_in)
    torch.testing.assert_close(again(x), sae(x))
    assert again.config == sae.config


def test_alpha_k_features_are_active_at_inference_and_k_in_training() -> None:
    sae = make("topk", alpha=2.5)
    sae.b_enc.data.fill_(5.0)  # so that as many are positive
    assert (sae.encode(rows()).l0() == 8).all(), "2.5 · 3, to the nearest even number"
    assert (sae.losses(rows(), rows(), no_dead(sae)).code.l0() == 3).all()
    assert sae.select().k == sae.config.k_at_inference  # type: ignore[attr-defined]


@pytest.mark.parametrize(("variant", "fields", "message"), [
    ("topk", {"alpha": 7}, r"alpha · k = 7 · 3 exceeds d_sae = 20"),
    ("topk", {"alpha": 0.5}, r"greater than or equal to 1"),
    ("batchtopk", {"alpha": 2}, r"batchtopk uses a threshold at inference"),
    ("matryoshka", {"alpha": 2}, r"batchtopk uses a threshold at inference"),
])
def test_an_alpha_that_cannot_be_is_refused(variant: str, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(variant, **fields)


def test_a_transcoder_is_not_tied() -> None:
    with pytest.raises(SaescopeError, match=r"d_in = 6 and d_out = 4 differ"):
        make("topk", d_out=4, **TIED)
    tied = {"variant": "topk", "d_sae": 8, "k": 2, "tied": True}
    fields = {"name": "x", "sae": tied, "site": {"input": "a", "target": "b"}}
    with pytest.raises(SaescopeError, match=r"sae\.tied"):
        resolve(fields)
    (both,) = resolve(fields | {"site": {"input": "a", "target": "b", "update": "both"}})
    assert both.sae.tied  # type: ignore[attr-defined]
    with pytest.raises(SaescopeError, match=r"fused_adam.*sae\.tied"):
        resolve(fields | {"site": "a", "train": {"fused_adam": True}})


def test_it_begins_from_its_like_only(tmp_path: Path) -> None:
    start = saved("topk", tmp_path / "tied", **TIED)
    x = 2 * rows()
    sae = started("topk", tmp_path / "tied", rows(), **TIED)
    # under another transform, as it was saved
    torch.testing.assert_close(sae.encode(x).to_dense(), start.encode(x).to_dense(), atol=1e-9, rtol=1e-9)
    saved("topk", tmp_path / "free")
    with pytest.raises(SaescopeError, match=r"init\.from: with sae\.tied"):
        started("topk", tmp_path / "free", rows(), **TIED)
    assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)
