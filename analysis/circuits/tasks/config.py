"""Config of a task, and building the task for a model."""

from pathlib import Path
from random import Random
from typing import Literal

from pydantic import Field, field_validator, model_validator

from analysis.circuits.tasks.builtin import agreement, greater_than, ioi
from analysis.circuits.tasks.metrics import COMPARES, METRICS
from analysis.circuits.tasks.pairs_file import read_pairs
from analysis.circuits.tasks.task import Answers, Pair, Task
from analysis.circuits.tasks.tokens import answered, check_pairs
from sae.errors import SaescopeError
from sae.section import Section
from sae.units import Count, Seed
from training.model.language_model import Model

TEMPLATES = {template.name: template for template in (*agreement.TEMPLATES, *ioi.TEMPLATES, *greater_than.TEMPLATES)}
"""Built-in behaviours by name."""
_N = 100
"""Default number of training and of held-out pairs for built-in behaviours."""


Builtin = Literal["agreement-simple", "agreement-across-pp", "agreement-across-rc", "ioi", "greater-than"]


class PromptConfig(Section):
    """A prompt without a counterfactual; may be given as just its text."""

    prompt: str
    """The text whose next token is predicted."""
    right: Answers = ()
    """Answers, each a single token after the prompt; if empty, the model's own prediction."""
    wrong: Answers = ()
    """Answers to compare with."""


class TaskConfig(Section):
    """The behaviour to explain: one of `builtin`, `pairs`, `file` and `prompts`, and its metric."""

    builtin: Builtin | None = None
    """A built-in behaviour: subject–verb agreement, indirect object identification, greater-than."""
    pairs: tuple[Pair, ...] = ()
    """Your own prompt pairs: `clean`, `corrupt`, `right`, `wrong`."""
    file: str | None = None
    """A file of prompt pairs, one JSON object per line."""
    prompts: tuple[PromptConfig, ...] = ()
    """Single prompts; nodes are then patched to their mean or to zero."""
    metric: Literal["logit_difference", "log_probability", "probability_difference", "kl"] | None = None
    """Metric on the logits. Null picks the default: probability difference for greater-than, else logit difference if there
    are wrong answers, else log probability."""
    n_train: Count | None = Field(default=None, gt=0)
    """Pairs the circuit is found on; null: 100 for built-in tasks, or all of your own that aren't held out."""
    n_held_out: Count | None = Field(default=None, gt=0)
    """Pairs the circuit is tested on; null: 100 for built-in tasks, or half of your own. A single pair is used for both."""
    seed: Seed = 0
    """Seed for drawing built-in pairs, or for splitting your own."""

    @field_validator("prompts", mode="before")
    @classmethod
    def _text_alone(cls, value: object) -> object:
        many = value if isinstance(value, list | tuple) else [value]
        return tuple({"prompt": one} if isinstance(one, str) else one for one in many)

    @model_validator(mode="after")
    def _one_source(self) -> "TaskConfig":
        sources = {"builtin": self.builtin, "pairs": self.pairs, "file": self.file, "prompts": self.prompts}
        given = [name for name, source in sources.items() if source]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "none is given"
            raise ValueError(f"a task needs exactly one of {', '.join(sources)}, but {found}")
        return self

    @property
    def name(self) -> str:
        """Name of the behaviour."""
        return self.builtin or (Path(self.file).stem if self.file else "pairs" if self.pairs else "prompts")


def make_task(config: TaskConfig, model: Model) -> Task:
    """Build the task of a config, with pairs that fit the model's tokenizer.

    Raises:
        SaescopeError: too few pairs, an unreadable file, invalid pairs, or a metric that needs wrong answers where there
            are none.
    """
    if config.builtin is not None:
        template = TEMPLATES[config.builtin]
        train, held_out = template.draw(model, config.n_train or _N, config.n_held_out or _N, config.seed)
        return Task(config.name, train, held_out, METRICS[config.metric or template.metric])
    own = read_pairs(config.file) if config.file else config.pairs
    own = own or tuple(Pair(one.prompt, None, one.right, one.wrong) for one in config.prompts)
    pairs = [answered(pair, model) for pair in own]
    check_pairs(pairs)
    compares = all(pair.wrong for pair in pairs)
    metric = METRICS[config.metric or ("logit_difference" if compares else "log_probability")]
    if metric in COMPARES and not compares:
        lacking = next(pair.clean for pair in pairs if not pair.wrong)
        raise SaescopeError(
            f"The metric {config.metric} needs wrong answers, and {lacking!r} has none: give some, or use log_probability."
        )
    train, held_out = _dealt(pairs, config)
    return Task(config.name, train, held_out, metric)


def _dealt(pairs: list[Pair], config: TaskConfig) -> tuple[list[Pair], list[Pair]]:
    """Split user-defined pairs into training and held-out pairs."""
    if len(pairs) == 1:
        return pairs, pairs
    pairs = Random(config.seed).sample(pairs, len(pairs))
    n_held_out = config.n_held_out or (len(pairs) - (config.n_train or 0) if config.n_train else len(pairs) // 2)
    n_train = config.n_train or len(pairs) - n_held_out
    if n_train < 1 or n_held_out < 1 or n_train + n_held_out > len(pairs):
        raise SaescopeError(
            f"{len(pairs)} pairs can't be split into {n_train} training and {n_held_out} held-out pairs."
        )
    return pairs[n_held_out : n_held_out + n_train], pairs[:n_held_out]
