"""Damaged, foreign and contested caches, and activations that are no numbers, at the command."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import HOOK, ended, refusal, run_sae, start_sae, train, tree, write_config, write_corpus
from training.model.load import load_model

ACTS = Path("cache/c/acts") / HOOK
SHARD = ACTS / "shard-00001.npy"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training and its cache."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder, cache={"name": "c"})
    assert train(folder).code == 0
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy without the run, file times kept."""
    return shutil.copytree(finished, tmp_path / "place", ignore=shutil.ignore_patterns("runs"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def garble(text: str) -> Callable[[Path], None]:
    return lambda path: (path.write_text(text), None)[1]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (SHARD, truncate, r"shard-00001\.npy is truncated or altered.*remove this hook's folder and run `sae cache make`"),
        (SHARD, flip, r"shard-00001\.npy is truncated or altered"),
        (SHARD, Path.unlink, r"shard-00001\.npy is missing; remove this hook's folder"),
        (ACTS / "norms-00001.npy", Path.unlink, r"norms-00001\.npy is missing"),
        (ACTS / "manifest.json", garble("{"), r"manifest\.json is not JSON: the file was altered; remove cache/c/acts"),
        (ACTS / "manifest.json", garble('{"format": "saescope-cache", "format_version": 1}'), r"lacks 'hook'.*remove"),
        (Path("cache/c/manifest.json"), garble("[]"), r"is not the manifest of a Saescope cache"),
        (Path("cache/c/manifest.json"), garble('{"format": "saescope-cache", "format_version": 2}'), r"lacks 'made_from'"),
        (Path("cache/c/manifest.json"), Path.unlink, r"cache/c exists but is not a cache.*remove it, or choose another"),
        (Path("cache/c/tokens.npy"), flip, r"tokens\.npy is missing or altered.*`sae cache rm c`"),
        (Path("cache/c/split.npy"), Path.unlink, r"split\.npy is missing or altered"),
    ],
)
def test_a_damaged_cache(place: Path, name: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(place / name)
    before = tree(place / "cache")
    said = refusal(train(place))
    assert re.search(message, said), said
    assert not tree(place / "runs") and tree(place / "cache") == before


def test_a_lost_manifest_of_a_hook_is_written_again(place: Path) -> None:
    before = tree(place / "cache")
    (place / ACTS / "manifest.json").unlink()
    assert train(place).code == 0 and tree(place / "cache") == before
    (place / ACTS / "manifest.json").unlink()
    (place / ACTS / "plan.json").unlink()
    assert "has shards but no plan.json" in refusal(train(place, "name=other"))


@pytest.mark.parametrize(("override", "facts"), [
    ("cache.shard_rows=512", r"shard_rows = 1024, .* 512"),
    ("model.batch_seqs=4", r"batch_seqs = 8, .* 4"),
])
def test_a_cache_that_was_begun_otherwise(place: Path, override: str, facts: str) -> None:
    (place / ACTS / "manifest.json").unlink()
    before = tree(place / "cache")
    said = refusal(train(place, override))
    assert re.search(rf"cache/c/acts/{HOOK} was started with {facts};", said), said
    assert tree(place / "cache") == before and not tree(place / "runs")


@pytest.mark.parametrize("key", ["code", "torch", "device"])
def test_a_cache_that_was_begun_by_other_versions_or_elsewhere(place: Path, key: str) -> None:
    (place / ACTS / "manifest.json").unlink()
    plan = json.loads((place / ACTS / "plan.json").read_text())
    (place / ACTS / "plan.json").write_text(json.dumps(plan | {key: "another"}))
    assert f"was started with {key} = 'another', but now it is {plan[key]!r}" in refusal(train(place))


def test_an_alteration_that_keeps_size_and_time_is_left_to_verify(place: Path) -> None:
    """Opening trusts a file of the size and time that once passed: reading it all each time would cost minutes."""
    stat = (place / SHARD).stat()
    flip(place / SHARD)
    os.utime(place / SHARD, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert train(place).code == 0
    assert "shard-00001.npy is truncated or altered" in refusal(run_sae(place, "cache", "verify", "c"), "cache")


def test_a_lost_note_of_what_was_checked_costs_a_check_and_no_more(place: Path) -> None:
    (place / "cache/.c.checked.json").write_text("{")
    assert train(place).code == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=native:d_model=16"], r"cache/c was made with model\.d_model = 32, but this config has 16; choose"),
        (["model.dtype=bfloat16"], r"model\.dtype = 'float32', but this config has 'bfloat16'"),
        (["corpus.n_ctx=64"], r"packing\.n_ctx = 32, but this config has 64"),
        (["cache.dtype=bfloat16"], r"rows_dtype = 'float32'"),
        (["corpus.sources=text:other/*.txt"], r"corpus\.sources\.0\.sha256 = '\w+', but this config has '\w+'"),
    ],
)
def test_a_cache_of_another_model_or_corpus(place: Path, overrides: list[str], message: str) -> None:
    write_corpus(place / "other", seed=1)
    said = refusal(train(place, *overrides))
    assert re.search(message, said), said
    assert "choose another cache.name" in said
    assert not tree(place / "runs")


