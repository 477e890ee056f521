"""How quick the Circuits page is: `python -m tests.dashboard.measure_graph` writes benchmarks/circuits-page.json.

Of a graph of 400 nodes and 1,500 edges, and of one of 5,000 and 20,000: from the pointer's arrival at a node to the frame
that shows its edges; from a click to the frame that shows its card, and to the URL that has it. Never in a timed test.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from playwright.sync_api import Page, sync_playwright

from analysis.circuits.formats.store import save_circuit
from analysis.circuits.graph import Circuit
from analysis.circuits.nodes import Nodes
from tests.analysis.circuits.graphs import SITES, circuit
from tests.dashboard.browser import CHROMIUMS, FLAGS, TIMEOUT_MS, Dashboard, idle, serve, system_browser

HOVER = """i => new Promise(done => {
  const begun = performance.now();
  const node = document.querySelector(`.sx-cg-node[data-i="${i}"]`);
  node.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun)));
})"""
CLICK = """i => new Promise(done => {
  const begun = performance.now(), page = document.querySelector(".sx-cg").page, name = page.graph.nodes.name[i];
  let card = null;
  const look = () => {
    if (card === null && document.querySelector(".sx-cg-side dd")?.textContent === name) card = performance.now() - begun;
    if (card !== null && new URLSearchParams(location.search).get("view")?.includes(JSON.stringify(name)))
      done([card, performance.now() - begun]);
    else requestAnimationFrame(look);
  };
  document.querySelector(`.sx-cg-node[data-i="${i}"]`).dispatchEvent(new MouseEvent("click", {bubbles: true}));
  look();
})"""


def graph(n: int, e: int) -> Circuit:
    """Features at five sites and twelve positions, with edges upwards."""
    rng = np.random.default_rng(0)
    cells = np.stack(np.unravel_index(np.sort(rng.choice(len(SITES) * 12 * 400, n, replace=False)), (len(SITES), 12, 400)))
    nodes = Nodes(*(column.astype(np.int64) for column in cells))
    ends = rng.integers(0, n, (20 * e, 2))
    up = np.unique(ends[nodes.site[ends[:, 0]] < nodes.site[ends[:, 1]]], axis=0)
    up = up[np.sort(rng.choice(len(up), e, replace=False))]
    by_node, by_edge = rng.normal(size=n), rng.normal(size=e)
    return circuit(
        name=f"{n}", prompt=tuple(f" word{i}" for i in range(12)), nodes=nodes, effect=by_node, low=by_node, high=by_node,
        value=by_node, reference=by_node, inclusion=rng.random(n), source=up[:, 0], target=up[:, 1], weight=by_edge,
        weight_low=by_edge, weight_high=by_edge, edge_inclusion=rng.random(e),
    )


def measured(page: Page, dashboard: Dashboard, name: str, n: int, repeats: int = 40) -> dict[str, float]:
    """Milliseconds by the browser's own clock."""
    page.goto(f"{dashboard.url}/?page=circuits&circuit={name}")
    page.locator(".sx-cg-node").first.wait_for(timeout=TIMEOUT_MS)
    idle(page)
    rng = np.random.default_rng(1)
    hover = sorted(page.evaluate(HOVER, int(i)) for i in rng.choice(n, repeats, replace=False))
    clicks = []
    for i in rng.choice(n, repeats // 2, replace=False):
        clicks.append(page.evaluate(CLICK, int(i)))
        idle(page)
    card, url = (sorted(one[k] for one in clicks) for k in (0, 1))
    found = {}
    for what, times in (("highlight", hover), ("card", card), ("in_url", url)):
        found |= {f"{what}_ms_p50": median(times), f"{what}_ms_p95": times[int(0.95 * len(times))]}
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/circuits-page.json"))
    args = parser.parse_args()
    assert system_browser() is not None, f"needs one of {CHROMIUMS}"
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        (folder / "runs").mkdir()
        sizes = ((400, 1500), (5000, 20_000))
        for n, e in sizes:
            save_circuit(graph(n, e), folder / "circuits" / f"{n}")
        with serve(folder / "runs", folder) as dashboard:
            browser = playwright.chromium.launch(executable_path=system_browser(), headless=True, args=FLAGS)
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            dashboard.watch(page)
            for n, e in sizes:
                figures[f"{n} nodes, {e} edges"] = measured(page, dashboard, str(n), n)
            assert dashboard.met() == []
    figures["machine"] = {"processor": platform.processor() or platform.machine(), "system": platform.system()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
