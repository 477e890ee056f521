"""Texts that want to be more than text, on every page that shows them; and addresses that want out of the runs folder."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from dashboard.frame import TITLES
from tests.analysis.indexed_runs import NASTY, NASTY_NAME, write_hostile
from tests.analysis.run_folders import write_run
from tests.dashboard.browser import Dashboard, idle, visit
from tests.dashboard.pages import drawn, html, said
from tests.dashboard.pages import visit as see

VISITS = [
    {"page": "runs"}, {"page": "features"}, {"page": "features", "view": "scatter"}, {"page": "features", "view": "map"},
    {"page": "features", "q": "script", "by": "label"}, {"page": "features", "q": "script", "by": "text"},
    {"page": "features", "q": "<[a-z]+", "by": "regex"}, {"page": "features", "list": NASTY[1]},
    {"page": "features", "filter": NASTY[0]}, {"page": "features", "sort": NASTY[1], "q": NASTY[2]},
    {"page": "evaluations"}, {"page": "circuits"},
    *({"page": "feature", "f": str(f), "tab": tab} for f in range(4) for tab in ("examples", "label", "with", "export")),
    {"page": "feature", "f": "5", "group": "top", "breaks": "true", "numbers": "true"},
    {"page": "feature", "f": "1", "tab": "steer", "also": NASTY[1], "strength": "1"},
    {"page": "compare", "f": "1", "with": "5"}, {"page": "compare", "f": "8", "with": "9"},
]


@pytest.fixture(scope="module")
def runs(states: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "runs"
    write_hostile(states / "healthy", folder)
    return folder


@pytest.mark.parametrize("query", VISITS, ids=lambda query: "-".join(query.values())[:40])
def test_hostile_text_is_text(runs: Path, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]) -> None:
    monkeypatch.setenv("SAESCOPE_RUNS", str(runs))
    app = see(run=NASTY_NAME, **query)
    whole = html(app) + "".join(str(json.loads(e.proto.spec)["data"]) for e in app.get("plotly_chart"))
    for bad in ("<script", "<img", "<svg onload", "</textarea", "\u202e", "\u2066", "\x00", "\x1b"):
        assert bad not in whole, bad
    # what goes through Markdown is escaped there
    for element in (*app.error, *app.warning):
        assert not re.search(r"(?<!\\)[<\[]", element.value)


def test_a_hostile_table_is_exported_as_text(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.dashboard.pages import saved

    monkeypatch.setenv("SAESCOPE_RUNS", str(runs))
    app = see(page="features", run=NASTY_NAME, filter="feature < 10")
    app.button(key="save CSV").click()
    name, text = saved(drawn(app))
    assert name == "features.csv" and "\x00" not in text
    assert not [cell for line in text.splitlines() for cell in line.split(",") if cell.startswith(("=", '"='))]
    app.button(key="save Pages").click()
    name, text = saved(drawn(app))
    assert name == "features.html"
    assert "<script" not in text and "<img" not in text and "\u202e" not in text and "Content-Security-Policy" in text


def test_hostile_text_does_nothing_in_a_browser(page: Page, dashboard: Dashboard, states: Path) -> None:
    if not (dashboard.runs / NASTY_NAME).exists():
        write_hostile(states / "healthy", dashboard.runs)
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    visit(page, dashboard, "page=runs")
    run = page.evaluate("encodeURIComponent", NASTY_NAME)
    for query in ("page=features", "page=feature&f=1", "page=feature&f=0&tab=label", "page=compare&f=1&with=5",
                  "page=features&q=script&by=text"):
        visit(page, dashboard, f"{query}&run={run}")
        expect(page.get_by_text("onerror=window.pwned=1").first).to_be_attached()
        assert page.evaluate("window.pwned") is None
        assert page.locator("img[src=x]").count() == 0
        assert page.locator("nav.sx-pages").is_visible()  # no style of a label hides the page
    idle(page)
    assert dialogs == []


@pytest.mark.parametrize("page", list(TITLES))
@pytest.mark.parametrize("way", ["../outside/secret", "{outside}", "x/../../outside/secret", "..", "."])
def test_nothing_outside_the_runs_folder_is_opened(root: Path, page: str, way: str) -> None:
    write_run(root, "here")
    outside = write_run(root.parent / "outside", "secret")
    (outside / "evals").mkdir()
    (outside / "evals" / "told.json").write_text(json.dumps({"word": "abracadabra"}))
    asked = way.format(outside=outside)
    app = see(page=page, run=asked, runs=asked, index=f"../../../{asked}", list=asked)
    assert "abracadabra" not in said(app)
    if page not in ("runs", "circuits"):
        assert app.selectbox(key="run").value == "here" and "There is no run" in app.warning[0].value
