"""The config of a training run, section by section: frozen, validated before any work, saved as resolved."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, SerializeAsAny, field_validator, model_validator

from sae.base import SAEConfig
from sae.section import Section
from sae.units import Count, Duration, Interval, Seed, Time, Wait, count
from sae.variants import variant_config
from training.config.synthetic import SyntheticConfig
from training.config.text_source import MODULE, TENSORS, TextSource
from training.config.yaml12 import dump_yaml
from training.run_folder import fault_of_name
from training.site import Site

Decay = Annotated[float, Field(ge=0, lt=1)]
Shortest = Annotated[
    tuple[Duration, ...],
    Field(min_length=1),
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value]),
    PlainSerializer(lambda many: str(many[0]) if len(many) == 1 else [str(one) for one in many], when_used="json"),
]
"""One duration, or several of which the shortest counts."""


def _batch_seqs(value: object) -> object:
    found = count(value) if value != "auto" else value
    if found != "auto" and not (isinstance(found, int) and found > 0):
        raise ValueError(f"{value!r} must be auto or a positive number of sequences")
    return found


class ModelConfig(Section):
    """The language model that provides the activations."""

    name: str = "smollm2-135m"
    """`smollm2-135m`, `gemma3-270m` (packaged, offline), `hub:ORG/NAME`, `local:DIR` or `native:tiny`."""
    device: str = "auto"
    """Device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the forward pass; `auto` is bfloat16 if the device supports it in hardware, else float32."""
    batch_seqs: Annotated[int | Literal["auto"], BeforeValidator(_batch_seqs)] = "auto"
    """Sequences per forward pass; `auto` fills the GPU's free memory (measured once per cache), and is 16 on a CPU."""


class CorpusConfig(Section):
    """The text, tokenised and packed; or your own activations (`acts:DIR`)."""

    sources: tuple[TextSource, ...] = (TextSource(source="python-stdlib"),)
    """One source or a weighted mixture; for a single source its name is enough."""
    n_ctx: Count = Field(default=256, gt=0)
    """Tokens per sequence, at least 2; with module: the positions of an input at the hooks, at least 1."""
    n_tokens: Count = Field(default=320_000, gt=0)
    """Total tokens, held-out ones included. acts:DIR always uses all rows; module: uses as many inputs as give at most this
    many rows."""
    held_out: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of documents kept out of training and calibration. For rows without text, the split is over `documents`, or
    over blocks of n_ctx consecutive rows if there are none; with 0, nothing is held out or evaluated."""
    documents: str | None = None
    """For acts:DIR: a .npy with one integer per row, its document's number. Whole documents are then held out, and
    intervals are over documents. Not needed for a Saescope cache, which stores its documents."""
    held_out_rows: str | None = None
    """For acts:DIR: a .npy of the rows to hold out, as one boolean per row or as row numbers, instead of a fraction."""
    seed: Seed = 0
    """Seed of the sampling from a mixture."""
    synthetic: SyntheticConfig | None = None
    """Instead of text: `n_tokens` synthetic rows with known features."""

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        many = value if isinstance(value, list | tuple) else [value]
        if not many:
            raise ValueError("no source is given; for example, use python-stdlib")
        return tuple({"source": v} if isinstance(v, str) else v for v in many)

    @property
    def acts_dir(self) -> str | None:
        """The DIR of `acts:DIR`, the user's own activations, if that is the source."""
        names = [s.source for s in self.sources if s.source.startswith("acts:")]
        return names[0].removeprefix("acts:") if names else None

    @property
    def module(self) -> str | None:
        """`module:PACKAGE.FUNCTION`, if that is the source."""
        return next((s.source for s in self.sources if s.kind == MODULE), None)

    @property
    def needs_model(self) -> bool:
        """Whether rows come from a language model."""
        own = self.acts_dir is not None or self.module is not None or self.sources[0].source == TENSORS
        return not own and self.synthetic is None

    @property
    def in_cache(self) -> bool:
        """Whether rows are computed by a model or module, and so can be cached."""
        return self.needs_model or self.module is not None

    @model_validator(mode="after")
    def _own_rows_alone(self) -> "CorpusConfig":
        own = [s.source for s in self.sources if s.source == TENSORS or s.kind in ("acts", MODULE)]
        if own and len(self.sources) > 1:
            raise ValueError(f"{own[0]} cannot be mixed with other sources")
        if self.needs_model and not self.held_out:
            raise ValueError("held_out = 0 only works with your own rows; training on text needs held-out documents")
        if self.module is None and self.n_ctx < 2:
            raise ValueError("n_ctx = 1 only works with module: sources; a sequence of text needs at least 2 tokens")
        for key in ("documents", "held_out_rows"):
            if self.acts_dir is None and getattr(self, key) is not None:
                raise ValueError(f"{key} only applies to acts:DIR")
        return self


