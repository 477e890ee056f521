"""Every page over every state that a run can be in, without a browser; and what pages hand out."""

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from analysis.index import build, open_index
from analysis.labels.first_look import good_first
from analysis.labels.store import Labels
from analysis.prompt import encode_text
from analysis.render.text import count, number
from dashboard.frame import TITLES
from dashboard.state import address
from dashboard.state.order import N_PAGE
from sae.io.files import read_json, write_json
from tests.analysis.indexed_runs import HOSTILE, STATES
from tests.dashboard.pages import drawn, html, reader, said, saved, visit
from tests.helpers import read_only


@pytest.fixture(autouse=True)
def root(states: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAESCOPE_RUNS", str(states))
    return states


@pytest.mark.parametrize("page", ["features", "prompt"])
def test_an_index_of_another_version_is_refused_with_the_command(page: str, states: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(states / "healthy", tmp_path / "runs/older"))
    manifest = run / "index/default/manifest.json"
    write_json(manifest, read_json(manifest) | {"format_version": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAESCOPE_RUNS", str(run.parent))
        told = said(visit(page=page, run="older"))
    assert "format version 1" in told and f"sae index {run} --again" in told


@pytest.mark.parametrize("content", [b"not a database, just text " * 100, b"SQLite format 3\x00" + b"\xff" * 8192])
def test_labels_that_cannot_be_read_hide_no_features(content: bytes, states: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(states / "healthy", tmp_path / "runs/garbled"))
    (run / "labels.sqlite").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAESCOPE_RUNS", str(run.parent))
        for query in ({"page": "features"}, {"page": "features", "q": "a"}, {"page": "feature", "f": "0", "tab": "label"}):
            app = visit(run="garbled", **query)
            assert "labels.sqlite cannot be used as a database" in said(app).replace("\\", "")
            assert f"{64} features" in said(app) or reader(app)["fixed"]
    assert (run / "labels.sqlite").read_bytes() == content


NEEDS_INDEX = {"going": "going is training, 25% done", "unindexed": "has no index yet", "corrupt": "cannot be read as JSON"}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("page", list(TITLES))
def test_every_page_over_every_state(page: str, state: str, states: Path) -> None:
    app = visit(page=page, run=state)
    if page != "feature" or state in NEEDS_INDEX:
        assert app.title[0].value == TITLES[page]
    if page in ("features", "feature", "compare", "prompt") and state in NEEDS_INDEX:
        assert NEEDS_INDEX[state] in said(app)
        assert "sae index " in said(app) and f"/{state}" in said(app)
    elif page == "features":
        n = 1 if state == "one" else 64
        assert count(n, "feature") in said(app)
        assert html(app).count('<th scope="row"') >= min(n, N_PAGE)
    elif page == "feature":
        run = states / state
        shown = reader(app)
        assert shown["feature"] == shown["features"][0]["feature"] == good_first(open_index(run), Labels(run))
        assert ("Never active" in html(app)) == (state == "dead")


@pytest.mark.parametrize("tab", ["examples", "label", "with", "steer", "export", "statistics"])
@pytest.mark.parametrize("state", ["healthy", "dead", "one", "abstopk"])
def test_every_tab_of_a_feature(tab: str, state: str) -> None:
    visit(page="feature", run=state, f="0", tab=tab)


def test_an_index_of_refined_codes_is_read_with_refined_texts(states: Path, tmp_path: Path) -> None:
    """Every page opens; what a typed text shows is what the refined SAE gives for it."""
    run = Path(shutil.copytree(states / "healthy", tmp_path / "runs/refined", ignore=shutil.ignore_patterns("index")))
    index = build(run, refine=2, quiet=True)
    text = "a tiny test of the tree"
    refined, plain = encode_text(run, text, refine=2), encode_text(run, text)
    feature = next(top.feature for top in refined.top() if abs(plain.values(top.feature).max() - top.value) > 0.01)
    told = number(float(refined.values(feature).max()))
    assert told != number(float(plain.values(feature).max())) and index.refine == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAESCOPE_RUNS", str(run.parent))
        for page in TITLES:
            visit(page=page, run="refined")
        prompt = visit(page="prompt", run="refined", text=text, f=str(feature), cut="100")
        assert f"Here up to {told}" in html(prompt)
        tried = visit(page="feature", run="refined", text=text, f=str(feature))
        assert told in html(tried)
        visit(page="features", run="refined", q=text, by="prompt")


def test_labels_of_a_read_only_run_are_shown_and_not_edited(states: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(states / "healthy", tmp_path / "runs/shared"))
    Labels(run).set_label(0, "somebody else's")
    with pytest.MonkeyPatch.context() as patch, read_only(run.parent):
        patch.setenv("SAESCOPE_RUNS", str(run.parent))
        app = visit(page="feature", run="shared", f="0", tab="label")
        assert reader(app)["features"][0]["written"]["label"] == "somebody else's"
        assert "be edited" in reader(app)["fixed"]
    assert reader(visit(page="feature", run="healthy", f="0"))["fixed"] == ""


def test_signed_features_have_two_sides() -> None:
    app = visit(page="feature", run="abstopk", f="3")
    assert 'aria-label="Side"' in html(app) and "− negative" in html(app)
    other = visit(page="feature", run="abstopk", f="3", side="-", group="top")
    assert "negative side" in html(other)


def test_the_table_is_sorted_and_filtered_by_the_url() -> None:
    app = visit(page="features", run="healthy", sort="density", filter="n_active > 0, density <= 50%")
    shares = densities(app)
    assert len(shares) > 3 and shares == sorted(shares, reverse=True)
    up = visit(page="features", run="healthy", sort="density", asc="true", filter="n_active > 0, density <= 50%")
    assert densities(up) == sorted(densities(up)) and densities(up)[0] <= shares[-1]


def densities(app: AppTest) -> list[float]:
    """The first number of each row of the table, in percent."""
    rows = html(app).split("<tbody>")[1].split("</tbody>")[0].split("</tr>")[:-1]
    return [float(row.split('<td class="sx-num">')[1].split()[0]) for row in rows]


@pytest.mark.parametrize("bad", ["densty > 1", "density", "1=1; DROP TABLE stats", "density > (SELECT 1)"])
def test_a_filter_that_cannot_be_understood_is_said(bad: str) -> None:
    app = visit(page="features", run="healthy", filter=bad)
    assert app.error and "64 features" in said(app)


def test_a_box_in_the_url_keeps_the_features_in_it() -> None:
    everything = visit(page="features", run="healthy", view="scatter")
    assert len(everything.get("plotly_chart")) == 1
    app = visit(page="features", run="healthy", view="scatter", box="density~max~0.0~0.02~0.0~1000.0")
    assert " of 64 features" in said(app) and "only features in the box" in html(app)
    assert "64 features" in said(visit(page="features", run="healthy", box="density~passwd~0~1~0~1"))


def test_search_in_contexts_ranks_the_features_that_fire_there() -> None:
    for query in ({"q": "bold", "by": "text"}, {"q": "b.ld", "by": "regex"}):
        app = visit(page="features", run="healthy", **query)
        assert re.search(r"Found: .*from all \d+ occurrences", said(app)) and " of 64 features" in said(app)
    assert visit(page="features", run="healthy", q="(", by="regex").error
    assert "No features match" in said(visit(page="features", run="healthy", q="nowhere in there", by="text"))


def test_a_search_with_many_places_says_that_it_samples_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.state.search.N_PLACES", 7)
    app = visit(page="features", run="healthy", q="e", by="text")
    assert re.search(r"an even sample of 7 of \d+ occurrences", said(app))


def test_a_search_for_labels_where_there_are_none_says_what_to_do() -> None:
    app = visit(page="features", run="abstopk", q="verbs")
    assert "No labels yet: run <code>sae label " in html(app) and "q=verbs&amp;by=text" in html(app)


def test_texts_can_be_filtered_as_the_help_says() -> None:
    stats = open_index(Path(os.environ["SAESCOPE_RUNS"]) / "healthy").stats
    token = next(text for text in stats["top_token"].to_pylist() if text)
    n = stats["top_token"].to_pylist().count(token)
    app = visit(page="features", run="healthy", filter=f"top_token = {json.dumps(token)}, dead = false")
    assert not app.error and f"{n} of 64 features" in said(app)


def test_hostile_text_is_text(states: Path) -> None:
    for query in ({"page": "features", "q": "script", "by": "text"}, {"page": "feature", "f": "1", "group": "random"},
                  {"page": "evaluations", "run": HOSTILE}):
        app = visit(**{"run": "healthy", **query})
        assert "<script" not in html(app) and "\u202e" not in html(app)


@pytest.mark.parametrize("query", [
    {"f": "64"}, {"f": "-1"}, {"f": "x"}, {"tab": "none"}, {"group": "q99"}, {"side": "-"}, {"range": "+~1~x"},
    {"range": "+~2~1"}, {"range": "-~0~1"}, {"p": "99"}, {"with": "900"}, {"logx": "?"}, {"index": "../x"},
])
def test_values_that_do_not_fit_are_the_defaults(query: dict[str, str]) -> None:
    visit(page="feature", run="healthy", **query)
    visit(page="features", run="healthy", **query)


def test_the_browser_is_given_what_it_does_not_hold(states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = visit(page="feature", run="healthy", f="20")
    first = reader(app)
    assert [one["feature"] for one in first["features"]] == [20] and first["walk"][:3] == [0, 1, 2]
    app.session_state["_reader told"] = {"stamp": first["stamp"], "have": [20, 22]}
    second = reader(drawn(app))
    assert [one["feature"] for one in second["features"]] == [21, 23, 24, 25]
    assert second["stamp"] == first["stamp"]
    # what would be drawn otherwise is given anew
    app.query_params["group"] = "q3"
    third = reader(drawn(app))
    assert third["stamp"] != first["stamp"] and [one["feature"] for one in third["features"]] == [20]


def test_examples_can_be_widened_where_they_lie(busy: list[int]) -> None:
    (one,) = reader(visit(page="feature", run="healthy", f=str(busy[0]), group="top"))["features"]
    assert one["examples"].count("data-at") > 5 and "sx-far" in one["examples"]


def test_a_range_of_values_chooses_the_examples(states: Path, busy: list[int]) -> None:
    index = open_index(states / "healthy")
    values = sorted(index.column(busy[0])[1].tolist())
    low, high = values[len(values) // 3], values[len(values) // 2]
    (one,) = reader(visit(page="feature", run="healthy", f=str(busy[0]), range=f"+~{low}~{high}"))["features"]
    found = [float(value) for value in re.findall(r'data-value="([^"]+)"', one["examples"])]
    assert found and all(low * 0.999 <= value < high * 1.001 for value in found)
    assert "Values in the range" in one["examples"]


def test_downloads_hold_what_the_index_holds(states: Path) -> None:
    from analysis.index import open_index

    index = open_index(states / "healthy")
    feature = int(index.top("n_active", limit=1)["feature"][0].as_py())
    app = visit(page="feature", run="healthy", f=str(feature), tab="export")

    def file(label: str) -> str:
        app.button(key=f"save {label}").click()
        name, text = saved(drawn(app))
        assert name.startswith(f"feature-{feature}.")
        return text

    whole: dict[str, Any] = json.loads(file("JSON"))[0]
    assert whole["feature"]["n_active"] == index.feature(feature).n_active
    assert whole["provenance"]["run"] == "healthy"
    lines = list(csv.DictReader(io.StringIO(file("Examples (CSV)"))))
    assert {line["group"] for line in lines} >= {"top", "q1", "random"}
    page = file("Page (HTML)")
    assert f"Feature {feature}" in page and "<script" not in page and not re.search("https?://(?!www.w3.org)", page)


def test_the_table_is_handed_out_as_it_is_filtered() -> None:
    app = visit(page="features", run="healthy", filter="n_active > 100", sort="n_active")
    app.button(key="save CSV").click()
    rows = list(csv.DictReader(io.StringIO(saved(drawn(app))[1])))
    counts = [int(row["n_active"]) for row in rows]
    assert len(counts) > 3 and min(counts) > 100 and counts == sorted(counts, reverse=True)
    app.button(key="save JSON").click()
    assert [row["n_active"] for row in json.loads(saved(drawn(app))[1])] == counts
    app.button(key="save Pages").click()
    assert saved(drawn(app))[1].count("<article") == len(counts)


def test_what_is_too_large_to_hand_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.export.cards.EXPORTABLE", 3)
    app = visit(page="features", run="healthy")
    app.button(key="save Pages (first 3)").click()
    assert saved(drawn(app))[1].count("<article") == 3
    monkeypatch.setattr("dashboard.components.save.LARGEST", 10)
    app.button(key="save CSV").click()
    assert "choose fewer" in drawn(app).error[0].value


def test_steering_is_in_the_url_and_done_for_who_follows_it() -> None:
    asked = {"page": "feature", "run": "healthy", "f": "3", "tab": "steer"}
    fresh = visit(**asked)
    assert "data-steered" not in html(fresh)
    fresh.text_area(key="prompt").set_value("one day")
    fresh.number_input(key="tokens").set_value(4)
    fresh.number_input(key="seed").set_value(7)
    fresh.text_input(key="also").set_value("4=0, 5+2.5")
    [button] = [button for button in fresh.button if button.label == "Continue both ways"]
    button.click()
    url = dict(drawn(fresh).query_params)
    strength = fresh.number_input(key="strength").value
    assert url == asked | {"prompt": "one day", "tokens": "4", "seed": "7", "also": "4=0, 5+2.5",
                           "strength": f"{strength:g}"}
    done = html(fresh)
    assert "data-steered" in done and "#4" in done and "#5" in done
    followed = visit(**url)
    assert html(followed) == done
    assert [followed.number_input(key=key).value for key in ("tokens", "seed")] == [4, 7]
    wrong = visit(**{**asked, "strength": "1", "also": "what"})
    assert "is not an edit" in wrong.error[0].value.replace("\\", "")


def test_a_prompt_is_ranked_and_steered_with_the_feature_at_its_side() -> None:
    asked = {"page": "prompt", "run": "healthy", "text": "those east winds"}
    app = visit(**asked)
    first = re.findall(r'<tr data-feature="(\d+)"', html(app))[0]
    assert f'data-panel="{first}"' in html(app) and "data-steered" not in html(app)
    assert app.text_area(key="prompt").value == "those east winds"
    other = re.findall(r'<tr data-feature="(\d+)"', html(app))[3]
    steered = html(visit(**asked, f=other, strength="2", tokens="3"))
    assert f'data-panel="{other}"' in steered and f"#{other}" in steered.split("data-steered")[1]
    dense = html(visit(**asked, cut="100"))
    assert "too dense" not in dense and "too dense" in html(visit(**asked, cut="1"))


def test_a_prompt_without_text_says_what_to_do() -> None:
    app = visit(page="prompt", run="healthy")
    assert "text=The+quick+brown+fox" in html(app) and not app.warning
    app.button[0].click()
    assert "no text yet" in drawn(app).warning[0].value


def test_two_features_side_by_side(states: Path) -> None:
    from analysis.index import open_index

    index = open_index(states / "healthy")
    a, b = index.top("n_active", limit=2)["feature"].to_pylist()
    page = html(visit(page="compare", run="healthy", f=str(a), **{"with": str(b)}))
    assert f'data-compared="{a}"' in page and f'data-compared="{b}"' in page
    assert f"{index.feature(a).n_active:,}" in page and "cosine of decoder directions" in page
    assert "both in" in page and page.count("sx-ex") > 16
    near = index.neighbours(a, "decoder")[0].feature
    assert f'data-compared="{near}"' in html(visit(page="compare", run="healthy", f=str(a)))
    # from a feature's neighbours there
    assert f"page=compare&amp;run=healthy&amp;f={a}&amp;with={near}" in html(visit(page="feature", run="healthy", f=str(a)))


def test_two_features_of_two_runs_side_by_side() -> None:
    app = visit(page="compare", run="healthy", f="3", **{"with": "abstopk:5"})
    page = html(app)
    assert page.count("data-compared") == 2 and "abstopk #5" in page and "healthy #3" in page
    assert "correlation of values" in page and "both in" in page
    swapped = re.findall(r'href="([^"]*)">⇄ swap', page)[0].replace("&amp;", "&")
    assert address.state(swapped) == {"page": ["compare"], "run": ["abstopk"], "f": ["5"], "with": ["healthy:3"]}
    elsewhere = page.split("Correlation of values on the same tokens")
    assert len(elsewhere) > 2 and "with=abstopk%3A" in elsewhere[1] + elsewhere[2]
    app.text_input(key="left").set_value("abstopk:7")
    drawn(app)
    assert dict(app.query_params) == {"page": "compare", "run": "abstopk", "f": "7"}
    assert 'data-compared="7"' in html(app)
    app.text_input(key="left").set_value("8")
    assert dict(drawn(app).query_params)["f"] == "8"


@pytest.mark.parametrize(("other", "told"), [
    ("900", "healthy has features 0 to 63"), ("x", "healthy has features 0 to 63"), ("gone:3", "There is no run “gone”"),
    ("one:1", "one has features 0 to 0"), ("unindexed:1", "unindexed has no index yet"),
])
def test_what_cannot_be_compared_is_said(other: str, told: str) -> None:
    app = visit(page="compare", run="healthy", f="3", **{"with": other})
    assert told in app.error[0].value.replace("\\", "") and "data-compared" not in html(app)


def test_decoder_norms_that_are_all_one_are_left_out(states: Path) -> None:
    from analysis.index import open_index

    norms = open_index(states / "healthy").stats["decoder_norm"].to_numpy()
    assert abs(norms - 1).max() < 1e-4
    assert "Norm of its decoder row" not in html(visit(page="features", run="healthy"))
    assert "decoder norm" not in html(visit(page="feature", run="healthy", f="3", tab="statistics"))
