"""How quick the pages are in a real browser: `python -m tests.dashboard.measure` writes benchmarks/dashboard.json.

Measures, never in a timed test: the next feature by key, a deep link from a cold browser, the first paint of a table of
16,384 features (a tiny model's, trained and indexed for the purpose), and ten visitors at once.
"""

import argparse
import asyncio
import json
import platform
import tempfile
import time
from pathlib import Path
from statistics import median

from playwright.async_api import Browser, Page, async_playwright

from analysis.index import build
from tests.analysis.indexed_runs import train_tiny
from tests.dashboard.browser import CHROMIUMS, FLAGS, serve, system_browser

# milliseconds from a key to the drawn feature
NEXT = """target => new Promise(done => {
  const begun = performance.now();
  const look = () => document.querySelector(`[data-feature="${target}"].sx`)
    && !document.querySelector(".sx-ex")?.closest("[data-stale=true]")
    ? done(performance.now() - begun) : requestAnimationFrame(look);
  document.dispatchEvent(new KeyboardEvent("keydown", {key: "j", bubbles: true}));
  look();
})"""


async def walk(page: Page, url: str, run: str, n: int, first: int = 100) -> list[float]:
    """Milliseconds of each of `n` next features; the browser's own clock."""
    await page.goto(f"{url}/?page=feature&run={run}&f={first}")
    await page.locator(".sx-ex").first.wait_for()
    await page.locator("dialog.sx-keys[data-ready]").first.wait_for(state="attached")
    await page.wait_for_timeout(1000)
    took = []
    for i in range(1, n + 1):
        took.append(await page.evaluate(NEXT, first + i))
        await page.locator(f'dialog.sx-keys[data-here*="f={first + i}"]').wait_for(state="attached")
    return took


async def until(browser: Browser, url: str, selector: str) -> float:
    """Seconds until a fresh visitor sees something."""
    context = await browser.new_context(viewport={"width": 1400, "height": 1000})
    page = await context.new_page()
    begun = time.perf_counter()
    await page.goto(url)
    await page.locator(selector).first.wait_for(timeout=60_000)
    took = time.perf_counter() - begun
    await context.close()
    return took


async def measured(url: str, run: str, wide_url: str) -> dict[str, object]:
    """All figures."""
    async with async_playwright() as playwright:
        async def launch() -> Browser:
            return await playwright.chromium.launch(executable_path=system_browser(), headless=True, args=FLAGS)

        links = []
        for _ in range(5):
            browser = await launch()
            links.append(await until(browser, f"{url}/?page=feature&run={run}&f=7", ".sx-ex"))
            await browser.close()
        browser = await launch()
        tables = [await until(browser, f"{wide_url}/?page=features&run=wide", ".sx-features tbody tr") for _ in range(5)]
        alone = await walk(await browser.new_page(), url, run, 60)
        pages = [await (await browser.new_context()).new_page() for _ in range(10)]
        together = await asyncio.gather(*(walk(page, url, run, 15, 100 + 20 * i) for i, page in enumerate(pages)))
        await browser.close()
    crowd = sorted(t for one in together for t in one)
    alone = sorted(alone)
    return {
        "next_feature_ms": {"p50": median(alone), "p95": alone[int(0.95 * len(alone))], "n": len(alone)},
        "cold_deep_link_s": {"first": links[0], "median": median(links), "worst": max(links), "n": len(links)},
        "table_16384_first_paint_s": {"median": median(tables), "worst": max(tables), "n": len(tables)},
        "ten_sessions_next_feature_ms": {"p50": median(crowd), "p95": crowd[int(0.95 * len(crowd))], "n": len(crowd)},
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--run", default="quickstart")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/dashboard.json"))
    args = parser.parse_args()
    assert system_browser() is not None, f"needs one of {CHROMIUMS}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(train_tiny(folder, "wide", sae={"d_sae": 16_384, "k": 32}), quiet=True)
        with serve(args.runs.absolute(), folder) as real, serve(folder / "runs", folder) as wide:
            figures = asyncio.run(measured(real.url, args.run, wide.url))
            assert real.errors == wide.errors == []
    figures["machine"] = {"processor": platform.processor() or platform.machine(), "system": platform.system()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
