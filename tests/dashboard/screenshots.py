"""Pictures of every page, light and dark, full and empty: `python -m tests.dashboard.screenshots --runs runs`.

The run should have an index and labels (`sae label`); the pictures of empty pages are of runs that are made for them.
"""

import argparse
import tempfile
from itertools import product
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from playwright.sync_api import Browser, sync_playwright

from tests.analysis.indexed_runs import NASTY_NAME, write_hostile, write_states
from tests.dashboard.browser import FLAGS, idle, serve, system_browser

PAGES = {
    "runs": "", "features": "page=features&sort=density&filter=density+%3C+1%25", "map": "page=features&view=map",
    "scatter": "page=features&view=scatter", "search": "page=features&by=regex&q=%5Cbreturn+%5Ba-z%5D",
    "feature": "page=feature&f=12", "label": "page=feature&f=12&tab=label", "fires-with": "page=feature&f=12&tab=with",
    "statistics": "page=feature&f=12&tab=statistics", "try": "page=feature&f=12&text=import+os%0Afrom+pathlib+import+Path",
    "steer": "page=feature&f=12&tab=steer&prompt=The+function&tokens=12&strength=40",
    "export": "page=feature&f=12&tab=export", "compare": "page=compare&f=12",
    "prompt": "page=prompt&text=import+os%0Afrom+pathlib+import+Path", "evaluations": "page=evaluations",
    "circuits": "page=circuits",
}
EMPTY = {
    "no-index": "page=features&run=unindexed", "training": "page=feature&run=going",
    "never-active": "page=feature&run=dead",
    "broken": "page=features&run=corrupt", "one-feature": "page=features&run=one", "signed": "page=feature&run=abstopk&f=3",
    "hostile": "page=features&run=" + quote(NASTY_NAME),
}


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/screenshots"))
    parser.add_argument("--only", nargs="*", help="names of pictures")
    parser.add_argument("--widths", nargs="*", type=int, default=[1280], help="of the browser, in pixels")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=system_browser(), headless=True, args=FLAGS)
        folder, full = Path(name), Path(name) / "full"
        full.mkdir()
        (full / "runs").symlink_to(args.runs.absolute())  # so that pictures show no path of this machine
        if (circuits := args.runs.absolute().parent / "circuits").is_dir():
            (full / "circuits").symlink_to(circuits)
        shoot(browser, full / "runs", full, _wanted(PAGES, args.only), args.out, args.widths)
        if empty := _wanted(EMPTY, args.only):
            (folder / "none").mkdir()
            shoot(browser, folder / "none" / "runs", folder / "none", {"no-runs": ""}, args.out, args.widths)
            states = write_states(folder)
            write_hostile(states / "healthy", states)
            shoot(browser, states, folder, empty, args.out, args.widths)
        browser.close()


def shoot(browser: Browser, runs: Path, folder: Path, pages: dict[str, str], out: Path, widths: list[int]) -> None:
    """Pictures of some pages of a folder of runs, light and dark, in some widths."""
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    with serve(runs, folder, own_home=False) as running:
        for scheme, width in product(schemes, widths):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            for file, query in pages.items():
                page.goto(f"{running.url}/?{query}")
                idle(page)
                page.wait_for_timeout(2500)  # figures are drawn after the page has come to rest
                name = f"{file}-{scheme}" if len(widths) == 1 else f"{file}-{scheme}-{width}"
                page.screenshot(path=out / f"{name}.png")
            page.close()


def _wanted(pages: dict[str, str], only: list[str] | None) -> dict[str, str]:
    return {name: query for name, query in pages.items() if only is None or name in only}


if __name__ == "__main__":
    main()
