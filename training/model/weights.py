"""Networks and tokenizers from a directory, or from the Hugging Face hub and its local cache."""

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
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(source, **options)
    attention = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    network = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **attention, **options)
    return network.eval(), AutoTokenizer.from_pretrained(source, **options)


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
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise SaescopeError(f"transformers cannot load a language model from {directory} ({reason}).") from None
    return {"name": "local", "sha256": _sha256_cached(stamp)}, network, tokenizer


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
    except (OSError, ValueError, KeyError) as error:
        raise SaescopeError(
            f"The model {name} cannot be loaded from the Hugging Face hub ({reason or first_line(error)}); "
            f"models that need no hub: {', '.join(OFFLINE_MODELS)}."
        ) from None
    return {"name": f"hub:{repo}", "revision": commit or _cached_commit(repo, wanted)}, network, tokenizer


def _cached_commit(repo: str, revision: str) -> str:
    """The commit hash of a revision in the hub's local cache: the name of its snapshot directory."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    assert isinstance(config, str)
    return Path(config).parent.name
