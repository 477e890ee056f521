"""Intervene on the prompt of a saved circuit, with the circuit's model and SAEs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analysis.circuits.graph import Circuit, name_of
from analysis.circuits.interventions.intervene import Intervened, intervene, plain_examples
from analysis.circuits.interventions.moves import Intervention
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import OUTPUT, Nodes
from analysis.circuits.sites import circuit_model, open_model, open_saes
from analysis.circuits.tasks.examples import Examples
from analysis.circuits.tasks.tokens import encode
from analysis.trained import LOCK
from sae.errors import SaescopeError


@dataclass(frozen=True)
class Likely:
    """A token as text, its logit minus the mean of all logits, and its probability."""

    token: str
    logit: float
    probability: float


@dataclass(frozen=True)
class Behind:
    """A node downstream of those changed: its value before, after, and the first-order prediction of after."""

    node: str
    before: float
    after: float
    predicted: float


@dataclass(frozen=True)
class Steered:
    """Next-token predictions before and after steering.

    Attributes:
        baseline, steered: the most probable tokens before and after.
        logit: the most probable token before, as text; the numbers are its logit minus the mean of all logits.
        before, after, predicted: that logit before, after, and the first-order prediction of after.
        behind: downstream features at the ends of the largest edges, largest change first.
    """

    baseline: list[Likely]
    steered: list[Likely]
    logit: str
    before: float
    after: float
    predicted: float
    behind: list[Behind]


def steer_prompt(
    circuit: Circuit, nodes: Nodes, times: float, *, maxima: Sequence[float] | None = None, root: Path | None = None,
    n: int = 8,
) -> Steered:
    """Scale features (or errors, skip paths) of a circuit at their positions, or clamp features to a value.

    Args:
        circuit: a circuit found by Saescope, whose SAE runs still exist unchanged.
        nodes: nodes of the circuit.
        times: scaling factor: 0 ablates, 1 leaves unchanged, 2 doubles.
        maxima: the largest value of each node's feature over a corpus (from its index); then each feature is clamped to
            `times` that value.
        root: folder that run names are relative to; None is the current one.
        n: number of tokens, and of downstream nodes, to return.

    Raises:
        SaescopeError: a graph from another tool; runs that are missing or changed; nodes that are tokens, logits or summed
            over positions of unknown prompts; as `intervene`.
    """
    behind = _behind(circuit, nodes, n)
    with LOCK:
        model = open_circuit_model(circuit, root)
        tokens = prompt_tokens(circuit, model)[None]
        changes = _changes(_of_model(circuit, model, nodes), nodes, times, maxima)
        found = intervene(model, _examples(model, tokens), changes, _logit, watch=_of_model(circuit, model, behind))
    assert found.metric is not None
    decode, top = model.model.tokenizer.decode, int(found.before[0].argmax())
    numbers = (found.metric.before, found.metric.after, found.metric.predicted)
    before, after, predicted = (float(one.mean()) for one in numbers)
    tops = [_top(logits[0], decode, n) for logits in (found.before, found.after)]
    return Steered(tops[0], tops[1], decode([top]), before, after, predicted, _changed(circuit, behind, found))


def _changes(moved: Nodes, nodes: Nodes, times: float, maxima: Sequence[float] | None) -> list[Intervention]:
    """Interventions on nodes; `moved` are the same nodes by the model's site indices, in the same order."""
    if maxima is None:
        return [Intervention(moved, "scale", times)]
    assert len(maxima) == len(nodes), (len(maxima), len(nodes))
    return [Intervention(moved.take(np.array([i])), "clamp", times * largest) for i, largest in enumerate(maxima)]


def _behind(circuit: Circuit, nodes: Nodes, n: int) -> Nodes:
    """SAE features at the ends of the largest edges out of some nodes, excluding those nodes."""
    mine, sae = set(nodes.triples), np.array([bool(info.sae) for info in circuit.sites])
    source = np.array([triple in mine for triple in circuit.nodes.triples], dtype=bool)
    size = np.zeros(len(circuit.nodes))
    inside = (circuit.target != OUTPUT) & source[circuit.source] & ~source[circuit.target]
    np.maximum.at(size, circuit.target[inside], np.nan_to_num(np.abs(circuit.weight[inside])))
    size[~sae[circuit.nodes.site] | ~circuit.nodes.features] = 0
    order = np.argsort(-size, kind="stable")[:n]
    return circuit.nodes.take(np.sort(order[size[order] > 0]))


