"""Shared inputs of a run's evaluations, computed lazily and once: rows, codes, token losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from analysis.corpus_rows import CorpusRows, open_rows
from analysis.evals.common.result import Units
from analysis.trained import TrainedSAE, open_trained
from sae.code import SparseCode, stacked
from sae.coder import Coder
from sae.errors import SaescopeError
from training.activations.harvest import Data, open_heldout
from training.display import Display
from training.evaluate import HeldOut, Nats, Spliced
from training.model.language_model import Model

CHUNK_ROWS = 4096
T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """Amount of data a suite uses, at most."""

    n_rows: int | None
    """Held-out rows, before masking; None uses the run's own evaluation size."""
    n_train_rows: int
    """Rows of training documents, before masking."""
    n_tokens: int | None
    """Held-out tokens predicted with an SAE spliced in; None as above."""


SIZES: dict[str, Size] = {"quick": Size(8192, 16_384, 3_060), "full": Size(None, 32_768, None)}


@dataclass(frozen=True)
class Rows:
    """Kept rows in corpus order, in the model's own units."""

    x: Float[Tensor, "n d_in"]
    target: Float[Tensor, "n d_out"]
    token: Int64[np.ndarray, " n"] | None
    """Token id of each row; None for activations without text."""
    position: Int64[np.ndarray, " n"]
    """Position in its sequence."""
    seq: Int64[np.ndarray, " n"]
    """Index of its sequence in the corpus."""
    document: Int64[np.ndarray, " n"]
    """Index of its document (or group of documents, or sequence: the unit of intervals, `kind`)."""
    kind: str = "document"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.x)

    @cached_property
    def units(self) -> Units:
        """Documents in ascending order, and their numbers of rows."""
        found, counts = np.unique(self.document, return_counts=True)
        return Units(self.kind, found.astype(np.int64), counts.astype(np.float64))

    @cached_property
    def unit(self) -> Int64[np.ndarray, " n"]:
        """Index of each row's document in `units`."""
        return np.searchsorted(self.units.id, self.document).astype(np.int64)

    def sums(self, values: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " n_units"]:
        """Sum row values over each document, in fp64."""
        return np.bincount(self.unit, values, len(self.units.id)).astype(np.float64)


@dataclass(frozen=True)
class TokenCosts:
    """Per-token losses on held-out tokens: `nats` by name `[n_seqs, n_ctx − 1]`, as in `Spliced.nats`."""

    nats: Nats
    units: Units
    unit: Int64[np.ndarray, " n_tokens"]
    """Index in `units` of each predicted token's document, in row-major order of `nats`."""

    def sums(self, name: str) -> Float[np.ndarray, " n_units"]:
        """Sum of nats over each document's predicted tokens."""
        return np.bincount(self.unit, self.nats[name].reshape(-1), len(self.units.id)).astype(np.float64)


