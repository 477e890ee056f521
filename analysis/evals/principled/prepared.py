"""Shared inputs of all dictionaries tested on a task: prompts, activations, ground-truth edits, baselines."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from analysis.evals.principled.runs import Prompted, divergence, preference
from analysis.evals.principled.supervised import Supervised, mean_codes, mse_codes
from analysis.evals.principled.tasks import Examples, Known, counterfactual, draw_examples
from sae.errors import SaescopeError
from training.model.language_model import Model
from training.site import Site, SiteRows

ACCURACY = 0.75
"""Share of prompts that the model must get right: no dictionary can control what the model can't do."""


@dataclass(frozen=True)
class Edited:
    """An edit of a task's test prompts, and the effect of patching in the counterfactual's activation.

    Attributes:
        name: name of the edit.
        target: the counterfactual prompts.
        at: edited position: where patching has the largest effect on the answer, on training prompts.
        rows: rows of the counterfactual prompts at that position.
        before: preference for the counterfactual's answer, unedited.
        logits: logits after the ground-truth edit.
        after: preference after the ground-truth edit.
    """

    name: str
    target: Examples
    at: int
    rows: SiteRows
    before: Float[Tensor, " n"]
    logits: Float[Tensor, "n d_vocab"]
    after: Float[Tensor, " n"]
    answers: tuple[Int64[Tensor, "n n_answers"], Int64[Tensor, "n n_answers"]] = field(repr=False)

    def preference(self, logits: Float[Tensor, "n d_vocab"]) -> Float[Tensor, " n"]:
        """Preference for the counterfactual's answer over the prompt's own."""
        return preference(logits, *self.answers)


@dataclass(frozen=True)
class Prepared:
    """A task prepared at a site.

    Attributes:
        task: the task.
        run: runs of the test prompts.
        test: values and answers of the test prompts.
        rows: activations of the test prompts at every position.
        train_values, train_rows: values and rows of the prompts for fitting supervised dictionaries.
        clean, mean: metric (right minus wrong answer) of each prompt, clean and with all activations at the mean of their
            position.
        edits: edits of the task.
    """

    task: Known
    run: Prompted
    test: Examples
    rows: SiteRows
    train_values: Int64[np.ndarray, "n_train n_attributes"]
    train_rows: SiteRows
    clean: Float[Tensor, " n"]
    mean: Float[Tensor, " n"]
    edits: tuple[Edited, ...]

    def metric(self, logits: Float[Tensor, "n d_vocab"]) -> Float[Tensor, " n"]:
        """Preference for the right answer over the wrong one."""
        return preference(logits, self.test.answers, self.test.wrong)

    def supervised(self, at: int, kind: str) -> Supervised:
        """The supervised dictionary at one position, with `mean` or `mse` codes."""
        acts = self.train_rows.target[:, at].double().numpy()
        make = mean_codes if kind == "mean" else mse_codes
        return make(acts, self.train_values, self.task.n_values)

    def means(self) -> Float[Tensor, "n_ctx d_out"]:
        """Mean activation at each position, over training prompts."""
        return self.train_rows.target.mean(0)

    def reconstruction(self, kind: str) -> Float[Tensor, "n n_ctx d_out"]:
        """Reconstructions of the test prompts by supervised dictionaries, one per position."""
        parts = [self.supervised(p, kind).reconstruct(self.test.values) for p in range(self.test.tokens.shape[1])]
        return torch.from_numpy(np.stack(parts, 1)).float()


def prepare(task: Known, model: Model, site: Site, n_train: int, n_test: int, n_place: int, seed: int) -> Prepared:
    """Draw prompts, run them, and patch.

    Args:
        n_train: prompts for fitting supervised dictionaries.
        n_test: prompts for testing.
        n_place: training prompts for choosing the position of each edit.

    Raises:
        SaescopeError: the model can't do the task.
    """
    train, test = (draw_examples(task, model, n, s) for n, s in ((n_train, 2 * seed), (n_test, 2 * seed + 1)))
    if train.tokens.shape[1] != test.tokens.shape[1]:
        raise SaescopeError(f"The prompts of {task.name} have no common length in tokens of {model.name}.")
    run, fitted = Prompted(model, site, test.tokens), Prompted(model, site, train.tokens)
    rows, train_rows = run.rows(), fitted.rows()
    logits = run.logits()
    clean = preference(logits, test.answers, test.wrong)
    right = float((clean > 0).float().mean())
    if right < ACCURACY:
        raise SaescopeError(
            f"{model.name} gets {right:.0%} of {len(test)} prompts of {task.name} right, but {ACCURACY:.0%} are needed: "
            "no dictionary can control what the model can't do."
        )
    places = {name: _place(task, fitted, train, name, n_place, seed) for name in task.edits}
    with run.replayed():
        mean = run.logits(train_rows.target.mean(0).expand_as(rows.target))
        targets = {name: counterfactual(task, model, test, name, seed) for name in task.edits}
        edits = tuple(_edited(run, test, logits, name, targets[name], at) for name, at in places.items())
    return Prepared(
        task, run, test, rows, train.values, train_rows, clean, preference(mean, test.answers, test.wrong), edits)


def _edited(
    run: Prompted, test: Examples, clean: Float[Tensor, "n d_vocab"], name: str, target: Examples, at: int
) -> Edited:
    other = Prompted(run.model, run.site, target.tokens).rows()
    answers = (target.answers, test.answers)
    logits = run.logits(other.target, at)
    return Edited(
        name, target, at, SiteRows(other.x[:, at], other.target[:, at]), preference(clean, *answers), logits,
        preference(logits, *answers), answers,
    )


def _place(
    task: Known, fitted: Prompted, train: Examples, name: str, n_place: int, seed: int
) -> int:
    """Position where patching has the largest effect on the answer: a token that differs, the next one, or the last."""
    some = slice(n_place)
    source = Examples(train.tokens[some], train.values[some], train.answers[some], train.wrong[some], train.seeds[some])
    target = counterfactual(task, fitted.model, source, name, seed)
    run = Prompted(fitted.model, fitted.site, source.tokens)
    other = Prompted(fitted.model, fitted.site, target.tokens).rows().target
    differ, last = (source.tokens != target.tokens).any(0).nonzero()[:, 0].tolist(), source.tokens.shape[1] - 1
    places = sorted({min(at, last) for first in differ for at in (first, first + 1)} | {last})
    with run.replayed():
        effects = [float(preference(run.logits(other, at), target.answers, source.answers).mean()) for at in places]
    return places[int(np.argmax(effects))]


@dataclass(frozen=True)
class Outcome:
    """Effect of an edit on each prompt, compared with the ground-truth edit.

    Attributes:
        agrees: whether both lead to the same preferred answer.
        moved: change of the preference.
        side_effects: KL(ground truth ‖ edited) of the next token, in nats.
    """

    agrees: Float64[np.ndarray, " n"]
    moved: Float64[np.ndarray, " n"]
    side_effects: Float64[np.ndarray, " n"]


def outcome(prepared: Prepared, edit: Edited, change: Float64[np.ndarray, "n d_out"] | None) -> Outcome:
    """Add a change to the test prompts' activations at the edit's position, and measure its effect; None is no change."""
    new = prepared.rows.target.clone()
    if change is not None:
        new[:, edit.at] += torch.from_numpy(change).float()
    logits = prepared.run.logits(new, edit.at)
    after = edit.preference(logits)
    return Outcome(
        ((after > 0) == (edit.after > 0)).double().numpy(), (after - edit.before).double().numpy(),
        divergence(edit.logits, logits).numpy(),
    )
