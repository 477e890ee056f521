"""Cached activations: one folder per hook in the tokens' cache, filled by one forward pass for all hooks.

    cache/NAME/acts/HOOK/plan.json            settings that all processes filling it must agree on
                         shard-00000.npy      rows in corpus order, [n_seqs_of_shard, n_ctx, d]; bfloat16 as uint16
                         norms-00000.npy      fp32 norm of each row, [n_seqs_of_shard, n_ctx]
                         shard-00000.json     written when both are complete
                         manifest.json        width, dtype, shards with sha256, sha256 of the tokens; written last

Row r is token `r % n_ctx` of sequence `r // n_ctx`. Rows are raw. Any number of processes may fill a cache together; each
takes the next unclaimed shard (`training.storage.sharing`). The content of a shard depends only on its number. An
interrupted cache continues with the missing shards.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, Field, PositiveInt, ValidationError
from torch import Tensor

from sae.errors import SaescopeError
from sae.io.arrays import array_parts, digest_of, header_of
from sae.io.files import code_version, json_bytes, parsed, write_json
from training.activations.remote_rows import RemoteFile, RemoteRows
from training.activations.row_files import RowFile, RowFiles
from training.activations.row_writer import OnTheWay, to_host, writing
from training.activations.sources import DTYPES, NO_NUMBERS
from training.corpus.tokens import FORMAT, FORMAT_VERSION, Tokens, read_manifest
from training.provenance import first_difference
from training.storage.mirror import fetch_hook, fetch_tokens, store_of
from training.storage.remote import RemoteStore
from training.storage.sharing import CLAIMS, SharedWork
from training.storage.store import LocalStore, Store

# bfloat16 has no numpy type: its bits are stored as uint16
STORED = {"bfloat16": np.uint16, "float16": np.float16, "float32": np.float32}
_HASHERS = 8


class _Shard(BaseModel):
    """Manifest entry of one shard."""

    n_seqs: PositiveInt
    sha256: str
    norms_sha256: str


class _Manifest(BaseModel):
    """Manifest of one hook, without format and version."""

    hook: str
    d: PositiveInt
    dtype: Literal["bfloat16", "float16", "float32"]
    tokens_sha256: str
    shards: list[_Shard] = Field(min_length=1)


def hook_folder(folder: Path, hook: str) -> Path:
    """The folder of a hook's activations in a cache."""
    return folder / "acts" / hook


def missing_hooks(folder: Path, hooks: Sequence[str]) -> list[str]:
    """The hooks that are not completely cached."""
    store = store_of(folder)
    return [hook for hook in hooks if not store.exists(f"{_acts(hook)}/manifest.json")]


def bytes_needed(tokens: Tokens, widths: dict[str, int], dtype: str) -> int:
    """Bytes on disk of the activations of these hooks, norms included."""
    return tokens.n_seqs * tokens.n_ctx * sum(d * np.dtype(STORED[dtype]).itemsize + 4 for d in widths.values())


def check_space(folder: Path, needed: int, say: Callable[[str], None]) -> None:
    """Print how much space a cache needs and how much is free; raise an error if it doesn't fit."""
    free = shutil.disk_usage(folder).free
    say(f"cache: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free in {folder}")
    if needed > free:
        raise SaescopeError(
            f"the cache needs {needed / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB free; free some space, choose "
            f"another cache.dir, or recompute activations during training with cache.mode=stream."
        )


