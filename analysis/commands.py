"""Subcommands of this package: thin wrappers over functions that notebooks can call too."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from sae.cli import HelpFormatter
from sae.errors import SaescopeError
from sae.io.paths import user_path


def _parser(name: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        f"sae {name}", description=description, epilog=epilog, formatter_class=HelpFormatter
    )


def index(argv: list[str]) -> int:
    """Index a run: compute everything the dashboard shows about its features."""
    parser = _parser(
        "index", "Index a run over its own cache, or over another corpus through its model. The index holds everything the "
        "dashboard shows about features. An index that is up to date is kept.",
        "examples:\n  sae index runs/quickstart\n  sae index runs/quickstart --name notes corpus.sources=text:notes.txt\n\n"
        "Rerun the command to resume an interrupted index. Labels are stored separately and never changed.",
    )
    parser.add_argument("run", type=user_path, help="the folder of a finished run")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE",
        help="use another corpus: overrides of the run's config (corpus., cache., model.)",
    )
    parser.add_argument("--name", help="name of the index in RUN/index (default: default; required for another corpus)")
    parser.add_argument("--rows", type=int, help="index only the first ROWS rows")
    parser.add_argument(
        "--refine", type=int, default=0, metavar="N",
        help="refine codes with N steps of pursuit: the same number of features explains more; 3 is usually enough. The "
        "dashboard encodes prompts the same way. Not for transcoders (default: the encoder's codes)",
    )
    parser.add_argument("--memory", default="1 GB", help="budget for data that grows with the rows (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="rebuild the index even if it is up to date")
    parser.add_argument("--verify", action="store_true", help="check the checksums of an existing index and exit")
    parser.add_argument("--quiet", action="store_true", help="don't show progress")
    args = parser.parse_intermixed_args(argv)
    if args.rows is not None and args.rows < 1:
        raise SaescopeError(f"--rows {args.rows} leaves nothing to index; give at least 1.")
    if args.refine < 0:
        raise SaescopeError(f"--refine {args.refine} is negative; use 0 for the encoder's own codes, or 3 steps.")
    if args.overrides and args.name is None:
        raise SaescopeError("an index over another corpus needs its own name; add --name, for example --name notes.")
    if args.verify:
        return _verify(args.run, args.name)
    from analysis.index import build, indexes
    from analysis.index.store import MANIFEST
    from analysis.labels.store import FILE as LABELS

    before = {folder: (folder / MANIFEST).read_bytes() for folder in indexes(args.run)}
    made = build(
        args.run, corpus=args.overrides, name=args.name or "default", n_rows=args.rows, refine=args.refine,
        memory=args.memory, quiet=args.quiet, again=args.again,
    )
    if not args.quiet:
        counts, explained = made.manifest["counts"], made.manifest["fidelity"]
        print(f"{made.folder}: {counts['d_sae']:,} features ({counts['n_dead']:,} dead) over {counts['n_rows']:,} rows, "
              f"{counts['n_values']:,} values")
        if explained["fve"] is not None:
            which = "held-out" if explained["held_out"] else "indexed"
            print(f"FVE {explained['fve']:.3f} on {explained['n_rows']:,} {which} rows")
        now = (made.folder / MANIFEST).read_bytes()
        if before.get(made.folder, now) != now and (args.run / LABELS).exists():
            print(f"automatic labels are still from the old index; recreate them with `sae label {args.run}`")
        print(f"browse     sae dashboard --runs {args.run.resolve().parent}\nin Python  from analysis.index import "
              f"open_index; open_index({str(made.folder)!r})")
    return 0


def _verify(run: Path, name: str | None) -> int:
    from analysis.index import open_index

    folder = run / "index" / (name or "default")
    if problems := open_index(folder).verify():
        raise SaescopeError(" ".join(problems))
    print(f"{folder}: all checksums match")
    return 0


def rows(argv: list[str]) -> int:
    """Write which rows of the corpus a run was trained on and which were held out."""
    parser = _parser(
        "rows", "Write how each row of a run's corpus was used, as a uint8 .npy in corpus order: 0 not kept (special "
        "tokens, outliers), 1 trained on, 2 held out.",
        "example:\n  sae rows runs/mine rows.npy",
    )
    parser.add_argument("run", type=user_path, help="the folder of a finished run")
    parser.add_argument("out", type=user_path, help="the file to write")
    args = parser.parse_args(argv)
    from analysis.corpus_rows import open_rows
    from analysis.trained import open_trained
    from sae.io.arrays import write_array

    use = open_rows(open_trained(args.run)).use()
    write_array(args.out, use)
    left_out, trained, held_out = ((use == i).sum() for i in range(3))
    print(f"{args.out}: {len(use):,} rows, {trained:,} trained on, {held_out:,} held out, {left_out:,} not kept")
    return 0


def show(argv: list[str]) -> int:
    """Print a feature of an indexed run."""
    parser = _parser(
        "show", "Print a feature: density and values, promoted tokens, examples coloured by activation, neighbours.",
        "examples:\n  sae show runs/quickstart 12\n  sae show runs/quickstart 12 --n 10 --groups top,random",
    )
    parser.add_argument("run", type=user_path, help="the folder of an indexed run or of an index")
    parser.add_argument("feature", type=int, help="the feature's number")
    parser.add_argument("--name", help="name of the index (default: default)")
    parser.add_argument("--n", type=int, default=5, help="examples per group (default: %(default)s)")
    parser.add_argument("--groups", default="top,q10,q5,q1,near",
    help="from top, q10 to q1, random and near (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print statistics and top examples as JSON")
    args = parser.parse_args(argv)
    from rich.console import Console

    from analysis.index import open_index
    from analysis.render import terminal

    opened = open_index(args.run / "index" / args.name if args.name else args.run)
    if args.json:
        found = opened.feature(args.feature)
        examples = [dataclasses.asdict(e) for e in opened.examples(args.feature, n=args.n)]
        print(json.dumps({**dataclasses.asdict(found), "examples": examples}, indent=2))
        return 0
    # a pipe has no width
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    terminal.show(opened, args.feature, console=console, n=args.n, groups=args.groups.split(","))
    return 0


def bench_index(argv: list[str]) -> int:
    """Benchmark index builds and queries."""
    parser = _parser("bench index", "Benchmark index builds and queries on synthetic data.")
    parser.add_argument("--rows", type=int, default=200_704, help="rows of the index to build (default: %(default)s)")
    parser.add_argument("--d-sae", type=int, default=2048, help="its number of features (default: %(default)s)")
    parser.add_argument("--values", type=int, default=20_000_000,
    help="stored values of the index to query (default: %(default)s)")
    parser.add_argument("--out", type=user_path, help="write the results to this file as JSON")
    args = parser.parse_args(argv)
    from analysis.index import bench
    from sae.io.files import write_json
    from training.display import Display

    figures = bench.bench_index(n_rows=args.rows, d_sae=args.d_sae, n_values=args.values)
    print(json.dumps(figures, indent=2))
    bench.show(figures, Display())
    if args.out is not None:
        write_json(args.out, figures)
    return 0
