"""Calibration: mean, scale and median norm of a hook, estimated once on training sequences spread over the corpus.

Only these define normalisation and, with the token mask, which rows are kept, both for caches and streams. Once measured
they are stored with the tokens, in `cache/NAME/calibration/HOOK-N_CALIB-MULTIPLE-spread.json`. (Files without `-spread`
are from an earlier version, which used the first sequences.)
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae.errors import SaescopeError
from sae.io.files import code_version, read_json, write_json
from sae.transform import Transform, TransformConfig, whitening
from training.activations.cache import CacheSource
from training.activations.sources import Source
from training.config.schema import DataConfig
from training.corpus.tokens import Tokens, spread
from training.site import Site

FORMAT, FORMAT_VERSION = "saescope-calibration", 2
SMALLEST, LARGEST = 1e-15, 1e15
"""Range of median norms: in it, squares of norms up to 1,000 times smaller or larger keep full fp32 precision."""


@dataclass(frozen=True)
class Frozen:
    """The calibration of one hook."""

    median_norm: float
    """Median over eligible, non-zero rows of the calibration sequences (of sparse rows, most can be zero)."""
    transform: Transform
    """Fitted on eligible rows whose norm is at most `outlier_multiple` times the median; on all if that is None."""


class KeepMask:
    """The mask of kept rows: eligible tokens whose norm at every mask hook is at most a multiple of the median.

    `limits` holds the largest norm kept, by hook; empty if outliers are kept (`outlier_multiple` None).
    """

    def __init__(
        self, source: Source, tokens: Tokens, data: DataConfig, limits: dict[str, float] | None = None
    ) -> None:
        """Read or measure the calibration of each mask hook; `limits`: use these norms, from another corpus, instead."""
        assert data.mask_hooks is not None, "the mask's hooks are resolved before training"
        self.source, self.tokens, self.data, self.hooks = source, tokens, data, data.mask_hooks
        self.training = tokens.side(held_out=False)
        self.calib = spread(self.training.sequences_with_rows(held_out=False), data.n_calib)
        multiple, hooks = data.outlier_multiple, self.hooks
        self.limits = limits or ({} if multiple is None else {h: multiple * self.frozen(h).median_norm for h in hooks})

    def over(self, source: Source, tokens: Tokens) -> "KeepMask":
        """The same mask, for other rows of the same model."""
        return KeepMask(source, tokens, self.data, self.limits)

    def frozen(self, hook: str) -> Frozen:
        """The calibration of a hook: the stored one, or measured now and stored if there is a cache."""
        if self.tokens.folder is None:
            return self._measure(hook)
        multiple = "all" if self.data.outlier_multiple is None else f"{self.data.outlier_multiple:g}"
        name = f"{hook}-{self.data.n_calib}-{multiple}-spread.json"
        path = self.tokens.folder / "calibration" / name
        if not path.exists():
            if not os.access(self.tokens.folder, os.W_OK):
                return self._measure(hook)
            path.parent.mkdir(exist_ok=True)
            write_json(path, _plain(hook, self.data, self._measure(hook)))
        return _read(path)

    def _measure(self, hook: str) -> Frozen:
        n_ctx = self.tokens.n_ctx
        eligible = torch.from_numpy(self.training.eligible[self.calib].reshape(-1))
        if not eligible.any():
            raise SaescopeError(
                "the corpus has no tokens to train on: all are BOS, special, padding, or from roles not listed in "
                "corpus.sources.chat_roles; use other text."
            )
        norms = self.source.norms(hook, self.calib, n_ctx)
        counted = norms[eligible & (norms > 0)]
        if not len(counted) or not SMALLEST <= float(counted.median()) <= LARGEST:
            raise SaescopeError(self._without_scale(hook, eligible))
        median = float(counted.median())
        kept = eligible if self.data.outlier_multiple is None else eligible & (norms <= self.data.outlier_multiple * median)
        return Frozen(median, fit(self.source.rows(hook, self.calib, n_ctx)[kept].float()))

    def _without_scale(self, hook: str, eligible: Bool[Tensor, " n_rows"]) -> str:
        """The error message if norms are unusable in fp32; they are computed in fp64 here."""
        norms = self.source.rows(hook, self.calib, self.tokens.n_ctx)[eligible].double().norm(dim=1)
        if not bool((norms > 0).any()):
            return f"{hook}: every calibration row is zero, so there is nothing to learn; check the corpus."
        median = float(norms[norms > 0].median())
        return (
            f"{hook}: the median norm of the calibration rows is {median:.2g}, whose square over- or underflows fp32 "
            f"(norms must be {SMALLEST:.0e} to {LARGEST:.0e}); multiply all rows by a constant."
        )

    def keep(
        self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int,
        norms: Mapping[str, Float[Tensor, " n_rows"]] | None = None,
    ) -> Bool[Tensor, " n_rows"]:
        """Mask of the kept rows in these blocks; `norms` by hook are read from the source if not given."""
        norms = norms or {}
        eligible = self.tokens.eligible.reshape(-1, block_rows)[blocks].reshape(-1)
        keep = torch.from_numpy(eligible.copy())
        for hook, limit in self.limits.items():
            keep &= (norms[hook] if hook in norms else self.source.norms(hook, blocks, block_rows)) <= limit
        return keep

    def dropped(self) -> dict[str, float | int]:
        """Fraction of rows dropped at positions other than the first, over all sequences of a cache.

        A stream doesn't store norms, so there it is estimated on the calibration sequences.
        """
        seqs = np.arange(self.tokens.n_seqs) if isinstance(self.source, CacheSource) else self.calib
        n_ctx = self.tokens.n_ctx
        keep = self.keep(seqs, n_ctx).view(len(seqs), n_ctx)[:, min(1, n_ctx - 1) :]
        return {"dropped_beyond_first": 1 - float(keep.double().mean()), "n_rows": keep.numel()}


def _plain(hook: str, data: DataConfig, frozen: Frozen) -> dict[str, Any]:
    """The calibration as JSON values, which round-trip fp32 exactly."""
    return {
        "format": FORMAT, "format_version": FORMAT_VERSION, "code": code_version(), "hook": hook,
        "n_calib": data.n_calib, "outlier_multiple": data.outlier_multiple, "median_norm": frozen.median_norm,
        "mean": frozen.transform.mean.tolist(), "scale": float(frozen.transform.scale),
    }


def _read(path: Path) -> Frozen:
    facts = read_json(path)
    if facts.get("format") != FORMAT or facts.get("format_version") != FORMAT_VERSION:
        raise SaescopeError(f"{path} is not a calibration that this version can read; remove it to measure it again.")
    transform = Transform(torch.tensor(facts["mean"], dtype=torch.float32), torch.tensor(facts["scale"]))
    return Frozen(facts["median_norm"], transform)


@dataclass(frozen=True)
class Calibration:
    """A site's transforms, and the normalised calibration rows for use in initialisation."""

    input: Transform
    target: Transform
    rows: Float[Tensor, "n_rows d_in"]
    targets: Float[Tensor, "n_rows d_out"]

    def under(self, config: TransformConfig, *, cross: bool) -> "Calibration":
        """Apply whitening and unit-norm rows, as set in a config, to the transforms and the rows.

        Args:
            config: the `transform` of an SAE's config.
            cross: whether target and input are different rows; only the input is whitened then.

        Raises:
            SaescopeError: too few rows to whiten on.
        """
        if not (config.whiten or config.unit_rows):
            return self
        whiten = whitening(self.rows, config.floor) if config.whiten else None
        identity = torch.zeros_like(self.input.mean), torch.ones_like(self.input.scale)
        rows = Transform(*identity, whiten=whiten, unit_rows=config.unit_rows).normalise(self.rows)
        input_ = Transform(self.input.mean, self.input.scale, whiten=whiten, unit_rows=config.unit_rows)
        return Calibration(input_, self.target, rows, self.targets) if cross else Calibration(
            input_, input_.twin(), rows, rows
        )


