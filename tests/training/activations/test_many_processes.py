"""Several processes fill one cache: the bytes are those of one process, whatever happens to some of them."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sae.errors import SaescopeError
from tests.training.activations.test_cache import N_CTX, D, compute, made, tokens_at, tree
from training.activations.cache import fill
from training.corpus.tokens import Tokens, open_tokens
from training.storage import sharing
from training.storage.sharing import SharedWork, claimants, has_gone, this_process
from training.storage.store import LocalStore


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often what others have done."""
    monkeypatch.setattr(sharing, "POLL", 0.02)


def forked(work: Callable[[], None]) -> int:
    """A process of its own for this work; the libraries are imported already."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def filled(tokens: Tokens, seconds: float, log: Path | None = None, n_together: int = 0) -> None:
    """Fill a cache of twelve shards, of which each takes a while; begin when so many processes are there."""
    if log is not None:
        (log.parent / f"here-{os.getpid()}").touch()
        while len(list(log.parent.glob("here-*"))) < n_together:
            time.sleep(0.005)

    def slow(seqs: np.ndarray) -> dict[str, torch.Tensor]:
        time.sleep(seconds)
        if log is not None:
            with log.open("a") as file:
                file.write(f"{os.getpid()} {seqs[0]}\n")
        return compute(seqs)

    fill(tokens, slow, {"a": D, "b": D}, dtype="bfloat16", shard_rows=N_CTX)


def test_four_processes_fill_a_cache_as_one_does_each_its_shards(tmp_path: Path) -> None:
    made(tmp_path / "one", N_CTX)
    tokens = tokens_at(tmp_path / "four")
    children = [forked(lambda: filled(tokens, 0.1, tmp_path / "log", 4)) for _ in range(4)]
    assert [status(child) for child in children] == [0] * 4
    assert tree(tmp_path / "four") == tree(tmp_path / "one")
    done = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(int(seq) for _, seq in done) == list(range(12)), "no shard was made twice"
    assert len({process for process, _ in done}) > 1


def test_a_process_killed_at_a_random_moment_changes_nothing(tmp_path: Path) -> None:
    made(tmp_path / "one", N_CTX)
    expected, rng, n_killed = tree(tmp_path / "one"), random.Random(0), 0
    for i in range(10):
        tokens = tokens_at(tmp_path / f"{i}")
        children = [forked(lambda tokens=tokens: filled(tokens, 0.01)) for _ in range(3)]  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.05))
        os.kill(children[0], signal.SIGKILL)
        ends = [status(child) for child in children]
        n_killed += ends[0] == -signal.SIGKILL
        assert ends[1:] == [0, 0] and tree(tmp_path / f"{i}") == expected
    assert n_killed > 5


def test_all_killed_and_begun_again(tmp_path: Path) -> None:
    made(tmp_path / "one", N_CTX)
    tokens = tokens_at(tmp_path / "two")
    children = [forked(lambda: filled(tokens, 0.03)) for _ in range(2)]
    time.sleep(0.1)
    for child in children:
        os.kill(child, signal.SIGKILL)
        status(child)
    assert claimants(LocalStore(tmp_path / "two"), "acts") == []
    began = time.monotonic()
    filled(tokens, 0.0)
    assert time.monotonic() - began < 10, "claims of processes that have gone are not waited for"
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


def test_progress_is_that_of_all(tmp_path: Path) -> None:
    tokens = tokens_at(tmp_path / "c")
    child = forked(lambda: filled(tokens, 0.1))
    while not (tmp_path / "c/acts/b/shard-00001.json").exists():
        time.sleep(0.01)
    told: dict[str, list[int]] = {"skip": [], "advance": []}
    fill(
        open_tokens(tmp_path / "c"), compute, {"a": D, "b": D}, dtype="bfloat16", shard_rows=N_CTX,
        advance=told["advance"].append, skip=told["skip"].append,
    )
    assert status(child) == 0
    assert sum(told["skip"]) and sum(told["skip"]) + sum(told["advance"]) == 12 * N_CTX


def test_what_ends_one_process_is_no_end_for_the_others(tmp_path: Path) -> None:
    made(tmp_path / "one", N_CTX)
    tokens = tokens_at(tmp_path / "c")

    def faulty(seqs: np.ndarray) -> dict[str, torch.Tensor]:
        raise SaescopeError("out of memory")

    with pytest.raises(SaescopeError, match="out of memory"):
        fill(tokens, faulty, {"a": D, "b": D}, dtype="bfloat16", shard_rows=N_CTX)
    assert not (tmp_path / "c/acts/.claims").exists(), "its claim is withdrawn"
    filled(tokens, 0.0)
    assert tree(tmp_path / "c") == tree(tmp_path / "one")


def test_a_claim_of_a_machine_that_does_not_answer_is_taken_over_when_nothing_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, done = LocalStore(tmp_path), set[int]()
    assert store.create("work/.claims/00001", b'{"machine": "elsewhere", "name": "node7", "pid": 12}')
    assert claimants(store, "work") == ["process 12 on node7"]
    monkeypatch.setattr(sharing, "PATIENCE", 0.2)
    order, said, began = [], list[str](), time.monotonic()
    with SharedWork(store, "work", 3, done=lambda: set(done), is_done=done.__contains__, say=said.append) as work:
        for i in work.pieces():
            order.append((i, time.monotonic() - began > 0.2))
            done.add(i)
    assert order == [(0, False), (2, False), (1, True)]
    assert "1 of 3" in said[0]
    assert not (tmp_path / "work/.claims").exists(), "no claim is left"


def test_whether_a_process_has_gone(tmp_path: Path) -> None:
    from sae.io.files import json_bytes

    mine = this_process()
    assert not has_gone(json_bytes(mine))
    assert has_gone(json_bytes(mine | {"began": 1.0})), "its number was given to another"
    child = forked(lambda: None)
    assert status(child) == 0
    assert has_gone(json_bytes(mine | {"pid": child}))
    assert not has_gone(json_bytes(mine | {"pid": child, "machine": "elsewhere"}))
    assert not has_gone(b"") and not has_gone(b"[1]"), "nobody knows"


def test_a_file_is_created_once(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    children = [forked(lambda i=i: os._exit(store.create("a/b", str(i).encode()) and 7)) for i in range(4)]  # type: ignore
    ends = [status(child) for child in children]
    assert sorted(ends) == [0, 0, 0, 7]
    assert store.read("a/b") == str(ends.index(7)).encode() and store.names("a") == {"b"}
    store.remove("a/b")
    store.remove("a/b")
    assert store.read("a/b") is None and store.names("a") == set() and not store.exists("a/b")
