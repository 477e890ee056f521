"""A task: prompt pairs with right and wrong answers, and a metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, ConfigDict

from analysis.circuits.tasks.examples import Metric


def _several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Answers = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""Answers; in configs and files a single string needs no list."""


@dataclass(frozen=True)
class Pair:
    """A prompt, its counterfactual, and answers that distinguish the two.

    Attributes:
        clean: the prompt.
        corrupt: the counterfactual prompt, of the same number of tokens, with a different answer; None for a single prompt.
        right: answers to the clean prompt, each a single token after the prompt (most begin with a space); if empty for a
            single prompt, the model's own prediction is used.
        wrong: answers to the counterfactual prompt.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    clean: str
    corrupt: str | None = None
    right: Answers = ()
    wrong: Answers = ()


@dataclass(frozen=True)
class Task:
    """A task: circuits are found on the training pairs and tested on the held-out pairs.

    Attributes:
        name: name of the behaviour.
        train: pairs for finding circuits.
        held_out: pairs for testing circuits and the model itself.
        metric: one number per example from last-position logits: one of the four in `tasks.metrics`, or your own.
    """

    name: str
    train: Sequence[Pair]
    held_out: Sequence[Pair]
    metric: Metric
