"""How an SAE's weights begin; orthogonal to the variant: any variant takes any.

Directions are rows of W_dec with unit norm; the encoder is their transpose (Gao et al. 2406.04093, §A.1) or drawn
apart; b_dec is zero, the mean or the geometric median of normalised rows; or everything comes from an existing SAE.
"""

from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sae.errors import SaescopeError

if TYPE_CHECKING:
    from sae.base import SAE


class InitConfig(BaseModel):
    """Initialisation of the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)

    directions: Literal["random"] = "random"
    """Decoder directions: uniform on the unit sphere."""
    encoder: Literal["transpose", "random"] = "transpose"
    """W_enc: the transpose of W_dec, or directions of its own."""
    encoder_scale: float = Field(default=1.0, gt=0)
    """Norm of the encoder's columns."""
    b_dec: Literal["zero", "mean", "geometric_median"] = "geometric_median"
    """Where the decoder's bias begins, over the calibration rows."""
    from_: str | None = Field(default=None, alias="from")
    """A run or a folder that `sae.load` reads, whose weights are taken instead."""


def geometric_median(
    rows: Float[Tensor, "n_rows d"], *, tolerance: float = 1e-6, max_iterations: int = 200
) -> Float[Tensor, " d"]:
    """The point of least summed distance to the rows, by Weiszfeld's iteration from the mean, in fp64.

    A row the iterate lands on is handled as in Vardi & Zhang (PNAS 2000, "The multivariate L1-median"), where the plain
    iteration divides by zero. Stops when a step is shorter than `tolerance` times the mean distance.
    """
    points = rows.double()
    median = points.mean(0)
    for _ in range(max_iterations):
        distance = (points - median).norm(dim=1)
        on_it = distance < 1e-12 * distance.mean().clamp_min(1e-300)
        weight = torch.where(on_it, 0.0, 1 / distance.clamp_min(1e-300))
        if weight.sum() == 0:
            break
        target = (weight[:, None] * points).sum(0) / weight.sum()
        pull = (weight[:, None] * (points - median)).sum(0).norm()
        stay = min(1.0, float(on_it.sum()) / max(float(pull), 1e-300))
        step = (1 - stay) * (target - median)
        median = median + step
        if step.norm() <= tolerance * distance.mean():
            break
    return median.to(rows.dtype)


def random_directions(n: int, d: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Rows uniform on the unit sphere."""
    rows = torch.randn(n, d, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True)


@torch.no_grad()
def initialise(sae: "SAE", targets: Float[Tensor, "n_rows d_out"]) -> None:
    """Set the weights of a new SAE in place from its config; `targets` are normalised calibration rows.

    The draws come from `config.seed` alone, on the CPU, so that they are the same on every device.
    """
    init = sae.config.init
    if init.from_ is not None:
        return _take_from(sae, init.from_)
    generator = torch.Generator().manual_seed(sae.config.seed)
    sae.W_dec.copy_(random_directions(sae.d_sae, sae.d_out, generator))
    if init.encoder == "transpose" and sae.d_in == sae.d_out:
        sae.W_enc.copy_(init.encoder_scale * sae.W_dec.t())
    else:
        sae.W_enc.copy_(init.encoder_scale * random_directions(sae.d_sae, sae.d_in, generator).t())
    if init.b_dec == "mean":
        sae.b_dec.copy_(targets.mean(0))
    elif init.b_dec == "geometric_median":
        sae.b_dec.copy_(geometric_median(targets))
    return None


def _take_from(sae: "SAE", path: str) -> None:
    """Take the weights of an existing SAE, re-expressed under this one's input transform."""
    from sae.store import load

    old = load(path)
    if (old.d_in, old.d_out, old.d_sae) != (sae.d_in, sae.d_out, sae.d_sae):
        raise SaescopeError(
            f"init.from: {path} is an SAE of d_in={old.d_in}, d_out={old.d_out}, d_sae={old.d_sae}, this one has "
            f"d_in={sae.d_in}, d_out={sae.d_out}, d_sae={sae.d_sae}; make them equal."
        )
    if reason := old.unfit_as_start():
        raise SaescopeError(f"init.from: {path} cannot start a training: {reason}; name another one.")
    device = sae.W_dec.device
    old = old.to(device)
    # one unit of value is 1/scale long in the model's units: lengths, and so pre-activations, change with the scale
    gain = sae.target.scale / old.target.scale
    weights, biases = old.encoder()
    W_enc = weights * (old.input.scale / sae.input.scale) * gain
    old_offset = old.b_pre if old.b_pre is not None else torch.zeros_like(old.input.mean)
    b_dec = sae.target.normalise(old.target.restore(old.b_dec[None]))[0]
    new_offset = b_dec if sae.subtracts_b_dec else torch.zeros_like(sae.input.mean)
    # the point each encoder is centred on, in raw units
    shift = (sae.input.restore(new_offset[None]) - old.input.restore(old_offset[None]))[0]
    sae.W_enc.copy_(W_enc)
    sae.b_enc.copy_(biases * gain + (shift * sae.input.scale) @ W_enc)
    sae.W_dec.copy_(old.W_dec)
    sae.b_dec.copy_(b_dec)
    sae.take_extras(old, gain)
