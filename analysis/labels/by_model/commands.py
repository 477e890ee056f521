"""`sae label --with`: label with a language model."""

import argparse
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from sae.errors import SaescopeError

if TYPE_CHECKING:
    from analysis.index import Index
    from analysis.labels.by_model.chat import Chat
    from analysis.labels.by_model.labelling import Cost, Labelling, Outcome, Plan
    from analysis.labels.store import Labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sae label --with`."""
    group = parser.add_argument_group(
        "labels by a language model",
        "The model sees examples of a feature and describes what they have in common. Then it predicts held-out examples\n"
        "from that label, and from another feature's. Each label is saved as it arrives, so you can stop at any time and\n"
        "resume with the same command. The API key is read from SAESCOPE_API_KEY, or OPENAI_API_KEY for api.openai.com.")
    group.add_argument("--with", dest="by", metavar="WHO",
                       help="URL of an OpenAI-compatible server (https://api.openai.com/v1, http://localhost:11434/v1), "
                       "or a local model, named as in configs (smollm2-135m, hub:ORG/NAME, local:DIR)")
    group.add_argument("--model", metavar="NAME", help="model on the server")
    group.add_argument("--price-in", type=float, metavar="X", help="price per million input tokens, to show the cost")
    group.add_argument("--price-out", type=float, metavar="X", help="price per million output tokens")
    group.add_argument("--yes", action="store_true", help="use the server without asking for confirmation")
    group.add_argument("--examples", type=int, default=20, metavar="N",
                       help="excerpts shown per feature (default: %(default)s)")
    group.add_argument("--unscored", action="store_true",
                       help="don't score the labels; scoring is about two thirds of the cost")
    group.add_argument("--answer-tokens", type=int, default=200, metavar="N",
                       help="maximum tokens per answer (default: %(default)s); reasoning models need a few thousand")
    group.add_argument("--parallel", type=int, default=4, metavar="N", help="concurrent requests (default: %(default)s)")


def check_arguments(args: argparse.Namespace) -> None:
    """Validate the arguments.

    Raises:
        SaescopeError: an argument is missing, contradictory or out of range.
    """
    if args.by is None:
        if args.model is not None:
            raise SaescopeError(f"--model {args.model} needs a server: add --with URL.")
        return
    if is_url(args.by) and not args.model:
        raise SaescopeError(f"{args.by} needs a model: add --model NAME.")
    if not is_url(args.by) and args.model:
        raise SaescopeError(f"--model is for servers, and {args.by!r} is not a URL such as https://api.openai.com/v1.")
    for name, most in (("examples", 200), ("answer_tokens", 100_000), ("parallel", 64)):
        if not 1 <= getattr(args, name) <= most:
            raise SaescopeError(f"--{name.replace('_', '-')} {getattr(args, name)}; it must be between 1 and {most:,}.")
    prices = args.price_in, args.price_out
    if (prices[0] is None) != (prices[1] is None) or not all(price is None or 0 <= price < 1e6 for price in prices):
        raise SaescopeError("Give both --price-in and --price-out, each per million tokens, or neither.")


def is_url(text: str) -> bool:
    """Whether `text` is a server's URL rather than a model's name."""
    return "://" in text


def label_by_model(args: argparse.Namespace, index: "Index", labels: "Labels", features: list[int]) -> None:
    """Show the expected cost, ask for confirmation, label, and print a summary."""
    from analysis.labels.by_model.labelling import Labelling, Settings

    settings = Settings(args.seed, args.examples, not args.unscored, args.answer_tokens)
    with closing(_chat(args)) as chat:
        _label(args, Labelling(index, labels, chat, settings), features)


def _label(args: argparse.Namespace, labelling: "Labelling", features: list[int]) -> None:
    plan = labelling.plan(features, anew=args.replace)
    if not plan.unlabelled and not plan.unscored:
        _print(args, f"{plan.n_done:,} features have a label from {labelling.chat.source} or no examples to label from.")
        return
    _print(args, forecast(labelling, plan, args.price_in, args.price_out))
    if is_url(args.by) and not args.yes and not _agreed():
        print("No requests were sent.")
        return
    from training.display import Display

    try:
        labelling.run(plan, Display(quiet=args.quiet))
    finally:
        _print(args, told(labelling.outcome, args.price_in, args.price_out))


def forecast(labelling: "Labelling", plan: "Plan", price_in: float | None = None, price_out: float | None = None) -> str:
    """Describe the planned requests and their expected cost."""
    cost, chat = labelling.cost(plan), labelling.chat
    lines = [f"{chat.source}: {len(plan.unlabelled):,} features to label" + (
        f", {len(plan.unlabelled) + len(plan.unscored):,} labels to score" if labelling.settings.scored else "")]
    lines += [f"  {plan.n_done:,} features are done or have no examples"] if plan.n_done else []
    lines += [f"  {plan.n_replaced:,} other automatic labels will be replaced"] if plan.n_replaced else []
    lines.append(
        f"  about {cost.n_requests:,} requests, {_round(cost.n_in):,} input and {_round(cost.n_out):,} output tokens, "
        f"counted {chat.counted}; reasoning models produce more output")
    if price_in is not None and price_out is not None:
        lines.append(f"  about {_money(cost, price_in, price_out)} at {price_in:g} and {price_out:g} per million tokens")
    return "\n".join(lines)


def told(outcome: "Outcome", price_in: float | None = None, price_out: float | None = None) -> str:
    """Summarise a labelling."""
    from analysis.labels.commands import told as scores
    from analysis.render.text import count

    made = list(outcome.made.values())
    scored = any(one.score is not None for one in made)
    cost, about = outcome.cost, "" if outcome.counted else "about "
    money = f", {about}{_money(cost, price_in, price_out)}" if price_in is not None and price_out is not None else ""
    lines = [
        scores(made) if scored else f"{count(len(made), 'label')}, none scored",
        f"{cost.n_requests:,} requests, {about}{cost.n_in:,} input tokens, {cost.n_out:,} output tokens{money}",
    ]
    for features, what in ((outcome.wordless, "the answer had no label, perhaps because --answer-tokens is too small"),
                           (outcome.unjudged, "the scoring answer was not a list of examples, so the label has no score")):
        lines += [f"for {count(len(features), 'feature')} {what}: {_some(features)}"] if features else []
    lines += [f"the last refusal: {outcome.refusal}"] if outcome.refusal else []
    return "\n".join(lines)


def _chat(args: argparse.Namespace) -> "Chat":
    if is_url(args.by):
        from analysis.labels.by_model.endpoint import Endpoint

        return Endpoint(args.by, args.model, n_parallel=args.parallel)
    from analysis.labels.by_model.local import LocalModel

    return LocalModel(args.by)


def _agreed() -> bool:
    """Ask the user for confirmation.

    Raises:
        SaescopeError: there is no terminal.
    """
    if not sys.stdin.isatty():
        raise SaescopeError("There is no terminal to ask for confirmation; add --yes.")
    return input("Continue? [y/N] ").strip().lower() in ("y", "yes")


def _print(args: argparse.Namespace, text: str) -> None:
    if not args.quiet:
        print(text, flush=True)


def _money(cost: "Cost", price_in: float, price_out: float) -> str:
    return f"{cost.money(price_in, price_out):,.4f}".rstrip("0").rstrip(".")


def _round(n: int) -> int:
    """Round an estimate to two significant digits."""
    return int(float(f"{n:.1e}"))


def _some(features: list[int]) -> str:
    return ", ".join(map(str, features[:10])) + (", …" if len(features) > 10 else "")
