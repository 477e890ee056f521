"""The config of a training: frozen, validated before any work, saved as resolved.

Read from YAML 1.2 (`1e-4` is a number, `off` a word), overridden by dotted keys (`sae.k=64`). A sweep is a list of
overrides; its members share one stream of batches.
"""

import difflib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from sae.base import SAEConfig
from sae.errors import SaescopeError
from sae.units import Count, Duration
from sae.variants import variant_config
from training.corpus import TextSource
from training.synthetic import SyntheticConfig


class Section(BaseModel):
    """A part of a config: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(Section):
    """The language model whose activations are taken."""

    name: str = "smollm2-135m"
    """`smollm2-135m`, `gemma3-270m` (packaged, offline), `hub:ORG/NAME`, `local:DIR` or `native:tiny`."""
    device: str = "auto"
    """Where it runs: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision it computes in; `auto` is bfloat16 where the device multiplies it in hardware, else float32."""
    batch_seqs: Count = Field(default=16, gt=0)
    """Sequences per forward pass."""


class CorpusConfig(Section):
    """The text, tokenised and packed; or `acts:DIR`, rows of your own."""

    sources: tuple[TextSource, ...] = (TextSource(source="python-stdlib"),)
    """One source or a weighted mixture; a single name may stand for itself."""
    n_ctx: Count = Field(default=256, gt=1)
    """Tokens per sequence."""
    n_tokens: Count = Field(default=320_000, gt=0)
    """Tokens in all, held-out ones included."""
    held_out: float = Field(default=0.05, gt=0, lt=1)
    """Share of documents that no training or calibration sees."""
    seed: int = 0
    """Order of the draws from a mixture."""
    synthetic: SyntheticConfig | None = None
    """Instead of text: `n_tokens` rows of known features."""

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        many = value if isinstance(value, list | tuple) else [value]
        if not many:
            raise ValueError("no source is named; write for example python-stdlib")
        return tuple({"source": v} if isinstance(v, str) else v for v in many)

    @property
    def acts_dir(self) -> str | None:
        """The folder of the user's own activations, if that is the source."""
        names = [s.source for s in self.sources if s.source.startswith("acts:")]
        return names[0].removeprefix("acts:") if names else None

    @property
    def needs_model(self) -> bool:
        """Rows come from a language model."""
        return self.acts_dir is None and self.synthetic is None

    @model_validator(mode="after")
    def _acts_alone(self) -> "CorpusConfig":
        if self.acts_dir is not None and len(self.sources) > 1:
            raise ValueError("acts:DIR cannot be mixed with other sources")
        return self


class CacheConfig(Section):
    """Where activations live between model and trainer."""

    mode: Literal["disk", "stream"] = "disk"
    """`disk` writes activations once and reads them back; `stream` recomputes them, in the same order."""
    dir: str = "cache"
    """Folder of all caches."""
    name: str | None = None
    """This cache's folder; null names it after what it is made from."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Precision of the rows, on disk and in the stream alike."""
    shard_rows: Count = Field(default=65_536, gt=0)
    """Rows per shard, rounded down to whole sequences."""


