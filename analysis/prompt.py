"""A text as features: what fires at each token, and what fires most."""

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
    """A feature of a prompt and where it is strongest."""

    feature: int
    value: float
    position: int
    n_active: int
    """Tokens of the prompt at which it is active."""
    share: float = 0.0
    """|value| ÷ the feature's largest |value| over a corpus, where that was given; above 1 for what no text there had."""


PER_TOKEN = 3
"""Features that one token may win in `PromptCode.ranked`."""


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


    def ranked(
        self, largest: Float32[np.ndarray, " d_sae"], allowed: Bool[np.ndarray, " d_sae"], n: int = 20, *,
        position: int | None = None,
    ) -> list[Top]:
        """The features that are nearest to their own maximum, so that one that is large everywhere is not first everywhere.

        Each feature counts at the token where it is strongest, and each token wins at most `PER_TOKEN` of the places, so
        that a single frequent one cannot fill the list; where one token is asked about, it may have all.

        Args:
            largest: each feature's largest |value| over a corpus; a share of a feature with 0 is 1.
            allowed: the features that count.
            n: features at most.
            position: the one token to rank at; None for all.
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
    """Each feature's largest |value| over an index; 0 for one that never fires there."""
    stats = index.stats
    return np.maximum(stats["max"].to_numpy(), -stats["min"].to_numpy()).astype(np.float32)


def rarer_than(index: "Index", density: float) -> Bool[np.ndarray, " d_sae"]:
    """Which features fire on at most this share of an index's tokens."""
    return index.stats["density"].to_numpy() <= density


@own_torch_state()
def encode_text(run: str | Path, text: str, *, refine: int = 0) -> PromptCode:
    """The features of a text, token by token.

    Args:
        run: the run's folder.
        text: at most `analysis.trained.MAX_TOKENS` tokens.
        refine: steps by which its codes are refined; those of an index (`Index.refine`), where values are to agree.

    Raises:
        SaescopeError: no trained SAE or no language model, as `analysis.trained.TrainedSAE.model`; no text, or too much.
    """
    trained = open_trained(run, refine=refine)
    tokens = trained.tokens(text)
    code, kept = trained.code_of_tokens(tokens)
    return PromptCode(text, tokens.tolist(), trained.pieces(tokens.tolist()), code, kept.numpy())
