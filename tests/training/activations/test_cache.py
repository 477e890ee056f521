"""The cache's contract: whole or not there, resumable, independent of how it was cut, checked when opened."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sae.errors import SaescopeError
from training.activations.cache import CacheSource, bytes_needed, check_space, fill, hook_folder, missing_hooks, verify
from training.bench.cache import HOOK, synthetic_cache
from training.corpus.tokens import Tokens, open_tokens, write_tokens

N_SEQS, N_CTX, D = 12, 8, 5


def tokens_at(folder: Path) -> Tokens:
    ids = np.arange(N_SEQS * N_CTX, dtype=np.int32).reshape(N_SEQS, N_CTX)
    held_out = np.arange(N_SEQS) % 4 == 3
    return write_tokens(
        folder, ids, held_out, np.ones((N_SEQS, N_CTX), dtype=bool), np.zeros((0, 3), dtype=np.int64), [], {"of": "test"}
    )


def rows_of(seqs: np.ndarray, factor: float = 1.0) -> torch.Tensor:
    """Activations that say which row they are."""
    rows = torch.from_numpy(seqs[:, None] * N_CTX + np.arange(N_CTX)).float()
    return (factor * rows[..., None] + torch.arange(D) / 8).bfloat16()


def compute(seqs: np.ndarray) -> dict[str, torch.Tensor]:
    return {"a": rows_of(seqs), "b": rows_of(seqs, 2.0)}


def made(folder: Path, shard_rows: int = 3 * N_CTX) -> Tokens:
    tokens = tokens_at(folder)
    fill(tokens, compute, {"a": D, "b": D}, dtype="bfloat16", shard_rows=shard_rows)
    return tokens


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("shard_rows", [N_CTX, 3 * N_CTX, 5 * N_CTX, 1000])
@pytest.mark.parametrize("block_rows", [1, 4, N_CTX])
def test_rows_come_back_in_corpus_order_whatever_the_shards(tmp_path: Path, shard_rows: int, block_rows: int) -> None:
    made(tmp_path / "c", shard_rows)
    source = CacheSource(tmp_path / "c", ["a", "b"])
    blocks = np.array([0, 3, N_SEQS * N_CTX // block_rows - 1, 2])
    expected = rows_of(np.arange(N_SEQS)).view(-1, block_rows, D)[torch.from_numpy(blocks)].flatten(0, 1)
    assert torch.equal(source.rows("a", blocks, block_rows), expected)
    torch.testing.assert_close(source.norms("a", blocks, block_rows), expected.float().norm(dim=1))
    assert torch.equal(source.rows("b", np.array([1]), N_CTX), rows_of(np.array([1]), 2.0)[0])


def test_several_hooks_are_filled_by_one_pass_and_each_shard_is_computed_once(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def counted(seqs: np.ndarray) -> dict[str, torch.Tensor]:
        calls.append((int(seqs[0]), int(seqs[-1])))
        return compute(seqs)

    fill(tokens_at(tmp_path / "c"), counted, {"a": D, "b": D}, dtype="bfloat16", shard_rows=5 * N_CTX)
    assert calls == [(0, 4), (5, 9), (10, 11)]


def test_an_interrupted_cache_goes_on_behind_its_last_whole_shard(tmp_path: Path) -> None:
    made(tmp_path / "whole")
    tokens = tokens_at(tmp_path / "cut")
    seen: list[int] = []

    def failing(seqs: np.ndarray) -> dict[str, torch.Tensor]:
        if seqs[0] == 6 and len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(int(seqs[0]))
        return compute(seqs)

    with pytest.raises(KeyboardInterrupt):
        fill(tokens, failing, {"a": D, "b": D}, dtype="bfloat16", shard_rows=3 * N_CTX)
    assert missing_hooks(tmp_path / "cut", ["a", "b"]) == ["a", "b"], "half-written hooks have no manifest"
    with pytest.raises(SaescopeError, match=r"incomplete|has no activations"):
        CacheSource(tmp_path / "cut", ["a"])
    seen.append(-1)
    fill(tokens, failing, {"a": D, "b": D}, dtype="bfloat16", shard_rows=3 * N_CTX)
    assert seen == [0, 3, -1, 6, 9]
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_a_hook_is_added_to_a_cache_without_touching_the_others(tmp_path: Path) -> None:
    tokens = tokens_at(tmp_path / "c")
    fill(tokens, compute, {"a": D}, dtype="bfloat16", shard_rows=3 * N_CTX)
    before = tree(hook_folder(tmp_path / "c", "a"))
    fill(tokens, compute, {"a": D, "b": D}, dtype="bfloat16", shard_rows=3 * N_CTX)
    assert tree(hook_folder(tmp_path / "c", "a")) == before
    assert CacheSource(tmp_path / "c", ["a", "b"]).widths == {"a": D, "b": D}


def test_equal_inputs_make_equal_bytes_and_no_times(tmp_path: Path) -> None:
    made(tmp_path / "one")
    made(tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    manifest = json.loads((tmp_path / "one" / "acts" / "a" / "manifest.json").read_text())
    assert {"format", "format_version", "code", "d", "dtype", "tokens_sha256", "shards"} <= set(manifest)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_shard_is_noticed_even_after_the_cache_was_once_checked(tmp_path: Path, damage: str) -> None:
    made(tmp_path / "c")
    CacheSource(tmp_path / "c", ["a"])
    shard = hook_folder(tmp_path / "c", "a") / "shard-00001.npy"
    data = bytearray(shard.read_bytes())
    if damage == "remove":
        shard.unlink()
    else:
        data[-3] ^= 1
        shard.write_bytes(data[:-1] if damage == "truncate" else data)
        os.utime(shard, ns=(1, 1))
    with pytest.raises(SaescopeError, match=r"shard-00001\.npy is (missing|truncated or altered)"):
        CacheSource(tmp_path / "c", ["a"])
    assert "shard-00001.npy" in " ".join(verify(tmp_path / "c"))


def test_verify_reads_every_byte(tmp_path: Path) -> None:
    made(tmp_path / "c")
    CacheSource(tmp_path / "c", ["a"])
    assert verify(tmp_path / "c") == []
    shard = hook_folder(tmp_path / "c", "b") / "shard-00000.npy"
    stat = shard.stat()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "shard-00000.npy is truncated or altered" in verify(tmp_path / "c")[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_are_refused_with_their_place(tmp_path: Path, value: float) -> None:
    def bad(seqs: np.ndarray) -> dict[str, torch.Tensor]:
        rows = rows_of(seqs)
        if 7 in seqs:
            rows[list(seqs).index(7), 2, 0] = value
        return {"a": rows}

    with pytest.raises(SaescopeError, match=r"shard 2, sequence 7, position 2 \(1 rows"):
        fill(tokens_at(tmp_path / "c"), bad, {"a": D}, dtype="bfloat16", shard_rows=3 * N_CTX)
    assert missing_hooks(tmp_path / "c", ["a"]) == ["a"]


def test_the_bytes_needed_are_said_and_too_little_space_is_refused(tmp_path: Path) -> None:
    tokens = made(tmp_path / "c")
    written = sum(p.stat().st_size for hook in "ab" for p in hook_folder(tmp_path / "c", hook).glob("*.npy"))
    needed = bytes_needed(tokens, {"a": D, "b": D}, "bfloat16")
    assert 0 < written - needed < 200 * len(list((tmp_path / "c").rglob("*.npy"))), "all but the npy headers"
    said: list[str] = []
    check_space(tmp_path, needed, said.append)
    assert "needed" in said[0] and "free" in said[0]
    with pytest.raises(SaescopeError, match=r"cache\.mode=stream"):
        check_space(tmp_path, 10**18, said.append)


def test_altered_tokens_are_noticed(tmp_path: Path) -> None:
    made(tmp_path / "c")
    path = tmp_path / "c" / "tokens.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(SaescopeError, match=r"tokens\.npy is missing or altered"):
        open_tokens(tmp_path / "c")


def test_the_future_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(SaescopeError, match="format version 2"):
        open_tokens(tmp_path / "c")


def test_synthetic_cache_is_a_cache(tmp_path: Path) -> None:
    tokens, source = synthetic_cache(tmp_path / "c", n_seqs=40, n_ctx=4, d_in=3)
    assert tokens.n_seqs == 40 and source.widths == {HOOK: 3}
    assert verify(tmp_path / "c") == []
