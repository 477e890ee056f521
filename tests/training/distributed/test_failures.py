"""A rank that dies, hangs, runs out of memory or is about to do something else ends the others, with one sentence."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sae.errors import SaescopeError
from tests.training.distributed.configs import config, resolved
from tests.training.distributed.ranks import Ended, on_ranks, results
from training.distributed import launch
from training.distributed.world import check_fits, world_of
from training.run import train
from training.trainer import Trainer


def with_trouble(runs: Path, trouble: Callable[[], None], **options: Any) -> Callable[[], None]:
    """A training whose rank 1 meets with something in step 5."""

    def work() -> None:
        step = Trainer.step

        def step_and_trouble(self: Trainer, acts: dict) -> None:
            if self.n_steps == 4 and os.environ["RANK"] == "1":
                trouble()
            step(self, acts)

        Trainer.step = step_and_trouble  # type: ignore[method-assign]
        train(config("topk", shards=2, **options), runs=runs, quiet=True)

    return work


def sentence(ended: Sequence[Ended], *rest: str) -> None:
    """Exactly one of the ranks says a sentence with these facts."""
    assert all(e.code for e in ended), "none has gone on"
    assert sum(all(fact in e.said for fact in rest) for e in ended) == 1, [e.said for e in ended]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(60)


def run_out() -> None:
    raise MemoryError("cannot allocate 7 GB")


@pytest.mark.parametrize(("trouble", "facts"), [
    (die, ("rank 1 (process", "died", "--resume")), (hang, ("rank 1 (process", "hangs", "2 s")),
    pytest.param(run_out, ("rank 1 on", "out of memory", "7 GB"), marks=pytest.mark.slow),
])
def test_one_sentence_names_the_rank(tmp_path: Path, trouble: Callable[[], None], facts: tuple[str, ...]) -> None:
    began = time.monotonic()
    ended = on_ranks(2, with_trouble(tmp_path / "runs", trouble, patience="2 s"), tmp_path / "ranks")
    sentence(ended, *facts)
    assert time.monotonic() - began < 30
    # one that was being written is abandoned, or whole
    assert all((there / "state.json").exists() for there in (tmp_path / "runs" / "topk" / "checkpoints").glob("step-*"))


def test_of_two_threads_that_find_a_fault_one_tells_of_it(tmp_path: Path) -> None:
    def work() -> list[bool]:
        told = [launch.tell("rank 1 died")]
        other = threading.Thread(target=lambda: told.append(launch.tell("rank 1 died")))
        other.start()
        other.join()
        return told

    assert results(1, work, tmp_path / "ranks") == [[True, False]]


def test_ranks_that_are_about_to_do_different_things_do_nothing(tmp_path: Path) -> None:
    def work() -> None:
        rank = int(os.environ["RANK"])
        train(config("topk", shards=2) | {"optim": {"lr": 1e-3 * (1 + rank)}}, runs=tmp_path / "runs", quiet=True)

    sentence(on_ranks(2, work, tmp_path / "ranks"), "rank 1", "optim.lr", "0.001", "0.002")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("target", "value", "facts"), [
    ("numpy.__version__", "0.1", ("numpy", "0.1")), ("torch.__version__", "0.2", ("torch", "0.2")),
    ("training.distributed.world._digest_of_code", lambda: "abc", ("code", "abc")),
    ("training.distributed.world.code_version", lambda: "0.3", ("saescope", "0.3")),
])
def test_another_code_or_package_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, value: Any, facts: tuple[str, str]
) -> None:
    def work() -> None:
        if os.environ["RANK"] == "1":
            monkeypatch.setattr(target, value)
        train(config("topk", shards=2), runs=tmp_path / "runs", quiet=True)

    sentence(on_ranks(2, work, tmp_path / "ranks"), "rank 1", *facts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("n", "options", "fact"), [
    (3, {"shards": 2}, "train.shards = 2 does not divide the 3 ranks"),
    pytest.param(3, {"shards": 1}, "data.batch_rows = 64", marks=pytest.mark.slow),
])
def test_ranks_that_cannot_share_it_say_so_once(tmp_path: Path, n: int, options: dict[str, Any], fact: str) -> None:
    def work() -> None:
        train(config("topk", **options), runs=tmp_path / "runs", quiet=True)

    sentence(on_ranks(n, work, tmp_path / "ranks"), fact)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("n", "shards", "changes", "fact"), [
    (4, 3, {}, "train.shards = 3"), (8, 8, {"d_sae": 100}, "d_sae = 100"), (6, 2, {}, "data.batch_rows = 64"),
    (2, 1, {"variant": "mdl"}, "mdl"),
])
def test_what_cannot_be_shared_is_said(n: int, shards: int, changes: dict[str, Any], fact: str) -> None:
    member = resolved("relu", shards=shards)
    fields = member.plain() | {"sae": {"variant": "relu", "d_sae": 96} | changes}
    with pytest.raises(SaescopeError, match=fact):
        check_fits(member.model_validate(fields), n)


def test_a_run_that_exists_is_refused_once_and_stays(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "topk"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("something: else\n")

    def work() -> None:
        train(config("topk", shards=2), runs=tmp_path / "runs", quiet=True)

    sentence(on_ranks(2, work, tmp_path / "ranks"), "--resume", "name=")
    assert [p.name for p in run.iterdir()] == ["config.yaml"]


def test_shards_without_torchrun_are_refused() -> None:
    with pytest.raises(SaescopeError, match="torchrun --nproc-per-node 2"), world_of([resolved("topk", shards=2)]):
        pass


def test_restarted_ranks_go_on_by_themselves_but_not_with_what_another_launch_began(tmp_path: Path) -> None:
    runs, other = tmp_path / "runs", tmp_path / "other"
    on_ranks(2, with_trouble(runs, die), tmp_path / "first")

    def again() -> None:
        train(config("topk", shards=2), runs=runs, quiet=True)

    ended = on_ranks(2, again, tmp_path / "second", restart=1)
    assert [e.code for e in ended] == [0, 0], [e.said for e in ended]
    assert (runs / "topk" / "summary.json").exists()
    train(config("topk"), runs=other, quiet=True)

    def not_mine() -> None:
        train(config("topk"), runs=other, quiet=True)

    sentence(on_ranks(2, not_mine, tmp_path / "third", restart=1), "--resume", "name=")
