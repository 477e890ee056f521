"""The subcommand `sae reproduce`."""

import argparse

from analysis.reproduce import EXPERIMENTS


def reproduce(argv: list[str]) -> int:
    """Try what a paper claims, on several seeds, and write the table."""
    parser = argparse.ArgumentParser(
        "sae reproduce",
        description="Do an experiment's jobs, one for each seed and setting, and write its tables. "
        "Interrupted, it goes on with the jobs that are not done.",
        epilog=f"experiments: {', '.join(EXPERIMENTS)}\n\nexample:\n  sae reproduce {next(iter(EXPERIMENTS), 'NAME')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="of an experiment")
    parser.add_argument("--short", action="store_true", help="the form of seconds that tests use")
    parser.add_argument("--configs", default="configs/reproduce", help="folder of their configs (default: %(default)s)")
    parser.add_argument("--runs", default="runs/reproduce", help="where finished jobs are kept (default: %(default)s)")
    parser.add_argument("--out", help="where tables go (default: docs/results)")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N",
        help="do N jobs at a time, on a GPU for example, which small SAEs leave idle (default: %(default)s)",
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