def test_a_cache_of_another_hook_or_of_other_tokens(place: Path) -> None:
    other = HOOK.replace("0", "1")
    shutil.copytree(place / ACTS, place / ACTS.with_name(other))
    said = refusal(train(place, f"site={other}"))
    assert said == f"cache/c/acts/{other} has activations of {HOOK}, not of {other}; remove it and build it again."
    manifest = place / ACTS / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tokens_sha256": "', '"tokens_sha256": "0'))
    assert f"cache/c/acts/{HOOK} was made from other tokens than those in cache/c" in refusal(train(place))


def test_what_is_no_cache_is_not_replaced_by_one(tmp_path: Path) -> None:
    write_config(tmp_path, cache={"dir": ".", "name": "corpus"})
    before = tree(tmp_path)
    assert "corpus exists but is not a cache" in refusal(train(tmp_path))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("manifest", ["{}", "[1]", "{", '{"format": "saescope-index", "format_version": 2}'])
def test_what_is_no_cache_is_neither_removed_nor_listed(tmp_path: Path, manifest: str) -> None:
    """A folder of the user's own, an index, and whatever else has a manifest.json."""
    mine = tmp_path / "cache/mine"
    mine.mkdir(parents=True)
    (mine / "manifest.json").write_text(manifest)
    (mine / "thesis.txt").write_text("x")
    for name in ("cache/mine", "mine"):
        for what in (["rm", "--yes"], ["verify"]):
            said = refusal(run_sae(tmp_path, "cache", *what, name), "cache")
            assert "cache/mine is not a cache" in said and said.endswith("none.")
    listed = run_sae(tmp_path, "cache", "ls")
    assert listed.code == 0 and "mine" not in listed.out
    assert (mine / "thesis.txt").read_text() == "x"


def answering(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_a_cache_is_removed_when_told_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tree(place / "cache")
    answering(monkeypatch, "")
    assert "--yes" in refusal(run_sae(place, "cache", "rm", "c"), "cache")
    answering(monkeypatch, "\n")
    assert run_sae(place, "cache", "rm", "c").code == 0
    assert tree(place / "cache") == whole
    answering(monkeypatch, "y\n")
    assert run_sae(place, "cache", "rm", "c").code == 0
    assert not (place / "cache/c").exists()


def test_a_damaged_cache_is_listed_and_removed_and_so_is_one_behind_a_link(place: Path) -> None:
    (place / "cache/c/manifest.json").write_text('{"format": "saescope-cache", "format_version": 1}')
    shutil.move(place / "cache/c", place / "elsewhere")
    (place / "cache/c").symlink_to(place / "elsewhere")
    listed = run_sae(place, "cache", "ls")
    assert listed.code == 0 and "damaged" in listed.out
    assert run_sae(place, "cache", "rm", "c", "--yes").code == 0
    assert not (place / "elsewhere").exists() and not (place / "cache/c").is_symlink()


# --- NaN and infinity


def spoilt_model(folder: Path, spoil: Callable[[torch.nn.Module], object]) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=64, vocab_size=512))
        spoil(model)
    model.save_pretrained(folder)
    load_model("native:tiny").tokenizer.save_pretrained(folder)


