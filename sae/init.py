"""Weight initialisation; works with any variant.

Directions are unit-norm rows of W_dec; the encoder is their transpose (Gao et al. 2406.04093, §A.1) or drawn separately;
b_dec is zero, the mean or the geometric median of normalised rows; or all weights come from an existing SAE.

*Active subspace* (2508.16929): attention outputs vary in few directions, and features whose directions lie outside them
are never chosen and stay dead. So directions are drawn uniformly on the unit sphere of the leading principal axes of the
centred calibration targets (`sae.subspace`), and a transcoder's encoder in the subspace of its inputs. The paper then
scales W_dec, and W_enc as its transpose, by the s in [0.1, 5] with the least squared error: the best of 50, then of 20
around it. Decoder rows have unit norm here, so W_enc is scaled by s² instead, which is the same function; thresholds are
scaled too, so s changes values and not which features are active. After that all weights train freely.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor

from sae.errors import SaescopeError
from sae.kernels import Select
from sae.part import Part
from sae.section import Section
from sae.subspace import Subspace
from sae.units import Count

if TYPE_CHECKING:
    from sae.base import SAE
    from sae.ranks import Ranks

SEARCH_ROWS = 1024
"""Calibration rows for the search of the scale."""
LOWEST, HIGHEST, COARSE, FINE = 0.1, 5.0, 50, 20
"""The paper's grid of decoder norms."""
PIECE = 1 << 14
"""Directions drawn at a time. torch draws the same numbers in pieces as at once if each piece but the last has 16 n."""


class InitConfig(Section):
    """Weight initialisation."""

    model_config = ConfigDict(populate_by_name=True)

    directions: Literal["random", "active_subspace"] = "random"
    """Decoder directions: uniform on the unit sphere, or on the unit sphere of the targets' principal subspace."""
    subspace: Count | None = Field(default=None, gt=0)
    """Dimensions of the active subspace; null: as many as explain `explained` of the variance."""
    explained: float = Field(default=0.99, gt=0, le=1)
    """Fraction of the variance that the active subspace explains, if `subspace` is null."""
    search: bool = True
    """With an active subspace, search for the encoder scale with the least error, on top of encoder_scale."""
    encoder: Literal["transpose", "random"] = "transpose"
    """W_enc: the transpose of W_dec, or drawn independently."""
    encoder_scale: float = Field(default=1.0, gt=0)
    """Norm of the encoder's columns."""
    b_dec: Literal["zero", "mean", "geometric_median"] = "geometric_median"
    """Initial decoder bias, from the calibration rows."""
    from_: str | None = Field(default=None, alias="from")
    """Start from the weights and thresholds of a run, or of a folder that `sae.load` reads. Exact for jumprelu, mdl and
    gated; other variants keep the same features active, with each value smaller by its threshold."""


