"""The subcommand `sae mdl`: a thin wrapper of `analysis.mdl.runs`."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.cli import HelpFormatter
from sae.io.paths import user_path

if TYPE_CHECKING:
    from analysis.mdl.runs import Selection

_ABOUT = """Measure description length: bits per row (one token's activation) needed to encode an SAE's features, on
held-out rows. Several runs are compared at equal FVE (Ayonrinde, Pearce & Sharkey 2410.11179).

Activations are quantised with the coarsest step that lowers FVE by at most epsilon. Columns:
  bits      entropy code: which features are active (each with its own firing rate), and their quantised values
  bound     L0 · (B + log2 d_sae), with B bits per value at a fixed width (the entropy code treats features as independent,
            so it can be longer if few are active)
  bits at   the entropy code with every run quantised down to the same FVE; only these can be compared between runs
"""
_EXAMPLES = """examples:
  sae mdl runs/quickstart
  sae mdl runs/sweep                          every member of a sweep; the shortest is marked
  sae mdl runs/topk runs/mdl --fve 0.8        compare at a given FVE
  sae mdl runs/sweep --plot bits.html         bits against FVE
  sae mdl runs/sweep --csv > bits.csv"""


def mdl(argv: list[str]) -> int:
    """Measure the description length of runs, and compare several at equal FVE."""
    parser = argparse.ArgumentParser(
        "sae mdl", description=_ABOUT, epilog=_EXAMPLES, formatter_class=HelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs of one corpus, or of a sweep")
    parser.add_argument("--epsilon", type=float, default=0.005,
                        help="FVE that quantisation may cost (default: %(default)s)")
    parser.add_argument("--fve", type=float, help="FVE at which runs are compared (default: the lowest FVE among them "
                        "minus epsilon, which all of them reach)")
    parser.add_argument("--rows", type=int, default=16_384, help="held-out rows (default: %(default)s)")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print everything as JSON instead of the table")
    shape.add_argument("--csv", action="store_true", help="print one CSV row per run instead of the table")
    parser.add_argument("--plot", type=user_path, metavar="FILE",
                        help="plot bits against FVE: .html, or .png or .svg (needs kaleido)")
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
    """One row per run, in the order of the selection."""
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
    title = (f"bits per row, {found.least.own.n_rows:,} held-out rows; bits, bound, L0 and step where quantisation costs "
             f"{found.epsilon:g} FVE")
    Display().table(title, rows, header)
    if several:
        print(f"\nshortest at FVE {found.fve:.3f}: {found.least.run}")
        if missing := [name for name, one in zip(names, found.runs, strict=True) if one.length is None]:
            print(f"below FVE {found.fve:.3f} even without quantisation: {', '.join(missing)}")


def _names(runs: Sequence[Path]) -> list[str]:
    """Paths of several runs, relative to their common folder."""
    if len(runs) == 1:
        return [str(runs[0])]
    common = os.path.commonpath([run.parent for run in runs])
    return [os.path.relpath(run, common) for run in runs]
