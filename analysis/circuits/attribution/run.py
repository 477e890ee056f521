"""From a text and runs to a saved attribution graph."""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from analysis.circuits.attribution.attribute import Limits, attribute, cost
from analysis.circuits.attribution.gap import frozen_gap
from analysis.circuits.attribution.linear import LinearPrompt, Mlps, Skips
from analysis.circuits.formats.store import save_circuit
from analysis.circuits.graph import Circuit
from analysis.circuits.sites import circuit_model, open_model, open_saes
from analysis.circuits.tasks.tokens import encode
from analysis.vocabulary import Vocabulary
from sae.errors import SaescopeError
from sae.io.paths import user_path
from training.display import Display
from training.model.language_model import Model
from training.model.token_bytes import token_bytes


@dataclass(frozen=True)
class TraceOptions:
    """What a graph is made of.

    Attributes:
        saes: runs, or patterns of them.
        model: None takes the SAEs' own.
        device: where it runs.
        dtype: what it computes in.
        name: the graph is saved in DIR/NAME.
        dir: folder of circuits; None saves nothing.
        mlps, skips: how the linear forward takes MLPs without a dictionary and skip paths; see `linear`.
        limits: of the graph.
        node_share, edge_share: shares of influence that pruning keeps.
        n_gap: interventions that measure what frozen patterns leave out; 0 leaves that out.
        copies: targets that are followed at once.
    """

    saes: Sequence[str]
    model: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    name: str = "trace"
    dir: str | None = "circuits"
    mlps: Mlps | None = None
    skips: Skips = "linear"
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    node_share: float = 0.8
    edge_share: float = 0.98
    n_gap: int = 20
    copies: int = 16


def open_prompt(text: str, options: TraceOptions) -> LinearPrompt:
    """A text taken apart by the SAEs of runs.

    Raises:
        SaescopeError: no text, SAEs that do not fit together, or as `LinearPrompt`.
    """
    if not text:
        raise SaescopeError("The prompt is empty; give some text.")
    trained = open_saes(options.saes)
    model = open_model(trained, options.model, options.device, options.dtype)
    spliced, infos = circuit_model(trained, model)
    tokens = torch.tensor(encode(model, [text])[0])
    model.check_length(len(tokens))
    return LinearPrompt(spliced, tokens, mlps=options.mlps, skips=options.skips, infos=infos, copies=options.copies)


def trace_prompt(text: str, options: TraceOptions, *, quiet: bool = False) -> Circuit:
    """The attribution graph of a prompt, pruned, with its scores, and with what frozen patterns leave out.

    Raises:
        SaescopeError: as `open_prompt`; or as `save_circuit`.
    """
    display, began = Display(quiet=quiet), time.perf_counter()
    linear = open_prompt(text, options)
    display.say(f"{len(linear.tokens)} tokens, {int((linear.nodes.feature >= 0).sum()) - len(linear.tokens):,} active "
                f"features at {len(linear.circuit.sites)} sites; {cost(linear, options.limits)}")
    with display.task("attribution", _n_targets(linear, options.limits), "targets") as task:
        graph = attribute(
            linear, options.limits, name=options.name, pieces=pieces(linear.circuit.model, linear.tokens.tolist()),
            progress=task.advance,
        )
    circuit = graph.circuit(options.node_share, options.edge_share)
    if options.n_gap:
        n = min(options.n_gap, int(graph.kinds.features.sum()))
        with display.task("patterns live", 3 * n, "interventions") as task:
            gap = frozen_gap(linear, graph, n, progress=task.advance)
        found = {**gap.summary(), "logit": gap.logit, "interventions": gap.rows()}
        circuit = replace(circuit, scores={**circuit.scores, "frozen_patterns": found})
    if options.dir is not None:
        save_circuit(circuit, user_path(options.dir) / options.name)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    display.say(f"took {time.perf_counter() - began:.0f} s, {peak:.1f} GB at the peak")
    return circuit


def pieces(model: Model, tokens: Sequence[int]) -> list[str]:
    """The text of each token."""
    return list(Vocabulary(token_bytes(model.tokenizer)).pieces(list(tokens)))


def _n_targets(linear: LinearPrompt, limits: Limits) -> int:
    """Features, and as many logits as there will be."""
    features = int(((linear.nodes.site > 0) & (linear.nodes.feature >= 0)).sum())
    probability = linear.logits.softmax(0).topk(min(limits.max_logits, len(linear.logits))).values.cumsum(0)
    return min(limits.max_features, features) + min(int((probability < limits.logit_share).sum()) + 1, len(probability))
