"""Operate a control of a page by its key in the address, and wait until the address says so."""

import re
from urllib.parse import quote_plus

from playwright.sync_api import Locator, Page, expect

from tests.dashboard.browser import idle


def widget(page: Page, key: str) -> Locator:
    return page.locator(f".st-key-{key}")


def told(page: Page, key: str, value: str) -> None:
    """The address says it, and the page has been drawn with it."""
    expect(page).to_have_url(re.compile(rf"[?&]{key}={re.escape(quote_plus(value))}(&|$)"))
    idle(page)


def toggle(page: Page, key: str, value: bool) -> None:
    """Press a switch, which then is `value`."""
    widget(page, key).locator("label").click()
    expect(widget(page, key).locator("input")).to_be_checked(checked=value)
    told(page, key, str(value).lower())


def choose(page: Page, key: str, option: str, value: str) -> None:
    """Choose an option of a list, `value` in the address."""
    opened(page, key)
    page.get_by_role("option", name=option, exact=True).click()
    told(page, key, value)
    page.keyboard.press("Escape")  # lists of several stay open


def opened(page: Page, key: str) -> None:
    """Open a list. A page that scrolls closes it again, so the page is moved first."""
    field = widget(page, key).locator("input")
    field.scroll_into_view_if_needed()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    field.click()
    page.get_by_role("option").first.wait_for()


def press(page: Page, key: str, option: str, value: str) -> None:
    """Press one of several buttons, of which one is chosen."""
    widget(page, key).get_by_text(option, exact=True).click()
    told(page, key, value)


def slide(page: Page, key: str, stroke: str, value: str) -> None:
    """Move a slider by a key."""
    widget(page, key).get_by_role("slider").focus()
    page.keyboard.press(stroke)
    told(page, key, value)
