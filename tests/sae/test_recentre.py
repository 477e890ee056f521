"""Another mean, the same function."""

import pytest
import torch

from sae.base import Transform
from sae.recentre import recentred
from sae.variants.gated import Gated, GatedConfig
from sae.variants.relu import ReLU, ReLUConfig
from sae.variants.topk import TopK, TopKConfig

D, N = 12, 40


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("name", ["topk", "relu", "gated", "transcoder"])
def test_nothing_but_the_mean_changes(name: str, subtracts: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    transform = {"input": Transform(torch.randn(D, generator=generator), torch.tensor(0.7))}
    if name == "topk":
        sae = TopK(TopKConfig(d_sae=N, k=5, apply_b_dec_to_input=subtracts), D, **transform)
    elif name == "transcoder":
        config = ReLUConfig(d_sae=N, skip=True, apply_b_dec_to_input=False)
        sae = ReLU(config, D, 9, target=Transform(torch.randn(9, generator=generator), torch.tensor(1.3)), **transform)
    else:
        sae_class, config_class = {"relu": (ReLU, ReLUConfig), "gated": (Gated, GatedConfig)}[name]
        sae = sae_class(config_class(d_sae=N, apply_b_dec_to_input=subtracts), D, **transform)
    sae = sae.double()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(30, D, generator=generator, dtype=torch.float64)
    before, x_hat = sae.encode(x).to_dense(), sae(x)
    mean = 3 * torch.randn(sae.d_out, generator=generator, dtype=torch.float64)
    recentred(sae, mean)
    assert torch.equal(sae.target.mean, mean)
    torch.testing.assert_close(sae.encode(x).to_dense(), before)
    torch.testing.assert_close(sae(x), x_hat)
