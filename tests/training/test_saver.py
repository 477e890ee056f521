"""Checkpoints beside the training: what is in them, who waits for whom, and disks that refuse."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae.base import Transform
from sae.errors import SaescopeError
from sae.io import chunks
from sae.io.files import read_json, write_json, write_tensors
from training.activations.batches import Address
from training.activations.calibration import Calibration
from training.checkpoint import Checkpoints
from training.config.reading import resolve
from training.loop import EverySeconds, Interrupted, fit
from training.saver import Saver
from training.schedule import Clock
from training.trainer import Trainer, new_sae

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
HERE = Address(0, 1, 2)


def trainer(device: str = "cpu", d: int = 8, d_sae: int = 32, n_rows: int = 64) -> Trainer:
    config = resolve({
        "name": "x", "model": None, "corpus": "tensors", "site": "acts", "data": {"batch_rows": n_rows},
        "sae": {"variant": "batchtopk", "d_sae": d_sae, "k": 3, "auxk": {"k": 4}},
        "train": {"budget": "1000 steps", "device": device, "dead_window": "3 steps",
                  "kernels": "reference" if device == "cpu" else "auto"},
    })[0]
    rows = torch.randn(200, d, generator=torch.Generator().manual_seed(1))
    same = Transform.identity(d)
    clock = Clock.of(config.train.budget, batch_rows=n_rows, epoch_rows=0)
    sae = new_sae(config, Calibration(same, Transform.identity(d), rows, rows))
    return Trainer(config, sae, clock, torch.device(device))


def batch(one: Trainer) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(one.n_steps)
    return {"acts": torch.randn(one.clock.batch_rows, one.sae.d_in, generator=generator).to(one.device)}


def steps(one: Trainer, n: int) -> None:
    for _ in range(n):
        one.step(batch(one))


def state(one: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in one.tensors().items()}


def assert_same(there: dict[str, Tensor], here: dict[str, Tensor]) -> None:
    assert there.keys() == here.keys()
    different = [name for name in here if not torch.equal(there[name], here[name])]
    assert not different


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing waits for this."""
    go, write = threading.Event(), chunks.write_hashed

    def waiting(path: Path, data: memoryview) -> str:
        assert go.wait(20)
        return write(path, data)

    monkeypatch.setattr(chunks, "write_hashed", waiting)
    yield go
    go.set()


@pytest.mark.parametrize("device", DEVICES)
def test_it_is_the_state_at_its_step_whatever_is_trained_meanwhile(
    device: str, tmp_path: Path, held: threading.Event
) -> None:
    sizes = (256, 16384, 1024) if device == "cuda" else (8, 32, 64)
    one, checkpoints = trainer(device, *sizes), Checkpoints(tmp_path, {"a": 1})
    steps(one, 5)
    before, numbers = state(one), one.numbers()
    with Saver(checkpoints, [one], pytest.fail) as saver:
        saver.save(HERE)
        steps(one, 20)
        held.set()
    assert not torch.equal(one.tensors()["sae.W_dec"], before["sae.W_dec"])
    twin = trainer(device, *sizes)
    assert checkpoints.load([twin]) == (HERE, [])
    assert_same(state(twin), before)
    assert twin.numbers() == numbers and twin.n_steps == 5
    steps(twin, 20)
    if device == "cpu":
        assert_same(state(twin), state(one))


def test_a_checkpoint_of_the_version_before_is_read(tmp_path: Path) -> None:
    """It had every matrix row by row, and hashes of whole files."""
    one, checkpoints = trainer(), Checkpoints(tmp_path, {})
    steps(one, 3)
    with Saver(checkpoints, [one], pytest.fail) as saver:
        saver.save(HERE)
    (place,) = checkpoints.finished()
    write_tensors(place / "000.safetensors", {name: tensor.contiguous() for name, tensor in one.tensors().items()})
    facts = read_json(place / "state.json")
    assert facts.pop("turned") == [["sae.W_enc", "adam.W_enc.first", "adam.W_enc.second"]]
    of_file = hashlib.sha256((place / "000.safetensors").read_bytes()).hexdigest()
    write_json(place / "state.json", facts | {"format_version": 2, "sha256": [of_file]})
    twin = trainer()
    assert checkpoints.load([twin]) == (HERE, [])
    assert_same(state(twin), state(one))
    write_json(place / "state.json", facts | {"format_version": 2, "sha256": [of_file[::-1]]})
    with pytest.raises(SaescopeError, match="was altered"):
        checkpoints.load([twin])