class SiteConfig(Section):
    """What is read and what is reconstructed."""

    input: str = "acts"
    """Hook the SAE reads, by its TransformerLens name; `[h]` behind it takes one head."""
    target: str | None = None
    """Hook it reconstructs: null is the input (an SAE), another hook makes a transcoder."""
    update: bool | Literal["both"] = False
    """Reconstruct target − input instead of target; `both` reads it too (an SAE of a block's update, 2410.22366)."""

    @model_validator(mode="after")
    def _update_has_target(self) -> "SiteConfig":
        if self.update and self.target in (None, self.input):
            raise ValueError("an update site needs a target other than its input")
        return self

    @property
    def cross(self) -> bool:
        """What is reconstructed is not what is read: a transcoder."""
        return len(self.hooks) > 1 and self.update != "both"

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks a batch must hold."""
        return (self.input,) if self.target in (None, self.input) else (self.input, str(self.target))


class DataConfig(Section):
    """Order, batches and which rows are kept."""

    seed: int = Field(default=0, ge=0)
    """Order of the rows."""
    batch_rows: Count = Field(default=4096, gt=0)
    """Rows per training step."""
    superblock_rows: Count = Field(default=1_048_576, gt=0)
    """Rows shuffled together in memory; larger mixes more and takes more RAM."""
    block_rows: Count = Field(default=32, gt=0)
    """Contiguous rows that are read together from disk; a divisor of n_ctx. A stream reads whole sequences."""
    prefetch: int = Field(default=1, ge=0)
    """Superblocks prepared ahead while training; 0 prepares each when it is needed."""
    n_calib: Count = Field(default=64, gt=0)
    """Training sequences, the first ones, that fix mean, scale and median norm."""
    outlier_multiple: float = Field(default=10.0, gt=1)
    """Rows whose norm exceeds this multiple of the median are dropped (attention sinks)."""
    mask_hooks: tuple[str, ...] | None = None
    """Hooks whose norms decide which rows are kept; null means those of this training (of its whole sweep)."""


class OptimConfig(Section):
    """Adam and its schedule."""

    lr: float = Field(default=3e-4, gt=0)
    """Learning rate after warm-up."""
    warmup: Duration = Duration(5, "%")
    """Linear rise from 0."""
    decay: Duration = Duration(20, "%")
    """Linear fall to 0 at the end."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decays of Adam's averages."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's denominator offset."""
    sparse: bool = False
    """Sparse Adam (2508.16929): weights and averages of features without a gradient in the step stay as they are."""


class TrainConfig(Section):
    """How long, where, and how often to look."""

    budget: Duration = Duration(1, "epochs")
    """Length of the training; an epoch is one pass over the eligible training rows."""
    dead_window: Duration = Duration(300_000, "tokens")
    """A feature is dead if it has not fired for this long."""
    device: str = "auto"
    """Where the SAEs live; may differ from the model's."""
    kernels: Literal["auto", "reference", "cpu", "gpu"] = "auto"
    """Sparse kernels: by device, or forced."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Encoder scores: bf16 candidates re-scored in fp32 where that pays, or fp32 throughout."""
    checkpoint_every: Duration = Duration(10, "%")
    """How often the whole state is saved."""
    log_every: Duration = Duration(1, "%")
    """How often a line goes to metrics.jsonl."""
    wandb: str | None = None
    """A wandb project that gets the metrics too."""

    @field_validator("budget")
    @classmethod
    def _no_share_of_itself(cls, value: Duration) -> Duration:
        if value.unit == "%":
            raise ValueError(f"{value} would be a share of itself; write for example '4 epochs' or '2M tokens'")
        return value


class EvalConfig(Section):
    """Held-out evaluation."""

    every: Duration = Duration(20, "%")
    """How often held-out L0, FVE, dead and dense features are measured while training."""
    n_rows: Count = Field(default=16_384, gt=0)
    """Held-out rows for that, at most."""
    n_tokens: Count = Field(default=20_480, ge=0)
    """Held-out tokens at the end for CE recovered and KL (four forward passes each); 0 leaves them out."""


