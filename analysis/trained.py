"""A trained SAE ready to encode text: SAE, site, mask and language model in one object.

All code in this package encodes activations through a `TrainedSAE`, so that it reads the same kind of rows as training.
Models are large and a server has many threads, so a process keeps one model and a few SAEs, loaded lazily, and
everything that runs them holds one lock.
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analysis.vocabulary import Vocabulary
from sae import store
from sae.base import SAE
from sae.code import SparseCode, from_pairs
from sae.devices import resolve_device
from sae.errors import SaescopeError
from sae.io.files import read_json
from sae.io.paths import user_path
from training.config import reading as configs
from training.config.schema import Config
from training.model.language_model import Model
from training.model.load import load_model
from training.model.module import HookedModule, load_module
from training.model.token_bytes import token_bytes
from training.provenance import first_difference
from training.site import Site, SiteRows

LOCK = threading.RLock()
"""Hold this while running a model."""
MAX_TOKENS = 512
"""Maximum tokens per prompt, so that pages respond within seconds on a laptop."""


class Coded(NamedTuple):
    """The code of a text: row i is token i, and rows that training would mask are empty."""

    code: SparseCode
    kept: Bool[Tensor, " n_tokens"]


@dataclass(frozen=True)
class TrainedSAE:
    """An SAE with everything needed to use it on text. Created by `open_trained`."""

    folder: Path
    """The run's folder."""
    sae: SAE
    site: Site
    limits: Mapping[str, float] = field(default_factory=dict)
    """Norm limit of the training's mask at each mask hook; empty if the run doesn't record it."""
    refine: int = 0
    """Number of refinement steps for codes (`SAE.encode`)."""

    # -- activations --------------------------------------------------------------------------------------------------

    def rows(self, acts: Mapping[str, Float[Tensor, "n_rows _"]]) -> SiteRows:
        """x and target of raw activations by hook, in fp32 on the SAE's device."""
        device = self.sae.W_dec.device
        return self.site.rows({hook: acts[hook].to(device).float() for hook in self.site.hooks})

    def encode(self, acts: Mapping[str, Float[Tensor, "n_rows _"]]) -> SparseCode:
        """Encode raw activations `[n_rows, d]` by hook, using those of `site.hooks`. Nothing is masked."""
        return self.sae.encode(self.rows(acts).x, refine=self.refine)

    @cached_property
    def config(self) -> Config:
        """The run's training config.

        Raises:
            SaescopeError: the run's config.yaml is missing or unreadable.
        """
        return configs.read(self.folder / "config.yaml")[0]

    # -- text ---------------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Model:
        """The language model.

        Raises:
            SaescopeError: the SAE has no model, or it can't be loaded here or differs from the one that the SAE was
                trained on.
        """
        config, _ = self.model_facts()
        model = kept_model(config["name"], config.get("device", "auto"), config.get("dtype", "float32"))
        self.check_model(model)
        return model

    @property
    def module(self) -> HookedModule:
        """The user's own module, for a run whose corpus is `module:PACKAGE.FUNCTION`.

        Raises:
            SaescopeError: the run has another corpus, or the module can't be loaded here or differs from the one that the
                SAE was trained on.
        """
        if (source := self.config.corpus.module) is None:
            raise SaescopeError(f"{self.folder.name} was not trained on a module of your own (corpus.sources=module:…).")
        with LOCK:
            module = _module(source, self.config.corpus.n_tokens // self.config.corpus.n_ctx)
        then = self.sae.provenance.get("made_from", {}).get("model", {})
        if (changed := first_difference(then, module.identity)) is not None:
            raise SaescopeError(
                f"{source} is not what {self.folder.name} was trained on: its {changed}; restore its weights and inputs."
            )
        return module

    @property
    def vocabulary(self) -> Vocabulary:
        """The bytes of the model's tokens. Raises as `model`."""
        return _vocabulary(self.model)

    def check_model(self, model: Model) -> None:
        """Check that a model is the one that the SAE was trained on; precision may differ.

        Raises:
            SaescopeError: it has different weights, or the training's model is unknown.
        """
        then, now = self.model_facts()[1], model.identity
        for key in sorted({*then, *now} - {"dtype"}):
            if then.get(key) != now.get(key):
                raise SaescopeError(
                    f"{model.name} is not the model that {self.folder.name} was trained on: its {key} is {now.get(key)!r}, "
                    f"was {then.get(key)!r}; use the original model."
                )

    def model_facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The language model's config (name, device, dtype) and its identity (`Model.identity`).

        Raises:
            SaescopeError: the SAE has no model.
        """
        facts = self.sae.provenance
        config, identity = facts.get("config", {}).get("model") or {}, facts.get("made_from", {}).get("model")
        if identity is None or not config.get("name"):
            raise SaescopeError(
                f"{self.folder.name} was trained on activations without a language model, so it can't encode text."
            )
        return config, identity

    def tokens(self, text: str, limit: int = MAX_TOKENS) -> Int[Tensor, " n"]:
        """Tokenise a text as in training: BOS first if the model uses it; special tokens in the text are treated as text.

        Raises:
            SaescopeError: the text is empty or has more than `limit` tokens; or as `model`.
        """
        model = self.model
        ids = model.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        ids = [model.bos_id, *ids] if model.prepend_bos else list(ids)
        if not ids or not text:
            raise SaescopeError("The text is empty; enter some.")
        limit = min(limit, model.n_ctx_max)
        if len(ids) > limit:
            raise SaescopeError(f"The text has {len(ids):,} tokens; the limit is {limit:,}, so shorten it.")
        return torch.tensor(ids, dtype=torch.long)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token; a character made of several tokens is placed at the first."""
        return self.vocabulary.pieces(list(tokens))

    def special(self, tokens: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Mask of special tokens such as BOS, which are never trained on."""
        return torch.isin(tokens, torch.tensor(sorted(self.model.special_ids), dtype=torch.long))

    def kept(self, tokens: Int[Tensor, " n"], acts: Mapping[str, Float[Tensor, "n _"]]) -> Bool[Tensor, " n"]:
        """Mask of tokens that training would keep: not special, and within the norm limit at every mask hook."""
        kept = ~self.special(tokens)
        for hook, limit in self.limits.items():
            kept &= acts[hook].float().norm(dim=1).cpu() <= limit
        return kept

    @torch.no_grad()
    def code_of_tokens(self, tokens: Int[Tensor, " n"]) -> Coded:
        """Encode one token sequence with one forward pass of the model. Raises as `model`."""
        hooks = list(dict.fromkeys((*self.site.hooks, *self.limits)))
        with LOCK:
            acts = {hook: rows[0] for hook, rows in self.model.activations(tokens[None], hooks).items()}
            kept = self.kept(tokens, acts)
            code = self.encode({hook: rows[kept.to(rows.device)] for hook, rows in acts.items()}).csr()
        rows = kept.nonzero().squeeze(-1)[code.rows().cpu()]
        return Coded(from_pairs(rows, code.feature.cpu(), code.value.cpu(), len(tokens), code.d_sae), kept)


def open_trained(run: str | Path, *, device: str | torch.device = "cpu", refine: int = 0) -> TrainedSAE:
    """Open the SAE of a run, without loading the model. A process caches the last few.

    Args:
        run: the run's folder.
        device: device of the SAE; the model has its own.
        refine: number of refinement steps for codes (`SAE.encode`).

    Raises:
        SaescopeError: there is no trained SAE, it doesn't record its site, or its codes can't be refined.
    """
    folder = user_path(run)
    if not (folder / "config.yaml").is_file() and not (folder / "final").is_dir():
        raise SaescopeError(f"{folder} is not a run: it has no config.yaml and no final/; try runs/quickstart.")
    manifest = folder / "final" / store.MANIFEST
    key = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""
    with LOCK:
        sae = _sae(folder.resolve(), key, str(device))
    if "site" not in sae.provenance:
        raise SaescopeError(f"{manifest} names no site, so it is unknown which activations the SAE reads; retrain it.")
    if refine and (reason := sae.unrefinable()):
        raise SaescopeError(f"{folder}: refine = {refine}: {reason}")
    site = Site.model_validate(sae.provenance["site"])
    return TrainedSAE(folder, sae, site, _limits(folder, sae.provenance), refine)


@lru_cache(maxsize=4)
def _sae(run: Path, key: str, device: str) -> SAE:  # noqa: ARG001 (a retrained run has another key)
    return store.load(run, device=device)


def kept_model(name: str, device: str = "auto", dtype: str = "float32") -> Model:
    """The language model cached by this process; arguments as for `load_model`.

    Raises:
        SaescopeError: it can't be loaded here.
    """
    with LOCK:
        return _model(name, str(resolve_device(device)), dtype)


@lru_cache(maxsize=1)
def _model(name: str, device: str, dtype: str) -> Model:
    _vocabulary.cache_clear()  # it holds a reference to the previous model
    try:
        return load_model(name, device=device, dtype=dtype)
    except SaescopeError as error:
        raise SaescopeError(f"This needs the language model, which is not on this machine: {error}") from error


@lru_cache(maxsize=1)
def _module(source: str, n_inputs: int) -> HookedModule:
    return load_module(source, device=resolve_device("auto"), n_inputs=n_inputs)


@lru_cache(maxsize=1)
def _vocabulary(model: Model) -> Vocabulary:
    return Vocabulary(token_bytes(model.tokenizer))


def _limits(run: Path, provenance: dict[str, Any]) -> dict[str, float]:
    """Norm limits from the run's calibration, as recorded with the SAE or, for older runs, in an index."""
    if "mask" in provenance:
        return {hook: float(limit) for hook, limit in provenance["mask"]["limits"].items()}
    for path in sorted((run / "index").glob("*/manifest.json")):
        rows = read_json(path).get("made_from", {}).get("rows", {})
        # an index over another corpus may have that corpus's limits
        if rows.get("made_from") == provenance.get("made_from"):
            return {hook: float(limit) for hook, limit in rows.get("mask", {}).get("limits", {}).items()}
    return {}
