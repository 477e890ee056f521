"""Automatic labels without a model: words that set a feature's rows apart, judged on examples they were not made from.

A label is a rule that can be read and that can be checked: "token ` to` after ` seem`, ` possible`" says of any row whether
the feature is active there. It is made from the active rows of one half of the documents (even numbers), by contrast with
all rows of that half, and scored by detection (Paulo et al. 2410.13928, §4.2) on the other half: of rows at which the
feature is active, from weak to strong, and of as many others, half of them near misses, the rule says which are active.
The score is balanced accuracy. The baseline is the rule of another feature, drawn at random, on the same examples; a label
is worth what it has beyond it.

For signed codes the side with more active rows is labelled.
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
"""Written beside each label; changes when the way of making labels does."""
MOST_WORDS = 5
LEAST_GAIN = 0.03
"""Share of the feature's rows that a word must add to be named."""
CLEAR = 0.2
"""Youden's J on the rows a rule is made from, below which the label says that there is no clear pattern."""
N_CONTRASTED = 1000
"""Active and inactive rows at most that candidates for a rule are compared on."""
N_JUDGED = 16
"""Active examples that judge a label, and as many inactive ones."""
LEAST_JUDGED = 4
NEGATIVE = " (negative side)"
"""Said at the end of a label."""
BEFORE, AFTER = 12, 3
"""Tokens that are kept around a judged one."""


