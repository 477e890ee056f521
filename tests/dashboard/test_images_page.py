"""Pages of a run whose contexts are images."""

from pathlib import Path

import pytest

from analysis.index import open_index
from tests.analysis.image_runs import imported_from, write_image_run
from tests.dashboard.pages import html, said, visit


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_image_run(folder)
    return folder


@pytest.fixture
def feature(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SAESCOPE_RUNS", str(root / "runs"))
    return str(open_index(root / "runs" / "images").top("n_active", limit=1)["feature"][0].as_py())


@pytest.mark.parametrize("page", ["runs", "features", "feature", "compare", "evaluations"])
def test_pages_open(page: str, feature: str) -> None:
    app = visit(page=page, run="images", f=feature)
    assert not app.error, said(app)
    if page == "feature":
        assert html(app).count("sx-picture") > 20 and "digit" in html(app)
        assert not [e for e in app.get("bidi_component") if e.proto.component_name == "saescope_reader_try"]


@pytest.mark.parametrize("tab", ["with", "statistics", "label", "export"])
def test_tabs_open(tab: str, feature: str) -> None:
    app = visit(page="feature", run="images", f=feature, tab=tab)
    assert not app.error, said(app)
    assert tab != "with" or "sx-picture" in html(app)


def test_an_input_is_steered(root: Path, feature: str) -> None:
    with imported_from(root):
        app = visit(page="feature", run="images", f=feature, tab="steer", strength="5", at="active")
    assert 'data-steered="done"' in html(app) and "Baseline" in html(app) and not app.error, said(app)
    with imported_from(root):
        app = visit(page="feature", run="images", f=feature, tab="steer", strength="5", at="3, 99")
    assert [one for one in app.error if "no position 99" in str(one.value)], said(app)
    app = visit(page="feature", run="images", f=feature, tab="steer", strength="5", at="left")
    assert [one for one in app.error if "Positions must be all, active, or numbers" in str(one.value)], said(app)


def test_a_prompt_is_refused_in_a_sentence(feature: str) -> None:
    app = visit(page="prompt", run="images", f=feature, text="the tree")
    assert [one for one in app.error if "without a language model" in str(one.value)], said(app)
