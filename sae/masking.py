"""The masked objective: hide some entries of each row from the encoder and compute the loss on them.

    seen_i = 0 with probability hide, else 1       x̂ = the variant's reconstruction of x ⊙ seen / (1 − hide)
    loss = ‖(x − x̂) ⊙ (1 − seen)‖² / hide + the variant's other terms

Chidambaram, Wu, Cheng & Ge, "Hiding Data Helps" (2302.12715): a dictionary wider than the truth lowers the plain loss by
fitting the noise of the entries that its codes were computed from. The noise of hidden entries cannot be predicted from
the others, so the masked loss is lowest at the true dictionary. They compute codes by orthogonal matching pursuit on the
seen entries alone. Here any variant's encoder does it: rows are centred, so a hidden entry is at its mean, and seen entries
are scaled up so that the expected pre-activation equals that of the whole row. Division by `hide` makes the expected loss
that of a whole row with uniform error, so the coefficients of the other terms keep their meaning.

Masks are i.i.d. per entry, redrawn every step, and a pure function of the SAE's seed and the step, so a resumed run draws
the same ones. Training statistics (L0, dead features, BatchTopK's threshold, the controller of a target L0) use the codes
of whole rows, the same codes as in evaluation; sparsity penalties use the codes of the masked rows. The FVE logged in
training is over all entries, reconstructed from the seen ones.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Masked(NamedTuple):
    """Masked rows for the encoder, and the weight of each entry's squared error."""

    x: Float[Tensor, "n_rows d"]
    weight: Float[Tensor, "n_rows d"]


def masked(x: Float[Tensor, "n_rows d"], hide: float, seed: int, step: int) -> Masked:
    """Hide a fraction `hide` of the entries of normalised rows; hidden entries weigh 1 / hide, the others 0."""
    # an odd multiplier mixes seed and step, so that runs with neighbouring seeds do not share masks
    generator = torch.Generator(x.device).manual_seed((seed * 0x9E3779B97F4A7C15 + step) % 2**63)
    hidden = torch.rand(x.shape, generator=generator, device=x.device) < hide
    return Masked(x.masked_fill(hidden, 0) / (1 - hide), hidden.to(x.dtype) / hide)
