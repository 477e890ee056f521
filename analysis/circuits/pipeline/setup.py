"""Load what a config names: the model with its SAEs, and the examples of the task."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch

from analysis.circuits.effects.reference import Reference
from analysis.circuits.graph import SiteInfo
from analysis.circuits.model import CircuitModel
from analysis.circuits.pipeline.config import CircuitConfig
from analysis.circuits.sites import circuit_model, open_model, open_saes
from analysis.circuits.tasks.config import make_task
from analysis.circuits.tasks.examples import Examples, Metric
from analysis.circuits.tasks.metrics import kl, name_of
from analysis.circuits.tasks.task import Task
from analysis.circuits.tasks.tokens import one_length, tokenise
from analysis.vocabulary import Vocabulary
from sae.io import files
from training.model.token_bytes import token_bytes


@dataclass(frozen=True)
class Setup:
    """A config with everything it names, loaded.

    Attributes:
        train: examples the circuit is found on, one group per prompt length.
        test: held-out examples, grouped likewise.
        reference: what a node is patched to when its effect is estimated.
    """

    config: CircuitConfig
    model: CircuitModel
    sites: tuple[SiteInfo, ...]
    task: Task
    train: tuple[Examples, ...]
    test: tuple[Examples, ...]
    reference: Reference

    @property
    def metric(self) -> Metric:
        """The task's metric."""
        return self.task.metric

    @property
    def positional(self) -> bool:
        """Whether nodes have positions."""
        return self.config.nodes.positions

    @property
    def prompt(self) -> tuple[str, ...]:
        """Tokens of the first training prompt as text, to label positions."""
        if not self.positional:
            return ()
        vocabulary = Vocabulary(token_bytes(self.model.model.tokenizer))
        return tuple(vocabulary.pieces(self.train[0].clean[0].tolist()))

    @property
    def inputs(self) -> dict[str, Any]:
        """Everything a stage can depend on, in JSON types."""
        config = self.config.plain()
        sections = {key: config[key] for key in ("task", "effects", "nodes", "edges", "checks")}
        saes = [[info.site.model_dump(mode="json"), info.sae] for info in self.sites]
        # templates and word lists are code, so a task is identified by its prompts
        prompts = [_digest(group) for group in (*self.train, *self.test)]
        return {
            "code": files.code_version(), "model": self.model.model.identity, "saes": saes, **sections,
            "task": {**sections["task"], "prompts": prompts},
        }

    @property
    def task_facts(self) -> dict[str, Any]:
        """The task as a circuit records it."""
        return {
            **self.config.task.model_dump(mode="json"), "name": self.task.name, "metric": name_of(self.metric),
            "n_train": sum(map(len, self.train)), "n_held_out": sum(map(len, self.test)),
        }


def _digest(examples: Examples) -> str:
    """Hash of the examples' tokens."""
    parts = [examples.clean, examples.right, examples.wrong, *([] if examples.corrupt is None else [examples.corrupt])]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def open_setup(config: CircuitConfig) -> Setup:
    """Open the SAEs, the model and the task.

    Raises:
        SaescopeError: something is missing or doesn't fit together, or prompts differ in length where nodes have positions.
    """
    trained = open_saes(config.saes)
    model = open_model(trained, config.model.name, config.model.device, config.model.dtype)
    spliced, sites = circuit_model(trained, model)
    task = make_task(config.task, model)

    def examples(pairs: Any) -> tuple[Examples, ...]:
        groups = [one_length(pairs, model)] if config.nodes.positions else tokenise(pairs, model)
        return tuple(_with_reference(spliced, group) if task.metric is kl else group for group in groups)

    train, test = examples(task.train), examples(task.held_out)
    single = train[0].corrupt is None
    reference = config.effects.reference or ("zero" if single else "counterfactual")
    return Setup(config, spliced, sites, task, train, test, reference)


@torch.no_grad()
def _with_reference(model: CircuitModel, examples: Examples) -> Examples:
    """The examples with the clean run's logits, the reference of the KL metric."""
    last = [model.model.logits(part.clean)[:, -1].float() for part in examples.batches(32)]
    return replace(examples, reference=torch.cat(last))
