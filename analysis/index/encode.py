"""The pass over the rows: each is encoded once, all features at once, and its code goes to disk.

    NAME.partial/plan.json              what all who encode, now or later, must agree with
                 PLAN-00000.feature …   a stretch of rows: which are kept, a count for each, features and fp32 values;
                                        PLAN is a hash of the plan, and `.kept` comes last
                 feature.bin …          all stretches, one behind the other, when the last is there

Any number of processes may encode, each the next shard that nobody is at (`training.storage.sharing`).
Sequences are encoded in blocks of a fixed number of rows, the same ones whatever is read at a time, because matrix
products of other sizes may round differently: so neither batches nor shards nor who encoded them can change a bit.
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
"""Rows that are encoded together, rounded down to whole sequences."""
PLAN = "plan.json"
FILES = {"kept": np.bool_, "counts": np.int32, "feature": np.int32, "value": np.float32}


class Codes(NamedTuple):
    """The code of every row, mapped from disk; rows that are not kept are empty."""

    kept: Bool[np.ndarray, " n_rows"]
    indptr: Int64[np.ndarray, " n_rows_plus_1"]
    feature: Int32[np.ndarray, " nnz"]
    value: Float32[np.ndarray, " nnz"]


def begin(work: Path, plan: dict[str, Any]) -> None:
    """Begin, or join those who have begun under the same plan; forget what others have left under another.

    Raises:
        SaescopeError: other processes are encoding under another plan.
    """
    store = LocalStore(work)
    if not store.create(PLAN, json_bytes(plan)):
        there = parsed(store.read(PLAN) or b"{}", store.place(PLAN))
        if there == plan:
            return
        if busy := claimants(store, ""):
            raise SaescopeError(
                f"this index is being made from something else by {' and '.join(busy)} ({first_difference(there, plan)}); "
                f"wait for that to end, take another --name, or remove {work} if they have gone."
            )
        clear(work)
        store.create(PLAN, json_bytes(plan))


def is_begun(work: Path, plan: dict[str, Any]) -> bool:
    """Whether this work has been begun and not cleared."""
    return LocalStore(work).read(PLAN) == json_bytes(plan)


def clear(work: Path) -> None:
    """Remove all, the plan first: from then on nothing is lacking any more."""
    (work / PLAN).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def encode(
    rows: CorpusRows, work: Path, plan: dict[str, Any], *, batch_rows: int, shard_rows: int,
    advance: Callable[[int], None] = lambda _: None, skip: Callable[[int], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Encode, with whoever else has begun this work, what nobody has encoded yet; returns when all is there.

    Args:
        rows: what is encoded, by the SAE they were opened with.
        work: the folder of unfinished work.
        plan: under which it was begun.
        batch_rows: rows read and held in memory at a time.
        shard_rows: rows after which progress is made safe, and that a process takes at a time; part of the plan.
        advance: told of rows that were encoded, by others too.
        skip: told of rows that had been encoded before.
        say: told what is waited for.
    """
    n_ctx = rows.n_ctx
    block, shard = block_seqs(n_ctx), shard_seqs(shard_rows, n_ctx)
    batch = block * max(1, batch_rows // (block * n_ctx))
    starts, store = range(0, rows.n_seqs, shard), LocalStore(work)
    prefix = _prefix(plan)

    def n_rows(shards: Iterable[int]) -> int:
        return sum(min(shard, rows.n_seqs - starts[i]) for i in shards) * n_ctx

    def is_done(i: int) -> bool:  # who writes the index takes the plan away first
        return store.exists(_name(prefix, i, "kept")) or not store.exists(PLAN)

    def done() -> set[int]:
        there = store.names("")
        return {i for i in range(len(starts)) if _name(prefix, i, "kept") in there or PLAN not in there}

    with SharedWork(
        store, "", len(starts), done=done, is_done=is_done, say=say, found=lambda shards: advance(n_rows(shards))
    ) as shared:
        skip(n_rows(shared.begun_with))
        for i in shared.pieces():
            # the first to be opened gets its name last
            with ExitStack() as stack:
                files = {name: stack.enter_context(atomic_file(work / _name(prefix, i, name))) for name in FILES}
                stop = min(starts[i] + shard, rows.n_seqs)
                for start in range(starts[i], stop, batch):
                    seqs = np.arange(start, min(start + batch, stop))
                    for name, array in encode_batch(rows, seqs, block).items():
                        files[name].write(array.tobytes())
                    advance(len(seqs) * n_ctx)


def block_seqs(n_ctx: int) -> int:
    """Sequences that are encoded together."""
    return max(1, BLOCK_ROWS // n_ctx)


def shard_seqs(shard_rows: int, n_ctx: int) -> int:
    """Sequences of a shard: whole blocks."""
    block = block_seqs(n_ctx)
    return block * max(1, shard_rows // (block * n_ctx))


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


def join_codes(work: Path, plan: dict[str, Any]) -> Codes:
    """What all have encoded, one stretch behind the other, mapped. One process at a time may do this."""
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
    """A short name of the plan: what is written late under another is not taken for a part of this."""
    return hashlib.sha256(json_bytes(plan)).hexdigest()[:8]
