"""The rows of a corpus as a trained SAE reads them: from the run's own cache, or from another text through its model.

The mask is the training's: no BOS, special or padding tokens, and no norms above the limits from the run's calibration.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64, UInt8
from torch import Tensor

from analysis.trained import TrainedSAE
from sae.errors import SaescopeError
from sae.io.paths import user_path
from training.activations.cache import CacheSource, missing_hooks
from training.activations.calibration import KeepMask
from training.activations.harvest import Data, open_data, open_heldout
from training.activations.own_rows import identity_of
from training.config import reading as configs
from training.config.schema import Config
from training.corpus.tokens import cache_folder, open_tokens
from training.display import Display
from training.evaluate import HeldOut
from training.model.language_model import Model
from training.site import SiteRows

OVERRIDABLE = ("corpus", "cache", "model")
"""Config sections that may be overridden to use another corpus."""
CHUNK_ROWS = 65_536
"""Rows whose norms are read at a time."""


@dataclass(frozen=True)
class CorpusRows:
    """Activations in corpus order, with their data, mask and SAE."""

    trained: TrainedSAE
    config: Config
    """The run's config, with the corpus that is read."""
    data: Data
    mask: KeepMask
    n_seqs: int
    """Number of sequences, counted from the first."""

    @property
    def n_ctx(self) -> int:
        """Rows per sequence."""
        return self.data.tokens.n_ctx

    @property
    def tokens(self) -> Int32[np.ndarray, "n_seqs n_ctx"] | None:
        """Token ids; None for activations without text."""
        return None if self.data.tokens.tokens is None else self.data.tokens.tokens[: self.n_seqs]

    def read(self, seqs: Int64[np.ndarray, " n"]) -> tuple[dict[str, Float[Tensor, "n_rows _"]], Bool[Tensor, " n_rows"]]:
        """Activations of these sequences by hook, in stored precision, and the mask of kept rows."""
        keep = self.mask.keep(seqs, self.n_ctx)
        return {hook: self.data.source.rows(hook, seqs, self.n_ctx) for hook in self.trained.site.hooks}, keep

    def kept(self, seqs: Int64[np.ndarray, " n"]) -> SiteRows:
        """x and target of the kept rows of these sequences, in fp32 on the SAE's device."""
        acts, keep = self.read(seqs)
        return self.trained.rows({hook: rows[keep] for hook, rows in acts.items()})

    def held_out(self, n_rows: int | None = None) -> SiteRows:
        """x and target of kept held-out rows.

        Args:
            n_rows: number of rows before masking, rounded up to whole sequences; None for the rows of the run's own
                evaluation.
        """
        return self.trained.rows(self._held_out(n_rows)[1].acts)

    def _held_out(self, n_rows: int | None = None) -> tuple[Data, HeldOut]:
        """The evaluation data of a training on these rows, and its kept rows; held-out text gets its own sequences."""
        data = open_heldout(self.config, self.data, Display(quiet=True), n_rows or 0, self.model)
        rows = n_rows or self.config.eval.n_rows
        return data, HeldOut(data.source, data.tokens, self.mask, self.trained.site.hooks, rows)

    def training(
        self, n_rows: int, *, seed: int = 0
    ) -> tuple[Float[Tensor, "n d_in"], Int64[np.ndarray, " n"], int]:
        """x of kept training rows, the document of each, and the number of documents in the evaluation.

        Args:
            n_rows: number of rows before masking, in randomly drawn sequences.
            seed: seed of the draw.

        Raises:
            SaescopeError: a corpus without text.
        """
        tokens, documents = self.data.tokens, self.data.tokens.documents()
        drawn = np.random.default_rng(seed).permutation(tokens.sequences(held_out=False))[: -(-n_rows // tokens.n_ctx)]
        seqs = np.sort(drawn)
        keep = self.mask.keep(seqs, tokens.n_ctx).numpy()
        data, evaluated = self._held_out()
        n_evaluated = len(np.unique(data.tokens.documents()[evaluated.seqs]))
        return self.kept(seqs).x, documents[seqs].reshape(-1)[keep], n_evaluated

    def use(self) -> UInt8[np.ndarray, " n_rows"]:
        """How training used each row: 0 not kept (special tokens, outliers), 1 trained on, 2 held out."""
        tokens, step = self.data.tokens, max(1, CHUNK_ROWS // self.n_ctx)
        parts = np.split(np.arange(self.n_seqs), range(step, self.n_seqs, step))
        keep = np.concatenate([self.mask.keep(seqs, self.n_ctx).numpy() for seqs in parts])
        held = tokens.held_out[:, None] if tokens.row_held_out is None else tokens.row_held_out
        held = np.broadcast_to(held, tokens.eligible.shape)[: self.n_seqs].reshape(-1)
        return np.where(keep, 1 + held, 0).astype(np.uint8)

    def facts(self) -> dict[str, Any]:
        """The inputs that determine the rows, as hashes."""
        tokens, site = self.data.tokens, self.trained.site
        facts: dict[str, Any] = {
            "made_from": tokens.made_from, "site": site.model_dump(mode="json"), "n_seqs": self.n_seqs, "n_ctx": self.n_ctx,
            "mask": {"outlier_multiple": self.config.data.outlier_multiple, "limits": self.mask.limits},
            "eligible_sha256": hashlib.sha256(np.packbits(tokens.eligible[: self.n_seqs]).tobytes()).hexdigest(),
        }
        if self.tokens is not None:
            facts["tokens_sha256"] = hashlib.sha256(np.ascontiguousarray(self.tokens).tobytes()).hexdigest()
        if isinstance(self.data.source, CacheSource):
            shards = {hook: self.data.source.manifests[hook]["shards"] for hook in site.hooks}
            facts["rows_sha256"] = hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()
        return facts

    def model(self) -> Model:
        """The language model, loaded on first use.

        Raises:
            SaescopeError: as `TrainedSAE.model`.
        """
        return self.data.model or self.trained.model


def open_rows(
    trained: TrainedSAE, overrides: Sequence[str] = (), n_rows: int | None = None, display: Display | None = None, *,
    streamed: bool = False,
) -> CorpusRows:
    """Open the rows of a run's own corpus, or of the corpus given by config `overrides`.

    Args:
        trained: the run's SAE.
        overrides: such as `corpus.sources=text:notes.txt`; keys in the sections `OVERRIDABLE`.
        n_rows: read only the first rows, rounded up to whole sequences.
        display: shows progress; None is silent.
        streamed: if the run's own cache is missing, stream rows from the model without writing them.

    Raises:
        SaescopeError: the corpus, model or cache is missing, an override is not allowed, or the rows don't fit the SAE.
    """
    config, display = _with_own_acts(trained, trained.config), display or Display(quiet=True)
    mask_hooks = tuple(trained.limits) or config.data.mask_hooks or config.site.hooks
    config = config.model_copy(update={"data": config.data.model_copy(update={"mask_hooks": mask_hooks})})
    hooks = tuple(dict.fromkeys((*trained.site.hooks, *mask_hooks)))
    own, limits = _own(trained, config, hooks), dict(trained.limits) or None
    if overrides:
        # the limits belong to the run: another corpus must not change them
        limits = limits or (None if own is None else KeepMask(own.source, own.tokens, config.data).limits)
        config = _overridden(config, overrides)
        own = None
    if streamed and own is None:
        config = config.model_copy(update={"cache": config.cache.model_copy(update={"mode": "stream"})})
    data = own or open_data(config, hooks, display)
    mask = KeepMask(data.source, data.tokens, config.data, limits)
    n_seqs = data.tokens.n_seqs if n_rows is None else min(data.tokens.n_seqs, -(-n_rows // data.tokens.n_ctx))
    if n_seqs * data.tokens.n_ctx >= 2**31:
        raise SaescopeError(
            f"{n_seqs * data.tokens.n_ctx:,} rows exceed the maximum of 2^31 − 1; use fewer (--rows) or split the corpus."
        )
    _check_widths(trained, data.source.widths)
    return CorpusRows(trained, config, data, mask, n_seqs)


def _check_widths(trained: TrainedSAE, widths: Mapping[str, int]) -> None:
    """Check that the site's rows have the SAE's widths."""
    site, sae = trained.site, trained.sae
    if lacking := [hook for hook in site.hooks if hook not in widths]:
        raise SaescopeError(f"{trained.folder}: the corpus has activations of {', '.join(widths)}, not of {lacking[0]}.")
    x, target = site.rows({hook: torch.empty(0, widths[hook]) for hook in site.hooks})
    if (x.shape[1], target.shape[1]) != (sae.d_in, sae.d_out):
        raise SaescopeError(
            f"{trained.folder}: the SAE maps width {sae.d_in} to width {sae.d_out}, but its site "
            f"({', '.join(f'{hook}: {widths[hook]}' for hook in site.hooks)}) gives {x.shape[1]} and {target.shape[1]}."
        )


def _places(trained: TrainedSAE, path: Path) -> list[Path]:
    """Candidates for a relative path in the config.

    It may be relative to the parent of the runs folder, so that commands work from any folder.
    """
    return [path, *(parent / path for parent in list(trained.folder.resolve().parents)[1:3])]


def _with_own_acts(trained: TrainedSAE, config: Config) -> Config:
    """The config with the path of its activations folder (if it uses one) set to where the training's rows are found."""
    corpus, made_from = config.corpus, trained.sae.provenance.get("made_from", {})
    for place in [] if corpus.acts_dir is None else _places(trained, user_path(corpus.acts_dir)):
        if place.is_dir() and identity_of(place).items() <= made_from.items():
            changes: dict[str, Any] = {"sources": (corpus.sources[0].model_copy(update={"source": f"acts:{place}"}),)}
            for key in ("documents", "held_out_rows"):
                for file in [] if getattr(corpus, key) is None else _places(trained, user_path(getattr(corpus, key))):
                    if file.is_file():
                        changes.setdefault(key, str(file))
            return config.model_copy(update={"corpus": corpus.model_copy(update=changes)})
    return config


def _own(trained: TrainedSAE, config: Config, hooks: tuple[str, ...]) -> Data | None:
    """The run's own cache if it is complete, which saves loading the model."""
    facts = trained.sae.provenance.get("made_from", {})
    if config.corpus.acts_dir is not None or config.cache.mode != "disk" or "model" not in facts:
        return None
    folder = cache_folder(config, facts)
    for place in _places(trained, folder):
        if (place / "manifest.json").exists() and not missing_hooks(place, hooks):
            return Data(CacheSource(place, hooks), open_tokens(place, facts), None)
    return None


def _overridden(config: Config, overrides: Sequence[str]) -> Config:
    """The run's config with another corpus, streamed unless the overrides ask for a cache."""
    for override in overrides:
        if override.split(".")[0].split("=")[0] not in OVERRIDABLE or override.startswith("model.name"):
            raise SaescopeError(
                f"{override!r} would change the run itself; an index may change {', '.join(OVERRIDABLE)} only (and not "
                "model.name), for example corpus.sources=text:notes.txt."
            )
    stream = [] if any(o.startswith("cache.mode") for o in overrides) else ["cache.mode=stream"]
    (changed,) = configs.resolve(config.plain(), ["cache.name=null", *stream, *overrides])
    return changed
