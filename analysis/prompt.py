"""Encode a text: which features fire at each token, and which fire most."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32

from analysis.trained import open_trained
from sae.code import SparseCode
from sae.torch_state import own_torch_state

if TYPE_CHECKING:
    from analysis.index import Index


@dataclass(frozen=True)
class Top:
    """A feature of a prompt at its strongest token."""

    feature: int
    value: float
    position: int
    n_active: int
    """Number of tokens in the prompt at which it is active."""
    share: float = 0.0
    """|value| / the feature's largest |value| in a corpus, if given; above 1 if the prompt exceeds the corpus."""


PER_TOKEN = 3
"""Maximum number of features per token in `PromptCode.ranked`."""


@dataclass(frozen=True)
class PromptCode:
    """The code of a text: row i is token i, and rows that training would mask are empty."""

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
        """The features with the largest |values|, over all tokens or the given positions."""
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


    def ranked(
        self, largest: Float32[np.ndarray, " d_sae"], allowed: Bool[np.ndarray, " d_sae"], n: int = 20, *,
        position: int | None = None,
    ) -> list[Top]:
        """The features closest to their own maximum, so that features with large values everywhere don't dominate.

        Each feature is ranked at its strongest token, and each token contributes at most `PER_TOKEN` features, so that
        one token can't fill the list; with `position` there is no such limit.

        Args:
            largest: each feature's largest |value| in a corpus; if 0, its share is 1.
            allowed: mask of features to include.
            n: maximum number of features.
            position: rank at this token only; None for all.
        """
        rows, feature, value = (t.numpy() for t in (self.code.rows(), self.code.feature, self.code.value))
        n_active = dict(zip(*np.unique(feature, return_counts=True), strict=True))
        kept = allowed[feature] & (value != 0) & ((rows == position) if position is not None else True)
        rows, feature, value = rows[kept], feature[kept], value[kept]
        share = np.divide(np.abs(value), largest[feature], out=np.ones(len(value), np.float32), where=largest[feature] > 0)
        out: dict[int, Top] = {}
        seen: set[int] = set()
        won: dict[int, int] = {}
        for i in np.lexsort((rows, feature, -share)):
            f, row = int(feature[i]), int(rows[i])
            if f in seen:
                continue
            seen.add(f)
            if position is None and won.get(row, 0) == PER_TOKEN:
                continue
            won[row] = won.get(row, 0) + 1
            out[f] = Top(f, float(value[i]), row, int(n_active[feature[i]]), float(share[i]))
            if len(out) == n:
                break
        return list(out.values())


def own_maximum(index: "Index") -> Float32[np.ndarray, " d_sae"]:
    """Each feature's largest |value| in an index; 0 if it never fires there."""
    stats = index.stats
    return np.maximum(stats["max"].to_numpy(), -stats["min"].to_numpy()).astype(np.float32)


def rarer_than(index: "Index", density: float) -> Bool[np.ndarray, " d_sae"]:
    """Mask of features that fire on at most this share of an index's tokens."""
    return index.stats["density"].to_numpy() <= density


@own_torch_state()
def encode_text(run: str | Path, text: str, *, refine: int = 0) -> PromptCode:
    """Encode a text token by token.

    Args:
        run: the run's folder.
        text: at most `analysis.trained.MAX_TOKENS` tokens.
        refine: refinement steps; use `Index.refine` to get values comparable with an index.

    Raises:
        SaescopeError: there is no trained SAE or language model (see `TrainedSAE.model`), or the text is empty or too long.
    """
    trained = open_trained(run, refine=refine)
    tokens = trained.tokens(text)
    code, kept = trained.code_of_tokens(tokens)
    return PromptCode(text, tokens.tolist(), trained.pieces(tokens.tolist()), code, kept.numpy())