class CacheConfig(Section):
    """Where activations are kept between model and trainer."""

    mode: Literal["disk", "stream"] = "disk"
    """`disk` writes activations once and reads them back; `stream` recomputes them in every epoch, in the same order."""
    dir: str = "cache"
    """Folder that holds the caches, on disk or in an object store: `s3://BUCKET/FOLDER` (`pip install 'saescope[s3]'`)."""
    name: str | None = None
    """This cache's folder; null derives a name from model and corpus."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Precision of the rows, both on disk and when streaming."""
    shard_rows: Count = Field(default=65_536, gt=0)
    """Rows per shard, rounded down to whole sequences."""


class DataConfig(Section):
    """Shuffling, batches, and which rows are kept."""

    seed: Seed = 0
    """Seed of the shuffling."""
    batch_rows: Count = Field(default=4096, gt=0)
    """Rows per training step."""
    superblock_rows: Count = Field(default=1_048_576, gt=0)
    """Rows shuffled together in memory; more rows shuffle better and take more RAM."""
    block_rows: Count = Field(default=32, gt=0)
    """Contiguous rows read together from disk; must divide n_ctx. Streaming reads whole sequences."""
    prefetch: int = Field(default=1, ge=0)
    """Superblocks prepared ahead during training; 0 prepares each when it is needed."""
    n_calib: Count = Field(default=64, gt=0)
    """Training sequences, spread over the corpus, used to estimate mean, scale and median norm."""
    outlier_multiple: float | None = Field(default=10.0, gt=1)
    """Rows whose norm exceeds this multiple of the median are dropped (attention sinks); null or .inf keeps all."""
    mask_hooks: tuple[str, ...] | None = None
    """Hooks whose norms decide which rows are kept; null means the hooks of this run (or of the whole sweep)."""

    @field_validator("outlier_multiple", mode="before")
    @classmethod
    def _infinite_is_none(cls, value: object) -> object:
        # JSON manifests cannot hold infinity
        return None if value in (math.inf, "inf") else value


class OptimConfig(Section):
    """Adam and its schedule."""

    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate, after warm-up. Null or auto is 1e-3 · √(9216 / d_sae), at most 2e-3; the number is saved with
    the run. Tuned on TopK with 2,304 and 9,216 features over 781 and 1,953 steps (docs/results/learning-rate.csv): at twice
    this rate 10 to 20 % of 9,216 features are silent, at half the rate FVE is 0.006 to 0.017 lower."""
    warmup: Duration = Duration(5, "%")
    """Linear warm-up from 0."""
    decay: Duration = Duration(20, "%")
    """Linear decay to 0 at the end; must not overlap the warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam's betas, from 0 to below 1."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    sparse: bool = False
    """Sparse Adam (2508.16929): weights and moments of features without a gradient in the step are left unchanged."""

    frozen: tuple[Literal["W_enc", "W_dec"], ...] = ()
    """Weights kept at their initial values while the rest is trained: a control that shows how much a random dictionary
    or encoder achieves (2602.14111)."""

    @field_validator("lr", mode="before")
    @classmethod
    def _auto(cls, value: object) -> object:
        return None if value == "auto" else value

    @model_validator(mode="after")
    def _rise_before_fall(self) -> "OptimConfig":
        if self.warmup.unit == self.decay.unit == "%" and self.warmup.value + self.decay.value > 100:
            raise ValueError(f"warmup = {self.warmup} and decay = {self.decay} add up to more than the whole budget")
        return self


def auto_lr(d_sae: int) -> float:
    """The learning rate of optim.lr: auto, rounded to two digits."""
    return float(f"{min(2e-3, 1e-3 * math.sqrt(9216 / d_sae)):.2g}")


