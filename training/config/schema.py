"""The config of a training, section by section: frozen, validated before any work, saved as resolved."""

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
"""A duration, or the shortest of several."""


def _batch_seqs(value: object) -> object:
    found = count(value) if value != "auto" else value
    if found != "auto" and not (isinstance(found, int) and found > 0):
        raise ValueError(f"{value!r} is neither auto nor a number of sequences above 0")
    return found


class ModelConfig(Section):
    """The language model whose activations are taken."""

    name: str = "smollm2-135m"
    """`smollm2-135m`, `gemma3-270m` (packaged, offline), `hub:ORG/NAME`, `local:DIR` or `native:tiny`."""
    device: str = "auto"
    """Where it runs: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision it computes in; `auto` is bfloat16 where the device multiplies it in hardware, else float32."""
    batch_seqs: Annotated[int | Literal["auto"], BeforeValidator(_batch_seqs)] = "auto"
    """Sequences per forward pass; `auto` is what a GPU's free memory allows, measured once for a cache, and 16 on a CPU."""


class CorpusConfig(Section):
    """The text, tokenised and packed; or `acts:DIR`, rows of your own."""

    sources: tuple[TextSource, ...] = (TextSource(source="python-stdlib"),)
    """One source or a weighted mixture; a single name may stand for itself."""
    n_ctx: Count = Field(default=256, gt=0)
    """Tokens per sequence, 2 at least; of module: the positions of an input at the hooks, 1 at least."""
    n_tokens: Count = Field(default=320_000, gt=0)
    """Tokens in all, held-out ones included. Of acts:DIR all rows are taken, of module: as many inputs as give no more rows
    than that."""
    held_out: float = Field(default=0.05, ge=0, lt=1)
    """Share of documents that no training or calibration sees. Of rows without text: of their `documents`, or else of
    blocks of n_ctx consecutive rows; 0 holds out none, and nothing is measured at the end."""
    documents: str | None = None
    """Of acts:DIR: a .npy of one integer for each row, the number of its document. Documents are then held out whole, and
    intervals are over them. A cache of ours knows its documents."""
    held_out_rows: str | None = None
    """Of acts:DIR: a .npy of the rows to hold out, one boolean for each row or the numbers of rows, in place of a share."""
    seed: Seed = 0
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
    def module(self) -> str | None:
        """`module:PACKAGE.FUNCTION`, if that is the source."""
        return next((s.source for s in self.sources if s.kind == MODULE), None)

    @property
    def needs_model(self) -> bool:
        """Rows come from a language model."""
        own = self.acts_dir is not None or self.module is not None or self.sources[0].source == TENSORS
        return not own and self.synthetic is None

    @property
    def in_cache(self) -> bool:
        """Rows are computed by a model or module, and may be kept in a cache."""
        return self.needs_model or self.module is not None

    @model_validator(mode="after")
    def _own_rows_alone(self) -> "CorpusConfig":
        own = [s.source for s in self.sources if s.source == TENSORS or s.kind in ("acts", MODULE)]
        if own and len(self.sources) > 1:
            raise ValueError(f"{own[0]} cannot be mixed with other sources")
        if self.needs_model and not self.held_out:
            raise ValueError("held_out = 0 is for rows of your own; of text some documents are held out")
        if self.module is None and self.n_ctx < 2:
            raise ValueError("n_ctx = 1 is for modules of your own; a sequence of text has 2 tokens at least")
        for key in ("documents", "held_out_rows"):
            if self.acts_dir is None and getattr(self, key) is not None:
                raise ValueError(f"{key} describes rows of your own, and belongs to acts:DIR")
        return self


class CacheConfig(Section):
    """Where activations live between model and trainer."""

    mode: Literal["disk", "stream"] = "disk"
    """`disk` writes activations once and reads them back; `stream` recomputes them, in the same order."""
    dir: str = "cache"
    """Folder of all caches, on disk or in an object store: `s3://BUCKET/FOLDER` (`pip install 'saescope[s3]'`)."""
    name: str | None = None
    """This cache's folder; null names it after what it is made from."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Precision of the rows, on disk and in the stream alike."""
    shard_rows: Count = Field(default=65_536, gt=0)
    """Rows per shard, rounded down to whole sequences."""


class DataConfig(Section):
    """Order, batches and which rows are kept."""

    seed: Seed = 0
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
    """Training sequences, spread over the corpus, that fix mean, scale and median norm."""
    outlier_multiple: float | None = Field(default=10.0, gt=1)
    """Rows whose norm exceeds this multiple of the median are dropped (attention sinks); null, or .inf, drops none."""
    mask_hooks: tuple[str, ...] | None = None
    """Hooks whose norms decide which rows are kept; null means those of this training (of its whole sweep)."""

    @field_validator("outlier_multiple", mode="before")
    @classmethod
    def _infinite_is_none(cls, value: object) -> object:
        # no manifest could hold infinity: JSON has none
        return None if value in (math.inf, "inf") else value


