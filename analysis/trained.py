"""A trained SAE opened for work on text: its SAE, site, mask and language model in one handle.

Whatever encodes activations in this package does it through a `TrainedSAE`, so that all of it reads the rows that the SAE
was trained on. Models are large and threads of a server many, so a process keeps one model and a few SAEs, loaded when
first needed, and everything that runs them holds one lock.
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
"""Held by whatever runs a model here."""
MAX_TOKENS = 512
"""Tokens of a prompt; a page is to answer within seconds on a laptop."""


class Coded(NamedTuple):
    """The code of a text; row i is token i, and rows that training would drop are empty."""

    code: SparseCode
    kept: Bool[Tensor, " n_tokens"]


@dataclass(frozen=True)
class TrainedSAE:
    """An SAE with what it takes to use it on text. `open_trained` makes one from a run."""

    folder: Path
    """Of the run."""
    sae: SAE
    site: Site
    limits: Mapping[str, float] = field(default_factory=dict)
    """The largest norm that training kept at each mask hook; empty where the run does not say."""
    refine: int = 0
    """Steps by which codes are refined (`SAE.encode`)."""

    # -- activations --------------------------------------------------------------------------------------------------

    def rows(self, acts: Mapping[str, Float[Tensor, "n_rows _"]]) -> SiteRows:
        """x and target of raw activations by hook, in fp32 on the SAE's device."""
        device = self.sae.W_dec.device
        return self.site.rows({hook: acts[hook].to(device).float() for hook in self.site.hooks})

    def encode(self, acts: Mapping[str, Float[Tensor, "n_rows _"]]) -> SparseCode:
        """The code of raw activations `[n_rows, d]` by hook; those of `site.hooks` are read. Nothing is masked."""
        return self.sae.encode(self.rows(acts).x, refine=self.refine)

    @cached_property
    def config(self) -> Config:
        """What the run was trained with.

        Raises:
            SaescopeError: the run has no config.yaml, or one that cannot be read.
        """
        return configs.read(self.folder / "config.yaml")[0]

    # -- text ---------------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Model:
        """The language model.

        Raises:
            SaescopeError: the SAE came without one, or it cannot be had here or is no longer the one whose activations
                the SAE was trained on.
        """
        config, _ = self.model_facts()
        model = kept_model(config["name"], config.get("device", "auto"), config.get("dtype", "float32"))
        self.check_model(model)
        return model

    @property
    def module(self) -> HookedModule:
        """The user's own module, of a run whose corpus is `module:PACKAGE.FUNCTION`.

        Raises:
            SaescopeError: the run has another corpus, or the module cannot be had here or is no longer the one whose
                activations the SAE was trained on.
        """
        if (source := self.config.corpus.module) is None:
            raise SaescopeError(f"{self.folder.name} was not trained on a module of your own (corpus.sources=module:…).")
        with LOCK:
            module = _module(source, self.config.corpus.n_tokens // self.config.corpus.n_ctx)
        then = self.sae.provenance.get("made_from", {}).get("model", {})
        if (changed := first_difference(then, module.identity)) is not None:
            raise SaescopeError(
                f"{source} is not what {self.folder.name} was trained on: its {changed}; bring its weights and inputs back."
            )
        return module

    @property
    def vocabulary(self) -> Vocabulary:
        """The bytes of the model's tokens. Raises as `model`."""
        return _vocabulary(self.model)

    def check_model(self, model: Model) -> None:
        """Check that a model is the one whose activations the SAE was trained on; precision may differ.

        Raises:
            SaescopeError: it has other weights, or nobody knows which model it was.
        """
        then, now = self.model_facts()[1], model.identity
        for key in sorted({*then, *now} - {"dtype"}):
            if then.get(key) != now.get(key):
                raise SaescopeError(
                    f"{model.name} is not the model that {self.folder.name} was trained on: its {key} is {now.get(key)!r}, "
                    f"was {then.get(key)!r}; bring that one back."
                )

    def model_facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """How the language model was asked for (name, device, dtype), and its identity (`Model.identity`).

        Raises:
            SaescopeError: the SAE came without one.
        """
        facts = self.sae.provenance
        config, identity = facts.get("config", {}).get("model") or {}, facts.get("made_from", {}).get("model")
        if identity is None or not config.get("name"):
            raise SaescopeError(
                f"{self.folder.name} was trained on activations that came without a language model: it reads no text."
            )
        return config, identity

    def tokens(self, text: str, limit: int = MAX_TOKENS) -> Int[Tensor, " n"]:
        """The tokens of a text as in training: BOS first where the model has it, and no spelt-out special tokens.

        Raises:
            SaescopeError: no text, or more than `limit` tokens; or as `model`.
        """
        model = self.model
        ids = model.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        ids = [model.bos_id, *ids] if model.prepend_bos else list(ids)
        if not ids or not text:
            raise SaescopeError("The text is empty; type some.")
        limit = min(limit, model.n_ctx_max)
        if len(ids) > limit:
            raise SaescopeError(f"The text has {len(ids):,} tokens; at most {limit:,} are read at once, so shorten it.")
        return torch.tensor(ids, dtype=torch.long)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token; a character of several tokens stands at its first."""
        return self.vocabulary.pieces(list(tokens))

    def special(self, tokens: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Which tokens no SAE was trained on whatever their activations: BOS and other special ones."""
        return torch.isin(tokens, torch.tensor(sorted(self.model.special_ids), dtype=torch.long))

    def kept(self, tokens: Int[Tensor, " n"], acts: Mapping[str, Float[Tensor, "n _"]]) -> Bool[Tensor, " n"]:
        """Which tokens training would keep: not special, and no norm beyond its limit at any mask hook."""
        kept = ~self.special(tokens)
        for hook, limit in self.limits.items():
            kept &= acts[hook].float().norm(dim=1).cpu() <= limit
        return kept

    @torch.no_grad()
    def code_of_tokens(self, tokens: Int[Tensor, " n"]) -> Coded:
        """The code of one sequence of tokens, by one run of the model. Raises as `model`."""
        hooks = list(dict.fromkeys((*self.site.hooks, *self.limits)))
        with LOCK:
            acts = {hook: rows[0] for hook, rows in self.model.activations(tokens[None], hooks).items()}
            kept = self.kept(tokens, acts)
            code = self.encode({hook: rows[kept.to(rows.device)] for hook, rows in acts.items()}).csr()
        rows = kept.nonzero().squeeze(-1)[code.rows().cpu()]
        return Coded(from_pairs(rows, code.feature.cpu(), code.value.cpu(), len(tokens), code.d_sae), kept)


def open_trained(run: str | Path, *, device: str | torch.device = "cpu", refine: int = 0) -> TrainedSAE:
    """The SAE of a run; no model is loaded yet. A process keeps the last few.

    Args:
        run: its folder.
        device: where the SAE is to lie; the model has its own.
        refine: steps by which its codes are refined (`SAE.encode`).

    Raises:
        SaescopeError: no trained SAE there, or one that does not say at which site it was trained; or codes of it cannot
            be refined.
    """
    folder = user_path(run)
    if not (folder / "config.yaml").is_file() and not (folder / "final").is_dir():
        raise SaescopeError(f"{folder} is no run: it has neither config.yaml nor final/; give one such as runs/quickstart.")
    manifest = folder / "final" / store.MANIFEST
    key = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""
    with LOCK:
        sae = _sae(folder.resolve(), key, str(device))
    if "site" not in sae.provenance:
        raise SaescopeError(f"{manifest} names no site, so nobody knows which activations the SAE reads; train it again.")
    if refine and (reason := sae.unrefinable()):
        raise SaescopeError(f"{folder}: refine = {refine}: {reason}")
    site = Site.model_validate(sae.provenance["site"])
    return TrainedSAE(folder, sae, site, _limits(folder, sae.provenance), refine)


@lru_cache(maxsize=4)
def _sae(run: Path, key: str, device: str) -> SAE:  # noqa: ARG001 (the key makes a run that was trained anew another one)
    return store.load(run, device=device)


def kept_model(name: str, device: str = "auto", dtype: str = "float32") -> Model:
    """The one language model that this process keeps; arguments as of `load_model`.

    Raises:
        SaescopeError: it cannot be had here.
    """
    with LOCK:
        return _model(name, str(resolve_device(device)), dtype)


@lru_cache(maxsize=1)
def _model(name: str, device: str, dtype: str) -> Model:
    _vocabulary.cache_clear()  # which holds on to the model before
    try:
        return load_model(name, device=device, dtype=dtype)
    except SaescopeError as error:
        raise SaescopeError(f"The language model is needed for this and is not on this machine: {error}") from error


@lru_cache(maxsize=1)
def _module(source: str, n_inputs: int) -> HookedModule:
    return load_module(source, device=resolve_device("auto"), n_inputs=n_inputs)


@lru_cache(maxsize=1)
def _vocabulary(model: Model) -> Vocabulary:
    return Vocabulary(token_bytes(model.tokenizer))


def _limits(run: Path, provenance: dict[str, Any]) -> dict[str, float]:
    """The norms that the run's own calibration set, as the SAE says; of runs before it did, as an index has them."""
    if "mask" in provenance:
        return {hook: float(limit) for hook, limit in provenance["mask"]["limits"].items()}
    for path in sorted((run / "index").glob("*/manifest.json")):
        rows = read_json(path).get("made_from", {}).get("rows", {})
        # an index over another text may have limits of that text
        if rows.get("made_from") == provenance.get("made_from"):
            return {hook: float(limit) for hook, limit in rows.get("mask", {}).get("limits", {}).items()}
    return {}