def geometric_median(
    rows: Float[Tensor, "n_rows d"], *, tolerance: float = 1e-6, max_iterations: int = 200
) -> Float[Tensor, " d"]:
    """The point with the least summed distance to the rows: Weiszfeld's iteration from the mean, in fp64.

    If the iterate lands on a row, where the plain iteration divides by zero, it proceeds as in Vardi & Zhang (PNAS 2000,
    "The multivariate L1-median"). Stops when a step is shorter than `tolerance` times the mean distance.
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


def random_directions(part: Part, d: int, generator: torch.Generator) -> Float[Tensor, "n_features d"]:
    """Directions uniform on the unit sphere, one per feature of a shard.

    Every rank draws the directions of all features, a piece at a time, so they do not depend on the number of ranks.
    """
    if part.n == 1:
        rows = torch.randn(part.d_sae, d, generator=generator)
    else:
        ends = [*range(0, max(part.d_sae - PIECE, 0) + 1, PIECE), part.d_sae]
        rows = torch.cat([
            torch.randn(stop - start, d, generator=generator)[part.features_of(start, stop) - start]
            for start, stop in pairwise(ends)
        ])
    return rows / rows.norm(dim=1, keepdim=True)


@torch.no_grad()
def initialise(
    sae: "SAE", targets: Float[Tensor, "n_rows d_out"], inputs: Float[Tensor, "n_rows d_in"] | None = None
) -> None:
    """Initialise the weights of a new SAE in place from its config.

    Random draws depend on `config.seed` alone and run on the CPU, so they are the same on every device.

    Args:
        sae: a new SAE, with all weights zero.
        targets: normalised calibration rows of the target.
        inputs: normalised calibration rows of the input, if it differs from the target (a transcoder).

    Raises:
        SaescopeError: `init.from` does not fit, or the rows do not span the subspace that `init` asks for.
    """
    init = sae.config.init
    if init.from_ is not None:
        return _take_from(sae, init.from_, targets if inputs is None else inputs)
    generator = torch.Generator().manual_seed(sae.config.seed)
    active = init.directions == "active_subspace"
    part = sae.ranks.part(sae.config.d_sae)
    sae.W_dec.copy_(_directions(init, targets, part, generator))
    rows = targets if inputs is None else inputs
    assert rows.shape[1] == sae.d_in or not active, "an active subspace of the inputs needs the inputs"
    if init.encoder == "transpose" and sae.d_in == sae.d_out and not (active and inputs is not None):
        encoder = sae.W_dec.detach()
    else:
        encoder = _directions(init, rows, part, generator) if active else random_directions(part, sae.d_in, generator)
    sae.W_enc.copy_(init.encoder_scale * encoder.t())
    if init.b_dec == "mean":
        sae.b_dec.copy_(targets.mean(0))
    elif init.b_dec == "geometric_median":
        sae.b_dec.copy_(geometric_median(targets))
    if active:
        _scale_by_error(sae, rows, targets, generator)
    return None


def _directions(
    init: InitConfig, rows: Float[Tensor, "n_rows d"], part: Part, generator: torch.Generator
) -> Float[Tensor, "n_features d"]:
    """Random unit directions in the whole space or in the principal subspace of these rows.

    Raises:
        SaescopeError: the rows have no variance, or vary in fewer dimensions than `init` asks for.
    """
    d = rows.shape[1]
    if init.directions == "random":
        return random_directions(part, d, generator)
    subspace = Subspace.of(rows)
    size = subspace.n_for(init.explained) if init.subspace is None else init.subspace
    if size > d:
        raise SaescopeError(
            f"init.subspace = {size} exceeds the width {d} of the activations; give at most {d}, or leave it out to use "
            f"the {subspace.n_for(init.explained)} dimensions that explain {init.explained:.0%} of their variance."
        )
    if size >= len(rows):
        raise SaescopeError(
            f"init: {len(rows)} calibration rows do not span a subspace of {size} dimensions; raise data.n_calib, or lower "
            "init.subspace or init.explained."
        )
    return random_directions(part, size, generator) @ subspace.axes[:size].to(rows)


def _scale_by_error(
    sae: "SAE", inputs: Float[Tensor, "n_rows d_in"], targets: Float[Tensor, "n_rows d_out"], generator: torch.Generator
) -> None:
    """Scale a new encoder, and its thresholds, by the s² with the least squared error on some calibration rows.

    Rows project more strongly onto directions of the subspace than onto random ones, which the initial thresholds assume.
    So thresholds are also scaled by the root mean square of the pre-activations.
    """
    chosen = torch.randperm(len(inputs), generator=generator)[:SEARCH_ROWS]
    x, target = inputs[chosen], targets[chosen]
    encoder = sae.W_enc.detach().clone()
    x_pre = x if sae.b_pre is None else x - sae.b_pre
    squares = sae.ranks.over_features((x_pre @ encoder).square().mean()) / sae.ranks.n_shards
    spread = squares.sqrt() / sae.config.init.encoder_scale
    sae.fold_norms(spread.expand(sae.d_sae))
    if not sae.config.init.search or not sae.linear_encoder:
        return
    now = 1.0

    def error(s: float) -> float:
        """Mean squared error with scale s²."""
        nonlocal now
        sae.W_enc.copy_(encoder * s**2)
        sae.fold_norms(torch.full((sae.d_sae,), s**2 / now).to(spread))
        now = s**2
        return float((target - first_pass(sae, x, target)).square().mean())

    def best(grid: Float[Tensor, " n"]) -> float:
        return min(grid.tolist(), key=error)

    coarse = torch.linspace(LOWEST, HIGHEST, COARSE, dtype=torch.float64)
    near, step = best(coarse), float(coarse[1] - coarse[0])
    fine = torch.linspace(max(LOWEST, near - step), min(HIGHEST, near + step), FINE, dtype=torch.float64)
    error(best(fine))


def first_pass(
    sae: "SAE", x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"]
) -> Float[Tensor, "n_rows d_out"]:
    """The reconstruction of the first training step; batch variants have no inference threshold yet."""
    from sae.base import Progress

    return sae.step(x, target, Progress(torch.zeros(sae.d_sae, dtype=torch.bool))).x_hat


def _take_from(sae: "SAE", path: str, rows: Float[Tensor, "n_rows d_in"]) -> None:
    """Copy the weights and thresholds of an existing SAE, re-expressed under this SAE's input transform."""
    from sae.store import load

    old = load(path)
    d_sae = sae.config.d_sae
    if (old.d_in, old.d_out, old.d_sae) != (sae.d_in, sae.d_out, d_sae):
        raise SaescopeError(
            f"init.from: {path} has d_in={old.d_in}, d_out={old.d_out}, d_sae={old.d_sae}, but this SAE has "
            f"d_in={sae.d_in}, d_out={sae.d_out}, d_sae={d_sae}; they must be equal."
        )
    if sae.config.transform.whiten or sae.config.transform.unit_rows:
        raise SaescopeError(
            "init.from only works without whitening and per-row normalisation; leave out sae.transform or init.from."
        )
    if reason := old.unfit_as_start():
        raise SaescopeError(f"init.from: training cannot start from {path}: {reason}; choose another SAE.")
    if old.config.skip and not sae.config.skip:
        raise SaescopeError(f"init.from: {path} has a skip path, but this SAE has none; set sae.skip=true.")
    old = part_of(old, sae.ranks).to(sae.W_dec)
    # one unit of a value has norm 1/scale in the model's units, so pre-activations change with the scale
    gain = sae.target.scale / old.target.scale
    weights, biases = old.encoder()
    W_enc = weights * (old.input.scale / sae.input.scale) * gain
    old_offset = old.b_pre if old.b_pre is not None else torch.zeros_like(old.input.mean)
    b_dec = sae.target.normalise(old.target.restore(old.b_dec[None]))[0]
    if old.config.skip:
        sae.W_skip.copy_(old.W_skip * (old.input.scale / sae.input.scale) * gain)
        b_dec = b_dec + sae.W_skip @ (sae.input.scale * (sae.input.mean - old.input.mean))
    new_offset = b_dec if sae.subtracts_b_dec else torch.zeros_like(sae.input.mean)
    # the point each encoder is centred on, in raw units
    shift = (sae.input.restore(new_offset[None]) - old.input.restore(old_offset[None]))[0]
    sae.W_enc.copy_(W_enc)
    sae.b_enc.copy_(biases * gain + (shift * sae.input.scale) @ W_enc)
    sae.W_dec.copy_(old.W_dec)
    sae.b_dec.copy_(b_dec)
    sae.take_thresholds(_thresholds(old, sae, gain, rows))
    sae.take_extras(old, gain)


