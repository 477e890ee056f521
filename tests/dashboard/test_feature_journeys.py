"""Journeys through features in a real browser."""

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from analysis.index import build
from tests.analysis.indexed_runs import HOSTILE
from tests.dashboard.browser import Dashboard, heading, idle, serve, visit


def test_a_deep_link_shows_its_feature_and_survives_a_reload(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&group=top&numbers=true")
    heading(page, busy[0])
    expect(page.locator(".sx-numbers .sx-ex").first).to_be_visible()
    page.reload()
    heading(page, busy[0])
    expect(page.locator(".sx-numbers .sx-ex").first).to_be_visible()


def test_keys_walk_through_features_and_back_returns(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=feature&run=healthy&f=5")
    heading(page, 5)
    for key, feature in (("j", 6), ("ArrowRight", 7), ("k", 6), ("ArrowLeft", 5), ("j", 6)):
        page.keyboard.press(key)
        heading(page, feature)
        expect(page).to_have_url(re.compile(rf"[?&]f={feature}(&|$)"))
    page.go_back()
    heading(page, 5)


def test_keys_pressed_quickly_are_not_lost(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=feature&run=healthy&f=5")
    for _ in range(4):
        page.keyboard.press("j")
    heading(page, 9)


def test_keys_are_listed_and_search_is_reached(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=features&run=healthy")
    page.keyboard.press("?")
    expect(page.get_by_text("next feature")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_text("next feature")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.locator(".st-key-q input")).to_be_focused()
    page.keyboard.type("jjj?")
    expect(page.locator(".st-key-q input")).to_have_value("jjj?")


def test_sorting_goes_into_the_url_and_back_undoes_it(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=features&run=healthy")
    first = page.locator(".sx-features tbody th a").first
    expect(first).to_have_text("#0")
    page.get_by_role("link", name="Fires", exact=True).click()
    expect(page).to_have_url(re.compile("sort=n_active"))
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Fires")
    expect(first).not_to_have_text("#0")
    page.go_back()
    expect(first).to_have_text("#0")


def test_a_filter_thins_the_table_and_a_bad_one_is_said(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=features&run=healthy")
    field = page.locator(".st-key-filter input")
    field.fill("max > 0, density < 6%")
    field.press("Enter")
    expect(page.get_by_text(re.compile(r"^\d+ of 64 features"))).to_be_visible()
    expect(page).to_have_url(re.compile("filter="))
    field.fill("densty > 1")
    field.press("Enter")
    expect(page.get_by_text("did you mean density?")).to_be_visible()


def test_from_the_table_to_a_feature_in_its_order_and_back(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, "page=features&run=healthy&sort=n_active")
    page.locator(".sx-features tbody th a").first.click()
    heading(page, busy[0])
    page.keyboard.press("j")
    heading(page, busy[1])
    page.keyboard.press("b")
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Fires")
    page.go_back()
    heading(page, busy[1])


def test_search_in_text_finds_features_that_fire_there(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=features&run=healthy&by=text")
    page.locator(".st-key-q input").fill("bold")
    page.locator(".st-key-q input").press("Enter")
    expect(page.get_by_text(re.compile("Found: features that fire where this stands"))).to_be_visible()
    page.locator(".sx-features tbody th a").first.click()
    expect(page.get_by_role("heading", name=re.compile(r"^Feature \d+$"))).to_be_visible()


def test_groups_and_wider_examples_are_state(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&group=random")
    example = page.locator(".sx-ex[data-at]").first
    place = example.get_attribute("data-at")
    example.locator(".sx-val").click()
    expect(page).to_have_url(re.compile(rf"open={place}"))
    example.locator(".sx-val").click()
    expect(page).not_to_have_url(re.compile("open="))
    token = page.locator(".sx-ex [data-v][tabindex]").first
    token.focus()
    expect(token).to_have_attribute("aria-label", re.compile(r", [\d.]+"))
    idle(page)


def test_contexts_in_which_two_fire(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&tab=with&with={busy[1]}")
    expect(page.get_by_text(re.compile("both in [1-9][0-9,]* context"))).to_be_visible()
    page.locator(".st-key-with input").fill(str(busy[2]))
    page.locator(".st-key-with input").press("Enter")
    expect(page).to_have_url(re.compile(f"with={busy[2]}"))


def test_own_text_is_read_by_the_model(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&tab=try")
    page.get_by_label("Text", exact=True).fill("those east winds")
    page.get_by_role("button", name="Does it fire?").click()
    expect(page.get_by_text(re.compile(r"It fires on \d+ of \d+ tokens"))).to_be_visible()
    expect(page).to_have_url(re.compile("text=those"))


def test_steering_shows_both_continuations(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&tab=steer")
    page.get_by_label("Prompt").fill("one day")
    page.get_by_label("Tokens").fill("4")
    page.get_by_label("Tokens").press("Tab")
    page.get_by_role("button", name="Continue both ways").click()
    expect(page.get_by_role("heading", name="Left alone")).to_be_visible()
    expect(page.get_by_role("heading", name="Steered")).to_be_visible()


def test_steering_settings_are_in_the_url_and_back_undoes_them(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    asked = f"prompt=one+day&tokens=3&strength=2&also={busy[1]}%3D0"
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&tab=steer&{asked}")
    steered = page.locator("[data-steered]")
    expect(steered).to_contain_text(f"#{busy[1]}")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Seed").press("Tab")
    page.get_by_role("button", name="Continue both ways").click()
    expect(page).to_have_url(re.compile("seed=5"))
    expect(steered).to_contain_text("seed 5")
    page.go_back()
    expect(steered).to_contain_text("seed 0")
    expect(page.get_by_label("Seed")).to_have_value("0")
    expect(page.get_by_label("Prompt")).to_have_value("one day")


def test_two_features_side_by_side_from_a_neighbour(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}")
    beside = page.get_by_role("link", name=re.compile("^compare with feature ")).first
    other = re.sub(r"\D", "", beside.get_attribute("aria-label") or "")
    beside.click()
    compared = page.locator("[data-compared]")
    expect(compared.nth(1)).to_have_attribute("data-compared", other)
    expect(page).to_have_url(re.compile(rf"page=compare.*f={busy[0]}&with={other}"))
    expect(page.locator("svg.sx-histogram")).to_have_count(2)
    idle(page)
    page.keyboard.press("j")
    expect(compared.nth(1)).not_to_have_attribute("data-compared", other)
    page.go_back()
    expect(compared.nth(1)).to_have_attribute("data-compared", other)
    page.get_by_role("link", name="swap").click()
    expect(compared.nth(0)).to_have_attribute("data-compared", other)
    expect(compared.nth(1)).to_have_attribute("data-compared", str(busy[0]))


def test_a_prompt_by_tokens_ranked_at_one_and_drilled_into(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=prompt&run=healthy")
    page.get_by_label("Text", exact=True).fill("a tiny test")
    page.get_by_role("button", name="Which features fire?").click()
    expect(page.get_by_role("table").first).to_be_visible()
    expect(page.get_by_text("Similar contexts")).to_be_visible()
    page.locator("thead th[data-token]").nth(3).click()
    expect(page).to_have_url(re.compile("token=3"))
    expect(page.get_by_role("link", name="all tokens")).to_be_visible()
    row = page.locator("tr[data-feature]").nth(1)
    feature = row.get_attribute("data-feature")
    row.get_by_role("link").click()
    panel = page.locator(f"[data-panel='{feature}']")
    expect(panel).to_be_in_viewport()
    expect(page).to_have_url(re.compile(f"f={feature}(&|$)"))
    panel.get_by_role("link", name="Open the feature").click()
    expect(page.get_by_role("heading", name=re.compile(r"^Feature \d+$"))).to_be_visible()


def test_a_box_in_the_scatter_lists_its_features(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=features&run=healthy&view=scatter")
    area = page.locator(".js-plotly-plot .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.8, steps=6)
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] - 5, steps=3)
    page.mouse.up()
    expect(page).to_have_url(re.compile("box=density"))
    expect(page.get_by_text("Only the features in the box")).to_be_visible()
    expect(page.locator(".shapelayer path")).to_be_visible()  # the box stays as long as its filter
    page.get_by_role("link", name="Show all again").click()
    expect(page).not_to_have_url(re.compile("box="))


def test_an_export_opens_without_a_server(
    page: Page, browser: Browser, dashboard: Dashboard, busy: list[int], tmp_path: Path
) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&tab=export")
    with page.expect_download() as download:
        page.get_by_role("button", name="Page (HTML)").click()
    download.value.save_as(tmp_path / "feature.html")
    context = browser.new_context(offline=True)
    alone = context.new_page()
    dashboard.watch(alone)
    alone.goto((tmp_path / "feature.html").as_uri())
    expect(alone.get_by_role("heading", name=f"Feature {busy[0]}", exact=True)).to_be_visible()
    expect(alone.locator(".sx-ex").first).to_be_visible()
    context.close()
    dashboard.elsewhere[:] = [url for url in dashboard.elsewhere if not url.startswith("file:")]


def test_a_page_waits_for_its_index(page: Page, dashboard: Dashboard) -> None:
    shutil.copytree(dashboard.runs / "unindexed", dashboard.runs / "waiting")
    visit(page, dashboard, "page=features&run=waiting")
    expect(page.get_by_text("has no index yet")).to_be_visible()
    build(dashboard.runs / "waiting", quiet=True)
    expect(page.get_by_text(re.compile("^64 features ·"))).to_be_visible()


@pytest.mark.parametrize(("run", "told"), [("going", "going is training"), ("corrupt", "cannot be read as JSON"),
                                           ("../../etc", "There is no run")])
def test_what_cannot_be_shown_says_what_to_do(page: Page, dashboard: Dashboard, run: str, told: str) -> None:
    visit(page, dashboard, f"page=feature&run={run}")
    expect(page.get_by_text(told).first).to_be_visible()


def test_a_label_is_found_again_after_a_restart_and_another_index(
    browser: Browser, visitor: BrowserContext, states: Path, tmp_path: Path, busy: list[int]
) -> None:
    """And a hostile one is text everywhere."""
    shutil.copytree(states / "healthy", tmp_path / "runs" / "mine")
    label = f"vowels {HOSTILE}<img src=x onerror=alert(1)>"
    with serve(tmp_path / "runs", tmp_path) as running:
        page = visitor.new_page()
        running.watch(page)
        visit(page, running, f"page=feature&run=mine&f={busy[0]}")
        page.keyboard.press("e")
        page.get_by_label("Label", exact=True).fill(label)
        page.get_by_label("Notes").fill("a note")
        page.get_by_role("button", name="Save").click()
        expect(page.locator(".sx-label")).to_have_text(label)
        page.close()
        assert running.met() == []
    build(tmp_path / "runs" / "mine", quiet=True, again=True)
    with serve(tmp_path / "runs", tmp_path) as running:
        page = visitor.new_page()
        running.watch(page)
        visit(page, running, "page=features&run=mine&q=vowels")
        expect(page.get_by_text(re.compile("^1 of 64 features"))).to_be_visible()
        expect(page.locator(".sx-features .sx-name")).to_have_text(label)
        page.close()
        assert running.met() == []
