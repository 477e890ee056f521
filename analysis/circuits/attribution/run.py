"""Trace a prompt: from a text and SAE runs to a saved attribution graph."""

import resource
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from analysis.circuits.attribution.attribute import Limits, attribute_steps, cost
from analysis.circuits.attribution.gap import gap_steps
from analysis.circuits.attribution.linear import LinearPrompt, Mlps, Skips
from analysis.circuits.attribution.steps import Result, at_once
from analysis.circuits.formats.store import save_circuit
from analysis.circuits.graph import Circuit
from analysis.circuits.sites import circuit_model, open_model, open_saes
from analysis.circuits.tasks.tokens import encode
from analysis.vocabulary import Vocabulary
from sae.errors import SaescopeError
from sae.io.paths import user_path
from training.display import Display, Task
from training.model.language_model import Model
from training.model.token_bytes import token_bytes


@dataclass(frozen=True)
class TraceOptions:
    """Options of an attribution graph.

    Attributes:
        saes: run folders, or globs.
        model: language model; None is the one the SAEs were trained on.
        device: device.
        dtype: compute dtype.
        name: the graph is saved in DIR/NAME.
        dir: folder of circuits; None saves nothing.
        root: folder that `saes`, `dir` and the graph's run names are relative to; None is the current one.
        mlps, skips: how the linear forward handles MLPs without a dictionary and skip paths; see `linear`.
        limits: size limits of the graph.
        node_share, edge_share: shares of influence that pruning keeps.
        n_gap: interventions that measure how much frozen patterns miss; 0 skips this.
        copies: targets per backward pass.
        max_tokens: longest prompt accepted; memory grows with its square. None accepts what the model does.
    """

    saes: Sequence[str]
    model: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    name: str = "trace"
    dir: str | None = "circuits"
    root: Path | None = None
    mlps: Mlps | None = None
    skips: Skips = "linear"
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    node_share: float = 0.8
    edge_share: float = 0.98
    n_gap: int = 20
    copies: int = 16
    max_tokens: int | None = None


@dataclass(frozen=True)
class Progress:
    """Progress of a graph: `done` of `total` units of the current work; `said` is a message to show once."""

    doing: str
    done: int
    total: int
    unit: str
    said: str = ""


def open_prompt(text: str, options: TraceOptions) -> LinearPrompt:
    """Open the SAEs and the model, and decompose a text.

    Raises:
        SaescopeError: the text is empty, the SAEs don't fit together, or as `LinearPrompt`.
    """
    if not text.strip():
        raise SaescopeError("The prompt is empty; give some text.")
    if not options.saes:
        raise SaescopeError("No SAE is given; choose at least one run.")
    root = options.root
    trained = open_saes([str(user_path(run) if root is None else root / run) for run in options.saes])
    model = open_model(trained, options.model, options.device, options.dtype)
    spliced, infos = circuit_model(trained, model)
    if root is not None:
        infos = tuple(replace(info, run=_from(root, str(info.run))) for info in infos)
    tokens = torch.tensor(encode(model, [text])[0])
    model.check_length(len(tokens))
    if options.max_tokens is not None and len(tokens) > options.max_tokens:
        raise SaescopeError(f"The prompt has {len(tokens)} tokens; the limit here is {options.max_tokens}.")
    return LinearPrompt(spliced, tokens, mlps=options.mlps, skips=options.skips, infos=infos, copies=options.copies)


def _from(root: Path, run: str) -> str:
    path = Path(run)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else run


def trace_prompt(text: str, options: TraceOptions, *, quiet: bool = False) -> Circuit:
    """Compute and save a prompt's pruned attribution graph, its scores, and how much frozen patterns miss.

    Raises:
        SaescopeError: as `open_prompt`; or as `save_circuit`.
    """
    display, began = Display(quiet=quiet), time.perf_counter()
    with ExitStack() as stack:
        tasks: dict[str, Task] = {}

        def show(now: Progress) -> None:
            if now.said:
                display.say(now.said)
            if now.doing not in tasks:
                stack.close()
                tasks[now.doing] = stack.enter_context(display.task(now.doing, now.total, now.unit))
            tasks[now.doing].advance(now.done - tasks[now.doing].done)

        circuit = at_once(trace_steps(text, options), show)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    display.say(f"took {time.perf_counter() - began:.0f} s, peak memory {peak:.1f} GB")
    return circuit


def trace_steps(text: str, options: TraceOptions) -> Generator[Progress, None, Circuit]:
    """`trace_prompt` step by step (the first step loads the model); yields progress, and saves at the end."""
    linear = open_prompt(text, options)
    said = (f"{len(linear.tokens)} tokens, {int((linear.nodes.feature >= 0).sum()) - len(linear.tokens):,} active features "
            f"at {len(linear.circuit.sites)} sites; {cost(linear, options.limits)}")
    now = Progress("attribution", 0, _n_targets(linear, options.limits), "targets", said)
    yield now
    texts = pieces(linear.circuit.model, linear.tokens.tolist())
    graph = yield from _counted(attribute_steps(linear, options.limits, name=options.name, pieces=texts), now)
    circuit = graph.circuit(options.node_share, options.edge_share)
    if options.n_gap:
        n = min(options.n_gap, int(graph.kinds.features.sum()))
        gap = yield from _counted(gap_steps(linear, graph, n), Progress("patterns live", 0, 3 * n, "interventions"))
        found = {**gap.summary(), "logit": gap.logit, "interventions": gap.rows()}
        circuit = replace(circuit, scores={**circuit.scores, "frozen_patterns": found})
    if options.dir is not None:
        folder = user_path(options.dir) / options.name
        save_circuit(circuit, folder if options.root is None else options.root / folder)
    return circuit


def _counted(steps: Generator[int, None, Result], now: Progress) -> Generator[Progress, None, Result]:
    """Turn counts of newly finished units into running progress."""
    done = 0
    while True:
        try:
            done += next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
        yield replace(now, done=done, said="")


def pieces(model: Model, tokens: Sequence[int]) -> list[str]:
    """The text of each token."""
    return list(Vocabulary(token_bytes(model.tokenizer)).pieces(list(tokens)))


def _n_targets(linear: LinearPrompt, limits: Limits) -> int:
    """Number of targets: features, and the logits that become nodes."""
    features = int(((linear.nodes.site > 0) & (linear.nodes.feature >= 0)).sum())
    probability = linear.logits.softmax(0).topk(min(limits.max_logits, len(linear.logits))).values.cumsum(0)
    return min(limits.max_features, features) + min(int((probability < limits.logit_share).sum()) + 1, len(probability))
