"""AbsTopK: largest |pre| of either sign, over the row and over the batch."""

import pytest
import torch

from sae.variants.topk import AbsBatchTopKConfig, AbsTopKConfig, TopK
from tests.sae.toy import Toy, fve, train
from tests.sae.variants.test_variants import D_IN, make, no_dead, rows


def test_the_largest_by_absolute_value_keep_their_sign() -> None:
    sae = TopK(AbsTopKConfig(d_sae=3, k=2), 3)
    sae.W_enc.data.copy_(torch.eye(3))
    sae.W_dec.data.copy_(torch.eye(3))
    x = torch.tensor([[1.0, -3.0, 2.0], [0.5, -0.2, -0.3]])
    expected = torch.tensor([[0.0, -3.0, 2.0], [0.5, 0.0, -0.3]])
    assert torch.equal(sae.encode(x).to_dense(), expected)
    assert torch.equal(sae.losses(x, x, no_dead(sae)).code.to_dense(), expected)
    assert torch.equal(sae(x), expected)


def test_over_the_batch_rows_share_their_features() -> None:
    sae = TopK(AbsBatchTopKConfig(d_sae=3, k=1), 3)
    sae.W_enc.data.copy_(torch.eye(3))
    sae.W_dec.data.copy_(torch.eye(3))
    step = sae.losses(torch.tensor([[1.0, -3.0, 2.0], [0.5, -0.2, -0.3]]), torch.zeros(2, 3), no_dead(sae))
    assert torch.equal(step.code.to_dense(), torch.tensor([[0.0, -3.0, 2.0], [0.0, 0.0, 0.0]]))
    sae.observe(step)
    assert sae.threshold.item() == pytest.approx(2)
    assert sae.encode(torch.tensor([[2.5, -2.5, 1.9]])).to_dense().ne(0).tolist() == [[True, True, False]]


def test_the_threshold_on_absolute_values_keeps_l0_at_inference() -> None:
    sae = make("absbatchtopk")
    for seed in range(20):
        x = torch.randn(256, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        sae.observe(sae.losses(x, x, no_dead(sae)))
    code = sae.encode(torch.randn(4096, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(99)))
    assert code.l0().double().mean().item() == pytest.approx(3, rel=0.1)
    assert (code.value < 0).any() and (code.value > 0).any()


def test_negating_the_input_negates_the_code() -> None:
    sae = make("abstopk", apply_b_dec_to_input=False)
    sae.b_enc.data.zero_()
    torch.testing.assert_close(sae.encode(-rows()).to_dense(), -sae.encode(rows()).to_dense())


def test_a_bipolar_axis_is_one_feature() -> None:
    """As many features as axes: AbsTopK explains what TopK, with one sign per feature, cannot."""
    toy = Toy(bipolar=True)
    signed, plain = (train(toy, variant, k=3) for variant in ("abstopk", "topk"))
    x = toy.rows(4096)
    code = signed.encode(x)
    dense = code.to_dense()
    both = ((dense > 0).float().mean(0) > 0.005) & ((dense < 0).float().mean(0) > 0.005)
    assert fve(signed, x) > fve(plain, x) + 0.1
    assert both.float().mean() > 0.9
