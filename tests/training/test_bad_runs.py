"""Runs that exist, weights and checkpoints that do not fit, wandb that refuses, disks that fill up: at the command."""

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import sae
from sae.errors import SaescopeError
from tests.helpers import Outcome, ended, refusal, run_sae, start_sae, train, tree, write_config

LAST = Path("runs/quick/checkpoints/step-00000026")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder)
    assert train(folder).code == 0 and (folder / LAST).exists()
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "place")


@pytest.fixture
def unfinished(place: Path) -> Path:
    """A copy that was killed after its last checkpoint."""
    (place / "runs/quick/summary.json").unlink()
    shutil.rmtree(place / "runs/quick/final")
    return place


def test_a_run_that_exists(place: Path) -> None:
    before = tree(place)
    said = refusal(train(place))
    assert said.startswith("runs/quick exists; add --resume") and "name=" in said
    said = refusal(train(place, "sae.k=5", "--resume"))
    assert said == "runs/quick was trained with another config (sae.k was 4, is 5); resume it with its own config.yaml."
    outcome = train(place, "--resume")
    assert outcome.code == 0 and "already finished" in outcome.err
    assert tree(place) == before


def test_an_unfinished_run_is_resumed_with_its_own_config_only(unfinished: Path) -> None:
    assert "optim.lr was 0.002, is 0.01" in refusal(train(unfinished, "optim.lr=1e-2", "--resume"))
    assert refusal(train(unfinished)).startswith("runs/quick exists; add --resume")
    assert train(unfinished, "train.checkpoint_every=10 min", "--resume").code == 0, "that may change"
    assert (unfinished / "runs/quick/final").exists()


def test_a_member_of_a_sweep_that_exists(tmp_path: Path) -> None:
    write_config(tmp_path, sweep=[{"name": "a"}, {"name": "b", "sae.k": 2}])
    (tmp_path / "runs/quick/b").mkdir(parents=True)
    (tmp_path / "runs/quick/b/config.yaml").write_text("name: quick/b\n")
    assert refusal(train(tmp_path)).startswith("runs/quick/b exists; add --resume")
    assert not tree(tmp_path / "runs/quick/a") and not tree(tmp_path / "cache")


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_run_goes_on_under_another_name(place: Path) -> None:
    """From the checkpoint before the last, to the same weights; and from the last, for longer."""
    old = summary_of(place / "runs/quick")
    shutil.rmtree(place / LAST)
    before = tree(place / "runs/quick")
    assert train(place, "name=b", "eval.n_rows=128", "--from", "runs/quick").code == 0
    new = summary_of(place / "runs/b")
    assert new["weights_sha256"] == old["weights_sha256"] and 0 < new["continued_from"]["n_steps"] < new["n_steps"] == 26
    assert train(place, "name=long", "train.budget=2 epochs", "--from", "runs/b").code == 0
    longer = summary_of(place / "runs/long")
    assert longer["continued_from"] == {"run": "b", "n_steps": 26, "budget": "1 epochs"} and longer["n_steps"] == 52
    steps = [json.loads(line)["step"] for line in (place / "runs/long/metrics.jsonl").read_text().splitlines()]
    assert steps[0] <= 2 and steps[-1] == 52 and steps == sorted(steps)
    assert tree(place / "runs/quick") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sae.k=5"], r"runs/quick was trained with a different config \(sae\.k was 4, is 5\)"),
        (["train.dead_window=2k tokens"], r"\(train\.dead_window was '1000 tokens', is '2000 tokens'\)"),
        (["train.budget=20 steps"], r"the checkpoint is from step 26, but train\.budget = 20 steps is only 20 steps"),
        (["--resume"], r"--from .*--resume"),
        (["--from", "runs/nowhere"], r"no config at runs/nowhere/config\.yaml"),
    ],
)
def test_a_run_that_cannot_go_on(place: Path, arguments: list[str], message: str) -> None:
    said = refusal(train(place, "name=b", "--from", "runs/quick", *arguments))
    assert re.search(message, said), said
    assert not tree(place / "runs/b"), "the name stays free"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)


def garble(path: Path) -> None:
    path.write_text("{")


