"""The subcommand `sae eval`: a thin wrapper of `analysis.evals.run` and `analysis.evals.compare`."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.cli import HelpFormatter
from sae.errors import SaescopeError

if TYPE_CHECKING:
    from analysis.evals.probes.labelled import LabelledText
    from analysis.evals.run import Evaluated
    from training.display import Display

_ABOUT = """Evaluate trained SAEs on held-out text: reconstruction, downstream cross-entropy, description length, agreement
between seeds, recovery of known features, and more, each with a 95 % interval over documents and next to its controls.

Three controls are always included: a random SAE of the same shape, PCA, and the raw channels. Three more must be trained
once per site and shape (--controls): a frozen random decoder, a frozen random encoder, and an SAE on the model with random
weights. No SAE is reported as better than the controls unless all of them are there.

Results are written to RUN/evals/NAME.json as they finish; existing results are reused.
"""
_EXAMPLES = """examples:
  sae eval runs/quickstart                            the quick suite: minutes
  sae eval runs/quickstart --controls                 train missing controls first
  sae eval runs/quickstart --suite full --only core,mdl
  sae eval runs/sweep/topk-16 runs/sweep/topk-32      side by side
  sae eval --compare runs/a runs/b                    differences with intervals: beyond seed noise?
  sae eval runs/quickstart --labelled jsonl:reviews.jsonl --text review --label sentiment
                                                      probe for your own labels

Comparisons automatically include other seeds of a run (the same config with another sae.seed).
"""


def evaluate(argv: list[str]) -> int:
    """Evaluate SAEs against controls; compare two runs."""
    parser = argparse.ArgumentParser(
        "sae eval", description=_ABOUT, epilog=_EXAMPLES, formatter_class=HelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of finished runs, or of sweeps")
    parser.add_argument("--suite", choices=("quick", "full"), default="quick",
                        help="amount of data (default: quick)")
    parser.add_argument("--only", default="", metavar="NAME,...", help="run only these evaluations")
    parser.add_argument("--labelled", metavar="SOURCE", help="probe for the labels of this dataset: jsonl:PATH, "
                        "parquet:PATH, datasets:NAME or datasets:PATH.csv; runs nothing else except what --only names")
    parser.add_argument("--text", metavar="COLUMN", help="SOURCE's text column (default: text)")
    parser.add_argument("--label", metavar="COLUMN", help="SOURCE's label column (default: label)")
    parser.add_argument("--subset", metavar="NAME", help="configuration of datasets:NAME")
    parser.add_argument("--split", metavar="NAME", help="split of datasets:NAME (default: train)")
    parser.add_argument("--controls", action="store_true", help="train missing controls first")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="compare two runs, including their other seeds")
    parser.add_argument("--again", action="store_true", help="recompute existing results")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    args = parser.parse_args(argv)
    if bool(args.runs) == bool(args.compare):
        raise SaescopeError("give run folders (for example sae eval runs/a), or two runs with --compare.")
    from training.display import Display

    only = tuple(name.strip() for name in args.only.split(",") if name.strip())
    options = {"suite": args.suite, "only": only, "labelled": _labelled(args), "controls": args.controls,
               "again": args.again}
    display = Display(quiet=args.quiet)
    if args.compare:
        return _compare(args.compare, options, display, as_json=args.json)
    return _evaluate(args.runs, options, display, as_json=args.json)


def _labelled(args: argparse.Namespace) -> "LabelledText | None":
    """The labelled dataset given by the options."""
    from analysis.evals.probes.labelled import LabelledText

    given = {name: value for name in ("text", "label", "subset", "split") if (value := getattr(args, name)) is not None}
    if args.labelled is None:
        if given:
            raise SaescopeError(f"--{next(iter(given))} needs a labelled dataset: give one with --labelled jsonl:PATH.")
        return None
    return LabelledText(args.labelled, **given)


def _evaluate(runs: Sequence[str], options: Mapping[str, Any], display: "Display", *, as_json: bool) -> int:
    from analysis.evals import table
    from analysis.evals.run import evaluate as evaluate_
    from analysis.mdl.runs import members

    done = [evaluate_(run, display=display, **options) for run in members(runs)]
    if as_json:
        print(json.dumps([_plain(one) for one in done], indent=2, ensure_ascii=False))
        return _code(done)
    if len(done) == 1:
        tables = [table.of_run(found) for found in done[0].results.values()]
    else:
        tables = table.of_runs({_name(one): one.results for one in done})
    _print(tables)
    for one in done:
        _remarks(one)
    if len(done) > 1 and any("mdl" in one.results for one in done):
        _least([one.run for one in done])
    return _code(done)


def _compare(pair: Sequence[str], options: Mapping[str, Any], display: "Display", *, as_json: bool) -> int:
    from dataclasses import asdict

    from analysis.evals import table
    from analysis.evals.compare import compared, sides
    from analysis.evals.run import evaluate as evaluate_

    folders = sides(*pair)
    done = [[evaluate_(run, display=display, **options) for run in side] for side in folders]
    found = compared(*([one.results for one in side] for side in done))
    if not found:
        raise SaescopeError(f"{pair[0]} and {pair[1]} have no evaluation in common; see above for the reasons.")
    if as_json:
        print(json.dumps([{**asdict(one), "verdict": one.verdict} for one in found], indent=2, ensure_ascii=False))
        return 0
    names = [f"{side[0]} ({len(side)} seed{'s' if len(side) > 1 else ''})" for side in folders]
    _print([table.of_comparison(found, *names)])
    lacking = sorted({name for side in done for one in side for r in one.results.values() for name in r.lacking})
    if lacking:
        print(f"missing controls, so neither is called better than nothing: {', '.join(lacking)} (sae eval --controls)")
    return 0


def _print(tables: Sequence[Any]) -> None:
    from training.display import Display

    for one in tables:
        Display().table(one.title, one.rows, one.header)
        print()


def _remarks(done: "Evaluated") -> None:
    """Print what the tables don't show: missing controls, notes, failed evaluations."""
    lacking = sorted({name for found in done.results.values() for name in found.lacking})
    if lacking:
        print(f"{done.run}: missing controls: {', '.join(lacking)}; `sae eval {done.run} --controls` trains them")
    for name, found in done.results.items():
        for note in found.found.notes:
            print(f"{name}: {note}")
    for name, why in done.refused.items():
        print(f"{name}: {why}")


def _least(runs: Sequence[Path]) -> None:
    """Print which run has the shortest description length at equal FVE, with its width and L0."""
    from analysis.mdl.runs import least_description

    try:
        found = least_description(runs)
    except SaescopeError as error:
        print(f"bits of these runs can't be compared: {error}")
        return
    for one in found.runs:
        at = "doesn't reach it" if one.length is None else f"{one.length.bits:.1f} bits per row, L0 {one.length.l0:.1f}"
        mark = "  ← fewest" if one is found.least else ""
        print(f"at FVE {found.fve:.3f}: {one.run}: {at}, {one.d_sae:,} features{mark}")


def _name(done: "Evaluated") -> str:
    return next((found.run for found in done.results.values()), done.run.name)


def _plain(done: "Evaluated") -> dict[str, Any]:
    return {
        "run": str(done.run), "refused": dict(done.refused), "reused": list(done.reused),
        "results": {name: found.plain() for name, found in done.results.items()},
    }


def _code(done: Sequence["Evaluated"]) -> int:
    """Exit code: 0 if anything was measured, else 2."""
    return 0 if any(one.results for one in done) else 2
