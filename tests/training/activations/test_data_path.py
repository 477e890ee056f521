"""Whatever rows come from, batches are those of the definition, and each row is moved as rarely as can be."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae.errors import SaescopeError
from tests.helpers import quick_fields
from training.activations import batch_seqs
from training.activations.arrays import Arrays
from training.activations.batches import Batches
from training.activations.cache import CacheSource, fill
from training.activations.calibration import KeepMask
from training.activations.folder import ActsDir
from training.activations.sources import ActsSource, ModelSource, Source
from training.config.reading import resolve
from training.config.schema import DataConfig
from training.corpus.tokens import Tokens, write_tokens
from training.model.language_model import Model
from training.model.load import load_model

N_SEQS, N_CTX, D = 40, 16, 16
HOOKS = ("blocks.0.hook_resid_post", "blocks.0.hook_mlp_out")
SIZES = {"seed": 3, "batch_rows": 30, "superblock_rows": 160, "block_rows": N_CTX}


class Rows(NamedTuple):
    """All rows by hook, and the tokens they are of."""

    tokens: Tokens
    model: Model
    every: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    model = load_model(f"native:d_model={D},n_layers=1,n_heads=2,d_vocab=300,n_ctx={N_CTX}", device="cpu", dtype="float32")
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 300, (N_SEQS, N_CTX)).astype(np.int32)
    eligible = rng.random((N_SEQS, N_CTX)) < 0.9
    folder, none = tmp_path_factory.mktemp("tokens") / "c", np.zeros((0, 3), dtype=np.int64)
    tokens = write_tokens(folder, ids, np.arange(N_SEQS) % 5 == 4, eligible, none, [], {"of": "test"})
    source = ModelSource(model, tokens, HOOKS, dtype="bfloat16", batch_seqs=4)
    return Rows(tokens, model, {hook: acts.flatten(0, 1) for hook, acts in source.compute(np.arange(N_SEQS)).items()})


def in_cache(rows: Rows, _: Path) -> Source:
    if not (rows.tokens.folder / "acts").exists():  # type: ignore[operator]
        by_seq = {hook: acts.view(N_SEQS, N_CTX, D) for hook, acts in rows.every.items()}
        fill(rows.tokens, lambda seqs: {h: a[seqs] for h, a in by_seq.items()}, dict.fromkeys(HOOKS, D), dtype="bfloat16",
             shard_rows=7 * N_CTX)
    return CacheSource(rows.tokens.folder, HOOKS)  # type: ignore[arg-type]


def in_folder(rows: Rows, folder: Path) -> Source:
    """In fp32, which holds bf16: NumPy has no other type that does."""
    for hook, acts in rows.every.items():
        (folder / hook).mkdir()
        for i, part in enumerate(acts.float().split(99)):
            np.save(folder / hook / f"{i}.npy", part.numpy())
    return ActsSource(ActsDir(folder))


def in_array(rows: Rows, _: Path) -> Source:
    return ActsSource(Arrays(dict(rows.every), HOOKS))


def in_numpy(rows: Rows, _: Path) -> Source:
    return ActsSource(Arrays({hook: acts.float().numpy() for hook, acts in rows.every.items()}, HOOKS))


def live(rows: Rows, _: Path) -> Source:
    return ModelSource(rows.model, rows.tokens, HOOKS, dtype="bfloat16", batch_seqs=4)


KINDS: list[Callable[[Rows, Path], Source]] = [in_cache, in_folder, in_array, in_numpy, live]


def batches_of(rows: Rows, source: Source, hooks: tuple[str, ...] = HOOKS, **sizes: int) -> Batches:
    """Rows of both hooks are masked, whichever are read."""
    mask = KeepMask(source, rows.tokens, DataConfig(mask_hooks=HOOKS, outlier_multiple=1.5, n_calib=8))
    return Batches(source, rows.tokens, mask, hooks, **{**SIZES, **sizes})


def defined(rows: Rows, limits: dict[str, float], epoch: int, *, block_rows: int) -> list[np.ndarray]:
    """The rows of each batch of an epoch, as design and docstrings define them, one row at a time."""
    per_seq, per_superblock = N_CTX // block_rows, SIZES["superblock_rows"] // block_rows
    blocks = [seq * per_seq + i for seq in range(N_SEQS) if not rows.tokens.held_out[seq] for i in range(per_seq)]
    order = np.random.default_rng([3, 0, epoch]).permutation(len(blocks))
    norms = {hook: rows.every[hook].float().norm(dim=1) for hook in HOOKS}
    found = []
    for number in range(-(-len(blocks) // per_superblock)):
        mine = sorted(blocks[i] for i in order[number * per_superblock : (number + 1) * per_superblock])
        kept = [
            row for block in mine for row in range(block * block_rows, (block + 1) * block_rows)
            if rows.tokens.eligible.reshape(-1)[row] and all(norms[hook][row] <= limits[hook] for hook in HOOKS)
        ]
        permuted = [kept[i] for i in np.random.default_rng([3, 1, epoch, number]).permutation(len(kept))]
        n = SIZES["batch_rows"]
        found += [np.array(permuted[j * n : (j + 1) * n]) for j in range(len(kept) // n)]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hooks", [HOOKS, HOOKS[1:]])
def test_batches_are_those_of_the_definition(
    rows: Rows, tmp_path: Path, kind: Callable[[Rows, Path], Source], hooks: tuple[str, ...]
) -> None:
    for block_rows in (N_CTX,) if kind is live else (N_CTX, 4):
        source = kind(rows, tmp_path / str(block_rows)) if kind is not in_folder else _folder(rows, tmp_path, block_rows)
        stream = batches_of(rows, source, hooks, block_rows=block_rows)
        expected = [b for epoch in (0, 1) for b in defined(rows, stream.mask.limits, epoch, block_rows=block_rows)]
        dropped = 1 - len(np.unique(np.concatenate(expected))) / rows.tokens.n_eligible()
        assert dropped > 0.02, "the mask drops some"
        running = stream.stream(prefetch=1)
        for numbers, batch in zip(expected, islice(running, len(expected)), strict=True):
            assert batch.rows.tolist() == numbers.tolist() and set(batch.acts) == set(hooks)
            for hook, acts in batch.acts.items():
                assert torch.equal(acts.bfloat16(), rows.every[hook][batch.rows])
        running.close()


def _folder(rows: Rows, tmp_path: Path, block_rows: int) -> Source:
    (tmp_path / str(block_rows)).mkdir()
    return in_folder(rows, tmp_path / str(block_rows))


class Copies(TorchDispatchMode):
    """Counts numbers that torch writes in matrices as wide as a row: what it gathers, joins, copies and converts."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in {"index_select", "index", "cat", "copy_", "_to_copy", "clone"} and out.shape[-1:] == (D,):
            self.rows += out.numel() / D
        return out


