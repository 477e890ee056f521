"""Whole trainings of a tiny model on real text: what a run leaves, resume bit for bit, sweeps, streams."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sae
from sae.errors import SaescopeError
from training.finish import Result
from training.run import sweep, train

HOOK = "blocks.0.hook_resid_post"
BASE: dict[str, Any] = {
    "name": "run",
    "model": "native:tiny",
    "corpus": {
        "sources": {"source": f"text:{argparse.__file__}", "split": "blank-line"},
        "n_ctx": 32, "n_tokens": 24_000, "held_out": 0.2,
    },
    "site": HOOK,
    "data": {"batch_rows": 128, "n_calib": 32, "superblock_rows": 6000},
    "sae": {"variant": "topk", "d_sae": 96, "k": 4, "auxk": {"k": 8}},
    "optim": {"lr": 1e-3},
    "train": {"budget": "1.5 epochs", "dead_window": "2000 tokens", "checkpoint_every": "20 steps"},
    "eval": {"n_rows": 1000, "n_tokens": 500},
}


@pytest.fixture
def base(tmp_path: Path, cache_dir: Path) -> dict[str, Any]:
    return BASE | {"cache": {"dir": str(cache_dir)}}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(config: dict[str, Any], runs: Path, *overrides: str, **options: Any) -> list[Result]:
    return sweep(config, overrides, runs=runs, quiet=True, **options)


def weights(folder: Path) -> dict[str, bytes]:
    names = ("final/sae.safetensors", "final/sae.json", "sae_weights.safetensors")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_speed(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "tokens_per_s"} for line in metrics]


def test_what_a_run_leaves(base: dict[str, Any], tmp_path: Path) -> None:
    (trained,) = run(base, tmp_path)
    assert trained.folder == tmp_path / "run"
    summary = json.loads((trained.folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(trained.summary))
    held = summary["heldout"]
    assert held["fve_interval"][0] <= held["fve"] <= held["fve_interval"][1] < 1
    assert held["fve"] > 0.3 and held["l0"] == pytest.approx(4, abs=0.05)
    assert held["n_rows"] <= 1024 and held["ce_n_tokens"] >= 500
    assert {"ce_recovered_mean", "ce_recovered_zero_interval", "kl", "ce_clean"} <= set(held)
    assert 0 <= summary["dead"]["share"] < 1 and summary["dead"]["window_rows"] == 2000
    assert summary["mask"]["dropped_beyond_first"] < 0.1
    loaded = sae.load(trained.folder)
    x = torch.randn(5, 32)
    assert torch.equal(loaded(x), trained.sae(x))
    steps = [line["step"] for line in lines(trained.folder)]
    assert steps == sorted(steps)
    expected = {"loss/reconstruction", "l0", "fve", "lr", "grad_norm", "rows", "dense_steps"}
    assert expected <= set(lines(trained.folder)[0])
    trained_lines = [line for line in lines(trained.folder) if "fve" in line]
    assert [("dead" in line) == (line["rows"] >= 2000) for line in trained_lines] == [True] * len(trained_lines)
    assert "dead" not in trained_lines[0] and "dead" in trained_lines[-1]
    assert any("heldout/fve" in line for line in lines(trained.folder))
    assert len(list((trained.folder / "checkpoints").glob("step-*"))) == 2
    fve = [line["fve"] for line in lines(trained.folder) if "fve" in line]
    assert fve[-1] > fve[0] + 0.2, "it must have learnt something"


def test_a_finished_run_is_refused_and_resumed_without_work(base: dict[str, Any], tmp_path: Path) -> None:
    run(base, tmp_path)
    before = weights(tmp_path / "run")
    with pytest.raises(SaescopeError, match="exists; add --resume"):
        run(base, tmp_path)
    began = time.monotonic()
    (again,) = run(base, tmp_path, resume=True)
    assert weights(tmp_path / "run") == before and again.summary["name"] == "run"
    assert time.monotonic() - began < 2
    with pytest.raises(SaescopeError, match=r"another config \(sae\.k was 4, is 5\)"):
        run(base, tmp_path, "sae.k=5", resume=True)


def test_resuming_on_other_data_is_refused(base: dict[str, Any], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(Path(argparse.__file__).read_text())
    config = base | {"corpus": base["corpus"] | {"sources": {"source": f"text:{text}", "split": "blank-line"}}}
    run(config, tmp_path)
    (tmp_path / "run" / "summary.json").unlink()
    text.write_text(text.read_text().replace("argument", "disagreement"))
    with pytest.raises(SaescopeError, match=r"was trained on other data \(corpus\."):
        run(config, tmp_path, resume=True)


VARIED: list[dict[str, Any]] = [
    {"variant": "topk", "d_sae": 96, "k": 4, "auxk": {"k": 8}, "k_anneal": {"start": 20, "over": "80%"}},
    {"variant": "batchtopk", "d_sae": 96, "k": 4},
    {"variant": "relu", "d_sae": 96, "sparsity": {"target_l0": 8}},
    {"variant": "abstopk", "d_sae": 96, "k": 4, "init": {"encoder": "random"}, "tied": True, "alpha": 2},
    {"variant": "absbatchtopk", "d_sae": 96, "k": 4},
    {"variant": "matryoshka", "d_sae": 96, "k": 4, "base": "absbatchtopk", "sampled": {"n": 4}},
    {"variant": "jumprelu", "d_sae": 96, "sparsity": {"target_l0": 8}, "auxk": {"coefficient": 0.03}},
    {"variant": "gated", "d_sae": 96, "sparsity": {"target_l0": 8}, "optim": {"lr": 1e-3, "sparse": True},
     "transform": {"whiten": True}},
    {"variant": "mdl", "d_sae": 96, "sparsity": {"coefficient": 20}, "start_l0": 8, "prune_from": "80%", "memory": 0.9},
    {"name": "masked", "variant": "batchtopk", "d_sae": 96, "k": 4, "auxk": {"k": 8}, "hide": 0.3},
    {"name": "masked-gated", "variant": "gated", "d_sae": 96, "sparsity": {"target_l0": 8}, "hide": 0.2},
    {"variant": "icfl", "d_sae": 96, "rounds": 2, "per_round": 2, "duplicate_cosine": 0.6, "redraw_every": 15,
     "transform": {"whiten": True, "unit_rows": True}},
]


def test_a_signal_saves_and_resuming_goes_on_bit_for_bit(base: dict[str, Any], tmp_path: Path) -> None:
    """Every variant, and the masked objective, on one stream that SIGTERM stops after step 70."""
    names = [one.get("name", one["variant"]) for one in VARIED]
    paced = base["train"] | {"budget": "110 steps", "log_every": "3 steps"}
    config = base | {"sae": {"d_sae": 96}, "train": paced, "sweep": [
        {"name": name, "sae": {k: v for k, v in one.items() if k not in ("name", "optim")}, "optim": one.get("optim", {})}
        for name, one in zip(names, VARIED, strict=True)
    ]}
    sweep(config, runs=tmp_path / "whole", quiet=True)
    (tmp_path / "c.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "tests.training.interrupted", str(tmp_path / "c.json"), str(tmp_path / "cut"), "70"]
    cut = subprocess.run(command, capture_output=True, text=True, check=False)
    assert cut.returncode == 2 and "after step 70" in cut.stderr, cut.stderr
    assert not list((tmp_path / "cut").rglob("final"))
    sweep(config, runs=tmp_path / "cut", quiet=True, resume=True)
    for name in names:
        folders = [tmp_path / kind / "run" / name for kind in ("cut", "whole")]
        assert weights(folders[0]) and weights(folders[0]) == weights(folders[1]), name
        assert without_speed(lines(folders[0])) == without_speed(lines(folders[1])), name


def test_resuming_from_an_older_checkpoint_cuts_the_metrics_back(base: dict[str, Any], tmp_path: Path) -> None:
    run(base, tmp_path / "whole")
    run(base, tmp_path / "cut")
    folder = tmp_path / "cut" / "run"
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    for path in sorted(last.glob("*")):
        path.unlink()
    last.rmdir()
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99999, "ro')
    run(base, tmp_path / "cut", resume=True)
    assert weights(folder) == weights(tmp_path / "whole" / "run")
    assert [line["step"] for line in lines(folder)] == [line["step"] for line in lines(tmp_path / "whole" / "run")]


def test_a_member_of_a_sweep_trained_alone_is_byte_identical(base: dict[str, Any], tmp_path: Path) -> None:
    fields = {k: v for k, v in base.items() if k != "sae"} | {"sae": {"d_sae": 64}, "name": "sweep"}
    sweep = fields | {"sweep": [
        {"name": "topk", "sae": {"variant": "topk", "k": 3}},
        {"name": "batch", "sae": {"variant": "batchtopk", "k": 3}, "site": "blocks.1.hook_resid_post",
         "train.dead_window": "50 rows"},
        {"name": "relu", "sae": {"variant": "relu", "sparsity": {"target_l0": 6}, "seed": 1}},
        {"name": "heads", "sae": {"variant": "topk", "k": 3}, "site": "blocks.1.attn.hook_z"},
        {"name": "masked", "sae": {"variant": "topk", "k": 3, "hide": 0.3}},
    ]}
    members = run(sweep, tmp_path)
    names = [f"sweep/{name}" for name in ("topk", "batch", "relu", "heads", "masked")]
    assert [m.summary["name"] for m in members] == names
    assert [m.summary["dead"]["window_rows"] for m in members] == [2000, 50, 2000, 2000, 2000]
    for name in ("batch", "relu", "masked"):
        alone = train(tmp_path / "sweep" / name / "config.yaml", ["name=alone"], runs=tmp_path / name, quiet=True)
        assert alone.folder is not None and weights(alone.folder) == weights(tmp_path / "sweep" / name)
        assert weights(alone.folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stream_equals_a_cache_read_in_whole_sequences(
    dtype: str, base: dict[str, Any], tmp_path: Path
) -> None:
    data = base["data"] | {"block_rows": 32}
    model = {"name": "native:tiny", "dtype": dtype}
    cached = run(base | {"data": data, "model": model}, tmp_path / "disk")
    streamed = run(
        base | {"data": data, "model": model, "cache": {"dir": str(tmp_path / "other"), "mode": "stream"}},
        tmp_path / "stream",
    )
    assert weights(cached[0].folder)["final/sae.safetensors"] == weights(streamed[0].folder)["final/sae.safetensors"]
    assert not list((tmp_path / "other").rglob("shard*"))


@pytest.mark.parametrize("site", [
    {"input": "blocks.1.mlp.hook_in", "target": "blocks.1.hook_mlp_out"},
    {"input": "blocks.1.hook_resid_pre", "target": "blocks.1.hook_resid_post", "update": "both"},
])
def test_transcoders_and_update_saes_train_and_splice(site: dict[str, Any], base: dict[str, Any], tmp_path: Path) -> None:
    (trained,) = run(base | {"site": site}, tmp_path)
    assert trained.summary["heldout"]["fve"] > 0.2
    assert trained.summary["heldout"]["kl"] >= 0
    assert trained.sae.subtracts_b_dec == (site.get("update") == "both"), "b_dec lies in the target's space"


def test_a_skip_path_is_trained_beside_the_features(base: dict[str, Any], tmp_path: Path) -> None:
    site = {"input": "blocks.1.hook_resid_pre", "target": "blocks.1.hook_resid_post", "update": True}
    members = [{"name": "without"}, {"name": "with", "sae": {"skip": True}}]
    without, with_ = run(base | {"site": site, "sweep": members, "eval": {"n_rows": 1000, "n_tokens": 100}}, tmp_path)
    assert with_.sae.W_skip.norm() > 0.1
    assert with_.summary["heldout"]["fve"] > without.summary["heldout"]["fve"] + 0.02
    assert "fixed number of active features" in with_.summary["saelens"]


def test_training_on_ones_own_activations_needs_no_model(tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    (tmp_path / "acts").mkdir()
    directions = rng.normal(size=(24, 16))
    for part in range(2):
        code = rng.random((3000, 24)) * (rng.random((3000, 24)) < 0.1)
        np.save(tmp_path / "acts" / f"{part}.npy", (code @ directions).astype(np.float32))
    config = {k: v for k, v in BASE.items() if k not in ("model", "site")} | {
        "model": None, "site": "acts", "corpus": {"sources": f"acts:{tmp_path / 'acts'}", "n_ctx": 32},
        "train": BASE["train"] | {"budget": "6 epochs"},
    }
    (trained,) = run(config, tmp_path / "runs")
    assert trained.summary["heldout"]["fve"] > 0.5
    assert "kl" not in trained.summary["heldout"]


def test_an_sae_begins_where_another_ended(base: dict[str, Any], tmp_path: Path) -> None:
    (first,) = run(base, tmp_path / "a")
    more = base["sae"] | {"init": {"from": str(tmp_path / "a" / "run")}}
    (second,) = run(base | {"sae": more, "train": base["train"] | {"budget": "3 steps"}}, tmp_path / "b")
    start = lines(tmp_path / "b" / "run")[0]
    assert start["fve"] > lines(tmp_path / "a" / "run")[0]["fve"] + 0.1
    assert second.summary["heldout"]["fve"] > first.summary["heldout"]["fve"] - 0.1


def test_wandb_offline_gets_the_metrics_and_is_continued(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = base | {"train": base["train"] | {"wandb": "saescope-test", "log_every": "10 steps"}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "tests.training.interrupted", str(tmp_path / "c.json"), str(tmp_path), "70"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 2
    run(config, tmp_path, resume=True)
    folder = tmp_path / "run"
    written = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(written) == 2
    run_id = json.loads((folder / "wandb.json").read_text())["id"]
    assert all(run_id in path.name for path in written)
    # wandb joins lines of one step, and its own process may still be writing after the run has ended
    expected, deadline = sorted({line["step"] for line in lines(folder)}), time.monotonic() + 30
    while (steps := [step for path in written for step in wandb_steps(path)]) != expected:
        assert time.monotonic() < deadline, (steps, expected)
        time.sleep(0.5)


def wandb_steps(path: Path) -> list[int]:
    """The steps in a wandb run's own file."""
    from wandb.proto import wandb_internal_pb2

    steps = []
    for data in wandb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            steps.append(record.history.step.num)
    return steps


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log behind wandb's 7-byte header: 32 KiB blocks of (crc, length, kind, bytes)."""
    position, begun = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        begun += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield begun
            begun = b""


def test_sigterm_to_the_command_saves_and_leaves(base: dict[str, Any], tmp_path: Path) -> None:
    config = base | {"train": base["train"] | {"budget": "400 epochs"}}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-c", "from sae.cli import main; raise SystemExit(main())", "train",
               str(tmp_path / "c.yaml"), "--runs", str(tmp_path / "runs")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "runs" / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2 and "--resume" in errors and "Traceback" not in errors
    assert list((tmp_path / "runs" / "run" / "checkpoints").glob("step-*"))
