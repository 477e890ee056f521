"""The subcommand `sae reproduce`."""

import argparse

from analysis.reproduce import EXPERIMENTS
from sae.cli import HelpFormatter


def reproduce(argv: list[str]) -> int:
    """Reproduce a paper's claim on several seeds, and write the table."""
    parser = argparse.ArgumentParser(
        "sae reproduce",
        description="Run an experiment's jobs, one per seed and setting, and write its tables. Run it again to resume an "
        "interrupted one.",
        epilog=f"experiments: {', '.join(EXPERIMENTS)}\n\nexample:\n  sae reproduce {next(iter(EXPERIMENTS), 'NAME')}",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("name", help="name of the experiment")
    parser.add_argument("--short", action="store_true", help="a version that takes seconds, for tests")
    parser.add_argument("--configs", default="configs/reproduce", help="folder of configs (default: %(default)s)")
    parser.add_argument("--runs", default="runs/reproduce", help="folder of finished jobs (default: %(default)s)")
    parser.add_argument("--out", help="folder for the tables (default: docs/results)")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N",
        help="run N jobs in parallel, for example on a GPU that small SAEs leave idle (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    args = parser.parse_args(argv)
    from analysis.reproduce.jobs import reproduce as reproduce_
    from analysis.reproduce.jobs import summary
    from training.display import Display

    rows = reproduce_(
        args.name, configs=args.configs, runs=args.runs, out=args.out, short=args.short, quiet=args.quiet,
        processes=args.processes,
    )
    if not args.quiet:
        Display().table(args.name, _cells(summary(rows)), ("setting", "metric", "mean", "95 % interval", "seeds"))
    return 0


def _cells(rows: list) -> list[tuple[str, ...]]:
    def interval(row: dict) -> str:
        return "–" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}"

    return [(r["setting"], r["metric"], f"{r['mean']:.4g}", interval(r), str(r["n_seeds"])) for r in rows]
