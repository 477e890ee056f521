"""Select the examples that a language model sees: some to label a feature, and held-out ones to score the label."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from analysis.labels.automatic import AFTER, BEFORE, LEAST_JUDGED, NEGATIVE, Explainer
from analysis.labels.by_model.chat import Question
from analysis.labels.by_model.prompts import Excerpt, to_explain, to_judge

SHOWN_BEFORE, SHOWN_AFTER = 20, 6
"""Tokens of context around examples for labelling."""


@dataclass(frozen=True)
class Judges:
    """Held-out rows in the order shown to the model, and the mask of active ones."""

    feature: int
    rows: Int64[np.ndarray, " n"]
    active: Bool[np.ndarray, " n"]


class Shown:
    """Builds questions about the features of an index. Labelling and scoring examples come from different halves of the
    documents, as for rules."""

    def __init__(self, explainer: Explainer, n_examples: int) -> None:
        """Prepare without reading.

        Args:
            explainer: the index's explainer.
            n_examples: maximum excerpts for labelling a feature.
        """
        self.explainer, self.n_examples = explainer, n_examples
        self._index, self._words = explainer.index, explainer.words

    def to_explain(self, feature: int) -> Question | None:
        """The question for a label; None if the feature never fires in the labelling half."""
        rows = self.chosen(feature)
        if not len(rows):
            return None
        promoted = [token.text for token in self.explainer.promoted(feature)]
        return to_explain([self._excerpt(feature, row) for row in rows.tolist()], promoted)

    def chosen(self, feature: int) -> Int64[np.ndarray, " n"]:
        """Rows from distinct contexts: half are the strongest, half are spread evenly over the ranks of the rest."""
        rows, values = self.explainer.active(feature)
        mine = self._words.made_from[rows]
        rows, values = rows[mine], values[mine]
        rows = rows[np.lexsort((rows, -values))]
        _, first = np.unique(rows // self._words.n_ctx, return_index=True)
        rows = rows[np.sort(first)]
        n = min(self.n_examples, len(rows))
        n_top = -(-n // 2)
        rest = np.linspace(n_top, len(rows) - 1, n - n_top).round().astype(int)
        return np.concatenate([rows[:n_top], rows[rest]])

    def judges(self, feature: int) -> Judges | None:
        """Shuffled examples to score a feature's label; None if there are too few held-out ones."""
        rows, active = self.explainer.judges(feature)
        if min(active.sum(), (~active).sum()) < LEAST_JUDGED:
            return None
        order = np.random.default_rng([self.explainer.seed, feature, 4]).permutation(len(rows))
        return Judges(feature, rows[order], active[order])

    def to_judge(self, label: str, judges: Judges) -> Question:
        """The question which of these examples match a label; their values are not shown."""
        places = (divmod(row, self._words.n_ctx) for row in judges.rows.tolist())
        windows = [self._index.window(judges.feature, seq, position, BEFORE, AFTER) for seq, position in places]
        return to_judge(label.removesuffix(NEGATIVE), [(one.pieces, one.position - one.start) for one in windows])

    def _excerpt(self, feature: int, row: int) -> Excerpt:
        """The text around a row, restricted to the labelling half."""
        seq, position = divmod(row, self._words.n_ctx)
        one = self._index.window(feature, seq, position, SHOWN_BEFORE, SHOWN_AFTER)
        at, first = position - one.start, seq * self._words.n_ctx + one.start
        other = np.flatnonzero(~self._words.made_from[first : first + len(one.pieces)])
        start = int(other[other < at].max(initial=-1)) + 1
        stop = int(other[other > at].min(initial=len(one.pieces)))
        return Excerpt(one.pieces[start:stop], self._strengths(feature, one.values[start:stop]))

    def _strengths(self, feature: int, values: list[float]) -> list[int]:
        negative = self.explainer.is_negative(feature)
        largest = float(self.explainer.active(feature)[1].max())
        sided = [max(0.0, -value if negative else value) for value in values]
        return [max(1, round(10 * value / largest)) if value else 0 for value in sided]
