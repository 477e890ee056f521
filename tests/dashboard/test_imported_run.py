"""An SAE trained elsewhere, imported: the index, the pages, the terminal, mdl, prompts and steering open it as any run."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis import runs
from analysis.index import Index, build
from analysis.mdl.runs import least_description
from analysis.steering.generate import Edit, Settings, steer
from sae import store
from tests.dashboard.pages import reader, said, visit
from tests.dashboard.test_runs_page import table
from tests.helpers import HOOK, run_sae
from tests.training.imported import imported, saelens_folder
from training.finish import Result
from training.model.load import load_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imported")


@pytest.fixture(scope="module")
def run(root: Path) -> Result:
    return imported(root, saelens_folder(root / "theirs", "jumprelu"), name="theirs")


@pytest.fixture(scope="module")
def index(run: Result) -> Index:
    return build(run.folder, quiet=True)


@pytest.fixture
def pages(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESCOPE_RUNS", str(root / "runs"))


def test_the_index_holds_what_the_sae_computes(run: Result, index: Index) -> None:
    tokens = torch.from_numpy(index.tokens[:4].copy()).long()
    rows = load_model("native:tiny").activations(tokens, [HOOK])[HOOK].flatten(0, 1)
    acts = run.sae.encode(rows).to_dense() * torch.from_numpy(np.load(index.folder / "kept.npy")[:4].reshape(-1, 1))
    feature = int((acts > 0).sum(0).argmax())
    assert index.feature(feature).n_active > 0
    strongest = index.examples(feature, n=1)[0]
    assert strongest.value >= float(acts[:, feature].max()) * (1 - 1e-2)
    assert index.manifest["about"]["run"] == "theirs" and index.manifest["notes"]["decoder_norm"]


@pytest.mark.usefixtures("pages", "index")
@pytest.mark.parametrize("page", ["runs", "features", "feature", "prompt", "compare"])
def test_pages_open(page: str) -> None:
    app = visit(page=page, run="theirs", f="3", text="the tree")
    assert not app.error, said(app)
    if page == "features":
        assert "64 features" in said(app)
    if page == "feature":
        assert reader(app)["feature"] == reader(app)["features"][0]["feature"] == 3


@pytest.mark.usefixtures("pages", "index")
@pytest.mark.parametrize("tab", ["examples", "label", "with", "steer", "export", "statistics"])
def test_every_tab_of_a_feature(tab: str) -> None:
    assert not visit(page="feature", run="theirs", f="3", tab=tab).error


@pytest.mark.usefixtures("pages")
def test_the_runs_page_claims_no_training(run: Result) -> None:
    row = table(visit(page="runs"))[0]
    assert "imported" in row["status"]
    assert (row["run"], row["through"], row["tokens"], row["dead"], row["variant"]) == ("theirs", "–", "–", "–", "jumprelu")
    assert row["fve"] == f"{run.summary['heldout']['fve']:.3f}" and row["ce_interval"] != "–"
    found = runs.find(run.folder.parent)[0]
    assert found.imported and found.status(time.time() + 1e6) == "imported"


@pytest.mark.usefixtures("index")
def test_the_terminal_shows_a_feature(run: Result) -> None:
    shown = run_sae(run.folder, "show", run.folder, "3", "--n", "1")
    assert shown.code == 0 and "3" in shown.out


def test_bits_and_steering(run: Result) -> None:
    selection = least_description([run.folder], n_rows=640)
    assert selection.least.fve == pytest.approx(run.summary["heldout"]["fve"], abs=1e-4)
    settings = Settings(seed=1, max_tokens=4)
    assert steer(run.folder, "the tree", [Edit(3, 0.0)], settings).steered_text == steer(
        run.folder, "the tree", [], settings).steered_text


def test_a_training_can_begin_from_it_but_not_be_one(run: Result, root: Path) -> None:
    assert store.load(run.folder).unfit_as_start() is None
    again = run_sae(root, "train", run.folder / "config.yaml", "--runs", root / "runs")
    assert again.code == 2 and "theirs" in again.err


def test_a_transcoder_is_indexed_by_what_it_reads(root: Path) -> None:
    run = imported(root, saelens_folder(root / "skipping", "skip_transcoder"))
    index = build(run.folder, quiet=True)
    tokens = torch.from_numpy(index.tokens[:4].copy()).long()
    acts = run.sae.encode(load_model("native:tiny").activations(tokens, [HOOK])[HOOK].flatten(0, 1)).to_dense()
    kept = torch.from_numpy(np.load(index.folder / "kept.npy")[:4].reshape(-1, 1))
    feature = int((acts * kept > 0).sum(0).argmax())
    assert index.examples(feature, n=1)[0].value >= float((acts * kept)[:, feature].max()) * (1 - 1e-2)
