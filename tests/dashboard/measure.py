"""How quick the pages are in a real browser: `python -m tests.dashboard.measure` writes benchmarks/dashboard.json.

Measures, never in a timed test: steps to features that the browser holds and to others, toggles, tabs, sorting, searching,
a prompt, the first steered token, a deep link from a cold browser, the first paint of a table of 16,384 features (a tiny
model's, trained and indexed for the purpose), and ten visitors at once; all of it quiet, and beside a busy loop.
"""

import argparse
import asyncio
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from playwright.async_api import Browser, Page, async_playwright

from analysis.index import build
from tests.analysis.indexed_runs import train_tiny
from tests.dashboard.browser import CHROMIUMS, FLAGS, serve, system_browser

# milliseconds from an act to the first frame behind which a condition holds; both are JavaScript
TIMED = """([act, condition]) => new Promise(done => {
  const holds = new Function("return " + condition), begun = performance.now();
  const look = () => holds() ? requestAnimationFrame(() => done(performance.now() - begun)) : requestAnimationFrame(look);
  new Function(act)();
  look();
})"""
KEY = 'document.dispatchEvent(new KeyboardEvent("keydown", {{key: "{}", bubbles: true}}))'
SHOWN = """(document.querySelector(".sx-bar-row")?.dataset.feature === "{0}" && !document.querySelector(".sx-waiting")
  && !document.querySelector(".sx-ex")?.closest("[data-stale=true]"))"""
CLICK = "document.querySelector({}).click()"


async def timed(page: Page, act: str, condition: str) -> float:
    """Milliseconds by the browser's own clock."""
    return float(await page.evaluate(TIMED, [act, condition]))


async def feature_page(page: Page, url: str, run: str, feature: int, more: str = "") -> None:
    """A feature's page that has come to rest."""
    await page.goto(f"{url}/?page=feature&run={run}&f={feature}{more}")
    await page.locator(f".sx-bar-row[data-feature='{feature}']").wait_for()
    await page.locator("dialog.sx-keys[data-ready]").first.wait_for(state="attached")
    await page.wait_for_timeout(1500)


async def walk(page: Page, url: str, run: str, n: int, first: int = 100, rest_ms: int = 700) -> list[float]:
    """Milliseconds of each of `n` next features, each read for a while, so that the browser holds the next."""
    await feature_page(page, url, run, first)
    took = []
    for i in range(1, n + 1):
        took.append(await timed(page, KEY.format("j"), SHOWN.format(first + i)))
        await page.wait_for_timeout(rest_ms)
    return took


async def jumps(page: Page, url: str, run: str, n: int) -> list[float]:
    """The same of features that it does not hold, by their numbers."""
    await feature_page(page, url, run, 0)
    d_sae, rng, took = int(await page.evaluate("saescopeReader.data.d_sae")), random.Random(0), []
    for feature in rng.sample(range(100, d_sae), n):
        took.append(await timed(page, f"saescopeReader.go({feature})", SHOWN.format(feature)))
        await page.wait_for_timeout(700)
    return took


