"""Open the activations for a config: load the model, tokenise, fill or open the cache."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from sae.devices import resolve_device
from sae.errors import SaescopeError
from training.activations.batch_seqs import batch_seqs
from training.activations.cache import CacheSource, fill, missing_hooks
from training.activations.module_inputs import module_tokens, open_module
from training.activations.own_rows import open_own_rows
from training.activations.row_sequences import synthetic_tokens, what_is_split
from training.activations.sources import ModelSource, Source
from training.activations.synthetic import HOOK, Synthetic
from training.config.schema import Config
from training.corpus.heldout import heldout_tokens
from training.corpus.tokens import Tokens, make_tokens
from training.display import Display
from training.memory import require
from training.model.language_model import Model
from training.model.load import load_model
from training.model.module import HookedModule


@dataclass(frozen=True)
class Data:
    """A source of activations, the sequences they belong to, and the model, if there is one."""

    source: Source
    tokens: Tokens
    model: Model | None


def open_data(
    config: Config, hooks: tuple[str, ...], display: Display, model: Model | None = None,
    check: Callable[[dict[str, int]], None] = lambda _: None,
) -> Data:
    """Open the rows of these hooks; tokenise and fill the cache if needed.

    Args:
        config: the run's config.
        hooks: hooks to read.
        display: shows progress.
        model: the config's model, if it is already loaded.
        check: called with the row width of each hook before anything is computed; may raise an error.

    Raises:
        SaescopeError: a model, corpus, hook or cache that is missing or doesn't fit the config.
    """
    if config.corpus.synthetic is not None:
        if set(hooks) != {HOOK}:
            raise SaescopeError(f"corpus.synthetic only has the hook {HOOK}, but this config uses {', '.join(hooks)}.")
        check({HOOK: config.corpus.synthetic.d})
        n = config.corpus.synthetic.n_features
        require(8 * n * config.corpus.synthetic.d, f"directions of {n:,} synthetic features", "lower roots, branching or d")
        return Data(Synthetic(config.corpus.synthetic), synthetic_tokens(config), None)
    if config.corpus.acts_dir is not None:
        source, tokens = open_own_rows(config, hooks)
        check(source.widths)
        display.say(what_is_split(config, tokens))
        return Data(source, tokens, None)
    if config.corpus.module is not None:
        return _of_module(config, hooks, display, check)
    if not config.corpus.needs_model:
        raise SaescopeError(
            "the rows of this run were passed in from Python and not saved; pass them again (training.train_on), or save "
            "them as .npy in a folder and set corpus.sources=acts:FOLDER."
        )
    assert config.model is not None
    if model is None:
        model = load_model(config.model.name, device=config.model.device, dtype=config.model.dtype)
    check({hook: model.d_hook(hook) for hook in hooks})
    _require_tokens(config.corpus.n_tokens, "corpus.n_tokens")
    _require_tokens(_n_heldout(config) * config.corpus.n_ctx, "eval.n_rows or eval.n_tokens")
    tokens = make_tokens(config, model)
    return Data(_cached_or_live(config, model, tokens, hooks, display), tokens, model)


def _of_module(
    config: Config, hooks: tuple[str, ...], display: Display, check: Callable[[dict[str, int]], None]
) -> Data:
    """Open rows of a user's module."""
    module = open_module(config, resolve_device(config.train.device))
    check({hook: module.d_hook(hook) for hook in hooks})
    tokens = module_tokens(config, module, hooks)
    return Data(_cached_or_live(config, module, tokens, hooks, display), tokens, None)


def _cached_or_live(
    config: Config, model: Model | HookedModule, tokens: Tokens, hooks: tuple[str, ...], display: Display
) -> Source:
    if config.cache.mode == "stream":
        return _model_source(config, model, tokens, hooks)
    assert tokens.folder is not None
    make_cache(config, model, tokens, hooks, display)
    return CacheSource(tokens.folder, hooks, say=display.say)


def open_heldout(
    config: Config, data: Data, display: Display, n_rows: int = 0, model: Callable[[], Model] | None = None
) -> Data:
    """Open the held-out data for evaluation of a run trained on `data`, at the same hooks.

    For text these are separate sequences, from as many held-out documents as possible (`training.corpus.heldout`); for rows
    without text they are the held-out rows of `data`.

    Args:
        config: the run's config.
        data: the training data.
        display: shows progress if activations must be computed.
        n_rows: minimum number of rows, masked ones included, if more are needed than the config's evaluation uses.
        model: loads the model if `data` has none and something must be computed.
    """
    if data.tokens.tokens is None:
        return replace(data, tokens=data.tokens.side(held_out=True))
    n_seqs = _n_heldout(config, n_rows)
    _require_tokens(n_seqs * data.tokens.n_ctx, "the number of held-out rows")
    load = model or partial(_given, data)
    tokens, hooks = heldout_tokens(config, load, data.tokens, n_seqs), tuple(data.source.widths)
    if config.cache.mode == "stream":
        return Data(_model_source(config, load(), tokens, hooks), tokens, data.model)
    assert tokens.folder is not None
    if missing_hooks(tokens.folder, hooks):
        make_cache(config, load(), tokens, hooks, display)
    return Data(CacheSource(tokens.folder, hooks, say=display.say), tokens, data.model)


def _n_heldout(config: Config, n_rows: int = 0) -> int:
    """Number of sequences to evaluate on."""
    n_ctx = config.corpus.n_ctx
    return max(-(-max(n_rows, config.eval.n_rows) // n_ctx), -(-config.eval.n_tokens // (n_ctx - 1)))


def _require_tokens(n_tokens: int, lower: str) -> None:
    """Check that the tokens fit in memory: four bytes each, plus one for the eligibility mask."""
    require(5 * n_tokens, f"{n_tokens:,} tokens", f"lower {lower}")


def _given(data: Data) -> Model:
    assert data.model is not None, "rows of text need their model"
    return data.model


def make_cache(
    config: Config, model: Model | HookedModule, tokens: Tokens, hooks: tuple[str, ...], display: Display
) -> None:
    """Compute and cache the missing activations of these tokens, all hooks in one pass of the model."""
    assert tokens.folder is not None
    missing = missing_hooks(tokens.folder, hooks)
    if not missing:
        return
    source = _model_source(config, model, tokens, tuple(missing))
    with display.task("caching activations", tokens.n_seqs * tokens.n_ctx) as task, torch.no_grad():
        fill(
            tokens, source.compute, source.widths, dtype=config.cache.dtype, shard_rows=config.cache.shard_rows,
            made_by=_made_by(source), say=display.say, advance=task.advance, skip=task.skip,
        )


def _made_by(source: ModelSource) -> dict[str, Any]:
    """Settings and versions that affect the rounding of activations."""
    device = source.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type, "batch_seqs": source.group,
        **{package: importlib.metadata.version(package) for package in ("torch", "transformers", "transformer-lens")},
    }


def _model_source(
    config: Config, model: Model | HookedModule, tokens: Tokens, hooks: tuple[str, ...]
) -> ModelSource:
    n = model.feed.batch if isinstance(model, HookedModule) else batch_seqs(config, model, tokens, hooks)
    return ModelSource(model, tokens, hooks, dtype=config.cache.dtype, batch_seqs=n)
