"""Making an index: the same bytes however it is cut up, kills, refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from analysis.corpus_rows import open_rows
from analysis.index import Index, build, encode, indexes, open_index
from analysis.trained import open_trained
from sae.errors import SaescopeError
from sae.io.files import json_bytes
from tests.helpers import ROOT, ended, refusal, run_sae, start_sae, train, tree, write_config
from training.storage.store import LocalStore


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in 4,096 rows."""
    monkeypatch.setattr("analysis.index.encode.BLOCK_ROWS", 256)


def test_batches_shards_and_memory_leave_no_trace(folder: Path) -> None:
    run = folder / "runs/quick"
    cuts = [{"batch_rows": 256, "shard_rows": 512}, {"batch_rows": 1024, "shard_rows": 4096, "memory": "16 MB"}]
    made = [tree(build(run, name=f"cut{i}", quiet=True, **cut).folder) for i, cut in enumerate(cuts)]
    assert made[0] == made[1]


def test_an_interrupted_index_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder / "runs/quick"
    whole = tree(build(run, name="whole", quiet=True, batch_rows=256, shard_rows=512).folder)
    real, calls = encode.encode_batch, []

    def dies(*args: object) -> object:
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(encode, "encode_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        build(run, name="torn", quiet=True, batch_rows=256, shard_rows=512)
    assert "torn" not in [p.name for p in indexes(run)]
    (run / "index/torn.partial/0123abcd-00003.kept").write_bytes(b"written late, under another plan")
    shards = sorted((run / "index/torn.partial").glob("*.kept"))
    n_done = 16 * (len(shards) - 1)
    calls.clear()
    calls += [()] * 100
    assert tree(build(run, name="torn", quiet=True, batch_rows=256, shard_rows=512).folder) == whole
    assert len(calls) - 100 == (128 - n_done) * 32 // 256 < 16
    assert not (run / "index/torn.partial").exists()


def test_killed_and_started_again(folder: Path) -> None:
    run = folder / "runs/quick"
    process = start_sae(folder, "index", "runs/quick", "--name", "killed", "--quiet")
    deadline = time.monotonic() + 60
    while not list((run / "index/killed.partial").glob("*.kept")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert ended(process).code in (-signal.SIGKILL, 0)
    outcome = run_sae(folder, "index", "runs/quick", "--name", "killed")
    assert outcome.code == 0 and "64 features" in outcome.out, outcome
    assert run_sae(folder, "index", "runs/quick", "--name", "killed", "--verify").code == 0


def test_the_command_says_what_it_did(folder: Path, index: Index) -> None:
    again = run_sae(folder, "index", "runs/quick")
    assert again.code == 0 and "is up to date" in again.err and "3,943 rows" in again.out
    shown = run_sae(folder, "show", "runs/quick", "3")
    assert shown.code == 0 and "feature 3 of quick" in shown.out and "near misses" in shown.out
    assert json.loads(run_sae(folder, "show", "runs/quick", "3", "--json").out)["feature"] == 3
    assert "features 0 to 63" in refusal(run_sae(folder, "show", "runs/quick", "64"), "show")


def test_another_text_through_the_model(folder: Path, index: Index) -> None:
    (folder / "notes").mkdir(exist_ok=True)
    for i in range(20):
        (folder / f"notes/{i}.txt").write_text(f"strange notes about other things, {i} " * 2)
    words = ["corpus.sources=text:notes/*.txt", "corpus.n_tokens=1400"]
    outcome = run_sae(folder, "index", "runs/quick", "--name", "notes", "--quiet", *words)
    assert outcome.code == 0, outcome
    notes = open_index(folder / "runs/quick/index/notes")
    assert notes.search("strange notes") and notes.n_rows < 1500
    own = open_index(folder / "runs/quick")
    assert notes.manifest["made_from"]["rows"]["mask"] == own.manifest["made_from"]["rows"]["mask"]
    assert indexes(folder / "runs/quick")[0].name == "default"


@pytest.mark.parametrize(("arguments", "words"), [
    (["runs/none"], "runs/none is not a run"), (["runs/quick", "corpus.n_tokens=9"], "--name"),
    (["runs/quick", "--name", "../x"], "cannot name"),
    (["runs/quick", "--name", "x", "sae.k=3"], "change the run itself"), (["runs/quick", "--memory", "lots"], "memory"),
    (["runs/quick", "--memory", "1 MB"], "too little"), (["runs/quick", "--rows", "0"], "--rows"),
])
def test_what_cannot_be_done_is_said(folder: Path, arguments: list[str], words: str) -> None:
    assert words in refusal(run_sae(folder, "index", *arguments), "index")


def test_corrupt_manifests_and_files_are_refused(folder: Path, index: Index, tmp_path: Path) -> None:
    copy = tmp_path / "copy"

    def spoilt(name: str, content: bytes | None) -> str:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(index.folder, copy)
        (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
        with pytest.raises(SaescopeError) as caught:
            open_index(copy).stats  # noqa: B018
        return str(caught.value)

    manifest = json.loads((index.folder / "manifest.json").read_text())
    assert "cannot be read" in spoilt("manifest.json", b"{")
    assert "not the manifest" in spoilt("manifest.json", b"{}")
    assert "version" in spoilt("manifest.json", json.dumps({**manifest, "format_version": 9}).encode())
    for wrong in ({"counts": 3}, {"files": {"scale.npy": 3}}, {"notes": None}, {"about": []}, {"signed": "yes"}):
        assert next(iter(wrong)) in spoilt("manifest.json", json.dumps({**manifest, **wrong}).encode())
    assert "cannot be read" in spoilt("scale.npy", b"not an array")
    assert "does not match manifest.json" in spoilt("scale.npy", (index.folder / "tokens.npy").read_bytes())
    assert "cannot be read" in spoilt("examples.npy", None)
    assert "cannot be read" in spoilt("stats.parquet", b"nothing")
    shutil.rmtree(copy)
    shutil.copytree(index.folder, copy)
    data = bytearray((copy / "row_value.npy").read_bytes())
    data[-1] ^= 1
    (copy / "row_value.npy").write_bytes(data)
    assert [p for p in open_index(copy).verify() if "row_value.npy was altered" in p]


def test_activations_without_text(tmp_path: Path) -> None:
    acts = np.random.default_rng(0).normal(size=(2048, 16)).astype(np.float32)
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine/a.npy", acts)
    write_config(tmp_path, model=None, corpus={"sources": "acts:mine", "n_tokens": 1}, site="acts", eval={"n_tokens": 0})
    outcome = train(tmp_path, "--quiet")
    assert outcome.code == 0, outcome.err
    assert run_sae(tmp_path, "index", "runs/quick", "--quiet").code == 0
    made = open_index(tmp_path / "runs/quick")
    assert made.feature(0).promoted == [] and "without a language model" in made.manifest["notes"]["promoted"]
    assert set(made.pieces(0)) == {"·"} and (np.asarray(made.tokens) == -1).all()
    with pytest.raises(SaescopeError, match="no text to search"):
        made.search("x")


def test_signed_codes_have_two_sides(tmp_path: Path) -> None:
    write_config(tmp_path, sae={"variant": "abstopk"})
    assert train(tmp_path, "--quiet").code == 0
    assert run_sae(tmp_path, "index", "runs/quick", "--quiet").code == 0
    made = open_index(tmp_path / "runs/quick")
    assert made.sides == ("+", "-")
    both = [f for f in range(made.d_sae) if 0 < made.feature(f).n_negative < made.feature(f).n_active]
    assert both
    for f in both:
        for side, sign in (("+", 1), ("-", -1)):
            found = made.examples(f, side=side)
            assert found and all(sign * e.value > 0 for e in found)
            assert [abs(e.value) for e in found] == sorted((abs(e.value) for e in found), reverse=True)
    assert run_sae(tmp_path, "show", "runs/quick", str(both[0])).out.count("side ") == 2


def test_rows_have_the_unit_of_the_split(index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    units = open_rows(open_trained(folder / "runs/quick")).data.tokens.units()
    assert units.kind == "document" and len(np.unique(units.number)) > 10
    assert np.array_equal(index.arrays["unit"], units.number)


TOGETHER = """
import sys
import time
import analysis.index.encode as encode
from analysis.index import build
encode.BLOCK_ROWS, real = 256, encode.encode_batch
encode.encode_batch = lambda *args: (time.sleep(0.2), real(*args))[1]
build(sys.argv[1], name=sys.argv[2], quiet=True, batch_rows=256, shard_rows=256)
"""


def test_several_processes_make_one_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one and this; four, of which some are killed, are `make kill-many-test`."""
    run, real, mine = folder / "runs/quick", encode.encode_batch, []
    whole = tree(build(run, name="one", quiet=True, batch_rows=256, shard_rows=256).folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TOGETHER, str(run), "many"]

    def slow(*args: object) -> object:
        mine.append(args)
        time.sleep(0.2)  # so that each has its share
        return real(*args)

    monkeypatch.setattr(encode, "encode_batch", slow)
    with subprocess.Popen(command, env=environment, cwd=folder) as other:
        while not list((run / "index/many.partial").glob("*.kept")) and other.poll() is None:
            time.sleep(0.01)
        assert tree(build(run, name="many", quiet=True, batch_rows=256, shard_rows=256).folder) == whole
        assert other.wait(timeout=300) == 0
    assert tree(run / "index/many") == whole and 0 < len(mine) < 16
    assert not (run / "index/many.partial").exists()


def test_an_index_that_others_make_from_something_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, work = folder / "runs/quick", folder / "runs/quick/index/other.partial"
    store = LocalStore(work)
    store.create("plan.json", json_bytes({"weights_sha256": "another"}))
    store.create(".claims/00003", json_bytes({"machine": "elsewhere", "name": "node7", "pid": 12}))
    said = refusal(run_sae(folder, "index", "runs/quick", "--name", "other"), "index")
    assert "process 12 on node7" in said and "(code was None, is" in said
    assert store.exists(".claims/00003")
    store.remove(".claims/00003")  # with nobody at it, it is forgotten
    assert build(run, name="other", quiet=True).n_rows and not work.exists()