async def other_acts(page: Page, url: str, run: str, n: int, seed: int) -> dict[str, list[float]]:
    """Toggles, tabs, sorting, searching, a prompt, and the first steered token.

    Another `seed` asks for other texts: the server keeps what its model has read and written.
    """
    took: dict[str, list[float]] = {key: [] for key in ("toggle", "tab", "sort", "search", "prompt", "first_steered_token")}
    await feature_page(page, url, run, 100)
    for i in range(n):
        numbers = "!" if i % 2 else ""
        took["toggle"].append(await timed(page, KEY.format("n"), f"{numbers}document.querySelector('.sx-numbers .sx-ex')"))
        await page.wait_for_timeout(500)
    for i in range(n):
        tab, there = (("examples", ".sx-ex"), ("statistics", ".sx-facts"))[(i + 1) % 2]
        click = CLICK.format(f"'[data-tab={tab}]'")
        took["tab"].append(await timed(page, click, f"document.querySelector('{there}')?.checkVisibility()"))
        await page.wait_for_timeout(500)
    await page.goto(f"{url}/?page=features&run={run}")
    await page.locator(".sx-features tbody tr").first.wait_for()
    await page.wait_for_timeout(1500)
    for i in range(n):
        title = ("Density", "Max")[i % 2]
        links = "[...document.querySelectorAll('.sx-features thead a')]"
        click = f"{links}.find(a => a.textContent.startsWith('{title}')).click()"
        sorted_by = f"document.querySelector('th[aria-sort=descending]')?.textContent.startsWith('{title}')"
        took["sort"].append(await timed(page, click, sorted_by))
        await page.wait_for_timeout(500)
    for word in ("return", "self", "import", "None", "for")[:n]:
        await page.goto(f"{url}/?page=features&run={run}&by=text")
        await page.locator(".st-key-q input").wait_for()
        await page.wait_for_timeout(800)
        await page.locator(".st-key-q input").fill(word)
        begun = time.perf_counter()
        await page.locator(".st-key-q input").press("Enter")
        await page.get_by_text("Found").first.wait_for()
        took["search"].append(1000 * (time.perf_counter() - begun))
    for i in range(-1, min(n, 5)):  # the first loads the model
        begun = time.perf_counter()
        await page.goto(f"{url}/?page=prompt&run={run}&text=import+os%0Afrom+pathlib+import+Path+{seed}{i}")
        await page.locator(".sx-grid tbody tr").first.wait_for(timeout=120_000)
        took["prompt"] += [1000 * (time.perf_counter() - begun)] if i >= 0 else []
    for i in range(min(n, 5)):
        begun = time.perf_counter()
        asked = f"prompt=The+function&tokens=16&strength=20&seed={seed + i}"
        await page.goto(f"{url}/?page=feature&run={run}&f=12&tab=steer&{asked}")
        await page.locator("[data-steered]").wait_for(timeout=120_000)
        took["first_steered_token"].append(1000 * (time.perf_counter() - begun))
        await page.locator("[data-steered=done]").wait_for(timeout=120_000)
    return took


async def until(browser: Browser, url: str, selector: str) -> float:
    """Milliseconds until a fresh visitor sees something."""
    context = await browser.new_context(viewport={"width": 1400, "height": 1000})
    page = await context.new_page()
    begun = time.perf_counter()
    await page.goto(url)
    await page.locator(selector).first.wait_for(timeout=60_000)
    took = 1000 * (time.perf_counter() - begun)
    await context.close()
    return took


def told(took: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile, largest and number."""
    ordered = sorted(took)
    figures = {"p50": median(ordered), "p95": ordered[int(0.95 * len(ordered))], "max": ordered[-1]}
    return {**{key: round(value, 1) for key, value in figures.items()}, "n": len(ordered)}


async def measured(url: str, run: str, wide_url: str, n: int, seed: int) -> dict[str, object]:
    """All figures, in milliseconds."""
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
        page = await browser.new_page()
        figures = {
            "next_feature_held": told(await walk(page, url, run, n)),
            "next_feature_not_held": told(await jumps(page, url, run, n)),
            **{act: told(took) for act, took in (await other_acts(page, url, run, max(2, n // 4), seed)).items()},
            "cold_deep_link": told(links), "table_16384_first_paint": told(tables),
        }
        pages = [await (await browser.new_context()).new_page() for _ in range(10)]
        together = await asyncio.gather(*(walk(page, url, run, n // 4, 100 + 20 * i) for i, page in enumerate(pages)))
        await browser.close()
    return {**figures, "ten_sessions_next_feature": told([t for one in together for t in one])}


@contextmanager
def busy_loop() -> Iterator[None]:
    """One core that computes for nothing."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--run", default="quickstart")
    parser.add_argument("--n", type=int, default=40, help="steps to other features (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/dashboard.json"))
    args = parser.parse_args()
    assert system_browser() is not None, f"needs one of {CHROMIUMS}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(train_tiny(folder, "wide", sae={"d_sae": 16_384, "k": 32}), quiet=True)
        # the runs' model is kept in the user's cache
        with serve(args.runs.absolute(), folder, own_home=False) as real, serve(folder / "runs", folder) as wide:
            figures: dict[str, object] = {"quiet": asyncio.run(measured(real.url, args.run, wide.url, args.n, seed=100))}
            with busy_loop():
                figures["beside_a_busy_loop"] = asyncio.run(measured(real.url, args.run, wide.url, args.n, seed=200))
            assert real.errors == wide.errors == []
    figures["machine"] = {"processor": platform.processor() or platform.machine(), "system": platform.system()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"unit": "ms", **figures}, indent=2) + "\n")
    print(json.dumps(figures, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
