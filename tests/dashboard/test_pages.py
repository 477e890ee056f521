"""Every page over every state that a run can be in, without a browser; and what pages hand out."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.frame import TITLES
from tests.analysis.indexed_runs import HOSTILE, STATES
from tests.dashboard.test_frame import html, visit


@pytest.fixture(autouse=True)
def root(states: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAESCOPE_RUNS", str(states))
    return states


def said(app: AppTest) -> str:
    """Every text of the page."""
    kinds = ("text", "error", "warning", "info", "caption", "code", "title")
    return html(app) + " ".join(str(element.value) for kind in kinds for element in app.get(kind))


NEEDS_INDEX = {"going": "going is training, 25% done", "unindexed": "has no index yet", "corrupt": "cannot be read as JSON"}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("page", list(TITLES))
def test_every_page_over_every_state(page: str, state: str) -> None:
    app = visit(page=page, run=state)
    assert app.title[0].value == TITLES[page]
    if page in ("features", "feature", "prompt") and state in NEEDS_INDEX:
        assert NEEDS_INDEX[state] in said(app)
        assert "sae index " in said(app) and f"/{state}" in said(app)
    elif page == "features":
        n = 1 if state == "one" else 64
        assert f"{n} features" in said(app)
        assert html(app).count('<th scope="row"') >= n
    elif page == "feature":
        assert "<h2>Feature 0</h2>" in html(app)
        assert ("Never active" in html(app)) == (state == "dead")


@pytest.mark.parametrize("tab", ["examples", "label", "with", "steer", "export", "try"])
@pytest.mark.parametrize("state", ["healthy", "dead", "one", "abstopk"])
def test_every_tab_of_a_feature(tab: str, state: str) -> None:
    visit(page="feature", run=state, f="0", tab=tab)


def test_signed_features_have_two_sides() -> None:
    app = visit(page="feature", run="abstopk", f="3")
    assert [option for control in app.get("button_group") for option in control.options if "negative" in option]
    other = visit(page="feature", run="abstopk", f="3", side="-", group="top")
    assert "negative side" in html(other)


def test_the_table_is_sorted_and_filtered_by_the_url() -> None:
    app = visit(page="features", run="healthy", sort="density", filter="n_active > 0, density <= 50%")
    shares = [float(cell.split("%")[0]) for cell in html(app).split('<td class="sx-num">')
              if "%" in cell[:12] and "sx-bar" in cell[:80]]
    assert len(shares) > 3 and shares == sorted(shares, reverse=True)
    up = visit(page="features", run="healthy", sort="density", asc="true", filter="n_active > 0, density <= 50%")
    assert [float(c.split("%")[0]) for c in html(up).split('<td class="sx-num">')
            if "%" in c[:12] and "sx-bar" in c[:80]] == sorted(shares)


@pytest.mark.parametrize("bad", ["densty > 1", "density", "1=1; DROP TABLE stats", "density > (SELECT 1)"])
def test_a_filter_that_cannot_be_understood_is_said(bad: str) -> None:
    app = visit(page="features", run="healthy", filter=bad)
    assert app.error and "64 features" in said(app)


def test_a_box_in_the_url_keeps_the_features_in_it() -> None:
    everything = visit(page="features", run="healthy", view="scatter")
    assert len(everything.get("plotly_chart")) == 1
    app = visit(page="features", run="healthy", view="scatter", box="density~max~0.0~0.02~0.0~1000.0")
    assert " of 64 features" in said(app) and "Only the features in the box" in html(app)
    assert "64 features" in said(visit(page="features", run="healthy", box="density~passwd~0~1~0~1"))


def test_search_in_contexts_ranks_the_features_that_fire_there() -> None:
    app = visit(page="features", run="healthy", q="bold", by="text")
    assert "Found at" in said(app) and " of 64 features" in said(app)
    assert "Found at" in said(visit(page="features", run="healthy", q="b.ld", by="regex"))
    assert visit(page="features", run="healthy", q="(", by="regex").error
    assert "No feature fits" in said(visit(page="features", run="healthy", q="nowhere in there", by="text"))


def test_hostile_text_is_text(states: Path) -> None:
    for query in ({"page": "features", "q": "script", "by": "text"}, {"page": "feature", "f": "1", "group": "random"},
                  {"page": "evaluations", "run": HOSTILE}):
        app = visit(**{"run": "healthy", **query})
        assert "<script" not in html(app) and "\u202e" not in html(app)


@pytest.mark.parametrize("query", [{"f": "64"}, {"f": "-1"}, {"f": "x"}, {"tab": "none"}, {"group": "q99"}, {"side": "-"},
                                   {"open": "9.9.9"}, {"p": "99"}, {"with": "900"}, {"logx": "?"}, {"index": "../x"}])
def test_values_that_do_not_fit_are_the_defaults(query: dict[str, str]) -> None:
    visit(page="feature", run="healthy", **query)
    visit(page="features", run="healthy", **query)


def test_an_example_is_widened_by_the_url(states: Path) -> None:
    from analysis.index import open_index

    index = open_index(states / "healthy")
    feature = int(index.top("n_active", limit=1)["feature"][0].as_py())
    one = index.examples(feature, "top", n=1)[0]
    narrow = html(visit(page="feature", run="healthy", f=str(feature), group="top"))
    wide = html(visit(page="feature", run="healthy", f=str(feature), group="top", open=f"{one.seq}.{one.position}"))
    assert one.stop - one.start < index.n_ctx or len(wide) == len(narrow)
    assert len(wide) >= len(narrow)


def test_downloads_hold_what_the_index_holds(states: Path) -> None:
    from analysis.index import open_index
    from analysis.labels import Labels
    from analysis.runs import find
    from dashboard import tools
    from dashboard.chosen import Chosen
    from dashboard.place import Place

    run = next(one for one in find(states) if one.name == "healthy")
    index = open_index(run.folder)
    place = Place(Chosen(run, index, Labels(run.folder)), int(index.top("n_active", limit=1)["feature"][0].as_py()))
    whole: dict[str, Any] = json.loads(tools.as_json(place))
    assert whole["n_active"] == index.feature(place.feature).n_active
    assert whole["provenance"]["run"] == "healthy"
    lines = list(csv.DictReader(io.StringIO(tools.as_csv(place))))
    assert {line["group"] for line in lines} >= {"top", "q1", "random"}
    page = tools.as_html(place)
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