def fit(rows: Float[Tensor, "n_rows d"]) -> Transform:
    """Centre on the mean; scale to mean squared norm d. Sums are in fp64.

    Constant rows get scale 1.
    """
    mean = rows.double().mean(0)
    mean_square = (rows.double() - mean).square().sum(1).mean()
    scale = (rows.shape[1] / mean_square).sqrt() if mean_square > 0 else torch.ones((), dtype=torch.float64)
    return Transform(mean.float(), scale.float())


def calibrate(site: Site, mask: KeepMask) -> Calibration:
    """A site's transforms, and the kept rows of the calibration sequences normalised by them.

    For an update, the transform is fitted to the differences between the hooks' kept rows.

    Raises:
        SaescopeError: no row is kept, or the target is the same in every row.
    """
    n_ctx = mask.tokens.n_ctx
    keep = mask.over(mask.source, mask.training).keep(mask.calib, n_ctx)
    acts = {hook: mask.source.rows(hook, mask.calib, n_ctx)[keep].float() for hook in site.hooks}
    rows, targets = site.rows(acts)
    if not len(targets):
        raise SaescopeError(
            f"{site.output}: no calibration row is within the norm limits of all of {', '.join(mask.hooks)}; increase "
            "data.outlier_multiple or data.n_calib."
        )
    if bool((targets == targets[:1]).all()):
        raise SaescopeError(
            f"{site.output}: all {len(targets):,} calibration targets are the same, so there is no variance to explain; "
            "check the corpus and the site."
        )
    target = fit(targets) if site.update else mask.frozen(site.output).transform
    input_ = Transform(target.mean, target.scale) if site.update == "both" else mask.frozen(site.input).transform
    return Calibration(input_, target, input_.normalise(rows), target.normalise(targets))
