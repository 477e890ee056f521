"""Probing for the labels of a dataset of one's own: which rows are taken, what their means are, and the command."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import runs
from analysis.evals import overview
from analysis.evals.common import result
from analysis.evals.common.context import Context, open_context
from analysis.evals.metrics import labelled
from analysis.evals.probes.labelled import LabelledText
from analysis.evals.run import evaluate
from sae.errors import SaescopeError
from tests.analysis.evals.runs import train_small
from tests.analysis.evals.test_eval import command
from tests.helpers import refusal

ALPHABETS = {"low": "abcd", "high": "wxyz"}
Rows = list[dict[str, str | int | None]]


def rows_of(n: int = 60, seed: int = 0) -> Rows:
    """Texts of different alphabets and lengths, with what alphabet it is and what tells nothing."""
    rng = np.random.default_rng(seed)
    return [{"words": "".join(rng.choice(list(letters), int(rng.integers(5, 60)))), "kind": kind,
             "coin": "ab"[int(rng.integers(2))], "n": i}
            for i in range(n) for kind, letters in ALPHABETS.items()]


def write(path: Path, rows: Rows) -> str:
    """A source of these rows in the form that the name asks for."""
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return f"{'datasets' if path.suffix == '.csv' else path.suffix[1:]}:{path}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    train_small(root, "tiny")
    write(root / "letters.jsonl", rows_of())
    return root


@pytest.fixture(scope="module")
def context(root: Path) -> Context:
    return open_context(root / "runs" / "tiny")


def text(root: Path, label: str = "kind") -> LabelledText:
    return LabelledText(f"jsonl:{root / 'letters.jsonl'}", "words", label)


def test_rows_are_taken_by_their_text_alone(root: Path) -> None:
    sample = text(root).sample
    assert sample.classes == ("high", "low") and len(sample.text) == len(set(sample.text)) == 120 and not sample.notes
    assert all((set(one) <= set("abcd")) == (sample.classes[c] == "low")
               for one, c in zip(sample.text, sample.label, strict=True))
    rows = rows_of()
    turned = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    for name, others in (("a.parquet", turned), ("b.csv", turned), ("c.jsonl", turned + rows[:50])):
        assert LabelledText(write(root / name, others), "words", "kind").sample.sha256 == sample.sha256
    some = sample.first(40)
    assert np.bincount(2 * some.label + some.fitted).tolist() == [10, 10, 10, 10]
    assert set(sample.first(20).text) < set(some.text) < set(sample.text)
    assert sample.sha256 != some.sha256 != text(root, "coin").sample.sha256


def test_means_are_those_of_each_document_alone(context: Context, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "BATCH_TOKENS", 200)
    settings = labelled.Settings("", "", "", None, None, n_documents=24, n_tokens=20)
    sample = text(root).sample.first(24)
    found = labelled._means(context, context.sae, sample, settings)
    trained, codes = context.trained, found.codes[id(context.sae)][1].toarray()
    assert codes.shape == (24, 64)
    for i, one in enumerate(sample.text):
        tokens = trained.tokens(one)[:20]
        coded = trained.code_of_tokens(tokens)
        alone = coded.code.to_dense()[coded.kept].double().mean(0)
        np.testing.assert_allclose(codes[i], alone, atol=1e-5)
        acts = context.model.activations(tokens[None], [trained.site.input])[trained.site.input][0]
        np.testing.assert_allclose(found.activations[i], acts[coded.kept].double().mean(0), atol=1e-5)


def test_alphabets_are_told_and_a_coin_is_not(context: Context, root: Path) -> None:
    accuracy: dict[str, dict[str, float]] = {}
    for label in ("kind", "coin"):
        sample, evaluation = text(root, label).sample, labelled.evaluation_of(text(root, label))
        assert evaluation.references is not None
        found = evaluation.run(context, context.sae, evaluation.quick)
        metrics = {"sae": found.metrics, **evaluation.references(context, evaluation.quick)}
        assert found.units["rows"].kind == "document" and found.metrics["labels"]["accuracy_k1"].n == (~sample.fitted).sum()
        accuracy[label] = {name: one["labels"]["accuracy_k5"].value or 0 for name, one in metrics.items()}
        low, high = found.metrics["labels"]["accuracy_k5"].low, found.metrics["labels"]["accuracy_k5"].high
        assert low is not None and high is not None and low <= accuracy[label]["sae"] <= high
        assert (low < 0.5 < high) == (label == "coin")
    assert min(accuracy["kind"].values()) > 0.95 and max(accuracy["coin"].values()) < 0.7


def test_the_command_the_file_and_the_page(root: Path) -> None:
    given = ["--labelled", "jsonl:letters.jsonl", "--text", "words", "--label", "kind"]
    told = command(root, "runs/tiny", *given)
    assert told.code == 0 and "labelled-letters-kind" in told.out and "labels.accuracy_k1 ↑" in told.out, told.err
    found = result.read(root / "runs" / "tiny" / "evals" / "labelled-letters-kind.json")
    assert list(found.controls) == ["random", "pca", "channels"] and list(found.references) == ["activation probe"]
    assert found.lacking == ("frozen-decoder", "frozen-encoder", "random-model")
    assert overview.arguments(found) == given
    row = overview.of_run(runs.read(root / "runs", root / "runs" / "tiny")).rows()[0]
    assert row.figures["labelled-letters-kind.labels.accuracy_k1"].value == found.metric("labels", "accuracy_k1").value
    again = json.loads(command(root, "runs/tiny", *given, "--only", "ground-truth", "--json").out)[0]
    assert again["reused"] == list(again["results"]) == ["labelled-letters-kind"]
    assert list(again["refused"]) == ["ground-truth"]
    with (root / "letters.jsonl").open("a") as file:
        file.write('\n{"words": "abcdefgh", "kind": "low"}\n')
    assert evaluate(root / "runs" / "tiny", labelled=text(root)).reused == ()


def some(change: Callable[[int], dict[str, str | int | None]], n: int = 60) -> Rows:
    return [{"words": f"text {i}", "kind": "ab"[i % 2], **change(i)} for i in range(n)]


@pytest.mark.parametrize(("name", "rows", "parts"), [
    ("other.jsonl", [{"words": "a", "topic": "b"}], ["'kind'", "words, topic"]),
    ("other.parquet", [{"words": "a", "topic": "b"}], ["'kind'", "words, topic"]),
    ("null.jsonl", some(lambda _: {"kind": None}), ["no two of 60 rows"]),
    ("score.jsonl", some(lambda i: {"kind": i}), ["no two of 60 rows"]),
    ("one.jsonl", some(lambda i: {"kind": "b" if i else None}), ["'b'", "all 59 rows", "two classes"]),
    ("few.jsonl", some(lambda _: {}, 20), ["12 to fit on", "6 to test on", "'a' has"]),
    ("equal.jsonl", some(lambda i: {"words": "ab"[i % 2]}), ["no two"]),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_probed_says_why(root: Path, name: str, rows: Rows, parts: list[str]) -> None:
    source = write(root / name, rows)
    with pytest.raises(SaescopeError) as error:
        _ = LabelledText(source, "words", "kind").sample
    assert all(part in str(error.value) for part in parts), error.value


def test_rare_labels_are_left_out_and_said(root: Path) -> None:
    rows = some(lambda i: {"kind": "rare" if i < 3 else "ab"[i % 2]}, 103)
    sample = LabelledText(write(root / "rare.jsonl", rows), "words", "kind").sample
    assert set(sample.classes) == {"a", "b"} and len(sample.text) == 100 and "3 of 103" in sample.notes[0]


@pytest.mark.parametrize(("argv", "part"), [
    (["--label", "kind"], "--labelled"),
    (["--labelled", "text:letters.jsonl"], "no label column"),
    (["--labelled", "jsonl:nothing.jsonl"], "nothing.jsonl"),
    (["--labelled", "jsonl:letters.jsonl", "--split", "test"], "split"),
])
def test_what_the_command_refuses(root: Path, argv: list[str], part: str) -> None:
    told = command(root, "runs/tiny", *argv)
    assert told.code == 2 and part in told.out + told.err
    if not told.out:
        refusal(told, "eval")


def test_the_others_go_on(root: Path) -> None:
    nothing = LabelledText("jsonl:nothing.jsonl")
    found = evaluate(root / "runs" / "tiny", only=("core",), labelled=nothing, without=("random", "pca", "channels"))
    assert list(found.results) == ["core"] and list(found.refused) == ["labelled-nothing-label"]


def test_names_and_unread_columns() -> None:
    assert LabelledText("datasets:fancyzhx/ag_news").name == "labelled-ag_news-label"
    assert LabelledText("jsonl:data/*.jsonl", label="meta.lang").name == "labelled-set-meta-lang"


def test_features_say_which_label_they_tell(context: Context, root: Path) -> None:
    evaluation = labelled.evaluation_of(text(root))
    found = evaluation.run(context, context.sae, evaluation.quick)
    concept, area = (found.features[f"labelled_letters_kind_{name}"].values for name in ("concept", "auc"))
    best = int(np.nanargmax(area))
    assert area[best] > 0.95 and concept[best] in ALPHABETS
    first = next(record for record in found.details if record["k"] == 1 and record["chosen"] == "scaled")
    assert area[first["features"][0]] > 0.9
