"""Pictures of every page, light and dark: `python -m tests.dashboard.screenshots --runs runs`."""

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.dashboard.browser import FLAGS, _system, idle, serve

PAGES = {
    "runs": "", "features": "page=features&sort=density&filter=density+%3C+1%25", "map": "page=features&view=map",
    "scatter": "page=features&view=scatter", "feature": "page=feature&f=12", "fires-with": "page=feature&f=12&tab=with",
    "prompt": "page=prompt&text=import+os%0Afrom+pathlib+import+Path", "evaluations": "page=evaluations",
    "circuits": "page=circuits",
}


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/screenshots"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as name, serve(args.runs.absolute(), Path(name), own_home=False) as running,
        sync_playwright() as tool,
    ):
        browser = tool.chromium.launch(executable_path=_system(), headless=True, args=FLAGS)
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
            for file, query in PAGES.items():
                page.goto(f"{running.url}/?{query}")
                idle(page)
                page.wait_for_timeout(2500)  # figures are drawn after the page has come to rest
                page.screenshot(path=args.out / f"{file}-{scheme}.png")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
