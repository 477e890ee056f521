"""The subcommands `sae label` and `sae export`: thin over functions that notebooks call."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.labels.by_model.commands import add_arguments, check_arguments, label_by_model
from sae.errors import SaescopeError
from sae.io.paths import user_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from analysis.index import Index
    from analysis.labels.store import Label, Labels
    from training.display import Display

_AT_ONCE = 256
"""Labels that are written in one transaction: what an interruption can lose."""


def label(argv: list[str]) -> int:
    """Label features automatically, by rules or by a language model, scored on held-out examples."""
    parser = argparse.ArgumentParser(
        "sae label", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Label features by what sets the tokens around them apart, or with --with by a language model. Labels "
        "are scored by detection on held-out examples, beside the label of another feature. Your own are never touched.",
        epilog="examples:\n  sae label runs/quickstart\n  sae label runs/quickstart --top 500\n"
        "  sae label runs/quickstart --features 12,40-60\n"
        "  sae label runs/quickstart --with http://localhost:11434/v1 --model qwen3:8b --top 10\n"
        "  sae label runs/quickstart --with https://api.openai.com/v1 --model gpt-4o-mini --price-in 0.15 --price-out 0.6\n"
        "  sae label runs/quickstart --with smollm2-135m --top 3",
    )
    _common(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--top", type=int, metavar="N", help="only the N features that fire most often")
    which.add_argument("--features", metavar="LIST", help="only these, such as 12,40-60")
    parser.add_argument("--seed", type=int, default=0, help="of the examples and baselines (default: %(default)s)")
    parser.add_argument("--replace", action="store_true", help="also replace labels that a language model has written")
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    add_arguments(parser)
    args = parser.parse_args(argv)
    check_arguments(args)
    index, labels = _open(args)
    if args.top is not None and args.top < 1:
        raise SaescopeError(f"--top {args.top} leaves no feature to label; give 1 at least.")
    if args.features:
        features = numbers(args.features, index.d_sae)
    else:
        alive = index.top("density", where="n_active > 0", limit=args.top or index.d_sae, columns=["feature"])
        features = alive["feature"].to_pylist()
    if args.by is not None:
        label_by_model(args, index, labels, features)
        return 0
    # a model's labels have cost something
    written = set() if args.replace else {one.feature for one in labels.automatic() if one.model}
    if kept := [feature for feature in features if feature in written]:
        features = [feature for feature in features if feature not in written]
        print(f"{len(kept):,} features keep the label of a language model; --replace replaces them.")
    made = label_all(index, labels, features, seed=args.seed, quiet=args.quiet)
    if not args.quiet:
        print(told(made))
    return 0


def label_all(
    index: "Index", labels: "Labels", features: list[int], *, seed: int = 0, quiet: bool = True,
    display: "Display | None" = None, first: int = 0, ready: "Callable[[], None]" = lambda: None,
) -> "list[Label]":
    """Label features and write the labels as they are made, so that an interruption loses few.

    Args:
        index: of the run.
        labels: its own.
        features: in the order in which they are labelled.
        seed: of the examples and baselines.
        quiet: no progress display, where `display` gives none.
        display: one of further work.
        first: so many features, after which `ready` is called, once their labels are written.
        ready: see there.

    Raises:
        SaescopeError: the index was made from other weights than the run has now, or has no text, or the run's folder
            cannot be written.
    """
    from analysis.labels.automatic import Explainer, check_can_label
    from training.display import Display

    check_can_label(index, labels)
    explainer, made, waiting = Explainer(index, seed=seed), [], []
    with (display or Display(quiet=quiet)).task("labelling", len(features), "features") as task:
        for i, feature in enumerate(features, 1):
            one = explainer.label(feature)
            waiting += [one] if one is not None else []
            if len(waiting) >= _AT_ONCE or i in (first, len(features)):
                labels.put(waiting)
                made += waiting
                waiting = []
            task.advance(1)
            if i == first:
                ready()
    return made


def told(made: "list[Label]") -> str:
    """What came of a labelling, in words: scores against the baseline, with the number of examples."""
    scored = [(one.score, one.baseline) for one in made if one.score is not None and one.baseline is not None]
    if not scored:
        return f"{len(made):,} labels, none scored: too few held-out examples"
    mean, base = (sum(pair[i] for pair in scored) / len(scored) for i in (0, 1))
    above = sum(score > baseline for score, baseline in scored) / len(scored)
    n = sum(len(one.judged) for one in made)
    return (
        f"{len(made):,} labels, {len(scored):,} scored on {n:,} held-out examples: balanced accuracy {mean:.3f}, another "
        f"feature's label on the same examples {base:.3f}; {above:.0%} of labels beat theirs"
    )


def export(argv: list[str]) -> int:
    """Write features to one file: HTML that opens without Python or network, CSV or JSON."""
    parser = argparse.ArgumentParser(
        "sae export", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write features to one file: HTML that opens without Python, network or scripts, or CSV, or JSON; the "
        "file's ending says which.",
        epilog="examples:\n  sae export runs/quickstart --features 12,40 --out two.html\n"
        "  sae export runs/quickstart --list verbs --out verbs.csv",
    )
    _common(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--features", metavar="LIST", help="such as 12,40-60")
    which.add_argument("--list", metavar="NAME", help="a list that was kept in the dashboard")
    parser.add_argument("--out", type=user_path, required=True, help="ends in .html, .csv or .json")
    args = parser.parse_args(argv)
    index, labels = _open(args)
    if args.list is not None and args.list not in labels.lists():
        known = ", ".join(labels.lists()) or "none"
        raise SaescopeError(f"There is no list {args.list!r} in {args.run}; there are: {known}.")
    features = labels.lists()[args.list] if args.list is not None else numbers(args.features, index.d_sae)
    title = args.list or f"Features of {args.run.resolve().name}"
    write(index, labels, features, args.out, title=title)
    print(args.out)
    return 0


def write(index: "Index", labels: "Labels | None", features: list[int], out: Path, *, title: str) -> None:
    """Features as one file.

    Args:
        index: an open index.
        labels: of the run, or None.
        features: in this order.
        out: ends in `.html`, `.csv` or `.json`; replaced if it is there.
        title: of the page.

    Raises:
        SaescopeError: another ending, or no such feature.
    """
    from analysis.export import cards
    from analysis.render.export import page
    from sae.io.files import write_bytes

    writers = {".html": lambda found: page(found, title), ".csv": cards.as_csv, ".json": cards.as_json}
    if out.suffix not in writers:
        raise SaescopeError(f"{out} ends in {out.suffix or 'nothing'}; features can be written to .html, .csv or .json.")
    write_bytes(out, writers[out.suffix](cards.cards(index, features, labels)).encode())


def numbers(text: str, d_sae: int) -> list[int]:
    """`12,40-42` as 12, 40, 41, 42.

    Raises:
        SaescopeError: something else, or a number that no feature has.
    """
    out: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise SaescopeError(f"{part.strip()!r} is no feature or range of features; write them as 12,40-60.")
        if int(last or first) >= d_sae:
            raise SaescopeError(f"There is no feature {int(last or first)}; this run has 0 to {d_sae - 1}.")
        if int(first) > int(last or first):
            raise SaescopeError(f"{part.strip()!r} is no range of features: it ends before it begins.")
        out += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(out))


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, help="the folder of a run that has an index")
    parser.add_argument("--index", help="which index of the run (default: default)")


def _open(args: argparse.Namespace) -> "tuple[Index, Labels]":
    from analysis.index import open_index
    from analysis.labels.store import Labels

    run = args.run
    return open_index(run / "index" / args.index if args.index else run), Labels(run)
