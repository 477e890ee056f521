"""The masked objective: some entries of each row are hidden from the encoder, and the loss is on them.

    seen_i = 0 with probability hide, else 1       x̂ = the variant's reconstruction of x ⊙ seen / (1 − hide)
    loss = ‖(x − x̂) ⊙ (1 − seen)‖² / hide + the variant's other terms

Chidambaram, Wu, Cheng & Ge, "Hiding Data Helps" (2302.12715): a dictionary wider than the truth lowers the plain loss by
fitting the noise of the entries that its codes were computed from. The noise of hidden entries cannot be foreseen from the
others, so that the masked loss is lowest at the true dictionary. They compute codes by orthogonal matching pursuit on the
seen entries alone; here it is any variant's encoder, for which rows are centred, so that a hidden entry is at its mean, and
what is seen is scaled so that the expected pre-activation is that of the whole row. Division by `hide` makes the expected
loss that of a whole row whose error is the same everywhere: coefficients of other terms keep their meaning.

Masks are drawn for each entry by itself, anew in every step, and are a pure function of the SAE's seed and the step: a
resumed training draws the same. What training counts (L0, dead features, BatchTopK's threshold, the controller of a target
L0) it counts in codes of whole rows, which are what evaluation and all else see; penalties on codes are on those of the
loss. The FVE that training logs is of all entries, from the seen ones.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Masked(NamedTuple):
    """Rows for the encoder, and what the squared error of each entry counts by."""

    x: Float[Tensor, "n_rows d"]
    weight: Float[Tensor, "n_rows d"]


def masked(x: Float[Tensor, "n_rows d"], hide: float, seed: int, step: int) -> Masked:
    """Hide a share `hide` of the entries of normalised rows; the weights of those are 1 / hide, of the others 0."""
    # an odd multiplier mixes the two, so that runs of neighbouring seeds do not draw each other's masks
    generator = torch.Generator(x.device).manual_seed((seed * 0x9E3779B97F4A7C15 + step) % 2**63)
    hidden = torch.rand(x.shape, generator=generator, device=x.device) < hide
    return Masked(x.masked_fill(hidden, 0) / (1 - hide), hidden.to(x.dtype) / hide)
