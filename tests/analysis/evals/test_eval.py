"""`sae eval` from runs to files: controls, resumption, comparison over seeds, and what is refused in a sentence."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from analysis.evals import commands
from analysis.evals.common import features, result
from analysis.evals.common.context import open_context
from analysis.evals.common.seeds import other_seeds, weights_of
from analysis.evals.controls import trained
from analysis.evals.run import Evaluated, evaluate
from sae.errors import SaescopeError
from sae.io.files import read_json
from tests.analysis.evals.runs import train_small
from tests.helpers import Outcome, refusal, tree
from training.config.reading import read

CONTROLS = ["random", "pca", "channels", "frozen-decoder", "frozen-encoder", "random-model"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds each of two trainings, which differ in k; and one of another site."""
    root = tmp_path_factory.mktemp("eval")
    for seed in (0, 1):
        for name, k in (("four", 4), ("eight", 8)):
            train_small(root, f"{name}-{seed}", sae={"k": k, "seed": seed}, data={"seed": seed})
    train_small(root, "elsewhere", site="blocks.1.hook_resid_post")
    return root


@pytest.fixture(scope="module")
def done(root: Path) -> Evaluated:
    return evaluate(root / "runs" / "four-0", only=("core", "mdl", "stability", "ground-truth"), controls=True)


