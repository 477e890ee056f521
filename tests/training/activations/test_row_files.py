"""Blocks of rows come out of files as their bytes say, wherever files begin and end."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sae.errors import SaescopeError
from training.activations.row_files import RowFile, RowFiles, runs

D = 3


def written(folder: Path, lengths: list[int]) -> tuple[RowFiles, torch.Tensor]:
    """Files of so many rows behind `i` bytes of something else, and all rows."""
    every = torch.arange(sum(lengths) * D, dtype=torch.float32).view(-1, D).half()
    files, begin = [], 0
    for i, n in enumerate(lengths):
        path = folder / f"{i}.bin"
        path.write_bytes(b"x" * i + every[begin : begin + n].numpy().tobytes())
        files.append(RowFile(path, i, n))
        begin += n
    return RowFiles(files, 2 * D), every


@pytest.mark.parametrize("lengths", [[40], [1] * 40, [7, 0, 20, 13], [8, 16, 16], [3, 1, 2, 34]])
@pytest.mark.parametrize("block_rows", [1, 4, 8])
def test_any_blocks_in_any_order(tmp_path: Path, lengths: list[int], block_rows: int) -> None:
    files, every = written(tmp_path, lengths)
    by_block = every.view(-1, block_rows, D)
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, len(by_block)):
        for chosen in (rng.permutation(len(by_block))[:n], np.sort(rng.permutation(len(by_block))[:n])):
            out = torch.full((n * block_rows, D), -1.0, dtype=torch.float16)
            files.read(chosen, block_rows, out)
            assert torch.equal(out, by_block[torch.from_numpy(chosen)].reshape(-1, D))


def test_more_files_than_stay_mapped(tmp_path: Path) -> None:
    files, every = written(tmp_path, [2] * 600)
    out = torch.empty_like(every)
    files.read(np.arange(600), 2, out)
    assert torch.equal(out, every)


def test_a_file_that_has_gone_or_was_cut_is_named(tmp_path: Path) -> None:
    files, every = written(tmp_path, [4, 4, 4])
    (tmp_path / "0.bin").unlink()
    (tmp_path / "2.bin").write_bytes(b"short")
    out = torch.empty_like(every[:4])
    files.read(np.array([1]), 4, out)
    for block in (0, 2):
        with pytest.raises(SaescopeError, match=rf"{block}\.bin"):
            files.read(np.array([block]), 4, out)


def test_neighbouring_blocks_are_one_run() -> None:
    assert list(runs(np.array([3, 4, 5, 9, 8, 0]), 10)) == [(30, 30, 0), (90, 10, 30), (80, 10, 40), (0, 10, 50)]
    assert list(runs(np.array([], dtype=np.int64), 10)) == []