@dataclass(frozen=True)
class Rule:
    """All conditions hold; no condition at all is never true."""

    conditions: tuple[Condition, ...]
    j: float
    """Youden's J (share of active rows it names, less the share of inactive ones) on rows like those it was made from."""

    def says(self, words: Words, rows: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """For which rows it takes the feature to be active."""
        out = np.full(len(rows), bool(self.conditions))
        for condition in self.conditions:
            out &= words.holds(condition, rows)
        return out


class Explainer:
    """Labels for the features of one index."""

    def __init__(self, index: "Index", *, seed: int = 0) -> None:
        self.index, self.seed = index, checked_seed(seed)
        self.words = Words(index)
        self.columns = index.csc()
        self._rules: dict[int, Rule] = {}

    def label(self, feature: int) -> Label | None:
        """The label of a feature, scored if enough examples are held out; None if it is never active."""
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
        """The kept rows of the feature's larger side, in corpus order, and |value| there."""
        mine = slice(self.columns.indptr[feature], self.columns.indptr[feature + 1])
        rows, values = self.columns.indices[mine].astype(np.int64), self.columns.data[mine]
        negative = (values < 0).sum() > (values > 0).sum()
        side = (values < 0) if negative else (values > 0)
        return rows[side], np.abs(values[side])

    def rule(self, feature: int) -> Rule:
        """The best rule over the rows that labels are made from."""
        if feature not in self._rules:
            rows, _ = self.active(feature)
            self._rules[feature] = self._find(feature, rows[self.words.made_from[rows]])
        return self._rules[feature]

    def _find(self, feature: int, rows: Int64[np.ndarray, " n"]) -> Rule:
        """The rule that tells active rows best from a sample of the others, half of it near misses."""
        if not len(rows):
            return Rule((), 0.0)
        words, n = self.words, len(self.words.rows)
        random = np.random.default_rng([self.seed, feature, 2])
        quiet = self._quiet(rows, random, N_CONTRASTED, held_out=False)
        sample = rows if len(rows) <= N_CONTRASTED else rows[np.sort(random.choice(len(rows), N_CONTRASTED, replace=False))]
        # what a feature promotes may name what comes next better than the few words that came next so far
        promoted = words.spelt([token.text for token in self.promoted(feature)])
        found = [Condition("before", tuple(promoted))] if promoted else []
        for place in PLACES:
            # several words nearby overlap, so that their gains would not add up
            most = 1 if place == "near" else MOST_WORDS
            chosen = best_words(words.count(rows, place), len(rows), words.counts[place], n, most=most,
                                least_gain=LEAST_GAIN)
            found += [Condition(place, tuple(chosen))] if chosen else []
        rules = [self._measured((condition,), sample, quiet) for condition in found]
        if not rules:
            return Rule((), 0.0)
        best = max(rules, key=_preference)
        refined = [self._measured(pair, sample, quiet) for pair in self._refined(best.conditions[0], sample, quiet)]
        # a second condition has to earn its place
        return max([best, *(rule for rule in refined if rule.j > best.j + LEAST_GAIN)], key=_preference)

    def _refined(
        self, first: Condition, rows: Int64[np.ndarray, " n"], quiet: Int64[np.ndarray, " m"]
    ) -> list[tuple[Condition, Condition]]:
        """A condition with each second one that tells active rows from inactive ones where it holds."""
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
        """A rule in words."""
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
        """Held-out rows, each of another context, and at which of them the feature is active.

        Active ones are spread evenly over the ranks of their values. Half of the inactive ones hold a word that it is
        active on elsewhere.
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
        """Rows at which the feature is inactive: near misses as far as there are, up to half, then any.

        Held-out ones are of different contexts each.
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
        """Another feature that is active somewhere, drawn at random."""
        alive = np.flatnonzero(np.diff(self.columns.indptr))
        others = alive[alive != feature]
        return int(np.random.default_rng([self.seed, feature, 1]).choice(others)) if len(others) else feature

    def promoted(self, feature: int) -> "Sequence[Token]":
        """The tokens that the feature's larger side makes likelier most, if that is known."""
        found = self.index.feature(feature)
        return (found.suppressed if self.is_negative(feature) else found.promoted)[:10]

    def is_negative(self, feature: int) -> bool:
        """Whether its larger side is the negative one."""
        values = self.columns.data[self.columns.indptr[feature] : self.columns.indptr[feature + 1]]
        return bool((values < 0).sum() > (values > 0).sum())

    def judged(self, feature: int, row: int, active: bool, said: bool) -> Judged:
        """An example as it is kept beside a label."""
        seq, position = divmod(row, self.words.n_ctx)
        one = self.index.window(feature, seq, position, BEFORE, AFTER)
        values = [float(f"{value:.4g}") for value in one.values]
        return Judged(seq, position, one.start, one.pieces, values, active, said)


def check_can_label(index: "Index", labels: Labels) -> None:
    """Refuse an index whose features cannot be labelled, or labels that could not be kept.

    Raises:
        SaescopeError: the index was made from other weights than the run has now, or has no text, or the run's folder
            cannot be written.
    """
    if not labels.writable:
        raise SaescopeError(f"{labels.path} cannot be written, so no label would be kept; make the run's folder writable.")
    if index.stale:
        raise SaescopeError(f"Labels would be kept under weights that were not indexed: {index.stale}")
    if index.vocabulary is None:
        raise SaescopeError(f"{index.folder} was made without a tokenizer, so there are no words to label features by.")


def balanced_accuracy(said: Bool[np.ndarray, " n"], active: Bool[np.ndarray, " n"]) -> float:
    """The mean of the shares of active and of inactive examples that are told rightly; 0.5 is chance."""
    return float((said[active].mean() + (~said[~active]).mean()) / 2)


def _preference(rule: Rule) -> tuple[float, int]:
    """The better rule; of equal ones the one that looks nearer."""
    return round(rule.j, 2), -min(list(PLACES).index(condition.place) for condition in rule.conditions)


def _reading_order(condition: Condition) -> int:
    return ["token", "after", "two after", "near", "before"].index(condition.place)


def explain(
    index: "Index", features: Iterable[int], *, seed: int = 0, advance: Callable[[int], None] = lambda _: None
) -> list[Label]:
    """Automatic labels of features that are active anywhere.

    Args:
        index: with text.
        features: their numbers.
        seed: of the examples and of the baselines.
        advance: told of each feature done.
    """
    explainer, out = Explainer(index, seed=seed), []
    for feature in features:
        label = explainer.label(feature)
        out += [label] if label is not None else []
        advance(1)
    return out
