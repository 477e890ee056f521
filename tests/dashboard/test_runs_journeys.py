"""Journeys over the page Runs, in a real browser, on the server that `sae dashboard` starts."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.analysis.run_folders import line, write_run
from tests.dashboard.browser import Dashboard, idle, serve, visit
from tests.dashboard.controls import choose, slide, toggle


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A server of a folder of runs that is empty at first."""
    folder = tmp_path_factory.mktemp("dashboard")
    with serve(folder / "runs", folder) as running:
        yield running


def test_from_no_runs_to_a_run_in_progress_that_ends(page: Page, dashboard: Dashboard) -> None:
    for folder in dashboard.runs.glob("*"):
        shutil.rmtree(folder)
    page.goto(dashboard.url)
    expect(page.get_by_text("sae train configs/quickstart.yaml")).to_be_visible()
    folder = write_run(dashboard.runs, "live", n_lines=25, finished=False)
    expect(page.get_by_text("1 run, 1 training")).to_be_visible()
    before = page.get_by_label(re.compile("FVE.* over training tokens")).first.get_attribute("aria-label")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(50)) + "\n")
    grown = page.get_by_label(f"live ends at {1 - 1 / 51:.4g}")
    expect(grown.first).to_be_visible()
    assert before is not None and "0.9615" in before
    (folder / "summary.json").write_text(json.dumps({"heldout": {}, "n_rows_trained": 12_800}))
    expect(page.get_by_text("1 training")).to_be_hidden()


def test_choices_go_into_the_url_and_back_undoes_them(page: Page, dashboard: Dashboard) -> None:
    for name in ("left", "right"):
        write_run(dashboard.runs, name)
    page.goto(f"{dashboard.url}/?runs=left&runs=right&metrics=lr")
    expect(page.get_by_label("Learning rate over training tokens: left ends at 0.001; right").first).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_have_count(1)
    toggle = page.locator(".st-key-logy input")
    page.locator(".st-key-logy label").click()
    expect(page).to_have_url(re.compile("logy=true"))
    page.reload()
    expect(toggle).to_be_checked()
    expect(page.locator(".st-key-runs").get_by_text("right", exact=True)).to_be_visible()
    page.go_back()
    expect(page).not_to_have_url(re.compile("logy=true"))
    expect(toggle).not_to_be_checked()
    idle(page)


def test_the_curves_can_be_downloaded(page: Page, dashboard: Dashboard) -> None:
    """The file comes with the page: no request for it that a busy browser could make too late."""
    write_run(dashboard.runs, "kept")
    page.route(f"{dashboard.url}/media/**", lambda route: route.abort())
    page.goto(f"{dashboard.url}/?runs=kept")
    with page.expect_download() as download:
        page.get_by_role("button", name="Curves (CSV)").click()
    text = Path(download.value.path()).read_text()
    assert text.startswith('run,step,rows,metric,value\n"""kept""",1,256,lr,0.001\n')


def test_what_is_drawn_and_compared_is_chosen(page: Page, dashboard: Dashboard) -> None:
    write_run(dashboard.runs, "first", sae__k=4)
    write_run(dashboard.runs, "second", sae__k=8)
    write_run(dashboard.runs, "unfinished", n_lines=25, finished=False)
    visit(page, dashboard, "runs=first&runs=second")
    choose(page, "metrics", "lr", "lr")
    expect(page.locator(".js-plotly-plot")).to_have_count(1)
    slide(page, "smooth", "ArrowRight", "0.02")
    expect(page.locator(".js-plotly-plot .scatterlayer .trace")).to_have_count(4)  # the raw values stay visible
    toggle(page, "logx", True)
    configs = page.get_by_role("region", name="Configs side by side")
    expect(configs.get_by_text("sae.k", exact=True)).to_be_visible()
    expect(configs.get_by_text("model.name", exact=True)).to_be_hidden()
    toggle(page, "diff", False)
    expect(configs.get_by_text("model.name", exact=True)).to_be_visible()
    toggle(page, "follow", False)
    with page.expect_download() as download:
        page.get_by_role("button", name="Runs (JSON)").click()
    assert [one["name"] for one in json.loads(Path(download.value.path()).read_text())] == ["first", "second"]
