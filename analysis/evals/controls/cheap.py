"""Controls that need no training: a random SAE, PCA, the raw channels.

Each is an ordinary SAE, so that everything runs on it unchanged:

    random      the same random unit directions for encoder and decoder, with the same number of features, L0 and selection
                rule (k per row, or one global threshold) as the run's SAE; one gain for all features, fitted by least
                squares, so that scale doesn't matter
    pca         the principal components of x; the k projections with the largest absolute value are active, with sign
    channels    the coordinates of x, likewise

All are centred on the mean of the training rows. k is the L0 of the run's SAE on them, at most the number of components.
For a transcoder, components and channels are decoded by the least-squares map from x to the target; for an SAE that is the
component itself.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.evals.common.context import Rows, encoded
from sae.base import SAE, Transform
from sae.variants.topk import CountConfig, TopK

SAMPLE = 4096
"""Rows for setting a threshold; their pre-activations are a dense matrix."""


def cheap_controls(sae: SAE, rows: Rows, seed: int) -> dict[str, SAE]:
    """The three controls of an SAE.

    Args:
        sae: the run's SAE.
        rows: rows of training documents.
        seed: seed of the random directions.
    """
    x, target = rows.x.to(sae.W_dec), rows.target.to(sae.W_dec)
    l0 = float(encoded(sae, x[:SAMPLE]).n_active) / len(x[:SAMPLE])
    mean, bias = x.double().mean(0), target.double().mean(0)
    centred = x.double() - mean
    same = x.shape == target.shape and bool((x == target).all())
    through = _least_squares(centred, target.double() - bias, same=same)
    components = torch.linalg.eigh(centred.t() @ centred).eigenvectors.flip(1).t()
    return {
        "random": random_sae(sae, x, target, l0, seed),
        "pca": _linear(sae, components, components @ through, mean, bias, l0),
        "channels": _linear(sae, torch.eye(sae.d_in).to(mean), through, mean, bias, l0),
    }


def random_sae(
    sae: SAE, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"], l0: float, seed: int
) -> SAE:
    """An SAE with random directions and the given L0; see the module docstring.

    Args:
        sae: SAE whose shape and selection rule to copy.
        x, target: training rows.
        l0: average number of active features per row.
        seed: seed of the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = [_unit(torch.randn(sae.d_sae, d, generator=generator, dtype=torch.float64)) for d in (sae.d_in, sae.d_out)]
    if sae.d_in == sae.d_out:
        directions[1] = directions[0]
    select = sae.select()
    by_row = select.mode == "topk"
    config = _config(sae.d_sae, select.k if by_row else max(1, round(l0)), signed=select.absolute, by_row=by_row)
    mean, bias = x.double().mean(0), target.double().mean(0)
    made = _sae(sae, config, directions[0], directions[1], mean, bias)
    if not by_row:
        _set_threshold(made, x, l0)
    rows = x[:SAMPLE]
    x_hat = made.decode(encoded(made, rows)).double() - bias
    wanted = target[:SAMPLE].double() - bias
    gain = float((x_hat * wanted).sum() / x_hat.square().sum().clamp_min(1e-30))
    with torch.no_grad():
        # with a gain of zero, features would have no direction
        made.W_dec.mul_(gain if abs(gain) > 1e-6 else 1e-6)
    return made


def _set_threshold(sae: SAE, x: Float[Tensor, "n d_in"], l0: float) -> None:
    """Set a global threshold such that `l0` features are active per row on average."""
    pre = (sae.input.normalise(x[:SAMPLE]) @ sae.W_enc).flatten()
    score = pre.abs() if sae.select().absolute else pre
    n = max(1, min(len(score) - 1, round(l0 * len(x[:SAMPLE]))))
    threshold = float(score.kthvalue(len(score) - n).values)
    with torch.no_grad():
        # unsigned values below 0 are never active, so if the threshold is negative, shift all pre-activations up
        sae.b_enc.fill_(max(-threshold, 0.0))
        sae.get_buffer("threshold_sum").fill_(max(threshold, 0.0))
        sae.get_buffer("threshold_weight").fill_(1.0)


def _linear(
    sae: SAE, basis: Float[Tensor, "n d_in"], decoder: Float[Tensor, "n d_out"], mean: Float[Tensor, " d_in"],
    bias: Float[Tensor, " d_out"], l0: float,
) -> SAE:
    """An SAE whose code is the k largest projections onto a basis, by absolute value."""
    k = max(1, min(round(l0), len(basis)))
    return _sae(sae, _config(len(basis), k, signed=True, by_row=True), basis, decoder, mean, bias)


def _sae(
    like: SAE, config: CountConfig, encoder: Float[Tensor, "d_sae d_in"], decoder: Float[Tensor, "d_sae d_out"],
    mean: Float[Tensor, " d_in"], bias: Float[Tensor, " d_out"],
) -> SAE:
    """An SAE with these weights, and the device and kernels of `like`."""
    one = torch.ones(())
    made = TopK(
        config, like.d_in, like.d_out, input=Transform(mean.float().cpu(), one), target=Transform(bias.float().cpu(), one))
    with torch.no_grad():
        # feature-major in memory, as the kernels expect
        made.W_enc.copy_(encoder.t())
        made.W_dec.copy_(decoder)
    made = made.to(like.W_dec.device).requires_grad_(False)
    made.kernels, made.provenance = like.kernels, like.provenance
    return made


def _config(d_sae: int, k: int, *, signed: bool, by_row: bool) -> CountConfig:
    from sae.variants import variant_config

    name = f"{'abs' if signed else ''}{'' if by_row else 'batch'}topk"
    made = variant_config({"variant": name}).model_validate(
        {"variant": name, "d_sae": d_sae, "k": min(k, d_sae), "apply_b_dec_to_input": False})
    assert isinstance(made, CountConfig)
    return made


def _least_squares(
    x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"], *, same: bool
) -> Float[Tensor, "d_in d_out"]:
    """Least-squares map W from x to the target."""
    if same:
        return torch.eye(x.shape[1]).to(x)
    return torch.linalg.lstsq(x, target, driver="gelsd" if x.device.type == "cpu" else None).solution


def _unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(math.ulp(1.0))
