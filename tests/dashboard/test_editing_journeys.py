"""Labels, notes and lists edited in a real browser: in two tabs, by keyboard, with steps and reloads in between."""

import re

from playwright.sync_api import BrowserContext, Page, expect

from analysis.labels.store import Labels
from tests.dashboard.browser import Dashboard, address_says, heading, idle, visit

RUN = "page=feature&run=abstopk"
"""Whose labels no other journey reads."""


def labels(dashboard: Dashboard) -> Labels:
    return Labels(dashboard.runs / "abstopk")


def kept(page: Page) -> None:
    expect(page.get_by_text("Saved.", exact=True)).to_be_visible()


def test_e_leads_into_the_label_and_letters_are_letters(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, f"{RUN}&f=7")
    heading(page, 7)
    page.keyboard.press("e")
    page.keyboard.type("jerk jars")
    expect(page.get_by_label("Label", exact=True)).to_have_value("jerk jars")
    heading(page, 7)
    page.keyboard.press("Enter")
    kept(page)
    assert labels(dashboard).written(7).label == "jerk jars"
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    heading(page, 8)


def test_what_is_typed_outlives_a_step_and_a_reload(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, f"{RUN}&f=20")
    heading(page, 20)
    page.get_by_label("Label", exact=True).fill("half a thought")
    page.get_by_text("Notes and lists").click()
    page.get_by_label("Notes", exact=True).fill("two\nlines")
    page.get_by_role("button", name="next feature").click()
    heading(page, 21)
    expect(page.get_by_label("Label", exact=True)).to_have_value("")
    page.get_by_role("button", name="#20").click()
    heading(page, 20)
    expect(page.get_by_label("Label", exact=True)).to_have_value("half a thought")
    address_says(page, 20)
    page.reload()
    heading(page, 20)
    expect(page.get_by_label("Label", exact=True)).to_have_value("half a thought")
    expect(page.get_by_label("Notes", exact=True)).to_have_value("two\nlines")
    assert labels(dashboard).written(20).label == ""
    page.get_by_role("button", name="Save").click()
    kept(page)
    assert (labels(dashboard).written(20).label, labels(dashboard).written(20).note) == ("half a thought", "two\nlines")
    page.get_by_label("Label", exact=True).fill("a whim")
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_label("Label", exact=True)).to_have_value("half a thought")


def test_two_tabs_lose_nothing_of_each_other(page: Page, dashboard: Dashboard, visitor: BrowserContext) -> None:
    other = visitor.new_page()
    dashboard.watch(other)
    for one in (page, other):
        visit(one, dashboard, f"{RUN}&f=30")
        heading(one, 30)
        if one.get_by_label("Notes", exact=True).is_hidden():
            one.get_by_text("Notes and lists").click()
    # different fields: both stay
    other.get_by_label("Notes", exact=True).fill("the other's note")
    other.get_by_label("Tags, separated by commas").fill("theirs")
    other.get_by_role("button", name="Save").click()
    kept(other)
    page.get_by_label("Label", exact=True).fill("mine")
    page.get_by_label("Tags, separated by commas").fill("mine")
    page.get_by_role("button", name="Save").click()
    kept(page)
    now = labels(dashboard).written(30)
    assert (now.label, now.note, now.tags) == ("mine", "the other's note", ("mine", "theirs"))
    # the same field: refused, with both versions shown
    other.get_by_label("Label", exact=True).fill("theirs")
    other.get_by_role("button", name="Save").click()
    alert = other.get_by_role("alert").filter(has_text="Somebody else")
    expect(alert).to_contain_text("Theirs (label): mine")
    expect(alert).to_contain_text("Yours (label): theirs")
    assert labels(dashboard).written(30).label == "mine"
    alert.get_by_role("button", name="Keep mine").click()
    kept(other)
    assert labels(dashboard).written(30) == type(now)("theirs", "the other's note", ("mine", "theirs"), ())
    page.get_by_label("Label", exact=True).fill("mine again")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="Take theirs").click()
    expect(page.get_by_label("Label", exact=True)).to_have_value("theirs")
    expect(page.get_by_role("button", name="Save")).to_be_hidden()
    assert labels(dashboard).written(30).label == "theirs"
    idle(other)
    other.close()


def test_stars_and_lists_are_kept_at_once(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, f"{RUN}&f=40")
    heading(page, 40)
    star = page.get_by_role("button", name="star")
    page.keyboard.press("s")
    expect(star).to_have_attribute("aria-pressed", "true")
    kept(page)
    if page.get_by_label("New list").is_hidden():
        page.get_by_text("Notes and lists").click()
    page.get_by_label("New list").fill("to read")
    page.get_by_label("New list").press("Enter")
    expect(page.get_by_label("to read")).to_be_checked()
    page.wait_for_function("!saescopeReader.outbox.length")
    assert labels(dashboard).lists() == {"starred": [40], "to read": [40]}
    page.get_by_label("to read").click()  # then the list is empty, and gone
    page.wait_for_function("!saescopeReader.outbox.length")
    star.click()
    expect(star).to_have_attribute("aria-pressed", "false")
    page.wait_for_function("!saescopeReader.outbox.length")
    assert labels(dashboard).lists() == {}


def test_slash_leads_to_the_search_and_letters_wait_for_it(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, f"{RUN}&f=12")
    heading(page, 12)
    page.keyboard.press("/")
    page.keyboard.type("jerk")
    field = page.locator(".st-key-q input")
    expect(field).to_be_focused()
    expect(field).to_have_value("jerk")
    expect(page).to_have_url(re.compile("page=features"))
