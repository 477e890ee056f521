"""Load networks and tokenizers from a directory, or from the Hugging Face hub and its local cache."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sae.errors import SaescopeError, first_line
from training.model import hub
from training.model.packaged import PACKAGED, sha256_of

OFFLINE_MODELS: tuple[str, ...] = (*PACKAGED, "native:tiny", "local:DIR")


def from_pretrained(source: str, dtype: torch.dtype, **options: Any) -> tuple[nn.Module, Any]:
    """Load network and tokenizer with Hugging Face's default attention, except where that would change the model.

    Gemma 2 soft-caps its attention scores, which fused kernels ignore.

    Raises:
        SaescopeError: files are missing or damaged, or the weights don't match config.json. The message gives the reason
            but not the model's name; transformers' own error is its cause.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    # never run code that comes with a model, and don't prompt for it
    options["trust_remote_code"] = False
    model_class: Any = AutoModelForCausalLM  # its stubs lack output_loading_info
    try:
        config = AutoConfig.from_pretrained(source, **options)
        attention = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
        network, found = model_class.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **attention, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # transformers raises all kinds of errors for damaged files
        told = type(error) in (OSError, ValueError, RuntimeError, ImportError)
        raise SaescopeError(first_line(error) if told else f"{type(error).__name__}: {first_line(error)}") from error
    if not tokenizer("a", add_special_tokens=False).input_ids:
        raise SaescopeError("its tokenizer returns no tokens for a text: are the tokenizer's files there?")
    if differs := _difference(network, found):
        raise SaescopeError(f"the weights don't match config.json: {differs}")
    return network.eval(), tokenizer


def _difference(network: nn.Module, found: dict[str, Any]) -> str | None:
    """The first tensor that transformers would leave random, or drop with its whole block; None if all match.

    Other unused tensors are common and harmless: buffers of older versions, a vision tower.
    """
    for name, there, wanted in sorted(found["mismatched_keys"]):
        return f"{name} has shape {list(there)}, but {list(wanted)} in the config"
    if missing := sorted(found["missing_keys"]):
        return f"{missing[0]} is missing" + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
    lists = {path: len(module) for path, module in network.named_modules() if isinstance(module, nn.ModuleList)}
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    for name in sorted(found["unexpected_keys"]):
        for match in re.finditer(r"\.(\d+)\.", name):
            path = name[: match.start()]
            n = lists.get(path, lists.get(prefix + path))
            if n is not None and int(match[1]) >= n:
                return f"the weights have {name}, but the config has only {n} of {path}"
    return None


def from_local(directory: Path, dtype: torch.dtype) -> tuple[dict[str, Any], nn.Module, Any]:
    """Load a transformers directory: identity (by the weights' content), network, tokenizer.

    Raises:
        SaescopeError: there is none, or transformers cannot load it.
    """
    if not (directory / "config.json").is_file():
        raise SaescopeError(
            f"There is no model in {directory} (no config.json): local: needs a transformers directory with config.json, "
            "weights and tokenizer."
        )
    weights = sorted([*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")])
    stamp = tuple((str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in weights)
    try:
        network, tokenizer = from_pretrained(str(directory), dtype, local_files_only=True)
    except SaescopeError as error:
        raise SaescopeError(f"transformers cannot load a language model from {directory} ({error}).") from None
    return {"name": "local", "sha256": _sha256_cached(stamp)}, network, tokenizer


def from_packaged(directory: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Load network and tokenizer of a packaged model from its `packaged_dir`.

    Raises:
        SaescopeError: the directory is damaged.
    """
    try:
        return from_pretrained(str(directory), dtype, local_files_only=True)
    except SaescopeError as error:
        raise SaescopeError(f"{directory} is damaged ({error}); remove that folder to download it again.") from None


@lru_cache(maxsize=16)
def _sha256_cached(stamp: tuple[tuple[str, int, int], ...]) -> str:
    """The sha256 of weight files, cached per process by path, size and modification time."""
    return sha256_of([Path(path) for path, _, _ in stamp])


def from_hub(name: str, repo: str, dtype: torch.dtype) -> tuple[dict[str, Any], nn.Module, Any]:
    """Load a model from the hub: query the commit once, with a short timeout; if that fails, use the local hub cache."""
    repo, _, revision = repo.partition("@")
    commit, reason = hub.ask(lambda api: api.model_info(repo, revision=revision or None, timeout=hub.TIMEOUT_S).sha)
    wanted = commit or revision or "main"
    try:
        network, tokenizer = from_pretrained(repo, dtype, revision=wanted, local_files_only=commit is None)
    except SaescopeError as error:
        # a model missing from the cache raises OSError; for damaged files the hub's silence isn't the reason
        why = reason if reason and isinstance(error.__cause__, OSError) else error
        raise SaescopeError(
            f"The model {name} cannot be loaded from the Hugging Face hub ({why}); "
            f"models that need no hub: {', '.join(OFFLINE_MODELS)}."
        ) from None
    return {"name": f"hub:{repo}", "revision": commit or _cached_commit(repo, wanted)}, network, tokenizer


def _cached_commit(repo: str, revision: str) -> str:
    """The commit hash of a revision in the hub's local cache: the name of its snapshot directory."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    assert isinstance(config, str)
    return Path(config).parent.name