class Config(Section):
    """One training: one SAE, or a sweep of several on one stream."""

    name: str
    """The run's folder below runs/."""
    model: ModelConfig | None = ModelConfig()
    """Null for acts:DIR, which needs no model."""
    corpus: CorpusConfig = CorpusConfig()
    cache: CacheConfig = CacheConfig()
    site: SiteConfig
    data: DataConfig = DataConfig()
    sae: SerializeAsAny[SAEConfig]
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @field_validator("name")
    @classmethod
    def _below_runs(cls, value: str) -> str:
        if value.startswith("/") or not value.strip("./") or ".." in value.split("/"):
            raise ValueError(f"{value!r} names no folder below runs/; write for example 'quickstart'")
        return value

    @field_validator("site", mode="before")
    @classmethod
    def _hook_name(cls, value: object) -> object:
        return {"input": value} if isinstance(value, str) else value

    @field_validator("model", mode="before")
    @classmethod
    def _model_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("corpus", mode="before")
    @classmethod
    def _corpus_name(cls, value: object) -> object:
        return {"sources": value} if isinstance(value, str) else value

    @field_validator("sae", mode="before")
    @classmethod
    def _variant(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        if not isinstance(value.get("variant", ""), str):
            raise ValueError(f"variant is a name such as topk, not {value['variant']!r}")
        return variant_config(value).model_validate(value)

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.corpus.n_ctx % self.data.block_rows and self.cache.mode == "disk":
            raise ValueError(f"data.block_rows = {self.data.block_rows} must divide corpus.n_ctx = {self.corpus.n_ctx}")
        if self.data.superblock_rows < self.data.batch_rows:
            raise ValueError(
                f"data.superblock_rows = {self.data.superblock_rows} is less than one batch of {self.data.batch_rows}"
            )
        budget = self.train.budget
        if budget.unit == "tokens" and budget.value < self.data.batch_rows:
            raise ValueError(f"train.budget = {budget} is less than one batch of data.batch_rows = {self.data.batch_rows}")
        if self.sae.skip and not self.site.cross:
            raise ValueError(
                "sae.skip is a linear path from input to target, and where the two are equal it would copy it; give the "
                "site a target of its own (site={input: HOOK, target: HOOK}) or set sae.skip=false"
            )
        if self.model is None and self.corpus.needs_model:
            raise ValueError("model is null, but only acts:DIR and corpus.synthetic can do without a model")
        if self.model is not None and self.corpus.synthetic is not None:
            raise ValueError("corpus.synthetic has no model; write model: null")
        return self

    @property
    def block_rows(self) -> int:
        """Contiguous rows that stay together until a superblock is shuffled."""
        return self.data.block_rows if self.cache.mode == "disk" else self.corpus.n_ctx

    def plain(self) -> dict[str, Any]:
        """As plain values, for YAML and JSON."""
        return self.model_dump(mode="json", by_alias=True)

    def yaml(self) -> str:
        """As YAML 1.2, readable by `read`."""
        out = io.StringIO()
        _yaml().dump(self.plain(), out)
        return out.getvalue()


SWEPT = ("sae", "site", "optim")
"""Sections in which the members of a sweep may differ: everything else feeds the shared stream."""


def read(path: str | Path, overrides: Sequence[str] = ()) -> list[Config]:
    """The trainings a YAML file describes, resolved: one, or one per entry of `sweep`.

    Raises:
        SaescopeError: no such file, bad YAML, an unknown key, or a value that does not fit.
    """
    path = Path(path)
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "no .yaml file"
        raise SaescopeError(f"no config at {path}; {path.parent} holds {there}.")
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise SaescopeError(f"{path} cannot be read ({error}); a config is YAML in UTF-8.") from None
    fields = load_yaml(text, str(path))
    if not isinstance(fields, dict):
        found = "nothing" if fields is None else f"a {type(fields).__name__}"
        raise SaescopeError(f"{path}: a config is a mapping of sections, found {found}; `sae train --fields` lists them.")
    return resolve(fields, overrides, str(path))


def resolve(fields: dict[str, Any], overrides: Sequence[str] = (), where: str = "config") -> list[Config]:
    """The trainings that plain fields and dotted overrides (`sae.k=64`) describe."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise SaescopeError(f"{override!r} is not an override; write KEY=VALUE, for example sae.k=64.")
        fields = merged(fields, _nested(key.strip(), load_yaml(value, override)))
    entries = fields.get("sweep")
    base = {key: value for key, value in fields.items() if key != "sweep"}
    if entries is None:
        return [_validated(base, where)]
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries) or not entries:
        raise SaescopeError(f"{where}: sweep is a list of overrides such as {{name: a, sae: {{k: 16}}}}.")
    members = list(_members(base, entries, where))
    return _shared_mask([_validated(fields, f"{where}, sweep member {fields['name']}") for fields in members])


def _members(base: dict[str, Any], entries: list[dict[str, Any]], where: str) -> Iterator[dict[str, Any]]:
    names: set[str] = set()
    for i, entry in enumerate(entries):
        fields = base
        for key, value in entry.items():
            if key != "name" and key.split(".")[0] not in SWEPT:
                raise SaescopeError(
                    f"{where}: sweep entry {i + 1} changes {key}, but members of a sweep share one stream of batches; "
                    f"only {', '.join(SWEPT)} may differ."
                )
            fields = fields if key == "name" else merged(fields, _nested(key, value))
        name = str(entry.get("name", f"{i:02d}"))
        if name in names or "/" in name or not name.strip("."):
            raise SaescopeError(
                f"{where}: sweep entry {i + 1} is called {name!r}; names must differ, not be empty and hold no slash."
            )
        names.add(name)
        yield {**fields, "name": f"{base.get('name')}/{name}"}


def _shared_mask(configs: list[Config]) -> list[Config]:
    """Members with the union of their hooks as mask, so that each can be trained alone on the same rows."""
    hooks = tuple(dict.fromkeys(hook for c in configs for hook in (c.data.mask_hooks or c.site.hooks)))
    return [c.model_copy(update={"data": c.data.model_copy(update={"mask_hooks": hooks})}) for c in configs]


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None
    return yaml


def load_yaml(text: str, where: str) -> Any:
    """YAML 1.2 as plain values; `where` names the text in the message about what is wrong with it."""
    from ruamel.yaml import YAMLError

    try:
        return _yaml().load(text)
    except YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SaescopeError(f"{where}{at}: not valid YAML: {' '.join(str(problem).split())}.") from None


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merged(base: Any, over: Any) -> Any:
    """`over` laid on `base`, mapping by mapping; a name that stands for a section gives way to the section."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def _validated(fields: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(fields)
    except ValidationError as error:
        raise SaescopeError(f"{where}: {_explained(error, fields)}") from None
    except SaescopeError as error:
        raise SaescopeError(f"{where}: {error}") from None


def _explained(error: ValidationError, fields: dict[str, Any]) -> str:
    """The first problem in one sentence; a misspelled key with the nearest right one."""
    # what a misspelled key should have been is often missing too: the misspelling explains both
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    # a variant's own config is validated apart, so its path lacks the section
    path = [str(p) for p in first["loc"]]
    if error.title not in (Config.__name__, ""):
        path = ["sae", *path]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _keys_beside(path, fields)
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}."
        return f"unknown key {key!r}; {hint}"
    if first["type"] == "missing":
        return f"{key} is missing."
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}." if key else f"{message}."
    wanted = first["msg"].partition(", unable")[0]
    if first["type"] == "model_type":
        wanted = "Input should be a mapping of keys"
    gap = " " if wanted.startswith("Input should") else ": "
    return f"{key}{gap}{wanted.removeprefix('Input ')}, found {_short(first['input'])}."


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys_beside(path: list[str], fields: dict[str, Any]) -> list[str]:
    """The keys that could have stood where the unknown one stands."""
    model: Any = Config
    for i, part in enumerate(path[:-1]):
        if i == 0 and part == "sae":
            model = variant_config(fields["sae"])
            continue
        info = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = next((a for a in _annotations(info) if hasattr(a, "model_fields")), model) if info else model
    return [f.alias or name for name, f in model.model_fields.items()] + (["sweep"] if model is Config else [])


def _annotations(info: Any) -> list[Any]:
    """A field's type and the types inside it."""
    found, open_ = [], [info.annotation]
    while open_:
        annotation = open_.pop()
        found.append(annotation)
        open_ += list(getattr(annotation, "__args__", ()))
    return found