def nan_embedding(model: torch.nn.Module) -> None:
    model.get_parameter("transformer.wte.weight")[ord("e") - ord("!") + 3] = float("nan")


def nan_everywhere(model: torch.nn.Module) -> None:
    model.get_parameter("transformer.h.0.mlp.c_fc.weight")[0, 0] = float("nan")


def beyond_fp16(model: torch.nn.Module) -> None:
    model.get_parameter("transformer.h.0.mlp.c_proj.bias").fill_(70_000.0)


@pytest.mark.parametrize("mode", ["disk", "stream"])
@pytest.mark.parametrize(
    ("spoil", "override"),
    [(nan_embedding, "model.dtype=float32"), (nan_everywhere, "model.dtype=float32"), (beyond_fp16, "model.dtype=float16"),
     (beyond_fp16, "cache.dtype=float16")],
)
def test_activations_of_a_model_that_are_no_numbers(
    tmp_path: Path, mode: str, spoil: Callable[[torch.nn.Module], object], override: str
) -> None:
    spoilt_model(tmp_path / "model", spoil)
    write_config(tmp_path, model={"name": "local:model"}, cache={"mode": mode, "name": "c"})
    said = refusal(train(tmp_path, override))
    where = r"sequence \d+, position \d+"
    if mode == "disk":
        where = r"shard 0, sequence 0, position \d+ \(\d+ rows of the shard\)"
    assert re.search(rf"{HOOK}: NaN or infinite activations in {where}; a wider model\.dtype and cache\.dtype", said), said
    assert not tree(tmp_path / "runs") and not (tmp_path / ACTS / "manifest.json").exists()


def write_acts(folder: Path, bad_row: int | None = None, d: int = 8) -> None:
    rows = np.random.default_rng(0).standard_normal((1280, d)).astype(np.float32)
    if bad_row is not None:
        rows[bad_row, 3] = np.inf
    folder.mkdir(exist_ok=True)
    np.save(folder / "a.npy", rows[:700])
    np.save(folder / "b.npy", rows[700:])


def test_rows_of_ones_own_that_are_no_numbers(tmp_path: Path) -> None:
    write_acts(tmp_path / "own", bad_row=1000)
    write_config(tmp_path, model=None, corpus={"sources": "acts:own"}, site="acts")
    said = refusal(train(tmp_path))
    assert said == (
        "acts: NaN, infinite values or values beyond float32 (3.4e38) in own/b.npy, row 300 (row 1000 of all); clean them "
        "and start again."
    )
    assert not (tmp_path / "runs/quick/final").exists()


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1e-30, r"acts: the median norm of the calibration rows is 2\.6e-30.*1e-15 to 1e\+15"),
        (1e25, r"acts: the median norm of the calibration rows is 2\.6e\+25"),
        (1e60, r"acts: NaN, infinite values or values beyond float32 \(3\.4e38\) in own/a\.npy, row 96 "),
        (0, r"acts: every calibration row is zero"),
    ],
)
def test_rows_whose_squares_are_no_numbers(tmp_path: Path, factor: float, message: str) -> None:
    (tmp_path / "own").mkdir()
    np.save(tmp_path / "own/a.npy", np.random.default_rng(0).standard_normal((1280, 8)) * factor)
    write_config(tmp_path, model=None, corpus={"sources": "acts:own"}, site="acts")
    said = refusal(train(tmp_path))
    assert re.search(message, said), said
    assert not tree(tmp_path / "runs")


