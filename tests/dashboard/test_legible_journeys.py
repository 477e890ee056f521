"""Pages on narrow screens, and whether what is small can be read, in a real browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.dashboard.browser import TIMEOUT_MS, Dashboard, idle, visit

PAGES = ("page=features&run=healthy", "page=prompt&run=healthy&text=a+tiny+test", "page=evaluations&run=healthy",
         "page=runs&run=healthy", "page=compare&run=healthy&f=3&with=abstopk:5")
CONTRAST = """element => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const numbers = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const style = getComputedStyle(element), svg = element instanceof SVGElement;
  let [r, g, b, a] = numbers(svg ? style.fill : style.color);
  a = a / 255 * (svg ? parseFloat(style.fillOpacity) : 1);
  for (let e = element; e; e = e.parentElement) a *= parseFloat(getComputedStyle(e).opacity);
  const ground = numbers(getComputedStyle(document.querySelector("[data-testid=stApp]")).backgroundColor);
  const ink = [r, g, b].map((c, i) => a * c + (1 - a) * ground[i]);
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([x, y, z]) => 0.2126 * linear(x) + 0.7152 * linear(y) + 0.0722 * linear(z);
  const [low, high] = [light(ink), light(ground)].sort((p, q) => p - q);
  return (high + 0.05) / (low + 0.05);
}"""


@pytest.fixture
def narrow(browser: Browser, dashboard: Dashboard) -> Iterator[Page]:
    """A page as wide as a telephone."""
    context = browser.new_context(viewport={"width": 390, "height": 800})
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    dashboard.watch(page)
    yield page
    idle(page)
    context.close()
    assert dashboard.met() == []


def test_pages_fit_a_narrow_screen(narrow: Page, dashboard: Dashboard) -> None:
    for query in PAGES:
        visit(narrow, dashboard, query)
        bar = narrow.locator("nav.sx-pages").bounding_box()
        assert bar is not None and bar["height"] < 60, "the links to pages stand in one row"
        expect(narrow.locator("nav.sx-pages a[aria-current]")).to_be_in_viewport(ratio=0.9)
        over = narrow.evaluate("(m => m.scrollWidth - m.clientWidth)(document.querySelector('[data-testid=stMain]'))")
        assert over <= 0, query
    visit(narrow, dashboard, PAGES[0])
    name = narrow.locator(".sx-features .sx-name").first.bounding_box()
    assert name is not None and name["width"] > 100 and name["height"] < 80, "names are not a letter a line"
    visit(narrow, dashboard, PAGES[1])
    panel, grid = (narrow.locator(one).bounding_box() for one in ("[data-panel]", ".sx-grid"))
    assert panel is not None and grid is not None and panel["y"] < grid["y"], "the chosen feature comes first"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_small_texts_have_contrast(browser: Browser, dashboard: Dashboard, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    small = ("[data-testid=stCaptionContainer] p, .xtick text, .ytick text, text.xtitle, text.ytitle, .sx-quiet, small, "
             "thead th a")
    for query in ("page=features&run=healthy&view=scatter", "page=evaluations&run=healthy", "page=runs"):
        visit(page, dashboard, query)
        expect(page.locator(".xtick text").first).to_be_visible()
        idle(page)
        found = page.locator(small).evaluate_all(f"all => all.map(one => [({CONTRAST})(one), one.outerHTML.slice(0, 200)])")
        assert found and not [one for one in found if one[0] < 4.5], query
    context.close()


def test_every_tab_of_the_browser_has_a_title_of_its_own(page: Page, dashboard: Dashboard) -> None:
    titles = {}
    for query in ("page=runs", "page=features&run=healthy", "page=compare&run=healthy&f=3&with=4",
                  "page=evaluations&run=healthy", "page=prompt&run=abstopk"):
        visit(page, dashboard, query)
        titles[query] = page.title()
    assert len(set(titles.values())) == len(titles), titles
    assert titles["page=compare&run=healthy&f=3&with=4"] == "#3 with #4 · Compare · healthy · Saescope"
