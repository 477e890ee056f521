"""Ranks under torchrun fill a cache that is not there yet, on disk and in an S3 store, and train from it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers import HOOK, run_sae, tree, write_config
from tests.training.distributed.launched import command, environment, free_port, metrics
from tests.training.storage.server import s3_server
from training.storage.remote import remote_store

SMALL = {"dir": "cache", "name": "c", "shard_rows": 128}
"""32 shards, so that each rank gets some."""


def launched(folder: Path, n: int, *overrides: str) -> "subprocess.CompletedProcess[str]":
    """A training by n ranks in a folder."""
    line = command(n, "sae.cli", "train", "quick.yaml", *overrides)
    return subprocess.run(line, env=environment(), cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def trained(folder: Path, n: int, *overrides: str) -> str:
    """What ranks say that train to the end."""
    done = launched(folder, n, *overrides)
    assert done.returncode == 0, done.stderr
    return done.stderr


def refused(folder: Path, n: int, *overrides: str) -> str:
    """The one sentence with which ranks refuse; nothing of their run is there."""
    done = launched(folder, n, *overrides, "name=refused")
    said = [line for line in done.stderr.splitlines() if line.startswith(("sae:", "sae train:"))]
    assert done.returncode != 0 and len(said) == 1, done.stderr
    assert not (folder / "runs/refused").exists()
    return said[0]


def outcome(run: Path) -> dict[str, bytes]:
    """All that must not depend on where the rows came from."""
    found = {name: data for name, data in tree(run / "final").items() if name.endswith(".safetensors")}
    assert found
    return found | {"metrics": json.dumps(metrics(run), sort_keys=True).encode()}


def of_cache(files: dict[str, bytes]) -> dict[str, bytes]:
    """What belongs to a cache itself: neither calibrations nor the note of when its files were compared."""
    return {name: data for name, data in files.items() if "calibration" not in name and "checked" not in name}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose cache one process has made, and in which 2 ranks have trained."""
    folder = tmp_path_factory.mktemp("one")
    write_config(folder, cache=SMALL)
    made = run_sae(folder, "train", "quick.yaml", "name=alone")
    assert made.code == 0, made.err
    assert "caching" not in trained(folder, 2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_ranks_fill_a_cache_together(one_process: Path, tmp_path: Path, shards: int) -> None:
    write_config(tmp_path, cache=SMALL)
    assert not (tmp_path / "cache").exists()
    trained(tmp_path, 4, f"train.shards={shards}")
    assert of_cache(tree(tmp_path / "cache/c")) == of_cache(tree(one_process / "cache/c"))
    trained(tmp_path, 2, "name=two")
    assert outcome(tmp_path / "runs/two") == outcome(one_process / "runs/quick")


@pytest.mark.slow
def test_ranks_fill_a_store_and_train_from_it(
    one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(free_port()) as server:
        for key, value in (server.variables | {"SAESCOPE_HOME": str(tmp_path / "home")}).items():
            monkeypatch.setenv(key, value)
        bucket = server.make_bucket("ranks")
        write_config(tmp_path, cache=SMALL | {"dir": f"{bucket}/caches"})
        trained(tmp_path, 2)
        assert outcome(tmp_path / "runs/quick") == outcome(one_process / "runs/quick")
        store = remote_store(f"{bucket}/caches/c")
        there = {path.removeprefix(f"{store.root}/"): store.fs.cat_file(path) for path in store.fs.find(store.root)}
        assert of_cache(there) == of_cache(tree(one_process / "cache/c"))
        # machines that have never seen it
        os.environ["SAESCOPE_HOME"] = str(tmp_path / "other home")
        assert "caching" not in trained(tmp_path, 2, "name=again")
        assert outcome(tmp_path / "runs/again") == outcome(one_process / "runs/quick")
        # a shard that is missing
        store.remove(f"acts/{HOOK}/shard-00002.npy")
        assert "shard-00002.npy is missing" in refused(tmp_path, 2)
    # nobody answers any more
    assert f"{bucket}/caches/c/manifest.json cannot be reached" in refused(tmp_path, 2)