@pytest.mark.parametrize(
    ("kind", "again", "first"),
    # gathered into its batch; from a tensor into the superblock, too; the first time in fp32, for the norm of a bf16 row
    [(in_cache, 1, 1), (in_folder, 1, 1), (in_numpy, 1, 1), (in_array, 2, 3)],
)
def test_copies_per_row(
    rows: Rows, tmp_path: Path, kind: Callable[[Rows, Path], Source], again: int, first: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row is read once into its superblock, and gathered once from there."""
    source = kind(rows, tmp_path)
    stream = batches_of(rows, source, HOOKS[:1], superblock_rows=N_SEQS * N_CTX)
    stream.mask.limits.pop(HOOKS[1])
    if isinstance(source, ActsSource):  # the calibration has measured some
        source._norms.clear()
    n_rows = len(stream.blocks) * N_CTX
    n_read, read = 0, source.read

    def counted(blocks: np.ndarray, block_rows: int, out: dict[str, torch.Tensor]) -> None:
        nonlocal n_read
        n_read += sum(map(len, out.values()))
        read(blocks, block_rows, out)

    monkeypatch.setattr(source, "read", counted)
    buffers = None
    for times in (first, again):
        n_read = 0
        with Copies() as copies:
            block = stream.superblock(0, 0, buffers)
            (batch,) = stream.place.batches(block.loaded, [slice(None)])
        assert len(batch[HOOKS[0]]) > 0.8 * n_rows and n_read == n_rows
        left_out = n_rows - len(batch[HOOKS[0]])
        assert copies.rows == times * n_rows - left_out
        buffers = block.buffers


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(46, 3), (23, 2, 3)])
def test_blocks_of_arrays(tmp_path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    values = torch.arange(46 * 3).reshape(shape)
    array = values.to(dtype) if isinstance(dtype, torch.dtype) else values.numpy().astype(dtype)
    given = [array]
    if isinstance(array, np.ndarray):
        np.save(tmp_path / "a.npy", array)
        given += [np.load(tmp_path / "a.npy", mmap_mode="r"), np.asfortranarray(array)]
    for one in given:
        arrays = Arrays(one, ["a"])
        out = torch.empty(12, 3, dtype=arrays.dtypes["a"])
        arrays.read("a", np.array([10, 0, 4]), 4, out)
        chosen = [r for b in (10, 0, 4) for r in range(4 * b, 4 * b + 4)]
        assert out.long().tolist() == values.reshape(-1, 3)[chosen].tolist()


def test_norms_of_own_rows_are_measured_once_and_faults_named(rows: Rows, tmp_path: Path) -> None:
    source = in_folder(rows, tmp_path)
    blocks = np.array([3, 1])
    norms = source.norms(HOOKS[0], blocks, N_CTX)
    chosen = rows.every[HOOKS[0]].view(-1, N_CTX, D)[torch.from_numpy(blocks)].flatten(0, 1)
    assert torch.equal(norms, chosen.float().norm(dim=1))
    assert torch.equal(source.norms(HOOKS[0], blocks, N_CTX, torch.zeros(2 * N_CTX, D)), norms), "not measured again"
    spoilt = rows.every[HOOKS[0]].float().numpy().copy()
    spoilt[100, 3] = np.nan
    spoilt[101] = 1e30  # a norm that is infinite, of a row that is not
    source = ActsSource(Arrays(spoilt, ["a"]))
    with pytest.raises(SaescopeError, match="row 100 of all"):
        source.norms("a", np.array([0, 6]), N_CTX)
    spoilt[100, 3] = 0
    assert source.norms("a", np.array([6]), N_CTX).isinf().sum() == 1


def test_batch_seqs(rows: Rows, tmp_path: Path) -> None:
    (config,) = resolve(quick_fields(model={"batch_seqs": 8}))
    auto = config.model_copy(update={"model": config.model.model_copy(update={"batch_seqs": "auto"})})  # type: ignore[union-attr]
    assert batch_seqs.batch_seqs(config, rows.model, rows.tokens, HOOKS) == 8
    assert batch_seqs.batch_seqs(auto, rows.model, rows.tokens, HOOKS) == batch_seqs.ON_HOST
    for most in (1, 2, 16, 64, 100):
        for n_seqs in (1, 3, 64, 65, 256):
            n = batch_seqs.even(most, n_seqs)
            passes = -(-n_seqs // n)
            assert n <= max(most, 1) and passes == -(-n_seqs // most) and n * passes - n_seqs < passes
