"""Which rows an index is made of: the run's own cache, or another text through its model; and which of them are kept.

Kept are the rows that training would keep: no BOS, special or padding token, no norm above the outlier limit that the
run's own calibration set. Held-out sequences are indexed like the others.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from sae.base import SAE
from sae.errors import SaescopeError
from training.activations.cache import CacheSource, missing_hooks
from training.activations.calibration import KeepMask
from training.activations.harvest import Data, open_data
from training.activations.sources import Source
from training.config import reading as configs
from training.config.schema import Config
from training.corpus.tokens import Tokens, cache_folder, open_tokens
from training.display import Display
from training.model.language_model import Model
from training.model.load import load_model

OVERRIDABLE = ("corpus", "cache", "model")
"""Sections of a run's config that an index over another corpus may change."""


@dataclass(frozen=True)
class Rows:
    """Activations in corpus order, and what they are."""

    config: Config
    data: Data
    mask: KeepMask
    n_seqs: int
    """How many sequences, from the first, are indexed."""

    @property
    def n_ctx(self) -> int:
        """Rows per sequence."""
        return self.data.tokens.n_ctx

    @property
    def tokens(self) -> Int32[np.ndarray, "n_seqs n_ctx"] | None:
        """Token ids; None for activations that came without text."""
        return None if self.data.tokens.tokens is None else self.data.tokens.tokens[: self.n_seqs]

    def read(self, seqs: Int64[np.ndarray, " n"]) -> tuple[Float[Tensor, "n_rows d_in"], Bool[Tensor, " n_rows"]]:
        """The site's input rows of these sequences in the stored precision, and which of them are kept."""
        keep = self.mask.keep(seqs, self.n_ctx)
        return self.data.source.rows(self.config.site.input, seqs, self.n_ctx), keep

    def facts(self) -> dict[str, Any]:
        """What determines the rows, by hash."""
        tokens = self.data.tokens
        facts: dict[str, Any] = {
            "made_from": tokens.made_from, "hook": self.config.site.input, "n_seqs": self.n_seqs, "n_ctx": self.n_ctx,
            "mask": {"outlier_multiple": self.config.data.outlier_multiple, "limits": self.mask.limits},
            "eligible_sha256": hashlib.sha256(np.packbits(tokens.eligible[: self.n_seqs]).tobytes()).hexdigest(),
        }
        if self.tokens is not None:
            facts["tokens_sha256"] = hashlib.sha256(np.ascontiguousarray(self.tokens).tobytes()).hexdigest()
        if isinstance(self.data.source, CacheSource):
            shards = self.data.source.manifests[self.config.site.input]["shards"]
            facts["rows_sha256"] = hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()
        return facts

    def model(self) -> Model:
        """The language model, loaded if it was not needed so far.

        Raises:
            SaescopeError: there is none, or it cannot be had.
        """
        if self.data.model is not None:
            return self.data.model
        if self.config.model is None or self.config.corpus.acts_dir is not None:
            raise SaescopeError("the activations came without a language model.")
        return load_model(self.config.model.name, device=self.config.model.device, dtype=self.config.model.dtype)


def open_rows(run: Path, sae: SAE, overrides: Sequence[str], n_rows: int | None, display: Display) -> Rows:
    """The rows of a run's own corpus, or of the one that `overrides` of its config describe.

    Raises:
        SaescopeError: a corpus, model or cache that is not there, or overrides of something else.
    """
    config = configs.read(run / "config.yaml")[0]
    hooks = tuple(dict.fromkeys((*config.site.hooks, *(config.data.mask_hooks or ()))))
    own = _own(run, config, sae, hooks)
    limits = None
    if not overrides:
        data = own or open_data(config, hooks, display)
    else:
        # the outlier limit belongs to the run: another text must not move it
        limits = None if own is None else _mask(config, own.source, own.tokens).limits
        config = _overridden(config, overrides)
        data = open_data(config, hooks, display)
    mask = _mask(config, data.source, data.tokens, limits)
    n_seqs = data.tokens.n_seqs if n_rows is None else min(data.tokens.n_seqs, -(-n_rows // data.tokens.n_ctx))
    if n_seqs * data.tokens.n_ctx >= 2**31:
        raise SaescopeError(
            f"{n_seqs * data.tokens.n_ctx:,} rows are more than one index numbers (2^31 − 1); index fewer with --rows, or "
            "several corpora."
        )
    if config.site.input not in data.source.widths or data.source.widths[config.site.input] != sae.d_in:
        raise SaescopeError(f"{run}: the SAE takes rows of width {sae.d_in}, and {config.site.input} has others.")
    return Rows(config, data, mask, n_seqs)


def _mask(config: Config, source: Source, tokens: Tokens, limits: dict[str, float] | None = None) -> KeepMask:
    hooks = config.data.mask_hooks or config.site.hooks
    return KeepMask(source, tokens, config.data.model_copy(update={"mask_hooks": hooks}), limits)


def _own(run: Path, config: Config, sae: SAE, hooks: tuple[str, ...]) -> Data | None:
    """The run's own cache if it is there whole: no model needs to be loaded to read it."""
    facts = sae.provenance.get("made_from", {})
    if config.corpus.acts_dir is not None or config.cache.mode != "disk" or "model" not in facts:
        return None
    folder = cache_folder(config, facts)
    # a relative cache lies beside the folder of all runs, wherever the command is called from
    places = [folder, *(parent / folder for parent in list(run.resolve().parents)[1:3])]
    for place in places:
        if (place / "manifest.json").exists() and not missing_hooks(place, hooks):
            return Data(CacheSource(place, hooks), open_tokens(place, facts), None)
    return None


def _overridden(config: Config, overrides: Sequence[str]) -> Config:
    """The run's config with another corpus, streamed unless a cache is asked for."""
    for override in overrides:
        if override.split(".")[0].split("=")[0] not in OVERRIDABLE or override.startswith("model.name"):
            raise SaescopeError(
                f"{override!r} would change the run itself; an index may change {', '.join(OVERRIDABLE)} only (and not "
                "model.name), for example corpus.sources=text:notes.txt."
            )
    stream = [] if any(o.startswith("cache.mode") for o in overrides) else ["cache.mode=stream"]
    (changed,) = configs.resolve(config.plain(), ["cache.name=null", *stream, *overrides])
    return changed


def describe(config: Config, sae: SAE, run: Path) -> dict[str, Any]:
    """What people want to know of an index's origin."""
    return {
        "run": run.resolve().name, "variant": config.sae.variant, "site": config.site.model_dump(mode="json"),
        "model": None if config.model is None or config.corpus.acts_dir is not None else config.model.name,
        "corpus": [source.source for source in config.corpus.sources], "d_in": sae.d_in, "d_out": sae.d_out,
    }