def shard_bounds(n_seqs: int, n_ctx: int, shard_rows: int) -> list[tuple[int, int]]:
    """First sequence of each shard, and one past its last."""
    step = max(1, shard_rows // n_ctx)
    return list(pairwise([*range(0, n_seqs, step), n_seqs]))


def fill(
    tokens: Tokens, compute: Callable[[Int64[np.ndarray, " n"]], dict[str, Tensor]], widths: dict[str, int], *,
    dtype: str, shard_rows: int, made_by: Mapping[str, Any] | None = None, say: Callable[[str], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None, skip: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the activations of the hooks in `widths`, together with other processes; return when all are complete.

    `compute(seqs)` returns each hook's rows `[n, n_ctx, d]` in the stored dtype, on any device, in newly allocated memory.
    `made_by` describes what else its results depend on, and must be the same for all processes that fill this cache.
    `advance(n_tokens)` reports progress, including that of other processes, `skip(n_tokens)` what was already there.
    Hooks are filled in lockstep. Threads copy shards to the host, hash and write them while the next are computed. A kill
    at any time leaves only complete shards.

    Raises:
        SaescopeError: a cache started with other settings, too little space, or NaN or infinite activations.
    """
    assert tokens.folder is not None
    store, hooks = store_of(tokens.folder), missing_hooks(tokens.folder, list(widths))
    if not hooks:
        return
    bounds = shard_bounds(tokens.n_seqs, tokens.n_ctx, shard_rows)
    if isinstance(store, LocalStore):
        needed = bytes_needed(tokens, {hook: widths[hook] for hook in hooks}, dtype)
        check_space(tokens.folder, max(0, needed - _written(store, hooks)), say)
    plan = {"tokens": _tokens_digest(tokens.folder), "dtype": dtype, "shard_rows": shard_rows, "code": code_version()}
    for hook in hooks:
        _begin(store, hook, plan | {"d": widths[hook]} | dict(made_by or {}))

    def n_tokens(shards: Iterable[int]) -> int:
        return sum(bounds[i][1] - bounds[i][0] for i in shards) * tokens.n_ctx

    def done() -> set[int]:
        there = set.intersection(*(store.names(_acts(hook)) for hook in hooks))
        return {i for i in range(len(bounds)) if f"shard-{i:05d}.json" in there}

    with SharedWork(
        store, "acts", len(bounds), done=done, is_done=lambda i: all(store.exists(_record(hook, i)) for hook in hooks),
        say=say, found=lambda shards: advance(n_tokens(shards)),
    ) as work, writing() as write:
        skip(n_tokens(work.begun_with))
        for i in work.pieces():
            start, stop = bounds[i]
            acts = compute(np.arange(start, stop))
            for hook in hooks:
                if not store.exists(_record(hook, i)):
                    write(_write_shard, store, hook, i, to_host(acts[hook]), start)
            del acts
            advance(n_tokens([i]))
    for hook in hooks:
        _finish(store, hook, widths[hook], dtype, len(bounds), str(plan["tokens"]))


def _tokens_digest(folder: Path) -> str:
    return str(read_manifest(folder)["sha256"]["tokens.npy"])


def _acts(hook: str) -> str:
    return f"acts/{hook}"


def _record(hook: str, i: int) -> str:
    return f"{_acts(hook)}/shard-{i:05d}.json"


def _written(store: LocalStore, hooks: Sequence[str]) -> int:
    """Bytes of rows and norms already written."""
    return sum(f.stat().st_size for hook in hooks for f in (store.folder / _acts(hook)).glob("*.npy"))


def _begin(store: Store, hook: str, plan: dict[str, Any]) -> None:
    """Start filling a hook, or join other processes if their plan is the same."""
    path, place = f"{_acts(hook)}/plan.json", store.place(_acts(hook))
    if store.create(path, json_bytes(plan)):
        if any(name.startswith("shard-") for name in store.names(_acts(hook))):
            store.remove(path)
            raise SaescopeError(
                f"{place} has shards but no plan.json, so their origin is unknown; remove it and start again."
            )
        return
    there = parsed(store.read(path) or b"", store.place(path))
    if (other := first_difference(there, plan)) is not None:
        raise SaescopeError(
            f"{place} was started with {other.path} = {other.was!r}, but now it is {other.now!r}; continue with the old "
            f"setting, or remove it and start again."
        )


def _write_shard(store: Store, hook: str, i: int, shard: OnTheWay, first_seq: int) -> None:
    acts, norms = shard.arrived()
    bad = ~norms.isfinite()
    if bad.any():
        seq, position = (int(v) for v in bad.nonzero()[0])
        raise SaescopeError(
            f"{hook}: NaN or infinite activations in shard {i}, sequence {first_seq + seq}, position {position} "
            f"({int(bad.sum())} rows of the shard); {NO_NUMBERS}"
        )
    parts = {"shard": array_parts(to_stored(acts)), "norms": array_parts(norms.numpy())}
    for kind, of in parts.items():
        store.write(f"{_acts(hook)}/{kind}-{i:05d}.npy", of)
    record = {"n_seqs": acts.shape[0], "sha256": digest_of(parts["shard"]), "norms_sha256": digest_of(parts["norms"])}
    store.write(_record(hook, i), [json_bytes(record)])


def _finish(store: Store, hook: str, d: int, dtype: str, n_shards: int, tokens_digest: str) -> None:
    """Write the manifest from the shards' records; other processes may write the same one."""
    store.tidy(_acts(hook))
    if store.exists(f"{_acts(hook)}/manifest.json"):
        return
    records = [parsed(store.read(_record(hook, i)) or b"", store.place(_record(hook, i))) for i in range(n_shards)]
    store.write(f"{_acts(hook)}/manifest.json", [json_bytes({
        "format": FORMAT, "format_version": FORMAT_VERSION, "code": code_version(), "hook": hook, "d": d, "dtype": dtype,
        "tokens_sha256": tokens_digest, "shards": records,
    })])


def to_stored(acts: Float[Tensor, "*shape"]) -> np.ndarray:
    """Convert a tensor to the array that is written."""
    acts = acts.contiguous()
    return (acts.view(torch.uint16) if acts.dtype == torch.bfloat16 else acts).numpy()


class CacheSource:
    """Reads blocks of rows of complete hooks. Opening checks that every shard is there and unaltered."""

    device, computed, group = torch.device("cpu"), False, 1

    def __init__(self, folder: Path, hooks: Sequence[str], *, say: Callable[[str], None] = lambda _: None) -> None:
        """Open hooks of the cache at `folder`.

        Raises:
            SaescopeError: a hook is missing or incomplete, or a shard is missing, truncated, altered or made from other
                tokens.
        """
        self.manifests = {hook: _checked(folder, hook, say) for hook in hooks}
        self.widths = {hook: int(m["d"]) for hook, m in self.manifests.items()}
        self.dtypes = {hook: DTYPES[m["dtype"]] for hook, m in self.manifests.items()}
        self._files = {hook: _row_files(folder, hook, m) for hook, m in self.manifests.items()}
        self._norms = {
            hook: np.concatenate([np.load(hook_folder(folder, hook) / f"norms-{i:05d}.npy").reshape(-1)
                                  for i in range(len(m["shards"]))])
            for hook, m in self.manifests.items()
        }

    def read(
        self, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int, out: Mapping[str, Float[Tensor, "n_rows _"]]
    ) -> None:
        """Fill `out` with the rows of these blocks."""
        for hook, rows in out.items():
            self._files[hook].read(blocks, block_rows, rows)

    def rows(self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int) -> Float[Tensor, "n_rows d"]:
        """The rows of these blocks (block b is rows `b·block_rows …`), in the order given."""
        rows = torch.empty(len(blocks) * block_rows, self.widths[hook], dtype=self.dtypes[hook])
        self._files[hook].read(blocks, block_rows, rows)
        return rows

    def norms(
        self, hook: str, blocks: Int64[np.ndarray, " n_blocks"], block_rows: int,
        rows: Float[Tensor, "n_rows d"] | None = None,  # noqa: ARG002  (norms are stored)
    ) -> Float[Tensor, " n_rows"]:
        """The fp32 norms of the same rows, as measured when the cache was filled."""
        return torch.from_numpy(self._norms[hook].reshape(-1, block_rows)[blocks].reshape(-1))


def _row_files(folder: Path, hook: str, manifest: dict[str, Any]) -> RowFiles | RemoteRows:
    """The shards of a hook."""
    place, store = hook_folder(folder, hook), store_of(folder)
    if not isinstance(store, LocalStore):
        return _remote_rows(store, place, hook, manifest)
    shards = [(place / f"shard-{i:05d}.npy") for i in range(len(manifest["shards"]))]
    opened = [(path, np.load(path, mmap_mode="r")) for path in shards]
    files = [RowFile(path, array.offset, array.shape[0] * array.shape[1]) for path, array in opened]
    return RowFiles(files, int(manifest["d"]) * DTYPES[manifest["dtype"]].itemsize)


def _remote_rows(store: RemoteStore, place: Path, hook: str, manifest: dict[str, Any]) -> RemoteRows:
    """The shards of a hook in an object store; only their sizes are checked, since reading them takes long."""
    row_bytes, sizes = int(manifest["d"]) * DTYPES[manifest["dtype"]].itemsize, store.sizes(_acts(hook))
    files = []
    for i in range(len(manifest["shards"])):
        name, shape = f"shard-{i:05d}.npy", np.load(place / f"norms-{i:05d}.npy", mmap_mode="r").shape
        offset = len(header_of(np.dtype(STORED[manifest["dtype"]]), (*shape, int(manifest["d"]))))
        rows = int(np.prod(shape))
        if sizes.get(name) != offset + rows * row_bytes:
            raise SaescopeError(
                f"{store.place(f'{_acts(hook)}/{name}')} is missing or has the wrong size; remove this hook's folder and "
                "run `sae cache make` again."
            )
        files.append(RemoteFile(f"{_acts(hook)}/{name}", offset, rows))
    return RemoteRows(store, files, row_bytes)


def _checked(folder: Path, hook: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Read the manifest of a hook and check all its files.

    A file is hashed only once: a note next to the cache records size and modification time of each file that passed.
    """
    place, store = hook_folder(folder, hook), store_of(folder)
    fetch_hook(folder, hook)
    if not (place / "manifest.json").exists():
        if any(place.glob("shard-*")):
            raise SaescopeError(f"{place} is incomplete; continue it with `sae cache make` and the same config.")
        there = sorted(path.parent.name for path in (folder / "acts").glob("*/manifest.json"))
        raise SaescopeError(
            f"cache {folder} has no activations of {hook} (it has {', '.join(there) or 'none'}); run `sae cache make`."
        )
    manifest = read_manifest(place, "hook", "d", "dtype", "tokens_sha256", "shards")
    if manifest["hook"] != hook:
        raise SaescopeError(f"{place} has activations of {manifest['hook']}, not of {hook}; remove it and build it again.")
    try:
        _Manifest.model_validate(manifest, strict=True)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise SaescopeError(
            f"{place / 'manifest.json'}: {where} is invalid; remove {place} and build it again.") from None
    if manifest["tokens_sha256"] != _tokens_digest(folder):
        raise SaescopeError(f"{place} was made from other tokens than those in {folder}; remove it and build it again.")
    note_path = folder.parent / f".{folder.name}.checked.json"
    note = _read_note(note_path)
    fresh = dict(note)
    files = _files(place, manifest)
    if not isinstance(store, LocalStore):
        files = [(path, digest) for path, digest in files if path.name.startswith("norms-")]
    if any("/".join(path.parts[-3:]) not in note for path, _ in files):
        say(f"checking the checksums of {hook}")
    with ThreadPoolExecutor(_HASHERS) as pool:
        list(pool.map(lambda one: _check_file(one[0], one[1], fresh), files))
    if fresh != note and os.access(note_path.parent, os.W_OK):
        write_json(note_path, fresh)
    return manifest


def _read_note(path: Path) -> dict[str, Any]:
    """The files that passed before; empty if the note cannot be read."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _files(place: Path, manifest: dict[str, Any]) -> list[tuple[Path, str]]:
    pairs = [("shard", "sha256"), ("norms", "norms_sha256")]
    return [
        (place / f"{kind}-{i:05d}.npy", record[key])
        for i, record in enumerate(manifest["shards"]) for kind, key in pairs
    ]


def _check_file(path: Path, digest: str, note: dict[str, Any]) -> None:
    """Compare a file with its checksum, unless the note says that it passed and it hasn't changed since."""
    key = "/".join(path.parts[-3:])
    if not path.is_file():
        raise SaescopeError(f"{path} is missing; remove this hook's folder and run `sae cache make` again.")
    stat = path.stat()
    state = [stat.st_size, stat.st_mtime_ns, digest]
    if note.get(key) == state:
        return
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise SaescopeError(
                f"{path} is truncated or altered: its checksum differs from the manifest's; remove this hook's folder and "
                f"run `sae cache make` again."
            )
    note[key] = state


def verify(folder: Path) -> list[str]:
    """Read every byte of a cache and return the problems found; empty if it is intact."""
    from training.corpus.tokens import open_tokens

    note_path = folder.parent / f".{folder.name}.checked.json"
    note_path.unlink(missing_ok=True)
    problems = []
    try:
        open_tokens(folder)
    except SaescopeError as error:
        return [str(error)]
    store = store_of(folder)
    for hook in sorted(store.folders("acts") - {CLAIMS}):
        try:
            manifest = _checked(folder, hook, lambda _: None)
            if not isinstance(store, LocalStore):
                problems += _altered(store, hook, manifest)
        except SaescopeError as error:
            problems.append(str(error))
    inner = sorted(name for name in store.folders("") if name.startswith("heldout-"))
    for name in inner:
        fetch_tokens(folder / name)
    return problems + [problem for name in inner for problem in verify(folder / name)]


def _altered(store: RemoteStore, hook: str, manifest: dict[str, Any]) -> list[str]:
    """Problems of shards in an object store."""
    names = {f"{_acts(hook)}/shard-{i:05d}.npy": str(of["sha256"]) for i, of in enumerate(manifest["shards"])}
    return [
        f"{store.place(name)} is missing, truncated or altered: its checksum differs from the manifest's."
        for name, digest in names.items() if hashlib.sha256(store.read(name) or b"").hexdigest() != digest
    ]
