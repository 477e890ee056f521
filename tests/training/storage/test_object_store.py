"""A cache in an object store: the bytes of one on disk, by however many processes; and stores that do not answer."""

import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae.errors import SaescopeError
from tests.helpers import HOOK, ended, refusal, run_sae, start_sae, train, tree, write_config
from tests.training.storage.server import Server, s3_server
from training.activations.remote_rows import RemoteFile, RemoteRows
from training.storage import mirror, sharing
from training.storage.remote import Range, RemoteStore, remote_store
from training.storage.sharing import SharedWork, claimants


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server(free_port()) as running:
        yield running


@pytest.fixture
def bucket(server: Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A bucket of its own."""
    for key, value in (server.variables | {"SAESCOPE_HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(key, value)
    return server.make_bucket(f"bucket-{abs(hash(request.node.name))}")


def results(folder: Path) -> dict[str, bytes]:
    """What a training leaves that says nothing of where its cache was, or of how fast it was."""
    files = {name: data for name, data in tree(folder / "runs/quick").items() if name.startswith(("final/", "sae_w"))}
    lines = map(json.loads, (folder / "runs/quick/metrics.jsonl").read_text().splitlines())
    kept = [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]
    return files | {"metrics": json.dumps(kept, sort_keys=True).encode()}


def objects(store: RemoteStore) -> dict[str, bytes]:
    """Everything below a folder of a store."""
    found = store.fs.find(store.root)
    return {path.removeprefix(f"{store.root}/"): store.fs.cat_file(path) for path in found}


def both(bucket: str, tmp_path: Path) -> tuple[Path, Path]:
    """Folders of one config, whose cache is on disk, trained from there, and in the store."""
    disk, store = tmp_path / "disk", tmp_path / "store"
    for folder, place in ((disk, "cache"), (store, f"{bucket}/caches")):
        folder.mkdir()
        write_config(folder, cache={"dir": place, "name": "c", "shard_rows": 320})
    assert train(disk).code == 0
    return disk, store


def of_cache(files: dict[str, bytes]) -> dict[str, bytes]:
    """What belongs to a cache itself: neither calibrations nor the note of what was compared with its checksum."""
    return {name: data for name, data in files.items() if "calibration" not in name and "checked" not in name}


def test_a_training_from_a_store_equals_one_from_disk(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, store = both(bucket, tmp_path)
    assert train(store).code == 0
    assert results(store) == results(disk)
    remote, verify = remote_store(f"{bucket}/caches/c"), ("cache", "verify", f"{bucket}/caches/c")
    assert of_cache(objects(remote)) == of_cache(tree(disk / "cache/c"))
    assert run_sae(store, *verify).out == f"{bucket}/caches/c: whole\n"
    # a machine that has never seen it
    monkeypatch.setenv("SAESCOPE_HOME", str(tmp_path / "other home"))
    shutil.rmtree(store / "runs")
    outcome = train(store)
    assert outcome.code == 0 and "caching" not in outcome.err and results(store) == results(disk)
    write_config(store, model=None, corpus={"sources": f"acts:{bucket}/caches/c"}, cache={"dir": "cache"})
    assert train(store, "name=rows").code == 0
    assert "is not a cache" in refusal(train(store, "name=none", f"corpus.sources=acts:{bucket}/caches"))
    write_config(store, cache={"dir": f"{bucket}/caches", "name": "c", "shard_rows": 320})
    # a shard that was altered, and one of another size
    data = remote.read(f"acts/{HOOK}/shard-00001.npy")
    assert data is not None
    remote.write(f"acts/{HOOK}/shard-00001.npy", [data[:-1], b"x"])
    assert "shard-00001.npy is missing, truncated or altered" in refusal(run_sae(store, *verify), "cache")
    remote.remove(f"acts/{HOOK}/shard-00002.npy")
    assert "shard-00002.npy is missing or has the wrong size" in refusal(train(store, "name=third"))
    assert not (store / "runs/third").exists()


@pytest.mark.slow
def test_processes_fill_a_store_though_one_dies_and_an_index_is_made_from_it(bucket: str, tmp_path: Path) -> None:
    disk, store = both(bucket, tmp_path)
    running = [start_sae(store, "cache", "make", "quick.yaml") for _ in range(3)]
    remote = remote_store(f"{bucket}/caches/c")
    while not any(name.endswith(".json") and "shard" in name for name in remote.names(f"acts/{HOOK}")):
        assert running[0].poll() is None
        time.sleep(0.05)
    running[0].send_signal(signal.SIGKILL)
    assert ended(running[0]).code in (-signal.SIGKILL, 0)
    for process in running[1:]:
        outcome = ended(process)
        assert outcome.code == 0 and outcome.out == f"{bucket}/caches/c\n", outcome
    assert of_cache(objects(remote)) == of_cache(tree(disk / "cache/c"))
    assert train(store).code == 0 and results(store) == results(disk)
    for folder in (store, disk):
        assert run_sae(folder, "index", "runs/quick", "--quiet").code == 0
    assert tree(store / "runs/quick/index/default") == tree(disk / "runs/quick/index/default")


def test_files_of_a_store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = remote_store(f"{bucket}/folder")
    assert store.names("a") == set() and not store.exists("a/b") and store.read("a/b") is None
    store.write("a/b", [b"some", memoryview(b" bytes")])
    assert store.create("a/c", b"1") and not store.create("a/c", b"2")
    assert store.read("a/b") == b"some bytes" and store.read("a/c") == b"1"
    assert store.names("a") == {"b", "c"} and store.sizes("a") == {"b": 10, "c": 1} and store.names("") == set()
    assert store.read_ranges([Range("a/b", 5, 10), Range("a/b", 0, 2), Range("a/c", 0, 1)]) == [b"bytes", b"so", b"1"]
    store.remove("a/c")
    store.remove("a/c")
    assert store.names("a") == {"b"}
    monkeypatch.setattr(sharing, "PATIENCE", 0.1)
    monkeypatch.setattr(sharing, "POLL", 0.02)
    assert store.create("work/.claims/00000", b'{"machine": "elsewhere", "name": "node7", "pid": 1}')
    done: set[int] = set()
    with SharedWork(store, "work", 2, done=lambda: set(done), is_done=done.__contains__) as work:
        order = [(i, done.add(i))[0] for i in work.pieces()]
    assert order == [1, 0] and claimants(store, "work") == []


def test_the_slower_of_two_processes_leaves_a_fetched_mirror_alone(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{bucket}/caches/c"
    store, folder = remote_store(url), mirror.mirror_of(url)
    manifest = json.dumps({"sha256": {"tokens.npy": ""}}).encode()
    store.write("tokens.npy", [b"tokens"])
    assert store.create("manifest.json", manifest)

    @contextmanager
    def after_another(folder: Path, **_: Any) -> Iterator[None]:
        """While this process waits for the lock, another fetches the tokens and begins with a hook."""
        with monkeypatch.context() as patch:
            patch.setattr(mirror, "locked", lambda *_, **__: nullcontext())
            mirror.fetch_tokens(folder)
        (folder / "acts/hook").mkdir(parents=True)
        (folder / "acts/hook/.norms.partial").touch()
        yield

    monkeypatch.setattr(mirror, "locked", after_another)
    mirror.fetch_tokens(folder)
    assert (folder / "acts/hook/.norms.partial").exists() and (folder / "tokens.npy").read_bytes() == b"tokens"


def test_blocks_of_rows_are_read_from_wherever_they_lie(bucket: str) -> None:
    store, d = remote_store(f"{bucket}/rows"), 6
    rows = torch.arange(40 * d, dtype=torch.float32).reshape(40, d)
    cuts, files = [0, 8, 12, 40], []
    for i, (start, stop) in enumerate(pairwise(cuts)):
        store.write(f"{i}", [bytes(3 * i), rows[start:stop].numpy().tobytes()])
        files.append(RemoteFile(f"{i}", 3 * i, stop - start))
    source, rng = RemoteRows(store, files, 4 * d), np.random.default_rng(0)
    for block_rows in (1, 4, 5, 8):
        every = rng.permutation(40 // block_rows)
        for blocks in (every, np.sort(every[:3]), np.array([2, 2, 0])):
            out = torch.empty(len(blocks) * block_rows, d)
            source.read(blocks, block_rows, out)
            assert torch.equal(out, rows.reshape(-1, block_rows, d)[torch.from_numpy(blocks)].flatten(0, 1))
    store.write("1", [b"short"])
    with pytest.raises(SaescopeError, match="/rows/1 is shorter"):
        source.read(np.array([2]), 4, torch.empty(4, d))


class Dropping:
    """A server that takes every connection and drops it in the middle of an answer."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        self.n_taken = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                self.n_taken += 1
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")


@pytest.mark.parametrize("kind", ["refuses", "drops"])
def test_a_store_that_does_not_answer(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropping = Dropping()
    port = dropping.port if kind == "drops" else free_port()
    there = Server(None, port)  # type: ignore[arg-type]
    for key, value in (there.variables | {"SAESCOPE_HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(key, value)
    write_config(tmp_path, cache={"dir": f"s3://{kind}/caches", "name": "c"})
    said = refusal(train(tmp_path))
    assert f"s3://{kind}/caches/c/manifest.json cannot be reached" in said, said
    assert bool(dropping.n_taken) == (kind == "drops")
    assert not tree(tmp_path / "runs")
    dropping.socket.close()


def test_a_store_that_dies_while_it_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before stays, and nothing half of it."""
    with s3_server(free_port()) as other:
        for key, value in (other.variables | {"SAESCOPE_HOME": str(tmp_path / "home")}).items():
            monkeypatch.setenv(key, value)
        bucket = other.make_bucket("dies")
        write_config(tmp_path, cache={"dir": f"{bucket}/caches", "name": "c", "shard_rows": 128})
        store, real, n = remote_store(f"{bucket}/caches/c"), RemoteStore.write, [0]

        def dying(self: RemoteStore, name: str, parts: list[bytes]) -> None:
            n[0] += 1
            if n[0] == 12:
                other.process.kill()
            real(self, name, parts)

        monkeypatch.setattr(RemoteStore, "write", dying)
        said = refusal(train(tmp_path))
        assert "cannot be reached" in said and not tree(tmp_path / "runs")
        assert store.place() in said


@pytest.mark.slow
def test_a_store_that_dies_while_it_is_trained_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence; what was saved stays whole, and there is no SAE."""
    with s3_server(free_port()) as other:
        for key, value in (other.variables | {"SAESCOPE_HOME": str(tmp_path / "home")}).items():
            monkeypatch.setenv(key, value)
        bucket = other.make_bucket("falls")  # stores are opened once, by URL
        data, budget = {"superblock_rows": 512, "prefetch": 0}, {"budget": "2 epochs"}
        write_config(tmp_path, cache={"dir": f"{bucket}/caches", "name": "c"}, data=data, train=budget)
        assert train(tmp_path, "name=before").code == 0
        real = RemoteRows.read
        saved = tmp_path / "runs/quick/checkpoints"

        def dying(self: RemoteRows, *arguments: Any) -> None:
            if list(saved.glob("step-*")):
                other.process.kill()
            real(self, *arguments)

        monkeypatch.setattr(RemoteRows, "read", dying)
        said = refusal(train(tmp_path))
        assert f"{bucket}/caches/c" in said and "cannot be reached" in said, said
        assert not (tmp_path / "runs/quick/final").exists()
        assert all((step / "state.json").exists() for step in saved.glob("step-*"))


def test_an_unknown_kind_of_store_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, cache={"dir": "elsewhere://bucket/caches"})
    assert "elsewhere://bucket/caches" in refusal(train(tmp_path))