@dataclass(eq=False)
class Context:
    """One run opened for evaluation; see `open_context`."""

    trained: TrainedSAE
    suite: Literal["quick", "full"]
    size: Size
    seed: int = 0
    """Seed of every draw in an evaluation."""
    display: Display = field(default_factory=lambda: Display(quiet=True))
    progress: Callable[[float], None] = lambda _: None
    """Called with the finished share of the current evaluation, 0 to 1."""
    coders: list[Coder] = field(default_factory=list)
    """All coders to be measured on these rows, so that work that is cheaper together is shared."""
    _codes: dict[int, tuple[Coder, SparseCode]] = field(default_factory=dict)
    _costs: dict[int, tuple[Coder, TokenCosts]] = field(default_factory=dict)
    _once: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def corpus(self) -> CorpusRows:
        """The run's corpus. Raises as `open_rows`."""
        return open_rows(self.trained, display=self.display, streamed=True)

    @cached_property
    def _heldout_data(self) -> Data:
        corpus = self.corpus
        return open_heldout(corpus.config, corpus.data, self.display, 0, corpus.model)

    @cached_property
    def rows(self) -> Rows:
        """Kept held-out rows: the suite's number of sequences, spread over those of the run's own evaluation.

        Raises:
            SaescopeError: the corpus, or the model that reads it, is missing.
        """
        own = self.corpus.config.eval.n_rows
        n_rows = own if self.size.n_rows is None else min(own, self.size.n_rows)
        data = self._heldout_data
        held = HeldOut(data.source, data.tokens, self.corpus.mask, self.trained.site.hooks, n_rows)
        if held.n_rows == 0:
            raise SaescopeError(f"{self.trained.folder.name}: the run's mask keeps no held-out row; hold out more.")
        return self._rows(data, held.seqs, held.keep, held.acts)

    @cached_property
    def train_rows(self) -> Rows:
        """Kept rows of training documents, in randomly drawn sequences (`seed`). Raises as `rows`."""
        data, corpus = self.corpus.data, self.corpus
        seqs = data.tokens.sequences_with_rows(held_out=False)
        n_seqs = -(-self.size.n_train_rows // corpus.n_ctx)
        drawn = np.sort(np.random.default_rng(self.seed).permutation(seqs)[:n_seqs])
        acts, keep = corpus.read(drawn)
        kept = {hook: rows[keep] for hook, rows in acts.items()}
        return self._rows(data, drawn, keep.view(len(drawn), -1).numpy(), kept)

    def _rows(self, data: Data, seqs: np.ndarray, keep: np.ndarray, acts: dict[str, Tensor]) -> Rows:
        place, position = np.nonzero(keep)
        kind, number = data.tokens.units()
        tokens = data.tokens.tokens
        x, target = self.trained.rows(acts)
        return Rows(
            x, target, None if tokens is None else tokens[seqs][keep].astype(np.int64), position.astype(np.int64),
            seqs[place].astype(np.int64), number[seqs][keep].astype(np.int64), kind,
        )

    @property
    def sae(self) -> Coder:
        """The run's own SAE."""
        return self.trained.sae

    @property
    def model(self) -> Model:
        """The language model.

        Raises:
            SaescopeError: there is none, or it can't be loaded.
        """
        return self.corpus.model()

    def code(self, coder: Coder) -> SparseCode:
        """CSR code of `rows` by a coder; cached."""
        if id(coder) not in self._codes:
            self._codes[id(coder)] = (coder, encoded(coder, self.rows.x))
        return self._codes[id(coder)][1]

    @cached_property
    def spliced(self) -> Spliced:
        """Held-out sequences for running the model with coders spliced in.

        Raises:
            SaescopeError: as `model`.
        """
        own = self.corpus.config.eval.n_tokens
        wanted = (own or 20_480) if self.size.n_tokens is None else min(own or self.size.n_tokens, self.size.n_tokens)
        model, data = self.model, self._heldout_data
        if data.tokens.tokens is None:
            raise SaescopeError(
                f"{self.trained.folder.name} was trained on activations without text, so no model can be run."
            )
        return Spliced(model, data.source, data.tokens, self.corpus.mask, wanted)

    def costs(self, coder: Coder) -> TokenCosts:
        """Losses on held-out tokens with a coder's reconstruction in place of the activation; cached.

        Raises:
            SaescopeError: as `model`.
        """
        if id(coder) not in self._costs:
            mine = [coder, *(one for one in self.coders if one is not coder and id(one) not in self._costs)]
            for one, nats in zip(mine, self._spliced_in(mine), strict=True):
                self._costs[id(one)] = (one, self._token_costs(nats))
        return self._costs[id(coder)][1]

    def costs_spliced(self, coders: Sequence[Coder]) -> list[TokenCosts]:
        """Only the spliced losses, at a third of the cost, not cached: for variants of a coder. Raises as `model`."""
        return [self._token_costs(nats) for nats in self._spliced_in(coders, spliced_only=True)]

    def _spliced_in(self, coders: Sequence[Coder], *, spliced_only: bool = False) -> list[Nats]:
        site, mean, spliced = self.trained.site, self.trained.sae.target.mean, self.spliced
        done, total = 0, len(spliced.seqs) * (spliced.tokens.n_ctx - 1)

        def advance(n: int) -> None:
            nonlocal done
            done += n
            self.progress(done / total)

        return spliced.nats([(coder, site, mean) for coder in coders], advance, spliced_only=spliced_only)

    def _token_costs(self, nats: Nats) -> TokenCosts:
        units = self.spliced.units()
        return TokenCosts(nats, Units(units.kind, units.id, units.n_rows), units.number)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Compute something once for all coders, and cache it by name."""
        if name not in self._once:
            self._once[name] = make()
        return self._once[name]  # type: ignore[no-any-return]

    def data_of(self, rows: Rows) -> Data:
        """The data that `seq` of `rows` or `train_rows` indexes."""
        return self._heldout_data if rows is self.rows else self.corpus.data

    def facts(self) -> dict[str, Any]:
        """Everything that determines the rows: equal facts mean equal rows. Opens neither rows nor a model."""
        provenance, config = self.trained.sae.provenance, self.trained.config
        return {
            "site": provenance.get("site"), "made_from": provenance.get("made_from"), "mask": provenance.get("mask"),
            "corpus": provenance.get("config", {}).get("corpus"), "rows_dtype": config.cache.dtype,
            "size": [self.size.n_rows, self.size.n_train_rows, self.size.n_tokens],
            "own_size": [config.eval.n_rows, config.eval.n_tokens], "seed": self.seed,
        }


def encoded(coder: Coder, x: Float[Tensor, "n d_in"]) -> SparseCode:
    """CSR code of many rows, encoded in chunks."""
    device = coder.W_dec.device
    return stacked([coder.encode(chunk.to(device)).csr() for chunk in x.split(CHUNK_ROWS)])


def open_context(
    run: str | Path, suite: Literal["quick", "full"] = "quick", *, seed: int = 0, display: Display | None = None
) -> Context:
    """Open a run for evaluation; nothing is read yet.

    Args:
        run: folder of the run.
        suite: amount of data.
        seed: seed of every draw.
        display: shows progress.

    Raises:
        SaescopeError: there is no trained SAE.
    """
    return Context(open_trained(run), suite, SIZES[suite], seed, display or Display(quiet=True))