def _thresholds(
    old: "SAE", sae: "SAE", gain: Float[Tensor, ""], rows: Float[Tensor, "n_rows d_in"]
) -> Float[Tensor, " d_sae"]:
    """Thresholds on the new SAE's pre-activations that give the old SAE's active features.

    Exact if the old SAE has thresholds. If it keeps the k largest, all features get the threshold that k pre-activations
    per calibration row exceed on average.
    """
    select = old.select()
    if select.mode == "threshold":
        # values are never negative, so neither are thresholds
        return (torch.as_tensor(select.threshold).to(sae.b_enc) * gain).clamp_min(0).expand(sae.d_sae)
    x = rows[:: -(-len(rows) // SEARCH_ROWS)]
    x = x if sae.b_pre is None else x - sae.b_pre
    code = sae.kernels.encode(x, sae.W_enc, sae.b_enc, Select("batch_topk", k=select.k, absolute=select.absolute))
    size = code.value.abs()
    least = sae.ranks.least(size[size > 0].min() if code.n_active else size.new_tensor(torch.inf))
    return torch.where(least.isfinite(), least, 0).expand(sae.d_sae)


def part_of(old: "SAE", ranks: "Ranks") -> "SAE":
    """This rank's shard of an SAE's features; the SAE itself if features are not sharded."""
    if ranks.n_shards == 1:
        return old
    mine = ranks.part(old.config.d_sae).features()
    part = type(old)(old.config, old.d_in, old.d_out, ranks=ranks)
    axes = {name: old.feature_axis(name) for name in old.state_dict()}
    part.load_state_dict({
        name: tensor if (axis := axes[name]) is None else tensor.index_select(axis, mine)
        for name, tensor in old.state_dict().items()
    })
    return part
