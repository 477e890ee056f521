"""What is chosen on the pages Features, Feature and Prompt, in a real browser: each choice acts and is in the address."""

import json
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.dashboard.browser import Dashboard, heading, unfold, visit
from tests.dashboard.controls import choose, opened, press, slide, toggle, widget


def downloaded(page: Page, button: str) -> str:
    """The text of the file that a button gives."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    return Path(download.value.path()).read_text()


def test_the_table_is_searched_listed_drawn_and_saved(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}")
    unfold(page, "Notes and lists")
    page.get_by_label("New list").fill("kept")
    page.get_by_label("New list").press("Enter")
    expect(page.get_by_label("kept", exact=True)).to_be_checked()
    page.get_by_role("link", name="Features", exact=True).click()
    choose(page, "list", "kept", "kept")
    rows = page.locator(".sx-features tbody tr")
    expect(rows).to_have_count(1)
    found = json.loads(downloaded(page, "JSON"))
    assert [one["feature"] for one in found] == [busy[0]]
    assert downloaded(page, "CSV").count("\n") == 2
    assert f"Feature {busy[0]}" in downloaded(page, "Pages")
    page.locator("summary", has_text="Provenance").click()
    expect(page.get_by_role("rowheader", name="config.sae.k", exact=True)).to_be_visible()
    press(page, "view", "Scatter", "scatter")
    choose(page, "x", "Kurtosis", "kurtosis")
    toggle(page, "logx", False)
    choose(page, "y", "Density", "density")
    toggle(page, "logy", False)
    expect(page.locator(".js-plotly-plot .xtitle")).to_have_text("Kurtosis")
    press(page, "view", "Map", "map")
    expect(page.get_by_label(re.compile(r"^Map of 1 ")).first).to_be_visible()
    visit(page, dashboard, "page=features&run=healthy&q=bold")
    press(page, "by", "regular expression", "regex")
    expect(page.get_by_text(re.compile("^Found: "))).to_be_visible()
    press(page, "by", "prompt", "prompt")
    page.get_by_role("link", name="by token").click()
    expect(page.get_by_role("textbox", name="Text")).to_have_value("bold")


def test_a_prompt_is_laid_out_counted_cut_and_steered(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=prompt&run=healthy&text=a+tiny+test")
    expect(page.locator("thead th[data-token]").first).to_be_visible()
    press(page, "layout", "token by token", "tokens")
    expect(page.locator("thead th[data-token]")).to_have_count(0)
    slide(page, "n", "ArrowLeft", "20")
    choose(page, "cut", "all", "100")
    unfold(page, "Steer this text with it")
    expect(page.get_by_role("textbox", name="Prompt")).to_have_value("a tiny test")
    page.get_by_label("Tokens").fill("3")
    page.get_by_role("button", name="Continue both ways").click()
    expect(page.locator("[data-steered=done]")).to_be_visible()


def test_steering_has_its_way_its_positions_and_further_features(
    page: Page, dashboard: Dashboard, busy: list[int]
) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&tab=steer&tokens=3")
    widget(page, "mode").get_by_text("clamp", exact=True).click()
    opened(page, "at")
    page.get_by_role("option", name="generated", exact=True).click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("spinbutton", name="Strength").fill("2")
    page.get_by_role("textbox", name="Further features").fill(f"{busy[1]}=0")
    page.get_by_role("textbox", name="Further features").press("Tab")
    page.get_by_role("button", name="Continue both ways").click()
    steered = page.locator("[data-steered=done]")
    expect(steered).to_contain_text(f"#{busy[1]}")
    for asked in ("mode=clamp", "at=generated", "heat=0", "strength=2", f"also={busy[1]}%3D0"):
        expect(page).to_have_url(re.compile(rf"[?&]{asked}(&|$)"))


def test_examples_are_shown_as_one_reads_best_and_saved(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}")
    for name, on in (("numbers", True), ("breaks", False), ("logx", False), ("logy", True)):
        page.locator(f"[data-toggle={name}]").first.click()
        expect(page).to_have_url(re.compile(rf"[?&]{name}={str(on).lower()}(&|$)"))
    page.get_by_role("button", name="previous feature").click()
    heading(page, busy[0] - 1)
    page.locator("[data-is=number]").fill(str(busy[0]))
    page.locator("[data-is=number]").press("Enter")
    heading(page, busy[0])
    with page.expect_download() as download:
        page.get_by_role("button", name="PNG").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    page.get_by_role("button", name="random").click()
    expect(page.get_by_role("heading", name=re.compile(r"^Feature \d+$"))).to_be_visible()
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&tab=export")
    (card,) = json.loads(downloaded(page, "JSON"))
    assert card["feature"]["feature"] == busy[0]
    assert downloaded(page, "Examples (CSV)").count("\n") > 2
