"""Sparse probing of real small runs: on Python source, on labels of a corpus, and where there are none."""

import json
from pathlib import Path

import numpy as np
import pytest

import training
from analysis.evals.common.context import Context, open_context
from analysis.evals.metrics.probing import EVALUATION, Settings, run, skyline
from sae.errors import SaescopeError
from tests.analysis.indexed_runs import train_tiny
from tests.helpers import quick_fields

SMALL = Settings(n_fit=1500, n_test=1500)


def write_modules(folder: Path, n: int = 40) -> None:
    """Python files whose comments, strings, names and numbers are of different characters."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        lines = []
        for _ in range(6):
            name, number = "".join(rng.choice(list("abcd"), 4)), rng.integers(100, 999)
            lines += [f"{name} = {number}", "# !!?!?!?!!", f"{name}('====')"]
        (folder / f"m{i:02d}.py").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Context:
    root = tmp_path_factory.mktemp("python")
    write_modules(root / "code")
    sources = {"sources": f"text:{root / 'code'}/*.py", "n_ctx": 64, "n_tokens": 6400}
    fields = {"name": "python", "cache": {"dir": str(root / "cache")}, "corpus": sources}

    (root / "corpus").mkdir()
    training.train(quick_fields(**fields), runs=root / "runs", quiet=True)
    return open_context(root / "runs" / "python")


def test_classes_of_python_are_probed(python: Context) -> None:
    found = run(python, python.sae, SMALL)
    accuracy = {name: metric.value for name, metric in found.metrics["tokens"].items()}
    assert 0.6 < accuracy["accuracy_k1"] <= accuracy["accuracy_k5"] + 0.05 <= 1.05 and accuracy["scaled_k5"] > 0.6
    by_class = {(r["class"], r["k"]): r for r in found.details if r["chosen"] == "accuracy"}
    assert {c for c, _ in by_class} >= {"comment", "identifier", "number", "operator"}
    known = skyline(python, SMALL)["activation probe"]["tokens"]["accuracy_k1"].value
    # bytes stand in the residual stream of a model of one block: a linear probe sees nearly all
    assert known is not None and known > 0.9 and known > accuracy["accuracy_k1"]
    metric = found.metrics["tokens"]["accuracy_k1"]
    assert metric.pseudo is not None and len(metric.pseudo) == len(found.units["rows"].id)
    mean = np.mean([r["accuracy"] for (_, k), r in by_class.items() if k == 1])
    assert metric.value == pytest.approx(mean)


def test_labels_of_the_corpus_are_topics(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    alphabets = {"low": "abcd", "high": "wxyz"}
    lines = [
        json.dumps({"text": "".join(rng.choice(list(alphabet), 130)), "kind": label})
        for _ in range(60) for label, alphabet in alphabets.items()
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    sources = [{"source": f"jsonl:{tmp_path / 'all.jsonl'}", "label_field": "kind"}]
    corpus = {"sources": sources, "n_tokens": 12_000, "held_out": 0.3}
    training.train(
        quick_fields(name="labels", corpus=corpus, cache={"dir": str(tmp_path / "cache")}, eval={"n_rows": 4096}),
        runs=tmp_path / "runs", quiet=True)
    context = open_context(tmp_path / "runs" / "labels")
    found = run(context, context.sae, SMALL)
    assert list(found.metrics) == ["topics"]
    # stretches of different alphabets are told apart by one feature
    assert found.metrics["topics"]["accuracy_k1"].value > 0.95


def test_a_corpus_without_labels_says_so(tmp_path: Path) -> None:
    context = open_context(train_tiny(tmp_path, "plain"))
    with pytest.raises(SaescopeError, match="label_field"):
        EVALUATION.run(context, context.sae, SMALL)
