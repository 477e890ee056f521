"""A text as features: what fires at each token, and what fires most."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from analysis.trained import open_trained
from sae.code import SparseCode
from sae.torch_state import own_torch_state


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


@own_torch_state()
def encode_text(run: str | Path, text: str) -> PromptCode:
    """The features of a text, token by token.

    Args:
        run: the run's folder.
        text: at most `analysis.trained.MAX_TOKENS` tokens.

    Raises:
        SaescopeError: no trained SAE or no language model, as `analysis.trained.TrainedSAE.model`; no text, or too much.
    """
    trained = open_trained(run)
    tokens = trained.tokens(text)
    code, kept = trained.code_of_tokens(tokens)
    return PromptCode(text, tokens.tolist(), trained.pieces(tokens.tolist()), code, kept.numpy())
