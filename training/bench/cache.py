"""Benchmark reading batches from a cache against a plain copy of the same bytes: interleaved, in one process."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.activations.batches import Address, Batches
from training.activations.cache import CacheSource, fill
from training.activations.calibration import KeepMask
from training.config.schema import DataConfig
from training.corpus.tokens import Tokens, write_tokens

HOOK = "acts"


def synthetic_cache(folder: Path, *, n_seqs: int, n_ctx: int, d_in: int, seed: int = 0) -> tuple[Tokens, CacheSource]:
    """A finished cache of random bf16 rows, every twentieth sequence held out."""
    held_out = np.arange(n_seqs) % 20 == 19
    eligible = np.ones((n_seqs, n_ctx), dtype=bool)
    ids = np.zeros((n_seqs, n_ctx), dtype=np.int32)
    tokens = write_tokens(folder, ids, held_out, eligible, np.zeros((0, 3), dtype=np.int64), [], {"synthetic": seed})
    generator = torch.Generator().manual_seed(seed)

    def compute(seqs: np.ndarray) -> dict[str, torch.Tensor]:
        return {HOOK: torch.randn(len(seqs), n_ctx, d_in, generator=generator).bfloat16()}

    fill(tokens, compute, {HOOK: d_in}, dtype="bfloat16", shard_rows=65_536)
    return tokens, CacheSource(folder, [HOOK])


def bench_cache(
    *, n_rows: int = 262_144, d_in: int = 576, n_ctx: int = 256, batch_rows: int = 4096, block_rows: int = 32,
    superblock_rows: int = 65_536, repeats: int = 7,
) -> dict[str, Any]:
    """Compare shuffled batches (read, mask, permute, cut; no prefetch) with a memcpy of the same number of bytes.

    Both use data that is warm in the page cache. The copy reads and writes each byte once, the minimum for any shuffle.
    """
    with tempfile.TemporaryDirectory() as root:
        tokens, source = synthetic_cache(Path(root) / "cache", n_seqs=n_rows // n_ctx, n_ctx=n_ctx, d_in=d_in)
        mask = KeepMask(source, tokens, DataConfig(mask_hooks=(HOOK,)))
        batches = Batches(
            source, tokens, mask, [HOOK], seed=0, batch_rows=batch_rows, superblock_rows=superblock_rows,
            block_rows=block_rows,
        )
        n_batches = sum(len(batches.superblock(0, s).rows) // batch_rows for s in range(batches.n_superblocks))
        plain = torch.zeros(n_batches * batch_rows, d_in, dtype=torch.bfloat16)
        target = torch.zeros_like(plain)
        ours: list[float] = []
        copies: list[float] = []
        for _ in range(repeats):
            began = time.perf_counter()
            stream = batches.stream(Address(0, 0, 0), prefetch=0)
            for _ in range(n_batches):
                next(stream)
            stream.close()
            ours.append(n_batches / (time.perf_counter() - began))
            began = time.perf_counter()
            target.copy_(plain)
            copies.append(n_batches / (time.perf_counter() - began))
    return {
        "n_rows": n_rows, "d_in": d_in, "batch_rows": batch_rows, "block_rows": block_rows,
        "superblock_rows": superblock_rows, "n_batches": n_batches,
        "batches_per_s": statistics.median(ours), "batches_per_s_range": [min(ours), max(ours)],
        "rows_per_s": statistics.median(ours) * batch_rows,
        "memcpy_batches_per_s": statistics.median(copies), "memcpy_batches_per_s_range": [min(copies), max(copies)],
        "ratio": statistics.median(a / b for a, b in zip(ours, copies, strict=True)),
    }
