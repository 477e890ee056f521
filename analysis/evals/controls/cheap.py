"""Controls that nothing has to be trained for: a random SAE, principal components, the raw channels.

Each is an SAE like any other, so that everything runs on it unchanged:

    random      encoder and decoder are the same random unit directions; as many features, as many active per row, and the
                same rule of which are (k per row, or above one threshold for all), as the run's SAE has; one gain for all
                features, the best in least squares, so that it is not judged by its scale
    pca         the principal components of x; active are the k projections largest in size, with their sign
    channels    the coordinates of x; likewise

all about the mean of the training rows. k is the L0 of the run's SAE on them, at most the number of components. Of a
transcoder, whose target is not its input, components and channels are decoded by the least-squares map from x to the
target; for an SAE that is each component itself.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.evals.common.context import Rows, encoded
from sae.base import SAE, Transform
from sae.variants.topk import CountConfig, TopK

SAMPLE = 4096
"""Rows by which a threshold is set: its pre-activations are a dense matrix."""


def cheap_controls(sae: SAE, rows: Rows, seed: int) -> dict[str, SAE]:
    """The three, for an SAE.

    Args:
        sae: of the run.
        rows: of training documents.
        seed: of the random directions.
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
    """Random directions in the shape of an SAE, active in as many rows; see the head of this file.

    Args:
        sae: whose shape and rule are taken.
        x, target: training rows.
        l0: features that are to be active in a row, on average.
        seed: of the directions.
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
        # a gain of zero would leave the features no direction
        made.W_dec.mul_(gain if abs(gain) > 1e-6 else 1e-6)
    return made


def _set_threshold(sae: SAE, x: Float[Tensor, "n d_in"], l0: float) -> None:
    """The one threshold above which `l0` features are active in a row, on average."""
    pre = (sae.input.normalise(x[:SAMPLE]) @ sae.W_enc).flatten()
    score = pre.abs() if sae.select().absolute else pre
    n = max(1, min(len(score) - 1, round(l0 * len(x[:SAMPLE]))))
    threshold = float(score.kthvalue(len(score) - n).values)
    with torch.no_grad():
        # of values that are not signed none below 0 is ever active: where more than half are to be, all are raised
        sae.b_enc.fill_(max(-threshold, 0.0))
        sae.get_buffer("threshold_sum").fill_(max(threshold, 0.0))
        sae.get_buffer("threshold_weight").fill_(1.0)


def _linear(
    sae: SAE, basis: Float[Tensor, "n d_in"], decoder: Float[Tensor, "n d_out"], mean: Float[Tensor, " d_in"],
    bias: Float[Tensor, " d_out"], l0: float,
) -> SAE:
    """The projections on a basis that are largest in size, as an SAE."""
    k = max(1, min(round(l0), len(basis)))
    return _sae(sae, _config(len(basis), k, signed=True, by_row=True), basis, decoder, mean, bias)


def _sae(
    like: SAE, config: CountConfig, encoder: Float[Tensor, "d_sae d_in"], decoder: Float[Tensor, "d_sae d_out"],
    mean: Float[Tensor, " d_in"], bias: Float[Tensor, " d_out"],
) -> SAE:
    """An SAE with these weights, on the device and with the kernels of another."""
    one = torch.ones(())
    made = TopK(
        config, like.d_in, like.d_out, input=Transform(mean.float().cpu(), one), target=Transform(bias.float().cpu(), one))
    with torch.no_grad():
        # feature-major in memory, as kernels want it
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
    """The map W for which x W is nearest to the target."""
    if same:
        return torch.eye(x.shape[1]).to(x)
    return torch.linalg.lstsq(x, target, driver="gelsd" if x.device.type == "cpu" else None).solution


def _unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(math.ulp(1.0))
