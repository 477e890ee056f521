"""The encoding pass: encode each row once and write its code to disk.

    NAME.partial/plan.json              the settings that all encoding processes must share
                 PLAN-00000.feature …   a shard: kept flags, counts per row, features and fp32 values; PLAN is a
                                        hash of the plan, and `.kept` is written last
                 feature.bin …          all shards concatenated, once complete

Any number of processes can encode, each taking the next unclaimed shard (`training.storage.sharing`).
Sequences are encoded in fixed blocks of rows, whatever the batch size, because matrix products of other sizes may round
differently. So the result is bit-identical for any batches, shards and division of work.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64

from analysis.corpus_rows import CorpusRows
from sae.errors import SaescopeError
from sae.io.files import atomic_file, json_bytes, parsed, refusing_full_disk
from training.provenance import first_difference
from training.storage.sharing import SharedWork, claimants
from training.storage.store import LocalStore

BLOCK_ROWS = 4096
"""Rows per encoding block, rounded down to whole sequences."""
PLAN = "plan.json"
FILES = {"kept": np.bool_, "counts": np.int32, "feature": np.int32, "value": np.float32}


class Codes(NamedTuple):
    """The code of every row, memory-mapped; rows that aren't kept are empty."""

    kept: Bool[np.ndarray, " n_rows"]
    indptr: Int64[np.ndarray, " n_rows_plus_1"]
    feature: Int32[np.ndarray, " nnz"]
    value: Float32[np.ndarray, " nnz"]


def begin(work: Path, plan: dict[str, Any]) -> None:
    """Start the work, or join it if others have started it with this plan; remove leftovers of another plan.

    Raises:
        SaescopeError: other processes are encoding with a different plan.
    """
    store = LocalStore(work)
    if not store.create(PLAN, json_bytes(plan)):
        there = parsed(store.read(PLAN) or b"{}", store.place(PLAN))
        if there == plan:
            return
        if busy := claimants(store, ""):
            raise SaescopeError(
                f"{' and '.join(busy)} is building this index from different inputs ({first_difference(there, plan)}); "
                f"wait for that to end, use another --name, or remove {work} if it is no longer running."
            )
        clear(work)
        store.create(PLAN, json_bytes(plan))


def is_begun(work: Path, plan: dict[str, Any]) -> bool:
    """Whether this work was started and not cleared."""
    return LocalStore(work).read(PLAN) == json_bytes(plan)


def clear(work: Path) -> None:
    """Remove everything, the plan first: without it, no work counts as missing."""
    (work / PLAN).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def encode(
    rows: CorpusRows, work: Path, plan: dict[str, Any], *, batch_rows: int, shard_rows: int,
    advance: Callable[[int], None] = lambda _: None, skip: Callable[[int], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Encode all missing shards, sharing the work with other processes; return when all are done.

    Args:
        rows: the rows and the SAE that encodes them.
        work: the folder of unfinished work.
        plan: the plan that the work was started with.
        batch_rows: rows read and held in memory at a time.
        shard_rows: rows per shard, the unit of resuming and of sharing; part of the plan.
        advance: called with the number of newly encoded rows, including those of other processes.
        skip: called with the number of rows that were already encoded.
        say: called with messages about waiting.
    """
    n_ctx = rows.n_ctx
    block, shard = block_seqs(n_ctx), shard_seqs(shard_rows, n_ctx)
    batch = block * max(1, batch_rows // (block * n_ctx))
    starts, store = range(0, rows.n_seqs, shard), LocalStore(work)
    prefix = _prefix(plan)

    def n_rows(shards: Iterable[int]) -> int:
        return sum(min(shard, rows.n_seqs - starts[i]) for i in shards) * n_ctx

    def is_done(i: int) -> bool:  # the process that writes the index removes the plan first
        return store.exists(_name(prefix, i, "kept")) or not store.exists(PLAN)

    def done() -> set[int]:
        there = store.names("")
        return {i for i in range(len(starts)) if _name(prefix, i, "kept") in there or PLAN not in there}

    with SharedWork(
        store, "", len(starts), done=done, is_done=is_done, say=say, found=lambda shards: advance(n_rows(shards))
    ) as shared:
        skip(n_rows(shared.begun_with))
        for i in shared.pieces():
            # the first file opened is the last to be renamed
            with ExitStack() as stack:
                files = {name: stack.enter_context(atomic_file(work / _name(prefix, i, name))) for name in FILES}
                stop = min(starts[i] + shard, rows.n_seqs)
                for start in range(starts[i], stop, batch):
                    seqs = np.arange(start, min(start + batch, stop))
                    for name, array in encode_batch(rows, seqs, block).items():
                        files[name].write(array.tobytes())
                    advance(len(seqs) * n_ctx)


def block_seqs(n_ctx: int) -> int:
    """Sequences per block."""
    return max(1, BLOCK_ROWS // n_ctx)


def shard_seqs(shard_rows: int, n_ctx: int) -> int:
    """Sequences per shard, in whole blocks."""
    block = block_seqs(n_ctx)
    return block * max(1, shard_rows // (block * n_ctx))


def encode_batch(rows: CorpusRows, seqs: Int64[np.ndarray, " n"], block: int) -> dict[str, np.ndarray]:
    """Encode sequences block by block."""
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


def join_codes(work: Path, plan: dict[str, Any]) -> Codes:
    """Concatenate all shards and map the result. Only one process may call this at a time."""
    prefix = _prefix(plan)
    with ExitStack() as stack, refusing_full_disk(work):
        for name in FILES:
            whole = stack.enter_context((work / f"{name}.bin").open("wb"))
            for shard in sorted(work.glob(f"{prefix}-*.{name}")):
                with shard.open("rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 24)
    found = {name: _mapped(work / f"{name}.bin", dtype) for name, dtype in FILES.items()}
    indptr = np.zeros(len(found["counts"]) + 1, np.int64)
    np.cumsum(found["counts"], out=indptr[1:])
    return Codes(found["kept"], indptr, found["feature"], found["value"])


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _name(prefix: str, i: int, name: str) -> str:
    return f"{prefix}-{i:05d}.{name}"


def _prefix(plan: dict[str, Any]) -> str:
    """A hash of the plan, so that late writes with another plan aren't taken for part of this one."""
    return hashlib.sha256(json_bytes(plan)).hexdigest()[:8]
