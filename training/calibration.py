"""What is fixed once from the first training sequences: mean, scale and median norm of a hook.

They alone define normalisation and, with the token mask, which rows are kept, for cache and stream alike.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae.base import Transform
from training.cache import CacheSource
from training.config import DataConfig, SiteConfig
from training.sources import Source
from training.tokens import Tokens


class KeepMask:
    """Which rows are kept: eligible tokens whose norm at every mask hook is at most a multiple of the median."""

    def __init__(self, source: Source, tokens: Tokens, data: DataConfig) -> None:
        """Measures each mask hook's median norm over the eligible rows of the calibration sequences."""
        assert data.mask_hooks is not None, "the mask's hooks are resolved before training"
        self.source, self.tokens, self.hooks = source, tokens, data.mask_hooks
        self.calib = tokens.sequences(held_out=False)[: data.n_calib]
        eligible = torch.from_numpy(tokens.eligible[self.calib].reshape(-1))
        self.limits: dict[str, float] = {}
        for hook in self.hooks:
            norms = source.norms(hook, self.calib, tokens.n_ctx)[eligible]
            self.limits[hook] = data.outlier_multiple * float(norms.median())

    def keep(self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Bool[Tensor, " n_rows"]:
        """Which rows of these blocks are kept."""
        eligible = self.tokens.eligible.reshape(-1, block_rows)[blocks].reshape(-1)
        keep = torch.from_numpy(eligible.copy())
        for hook in self.hooks:
            keep &= self.source.norms(hook, blocks, block_rows) <= self.limits[hook]
        return keep


    def dropped(self) -> dict[str, float | int]:
        """The share of rows dropped at positions other than the first, over all sequences a cache can tell of.

        Norms of a stream's rows are not stored anywhere: there the calibration sequences stand for all.
        """
        seqs = np.arange(self.tokens.n_seqs) if isinstance(self.source, CacheSource) else self.calib
        keep = self.keep(seqs, self.tokens.n_ctx).view(len(seqs), self.tokens.n_ctx)[:, 1:]
        return {"dropped_beyond_first": 1 - float(keep.double().mean()), "n_rows": keep.numel()}


@dataclass(frozen=True)
class Calibration:
    """A site's transforms and the normalised calibration rows that initialisation may look at."""

    input: Transform
    target: Transform
    rows: Float[Tensor, "n_rows d_in"]
    targets: Float[Tensor, "n_rows d_out"]


def target_rows(site: SiteConfig, acts: dict[str, Tensor]) -> Float[Tensor, "n_rows d_out"]:
    """What is reconstructed: the target hook, or its difference from the input."""
    target = acts[site.target or site.input]
    return target.float() - acts[site.input].float() if site.update else target


def fit(rows: Float[Tensor, "n_rows d"]) -> Transform:
    """Centre on the mean; scale to mean squared norm d. Sums are in fp64.

    Constant rows have no scale: theirs is 1.
    """
    mean = rows.double().mean(0)
    mean_square = (rows.double() - mean).square().sum(1).mean()
    scale = (rows.shape[1] / mean_square).sqrt() if mean_square > 0 else torch.ones((), dtype=torch.float64)
    return Transform(mean.float(), scale.float())


def calibrate(site: SiteConfig, mask: KeepMask) -> Calibration:
    """Fit a site's transforms on the kept rows of the calibration sequences."""
    n_ctx = mask.tokens.n_ctx
    keep = mask.keep(mask.calib, n_ctx)
    acts = {hook: mask.source.rows(hook, mask.calib, n_ctx)[keep].float() for hook in site.hooks}
    rows, targets = acts[site.input], target_rows(site, acts)
    input_, target = fit(rows), fit(targets)
    return Calibration(input_, target, input_.normalise(rows), target.normalise(targets))
