"""The subcommand `sae mdl`: thin over `analysis.mdl.runs`."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.io.paths import user_path

if TYPE_CHECKING:
    from analysis.mdl.runs import Selection

_ABOUT = """Measure how many bits a row's features take to send, on held-out rows, and which of several runs takes the
fewest at equal distortion (Ayonrinde, Pearce & Sharkey 2410.11179).

Values are rounded to whole multiples of a step, the coarsest that costs the FVE no more than epsilon. Then
  bits      the entropy code: which features are active, each under its own firing rate, and how long they are
  bound     L0 · (B + log2 d_sae), B being the bits of a value sent flat (where few features are active, the entropy code,
            which knows nothing of one feature from another, may take more)
  bits at   the same entropy code with each run's values as coarse as one FVE allows, the same for all: only these compare
"""
_EXAMPLES = """examples:
  sae mdl runs/quickstart
  sae mdl runs/sweep                          every member of a sweep; the least is marked
  sae mdl runs/topk runs/mdl --fve 0.8        at a distortion of your own
  sae mdl runs/sweep --plot bits.html         bits against FVE
  sae mdl runs/sweep --csv > bits.csv"""


def mdl(argv: list[str]) -> int:
    """Measure the description length of runs; select among several at equal distortion."""
    parser = argparse.ArgumentParser(
        "sae mdl", description=_ABOUT, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs of one corpus, or of a sweep")
    parser.add_argument("--epsilon", type=float, default=0.005,
                        help="share of the target's variance that rounding may cost (default: %(default)s)")
    parser.add_argument("--fve", type=float, help="the FVE at which runs are compared (default: the lowest of theirs less "
                        "epsilon, which all reach)")
    parser.add_argument("--rows", type=int, default=16_384, help="held-out rows (default: %(default)s)")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="everything, as JSON, in place of the table")
    shape.add_argument("--csv", action="store_true", help="a line for each run, as CSV, in place of the table")
    parser.add_argument("--plot", type=user_path, metavar="FILE",
                        help="draw bits against FVE: .html, or with kaleido .png or .svg")
    args = parser.parse_args(argv)
    from analysis.mdl.runs import least_description
    from analysis.render.figures import rate

    if args.plot is not None:
        rate.check(args.plot)
    found = least_description(args.runs, args.fve, args.epsilon, args.rows, curves=args.plot is not None)
    if args.plot is not None:
        curves = {one.run.name: [(point.fve_quantised, point.bits) for point in one.curve] for one in found.runs}
        rate.write(args.plot, rate.figure(curves, found.fve if len(found.runs) > 1 else None))
    if args.json:
        print(json.dumps({
            "fve": found.fve, "epsilon": found.epsilon, "least": str(found.least.run),
            "runs": [one.plain() for one in found.runs],
        }, indent=2))
    elif args.csv:
        lines = _lines(found)
        table = csv.DictWriter(sys.stdout, list(lines[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
    else:
        _show(found)
    return 0


def _lines(found: "Selection") -> list[dict[str, Any]]:
    """One a run, in the order of the selection."""
    out = []
    for one in found.runs:
        own, at = one.own, one.length
        out.append({
            "run": str(one.run), "variant": one.variant, "d_sae": one.d_sae, "fve": one.fve, "l0": own.l0,
            "n_features": own.n_features, "bits": own.bits, "support": own.support, "values": own.values,
            "adaptive": own.adaptive, "bound": own.bound, "value_bits": own.value_bits, "step": own.step,
            "fve_quantised": own.fve_quantised, "n_rows": own.n_rows, "fve_equal": found.fve,
            "bits_equal": at.bits if at else None, "l0_equal": at.l0 if at else None, "step_equal": at.step if at else None,
            "least": int(one is found.least),
        })
    return out


def _show(found: "Selection") -> None:
    from training.display import Display

    several = len(found.runs) > 1
    equal = f"bits at\nFVE {found.fve:.3f}"
    header = ("run", equal, "FVE", "bits", "bound", "L0", "step", "features") if several else (
        "run", "FVE", "bits", "support", "values", "bound", "L0", "step", "features")
    names = _names([one.run for one in found.runs])
    rows = []
    for name, one in zip(names, found.runs, strict=True):
        own = one.own
        bits: tuple[str, ...] = (f"{own.bits:.1f}",) if several else (
            f"{own.bits:.1f}", f"{own.support:.1f}", f"{own.values:.1f}")
        mark = "← " if one is found.least else ""
        at = (f"{mark}{one.length.bits:.1f}" if one.length else "–",) if several else ()
        rows.append((name, *at, f"{one.fve:.3f}", *bits, f"{own.bound:.1f}", f"{own.l0:.1f}", f"{own.step:.3g}",
                     f"{own.n_features:,}/{one.d_sae:,}"))
    title = (f"bits per row, {found.least.own.n_rows:,} held-out rows; bits, bound, L0 and step where rounding costs "
             f"{found.epsilon:g} of the variance")
    Display().table(title, rows, header)
    if several:
        print(f"\nleast at FVE {found.fve:.3f}: {found.least.run}")
        if missing := [name for name, one in zip(names, found.runs, strict=True) if one.length is None]:
            print(f"below FVE {found.fve:.3f} even with exact values: {', '.join(missing)}")


def _names(runs: Sequence[Path]) -> list[str]:
    """Several runs by their paths below the folder that all share."""
    if len(runs) == 1:
        return [str(runs[0])]
    common = os.path.commonpath([run.parent for run in runs])
    return [os.path.relpath(run, common) for run in runs]
