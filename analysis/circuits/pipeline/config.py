"""The config of a circuit: the behaviour, the SAEs, how effects are estimated, what is kept, and how it is tested."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from analysis.circuits.tasks.config import Builtin, TaskConfig
from sae.section import Section
from sae.units import Count, Seed
from training.config.reading import fields_of, overridden, validated
from training.config.yaml12 import dump_yaml


class LanguageModelConfig(Section):
    """The language model behind the SAEs."""

    name: str | None = None
    """Null loads what the SAEs were trained on; another name has to lead to the same weights."""
    device: str = "cpu"
    """Where it runs: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Precision it computes in, whatever the SAEs were trained from."""


class EffectsConfig(Section):
    """How the effect of each node is estimated."""

    method: Literal["auto", "attribution", "relp", "ig", "exact"] = "ig"
    """`attribution` patching, `relp`, integrated gradients (`ig`), or `exact` ablation; `auto` takes the cheapest that
    agrees with exact ablation on this task (correlation of `agreement`)."""
    n_steps: Count = Field(default=10, gt=0)
    """Steps of integrated gradients."""
    reference: Literal["counterfactual", "mean", "zero"] | None = None
    """What a node is moved to; null is the counterfactual prompt, or zero for single prompts."""
    agreement: float = Field(default=0.95, gt=0, le=1)
    """The correlation with exact ablation that `auto` asks for at every site."""
    n_exact: int = Field(default=40, ge=0)
    """Nodes of each site that are ablated exactly to measure the correlation; 0 leaves it out."""
    batch: Count = Field(default=32, gt=0)
    """Examples per forward pass."""


class NodesConfig(Section):
    """Which nodes are kept."""

    most: Count = Field(default=100, gt=0)
    """The number of nodes; a node is a feature (or an error) at one position."""
    choose: Literal["effects", "pruned"] = "pruned"
    """`effects` takes those with the largest effects in the whole model; `pruned` begins with ten times as many and drops,
    turn by turn, those with the least effect within what is left."""
    positions: bool = True
    """Nodes have positions; false sums over them, which prompts of different lengths need."""
    errors: bool = True
    """Errors may be nodes; false never keeps one."""


class EdgesConfig(Section):
    """Which edges are kept."""

    most: Count = Field(default=400, ge=0)
    """The number of edges with the largest effects; 0 leaves edges out."""


class ChecksConfig(Section):
    """How the circuit is tested, on held-out examples."""

    ablation: Literal["mean", "counterfactual", "zero"] = "mean"
    """What everything outside the circuit is set to; the mean is by position, over training prompts."""
    bootstraps: Count = Field(default=1000, gt=0)
    """Draws of the examples behind each interval and inclusion probability."""
    n_random: int = Field(default=5, ge=0)
    """Random circuits of equal size beside each point of the curve."""
    neurons: bool = True
    """Also the curve of MLP activations, chosen by the same estimator."""
    tasks: tuple[Builtin, ...] = ()
    """Built-in tasks that the circuit is run on beside its own (specificity)."""
    n_points: Count = Field(default=9, gt=1)
    """Sizes at which the curve is measured, spaced by ratio up to `nodes.most` and beyond."""
    seed: Seed = 0
    """Of bootstraps and random circuits."""


class CircuitConfig(Section):
    """One circuit."""

    name: str
    """The circuit's folder below `dir`."""
    dir: str = "circuits"
    """Folder of all circuits."""
    saes: tuple[str, ...] = Field(min_length=1)
    """Runs, by folder, or patterns of them such as `runs/circuit-saes/*`."""
    model: LanguageModelConfig = LanguageModelConfig()
    task: TaskConfig
    effects: EffectsConfig = EffectsConfig()
    nodes: NodesConfig = NodesConfig()
    edges: EdgesConfig = EdgesConfig()
    checks: ChecksConfig = ChecksConfig()

    @field_validator("saes", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("task", mode="before")
    @classmethod
    def _task_name(cls, value: object) -> object:
        return {"builtin": value} if isinstance(value, str) else value

    @field_validator("model", mode="before")
    @classmethod
    def _model_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _one_folder(cls, value: str) -> str:
        if value.startswith(".") or not value.strip() or "/" in value or "\\" in value or len(value) > 100:
            raise ValueError(f"{value!r} is no name of a folder; write for example 'agreement'")
        return value

    def plain(self) -> dict[str, Any]:
        """As plain values, for YAML and JSON."""
        return self.model_dump(mode="json")

    def yaml(self) -> str:
        """As YAML 1.2, readable by `read_config`."""
        return dump_yaml(self.plain())


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> CircuitConfig:
    """The circuit that a YAML file describes, with dotted overrides (`nodes.most=50`).

    Raises:
        SaescopeError: no such file, bad YAML, an unknown key, or a value that does not fit.
    """
    return validated(CircuitConfig, overridden(fields_of(path), overrides), str(path))
