"""Label a run's features with a language model: request only what is missing, and save results as they arrive.

There are two passes. First the model writes a label for each feature, saved unscored. Then it scores: given the label and
the held-out examples also used for rules (`Explainer.judges`), it predicts which are active. The score is balanced
accuracy, as for rules; the baseline is the same model's label for a random other feature, scored on the same examples.
After an interruption, the next call resumes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.labels.automatic import NEGATIVE, Explainer, balanced_accuracy, check_can_label
from analysis.labels.by_model.chat import Answer, Chat, Question, Refused
from analysis.labels.by_model.excerpts import Judges, Shown
from analysis.labels.by_model.parallel import in_parallel
from analysis.labels.by_model.prompts import VERSION, label_of, said_of
from analysis.labels.store import BY_MODEL, Judged, Label, Labels
from training.display import Display, Task

if TYPE_CHECKING:
    from analysis.index import Index

Asked = tuple[Question, Answer]
N_SAMPLED = 24
"""Number of features sampled to estimate the cost."""
_TYPICAL = "LABEL: the verb in an infinitive after words such as seem, appear or tend"
"""A label of typical length, to estimate costs."""


@dataclass(frozen=True)
class Settings:
    """Labelling settings."""

    seed: int = 0
    """Seed for scoring examples and baselines."""
    n_examples: int = 20
    """Maximum excerpts shown to label a feature."""
    scored: bool = True
    """Whether to score labels."""
    max_tokens: int = 200
    """Maximum tokens per answer; reasoning models need thousands."""


@dataclass(frozen=True)
class Plan:
    """The remaining work."""

    unlabelled: list[int]
    unscored: list[int]
    """Features with a label from this model but no score."""
    n_done: int
    """Number of features that need no requests."""
    n_replaced: int
    """Number of other automatic labels that will be replaced."""


@dataclass(frozen=True)
class Cost:
    """Requests and tokens: estimated for a plan, counted for an outcome."""

    n_requests: int = 0
    n_in: int = 0
    """Input tokens."""
    n_out: int = 0
    """Output tokens."""

    def money(self, price_in: float, price_out: float) -> float:
        """The cost for prices per million tokens, in their currency."""
        return (self.n_in * price_in + self.n_out * price_out) / 1e6


@dataclass
class Outcome:
    """The result of a labelling so far."""

    made: dict[int, Label] = field(default_factory=dict)
    wordless: list[int] = field(default_factory=list)
    """Features whose answer had no label."""
    unjudged: list[int] = field(default_factory=list)
    """Features whose label has no score because the answer was not a list of examples."""
    refusal: str = ""
    """Message of the last refused question."""
    cost: Cost = Cost()
    counted: bool = True
    """Whether the server reported all token counts; else some are estimated."""


class Labelling:
    """Labels one run's features with one model."""

    def __init__(self, index: "Index", labels: Labels, chat: Chat, settings: Settings | None = None) -> None:
        """Prepare without sending requests.

        Args:
            index: the run's index, with text.
            labels: the run's labels.
            chat: the model.
            settings: labelling settings.

        Raises:
            SaescopeError: this index can't be labelled, or labels can't be saved.
        """
        check_can_label(index, labels)
        self.labels, self.chat, self.settings = labels, chat, settings or Settings()
        self.explainer = Explainer(index, seed=self.settings.seed)
        self.shown = Shown(self.explainer, self.settings.n_examples)
        self.method = f"{BY_MODEL}{chat.source}, prompt {VERSION}"
        self.outcome = Outcome()

    def plan(self, features: list[int], *, anew: bool = False) -> Plan:
        """Plan the requests for some features, skipping those that never fire in the labelling half.

        Args:
            features: numbers of the features.
            anew: relabel those that this model has already labelled.
        """
        there = {one.feature: one for one in self.labels.automatic()}
        done = {} if anew else {f: one for f, one in there.items() if one.method == self.method}
        missing = [f for f in features if f not in done and len(self.shown.chosen(f))]
        unscored = [
            f for f in features
            if self.settings.scored and f in done and done[f].score is None and self.shown.judges(f) is not None]
        replaced = sum(f in there and there[f].method != self.method for f in missing)
        return Plan(missing, unscored, len(features) - len(missing) - len(unscored), replaced)

    def cost(self, plan: Plan) -> Cost:
        """Estimate the cost from the prompts of a sample of features."""
        asked, judged = (self._mean(each, features) for each, features in (
            (self._asking, plan.unlabelled),
            (self._judging, [*plan.unlabelled, *plan.unscored] if self.settings.scored else [])))
        total = np.round(asked * len(plan.unlabelled) + judged * (len(plan.unlabelled) + len(plan.unscored)))
        return Cost(*total.astype(int).tolist())

    def run(self, plan: Plan, display: Display | None = None) -> Outcome:
        """Send the planned requests and save results as they arrive.

        Raises:
            SaescopeError: the model doesn't answer, or labels can't be saved; earlier results are kept.
        """
        display = display or Display(quiet=True)
        if plan.unlabelled:
            with display.task(f"labelling with {self.chat.source}", len(plan.unlabelled), "features") as task:
                self._ask(((f, self._question(f)) for f in plan.unlabelled), self._keep_label, task)
        to_judge = [*plan.unscored, *(f for f in plan.unlabelled if f in self.outcome.made)] if self.settings.scored else []
        if to_judge:
            texts = {one.feature: one.text for one in self.labels.automatic() if one.method == self.method}
            with display.task("scoring the labels", len(to_judge), "features") as task:
                self._ask(((f, self._check(f, texts)) for f in to_judge), self._keep_score, task)
        return self.outcome

    def _ask(self, jobs: Iterator[tuple[int, Callable[[], Any]]], keep: Callable[[int, Any], None], task: Task) -> None:
        def kept(feature: int, result: Any) -> None:
            keep(feature, result)
            task.advance(1)

        def stop() -> None:
            task.display.say("stopping after the pending answers; press Ctrl-C again to discard them")
            self.chat.stop()

        in_parallel(jobs, self.chat.n_parallel, kept, stop)

    def _asked(self, question: Question) -> Asked:
        """A question and its answer; empty if only this question was refused."""
        try:
            return question, self.chat.ask(question, self.settings.max_tokens)
        except Refused as refusal:
            if not self.outcome.cost.n_requests:
                raise
            self.outcome.refusal = str(refusal)
            return question, Answer("", 0, 0)

    # -- writing ------------------------------------------------------------------------------------------------------

    def _question(self, feature: int) -> Callable[[], Asked]:
        question = self.shown.to_explain(feature)
        assert question is not None, "features without examples are not asked about"
        return lambda: self._asked(question)

    def _keep_label(self, feature: int, result: Asked) -> None:
        self._count(*result)
        text = label_of(result[1].text)
        if text is None:
            self.outcome.wordless.append(feature)
            return
        side = NEGATIVE if self.explainer.is_negative(feature) else ""
        self._keep(Label(feature, f"{text}{side}", "auto", method=self.method))

    # -- judging ------------------------------------------------------------------------------------------------------

    def _check(self, feature: int, texts: dict[int, str]) -> Callable[[], list[Asked]]:
        judges = self.shown.judges(feature)
        if judges is None:
            return list
        random = np.random.default_rng([self.settings.seed, feature, 1])
        others = sorted(texts.keys() - {feature})
        judged = [texts[feature], *([texts[int(random.choice(others))]] if others else [])]
        questions = [self.shown.to_judge(text, judges) for text in judged]
        return lambda: [self._asked(question) for question in questions]

    def _keep_score(self, feature: int, results: list[Asked]) -> None:
        for result in results:
            self._count(*result)
        judges = self.shown.judges(feature)
        if judges is None or not results:
            return
        said = [said_of(answer.text, len(judges.rows)) for _, answer in results]
        label = next((one for one in self.labels.every(feature) if one.method == self.method), None)
        if said[0] is None or label is None:
            self.outcome.unjudged.append(feature)
            return
        scores = [None if one is None else balanced_accuracy(np.array(one), judges.active) for one in said]
        baseline = scores[1] if len(scores) > 1 else None
        self._keep(Label(feature, label.text, "auto", scores[0], baseline, self._judged(judges, said[0]), self.method))

    def _judged(self, judges: Judges, said: list[bool]) -> tuple[Judged, ...]:
        """The examples in the form stored with labels: active ones first, as for rules."""
        rows, _ = self.explainer.judges(judges.feature)
        verdict = dict(zip(judges.rows.tolist(), zip(judges.active.tolist(), said, strict=True), strict=True))
        return tuple(self.explainer.judged(judges.feature, row, *verdict[row]) for row in rows.tolist())

    def _keep(self, label: Label) -> None:
        self.labels.put([label])
        self.outcome.made[label.feature] = label

    # -- costs --------------------------------------------------------------------------------------------------------

    def _count(self, question: Question, answer: Answer) -> None:
        n_in = self.chat.count(question.text) if answer.n_in is None else answer.n_in
        n_out = self.chat.count(answer.text) if answer.n_out is None else answer.n_out
        so_far = self.outcome.cost
        self.outcome.cost = Cost(so_far.n_requests + 1, so_far.n_in + n_in, so_far.n_out + n_out)
        self.outcome.counted &= answer.n_in is not None and answer.n_out is not None

    def _mean(self, each: Callable[[int], tuple[int, int, int]], features: list[int]) -> np.ndarray:
        """Mean requests, input tokens and output tokens per feature."""
        places = np.unique(np.linspace(0, len(features) - 1, min(len(features), N_SAMPLED)).round().astype(int))
        return np.mean([each(features[i]) for i in places.tolist()], axis=0) if features else np.zeros(3)

    def _asking(self, feature: int) -> tuple[int, int, int]:
        question = self.shown.to_explain(feature)
        return (1, self.chat.count(question.text), self.chat.count(_TYPICAL)) if question is not None else (0, 0, 0)

    def _judging(self, feature: int) -> tuple[int, int, int]:
        judges = self.shown.judges(feature)
        if judges is None:
            return 0, 0, 0
        half = str(list(range(1, len(judges.rows) + 1, 2)))
        return 2, 2 * self.chat.count(self.shown.to_judge(_TYPICAL, judges).text), 2 * self.chat.count(half)
