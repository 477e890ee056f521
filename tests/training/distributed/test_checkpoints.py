"""Several ranks go on where they were stopped: as many bit for bit, others to rounding; and end in one ordinary run."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sae
from sae.errors import SaescopeError
from tests.training.distributed.configs import STEPS, config
from tests.training.distributed.launched import metrics
from tests.training.distributed.ranks import on_ranks, results
from training.run import train
from training.trainer import Trainer


def training(runs: Path, shards: int, **options: bool) -> Callable[[], None]:
    def work() -> None:
        train(config("matryoshka", shards=shards), runs=runs, quiet=True, **options)

    return work


def stopped(runs: Path, shards: int, at_step: int) -> Callable[[], None]:
    """A training in which the last rank alone is told to stop."""

    def work() -> None:
        step = Trainer.step

        def step_and_signal(self: Trainer, acts: dict) -> None:
            step(self, acts)
            if self.n_steps == at_step and int(os.environ["RANK"]) + 1 == int(os.environ["WORLD_SIZE"]):
                os.kill(os.getpid(), signal.SIGTERM)

        Trainer.step = step_and_signal  # type: ignore[method-assign]
        training(runs, shards)()

    return work


def files(run: Path) -> dict[str, bytes]:
    found = [*run.glob("final/*"), *sorted(run.glob("checkpoints/step-*"))[-1].glob("*.safetensors")]
    return {file.name: file.read_bytes() for file in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    results(2, training(folder, 2), folder / "ranks")
    return folder / "matryoshka"


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with one that was stopped after step 6."""
    folder = tmp_path_factory.mktemp("interrupted")
    ended = on_ranks(2, stopped(folder, 2, 6), folder / "ranks")
    assert [e.code for e in ended] == [1, 2] or [e.code for e in ended] == [2, 1], [e.said for e in ended]
    assert sum("after step 6" in e.said for e in ended) == 1, "one rank speaks for both"
    assert (folder / "matryoshka" / "checkpoints" / f"step-{6:08d}" / "state.json").exists()
    return folder


def test_as_many_ranks_go_on_bit_for_bit(undisturbed: Path, interrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(interrupted / "matryoshka", tmp_path / "matryoshka")
    results(2, training(tmp_path, 2, resume=True), tmp_path / "ranks")
    assert files(tmp_path / "matryoshka") == files(undisturbed)
    assert metrics(tmp_path / "matryoshka") == metrics(undisturbed)


@pytest.mark.parametrize(("n", "shards"), [
    (1, 1), *(pytest.param(*grid, marks=pytest.mark.slow) for grid in ((2, 1), (4, 4))),
])
def test_other_numbers_of_ranks_go_on_to_rounding(
    undisturbed: Path, interrupted: Path, tmp_path: Path, n: int, shards: int
) -> None:
    shutil.copytree(interrupted / "matryoshka", tmp_path / "matryoshka")
    results(n, training(tmp_path, shards, resume=True), tmp_path / "ranks")
    there, here = sae.load(undisturbed), sae.load(tmp_path / "matryoshka")
    for (name, expected), (_, found) in zip(there.tensors(), here.tensors(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)
    assert metrics(tmp_path / "matryoshka")[-1]["step"] == STEPS


@pytest.mark.slow
def test_ranks_go_on_from_a_checkpoint_of_one_process(undisturbed: Path, tmp_path: Path) -> None:
    plain = config("matryoshka", budget="6 steps")
    train(plain, runs=tmp_path, quiet=True)
    longer = config("matryoshka", name="longer", shards=2)

    def work() -> None:
        train(longer, runs=tmp_path, from_run=tmp_path / "matryoshka", quiet=True)

    results(2, work, tmp_path / "ranks")
    first, last = metrics(tmp_path / "longer")[:6], metrics(tmp_path / "longer")[-1]
    assert first == metrics(tmp_path / "matryoshka")[:6] and last["step"] == STEPS


def test_one_process_says_how_to_go_on_from_a_checkpoint_of_several(interrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(interrupted / "matryoshka", tmp_path / "matryoshka")
    with pytest.raises(SaescopeError, match=r"2 ranks.*torchrun"):
        train(config("matryoshka"), runs=tmp_path, resume=True, quiet=True)


@pytest.mark.slow
def test_an_altered_piece_is_refused_by_all_with_one_sentence(interrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(interrupted / "matryoshka", tmp_path / "matryoshka")
    piece = sorted((tmp_path / "matryoshka" / "checkpoints" / f"step-{6:08d}").glob("*.safetensors"))[1]
    data = bytearray(piece.read_bytes())
    data[len(data) // 2] ^= 1
    piece.write_bytes(data)
    ended = on_ranks(2, training(tmp_path, 2, resume=True), tmp_path / "ranks")
    assert all(e.code for e in ended) and sum(piece.name in e.said for e in ended) == 1, [e.said for e in ended]