class TrainConfig(Section):
    """Length of the run, devices, and how often to log and save."""

    budget: Duration = Duration(1, "epochs")
    """Length of the run; an epoch is one pass over the eligible training rows."""
    dead_window: Shortest = (Duration(10, "%"), Duration(10_000_000, "tokens"))
    """A feature is dead, and AuxK may revive it, if it hasn't fired for this long during training: one duration, or the
    shortest of several. In a run shorter than this, dead features are unknown and AuxK never acts."""
    device: str = "auto"
    """Device of the SAEs; may differ from the model's."""
    kernels: Literal["auto", "reference", "cpu", "gpu"] = "auto"
    """Sparse kernels: chosen by device, or forced."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """Precision of the encoder: auto uses bf16 candidates re-scored in fp32 where that is faster, fp32 uses it throughout.
    fp8 (GPU, TopK family): candidates from an 8-bit product, 32 more than k; features ranked below those are missed."""
    fused_adam: bool = False
    """On a GPU: compute the gradients of W_enc and W_dec inside the optimiser step, one row at a time. Saves 4 bytes per
    weight and gathers active rows twice; faster where rows · k is less than about 4 · d_sae."""
    graph: Literal["auto"] | bool = "auto"
    """On a GPU: capture the training step in a CUDA graph, so that the host launches it once. auto: capture if tensor
    sizes don't depend on the data (topk, abstopk, batchtopk, matryoshka with fixed prefixes; relu and gated with rows ·
    d_sae up to 2^24). true: raise an error if it cannot be captured. The trained weights are the same either way."""
    checkpoint_every: Interval = Time(10, "min")
    """How often to save a checkpoint: a time (`10 min`) or a share of the run (`5%`). One is also saved at the end and on
    SIGINT or SIGTERM."""
    shards: Count = Field(default=1, gt=0)
    """Under torchrun: number of ranks that the features of an SAE are sharded over, with their weights and Adam moments.
    Each batch is split over the groups of that many ranks."""
    patience: Wait = Time(10, "min")
    """Under torchrun: how long a rank may keep the others waiting within a step before all of them exit."""
    log_every: Duration = Duration(1, "%")
    """How often to write a line to metrics.jsonl."""
    wandb: str | None = None
    """A wandb project to log the metrics to as well."""

    @field_validator("budget")
    @classmethod
    def _no_share_of_itself(cls, value: Duration) -> Duration:
        if value.unit == "%":
            raise ValueError(f"{value}: a budget cannot be a percentage; use for example '4 epochs' or '2M tokens'")
        return value


class EvalConfig(Section):
    """Held-out evaluation, on one sequence from each held-out document as long as there are enough.

    A sequence has n_ctx rows: to cover 64 documents, n_rows and n_tokens must be at least 64 · n_ctx.
    """

    every: Duration = Duration(20, "%")
    """How often held-out L0, FVE, dead and dense features are measured during training."""
    n_rows: Count = Field(default=16_384, gt=0)
    """Held-out rows used for that, at most."""
    n_tokens: Count = Field(default=20_480, ge=0)
    """Held-out tokens for CE recovered and KL at the end (four forward passes each); 0 skips them."""


class Config(Section):
    """The config of one SAE's training run; a sweep resolves to one of these per SAE."""

    name: str
    """The run's folder under runs/: NAME or GROUP/NAME, at most 200 bytes each."""
    model: ModelConfig | None = ModelConfig()
    """Null or omitted if rows need no language model: acts:DIR, module:, tensors, corpus.synthetic."""
    corpus: CorpusConfig = CorpusConfig()
    cache: CacheConfig = CacheConfig()
    site: Site
    data: DataConfig = DataConfig()
    sae: SerializeAsAny[SAEConfig]
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @field_validator("name")
    @classmethod
    def _below_runs(cls, value: str) -> str:
        if fault := fault_of_name(value):
            raise ValueError(fault)
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
            raise ValueError(f"variant must be a name such as topk, not {value['variant']!r}")
        return variant_config(value).model_validate(value)

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.corpus.n_ctx % self.data.block_rows and self.cache.mode == "disk":
            raise ValueError(f"data.block_rows = {self.data.block_rows} must divide corpus.n_ctx = {self.corpus.n_ctx}")
        if self.data.superblock_rows < self.data.batch_rows:
            raise ValueError(
                f"data.superblock_rows = {self.data.superblock_rows} is less than data.batch_rows = {self.data.batch_rows}"
            )
        budget = self.train.budget
        if budget.unit == "tokens" and budget.value < self.data.batch_rows:
            raise ValueError(f"train.budget = {budget} is less than one batch of data.batch_rows = {self.data.batch_rows}")
        if self.site.cross and (reason := self.sae.unfit_for_transcoders()):
            raise ValueError(f"the site is a transcoder's (its target differs from its input), and {reason}")
        if self.sae.skip and not self.site.cross:
            raise ValueError(
                "sae.skip is a linear path from input to target, which would just copy the input when they are the same; "
                "give the site a different target (site={input: HOOK, target: HOOK}) or set sae.skip=false"
            )
        if self.sae.hide and self.site.cross:
            raise ValueError(
                f"sae.hide = {self.sae.hide:g} masks entries of the input and predicts them, but this site's target is a "
                "different activation; set sae.hide=0, or train an SAE on one hook (site=HOOK)"
            )
        if getattr(self.sae, "tied", False) and self.site.cross:
            raise ValueError("sae.tied cannot be used for a transcoder: encoder and decoder work in different spaces")
        if getattr(self.sae, "tied", False) and self.train.fused_adam:
            raise ValueError("train.fused_adam cannot be used with sae.tied, which sums two gradients per weight")
        if self.model is None and self.corpus.needs_model:
            raise ValueError(
                "model is null, but only acts:DIR, module:, tensors and corpus.synthetic work without a language model"
            )
        if "model" in self.model_fields_set and self.model is not None and self.corpus.synthetic is not None:
            raise ValueError("corpus.synthetic uses no model; set model: null")
        return self

    @property
    def block_rows(self) -> int:
        """Contiguous rows that stay together until a superblock is shuffled."""
        return self.data.block_rows if self.cache.mode == "disk" else self.corpus.n_ctx

    def plain(self) -> dict[str, Any]:
        """The config as plain values, for YAML and JSON."""
        return self.model_dump(mode="json", by_alias=True)

    def yaml(self) -> str:
        """The config as YAML 1.2, readable by `training.config.reading`."""
        return dump_yaml(self.plain())