def test_small_and_large_rows_train_alike(tmp_path: Path) -> None:
    """Within the range a common factor changes no figure but by rounding."""
    found = []
    rows = np.random.default_rng(0).standard_normal((1280, 8))
    write_config(tmp_path, model=None, corpus={"sources": "acts:own"}, site="acts")
    (tmp_path / "own").mkdir()
    for factor in (1, 2.0**-47, 2.0**47):
        np.save(tmp_path / "own/a.npy", rows * factor)
        assert train(tmp_path, f"name=x{len(found)}", "--quiet").code == 0
        found.append(json.loads((tmp_path / f"runs/x{len(found)}/summary.json").read_text())["heldout"])
    assert found[1]["fve"] == pytest.approx(found[0]["fve"], abs=1e-4)
    assert found[2]["fve"] == pytest.approx(found[0]["fve"], abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["site=act"], r"own has no hook 'act', only acts; set site\.input"),
        (["corpus.n_ctx=1024"], r"acts:own has 1280 rows, 1 sequences of n_ctx = 1024: too few .*lower corpus\.n_ctx"),
        (["corpus.n_tokens=4096"], r"corpus\.n_tokens = 4,096 has no effect: all rows of acts:own"),
        (["corpus.seed=3"], r"corpus\.seed = 3 has no effect"),
        (["corpus.sources=acts:nowhere"], r"acts:nowhere: no such folder"),
        (["corpus.sources=acts:empty"], r"empty contains no \.npy or \.safetensors file"),
        (["corpus.sources=acts:rowless"], r"rowless: all of its 2 arrays are empty"),
        (["corpus.sources=acts:widths"], r"a\.npy has rows of width 8, widths/c\.npy of 3;"),
        (["corpus.sources=acts:short"], r"short/a\.npy is not a readable array .*truncated file must be written"),
    ],
)
def test_rows_of_ones_own_that_do_not_fit(tmp_path: Path, overrides: list[str], message: str) -> None:
    for name in ("own", "widths", "short"):
        write_acts(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "rowless").mkdir()
    for name in "ab":
        np.save(tmp_path / f"rowless/{name}.npy", np.zeros((0, 8), dtype=np.float32))
    np.save(tmp_path / "widths/c.npy", np.zeros((5, 3), dtype=np.float32))
    truncate(tmp_path / "short/a.npy")
    write_config(tmp_path, model=None, corpus={"sources": "acts:own"}, site="acts")
    said = refusal(train(tmp_path, *overrides))
    assert re.search(message, said), said
    assert not tree(tmp_path / "runs")


# --- two processes


def paused_in_the_middle(folder: Path) -> "subprocess.Popen[str]":
    """A training that stands still while it writes its cache."""
    process = start_sae(folder, "train", "quick.yaml", "cache.shard_rows=128")
    first = folder / ACTS / "shard-00000.json"
    deadline = time.monotonic() + 60
    while not first.exists():
        assert process.poll() is None and time.monotonic() < deadline, "the first shard did not come"
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    return process


def test_two_processes_and_one_cache_or_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path, cache={"name": "c"})
    process = paused_in_the_middle(tmp_path)
    try:
        assert not (tmp_path / ACTS / "manifest.json").exists(), "the other process was faster than its pause"
        said = refusal(train(tmp_path, "cache.shard_rows=128"))
        assert said == f"process {process.pid} is writing runs/quick; wait for it to finish, or use another name."
        assert not tree(tmp_path / "runs")
        said = refusal(run_sae(tmp_path, "cache", "rm", "c", "--yes"), "cache")
        assert f"being filled by process {process.pid} on" in said
        # another goes on without it, and does again what it seems to be at
        monkeypatch.setattr("training.storage.sharing.PATIENCE", 0.0)
        assert train(tmp_path, "name=other", "cache.shard_rows=128").code == 0
        whole = tree(tmp_path / "cache/c")
    finally:
        process.send_signal(signal.SIGCONT)
    assert ended(process).code == 0
    assert tree(tmp_path / "cache/c") == whole
    assert run_sae(tmp_path, "cache", "verify", "c").code == 0
