"""Shared code of the experiments on synthetic data: train on rows of known features, and measure recovery."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analysis.evals.recovery import recovery
from analysis.reproduce.jobs import Job
from sae.base import SAE
from sae.code import SparseCode
from sae.metrics import FVE
from training.activations.synthetic import DRAWN, Synthetic
from training.config.reading import merged, resolve
from training.run import train

N_ROWS = 16 * DRAWN
"""Rows for measuring recovery, from the same world, after the training rows."""


def fit(job: Job, **fields: Any) -> tuple[SAE, Synthetic, int]:
    """Train (or resume) a job's SAE; returns it, its world, and the index of the first row beyond the corpus.

    The seed determines the world, the row order and the weights.
    """
    over = {"name": "run", "data": {"seed": job.seed}, "sae": {"seed": job.seed},
            "corpus": {"synthetic": {"seed": job.seed}}}
    (config,) = resolve(merged(merged(dict(job.fields), over), fields))
    assert config.corpus.synthetic is not None
    trained = train(config, runs=job.folder, resume=True, quiet=True)
    first = -(-config.corpus.n_tokens // DRAWN) * DRAWN
    return trained.sae, Synthetic(config.corpus.synthetic), first


def measure(sae: SAE, world: Synthetic, first: int, n_rows: int = N_ROWS) -> tuple[dict[str, Any], SparseCode]:
    """L0, FVE, share of silent features and recovery on `n_rows` rows from `first` on, and the SAE's code of them."""
    blocks = np.arange(first // DRAWN, (first + n_rows) // DRAWN)
    x, truth = world.rows("acts", blocks, DRAWN), world.codes(blocks, DRAWN)
    code = sae.encode(x)
    fve = FVE(1, x.mean(0))
    fve.add(torch.zeros(n_rows, dtype=torch.int64), x, sae.decode(code))
    found = recovery(sae.W_dec, code, world.directions, truth, world.parents)
    return {
        "l0": float(code.n_active) / n_rows, "fve": fve.value(), "dead": float((code.counts() == 0).float().mean()),
        **found.plain(),
    }, code


def both_signs(code: SparseCode, least: float = 0.1) -> Bool[Tensor, " d_sae"]:
    """Mask of features whose rarer sign makes up at least a share `least` of their activations."""
    feature, value = code.feature.long(), code.value
    signs = [torch.zeros(code.d_sae).index_add_(0, feature, mask.float()) for mask in (value > 0, value < 0)]
    rarer = torch.minimum(*signs)
    return (rarer > 0) & (rarer >= least * (signs[0] + signs[1]))


def ordered(cosine: Float[np.ndarray, "n_features d_sae"], matched: np.ndarray) -> Float[np.ndarray, "n_features d_sae"]:
    """|cosine| with columns sorted by their matched feature; unmatched columns come last."""
    rest = np.setdiff1d(np.arange(cosine.shape[1]), matched)
    return np.abs(cosine[:, np.concatenate([matched[matched >= 0], rest])])