def empty(path: Path) -> None:
    path.write_text("{}")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("state.json", garble, r"state\.json: cannot be read as JSON"),
        ("state.json", empty, r"step-00000026 does not match this run \(KeyError: 'format'\)"),
        ("state.json", Path.unlink, r"state\.json: cannot be read as JSON"),
        ("000.safetensors", truncate, r"000\.safetensors: cannot be read as safetensors"),
        ("000.safetensors", garble, r"000\.safetensors: cannot be read as safetensors"),
        ("000.safetensors", Path.unlink, r"000\.safetensors: cannot be read as safetensors"),
        ("000.safetensors", flip, r"000\.safetensors was altered: its checksum differs"),
    ],
)
def test_a_damaged_checkpoint(unfinished: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    damage(unfinished / LAST / name)
    before = tree(unfinished)
    said = refusal(train(unfinished, "--resume"))
    assert re.search(message, said) and "remove this checkpoint to continue from the previous one" in said, said
    assert tree(unfinished) == before
    shutil.rmtree(unfinished / LAST)
    assert train(unfinished, "--resume").code == 0, "as the message says"


def test_a_checkpoint_of_the_version_before(unfinished: Path) -> None:
    """Its rows were masked by another calibration: it is refused, with what to do instead."""
    state = unfinished / LAST / "state.json"
    facts = json.loads(state.read_text())
    state.write_text(json.dumps(facts | {"format_version": 1}))
    before = tree(unfinished)
    said = refusal(train(unfinished, "--resume"))
    assert str(LAST) in said and "`sae train CONFIG name=NAME`" in said
    assert tree(unfinished) == before
    outcome = run_sae(unfinished, "train", "runs/quick/config.yaml", "name=anew")
    assert outcome.code == 0, "as the message says"
    # 8 sequences of as many documents: figures without intervals
    held = json.loads((unfinished / "runs/anew/summary.json").read_text())["heldout"]
    assert held["n_units"] < 10 and held["fve_interval"] is None and held["fve"] < 1
    assert f"Held out: {held['n_units']} documents" in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("final/sae.json", garble, r"sae\.json: cannot be read as JSON"),
        ("final/sae.json", empty, r"sae\.json: the format is None, not 'saescope-sae'"),
        ("final/sae.safetensors", truncate, r"sae\.safetensors: cannot be read as safetensors"),
        ("final/sae.safetensors", Path.unlink, r"sae\.safetensors: cannot be read as safetensors"),
    ],
)
def test_damaged_weights(place: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    damage(place / "runs/quick" / name)
    with pytest.raises(SaescopeError, match=message):
        sae.load(place / "runs/quick")
    assert re.search(message, refusal(train(place, "--resume")))
    assert re.search(message, refusal(train(place, "name=b", "sae.init.from=runs/quick")))
    assert not tree(place / "runs/b")


def test_weights_of_another_width(place: Path) -> None:
    said = refusal(train(place, "name=b", "sae.d_sae=128", "sae.init.from=runs/quick"))
    assert said == (
        "init.from: runs/quick has d_in=32, d_out=32, d_sae=64, but this SAE has d_in=32, d_out=32, d_sae=128; "
        "they must be equal."
    )
    said = refusal(train(place, "name=b", "model.name=native:d_model=16", "sae.init.from=runs/quick"))
    assert "has d_in=32, d_out=32, d_sae=64, but this SAE has d_in=16, d_out=16" in said
    assert "nowhere: there is no such folder" in refusal(train(place, "name=b", "sae.init.from=nowhere"))
    assert not tree(place / "runs/b")


def test_rows_that_changed_their_width_since_the_checkpoint(tmp_path: Path) -> None:
    def write_rows(d: int) -> None:
        (tmp_path / "own").mkdir(exist_ok=True)
        np.save(tmp_path / "own/a.npy", np.random.default_rng(0).standard_normal((1280, d)).astype(np.float32))

    write_rows(8)
    write_config(tmp_path, model=None, corpus={"sources": "acts:own"}, site="acts")
    outcome = train(tmp_path)
    assert outcome.code == 0 and "blocks of corpus.n_ctx = 32 consecutive rows" in outcome.err
    (tmp_path / "runs/quick/summary.json").unlink()
    write_rows(12)
    said = refusal(train(tmp_path, "--resume"))
    assert re.search(r"was trained on other data \(acts\.hooks\.acts\.", said), said


def test_wandb_that_does_not_know_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    write_config(tmp_path)
    # a process of its own: wandb remembers the settings of a run before
    said = refusal(ended(start_sae(tmp_path, "train", "quick.yaml", "train.wandb=project")))
    assert re.search(r"wandb cannot start \(.+\); log in, set WANDB_MODE=offline, or remove train\.wandb", said), said
    assert not (tmp_path / "runs/quick/config.yaml").exists()
    assert train(tmp_path).code == 0, "the name stayed free"


# --- disks that fill up


@contextlib.contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[bool]:
    """A file system of this size at `folder`; False where mounting is not permitted."""
    folder.mkdir()
    mounted = shutil.which("mount") is not None and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)], check=False, capture_output=True
    ).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def small_files(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond this size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def train_on_a_small_disk(folder: Path, *, disk: int | None, file: int) -> tuple[Outcome, dict[str, bytes]]:
    """How a training ends whose folder is a disk of so many bytes, and the files on it.

    Without `disk`, or where nobody may mount one, it is files that may not grow beyond `file` bytes.
    """
    small = folder / "small"
    with small_disk(small, disk) if disk else contextlib.nullcontext(False) as mounted:
        small.mkdir(exist_ok=True)
        with contextlib.nullcontext() if mounted else small_files(file):
            outcome = train(folder)
        return outcome, tree(small)


@pytest.mark.parametrize("disk", [700_000, None])
def test_a_disk_that_fills_up_while_the_cache_is_written(tmp_path: Path, disk: int | None) -> None:
    # many small shards: what they take beyond their rows is what the check before writing does not know of
    write_config(tmp_path, cache={"dir": "small", "name": "c", "shard_rows": 160})
    outcome, names = train_on_a_small_disk(tmp_path, disk=disk, file=19_000)
    said = refusal(outcome)
    full = r"small/c/acts/\S*: the (disk is full|file grew too large) \([0-9,]+ bytes"
    assert re.search(rf"{full} free\).*free some space", said), said
    assert any(name.startswith("c/tokens") for name in names), "it filled up in the middle"
    assert not any(name.startswith("c/acts/") and name.endswith("manifest.json") for name in names)
    assert not tree(tmp_path / "runs")


@pytest.mark.parametrize("disk", [480_000, None])
def test_a_disk_that_fills_up_while_training(tmp_path: Path, disk: int | None) -> None:
    write_config(tmp_path, sae={"d_sae": 256}, cache={"shard_rows": 256})
    (tmp_path / "runs").symlink_to("small")
    outcome, files = train_on_a_small_disk(tmp_path, disk=disk, file=100_000)
    said = refusal(outcome)
    assert re.search(r"runs/quick/\S+: the (disk is full|file grew too large).*free some space.*--resume", said), said
    assert outcome.err.count(" was not saved: ") > 1 and "training continues" in outcome.err
    assert json.loads(files["quick/metrics.jsonl"].splitlines()[-1])["step"] == 26, "the training went on to its end"
    assert "quick/config.yaml" in files and "quick/summary.json" not in files
    assert not any(name.startswith("quick/final") for name in files)
    checkpoints = {name.split("/")[2] for name in files if "checkpoints" in name}
    for checkpoint in checkpoints:
        assert {f"quick/checkpoints/{checkpoint}/{file}" for file in ("state.json", "000.safetensors")} <= set(files)
    assert disk is None or f"The last checkpoint is runs/quick/checkpoints/{max(checkpoints)}; --resume" in said
    if disk is None:
        assert train(tmp_path, "--resume").code == 0, "once there is room"


def test_too_little_space_is_known_before_writing(tmp_path: Path) -> None:
    write_config(tmp_path, cache={"dir": "small", "name": "c"})
    with small_disk(tmp_path / "small", 400_000) as mounted:
        outcome = run_sae(tmp_path, "cache", "make", "quick.yaml")
        assert re.search(r"cache: 0\.00 GB needed, [0-9.]+ GB free in small/c", outcome.err), outcome
        if mounted:  # tests/training/activations/test_cache.py refuses without
            said = refusal(outcome, "cache")
            assert re.search(r"the cache needs .* GB, but small/c has .* GB free.*cache\.mode=stream", said), said
            assert not any("/acts/" in name for name in tree(tmp_path / "small"))
