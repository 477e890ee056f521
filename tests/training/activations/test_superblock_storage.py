"""The same batches wherever superblocks lie, and rows of a device that are cached as they are: on a GPU."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.activations.test_cache import tree
from training.activations import superblock_storage
from training.activations.arrays import Arrays
from training.activations.batch_seqs import fitting
from training.activations.batches import Batch, Batches
from training.activations.cache import CacheSource, fill
from training.activations.calibration import KeepMask
from training.activations.loader import Loader, LoaderBatches, opened
from training.activations.sources import ActsSource, ModelSource, Source
from training.activations.superblock_storage import OnDevice, Place, ThroughHost, place_for
from training.config.schema import DataConfig
from training.corpus.tokens import Tokens, write_tokens
from training.model.load import load_model

N_SEQS, N_CTX, D = 400, 64, 32
HOOK = "blocks.0.hook_resid_post"

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    ids = np.random.default_rng(0).integers(3, 500, (N_SEQS, N_CTX)).astype(np.int32)
    eligible = np.ones((N_SEQS, N_CTX), dtype=bool)
    folder, none = tmp_path_factory.mktemp("tokens") / "c", np.zeros((0, 3), dtype=np.int64)
    return write_tokens(folder, ids, np.arange(N_SEQS) % 5 == 4, eligible, none, [], {"of": "test"})


@pytest.fixture(scope="module")
def live(tokens: Tokens, device: torch.device) -> ModelSource:
    model = load_model(f"native:d_model={D},n_layers=2,n_ctx={N_CTX}", device=str(device), dtype="bfloat16")
    return ModelSource(model, tokens, [HOOK], dtype="bfloat16", batch_seqs=16)


@pytest.fixture(scope="module")
def every(live: ModelSource) -> torch.Tensor:
    return live.compute(np.arange(N_SEQS))[HOOK].flatten(0, 1)


@pytest.fixture(scope="module")
def cache(tokens: Tokens, live: ModelSource) -> CacheSource:
    assert tokens.folder is not None
    fill(tokens, live.compute, live.widths, dtype="bfloat16", shard_rows=50 * N_CTX)
    return CacheSource(tokens.folder, [HOOK])


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    """So that there are many."""
    patch = pytest.MonkeyPatch()
    patch.setattr(superblock_storage, "PIECE_BYTES", 20_000)
    yield
    patch.undo()


def batches(source: Source, tokens: Tokens, place: Place, block_rows: int = N_CTX) -> Batches:
    mask = KeepMask(source, tokens, DataConfig(mask_hooks=(HOOK,), outlier_multiple=1.2, n_calib=8))
    made = Batches(source, tokens, mask, [HOOK], seed=3, batch_rows=100, superblock_rows=6000, block_rows=block_rows)
    made.place = place
    return made


def take(stream: Batches | LoaderBatches, n: int) -> list[Batch]:
    """Batches as a trainer would use them: work on each is under way when the next is asked for."""
    running = stream.stream(prefetch=1)
    out = []
    for batch in islice(running, n):
        copied = {hook: rows.clone() for hook, rows in batch.acts.items()}
        torch.cuda._sleep(200_000)
        out.append(batch._replace(acts=copied))
    running.close()
    return out


def same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.address == y.address and torch.equal(x.rows, y.rows) and torch.equal(x.acts[HOOK].cpu(), y.acts[HOOK].cpu())
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("kind", [OnDevice, ThroughHost])
@pytest.mark.parametrize("of", ["cache", "array", "array on the device", "model"])
def test_batches_are_those_of_the_cpu(
    of: str, kind: type[OnDevice | ThroughHost], cache: CacheSource, live: ModelSource, every: torch.Tensor, tokens: Tokens,
    device: torch.device,
) -> None:
    array = every if of == "array on the device" else every.cpu()
    source = {"cache": cache, "model": live}.get(of) or ActsSource(Arrays(array, [HOOK]))
    expected = take(batches(cache, tokens, Place()), 500)
    assert expected[-1].address.epoch == 2
    assert sum(len(b.rows) for b in expected if b.address.epoch == 0) < 0.97 * tokens.n_eligible(), "the mask drops some"
    found = take(batches(source, tokens, kind(device)), 500)
    assert all(b.acts[HOOK].device == device for b in found)
    assert same(found, expected)


def test_a_batch_is_taken_without_waiting_for_the_device(cache: CacheSource, tokens: Tokens, device: torch.device) -> None:
    for place in (OnDevice(device), ThroughHost(device)):
        running = batches(cache, tokens, place).stream(prefetch=1)
        next(running)
        ready = torch.cuda.Event()
        torch.cuda._sleep(2_000_000_000)
        ready.record()
        for _ in range(90):  # across a superblock's end
            next(running)
        assert not ready.query(), "the trainer's stream is still at its work"
        running.close()
        torch.cuda.synchronize()


def test_a_device_that_is_too_small(
    cache: CacheSource, tokens: Tokens, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = torch.cuda.mem_get_info(device)[0]
    assert isinstance(place_for(device, free // 2, 0), OnDevice)
    for place in (place_for(device, free, 0), place_for(device, free // 2, free // 2)):
        assert isinstance(place, ThroughHost) and "MB" in place.name

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("another process was faster")

    said: list[str] = []
    expected = take(batches(cache, tokens, Place()), 20)
    monkeypatch.setattr(OnDevice, "buffers", full)
    stream = batches(cache, tokens, OnDevice(device))
    stream.say = said.append
    assert same(take(stream, 20), expected)
    assert isinstance(stream.place, ThroughHost) and "memory" in said[0]


def test_a_cache_filled_on_the_device_holds_its_rows(
    cache: CacheSource, every: torch.Tensor, tokens: Tokens, tmp_path: Path
) -> None:
    assert torch.equal(cache.rows(HOOK, np.arange(N_SEQS), N_CTX), every.cpu())
    norms = cache.norms(HOOK, np.arange(N_SEQS), N_CTX)
    torch.testing.assert_close(norms, every.cpu().double().norm(dim=1).float(), rtol=1e-6, atol=0)
    assert tokens.tokens is not None
    none = np.zeros((0, 3), dtype=np.int64)
    again = write_tokens(tmp_path / "c", tokens.tokens, tokens.held_out, tokens.eligible, none, [], {"of": "test"})
    by_seq = every.view(N_SEQS, N_CTX, D)
    fill(again, lambda seqs: {HOOK: by_seq[seqs[0] : seqs[-1] + 1].clone()}, {HOOK: D}, dtype="bfloat16",
         shard_rows=50 * N_CTX)
    assert tokens.folder is not None
    assert tree(tmp_path / "c" / "acts") == tree(tokens.folder / "acts")


@pytest.mark.parametrize("given_on", ["cpu", "cuda"])
def test_rows_of_a_loader(given_on: str, every: torch.Tensor, device: torch.device) -> None:
    given = [rows.to(given_on) for rows in every.split(700)]
    held_out = {HOOK: every[:100].cpu()}
    limits = {HOOK: float(every.float().norm(dim=1).quantile(0.9))}
    found = []
    for place in (Place(), OnDevice(device)):
        loader = Loader(given, opened(given), [HOOK], 2000)
        found.append(take(LoaderBatches(loader, held_out, limits, batch_rows=100, place=place), 300))
    assert same(*found) and all(b.acts[HOOK].device == device for b in found[1])


def test_sequences_that_fit(live: ModelSource) -> None:
    n = fitting(live.model, N_CTX, [HOOK])
    assert n & (n - 1) == 0 and 2 <= n <= 65_536 // N_CTX
