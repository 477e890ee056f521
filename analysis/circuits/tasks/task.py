"""A behaviour: pairs of prompts with right and wrong answers, and the metric of an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, ConfigDict

from analysis.circuits.tasks.examples import Metric


def _several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Answers = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""In a config or a file one string may stand for itself."""


@dataclass(frozen=True)
class Pair:
    """A prompt, its counterfactual, and answers that tell the two apart.

    Attributes:
        clean: the prompt.
        corrupt: as many tokens, calling for another answer; None for a single prompt.
        right: answers to the clean prompt, each one token as it follows the prompt (most begin with a space); none of
            a single prompt stands for whatever the model says.
        wrong: answers to the counterfactual one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    clean: str
    corrupt: str | None = None
    right: Answers = ()
    wrong: Answers = ()


@dataclass(frozen=True)
class Task:
    """A behaviour: circuits are found on the training pairs and tested on the held-out ones.

    Attributes:
        name: of the behaviour.
        train: pairs that circuits are found on.
        held_out: pairs that circuits, and the model itself, are tested on.
        metric: one number per example from the logits behind the prompt; `tasks.metrics` has four, or one of your own.
    """

    name: str
    train: Sequence[Pair]
    held_out: Sequence[Pair]
    metric: Metric
