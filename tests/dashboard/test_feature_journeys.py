"""Journeys through features in a real browser."""

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from analysis.index import build
from tests.analysis.indexed_runs import HOSTILE
from tests.dashboard.browser import Dashboard, address_says, heading, idle, serve, visit

STEP = """key => {
  document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  return { feature: Number(document.querySelector(".sx-bar-row").dataset.feature),
    examples: document.querySelectorAll(".sx-ex").length, histogram: document.querySelectorAll(".sx-histogram").length };
}"""
"""A key, and what is on the page before anything else can happen."""


def hold(page: Page, feature: int) -> None:
    """The browser holds the features to come."""
    heading(page, feature)
    page.wait_for_function("n => [1, 2, 3].every((i) => saescopeReader.features.has(n + i))", arg=feature)


def test_a_deep_link_shows_its_feature_and_survives_a_reload(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&group=top&numbers=true")
    heading(page, busy[0])
    expect(page.locator(".sx-numbers .sx-ex").first).to_be_visible()
    page.reload()
    heading(page, busy[0])
    expect(page.locator(".sx-numbers .sx-ex").first).to_be_visible()
    expect(page.get_by_label("Group")).to_have_value("top")


def test_keys_walk_through_features_and_back_returns(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=feature&run=healthy&f=5")
    heading(page, 5)
    for key, feature in (("j", 6), ("ArrowRight", 7), ("k", 6), ("ArrowLeft", 5), ("j", 6)):
        idle(page)  # steps in quick succession are one step back
        page.keyboard.press(key)
        heading(page, feature)
        address_says(page, feature)
    expect(page).to_have_title(re.compile("^#6 · Feature"))
    page.go_back()
    heading(page, 5)


def test_back_is_not_undone_by_an_answer_on_its_way(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=feature&run=healthy&f=5")
    heading(page, 5)
    # Python is told of the step after Back was pressed, and before the browser has gone there
    page.keyboard.press("j")
    page.evaluate("history.back(), saescopeReader.send(saescopeReader.address())")
    heading(page, 5)
    page.wait_for_timeout(1500)
    heading(page, 5)
    address_says(page, 5)


def test_keys_pressed_quickly_are_not_lost(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=feature&run=healthy&f=5")
    heading(page, 5)
    page.evaluate("""() => { for (let i = 0; i < 12; i++)
      document.dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true })); }""")
    address_says(page, 17)
    heading(page, 17)
    page.go_back()
    heading(page, 5)


def test_a_step_to_a_feature_that_is_held_asks_nobody(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}")
    hold(page, busy[0])
    page.evaluate("window.told = saescopeReader.trigger, saescopeReader.trigger = () => window.asked = true")
    drawn = page.evaluate(STEP, "j")
    assert drawn["feature"] == busy[0] + 1 and drawn["examples"] and drawn["histogram"]
    # and what is toggled, at once
    for key, toggled in (("n", "sx-numbers"), ("l", "sx-flat")):
        page.keyboard.press(key)
        assert page.evaluate(f"document.querySelectorAll('.sx-reader.{toggled} .sx-ex').length")
    before = page.evaluate("document.querySelector('.sx-ex .sx-heat').innerText.length")
    page.keyboard.press("w")
    assert page.evaluate("document.querySelector('.sx-ex .sx-heat').innerText.length") >= before
    assert page.locator(".sx-ex:not(.sx-wide)").count() == 0
    # what was said meanwhile has gone nowhere: the reader hears and speaks again
    page.wait_for_function("window.asked")
    page.evaluate("saescopeReader.trigger = window.told, saescopeReader.n = saescopeReader.data.n")


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
    address_says(page, busy[1])
    page.keyboard.press("b")
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Fires")
    page.go_back()
    heading(page, busy[1])


def test_a_row_low_in_the_table_opens_the_feature_at_its_top(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=features&run=healthy")
    row = page.locator(".sx-features tbody th a").nth(48)
    feature = int((row.text_content() or "").lstrip("#"))
    row.scroll_into_view_if_needed()
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollTop") > 100
    row.click()
    heading(page, feature)
    expect(page.locator(".sx-ex").first).to_be_visible()
    expect(page.get_by_role("heading", name=f"Feature {feature}", exact=True)).to_be_in_viewport()
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollTop") == 0


def test_search_in_text_finds_features_that_fire_there(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=features&run=healthy&by=text")
    page.locator(".st-key-q input").fill("bold")
    page.locator(".st-key-q input").press("Enter")
    expect(page.get_by_text(re.compile("Found: features that fire on this text"))).to_be_visible()
    page.locator(".sx-features tbody th a").first.click()
    expect(page.get_by_role("heading", name=re.compile(r"^Feature \d+$"))).to_be_visible()


def test_groups_are_state_and_examples_are_widened_where_they_are(
    page: Page, dashboard: Dashboard, busy: list[int]
) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}")
    page.get_by_label("Group").select_option("random")
    expect(page).to_have_url(re.compile("group=random"))
    expect(page.locator(".sx-put h3", has_text="Random active")).to_be_visible()
    example = page.locator(".sx-ex[data-at]").first
    example.locator(".sx-val").click()
    expect(example).to_have_class(re.compile("sx-wide"))
    example.locator(".sx-val").click()
    expect(example).not_to_have_class(re.compile("sx-wide"))
    token = page.locator(".sx-ex [data-v][tabindex]").first
    token.focus()
    expect(token).to_have_attribute("aria-label", re.compile(r", [\d.]+"))
    page.keyboard.press("Enter")
    expect(example).to_have_class(re.compile("sx-wide"))
    idle(page)


def test_a_stretch_of_the_histogram_chooses_examples(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}")
    heading(page, busy[0])
    brush = page.locator(".sx-brush:visible").first
    box = brush.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 30, steps=4)
    expect(page.locator(".sx-chosen:visible")).to_have_count(1)
    page.mouse.up()
    expect(page.locator(".sx-put h3", has_text="Values in the range")).to_be_visible()
    asked = re.search(r"range=(?:%2B|\+)~([\d.e+-]+)~([\d.e+-]+)", page.url)
    assert asked is not None
    low, high = map(float, asked.groups())
    values = [float(v) for v in page.locator(".sx-ex").evaluate_all("found => found.map((e) => e.dataset.value)")]
    assert values and all(low * 0.999 <= value <= high * 1.001 for value in values)
    page.locator("[data-set='range=']").click()
    expect(page.locator(".sx-put h3", has_text="Strongest")).to_be_visible()
    expect(page).not_to_have_url(re.compile("range="))


def test_contexts_in_which_two_fire(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&tab=with&with={busy[1]}")
    expect(page.get_by_text(re.compile("both in [1-9][0-9,]* context"))).to_be_visible()
    page.locator(".st-key-with input").fill(str(busy[2]))
    page.locator(".st-key-with input").press("Enter")
    expect(page).to_have_url(re.compile(f"with={busy[2]}"))


def test_a_text_is_tried_on_each_feature_and_marked(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}")
    heading(page, busy[0])
    page.keyboard.press("t")
    page.keyboard.type("those east winds")
    page.keyboard.press("Enter")
    said = page.get_by_text(re.compile(r"Fires on \d+ of \d+ tokens"))
    expect(said).to_be_visible()
    expect(page).to_have_url(re.compile("text=those"))
    fires = int((said.text_content() or "").split()[2])
    expect(page.locator(".sx-drawn-1 .sx-mark")).to_have_count(1 if fires else 0)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    heading(page, busy[0] + 1)
    expect(said).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(said).to_be_hidden()
    expect(page).not_to_have_url(re.compile("text="))


def test_steering_shows_both_continuations(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&tab=steer")
    page.get_by_label("Prompt").fill("one day")
    page.get_by_label("Tokens").fill("4")
    page.get_by_label("Tokens").press("Tab")
    page.get_by_role("button", name="Continue both ways").click()
    expect(page.get_by_role("heading", name="Baseline")).to_be_visible()
    expect(page.get_by_role("heading", name="Steered")).to_be_visible()


def test_steering_streams_is_found_again_after_a_reload_and_stops(page: Page, dashboard: Dashboard, slow: str) -> None:
    asked = "prompt=those+winds&tokens=110&strength=3&heat=1"
    page.goto(f"{dashboard.url}/?page=feature&run={slow}&f=3&tab=steer&{asked}&seed=1")
    running = page.locator("[data-steered=running]")
    expect(running).to_be_visible()
    said = page.get_by_text(re.compile(r"^Token \d+ of 110"))
    expect(said).to_be_visible()
    n = int((said.text_content() or "").split()[1])
    page.reload()
    expect(said).to_be_visible()
    assert int((said.text_content() or "").split()[1]) >= n  # the same job
    # another request waits, and says for what; the page reads on meanwhile
    other = page.context.new_page()
    dashboard.watch(other)
    visit(other, dashboard, f"page=feature&run={slow}&f=3&tab=steer&{asked}&seed=2")
    expect(other.get_by_text("1 request before this one")).to_be_visible()
    other.get_by_role("tab", name="Examples").click()
    heading(other, 3)
    expect(other.locator(".sx-ex").first).to_be_visible()
    other.go_back()
    other.get_by_role("button", name="Stop").click()
    idle(other)
    other.close()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text(re.compile(r"^Stopped after \d+ token"))).to_be_visible()
    expect(page.locator("[data-steered=stopped]")).to_be_visible()


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
    expect(page.get_by_text("only features in the box")).to_be_visible()
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
        heading(page, busy[0])
        page.keyboard.press("e")
        page.keyboard.insert_text(label)
        page.get_by_text("Notes and lists").click()
        page.get_by_label("Notes", exact=True).fill("a note")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("Saved.")).to_be_visible()
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
