"""Journeys over the page Evaluations in a real browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.browser import Dashboard, idle, serve, visit
from tests.dashboard.controls import choose, opened, toggle
from tests.dashboard.evaluated_runs import write_evaluated

FVE = "core.reconstruction.fve"


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A server of evaluated runs."""
    folder = tmp_path_factory.mktemp("dashboard")
    for i, name in enumerate(("one", "two", "three")):
        write_evaluated(folder / "runs", name, fve=0.5 + 0.1 * i, l0=8 * (i + 1), k=i + 1)
    with serve(folder / "runs", folder) as running:
        yield running


def rows(page: Page) -> list[str]:
    return page.locator("tr:not(.sx-control) th.sx-name a").all_inner_texts()


def test_sort_filter_open_a_figure_and_go_back(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=evaluations&run=one")
    page.get_by_role("link", name="core FVE").first.click()
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("core FVE")
    assert rows(page) == ["three", "two", "one"]
    page.get_by_role("link", name="core FVE of two").click()
    figure = page.locator(f"[data-figure='{FVE}']")
    expect(figure).to_contain_text("Minus its controls")
    expect(page.locator("code").filter(has_text="--only core")).to_be_visible()
    idle(page)
    page.go_back()
    expect(figure).to_be_hidden()
    expect(page.locator("th[aria-sort=descending]")).to_be_visible()
    field = page.locator(".st-key-find input")
    field.fill("t")
    field.press("Enter")
    expect(page).to_have_url(re.compile("find=t"))
    expect(page.locator("tr:not(.sx-control) th.sx-name a")).to_have_text(["three", "two"])
    page.locator(".st-key-controls label").click()
    expect(page.locator("tr.sx-control")).to_have_count(0)
    idle(page)
    page.reload()
    expect(page.locator("tr:not(.sx-control) th.sx-name a")).to_have_text(["three", "two"])
    expect(page.locator("tr.sx-control")).to_have_count(0)


def test_a_point_opens_its_run_and_differences_are_chosen(page: Page, dashboard: Dashboard, tmp_path: Path) -> None:
    visit(page, dashboard, "page=evaluations&run=one&base=two")
    expect(page.get_by_role("region", name="Differences")).to_contain_text("minus two")
    plot = page.locator(".js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    expect(plot.locator(".nsewdrag").first).to_be_visible()
    idle(page)
    at = plot.evaluate("""plot => {
      const { xaxis, yaxis } = plot._fullLayout, box = plot.getBoundingClientRect();
      const trace = plot._fullData.find(one => one.name === "runs"), i = trace.customdata.indexOf("three");
      return [box.x + xaxis._offset + xaxis.d2p(trace.x[i]), box.y + yaxis._offset + yaxis.d2p(trace.y[i])];
    }""")
    page.mouse.move(*at)
    page.mouse.click(*at)
    expect(page).to_have_url(re.compile("page=features.*run=three"))
    idle(page)
    page.go_back()
    expect(page).to_have_url(re.compile("page=evaluations"))
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    download.value.save_as(tmp_path / "evaluations.csv")
    assert '""core.reconstruction.fve""' in (tmp_path / "evaluations.csv").read_text()


def test_figures_axes_and_the_other_side_are_chosen(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=evaluations&run=one")
    for figure, key in (("core dead", "core.sparsity.dead"), ("core FVE", FVE)):
        choose(page, "m", figure, key)
    expect(page.get_by_role("columnheader").filter(has_text="dead").first).to_be_visible()
    plot = page.locator(".js-plotly-plot").first
    for axis in ("x", "y"):
        opened(page, axis)
        page.get_by_role("option").first.click()
        idle(page)
    toggle(page, "logx", True)
    toggle(page, "logy", True)
    expect(plot).to_be_visible()
    choose(page, "base", "two", "two")
    expect(page.get_by_role("region", name="Differences")).to_contain_text("minus two")
    visit(page, dashboard, f"page=evaluations&run=one&cell={FVE}~two")
    with page.expect_download() as download:
        page.get_by_role("button", name="This evaluation (JSON)").click()
    assert json.loads(Path(download.value.path()).read_text())["eval_type_id"] == "core"
    page.get_by_role("link", name="Close").click()
    expect(page.locator(f"[data-figure='{FVE}']")).to_be_hidden()
    for name in ("CSV", "JSON"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        assert "three" in Path(download.value.path()).read_text()
