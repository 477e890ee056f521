"""Check on held-out pairs that a model has the behaviour a circuit is meant to explain."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analysis.circuits.tasks.examples import Examples, Metric, value
from analysis.circuits.tasks.metrics import COMPARES, kl, log_probability, logit_difference, name_of
from analysis.circuits.tasks.task import Task
from analysis.circuits.tasks.tokens import tokenise
from sae.errors import SaescopeError
from sae.metrics import Interval, jackknife
from training.model.language_model import Model

ACCURACY = 0.75
"""Share of held-out pairs that a model must get right."""


@dataclass(frozen=True)
class Behaviour:
    """A model's performance on a task's held-out pairs.

    Attributes:
        model, task: their names.
        metric: metric of `clean` and `corrupt`; for KL, which is 0 here, another one that the answers allow.
        n: number of held-out pairs.
        n_right: pairs with a right answer above the wrong ones (positive difference); without wrong answers, pairs in
            which a right answer is the most likely token.
        clean: mean of the metric over the clean prompts, with its interval over pairs.
        corrupt: the same over the counterfactual prompts, with the clean prompts' answers; None for single prompts.
        chance: the metric at chance.
        compares: whether there are wrong answers, so that chance is 50 %.
    """

    model: str
    task: str
    metric: str
    n: int
    n_right: int
    clean: Interval
    corrupt: Interval | None
    chance: float
    compares: bool

    @property
    def accuracy(self) -> float:
        """Share of pairs that are right."""
        return self.n_right / self.n

    @property
    def holds(self) -> bool:
        """Whether 3 of 4 pairs are right and the metric's interval is above chance (or its mean, without an interval)."""
        low = self.clean.value if self.clean.low is None else self.clean.low
        return self.accuracy >= ACCURACY and low > self.chance

    def __str__(self) -> str:
        """The result as a sentence."""
        bounds = "" if self.clean.low is None else f" [{self.clean.low:.3g}, {self.clean.high:.3g}]"
        chance = "chance is 50 %" if self.compares else "as the most likely token"
        return (
            f"{self.model} {'does' if self.holds else 'does not do'} {self.task}: right in {self.n_right} of {self.n} "
            f"held-out {'pairs' if self.corrupt else 'prompts'} ({self.accuracy:.0%}; {chance}), {self.metric} "
            f"{self.clean.value:.3g}{bounds}, chance {self.chance:.3g}."
        )

    def figures(self) -> dict[str, Any]:
        """The result in JSON types."""
        corrupt = {} if self.corrupt is None else self.corrupt.named("corrupt")
        return {
            "metric": self.metric, "n": self.n, "n_right": self.n_right, "accuracy": self.accuracy,
            **self.clean.named("clean"), **corrupt, "chance": self.chance, "holds": self.holds,
        }


def check_behaviour(model: Model, task: Task, *, batch: int = 32) -> Behaviour:
    """Measure a model's performance on a task's held-out pairs.

    Raises:
        SaescopeError: as `tokenise`.
    """
    groups = tokenise(task.held_out, model)
    compares = all(bool((group.wrong >= 0).any(1).all()) for group in groups if group.wrong.shape[1])
    compares = compares and all(group.wrong.shape[1] for group in groups)
    metric = task.metric if task.metric is not kl else logit_difference if compares else log_probability
    is_right = _above(metric if metric in COMPARES else logit_difference) if compares else _likeliest
    clean, right, corrupt = [], [], []
    for part in (part for group in groups for part in group.batches(batch)):
        logits = _last(model, part.clean)
        clean.append(value(metric, logits, part))
        right.append(is_right(logits[:, -1], part))
        if part.corrupt is not None:
            corrupt.append(value(metric, _last(model, part.corrupt), part))
    n_right_answers = float(np.mean([float((group.right >= 0).sum(1).double().mean()) for group in groups]))
    chance = math.log(n_right_answers / model.d_vocab) if metric is log_probability else 0.0
    return Behaviour(
        model.name, task.name, name_of(metric), len(task.held_out), int(torch.cat(right).sum()), _mean(clean),
        _mean(corrupt) if corrupt else None, chance, compares,
    )


def require_behaviour(model: Model, task: Task, *, batch: int = 32) -> Behaviour:
    """`check_behaviour`, but raise if the model can't do the task.

    Raises:
        SaescopeError: the model can't do the task (with the figures); or as `tokenise`.
    """
    found = check_behaviour(model, task, batch=batch)
    if not found.holds:
        raise SaescopeError(str(found))
    return found


@torch.no_grad()
def _last(model: Model, tokens: Tensor) -> Float[Tensor, "n_examples one d_vocab"]:
    return model.logits(tokens)[:, -1:].float().cpu()


def _above(metric: Metric) -> Callable[[Tensor, Examples], Bool[Tensor, " n_examples"]]:
    return lambda last, examples: metric(last, examples) > 0


def _likeliest(last: Float[Tensor, "n_examples d_vocab"], examples: Examples) -> Bool[Tensor, " n_examples"]:
    return (last.argmax(1, keepdim=True) == examples.right).any(1)


def _mean(parts: list[Tensor]) -> Interval:
    numbers = torch.cat(parts).double().numpy()
    return jackknife(lambda sums: sums[:, 0] / sums[:, 1], np.stack([numbers, np.ones_like(numbers)], axis=1),
                     np.ones_like(numbers))
