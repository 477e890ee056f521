"""Open the rows of `acts:DIR`: the user's own files, or a Saescope cache with its documents and split."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sae.errors import SaescopeError
from sae.io.paths import user_path
from training.activations.cache import CacheSource
from training.activations.folder import ActsDir
from training.activations.row_sequences import read_row_facts, row_tokens
from training.activations.sources import ActsSource, Source
from training.config.schema import Config
from training.corpus.tokens import Tokens, open_tokens, read_manifest
from training.storage.mirror import fetch_tokens, mirror_of, store_of
from training.storage.remote import RemoteStore, is_url


def is_cache(path: str | Path) -> bool:
    """Whether a folder is a Saescope cache of activations; a URL must be one.

    Raises:
        SaescopeError: a URL without a cache.
    """
    place = place_of(path)
    if isinstance(store := store_of(place), RemoteStore) and not (place / "manifest.json").is_file():
        raise SaescopeError(
            f"{store.place()} is not a cache (it has no manifest.json); your own arrays can only be read from disk."
        )
    return (place / "manifest.json").is_file() and (isinstance(store, RemoteStore) or (place / "acts").is_dir())


def place_of(path: str | Path) -> Path:
    """The local path of a folder; for a cache in an object store, its mirror."""
    if not is_url(str(path)):
        return user_path(path)
    folder = mirror_of(str(path))
    fetch_tokens(folder)
    return folder


def hooks_of(path: str | Path) -> list[str]:
    """The hooks with rows in a folder.

    Raises:
        SaescopeError: a folder without rows.
    """
    if not is_cache(path):
        return list(ActsDir(path).hooks)
    store = store_of(place_of(path))
    return [hook for hook in sorted(store.folders("acts")) if store.exists(f"acts/{hook}/manifest.json")]


def identity_of(path: str | Path) -> dict[str, Any]:
    """The `made_from` entry for the rows of a folder; reads everything once, for a cache only its manifest."""
    return read_manifest(place_of(path), "made_from")["made_from"] if is_cache(path) else {"acts": ActsDir(path).identity}


def open_own_rows(config: Config, hooks: tuple[str, ...]) -> tuple[Source, Tokens]:
    """Open the rows of these hooks and their sequences.

    Raises:
        SaescopeError: no such folder or hook, or a split that doesn't fit the rows.
    """
    path = config.corpus.acts_dir
    assert path is not None
    acts = None if is_cache(path) else ActsDir(path)
    there = hooks_of(path) if acts is None else list(acts.hooks)
    if missing := [hook for hook in hooks if hook not in there]:
        raise SaescopeError(f"{path} has no hook {missing[0]!r}, only {', '.join(there)}; set site.input.")
    if acts is not None:
        return ActsSource(acts), row_tokens(config, acts.n_rows, acts.identity, read_row_facts(config.corpus, acts.n_rows))
    if config.corpus.documents or config.corpus.held_out_rows:
        raise SaescopeError(f"{path} is a cache, which has its own documents and split; remove corpus.documents and "
                            "corpus.held_out_rows.")
    tokens = open_tokens(place_of(path))
    if config.corpus.n_ctx != tokens.n_ctx:
        raise SaescopeError(f"{path} has sequences of {tokens.n_ctx} tokens; set corpus.n_ctx={tokens.n_ctx}.")
    # token ids are meaningless without the model
    return CacheSource(place_of(path), hooks), replace(tokens, tokens=None)
