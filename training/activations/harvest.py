"""From a config to a source of activation rows: load the model, make the tokens, fill or open the cache."""

from dataclasses import dataclass

import torch

from sae.errors import SaescopeError
from training.activations.cache import CacheSource, fill, missing_hooks
from training.activations.folder import ActsDir
from training.activations.row_sequences import acts_tokens, synthetic_tokens
from training.activations.sources import ActsSource, ModelSource, Source
from training.activations.synthetic import HOOK, Synthetic
from training.config.schema import Config
from training.corpus.tokens import Tokens, make_tokens
from training.display import Display
from training.model.language_model import Model
from training.model.load import load_model


@dataclass(frozen=True)
class Data:
    """Rows of activations, the sequences they belong to, and the model, if there is one."""

    source: Source
    tokens: Tokens
    model: Model | None


def open_data(config: Config, hooks: tuple[str, ...], display: Display, model: Model | None = None) -> Data:
    """Whatever it takes to read rows of these hooks; `model` is the config's, if it is loaded already.

    Raises:
        SaescopeError: a model, corpus, hook or cache that is not there or does not fit.
    """
    if config.corpus.synthetic is not None:
        if set(hooks) != {HOOK}:
            raise SaescopeError(f"corpus.synthetic has one hook, {HOOK}; this config asks for {', '.join(hooks)}.")
        return Data(Synthetic(config.corpus.synthetic), synthetic_tokens(config), None)
    if config.corpus.acts_dir is not None:
        acts = ActsDir(config.corpus.acts_dir)
        source = ActsSource(acts)
        for hook in hooks:
            if hook not in source.widths:
                raise SaescopeError(f"{acts.path} has no hook {hook!r}; it has {', '.join(source.widths)}: set site.input.")
        return Data(source, acts_tokens(config, acts), None)
    assert config.model is not None
    if model is None:
        model = load_model(config.model.name, device=config.model.device, dtype=config.model.dtype)
    for hook in hooks:
        model.d_hook(hook)
    tokens = make_tokens(config, model)
    if config.cache.mode == "stream":
        return Data(_model_source(config, model, tokens, hooks), tokens, model)
    assert tokens.folder is not None
    make_cache(config, model, tokens, hooks, display)
    return Data(CacheSource(tokens.folder, hooks, say=display.say), tokens, model)


def make_cache(config: Config, model: Model, tokens: Tokens, hooks: tuple[str, ...], display: Display) -> None:
    """Write the activations that are not there yet, all hooks in one pass of the model."""
    assert tokens.folder is not None
    missing = missing_hooks(tokens.folder, hooks)
    if not missing:
        return
    source = _model_source(config, model, tokens, tuple(missing))
    with display.task("caching activations", tokens.n_seqs * tokens.n_ctx) as task, torch.no_grad():
        fill(
            tokens, source.compute, source.widths, dtype=config.cache.dtype, shard_rows=config.cache.shard_rows,
            say=display.say, advance=task.advance, skip=task.skip,
        )


def _model_source(config: Config, model: Model, tokens: Tokens, hooks: tuple[str, ...]) -> ModelSource:
    assert config.model is not None
    return ModelSource(model, tokens, hooks, dtype=config.cache.dtype, batch_seqs=config.model.batch_seqs)
