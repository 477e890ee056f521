"""The pass over the rows: each is encoded once, all features at once, and its code goes to disk.

    NAME.partial/plan.json       what an interrupted attempt must agree with to be continued
                 shards.json     rows and values of every whole shard; what lies behind them is forgotten
                 kept.bin counts.bin feature.bin value.bin    appended to; fp32 values, and a count for each row

Sequences are encoded in blocks of a fixed number of rows, the same ones whatever is read at a time, because matrix
products of other sizes may round differently: so neither batches nor shards can change a bit.
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64

from analysis.corpus_rows import CorpusRows
from sae.io.files import json_bytes, refusing_full_disk, write_bytes, write_json

BLOCK_ROWS = 4096
"""Rows that are encoded together, rounded down to whole sequences."""
FILES = {"kept": np.bool_, "counts": np.int32, "feature": np.int32, "value": np.float32}


class Codes(NamedTuple):
    """The code of every row, mapped from disk; rows that are not kept are empty."""

    kept: Bool[np.ndarray, " n_rows"]
    indptr: Int64[np.ndarray, " n_rows_plus_1"]
    feature: Int32[np.ndarray, " nnz"]
    value: Float32[np.ndarray, " nnz"]


def encode(
    rows: CorpusRows, work: Path, plan: dict[str, Any], *, batch_rows: int, shard_rows: int,
    advance: Callable[[int], None] = lambda _: None, skip: Callable[[int], None] = lambda _: None,
) -> Codes:
    """Encode what an earlier attempt with the same plan has not encoded yet.

    Args:
        rows: what is encoded, by the SAE they were opened with.
        work: the folder of unfinished work.
        plan: JSON-able; work that was done under another plan is thrown away.
        batch_rows: rows read and held in memory at a time.
        shard_rows: rows after which progress is made safe.
        advance: told of rows that were encoded.
        skip: told of rows that an earlier attempt had encoded.
    """
    _restart_unless(work, plan)
    n_ctx = rows.n_ctx
    block = max(1, BLOCK_ROWS // n_ctx)
    batch = block * max(1, batch_rows // (block * n_ctx))
    shard = batch * max(1, shard_rows // (batch * n_ctx))
    done = _done(work)
    skip(done["n_seqs"] * n_ctx)
    for first in range(done["n_seqs"], rows.n_seqs, shard):
        stop = min(first + shard, rows.n_seqs)
        with ExitStack() as stack:
            files = {name: stack.enter_context((work / f"{name}.bin").open("ab")) for name in FILES}
            for start in range(first, stop, batch):
                seqs = np.arange(start, min(start + batch, stop))
                for name, array in encode_batch(rows, seqs, block).items():
                    with refusing_full_disk(work):
                        files[name].write(array.tobytes())
                advance(len(seqs) * n_ctx)
            with refusing_full_disk(work):
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())
        sizes = {name: (work / f"{name}.bin").stat().st_size for name in FILES}
        write_json(work / "shards.json", {"n_seqs": stop, "sizes": sizes})
    return open_codes(work)


def encode_batch(rows: CorpusRows, seqs: Int64[np.ndarray, " n"], block: int) -> dict[str, np.ndarray]:
    """The code of some sequences, block by block."""
    acts, keep = rows.read(seqs)
    n_ctx = rows.n_ctx
    counts = torch.zeros(len(keep), dtype=torch.int32)
    features, values = [], []
    for start in range(0, len(keep), block * n_ctx):
        part = slice(start, start + block * n_ctx)
        kept = keep[part]
        if not kept.any():
            continue
        code = rows.trained.encode({hook: every[part][kept] for hook, every in acts.items()})
        assert code.indptr is not None
        counts[part][kept] = code.indptr.diff().to(torch.int32).cpu()
        features.append(code.feature.cpu().numpy())
        values.append(code.value.float().cpu().numpy())
    return {
        "kept": keep.numpy(), "counts": counts.numpy(),
        "feature": np.concatenate(features) if features else np.zeros(0, np.int32),
        "value": np.concatenate(values) if values else np.zeros(0, np.float32),
    }


def open_codes(work: Path) -> Codes:
    """What `encode` has written, mapped."""
    found = {name: _mapped(work / f"{name}.bin", dtype) for name, dtype in FILES.items()}
    indptr = np.zeros(len(found["counts"]) + 1, np.int64)
    np.cumsum(found["counts"], out=indptr[1:])
    return Codes(found["kept"], indptr, found["feature"], found["value"])


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _restart_unless(work: Path, plan: dict[str, Any]) -> None:
    """Forget work that was done under another plan."""
    path = work / "plan.json"
    if not (path.exists() and path.read_bytes() == json_bytes(plan)):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_bytes(path, json_bytes(plan))
    for name in FILES:
        (work / f"{name}.bin").touch()


def _done(work: Path) -> dict[str, Any]:
    """What is safe, everything behind it cut off; nothing, if files are shorter than they were said to be."""
    path = work / "shards.json"
    done: dict[str, Any] = {"n_seqs": 0, "sizes": dict.fromkeys(FILES, 0)}
    if path.exists():
        said = json.loads(path.read_text(encoding="utf-8"))
        if all((work / f"{name}.bin").stat().st_size >= size for name, size in said["sizes"].items()):
            done = said
    for name, size in done["sizes"].items():
        os.truncate(work / f"{name}.bin", size)
    return done
