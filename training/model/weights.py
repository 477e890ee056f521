"""Networks and tokenizers from a directory, or from the Hugging Face hub and its local cache."""

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
    """Network and tokenizer with Hugging Face's own choice of attention, except where it would be another model.

    Gemma 2 caps its attention scores, which the fused kernels leave out.

    Raises:
        SaescopeError: files are missing or damaged, or the weights are not those of the network that config.json
            describes. It says why and not of which model, and transformers' own error is its cause.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    # code that comes with a model is never run, nor asked about
    options["trust_remote_code"] = False
    model_class: Any = AutoModelForCausalLM  # its stubs know nothing of output_loading_info
    try:
        config = AutoConfig.from_pretrained(source, **options)
        attention = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
        network, found = model_class.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **attention, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # over damaged files transformers stumbles in every way there is
        told = type(error) in (OSError, ValueError, RuntimeError, ImportError)
        raise SaescopeError(first_line(error) if told else f"{type(error).__name__}: {first_line(error)}") from error
    if not tokenizer("a", add_special_tokens=False).input_ids:
        raise SaescopeError("its tokenizer makes no tokens of a text: are the tokenizer's files there?")
    if differs := _difference(network, found):
        raise SaescopeError(f"the weights do not fit config.json: {differs}")
    return network.eval(), tokenizer


def _difference(network: nn.Module, found: dict[str, Any]) -> str | None:
    """The first tensor that transformers would leave random, or leave out with its whole block; None if all fit.

    Other tensors without a place are common and harmless: buffers of older versions, a vision tower.
    """
    for name, there, wanted in sorted(found["mismatched_keys"]):
        return f"{name} has shape {list(there)} where the config makes it {list(wanted)}"
    if missing := sorted(found["missing_keys"]):
        return f"{missing[0]} is missing" + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
    lists = {path: len(module) for path, module in network.named_modules() if isinstance(module, nn.ModuleList)}
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    for name in sorted(found["unexpected_keys"]):
        for match in re.finditer(r"\.(\d+)\.", name):
            path = name[: match.start()]
            n = lists.get(path, lists.get(prefix + path))
            if n is not None and int(match[1]) >= n:
                return f"{name} is among them, but the config makes {n} of {path}"
    return None


def from_local(directory: Path, dtype: torch.dtype) -> tuple[dict[str, Any], nn.Module, Any]:
    """A transformers directory: identity by the content of its weights, network, tokenizer.

    Raises:
        SaescopeError: there is none, or transformers cannot load it.
    """
    if not (directory / "config.json").is_file():
        raise SaescopeError(
            f"There is no model in {directory} (no config.json there): local: takes a transformers directory with "
            "config.json, weights and tokenizer."
        )
    weights = sorted([*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")])
    stamp = tuple((str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in weights)
    try:
        network, tokenizer = from_pretrained(str(directory), dtype, local_files_only=True)
    except SaescopeError as error:
        raise SaescopeError(f"transformers cannot load a language model from {directory} ({error}).") from None
    return {"name": "local", "sha256": _sha256_cached(stamp)}, network, tokenizer


def from_packaged(directory: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Network and tokenizer of a packaged model, from the directory that `packaged_dir` gave.

    Raises:
        SaescopeError: it has been damaged since it was made.
    """
    try:
        return from_pretrained(str(directory), dtype, local_files_only=True)
    except SaescopeError as error:
        raise SaescopeError(f"{directory} is damaged ({error}); remove that folder, and it is made anew.") from None


@lru_cache(maxsize=16)
def _sha256_cached(stamp: tuple[tuple[str, int, int], ...]) -> str:
    """The sha256 of weight files, read once per process while path, size and time stay the same."""
    return sha256_of([Path(path) for path, _, _ in stamp])


def from_hub(name: str, repo: str, dtype: torch.dtype) -> tuple[dict[str, Any], nn.Module, Any]:
    """Ask the hub once, with a short limit, for the commit; without an answer use what is in the hub's local cache."""
    repo, _, revision = repo.partition("@")
    commit, reason = hub.ask(lambda api: api.model_info(repo, revision=revision or None, timeout=hub.TIMEOUT_S).sha)
    wanted = commit or revision or "main"
    try:
        network, tokenizer = from_pretrained(repo, dtype, revision=wanted, local_files_only=commit is None)
    except SaescopeError as error:
        # what is not in the cache raises OSError; damaged files have another reason than the hub's silence
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
