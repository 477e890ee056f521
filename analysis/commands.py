"""The subcommands of this floor: thin over functions that notebooks call."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from sae.errors import SaescopeError
from sae.io.paths import user_path


def _parser(name: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        f"sae {name}", description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def index(argv: list[str]) -> int:
    """Index a run: everything the browser shows of its features."""
    parser = _parser(
        "index", "Index a run over its own cache, or over another text through its model: everything the browser shows of "
        "its features. An index that is still true is left as it is.",
        "examples:\n  sae index runs/quickstart\n  sae index runs/quickstart --name notes corpus.sources=text:notes.txt\n\n"
        "An interrupted index goes on where it was. Labels are kept apart and are never touched.",
    )
    parser.add_argument("run", type=user_path, help="the folder of a finished run")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE",
        help="another corpus: keys of the run's config (corpus., cache., model.)",
    )
    parser.add_argument("--name", help="the index's folder below RUN/index (default: default; needed for another corpus)")
    parser.add_argument("--rows", type=int, help="no more than the first so many rows")
    parser.add_argument(
        "--refine", type=int, default=0, metavar="N",
        help="index codes that N steps of pursuit have refined: as many features explain more; 3 are about enough. The "
        "browser reads texts alike. SAEs only, no transcoders (default: the encoder's own codes)",
    )
    parser.add_argument("--memory", default="1 GB", help="for what grows with the rows (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="make it anew even if it is up to date")
    parser.add_argument("--verify", action="store_true", help="compare every file with its checksum, and leave")
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    args = parser.parse_intermixed_args(argv)
    if args.rows is not None and args.rows < 1:
        raise SaescopeError(f"--rows {args.rows} leaves nothing to index; give 1 at least.")
    if args.refine < 0:
        raise SaescopeError(f"--refine {args.refine} is no whole number; give 0 for the encoder's own codes, or 3 steps.")
    if args.overrides and args.name is None:
        raise SaescopeError("an index over another corpus needs a name of its own; add --name, for example --name notes.")
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
            print(f"automatic labels are still those of the old index; `sae label {args.run}` makes them again")
        print(f"browse     sae dashboard --runs {args.run.resolve().parent}\nin Python  from analysis.index import "
              f"open_index; open_index({str(made.folder)!r})")
    return 0


def _verify(run: Path, name: str | None) -> int:
    from analysis.index import open_index

    folder = run / "index" / (name or "default")
    if problems := open_index(folder).verify():
        raise SaescopeError(" ".join(problems))
    print(f"{folder}: whole")
    return 0


def rows(argv: list[str]) -> int:
    """Write which rows a run was trained on and which it held out."""
    parser = _parser(
        "rows", "Write what each row of a run's corpus was to its training, as one .npy of a byte a row, in corpus order: "
        "0 not kept (special tokens, outliers), 1 trained on, 2 held out.",
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
        "show", "Print a feature: its density and values, the tokens it promotes, examples with the activation as colour, "
        "neighbours.", "examples:\n  sae show runs/quickstart 12\n  sae show runs/quickstart 12 --n 10 --groups top,random",
    )
    parser.add_argument("run", type=user_path, help="the folder of an indexed run, or of one of its indexes")
    parser.add_argument("feature", type=int, help="number of the feature")
    parser.add_argument("--name", help="which of the run's indexes (default: default)")
    parser.add_argument("--n", type=int, default=5, help="examples of each group (default: %(default)s)")
    parser.add_argument("--groups", default="top,q10,q5,q1,near", help="also q1 to q10 and random (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="statistics and strongest examples as JSON")
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
    # a pipe has no width of its own
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    terminal.show(opened, args.feature, console=console, n=args.n, groups=args.groups.split(","))
    return 0


def bench_index(argv: list[str]) -> int:
    """Measure how fast an index is made and how fast it answers."""
    parser = _parser("bench index", "Measure how fast an index is made and how fast it answers, on synthetic data.")
    parser.add_argument("--rows", type=int, default=200_704, help="rows of the index that is made (default: %(default)s)")
    parser.add_argument("--d-sae", type=int, default=2048, help="its features (default: %(default)s)")
    parser.add_argument("--values", type=int, default=20_000_000, help="values of the one asked (default: %(default)s)")
    parser.add_argument("--out", type=user_path, help="write the figures as JSON")
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
