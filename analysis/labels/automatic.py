"""Rule-based automatic labels: words that distinguish a feature's active rows, scored on held-out examples.

A label is a readable, checkable rule: "token ` to` after ` seem`, ` possible`" predicts for any row whether the feature is
active. It is built from the active rows in one half of the documents (even numbers), contrasted with all rows of that
half. It is scored by detection (Paulo et al. 2410.13928, §4.2) on the other half: given active rows from weak to strong
and as many inactive ones, half of them near misses, the rule predicts which are active. The score is balanced accuracy.
The baseline is a random other feature's rule on the same examples; what counts is the difference.

For signed codes, the side with more active rows is labelled.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int64

from analysis.labels.contrast import NEAR, PLACES, Condition, Words, best_words
from analysis.labels.store import Judged, Label, Labels
from analysis.render.text import plain
from sae.errors import SaescopeError
from sae.units import checked_seed

if TYPE_CHECKING:
    from analysis.index import Index
    from analysis.index.types import Token

METHOD = "contrast 2"
"""Stored with each label; changes when the method changes."""
MOST_WORDS = 5
LEAST_GAIN = 0.03
"""Minimum gain of a word (in Youden's J) to be included."""
CLEAR = 0.2
"""Below this Youden's J on the rows it was built from, a rule is labelled as no clear pattern."""
N_CONTRASTED = 1000
"""Maximum number of active and of inactive rows used to compare candidate rules."""
N_JUDGED = 16
"""Number of active examples to score a label, and of inactive ones."""
LEAST_JUDGED = 4
NEGATIVE = " (negative side)"
"""Suffix of labels for the negative side."""
BEFORE, AFTER = 12, 3
"""Tokens of context stored around a judged token."""


@dataclass(frozen=True)
class Rule:
    """A conjunction of conditions; false if there are none."""

    conditions: tuple[Condition, ...]
    j: float
    """Youden's J (true positive rate minus false positive rate) on the half it was built from."""

    def says(self, words: Words, rows: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Mask of rows for which the rule predicts the feature to be active."""
        out = np.full(len(rows), bool(self.conditions))
        for condition in self.conditions:
            out &= words.holds(condition, rows)
        return out


class Explainer:
    """Creates labels for the features of an index."""

    def __init__(self, index: "Index", *, seed: int = 0) -> None:
        self.index, self.seed = index, checked_seed(seed)
        self.words = Words(index)
        self.columns = index.csc()
        self._rules: dict[int, Rule] = {}

    def label(self, feature: int) -> Label | None:
        """A feature's label, scored if there are enough held-out examples; None if it is never active."""
        rows, _ = self.active(feature)
        if not len(rows):
            return None
        rule = self.rule(feature)
        judged_rows, active = self.judges(feature)
        text = self.text(feature, rule)
        if min(active.sum(), (~active).sum()) < LEAST_JUDGED:
            return Label(feature, text, "auto", method=METHOD)
        said = rule.says(self.words, judged_rows)
        examples = zip(judged_rows.tolist(), active.tolist(), said.tolist(), strict=True)
        judged = tuple(self.judged(feature, *one) for one in examples)
        other = self.rule(self._other(feature)).says(self.words, judged_rows)
        return Label(
            feature, text, "auto", balanced_accuracy(said, active), balanced_accuracy(other, active), judged, METHOD
        )

    def active(self, feature: int) -> tuple[Int64[np.ndarray, " n"], np.ndarray]:
        """Active rows on the feature's larger side, in corpus order, and their |values|."""
        mine = slice(self.columns.indptr[feature], self.columns.indptr[feature + 1])
        rows, values = self.columns.indices[mine].astype(np.int64), self.columns.data[mine]
        negative = (values < 0).sum() > (values > 0).sum()
        side = (values < 0) if negative else (values > 0)
        return rows[side], np.abs(values[side])

    def rule(self, feature: int) -> Rule:
        """The best rule on the labelling half."""
        if feature not in self._rules:
            rows, _ = self.active(feature)
            self._rules[feature] = self._find(feature, rows[self.words.made_from[rows]])
        return self._rules[feature]

    def _find(self, feature: int, rows: Int64[np.ndarray, " n"]) -> Rule:
        """Find the rule that best separates active rows from sampled inactive ones, half of them near misses."""
        if not len(rows):
            return Rule((), 0.0)
        words, n = self.words, len(self.words.rows)
        random = np.random.default_rng([self.seed, feature, 2])
        quiet = self._quiet(rows, random, N_CONTRASTED, held_out=False)
        sample = rows if len(rows) <= N_CONTRASTED else rows[np.sort(random.choice(len(rows), N_CONTRASTED, replace=False))]
        # promoted tokens may predict the next word better than the few next words seen so far
        promoted = words.spelt([token.text for token in self.promoted(feature)])
        found = [Condition("before", tuple(promoted))] if promoted else []
        for place in PLACES:
            # nearby words overlap, so their gains don't add up
            most = 1 if place == "near" else MOST_WORDS
            chosen = best_words(words.count(rows, place), len(rows), words.counts[place], n, most=most,
                                least_gain=LEAST_GAIN)
            found += [Condition(place, tuple(chosen))] if chosen else []
        rules = [self._measured((condition,), sample, quiet) for condition in found]
        if not rules:
            return Rule((), 0.0)
        best = max(rules, key=_preference)
        refined = [self._measured(pair, sample, quiet) for pair in self._refined(best.conditions[0], sample, quiet)]
        # a second condition must improve the rule
        return max([best, *(rule for rule in refined if rule.j > best.j + LEAST_GAIN)], key=_preference)

    def _refined(
        self, first: Condition, rows: Int64[np.ndarray, " n"], quiet: Int64[np.ndarray, " m"]
    ) -> list[tuple[Condition, Condition]]:
        """Combine a condition with each second one that separates active from inactive rows where the first holds."""
        inside, outside = (r[self.words.holds(first, r)] for r in (rows, quiet))
        both = np.concatenate([inside, outside])
        out = []
        for place in PLACES:
            if place != first.place and len(inside) and len(outside):
                chosen = best_words(self.words.count(inside, place), len(inside), self.words.count(both, place), len(both),
                                    most=1 if place == "near" else MOST_WORDS, least_gain=2 * LEAST_GAIN)
                out += [(first, Condition(place, tuple(chosen)))] if chosen else []
        return out

    def _measured(
        self, conditions: tuple[Condition, ...], rows: Int64[np.ndarray, " n"], quiet: Int64[np.ndarray, " m"]
    ) -> Rule:
        rule = Rule(conditions, 0.0)
        false = rule.says(self.words, quiet).mean() if len(quiet) else 0.0
        return Rule(conditions, float(rule.says(self.words, rows).mean() - false))

    def text(self, feature: int, rule: Rule) -> str:
        """The label text of a rule."""
        side = NEGATIVE if self.is_negative(feature) else ""
        if not rule.conditions:
            return f"no clear pattern{side}"
        told = " ".join(self._told(condition) for condition in sorted(rule.conditions, key=_reading_order))
        return f"{'' if rule.j >= CLEAR else 'no clear pattern, most often '}{told}{side}"

    def _told(self, condition: Condition) -> str:
        names = [f"`{plain(self.words.names[word], limit=24)}`" for word in condition.words[:MOST_WORDS]]
        head = {"token": "token" if len(names) == 1 else "tokens", "near": f"up to {NEAR} tokens after"}
        return f"{head.get(condition.place, condition.place)} {', '.join(names)}"

    def judges(self, feature: int) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Held-out rows from different contexts, and the mask of active ones.

        Active rows are spread evenly over the ranks of their values. Half of the inactive rows are near misses: they have
        a word that the feature is active on elsewhere.
        """
        random = np.random.default_rng([self.seed, feature])
        rows, values = self.active(feature)
        held = ~self.words.made_from[rows]
        pool, strength = rows[held], values[held]
        shuffled = random.permutation(len(pool))
        _, first = np.unique(pool[shuffled] // self.words.n_ctx, return_index=True)
        mine = shuffled[first]
        mine = mine[np.argsort(strength[mine], kind="stable")]
        picked = mine[np.linspace(0, len(mine) - 1, min(N_JUDGED, len(mine))).round().astype(int)] if len(mine) else mine
        active = pool[picked]
        quiet = self._quiet(rows, random, len(active), held_out=True)
        return np.concatenate([active, quiet]), np.arange(len(active) + len(quiet)) < len(active)

    def _quiet(
        self, rows: Int64[np.ndarray, " n"], random: np.random.Generator, n: int, *, held_out: bool
    ) -> Int64[np.ndarray, " m"]:
        """Sample inactive rows: up to half near misses if available, the rest any.

        Held-out rows come from different contexts.
        """
        words = self.words.words.reshape(-1)
        inactive = self.words.kept & (self.words.made_from != held_out)
        inactive[rows] = False
        known = np.zeros(len(self.words.names), dtype=bool)
        known[words[rows[self.words.made_from[rows]]]] = True
        chosen: dict[int, int] = {}
        for pool, upto in ((inactive & known[words], n // 2), (inactive, n)):
            candidates = np.flatnonzero(pool)
            drawn = random.integers(len(candidates), size=20 * n) if len(candidates) else candidates
            for row in candidates[drawn].tolist():
                if len(chosen) >= upto:
                    break
                chosen.setdefault(row // self.words.n_ctx if held_out else row, row)
        return np.array(list(chosen.values()), dtype=np.int64)

    def _other(self, feature: int) -> int:
        """A random other feature that fires."""
        alive = np.flatnonzero(np.diff(self.columns.indptr))
        others = alive[alive != feature]
        return int(np.random.default_rng([self.seed, feature, 1]).choice(others)) if len(others) else feature

    def promoted(self, feature: int) -> "Sequence[Token]":
        """The tokens most promoted by the feature's larger side, if known."""
        found = self.index.feature(feature)
        return (found.suppressed if self.is_negative(feature) else found.promoted)[:10]

    def is_negative(self, feature: int) -> bool:
        """Whether the feature's larger side is negative."""
        values = self.columns.data[self.columns.indptr[feature] : self.columns.indptr[feature + 1]]
        return bool((values < 0).sum() > (values > 0).sum())

    def judged(self, feature: int, row: int, active: bool, said: bool) -> Judged:
        """An example in the form stored with a label."""
        seq, position = divmod(row, self.words.n_ctx)
        one = self.index.window(feature, seq, position, BEFORE, AFTER)
        values = [float(f"{value:.4g}") for value in one.values]
        return Judged(seq, position, one.start, one.pieces, values, active, said)


def check_can_label(index: "Index", labels: Labels) -> None:
    """Check that an index can be labelled and that labels can be saved.

    Raises:
        SaescopeError: the index is stale or has no text, or the run's folder isn't writable.
    """
    if not labels.writable:
        raise SaescopeError(f"{labels.path} cannot be written, so labels can't be saved; make the run's folder writable.")
    if index.stale:
        raise SaescopeError(f"Labels would be saved for weights that were not indexed: {index.stale}")
    if index.vocabulary is None:
        raise SaescopeError(f"{index.folder} was built without a tokenizer, so there are no words for labels.")


def balanced_accuracy(said: Bool[np.ndarray, " n"], active: Bool[np.ndarray, " n"]) -> float:
    """Mean of the accuracies on active and on inactive examples; chance is 0.5."""
    return float((said[active].mean() + (~said[~active]).mean()) / 2)


def _preference(rule: Rule) -> tuple[float, int]:
    """Sort key: higher J first, then the nearer place."""
    return round(rule.j, 2), -min(list(PLACES).index(condition.place) for condition in rule.conditions)


def _reading_order(condition: Condition) -> int:
    return ["token", "after", "two after", "near", "before"].index(condition.place)


def explain(
    index: "Index", features: Iterable[int], *, seed: int = 0, advance: Callable[[int], None] = lambda _: None
) -> list[Label]:
    """Label features by rules; features that never fire are skipped.

    Args:
        index: an index with text.
        features: numbers of the features.
        seed: seed for examples and baselines.
        advance: called after each feature.
    """
    explainer, out = Explainer(index, seed=seed), []
    for feature in features:
        label = explainer.label(feature)
        out += [label] if label is not None else []
        advance(1)
    return out