class OptimConfig(Section):
    """Adam and its schedule."""

    lr: float | None = Field(default=None, gt=0)
    """Learning rate after warm-up. Null, or auto, is 1e-3 · √(9216 / d_sae), at most 2e-3, and is written down as that
    number. Chosen with TopK of 2,304 and 9,216 features over 781 and 1,953 steps (docs/results/learning-rate.csv): twice as
    much leaves a tenth to a fifth of 9,216 features silent, half as much explains 0.006 to 0.017 less."""
    warmup: Duration = Duration(5, "%")
    """Linear rise from 0, before the fall."""
    decay: Duration = Duration(20, "%")
    """Linear fall to 0 at the end, behind the rise."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decays of Adam's averages, 0 to below 1."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's denominator offset."""
    sparse: bool = False
    """Sparse Adam (2508.16929): weights and averages of features without a gradient in the step stay as they are."""

    frozen: tuple[Literal["W_enc", "W_dec"], ...] = ()
    """Weights that stay as they are drawn, while everything else is trained: controls, which show how much a random
    dictionary or encoder does by itself (2602.14111)."""

    @field_validator("lr", mode="before")
    @classmethod
    def _auto(cls, value: object) -> object:
        return None if value == "auto" else value

    @model_validator(mode="after")
    def _rise_before_fall(self) -> "OptimConfig":
        if self.warmup.unit == self.decay.unit == "%" and self.warmup.value + self.decay.value > 100:
            raise ValueError(f"warmup = {self.warmup} and decay = {self.decay} are more than the whole budget together")
        return self


def auto_lr(d_sae: int) -> float:
    """What optim.lr: auto is, to two digits."""
    return float(f"{min(2e-3, 1e-3 * math.sqrt(9216 / d_sae)):.2g}")


class TrainConfig(Section):
    """How long, where, and how often to look."""

    budget: Duration = Duration(1, "epochs")
    """Length of the training; an epoch is one pass over the eligible training rows."""
    dead_window: Shortest = (Duration(10, "%"), Duration(10_000_000, "tokens"))
    """A feature is dead, and AuxK may revive it, if it has not fired for this long in training: a duration, or the shortest
    of several. Of a training that is shorter than this it is not known which features are dead, and AuxK never acts."""
    device: str = "auto"
    """Where the SAEs live; may differ from the model's."""
    kernels: Literal["auto", "reference", "cpu", "gpu"] = "auto"
    """Sparse kernels: by device, or forced."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """Encoder scores: bf16 candidates re-scored in fp32 where that pays, or fp32 throughout. fp8: on a GPU, candidates of
    the TopK family by a product in 8 bits, 32 beyond k; whatever is further off than those is missed."""
    fused_adam: bool = False
    """On a GPU: make the gradients of W_enc and W_dec inside the optimiser step, a row at a time. 4 bytes less memory for
    each of their numbers, for gathering active rows twice; faster where rows · k is less than about 4 · d_sae."""
    graph: Literal["auto"] | bool = "auto"
    """On a GPU: capture the training step in a CUDA graph, so that it costs the host one launch. auto: where the sizes of
    a step do not depend on its data (topk, abstopk, batchtopk, matryoshka with fixed prefixes; relu and gated where rows ·
    d_sae is at most 2^24), and else launch by launch. true: refuse where that cannot be. The weights that come out are the
    same."""
    checkpoint_every: Interval = Time(10, "min")
    """How often the whole state is saved while training goes on: a time (`10 min`) or a stretch of training (`5%`). It is
    also saved at the end, and when a signal comes."""
    shards: Count = Field(default=1, gt=0)
    """Under torchrun: ranks that share the features of an SAE, each holding its part of weights and averages. The rows of
    a batch are shared by as many groups of them as there are."""
    patience: Wait = Time(10, "min")
    """Under torchrun: how long a rank may let the others wait within a step before all of them end."""
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
    """Held-out evaluation, on one sequence of each of as many held-out documents as there are.

    A sequence has n_ctx rows: figures of 64 documents and more need that many times n_ctx.
    """

    every: Duration = Duration(20, "%")
    """How often held-out L0, FVE, dead and dense features are measured while training."""
    n_rows: Count = Field(default=16_384, gt=0)
    """Held-out rows for that, at most."""
    n_tokens: Count = Field(default=20_480, ge=0)
    """Held-out tokens at the end for CE recovered and KL (four forward passes each); 0 leaves them out."""


class Config(Section):
    """One training: one SAE, or a sweep of several on one stream."""

    name: str
    """The run's folder below runs/: NAME or GROUP/NAME, of at most 200 bytes each."""
    model: ModelConfig | None = ModelConfig()
    """Null, or left out, where rows need no language model: acts:DIR, module:, tensors, corpus.synthetic."""
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
        if self.site.cross and (reason := self.sae.unfit_for_transcoders()):
            raise ValueError(f"the site's target is not its input, and {reason}")
        if self.sae.skip and not self.site.cross:
            raise ValueError(
                "sae.skip is a linear path from input to target, and where the two are equal it would copy it; give the "
                "site a target of its own (site={input: HOOK, target: HOOK}) or set sae.skip=false"
            )
        if self.sae.hide and self.site.cross:
            raise ValueError(
                f"sae.hide = {self.sae.hide:g} hides entries of the input, to be predicted in the target, and this site's "
                "target is another activation; set sae.hide=0, or train an SAE of one hook (site=HOOK)"
            )
        if getattr(self.sae, "tied", False) and self.site.cross:
            raise ValueError("sae.tied: the decoder writes another space than the encoder reads; leave it out here")
        if getattr(self.sae, "tied", False) and self.train.fused_adam:
            raise ValueError("train.fused_adam makes the gradient of each weight by itself, and sae.tied adds two up")
        if self.model is None and self.corpus.needs_model:
            raise ValueError(
                "model is null, but only acts:DIR, module:, tensors and corpus.synthetic can do without a language model"
            )
        if "model" in self.model_fields_set and self.model is not None and self.corpus.synthetic is not None:
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
        """As YAML 1.2, readable by `training.config.reading`."""
        return dump_yaml(self.plain())
