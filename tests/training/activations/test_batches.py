"""Batches are a pure function of their address, and mix as widely as they say."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from sae.errors import SaescopeError
from training.activations.batches import FIRST, Address, Batch, Batches
from training.activations.calibration import KeepMask
from training.activations.sources import Source
from training.bench.cache import HOOK, synthetic_cache
from training.config.schema import DataConfig
from training.corpus.tokens import Tokens

SIZES = {"seed": 3, "batch_rows": 50, "superblock_rows": 640, "block_rows": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokens, Source]:
    return synthetic_cache(tmp_path_factory.mktemp("cache") / "c", n_seqs=100, n_ctx=32, d_in=4)


def mask_of(data: tuple[Tokens, Source], multiple: float = 1.4) -> KeepMask:
    """A multiple this low drops a few rows in a hundred."""
    return KeepMask(data[1], data[0], DataConfig(mask_hooks=(HOOK,), outlier_multiple=multiple))


def batches(data: tuple[Tokens, Source], multiple: float = 1.4, **sizes: int) -> Batches:
    return Batches(data[1], data[0], mask_of(data, multiple), [HOOK], **{**SIZES, **sizes})


def take(stream: Batches, n: int, start: Address = FIRST, **options: int) -> list[Batch]:
    running = stream.stream(start, **options)
    out = list(islice(running, n))
    running.close()
    return out


def same(a: Batch, b: Batch) -> bool:
    return a.address == b.address and torch.equal(a.rows, b.rows) and torch.equal(a.acts[HOOK], b.acts[HOOK])


def test_rows_are_the_rows_they_say_they_are(data: tuple[Tokens, Source]) -> None:
    for batch in take(batches(data), 20):
        expected = torch.cat([data[1].rows(HOOK, np.array([int(r)]), 1) for r in batch.rows])
        assert torch.equal(batch.acts[HOOK], expected)


def test_within_an_epoch_every_kept_row_comes_at_most_once_and_all_but_the_remainder(
    data: tuple[Tokens, Source],
) -> None:
    stream, mask = batches(data), mask_of(data)
    epoch = [b for b in take(stream, 60) if b.address.epoch == 0]
    rows = torch.cat([b.rows for b in epoch]).tolist()
    assert len(rows) == len(set(rows))
    training = data[0].sequences(held_out=False)
    keep = mask.keep(training, 32).view(-1, 32)
    kept = {int(seq) * 32 + int(p) for seq, mine in zip(training, keep, strict=True) for p in mine.nonzero()}
    assert len(kept) < keep.numel(), "the mask must drop something here"
    assert set(rows) <= kept
    assert len(kept) - len(rows) < stream.n_superblocks * 50, "less than a batch per superblock is dropped"
    assert not {r // 32 for r in rows} & set(data[0].sequences(held_out=True).tolist())


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_prefetch_changes_nothing(data: tuple[Tokens, Source], prefetch: int) -> None:
    plain = take(batches(data), 130, prefetch=0)
    assert all(map(same, plain, take(batches(data), 130, prefetch=prefetch)))
    assert plain[-1].address.epoch == 2


@pytest.mark.parametrize("shard_rows", [32, 320, 10**6])
def test_shard_size_changes_nothing(data: tuple[Tokens, Source], tmp_path: Path, shard_rows: int) -> None:
    from training.activations.cache import CacheSource, fill
    from training.corpus.tokens import write_tokens

    old = data[0]
    assert old.tokens is not None
    empty = np.zeros((0, 3), dtype=np.int64)
    tokens = write_tokens(tmp_path / "c", old.tokens, old.held_out, old.eligible, empty, [], old.made_from)
    rows = data[1].rows(HOOK, np.arange(old.n_seqs), 32).view(old.n_seqs, 32, -1)
    fill(tokens, lambda seqs: {HOOK: rows[seqs]}, {HOOK: 4}, dtype="bfloat16", shard_rows=shard_rows)
    other = batches((tokens, CacheSource(tmp_path / "c", [HOOK])))
    assert all(map(same, take(batches(data), 60), take(other, 60)))


def test_resuming_at_an_address_gives_that_batch(data: tuple[Tokens, Source]) -> None:
    whole = take(batches(data), 120)
    for i in (0, 1, 11, 12, 55, 119):
        (again,) = take(batches(data), 1, whole[i].address)
        assert same(again, whole[i])
    # an address behind a superblock's last batch means the next superblock's first
    for i in range(118):
        after = whole[i].address._replace(j=whole[i].address.j + 1)
        assert same(take(batches(data), 1, after)[0], whole[i + 1])


def test_ranks_share_the_rows_of_every_batch(data: tuple[Tokens, Source]) -> None:
    for start in (Address(0, 0, 0), Address(0, 1, 2)):
        whole = take(batches(data), 30, start)
        parts = [take(batches(data), 30, start, rank=rank, n_ranks=5) for rank in range(5)]
        for batch, *shared in zip(whole, *parts, strict=True):
            assert {part.address for part in shared} == {batch.address}
            assert torch.equal(torch.cat([part.rows for part in shared]), batch.rows)
            for hook, acts in batch.acts.items():
                assert torch.equal(torch.cat([part.acts[hook] for part in shared]), acts)


def test_epochs_and_seeds_differ(data: tuple[Tokens, Source]) -> None:
    first, other = take(batches(data), 1)[0], take(batches(data, seed=4), 1)[0]
    second = take(batches(data), 1, Address(1, 0, 0))[0]
    assert not torch.equal(first.rows, second.rows) and not torch.equal(first.rows, other.rows)


def test_a_mask_that_keeps_nothing_is_said(data: tuple[Tokens, Source]) -> None:
    stream = batches(data)
    stream.mask.limits[HOOK] = 0.0
    with pytest.raises(SaescopeError, match="keeps too few rows"):
        take(stream, 1)


def test_a_batch_larger_than_a_superblock_is_refused(data: tuple[Tokens, Source]) -> None:
    with pytest.raises(SaescopeError, match=r"10000 rows.* superblock"):
        batches(data, batch_rows=10_000, superblock_rows=10_000)


def test_errors_of_the_reading_thread_reach_the_trainer(data: tuple[Tokens, Source]) -> None:
    stream = batches(data)
    take(stream, 1)
    stream.source.read = lambda *_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        take(stream, 1)


def test_a_batch_mixes_nearly_as_many_sequences_as_a_global_shuffle(tmp_path: Path) -> None:
    """n_ctx 1,024, 20 superblocks, batches of 4,096: at least 0.95 of the distinct sequences of a global shuffle."""
    n_seqs, n_ctx, superblock_rows = 28_000, 1024, 1_310_720
    held_out = np.zeros(n_seqs, dtype=bool)
    held_out[-1] = True
    tokens = Tokens(held_out, np.broadcast_to(np.array(True), (n_seqs, n_ctx)), None, {})

    class Numbers:
        """Rows that are as small as rows can be."""

        def __init__(self) -> None:
            self.widths, self.dtypes = {HOOK: 1}, {HOOK: torch.bfloat16}
            self.device, self.computed, self.group = torch.device("cpu"), False, 1

        def rows(self, hook: str, blocks: np.ndarray, block_rows: int) -> torch.Tensor:
            return torch.ones(len(blocks) * block_rows, 1, dtype=torch.bfloat16)

        def read(self, blocks: np.ndarray, block_rows: int, out: dict[str, torch.Tensor]) -> None:
            out[HOOK].fill_(1)

        def norms(
            self, hook: str, blocks: np.ndarray, block_rows: int, rows: torch.Tensor | None = None
        ) -> torch.Tensor:
            return torch.ones(len(blocks) * block_rows)

    mask = KeepMask(Numbers(), tokens, DataConfig(mask_hooks=(HOOK,)))
    stream = Batches(
        Numbers(), tokens, mask, [HOOK], seed=0, batch_rows=4096, superblock_rows=superblock_rows, block_rows=32
    )
    assert stream.n_superblocks >= 20
    block = stream.superblock(0, 7)
    mixed = [len(np.unique(part // n_ctx)) for part in block.rows.numpy()[: 300 * 4096].reshape(300, 4096)]
    rng = np.random.default_rng(0)
    shuffled = [len(np.unique(rng.choice(n_seqs * n_ctx, 4096, replace=False, shuffle=False) // n_ctx)) for _ in range(5)]
    assert np.mean(mixed) >= 0.95 * np.mean(shuffled)
    assert stream.superblock_bytes() == superblock_rows * (2 + 8)
