"""`optim.frozen`: weights that stay as drawn while the others are trained."""

import copy

import pytest
import torch

from sae.errors import SaescopeError
from tests.training.test_loop import ROWS, D, trainer


def batches(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(ROWS, D, generator=generator) for _ in range(n)]


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "relu", "gated", "jumprelu"])
@pytest.mark.parametrize("frozen", ["W_enc", "W_dec"])
def test_one_stays_and_the_rest_moves(frozen: str, variant: str, kernels: str = "reference") -> None:
    sae = {"variant": variant, "d_sae": 16, **({"k": 3} if "topk" in variant else {"sparsity": {"coefficient": 0.1}})}
    train = {"budget": "20 steps", "kernels": kernels, "device": "cpu"}
    one = trainer(sae=sae, optim={"frozen": [frozen], "lr": 1e-2}, train=train)
    before = copy.deepcopy(one.sae.state_dict())
    for batch in batches(5):
        one.step({"acts": batch})
    after = one.sae.state_dict()
    assert torch.equal(after[frozen], before[frozen])
    other = "W_dec" if frozen == "W_enc" else "W_enc"
    assert not torch.equal(after[other], before[other]) and not torch.equal(after["b_dec"], before["b_dec"])


@pytest.mark.parametrize("frozen", ["W_enc", "W_dec"])
def test_the_backends_agree(frozen: str) -> None:
    found = []
    for kernels in ("reference", "cpu"):
        train = {"budget": "20 steps", "kernels": kernels, "device": "cpu"}
        one = trainer(optim={"frozen": [frozen], "lr": 1e-2}, train=train)
        for batch in batches(6):
            one.step({"acts": batch})
        found.append(one.sae.state_dict())
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], atol=1e-4), name


def test_a_fused_optimiser_is_refused() -> None:
    train = {"budget": "20 steps", "kernels": "reference", "device": "cpu", "fused_adam": True}
    with pytest.raises(SaescopeError, match="frozen"):
        trainer(optim={"frozen": ["W_dec"]}, train=train)


def test_weights_that_a_variant_does_not_train_are_not_frozen() -> None:
    sae = {"variant": "icfl", "d_sae": 16, "rounds": 2, "per_round": 1}
    train = {"budget": "20 steps", "kernels": "reference", "device": "cpu"}
    with pytest.raises(SaescopeError, match=r"optim\.frozen: icfl has no trainable weight W_enc"):
        trainer(sae=sae, optim={"frozen": ["W_enc"]}, train=train)
    one = trainer(sae=sae, optim={"frozen": ["W_dec"], "lr": 1e-2}, train=train)
    before = copy.deepcopy(one.sae.state_dict())
    for batch in batches(3):
        one.step({"acts": batch})
    after = one.sae.state_dict()
    assert torch.equal(after["W_dec"], before["W_dec"]) and not torch.equal(after["b_dec"], before["b_dec"])
