import json
import time
from pathlib import Path

import numpy as np
import pytest

from analysis import runs
from tests.analysis.run_folders import line, write_run


def one(root: Path) -> runs.Run:
    found = runs.find(root)
    assert len(found) == 1
    return found[0]


def test_a_real_training_is_read(tmp_path: Path) -> None:
    import training

    (tmp_path / "rows").mkdir()
    rows = np.random.default_rng(0).normal(size=(4096, 8)).astype(np.float32)
    np.save(tmp_path / "rows" / "acts.npy", rows)
    config = {
        "name": "real", "model": None,
        "corpus": {"sources": f"acts:{tmp_path / 'rows'}", "n_ctx": 32, "held_out": 0.2},
        "site": "acts", "sae": {"variant": "topk", "d_sae": 16, "k": 2}, "data": {"batch_rows": 256, "n_calib": 16},
        "cache": {"dir": str(tmp_path / "cache")},
        "train": {"budget": "20 steps", "kernels": "reference", "dead_window": "1k tokens"},
    }
    trained = training.train(config, runs=tmp_path / "runs", quiet=True)
    run = one(tmp_path / "runs")
    assert (run.name, run.status(time.time()), run.through, run.problems) == ("real", "finished", 1.0, ())
    assert run.n_rows == 20 * 256
    assert run.latest("heldout/fve") == trained.summary["heldout"]["fve"]
    assert list(run.interval("heldout/fve") or ()) == trained.summary["heldout"]["fve_interval"]
    assert {"loss/reconstruction", "fve", "l0", "dead", "lr", "grad_norm", "heldout/fve"} <= set(runs.metrics([run]))
    assert len(runs.series(run.lines, "fve")[0]) == 20
    assert run.config["sae"]["d_sae"] == 16


def test_no_folder_no_runs(tmp_path: Path) -> None:
    assert runs.find(tmp_path / "nothing") == []


def test_members_of_a_sweep_are_runs_and_its_checkpoints_are_not(tmp_path: Path) -> None:
    for member in ("sweep/a", "sweep/b"):
        write_run(tmp_path, member)
    (tmp_path / "sweep" / "checkpoints" / "step-00000020").mkdir(parents=True)
    assert sorted(run.name for run in runs.find(tmp_path)) == ["sweep/a", "sweep/b"]


def test_a_half_written_line_is_not_there_yet(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "going", n_lines=5, finished=False)
    text = json.dumps(line(6)) + "\n"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text[:30])
        file.flush()
        assert (len(one(tmp_path).lines), one(tmp_path).problems) == (5, ())
        file.write(text[30:])
    assert one(tmp_path).lines[-1] == line(6)


def test_the_stamp_changes_with_every_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "going", n_lines=5, finished=False)
    before = runs.stamp(folder)
    assert runs.stamp(folder) == before
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(6)) + "\n")
    assert runs.stamp(folder) != before


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("metrics.jsonl", b'{"rows": 1}\nnoise\n[1]\n\xff\n{"rows": "x"}\n', "4 of 5 lines of metrics.jsonl"),
        ("config.yaml", b"name: [", "config.yaml cannot be read"),
        ("config.yaml", b"just text", "config.yaml is not a mapping"),
        ("summary.json", b'{"heldout":', "summary.json cannot be read"),
        ("summary.json", b"[]", "summary.json is not a JSON object"),
    ],
)
def test_a_broken_file_is_told_and_hides_nothing_else(tmp_path: Path, file: str, content: bytes, told: str) -> None:
    write_run(tmp_path, "whole")
    broken = write_run(tmp_path, "broken")
    (broken / file).write_bytes(content)
    by_name = {run.name: run for run in runs.find(tmp_path)}
    assert by_name["whole"].problems == ()
    assert told in by_name["broken"].problems[0]


def test_a_link_that_leads_out_is_no_run(tmp_path: Path) -> None:
    outside = write_run(tmp_path / "elsewhere", "secret")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(outside)
    assert runs.find(tmp_path / "runs") == []


@pytest.mark.parametrize(
    ("n_lines", "silent_s", "status"),
    [
        (50, 0, "training"), (50, 50, "training"), (50, 70, "interrupted"),
        (0, 600, "training"), (0, 1000, "interrupted"),  # activations are being made
        (100, 600, "training"), (100, 1000, "interrupted"),  # the final evaluation
    ],
)
def test_silence_beyond_the_usual_means_interrupted(tmp_path: Path, n_lines: int, silent_s: float, status: str) -> None:
    write_run(tmp_path, "run", n_lines=n_lines, finished=False, silent_s=silent_s)
    assert one(tmp_path).status(time.time()) == status


def test_progress_is_a_share_of_the_budget(tmp_path: Path) -> None:
    write_run(tmp_path, "run", n_lines=25, finished=False)
    assert one(tmp_path).through == 0.25


def test_a_budget_in_epochs_is_estimated_from_the_log(tmp_path: Path) -> None:
    write_run(tmp_path, "run", n_lines=25, finished=False, train__budget="2 epochs", train__log_every="1%")
    assert one(tmp_path).through == pytest.approx(0.25)


def test_held_out_figures_come_from_the_summary_once_there_is_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "run", n_lines=10)
    run = one(tmp_path)
    assert (run.latest("heldout/fve"), run.interval("heldout/fve")) == (0.75, (0.74, 0.76))
    (folder / "summary.json").unlink()
    run = one(tmp_path)
    assert (run.latest("heldout/fve"), run.interval("heldout/fve")) == (0.7, (0.69, 0.71))
    assert run.latest("no such metric") is None and run.interval("no such metric") is None


def test_a_value_without_an_interval_does_not_borrow_an_earlier_one(tmp_path: Path) -> None:
    """Of fewer than ten documents there is none."""
    folder = write_run(tmp_path, "run", n_lines=10)
    (folder / "summary.json").write_text(json.dumps({"heldout": {"fve": 0.75, "fve_interval": None}}))
    assert (one(tmp_path).latest("heldout/fve"), one(tmp_path).interval("heldout/fve")) == (0.75, None)
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 99, "rows": 10**6, "heldout/fve": 0.72, "heldout/fve_interval": None}) + "\n")
    assert (one(tmp_path).latest("heldout/fve"), one(tmp_path).interval("heldout/fve")) == (0.72, None)
    assert runs.intervals(one(tmp_path).lines, "heldout/fve") is None
    assert not any(name.startswith("heldout/n_") for name in runs.metrics([one(tmp_path)]))


def test_configs_side_by_side() -> None:
    a = {"name": "a", "sae": {"k": 4, "auxk": None}, "sources": [{"source": "x"}], "betas": [0.9, 0.999]}
    b = {"name": "b", "sae": {"k": 8, "auxk": None}, "sources": [{"source": "x"}], "betas": [0.9, 0.999], "wandb": "w"}
    assert runs.compare([a, b], only_differences=True) == [("sae.k", ["4", "8"]), ("wandb", ["–", "w"])]
    keys = [key for key, _ in runs.compare([a], only_differences=False)]
    assert keys == ["sae.k", "sae.auxk", "sources.0.source", "betas"]
