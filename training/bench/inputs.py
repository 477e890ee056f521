"""Inputs of the end-to-end benchmark, quickly generated: a network with random weights, text, a folder of rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.activations.cache import CacheSource
from training.model.native import byte_tokenizer
from training.model.packaged import quiet_transformers

D_VOCAB = 512
FILE_ROWS = 65_536
"""Rows per file of own rows."""


def make_model(
    folder: Path, *, d_model: int, n_layers: int, n_heads: int, d_mlp: int, n_ctx: int, dtype: torch.dtype,
    device: torch.device,
) -> nn.Module:
    """Save a Llama network with random weights and a byte tokenizer as a transformers directory.

    Returns:
        The network without its LM head.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=D_VOCAB, hidden_size=d_model, intermediate_size=d_mlp, num_hidden_layers=n_layers,
        num_attention_heads=n_heads, max_position_embeddings=n_ctx, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=1, pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        network: Any = LlamaForCausalLM(config)  # its stubs lack `to`
    with quiet_transformers():
        network.to(dtype).save_pretrained(folder)
    byte_tokenizer(D_VOCAB, n_ctx).save_pretrained(folder)
    bare: nn.Module = network.model.eval().requires_grad_(False)
    return bare


def make_text(path: Path, *, n_tokens: int, n_ctx: int) -> None:
    """Write JSON lines of random letters: documents of four sequences each, slightly more tokens than requested."""
    length = 4 * n_ctx
    letters = np.random.default_rng(0).integers(97, 123, (int(1.1 * n_tokens) // length + 64, length), dtype=np.uint8)
    with path.open("w", encoding="ascii") as file:
        file.writelines(json.dumps({"text": row.tobytes().decode("ascii")}) + "\n" for row in letters)


def make_rows(folder: Path, source: CacheSource, hook: str, *, n_rows: int, n_ctx: int) -> None:
    """Write the first rows of a cache as fp16 .npy files."""
    folder.mkdir()
    step = max(1, FILE_ROWS // n_ctx)
    for i, first in enumerate(range(0, n_rows // n_ctx, step)):
        rows = source.rows(hook, np.arange(first, min(first + step, n_rows // n_ctx)), n_ctx)
        np.save(folder / f"rows-{i:04d}.npy", rows.half().numpy())
