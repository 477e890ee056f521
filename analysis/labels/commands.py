"""`sae label` and `sae export`: thin wrappers over functions that notebooks can call too."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.labels.by_model.commands import add_arguments, check_arguments, label_by_model
from sae.cli import HelpFormatter
from sae.errors import SaescopeError
from sae.io.paths import user_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from analysis.index import Index
    from analysis.labels.store import Label, Labels
    from training.display import Display

_AT_ONCE = 256
"""Labels per transaction: the most that an interruption can lose."""


def label(argv: list[str]) -> int:
    """Label features automatically, by rules or by a language model, scored on held-out examples."""
    parser = argparse.ArgumentParser(
        "sae label", formatter_class=HelpFormatter,
        description="Label features with rules about the tokens they fire on, or with a language model (--with). Labels "
        "are scored by detection on held-out examples, against another feature's label. Your own labels never change.",
        epilog="examples:\n  sae label runs/quickstart\n  sae label runs/quickstart --top 500\n"
        "  sae label runs/quickstart --features 12,40-60\n"
        "  sae label runs/quickstart --with http://localhost:11434/v1 --model qwen3:8b --top 10\n"
        "  sae label runs/quickstart --with https://api.openai.com/v1 --model gpt-4o-mini --price-in 0.15 --price-out 0.6\n"
        "  sae label runs/quickstart --with smollm2-135m --top 3",
    )
    _common(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--top", type=int, metavar="N", help="only the N features that fire most often")
    which.add_argument("--features", metavar="LIST", help="only these features, such as 12,40-60")
    parser.add_argument("--seed", type=int, default=0, help="seed for examples and baselines (default: %(default)s)")
    parser.add_argument("--replace", action="store_true", help="also replace labels written by a language model")
    parser.add_argument("--quiet", action="store_true", help="don't show progress")
    add_arguments(parser)
    args = parser.parse_args(argv)
    check_arguments(args)
    index, labels = _open(args)
    if args.top is not None and args.top < 1:
        raise SaescopeError(f"--top {args.top} leaves no features to label; give at least 1.")
    if args.features:
        features = numbers(args.features, index.d_sae)
    else:
        alive = index.top("density", where="n_active > 0", limit=args.top or index.d_sae, columns=["feature"])
        features = alive["feature"].to_pylist()
    if args.by is not None:
        label_by_model(args, index, labels, features)
        return 0
    # labels from a model cost money or time
    written = set() if args.replace else {one.feature for one in labels.automatic() if one.model}
    if kept := [feature for feature in features if feature in written]:
        features = [feature for feature in features if feature not in written]
        print(f"{len(kept):,} features keep their label from a language model; use --replace to replace them.")
    made = label_all(index, labels, features, seed=args.seed, quiet=args.quiet)
    if not args.quiet:
        print(told(made))
    return 0


def label_all(
    index: "Index", labels: "Labels", features: list[int], *, seed: int = 0, quiet: bool = True,
    display: "Display | None" = None, first: int = 0, ready: "Callable[[], None]" = lambda: None,
) -> "list[Label]":
    """Label features by rules and save labels in batches, so that an interruption loses few.

    Args:
        index: the run's index.
        labels: the run's labels.
        features: features to label, in this order.
        seed: seed for examples and baselines.
        quiet: no progress display; ignored if `display` is given.
        display: the display of a larger job.
        first: number of features after which `ready` is called, once their labels are saved.
        ready: callback for `first`.

    Raises:
        SaescopeError: the index is stale or has no text, or the run's folder isn't writable.
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
    """Summarise a labelling: scores against the baseline, with the number of examples."""
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
    """Write features to one file: self-contained HTML, CSV or JSON."""
    parser = argparse.ArgumentParser(
        "sae export", formatter_class=HelpFormatter,
        description="Write features to one file: HTML (opens without Python, network access or JavaScript), CSV or JSON, "
        "chosen by the file's suffix.",
        epilog="examples:\n  sae export runs/quickstart --features 12,40 --out two.html\n"
        "  sae export runs/quickstart --list verbs --out verbs.csv",
    )
    _common(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--features", metavar="LIST", help="features to export, such as 12,40-60")
    which.add_argument("--list", metavar="NAME", help="a list made in the dashboard")
    parser.add_argument("--out", type=user_path, required=True, help="output file: .html, .csv or .json")
    args = parser.parse_args(argv)
    index, labels = _open(args)
    if args.list is not None and args.list not in labels.lists():
        known = ", ".join(labels.lists()) or "none"
        raise SaescopeError(f"There is no list {args.list!r} in {args.run}; lists: {known}.")
    features = labels.lists()[args.list] if args.list is not None else numbers(args.features, index.d_sae)
    title = args.list or f"Features of {args.run.resolve().name}"
    write(index, labels, features, args.out, title=title)
    print(args.out)
    return 0


def write(index: "Index", labels: "Labels | None", features: list[int], out: Path, *, title: str) -> None:
    """Write features to one file.

    Args:
        index: an open index.
        labels: the run's labels, or None.
        features: features to write, in this order.
        out: `.html`, `.csv` or `.json` file; overwritten if it exists.
        title: title of the page.

    Raises:
        SaescopeError: the suffix is unknown, or there is no such feature.
    """
    from analysis.export import cards
    from analysis.render.export import page
    from sae.io.files import write_bytes

    writers = {".html": lambda found: page(found, title), ".csv": cards.as_csv, ".json": cards.as_json}
    if out.suffix not in writers:
        raise SaescopeError(f"{out} has suffix {out.suffix or 'none'}; features can be written to .html, .csv or .json.")
    write_bytes(out, writers[out.suffix](cards.cards(index, features, labels)).encode())


def numbers(text: str, d_sae: int) -> list[int]:
    """Parse `12,40-42` as 12, 40, 41, 42.

    Raises:
        SaescopeError: the text is invalid, or a feature doesn't exist.
    """
    out: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise SaescopeError(f"{part.strip()!r} is not a feature or range of features; write them as 12,40-60.")
        if int(last or first) >= d_sae:
            raise SaescopeError(f"There is no feature {int(last or first)}; this run has 0 to {d_sae - 1}.")
        if int(first) > int(last or first):
            raise SaescopeError(f"{part.strip()!r} is not a range of features: it ends before it begins.")
        out += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(out))


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, help="the folder of an indexed run")
    parser.add_argument("--index", help="name of the index (default: default)")


def _open(args: argparse.Namespace) -> "tuple[Index, Labels]":
    from analysis.index import open_index
    from analysis.labels.store import Labels

    run = args.run
    return open_index(run / "index" / args.index if args.index else run), Labels(run)
