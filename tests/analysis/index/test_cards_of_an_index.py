"""Cards, labels and exports of a real index, through the commands."""

import json
import shutil
from pathlib import Path

import pytest

from analysis.commands import show
from analysis.export.cards import card
from analysis.index import Index, open_index
from analysis.labels.commands import export, label
from analysis.labels.store import Labels
from sae.errors import SaescopeError
from tests.analysis.markup import Page
from tests.helpers import read_only


@pytest.fixture
def run(folder: Path, index: Index, tmp_path: Path) -> Path:
    """A copy of the run, to write labels into."""
    return Path(shutil.copytree(folder / "runs/quick", tmp_path / "quick"))


def test_a_card_gathers_what_the_index_has(index: Index) -> None:
    alive = index.top("density", columns=["feature"], limit=1)["feature"].to_pylist()[0]
    one = card(index, alive)
    assert one.feature == index.feature(alive)
    (top,) = [section for section in one.sections if section.group.name == "top"]
    assert list(top.examples) == index.examples(alive, "top", "+", 10)
    assert one.provenance["run"] == "quick" and one.provenance["weights sha256"] and one.provenance["tokens sha256"]
    assert f"Feature {alive}" in Page(one._repr_html_()).elements[1].attributes["aria-label"]


def test_label_then_export(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert label([str(run), "--top", "5"]) == 0
    told = capsys.readouterr()
    assert "labels," in told.out and "labelling: 5 features" in told.err and "tokens" not in told.err
    labels = Labels(run)
    made = labels.all()
    assert 1 <= len(made) <= 5 and all(one.author == "auto" for one in made)
    labels.add_to_list("some", *(one.feature for one in made))
    out = run / "some.html"
    assert export([str(run), "--list", "some", "--out", str(out)]) == 0
    parsed = Page(out.read_text(encoding="utf-8"))
    assert len(parsed.having("article")) == len(made)
    assert export([str(run), "--features", "0-2", "--out", str(run / "a.json")]) == 0
    assert [one["feature"]["feature"] for one in json.loads((run / "a.json").read_text())] == [0, 1, 2]
    assert open_index(run).stale is None


def test_a_run_in_a_read_only_folder_is_exported_and_shown_but_not_labelled(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Labels(run).set_label(1, "mine")
    with read_only(run):
        assert export([str(run), "--features", "1", "--out", str(tmp_path / "a.json")]) == 0
        assert json.loads((tmp_path / "a.json").read_text())[0]["label"]["text"] == "mine"
        assert show([str(run), "1"]) == 0
        # before any work: there is no explainer to do any
        monkeypatch.delattr("analysis.labels.automatic.Explainer.label")
        with pytest.raises(SaescopeError, match=r"labels\.sqlite cannot be written"):
            label([str(run), "--top", "5"])


def test_what_cannot_be_exported_is_told(run: Path) -> None:
    for arguments, message in (
        (["--list", "none", "--out", "a.html"], "no list 'none'"),
        (["--features", "9999", "--out", "a.html"], "no feature"),
        (["--features", "1", "--out", "a.pdf"], r"\.pdf"),
    ):
        with pytest.raises(SaescopeError, match=message):
            export([str(run), *arguments])
    with pytest.raises(SaescopeError, match="--top 0"):
        label([str(run), "--top", "0"])
