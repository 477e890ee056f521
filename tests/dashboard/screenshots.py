"""Pictures of every page, light and dark, full and empty: `python -m tests.dashboard.screenshots --runs runs`.

The run should have an index and labels (`sae label`); the pictures of empty pages are of runs that are made for them.
"""

import argparse
from pathlib import Path

from tests.dashboard.every_page import visits


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/screenshots"))
    parser.add_argument("--only", nargs="*", help="names of pages")
    parser.add_argument("--widths", nargs="*", type=int, default=[1280], help="of the browser, in pixels")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, scheme, width, page in visits(args.runs, args.only, args.widths):
        file = f"{name}-{scheme}" if len(args.widths) == 1 else f"{name}-{scheme}-{width}"
        page.screenshot(path=args.out / f"{file}.png")


if __name__ == "__main__":
    main()