def command(root: Path, *argv: str) -> Outcome:
    """`sae eval`, as the command line calls it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(root), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = commands.evaluate([*argv, "--quiet"])
        except SaescopeError as error:
            code = 2
            err.write(f"sae eval: {error}\n")
    return Outcome(code, out.getvalue(), err.getvalue())


def test_every_evaluation_has_its_controls(root: Path, done: Evaluated) -> None:
    assert list(done.results) == ["core", "mdl", "stability"] and list(done.refused) == ["ground-truth"]
    core = done.results["core"]
    assert list(core.controls) == CONTROLS and core.lacking == ()
    for name, found in core.controls.items():
        assert found.metrics["reconstruction"].keys() == core.found.metrics["reconstruction"].keys(), name
        assert found.metrics["model"]["ce_clean"].value is not None
    clean = {name: found.metrics["model"]["ce_clean"].value for name, found in {"": core.found, **core.controls}.items()}
    assert clean[""] == clean["pca"] == clean["frozen-decoder"] != clean["random-model"]
    assert done.results["mdl"].metric("at_ce", "bits") is not None
    stable = done.results["stability"]
    assert list(stable.controls) == ["random"] and stable.metric("carried", "ce_stable") is not None


def test_figures_agree_with_the_training_summary(root: Path, done: Evaluated) -> None:
    full = evaluate(root / "runs" / "four-1", "full", only=("core",)).results["core"]
    held = read_json(root / "runs" / "four-1" / "summary.json")["heldout"]
    for (group, name), key in {
        ("reconstruction", "fve"): "fve", ("reconstruction", "cosine"): "cosine", ("sparsity", "l0"): "l0",
        ("sparsity", "dead"): "silent", ("sparsity", "dense"): "dense", ("model", "kl"): "kl",
        ("model", "ce_recovered_mean"): "ce_recovered_mean", ("model", "ce_recovered_zero"): "ce_recovered_zero",
    }.items():
        metric = full.metric(group, name)
        assert metric is not None
        if metric.value is None:  # ablating random weights may cost nothing
            assert name.startswith("ce_recovered")
            continue
        assert metric.value == pytest.approx(held[key], rel=1e-5), name
        if metric.low is not None:
            assert [metric.low, metric.high] == pytest.approx(held[f"{key}_interval"], rel=1e-4)


def test_what_is_there_is_not_measured_again(root: Path, done: Evaluated) -> None:
    before = tree(root / "runs" / "four-0" / "evals")
    again = evaluate(root / "runs" / "four-0", only=("core", "mdl"))
    assert again.reused == ("core", "mdl") and tree(root / "runs" / "four-0" / "evals") == before
    anew = evaluate(root / "runs" / "four-0", only=("mdl",), again=True)
    assert anew.reused == () and tree(root / "runs" / "four-0" / "evals") == before


def test_what_is_said_of_features_lies_beside_the_results(root: Path, done: Evaluated) -> None:
    run = root / "runs" / "four-0"
    assert [path.name for path in features.tables(run)] == ["core.features.parquet", "stability.features.parquet"]
    density, weights = features.read(features.path_of(run, "core"))
    values = density["heldout_density"].values
    assert weights == weights_of(run) and len(values) == 64
    assert (values == 0).mean() == pytest.approx(done.results["core"].metric("sparsity", "dead").value)
    before = tree(run / "evals")
    features.path_of(run, "stability").unlink()
    assert evaluate(run, only=("stability",)).reused == () and tree(run / "evals") == before


def test_another_suite_or_a_damaged_file_is_measured_again(root: Path, done: Evaluated) -> None:
    run = Path(shutil.copytree(root / "runs" / "four-0", root / "runs" / "copy"))
    path = run / "evals" / "core.json"
    before = json.loads(path.read_text())
    path.write_text("{")
    assert evaluate(run, only=("core",)).reused == () and json.loads(path.read_text())["metrics"] == before["metrics"]
    assert evaluate(run, "full", only=("core",)).reused == ()
    assert result.read(path).inputs["suite"] == "full"
    shutil.rmtree(run)


def test_controls_are_runs_that_others_share(root: Path, done: Evaluated) -> None:
    one, other = (open_context(root / "runs" / f"four-{seed}").trained for seed in (0, 1))
    found = trained.find(one)
    assert list(found) == CONTROLS[3:] and (trained.seconds(found) or 0) > 0
    for name, weight in (("frozen-decoder", "W_dec"), ("frozen-encoder", "W_enc")):
        assert read(found[name] / "config.yaml")[0].optim.frozen == (weight,)
    assert "random:native:tiny:0" in (found["random-model"] / "config.yaml").read_text()
    assert trained.make(one) == found
    # the order of rows and the weights of controls follow a seed of their own
    assert trained.find(other) == found and trained.find(one, seed=1) == {}


def test_other_seeds_are_found(root: Path) -> None:
    context = open_context(root / "runs" / "four-0")
    assert [run.name for run in other_seeds(context.trained, root / "runs")] == ["four-1"]


def test_runs_side_by_side_and_one_alone(root: Path, done: Evaluated) -> None:
    told = command(root, "runs/four-0", "--only", "core,ground-truth")
    assert told.code == 0 and "reconstruction.fve ↑" in told.out and "fr dec" in told.out
    assert "ground-truth: four-0 was trained on activations whose true features are unknown" in told.out
    both = command(root, "runs/four-0", "runs/eight-0", "--only", "mdl")
    assert both.code == 0 and "four-0" in both.out and "eight-0" in both.out and both.out.count("← fewest") == 1
    as_json = json.loads(command(root, "runs/four-0", "--only", "core", "--json").out)
    assert as_json[0]["reused"] == ["core"] and as_json[0]["results"]["core"]["format"] == "saescope-eval"


def test_a_comparison_over_seeds(root: Path, done: Evaluated) -> None:
    told = json.loads(command(root, "--compare", "runs/four-0", "runs/eight-0", "--only", "core", "--json").out)
    by_name = {(one["group"], one["name"]): one for one in told}
    l0, fve = by_name["sparsity", "l0"], by_name["reconstruction", "fve"]
    assert (l0["a"], l0["b"]) == (4, 8) and l0["difference"]["n_seeds"] == [2, 2]
    files = [[root / "runs" / f"{name}-{seed}" / "evals" / "core.json" for seed in (0, 1)] for name in ("four", "eight")]
    fves = [[read_json(file)["eval_result_metrics"]["reconstruction"]["fve"] for file in side] for side in files]
    assert fve["difference"]["value"] == pytest.approx(np.mean(fves[1]) - np.mean(fves[0]))
    assert fve["difference"]["error_seeds"] == pytest.approx(np.sqrt(sum(np.var(f, ddof=1) / 2 for f in fves)))
    assert fve["verdict"] == "B better" or fve["verdict"].startswith("not separable")
    table = command(root, "--compare", "runs/four-0", "runs/eight-0", "--only", "core")
    assert table.code == 0 and "(2 seeds)" in table.out and "better than nothing" in table.out


@pytest.mark.parametrize(("argv", "part"), [
    ([], "give run folders"), (["runs/nothing"], "runs/nothing"),
    (["runs/four-0", "--only", "croe"], "did you mean core"), (["--compare", "runs/four-0", "runs/elsewhere"], "same site"),
])
def test_what_cannot_be_done_is_one_sentence(root: Path, argv: list[str], part: str) -> None:
    assert part in refusal(command(root, *argv), "eval")


def test_without_the_model_the_rest_is_measured(root: Path, done: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds rows and tokens; what needs the model says why it is not there."""
    run = Path(shutil.copytree(root / "runs" / "four-0", root / "runs" / "orphan"))

    def gone(*_: object, **__: object) -> None:
        raise SaescopeError("the model is not on this machine.")

    monkeypatch.setattr("analysis.trained.load_model", gone)
    monkeypatch.setattr("analysis.trained._model", gone)
    found = evaluate(run, only=("core", "mdl"), again=True)
    shutil.rmtree(run)
    assert not found.refused and "model" not in found.results["core"].found.metrics
    assert "not on this machine" in found.results["core"].found.notes[0]
    assert found.results["core"].metric("reconstruction", "fve") is not None


def test_rows_without_text_have_no_cross_entropy(tmp_path: Path) -> None:
    import training

    (tmp_path / "acts").mkdir()
    np.save(tmp_path / "acts" / "rows.npy", np.random.default_rng(0).standard_normal((8192, 8)).astype(np.float32))
    fields = {
        "name": "own", "model": None, "site": "acts", "corpus": {"sources": f"acts:{tmp_path}/acts", "n_ctx": 32},
        "data": {"batch_rows": 256, "n_calib": 16}, "sae": {"variant": "topk", "d_sae": 20, "k": 3},
        "train": {"budget": "10 steps", "device": "cpu", "kernels": "reference"}, "eval": {"n_rows": 1024},
    }
    training.train(fields, runs=tmp_path / "runs", quiet=True)
    found = evaluate(tmp_path / "runs" / "own", only=("core", "mdl", "stability"), controls=True)
    core = found.results["core"]
    assert list(core.controls) == CONTROLS[:5] and core.lacking == ("random-model",)
    assert "model" not in core.found.metrics and core.found.notes
    assert core.found.units["rows"].kind == "sequence"
    assert "only seed" in found.refused["stability"]
