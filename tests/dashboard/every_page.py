"""Every page of the dashboard, full and empty, in turn: for pictures of them and for scans."""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

from playwright.sync_api import Browser, Page, sync_playwright

from tests.analysis.indexed_runs import NASTY_NAME, write_hostile, write_states
from tests.dashboard.browser import FLAGS, idle, serve, system_browser

FULL = {
    "runs": "", "demo": "page=feature", "features": "page=features&sort=density&filter=density+%3C+1%25",
    "map": "page=features&view=map",
    "scatter": "page=features&view=scatter", "search": "page=features&by=regex&q=%5Cbreturn+%5Ba-z%5D",
    "feature": "page=feature&f=12", "label": "page=feature&f=12&tab=label", "fires-with": "page=feature&f=12&tab=with",
    "statistics": "page=feature&f=12&tab=statistics", "try": "page=feature&f=12&text=import+os%0Afrom+pathlib+import+Path",
    "steer": "page=feature&f=12&tab=steer&prompt=The+function&tokens=12&strength=40",
    "export": "page=feature&f=12&tab=export", "compare": "page=compare&f=12",
    "prompt": "page=prompt&text=import+os%0Afrom+pathlib+import+Path", "evaluations": "page=evaluations",
    "circuits": "page=circuits",
}
"""Of the first run, which has an index and labels."""
IMAGES = {
    "image-features": "page=features&run=digits-denoiser&sort=density&filter=density+%3C+10%25",
    "image-feature": "page=feature&run=digits-denoiser&f=57",
    "image-steer": "page=feature&run=digits-denoiser&f=87&tab=steer&strength=24&input=2020&at=6",
}
"""Of the run of configs/digits-denoiser.yaml, where it is there; other machines train other features."""
EMPTY = {
    "no-index": "page=features&run=unindexed", "training": "page=feature&run=going",
    "never-active": "page=feature&run=dead",
    "broken": "page=features&run=corrupt", "one-feature": "page=features&run=one", "signed": "page=feature&run=abstopk&f=3",
    "hostile": "page=features&run=" + quote(NASTY_NAME),
}
"""Of runs that are made for them."""
Scheme = Literal["light", "dark"]


class Visit(NamedTuple):
    """A page that has come to rest."""

    name: str
    scheme: Scheme
    width: int
    page: Page


def visits(runs: Path, only: Collection[str] | None, widths: Sequence[int]) -> Iterator[Visit]:
    """Each page in light and dark and in each width.

    Args:
        runs: the folder of runs of the full pages; `circuits` beside it is shown too.
        only: names of pages; None for all.
        widths: of the browser, in pixels.
    """
    with tempfile.TemporaryDirectory() as name, sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=system_browser(), headless=True, args=FLAGS)
        folder, full = Path(name), Path(name) / "full"
        full.mkdir()
        (full / "runs").symlink_to(runs.absolute())  # so that pictures show no path of this machine
        if (circuits := runs.absolute().parent / "circuits").is_dir():
            (full / "circuits").symlink_to(circuits)
        pages = FULL | IMAGES if (runs / "digits-denoiser").is_dir() else FULL
        yield from _served(browser, full / "runs", full, _wanted(pages, only), widths)
        if _wanted(no_runs := {"no-runs": "", "no-circuits": "page=circuits"}, only):
            (folder / "none").mkdir()
            yield from _served(browser, folder / "none" / "runs", folder / "none", _wanted(no_runs, only), widths)
        if empty := _wanted(EMPTY, only):
            states = write_states(folder)
            write_hostile(states / "healthy", states)
            yield from _served(browser, states, folder, empty, widths)
        browser.close()


def _served(
    browser: Browser, runs: Path, folder: Path, pages: dict[str, str], widths: Sequence[int]
) -> Iterator[Visit]:
    schemes: tuple[Scheme, ...] = ("light", "dark")
    if not pages:
        return
    with serve(runs, folder, own_home=False) as running:
        for scheme, width in product(schemes, widths):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            for name, query in pages.items():
                page.goto(f"{running.url}/?{query}")
                idle(page)
                page.wait_for_timeout(2500)  # figures are drawn after the page has come to rest
                yield Visit(name, scheme, width, page)
            page.close()


def _wanted(pages: dict[str, str], only: Collection[str] | None) -> dict[str, str]:
    return {name: query for name, query in pages.items() if only is None or name in only}
