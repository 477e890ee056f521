"""What axe finds on every page, light and dark, wide and narrow: `python -m tests.dashboard.accessibility --runs runs`.

Each page is scanned with everything unfolded that folds. Ends with status 1 if a finding is serious or critical.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe

from tests.dashboard.browser import idle
from tests.dashboard.every_page import visits

GRAVE = ("serious", "critical")


def main() -> int:
    """Scan them, and print each kind of finding once with the pages and the elements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", nargs="*", help="names of pages")
    parser.add_argument("--widths", nargs="*", type=int, default=[1440, 390], help="of the browser, in pixels")
    parser.add_argument("--elements", type=int, default=5, help="how many elements of a finding are shown")
    args = parser.parse_args()
    axe, n_pages = Axe(), 0
    where: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    elements: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for name, scheme, width, page in visits(args.runs, args.only, args.widths):
        page.evaluate("document.querySelectorAll('details:not([open]) > summary').forEach(it => it.click())")
        idle(page)
        n_pages += 1
        for found in axe.run(page).response["violations"]:
            kind = found["impact"], found["id"], found["help"]
            where[kind].append(f"{name} {scheme} {width}")
            for node in found["nodes"]:
                elements[kind].setdefault(node["html"][:160], node["failureSummary"].replace("\n", " ")[:300])
    print(f"{n_pages} pages scanned")  # noqa: T201
    for kind in sorted(where, key=lambda one: one[0] not in GRAVE):
        impact, rule, text = kind
        print(f"\n{impact}: {rule} ({text})\n  on {', '.join(where[kind])}")  # noqa: T201
        for html, why in list(elements[kind].items())[: args.elements]:
            print(f"    {html}\n      {why}")  # noqa: T201
    return int(any(impact in GRAVE for impact, _, _ in where))


if __name__ == "__main__":
    sys.exit(main())
