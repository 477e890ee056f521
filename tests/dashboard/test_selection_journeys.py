"""What is selected follows from page to page and is in every link, in a real browser."""

import re
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import BrowserContext, Page, expect

from tests.dashboard.browser import Dashboard, heading, idle, visit


def state(page: Page) -> dict[str, str]:
    """What the address says."""
    return {key: values[-1] for key, values in parse_qs(urlsplit(page.url).query).items()}


def test_the_address_names_the_run_from_the_first_visit_on(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=features")
    expect(page).to_have_url(re.compile("run="))
    run = state(page)["run"]
    before = page.evaluate("history.length")
    visit(page, dashboard, "page=feature")
    expect(page).to_have_url(re.compile(rf"run={run}.*f=\d+"))
    assert page.evaluate("history.length") == before + 1, "the address is completed in place"


def test_a_copied_link_shows_the_same(page: Page, visitor: BrowserContext, dashboard: Dashboard) -> None:
    visitor.grant_permissions(["clipboard-read", "clipboard-write"], origin=dashboard.url)
    visit(page, dashboard, "page=feature&q=bold&by=text")
    page.get_by_role("button", name="copy link").click()
    link = page.evaluate("navigator.clipboard.readText()")
    here = {key: values[-1] for key, values in parse_qs(urlsplit(link).query).items()}
    assert here["page"] == "feature" and here["run"] and here["f"] and here["q"] == "bold"
    assert page.evaluate("document.title").startswith(f"#{here['f']} · Feature · {here['run']}")


def test_next_walks_what_a_search_found_and_all_features_returns_to_it(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=features&run=healthy&q=bold&by=text")
    rows = page.locator(".sx-features tbody th a")
    expect(page.get_by_text("Found: features that fire on this text")).to_be_visible()
    found = [int(text.removeprefix("#")) for text in rows.all_inner_texts()]
    assert 2 < len(found) < 64
    rows.first.click()
    for feature in found[:3]:
        heading(page, feature)
        page.keyboard.press("j")
    heading(page, found[3])
    expect(page.get_by_text(f"4 of {len(found)} for “bold” best first")).to_be_visible()
    page.get_by_role("link", name="all features").click()
    expect(page.locator(".st-key-q input")).to_have_value("bold")
    expect(page.locator("tr[aria-current=true] th")).to_have_text(f"#{found[3]}")
    assert [int(text.removeprefix("#")) for text in rows.all_inner_texts()] == found


def test_the_bar_keeps_the_selection_and_resumes_each_page(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    bar = page.get_by_role("navigation", name="Pages", exact=True)
    listed = "filter=n_active+%3E+20&sort=n_active&text=a+tiny+test"
    visit(page, dashboard, f"page=feature&run=healthy&f={busy[0]}&group=random&{listed}")
    heading(page, busy[0])
    page.keyboard.press("j")
    heading(page, busy[1])
    bar.get_by_role("link", name="Prompt").click()
    expect(page.get_by_label("Text", exact=True)).to_have_value("a tiny test")
    bar.get_by_role("link", name="Features").click()
    expect(page.locator(".st-key-filter input")).to_have_value("n_active > 20")
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Fires")
    expect(page.locator("tr[aria-current=true] th")).to_have_text(f"#{busy[1]}")
    bar.get_by_role("link", name="Runs").click()
    expect(page.locator(".st-key-runs")).to_be_visible()
    bar.get_by_role("link", name="Feature", exact=True).click()
    heading(page, busy[1])
    expect(page).to_have_url(re.compile("group=random"))
    asked = state(page)
    kept = {"run": "healthy", "filter": "n_active > 20", "sort": "n_active", "text": "a tiny test"}
    assert kept.items() <= asked.items()
    idle(page)
    page.reload()
    heading(page, busy[1])
    assert state(page) == asked


def test_the_table_opens_at_the_selected_feature(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=feature&run=healthy&f=60")
    page.keyboard.press("b")
    expect(page.locator("tr[aria-current=true] th")).to_have_text("#60")
    page.get_by_role("navigation", name="Pages of the table").get_by_role("link", name="1").click()
    expect(page.locator(".sx-features tbody th a").first).to_have_text("#0")
    bar = page.get_by_role("navigation", name="Pages", exact=True)
    bar.get_by_role("link", name="Compare").click()
    expect(page.locator("[data-compared='60']")).to_be_visible()
    bar.get_by_role("link", name="Features").click()
    expect(page.locator(".sx-features tbody th a").first).to_have_text("#0")


def test_another_run_drops_what_belongs_to_the_first(page: Page, dashboard: Dashboard, busy: list[int]) -> None:
    visit(page, dashboard, f"page=features&run=healthy&f={busy[0]}&filter=n_active+%3E+1&box=density~max~0~1~0~99")
    page.locator(".st-key-run").get_by_role("combobox").click()
    page.get_by_role("option", name="abstopk").click()
    expect(page).to_have_url(re.compile("run=abstopk"))
    assert {"f", "box"}.isdisjoint(state(page)) and state(page)["filter"] == "n_active > 1"


def test_a_point_of_the_scatter_and_of_the_map_opens_its_feature(page: Page, dashboard: Dashboard) -> None:
    for view in ("scatter", "map"):
        visit(page, dashboard, f"page=features&run=healthy&view={view}&filter=n_active+%3E+0")
        plot = page.locator(".js-plotly-plot").first
        expect(plot.locator(".nsewdrag").first).to_be_visible()
        at, feature = plot.evaluate(POINT)
        page.mouse.move(*at)
        expect(plot.locator(".hoverlayer .hovertext")).to_be_visible()
        page.mouse.click(*at)
        heading(page, feature)
        assert state(page)["filter"] == "n_active > 0"
        page.go_back()
        expect(page).to_have_url(re.compile(f"view={view}"))


POINT = """plot => {
  const { xaxis, yaxis, margin } = plot._fullLayout, trace = plot._fullData[0], box = plot.getBoundingClientRect();
  const place = i => [box.x + xaxis._offset + xaxis.d2p(trace.x[i]), box.y + yaxis._offset + yaxis.d2p(trace.y[i])];
  const places = [...trace.x.keys()].map(place);
  const alone = places.findIndex((a, i) => places.every((b, j) => i === j || Math.hypot(a[0] - b[0], a[1] - b[1]) > 20));
  return [places[alone], trace.customdata[alone]];
}"""
