"""Config of a circuit: the behaviour, the SAEs, the effect estimator, what is kept, and how it is tested."""

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
    """Model name. Null loads the model the SAEs were trained on; any other name must give the same weights."""
    device: str = "cpu"
    """Device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Compute dtype; it needn't match the dtype the SAEs were trained with."""


class EffectsConfig(Section):
    """How node effects are estimated."""

    method: Literal["auto", "attribution", "relp", "ig", "exact"] = "ig"
    """`attribution` patching, `relp`, integrated gradients (`ig`), or `exact` ablation; `auto` picks the cheapest estimator
    whose correlation with exact ablation on this task is at least `agreement`."""
    n_steps: Count = Field(default=10, gt=0)
    """Steps of integrated gradients."""
    reference: Literal["counterfactual", "mean", "zero"] | None = None
    """Value a node is patched to; null is the counterfactual prompt, or zero for single prompts."""
    agreement: float = Field(default=0.95, gt=0, le=1)
    """Correlation with exact ablation that `auto` requires at every site."""
    n_exact: int = Field(default=40, ge=0)
    """Nodes per site that are ablated exactly to measure the correlation; 0 skips it."""
    batch: Count = Field(default=32, gt=0)
    """Examples per forward pass."""


class NodesConfig(Section):
    """Which nodes are kept."""

    most: Count = Field(default=100, gt=0)
    """Maximum number of nodes; a node is a feature (or an error) at one position."""
    choose: Literal["effects", "pruned"] = "pruned"
    """`effects` takes the nodes with the largest effects in the full model; `pruned` starts with ten times as many and
    repeatedly drops those with the smallest effect within the remaining circuit."""
    positions: bool = True
    """One node per position; false sums over positions, which is required if prompts differ in length."""
    errors: bool = True
    """Whether SAE errors may be nodes."""


class EdgesConfig(Section):
    """Which edges are kept."""

    most: Count = Field(default=400, ge=0)
    """Maximum number of edges, largest effects first; 0 skips edges."""


class ChecksConfig(Section):
    """How the circuit is tested, on held-out examples."""

    ablation: Literal["mean", "counterfactual", "zero"] = "mean"
    """What everything outside the circuit is ablated to; `mean` is per position, over training prompts."""
    bootstraps: Count = Field(default=1000, gt=0)
    """Bootstrap draws of the examples for each interval and inclusion probability."""
    n_random: int = Field(default=5, ge=0)
    """Random circuits of the same size per point of the curve, as a baseline."""
    neurons: bool = True
    """Also measure the curve of MLP neurons, chosen by the same estimator."""
    tasks: tuple[Builtin, ...] = ()
    """Other built-in tasks to run the circuit on (specificity)."""
    n_points: Count = Field(default=9, gt=1)
    """Number of sizes on the curve, spaced geometrically up to `nodes.most` and beyond."""
    seed: Seed = 0
    """Seed of bootstraps and random circuits."""


class CircuitConfig(Section):
    """Config of one circuit."""

    name: str
    """Name of the circuit's folder in `dir`."""
    dir: str = "circuits"
    """Folder of all circuits."""
    saes: tuple[str, ...] = Field(min_length=1)
    """Run folders, or globs such as `runs/circuit-saes/*`."""
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
            raise ValueError(f"{value!r} is not a valid folder name; use for example 'agreement'")
        return value

    def plain(self) -> dict[str, Any]:
        """The config as plain values, for YAML and JSON."""
        return self.model_dump(mode="json")

    def yaml(self) -> str:
        """The config as YAML 1.2, readable by `read_config`."""
        return dump_yaml(self.plain())


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> CircuitConfig:
    """Read a circuit's config from YAML, with dotted overrides (`nodes.most=50`).

    Raises:
        SaescopeError: no such file, bad YAML, an unknown key, or an invalid value.
    """
    return validated(CircuitConfig, overridden(fields_of(path), overrides), str(path))
