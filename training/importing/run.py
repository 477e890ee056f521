"""Import an SAE from another library as a run, with held-out metrics measured here.

    runs/NAME/config.yaml     model, site, corpus, mask and SAE; no training settings, which are unknown
              final/          the SAE; its provenance records the source, by hash
              cfg.json, sae_weights.safetensors    for SAELens, if it supports the architecture
              summary.json    held-out metrics; `imported`: the source, and choices made on import

The SAE computes the same function as before. The mean of its target is set to that of the corpus's calibration rows, as in
an SAE trained here: mean ablation and cosine use it (`sae.recentre`). The rows that its training kept are unknown; metrics
and index use those that a training here would keep: no BOS, special or padding token, no norm above
`data.outlier_multiple` × the median.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sae import store
from sae.base import SAE, SAEConfig
from sae.errors import SaescopeError
from sae.formats import saelens
from sae.io.files import atomic_dir, write_bytes, write_json
from sae.io.locks import locked
from sae.recentre import recentred
from sae.torch_state import own_torch_state
from training.activations.cache import missing_hooks
from training.activations.calibration import KeepMask, calibrate
from training.activations.harvest import Data, open_data, open_heldout
from training.checkpoint import surroundings
from training.config import reading as configs
from training.config.schema import Config, DataConfig, EvalConfig
from training.config.yaml12 import dump_yaml
from training.corpus.tokens import cache_folder, made_from
from training.display import Display
from training.evaluate import HeldOut, Spliced
from training.finish import Result, provenance
from training.importing.source import ImportSource, decide, open_source
from training.model.language_model import Model
from training.model.load import load_model
from training.model.packaged import PACKAGED
from training.run_folder import run_folder

OVERRIDABLE = ("corpus", "cache", "data", "eval", "model")
"""Sections that an import may set; the others come from the SAE, or only matter for training."""
_OF_A_TRAINING = {
    "data": set(DataConfig.model_fields) - {"n_calib", "outlier_multiple", "mask_hooks"},
    "eval": set(EvalConfig.model_fields) - {"n_rows", "n_tokens"},
}
"""Keys without meaning for an imported SAE, which wasn't trained here."""
_OF_AN_SAE = (
    "variant", "d_sae", "apply_b_dec_to_input", "skip", "k", "architecture", "absolute", "row_norm", "denormalise",
)
"""Keys of an SAE's config that determine what it computes."""


@own_torch_state()
def import_run(
    path: str, overrides: Sequence[str] = (), *, model: str | None = None, hook: str | None = None,
    target: str | None = None, corpus: str = "python-stdlib", name: str | None = None, runs: str | Path = "runs",
    evaluate: bool = True, quiet: bool = False,
) -> Result:
    """Import an SAE or transcoder from SAELens or Gemma Scope as a run.

    Args:
        path: a folder, or `hub:ORG/NAME/FOLDER[@REVISION]`.
        overrides: dotted config keys such as `corpus.n_tokens=1M`, in the sections `OVERRIDABLE`.
        model: as for `load_model`; None uses the one named in its files.
        hook: the TransformerLens name of the hook it reads; None uses the one named in its files.
        target: the hook a transcoder reconstructs; None uses the one named in its files.
        corpus: the text to evaluate and index it on.
        name: the run's name; None derives one from the path.
        runs: the folder that holds the runs.
        evaluate: measure held-out metrics. If the model is unavailable they are skipped, with a message.
        quiet: no progress display.

    Raises:
        SaescopeError: anything a user can cause; see the message.
    """
    display = Display(quiet=quiet)
    source = open_source(path)
    model, site = decide(source, path, model, hook, target)
    config = _config(source, overrides, {
        "name": name or source.name, "model": {"name": model}, "corpus": {"sources": corpus}, "site": site.model_dump(),
    })
    folder = run_folder(runs, config.name)
    with locked(folder):
        if folder.exists():
            raise SaescopeError(f"{folder} exists; choose another --name, or remove it.")
        loaded, reason = _model(config) if evaluate else (None, "the evaluation was switched off (--no-eval)")
        if loaded is not None:
            _check_width(source.sae, config, loaded)
        else:
            display.say(f"no held-out metrics: {reason}")
        return _write(source, config, folder, loaded, reason, display)


def _config(source: ImportSource, overrides: Sequence[str], fields: dict[str, Any]) -> Config:
    """The run's config; training keys keep their defaults and are not saved."""
    for override in overrides:
        section = override.split(".")[0].split("=")[0]
        if section not in OVERRIDABLE or override.startswith("model.name"):
            raise SaescopeError(
                f"{override!r} cannot be set for an import, only {', '.join(OVERRIDABLE)} can (except model.name), for "
                "example corpus.n_tokens=1M."
            )
    fields = {**fields, "sae": _sae_fields(source.sae.config)}
    (config,) = configs.resolve(fields, overrides, "import")
    if not config.corpus.needs_model:
        raise SaescopeError("an imported SAE reads a model's activations; set --corpus to a text, such as python-stdlib.")
    return config


def _sae_fields(config: SAEConfig) -> dict[str, Any]:
    """The SAE's config without keys that only matter for training."""
    plain = config.model_dump(mode="json", by_alias=True)
    fields = {key: plain[key] for key in _OF_AN_SAE if key in plain}
    try:
        type(config).model_validate(fields)
    except ValidationError:
        # the default target L0 can exceed the number of features of a small SAE
        fields["sparsity"] = plain["sparsity"]
    return fields


