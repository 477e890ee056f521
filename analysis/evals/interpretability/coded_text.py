"""Text with each token's code, in memory: the part of an index that automatic labels need.

Labels are built on one part, sequences of training documents, and scored on the other, held-out sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64

from analysis.vocabulary import Vocabulary

MADE_FROM, JUDGED_ON = 0, 1


@dataclass(frozen=True)
class Part:
    """Some sequences of a corpus.

    Attributes:
        tokens: token ids.
        row: flat index, `seq · n_ctx + position`, of each kept row.
        codes: scipy array of the kept rows' codes.
    """

    tokens: Int32[np.ndarray, "n_seqs n_ctx"]
    row: Int64[np.ndarray, " n_rows"]
    codes: Any


class CodedText:
    """Both parts, concatenated."""

    def __init__(self, made_from: Part, judged_on: Part, vocabulary: Vocabulary) -> None:
        parts = made_from, judged_on
        self.vocabulary = vocabulary
        self.tokens: Int32[np.ndarray, "n_seqs n_ctx"] = np.concatenate([part.tokens for part in parts])
        self.n_seqs, self.n_ctx = self.tokens.shape
        shift = made_from.tokens.size
        self.row: Int64[np.ndarray, " n_rows"] = np.concatenate([made_from.row, judged_on.row + shift])
        kept: Bool[np.ndarray, " n"] = np.zeros(self.tokens.size, dtype=bool)
        kept[self.row] = True
        unit = np.repeat([MADE_FROM, JUDGED_ON], [shift, judged_on.tokens.size])
        self.arrays = {"kept": kept.reshape(self.tokens.shape), "unit": unit.reshape(self.tokens.shape)}
        self._codes = [part.codes for part in parts]

    @cached_property
    def rows(self) -> Any:
        """Codes of the kept rows, a scipy CSC array `[n_rows, d_sae]`."""
        from scipy.sparse import vstack

        return vstack(self._codes, format="csc")

    def csc(self) -> Any:
        """Codes of all tokens `[n_seqs · n_ctx, d_sae]`; masked rows are empty."""
        from scipy.sparse import csc_array

        codes = self.rows
        return csc_array((codes.data, self.row[codes.indices], codes.indptr), shape=(self.tokens.size, codes.shape[1]))

    def feature(self, feature: int) -> Any:  # noqa: ARG002
        """Feature facts without promoted tokens, since rules only use surrounding words."""
        nothing: Sequence[Any] = ()
        return SimpleNamespace(promoted=nothing, suppressed=nothing)