def test_what_a_kill_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    (tmp_path / ".step-00000120.0123456789ab.partial").mkdir()
    (tmp_path / ".other.0123456789ab.partial").mkdir()
    with Saver(Checkpoints(tmp_path, {}), [trainer()], pytest.fail) as saver:
        saver.save(HERE)
    assert {path.name for path in tmp_path.iterdir()} == {".other.0123456789ab.partial", "step-00000000"}


def test_the_next_one_waits_for_the_disk_and_the_loop_need_not(tmp_path: Path, held: threading.Event) -> None:
    one, checkpoints = trainer(), Checkpoints(tmp_path, {})
    with Saver(checkpoints, [one], pytest.fail) as saver:
        every = EverySeconds(0.001, lambda _: saver.save(HERE), lambda: saver.free)
        time.sleep(0.002)
        assert saver.free and every.due(0)
        every.do(0)
        time.sleep(0.002)
        assert not saver.free and not every.due(0), "still being written: the loop goes on"
        steps(one, 2)
        second = threading.Thread(target=saver.save, args=(HERE,))
        second.start()
        second.join(0.05)
        assert second.is_alive() and not checkpoints.finished(), "who asks nevertheless waits"
        held.set()
        second.join(20)
    assert [path.name for path in checkpoints.finished()] == ["step-00000000", "step-00000002"]


def test_a_time_is_not_due_again_before_it_has_passed() -> None:
    done: list[int] = []
    every = EverySeconds(30.0, done.append)
    assert not every.due(5)
    every._last -= 31
    assert every.due(5) and every.due(6), "as long as it is not done"
    every.do(6)
    assert not every.due(7) and done == [6]


def full(path: Path, _: memoryview) -> str:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def forbidden(path: Path, _: memoryview) -> str:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@pytest.mark.parametrize(("refuse", "reason"), [(full, "the disk is full"), (forbidden, "Permission denied")])
def test_a_disk_that_refuses_is_said_and_tried_again(
    refuse: Callable[[Path, memoryview], str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, said = trainer(), []
    checkpoints, write = Checkpoints(tmp_path, {}), chunks.write_hashed
    with Saver(checkpoints, [one], said.append) as saver:
        saver.save(HERE)
        steps(one, 1)
        saver._wait()
        monkeypatch.setattr(chunks, "write_hashed", refuse)
        saver.save(HERE)
        steps(one, 1)
        saver._wait()
        assert len(said) == 1 and "step 1 was not saved" in said[0] and reason in said[0], said
        assert f"The last checkpoint is {tmp_path}/step-00000000" in said[0]
        monkeypatch.setattr(chunks, "write_hashed", write)
        saver.save(HERE)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["step-00000000", "step-00000002"]
    assert len(said) == 1


@pytest.mark.parametrize("stop", [None, Interrupted("stopped.")])
def test_the_last_state_is_on_the_disk_or_the_training_fails(
    stop: Interrupted | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, checkpoints = trainer(), Checkpoints(tmp_path, {})
    with Saver(checkpoints, [one], pytest.fail) as saver:
        saver.save(HERE)
    steps(one, 1)
    monkeypatch.setattr(chunks, "write_hashed", full)
    said: list[str] = []
    with pytest.raises(SaescopeError, match=r"the disk is full.*step-00000000; --resume") as refused, \
            Saver(checkpoints, [one], said.append) as saver:
        saver.save(HERE)
        if stop:
            raise stop
    assert not isinstance(refused.value, Interrupted) and len(said) == 1


def test_what_stopped_a_training_is_not_hidden_by_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "write_hashed", full)
    one, said = trainer(), []
    with pytest.raises(SaescopeError, match="the batches ended after step 3"), \
            Saver(Checkpoints(tmp_path, {}), [one], said.append) as saver:
        fit([one], [batch(one)] * 3, 9, save=EverySeconds(0.0, lambda _: saver.save(HERE)))
    assert len(said) == 3 and not list(tmp_path.iterdir())


def test_a_defect_of_the_writer_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, _: memoryview) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(chunks, "write_hashed", broken)
    one = trainer()
    with pytest.raises(ZeroDivisionError), Saver(Checkpoints(tmp_path, {}), [one], pytest.fail) as saver:
        saver.save(HERE)
        saver.save(HERE)


def test_a_second_ctrl_c_waits_for_no_disk(tmp_path: Path, held: threading.Event) -> None:
    one = trainer()
    with pytest.raises(KeyboardInterrupt), Saver(Checkpoints(tmp_path, {}), [one], pytest.fail) as saver:
        saver.save(HERE)
        raise KeyboardInterrupt
    assert not saver.free
    held.set()
    saver._wait()
