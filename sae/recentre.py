"""Change the mean that an SAE is centred on, without changing what it computes."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import SAE


@torch.no_grad()
def recentred(sae: SAE, mean: Float[Tensor, " d_out"]) -> SAE:
    """Set the target's mean in place; features and reconstructions stay the same up to rounding.

    x̂ = z / scale + b_dec / scale + mean, so b_dec absorbs the change; if the encoder reads x − b_dec, the input's mean
    moves by the same amount. Mean ablation uses the target's mean, which imported SAEs lack.

    Args:
        sae: any variant whose transforms are not shared with another SAE.
        mean: mean of the raw target.
    """
    change = (mean.to(sae.target.mean) - sae.target.mean).double() * sae.target.scale.double()
    sae.target.mean.copy_(mean)
    sae.b_dec.copy_(sae.b_dec.double() - change)
    if sae.subtracts_b_dec:
        sae.input.mean.copy_(sae.input.mean.double() + change / sae.input.scale.double())
    return sae