def _plain(config: Config) -> dict[str, Any]:
    """The config without training keys; saved as YAML, it resolves to the same config."""
    plain = config.plain()
    del plain["optim"], plain["train"]
    for section, default in (("data", DataConfig()), ("eval", EvalConfig())):
        usual = default.model_dump(mode="json")
        plain[section] = {
            key: value for key, value in plain[section].items()
            if key not in _OF_A_TRAINING[section] or value != usual[key]
        }
    return plain | {"sae": _sae_fields(config.sae)}


def _model(config: Config) -> tuple[Model | None, str]:
    """Load the language model; if it is unavailable, return None and the reason."""
    assert config.model is not None
    try:
        return load_model(config.model.name, device=config.model.device, dtype=config.model.dtype), ""
    except SaescopeError as error:
        if config.model.name.startswith("hub:") or config.model.name in PACKAGED:
            return None, str(error)
        raise


def _check_width(sae: SAE, config: Config, model: Model) -> None:
    for hook, width, does in ((config.site.input, sae.d_in, "reads"), (config.site.output, sae.d_out, "reconstructs")):
        if model.d_hook(hook) != width:
            raise SaescopeError(
                f"the SAE {does} rows of width {width}, but {hook} of {model.name} has rows of width {model.d_hook(hook)}; "
                "choose another hook or model."
            )


@dataclass(frozen=True)
class Judged:
    """The rows and tokens that a run is evaluated on, with the mask over its corpus."""

    data: Data
    mask: KeepMask
    rows: HeldOut
    tokens: Spliced | None
    """None if `eval.n_tokens` is 0."""

    def measure(self, sae: SAE, config: Config, display: Display) -> dict[str, Any]:
        """Held-out metrics, as at the end of a training run."""
        figures = self.rows.measure(sae, config.site)
        if self.tokens is None:
            return figures
        n_tokens = len(self.tokens.seqs) * (self.data.tokens.n_ctx - 1)
        with display.task("measuring the SAE inside the model", n_tokens) as task:
            (spliced,) = self.tokens.measure([(sae, config.site)], task.advance)
        return figures | spliced


def judged(config: Config, model: Model, display: Display) -> Judged:
    """Open the data to evaluate an import on: the run's cache if it exists, else activations streamed from the model.

    Held-out metrics need few rows of the corpus, so no cache is built for them; the first index builds it.
    """
    mask_hooks = config.data.mask_hooks or config.site.hooks
    hooks = tuple(dict.fromkeys((*config.site.hooks, *mask_hooks)))
    if config.cache.mode == "disk" and missing_hooks(cache_folder(config, made_from(config, model)), hooks):
        config = config.model_copy(update={"cache": config.cache.model_copy(update={"mode": "stream"})})
    data = open_data(config, hooks, display, model)
    mask = KeepMask(data.source, data.tokens, config.data.model_copy(update={"mask_hooks": mask_hooks}))
    display.say(f"reading {', '.join(config.site.hooks)}: {len(mask.calib)} sequences for mean and norms, then held-out")
    held = open_heldout(config, data, display)
    rows = HeldOut(held.source, held.tokens, mask, config.site.hooks, config.eval.n_rows)
    n_tokens = config.eval.n_tokens
    return Judged(data, mask, rows, Spliced(model, held.source, held.tokens, mask, n_tokens) if n_tokens else None)


def _write(
    source: ImportSource, config: Config, folder: Path, model: Model | None, reason: str, display: Display
) -> Result:
    """Evaluate the SAE, then write the whole run folder at once."""
    sae, facts = source.sae, _known(source, config)
    sae.config = config.sae
    found = None if model is None else judged(config, model, display)
    if found is not None:
        recentred(sae, calibrate(config.site, found.mask).target.mean)
        facts = provenance(config, found.data, found.mask) | facts
    with atomic_dir(folder) as part:
        digest = store.save(sae, part / "final", provenance=facts)
        saved = store.load(part / "final", kernels=config.train.kernels)
        refusal = saelens.export(saved, part, metadata=facts)
        summary = {
            "name": config.name, "variant": config.sae.variant, "d_sae": config.sae.d_sae, "weights_sha256": digest,
            "heldout": found.measure(saved, config, display) if found else {}, "dead": None,
            "mask": found.mask.dropped() if found else None, "n_rows_trained": None, "n_steps": None, "timing": None,
            "saelens": "cfg.json" if refusal is None else refusal, "surroundings": surroundings(),
            "imported": facts["imported"] | {"not_evaluated": reason or None},
        }
        write_bytes(part / "config.yaml", dump_yaml(_plain(config)).encode())
        write_json(part / "summary.json", summary)
    return Result(store.load(folder), summary, folder)


def _limit(data: DataConfig) -> str:
    if data.outlier_multiple is None:
        return ""
    return f", no norm above {data.outlier_multiple:g} times the median of {data.n_calib} training sequences of the corpus"


def _known(source: ImportSource, config: Config) -> dict[str, Any]:
    """Provenance that is known without the model; it overrides `provenance`, which assumes a training run."""
    metadata = source.cfg.get("metadata") or {}
    return {
        "site": config.site.model_dump(mode="json"),
        "config": {k: v for k, v in _plain(config).items() if k in ("corpus", "data", "sae", "model")},
        "hook_name": config.site.input, "hook_name_out": config.site.target,
        "model_name": config.model and config.model.name,
        **{key: metadata.get(key) for key in ("context_size", "prepend_bos", "dataset_path")},
        "imported": {
            "from": source.place, "format": source.format, "files": source.files, "cfg": source.cfg,
            "mask": "chosen here, for it is not known which rows the SAE was trained on: no BOS, special or padding "
            f"token{_limit(config.data)}",
        },
    }
