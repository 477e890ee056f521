"""A run at work on new text: its language model and its SAE, loaded when first needed, one caller at a time.

Models are large and threads of a server many, so a process keeps one model and a few SAEs, and everything that runs them
holds one lock.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int
from torch import Tensor

from analysis.index.text import Vocabulary
from sae import store
from sae.base import SAE
from sae.code import SparseCode, from_pairs
from sae.errors import SaescopeError
from sae.io.files import read_json
from training.model.language_model import Model
from training.model.load import load_model
from training.model.token_bytes import token_bytes
from training.site import Site

LOCK = threading.RLock()
"""Held by whatever runs a model here."""
MAX_TOKENS = 512
"""Tokens of a prompt; a page is to answer within seconds on a laptop."""


@dataclass(frozen=True)
class Live:
    """What a run needs to read text."""

    model: Model
    sae: SAE
    site: Site
    vocabulary: Vocabulary

    def tokens(self, text: str, limit: int = MAX_TOKENS) -> Int[Tensor, " n"]:
        """The tokens of a text as in training: BOS first where the model has it, and no spelt-out special tokens.

        Raises:
            SaescopeError: no text, or more than `limit` tokens.
        """
        ids = self.model.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        ids = [self.model.bos_id, *ids] if self.model.prepend_bos else list(ids)
        if not ids or not text:
            raise SaescopeError("The text is empty; type some.")
        limit = min(limit, self.model.n_ctx_max)
        if len(ids) > limit:
            raise SaescopeError(f"The text has {len(ids):,} tokens; at most {limit:,} are read at once, so shorten it.")
        return torch.tensor(ids, dtype=torch.long)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token; a character of several tokens stands at its first."""
        return self.vocabulary.pieces(list(tokens))

    def special(self, tokens: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Which tokens no SAE was trained on whatever their activations: BOS and other special ones."""
        return torch.isin(tokens, torch.tensor(sorted(self.model.special_ids), dtype=torch.long))


@dataclass(frozen=True)
class Top:
    """A feature of a prompt and where it is strongest."""

    feature: int
    value: float
    position: int
    n_active: int
    """Tokens of the prompt at which it is active."""


@dataclass(frozen=True)
class PromptCode:
    """A text as the SAE sees it; row i of `code` is token i, and rows that training would drop are empty."""

    text: str
    tokens: list[int]
    pieces: list[str]
    code: SparseCode
    kept: Bool[np.ndarray, " n_tokens"]

    def values(self, feature: int) -> Float32[np.ndarray, " n_tokens"]:
        """One feature's value at each token, 0 where inactive."""
        out = np.zeros(len(self.tokens), dtype=np.float32)
        mine = self.code.feature == feature
        out[self.code.rows()[mine].numpy()] = self.code.value[mine].numpy()
        return out

    def top(self, n: int = 20, positions: Sequence[int] | None = None) -> list[Top]:
        """The features with the largest absolute values, over all tokens or over some."""
        rows, feature, value = (t.numpy() for t in (self.code.rows(), self.code.feature, self.code.value))
        if positions is not None:
            chosen = np.isin(rows, np.asarray(positions, dtype=rows.dtype))
            rows, feature, value = rows[chosen], feature[chosen], value[chosen]
        counts = dict(zip(*np.unique(feature, return_counts=True), strict=True))
        out: dict[int, Top] = {}
        for i in np.lexsort((rows, feature, -np.abs(value))):
            f = int(feature[i])
            if f not in out:
                out[f] = Top(f, float(value[i]), int(rows[i]), int(counts[feature[i]]))
            if len(out) == n:
                break
        return list(out.values())


class Prompt:
    """Text to features with a run's model and SAE."""

    def __init__(self, run: str | Path, *, limit: float | None = None) -> None:
        """Load nothing yet.

        Args:
            run: the run's folder.
            limit: rows of a larger norm are left out, as in training; by default what an index of the run has recorded.
        """
        self.run = Path(run)
        self.limit = recorded_limit(self.run) if limit is None else limit

    @property
    def live(self) -> Live:
        """Model and SAE, loaded by the first who asks.

        Raises:
            SaescopeError: no trained SAE, no language model, or one that cannot be had here.
        """
        return live(self.run)

    @torch.no_grad()
    def encode(self, text: str) -> PromptCode:
        """The features of a text, token by token.

        Raises:
            SaescopeError: as `live`; or no text, or too much.
        """
        with LOCK:
            loaded = self.live
            tokens = loaded.tokens(text)
            hook = loaded.site.input
            acts = loaded.model.activations(tokens[None], [hook])[hook][0].float()
            kept = ~loaded.special(tokens)
            if self.limit is not None:
                kept &= acts.norm(dim=1).cpu() <= self.limit
            code = loaded.sae.encode(acts[kept.to(acts.device)].to(loaded.sae.W_dec.device)).csr()
        rows = kept.nonzero().squeeze(-1)[code.rows().cpu()]
        whole = from_pairs(rows, code.feature.cpu(), code.value.cpu(), len(tokens), code.d_sae)
        return PromptCode(text, tokens.tolist(), loaded.pieces(tokens.tolist()), whole, kept.numpy())


def live(run: str | Path) -> Live:
    """The model and SAE of a run; a process keeps the last model and the last few SAEs.

    Raises:
        SaescopeError: no trained SAE there, the SAE came without a language model, or the model cannot be had here or
            is no longer the one whose activations the SAE was trained on.
    """
    manifest = Path(run) / "final" / "sae.json"
    with LOCK:
        sae = _sae(Path(run).resolve(), str(read_json(manifest).get("weights_sha256")))
        facts, name = sae.provenance, Path(run).name
        config = facts.get("config", {}).get("model") or {}
        if "model" not in facts.get("made_from", {}) or not config.get("name"):
            raise SaescopeError(f"{name} was trained on activations that came without a language model: it reads no text.")
        model, vocabulary = _model(config["name"], config.get("device", "auto"), config.get("dtype", "float32"))
        _check_same(facts["made_from"]["model"], model, name)
        return Live(model, sae, Site.model_validate(facts["site"]), vocabulary)


@lru_cache(maxsize=4)
def _sae(run: Path, weights: str) -> SAE:  # noqa: ARG001 (the hash makes a run that was trained anew another one)
    return store.load(run)


@lru_cache(maxsize=1)
def _model(name: str, device: str, dtype: str) -> tuple[Model, Vocabulary]:
    try:
        model = load_model(name, device=device, dtype=dtype)
    except SaescopeError as error:
        raise SaescopeError(f"The language model is needed for this and is not on this machine: {error}") from error
    return model, Vocabulary(token_bytes(model.tokenizer))


def _check_same(then: dict[str, Any], model: Model, run: str) -> None:
    """Refuse a model with other weights; precision may differ."""
    now = model.identity
    for key in sorted({*then, *now} - {"dtype"}):
        if then.get(key) != now.get(key):
            raise SaescopeError(
                f"{model.name} is not the model that {run} was trained on: its {key} is {now.get(key)!r}, was "
                f"{then.get(key)!r}; bring that one back."
            )


def recorded_limit(run: Path) -> float | None:
    """The largest norm that training kept at the site's input, as an index of the run has it; None if there is none."""
    for manifest in sorted((run / "index").glob("*/manifest.json")):
        facts = read_json(manifest)
        limits = facts.get("made_from", {}).get("rows", {}).get("mask", {}).get("limits", {})
        if len(limits) == 1:
            return float(next(iter(limits.values())))
    return None
