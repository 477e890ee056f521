"""The same SAE about another mean."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import SAE


@torch.no_grad()
def recentred(sae: SAE, mean: Float[Tensor, " d_out"]) -> SAE:
    """Move the target's mean, in place; every feature and reconstruction stays what it was, up to rounding.

    x̂ = z / scale + b_dec / scale + mean, so b_dec takes up what the mean gives; where the encoder reads x − b_dec, the
    input's mean moves by as much. Mean ablation is to the target's mean, which an SAE from elsewhere does not have.

    Args:
        sae: any variant, its transforms not shared with another SAE.
        mean: of the raw target.
    """
    change = (mean.to(sae.target.mean) - sae.target.mean).double() * sae.target.scale.double()
    sae.target.mean.copy_(mean)
    sae.b_dec.copy_(sae.b_dec.double() - change)
    if sae.subtracts_b_dec:
        sae.input.mean.copy_(sae.input.mean.double() + change / sae.input.scale.double())
    return sae
