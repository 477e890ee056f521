"""The number of sequences per forward pass of the model.

bf16 matmuls round differently for other batch sizes, so the size is part of what determines the rows. The size measured for
`model.batch_seqs: auto` is stored with the tokens, in `cache/NAME/batch_seqs.json`, and used by all later passes.
"""

import os
from collections.abc import Sequence

import torch

from sae.errors import SaescopeError
from sae.io.files import json_bytes, parsed
from training.config.schema import Config
from training.corpus.tokens import Tokens
from training.memory import available
from training.model.language_model import Model
from training.storage.mirror import store_of
from training.storage.store import LocalStore

ON_HOST = 16
LARGEST_FORWARD = 65_536
"""Tokens; larger batches aren't faster on a GPU."""
_FILE = "batch_seqs.json"
_SHARE = 0.5
"""Fraction of the device's free memory to use; the rest is for superblocks and the SAE, which may share the device."""


def batch_seqs(config: Config, model: Model, tokens: Tokens, hooks: Sequence[str]) -> int:
    """`model.batch_seqs`; for auto, the size stored with these tokens, or else measured now.

    Raises:
        SaescopeError: the stored size cannot be read.
    """
    assert config.model is not None
    asked = config.model.batch_seqs
    if asked != "auto":
        return asked
    if model.device.type != "cuda":
        return ON_HOST
    store = None if tokens.folder is None else store_of(tokens.folder)
    if store is not None and (kept := store.read(_FILE)) is not None:
        return _number(kept, store.place(_FILE))
    found = even(fitting(model, tokens.n_ctx, hooks), max(1, config.cache.shard_rows // tokens.n_ctx))
    if store is None or (isinstance(store, LocalStore) and not os.access(store.folder, os.W_OK)):
        return found
    data = json_bytes({"batch_seqs": found, "device": torch.cuda.get_device_name(model.device)})
    if not store.create(_FILE, data):  # another process was faster, and all must use the same size
        return _number(store.read(_FILE) or b"", store.place(_FILE))
    return found


def _number(kept: bytes, place: str) -> int:
    found = parsed(kept, place).get("batch_seqs")
    if not isinstance(found, int) or found < 1:
        raise SaescopeError(f"{place} doesn't contain a number of sequences; remove it to measure it again.")
    return found


def fitting(model: Model, n_ctx: int, hooks: Sequence[str]) -> int:
    """Sequences per pass that fit in the device's memory: a power of two."""
    tried = torch.zeros(4, n_ctx, dtype=torch.long, device=model.device)
    model.activations(tried, hooks)  # libraries allocate their own memory on first use
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    model.activations(tried, hooks)
    each = (torch.cuda.max_memory_allocated(model.device) - before) / len(tried)
    room = _SHARE * available(model.device) / max(1.0, each)
    return 1 << max(1, int(min(room, LARGEST_FORWARD / n_ctx))).bit_length() - 1


def even(most: int, n_seqs: int) -> int:
    """Sequences per pass that split a shard's `n_seqs` evenly into as few passes of at most `most` as possible."""
    return -(-n_seqs // -(-n_seqs // most))