def _changed(circuit: Circuit, behind: Nodes, found: Intervened) -> list[Behind]:
    """The watched nodes, largest change first."""
    numbers = (found.values.before, found.values.after, found.values.predicted)
    columns = [one.double().mean(0).tolist() for one in numbers]
    rows = [Behind(name_of(circuit.sites, *triple), *row)
            for triple, *row in zip(behind.triples, *columns, strict=True)]
    return sorted(rows, key=lambda row: -abs(row.after - row.before))


def open_circuit_model(circuit: Circuit, root: Path | None = None) -> CircuitModel:
    """Open a circuit's model with its SAEs.

    Raises:
        SaescopeError: the circuit names no runs, or its runs are missing or contain different SAEs now.
    """
    wanted = {info.site: info for info in circuit.sites if info.sae}
    lost = [info.name for info in wanted.values() if info.run is None]
    if not wanted or lost:
        raise SaescopeError(
            f"The circuit {circuit.name} names no runs to load SAEs from, so it can be viewed but not run."
        )
    runs = [str(Path(info.run) if root is None else root / info.run) for info in wanted.values() if info.run]
    trained = open_saes(runs)
    model = open_model(trained)
    spliced, infos = circuit_model(trained, model)
    changed = [info.name for info in infos if info.site not in wanted or info.sae != wanted[info.site].sae]
    if changed:
        raise SaescopeError(f"The SAE at {changed[0]} is not the one the circuit {circuit.name} was found with.")
    return spliced


def prompt_tokens(circuit: Circuit, model: CircuitModel) -> Int64[Tensor, " n_ctx"]:
    """Tokens of a circuit's prompt.

    Raises:
        SaescopeError: the circuit has no single prompt.
    """
    if "tokens" in circuit.task:
        return torch.tensor(circuit.task["tokens"], dtype=torch.int64)
    text = "".join(circuit.prompt[1 if model.model.prepend_bos else 0 :])
    tokens = torch.tensor(encode(model.model, [text])[0]) if text else torch.zeros(0, dtype=torch.int64)
    if not text or len(tokens) != len(circuit.prompt):
        raise SaescopeError(f"The circuit {circuit.name} has no single prompt with known tokens; its task has several.")
    return tokens


def _examples(model: CircuitModel, tokens: Int64[Tensor, "1 n_ctx"]) -> Examples:
    """The prompt as an example; the right answer is the model's own."""
    plain = plain_examples(model, tokens)
    top = model.model.last_logits(tokens)[:, -1].argmax(-1, keepdim=True).cpu()
    return Examples(plain.clean, None, top, plain.wrong, plain.keep)


def _logit(logits: Float[Tensor, "n_examples d_vocab"], examples: Examples) -> Float[Tensor, " n_examples"]:
    return logits.gather(1, examples.right)[:, 0] - logits.mean(1)


def _of_model(circuit: Circuit, model: CircuitModel, nodes: Nodes) -> Nodes:
    """The same nodes, in the same order, by the model's site indices; both are in causal order."""
    index = {i: model.index[info.site] for i, info in enumerate(circuit.sites) if info.site in model.index}
    others = [i for i in set(nodes.site.tolist()) if i not in index]
    if others:
        raise SaescopeError(
            f"Nodes of {circuit.sites[others[0]].name} are not SAE features, so they can't be steered: unpin them."
        )
    found = [(index[site], position, feature) for site, position, feature in nodes.triples]
    assert found == sorted(found), "sites are in causal order"
    return Nodes.of(found)


def _top(logits: Float[Tensor, " d_vocab"], decode: Callable[[list[int]], str], n: int) -> list[Likely]:
    shares, centred = logits.double().softmax(0), logits.double() - logits.double().mean()
    top = shares.topk(n).indices.tolist()
    return [Likely(decode([token]), float(centred[token]), float(shares[token])) for token in top]
