"""An intervention on the prompt that a saved circuit shows, with the model and the SAEs that it names."""

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
    """A token as text, its logit less the mean of all logits, and its probability."""

    token: str
    logit: float
    probability: float


@dataclass(frozen=True)
class Behind:
    """A node behind those that were changed: its value as it was, as it became, and as first order says it becomes."""

    node: str
    before: float
    after: float
    predicted: float


@dataclass(frozen=True)
class Steered:
    """What became of the next token.

    Attributes:
        baseline, steered: the most probable tokens.
        logit: the token that was most probable, as text; the numbers are its logit less the mean of all logits.
        before, after, predicted: that number as it was, as it became, and as first order says it becomes.
        behind: the features to which the largest edges of those that were changed lead, the largest change first.
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
    """Multiply features (errors, skip paths) of a circuit by a number at their positions, or hold features at a value.

    Args:
        circuit: one that was found here: its SAEs' runs have to be there as they were.
        nodes: of the circuit.
        times: 0 takes them away, 1 leaves them, 2 doubles them.
        maxima: the largest value of each node's feature over a corpus, which its index knows: then each feature is held at
            `times` that value.
        root: folder that the runs' names are relative to; None is the current one.
        n: how many tokens are given, and nodes behind.

    Raises:
        SaescopeError: a graph of another tool; runs that are missing or changed; tokens, logits or nodes summed over
            positions of prompts that are not known; as `intervene`.
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
    """What is done to nodes; `moved` are the same by the model's sites, in the same order."""
    if maxima is None:
        return [Intervention(moved, "scale", times)]
    assert len(maxima) == len(nodes), (len(maxima), len(nodes))
    return [Intervention(moved.take(np.array([i])), "clamp", times * largest) for i, largest in enumerate(maxima)]


def _behind(circuit: Circuit, nodes: Nodes, n: int) -> Nodes:
    """The features of SAEs at the ends of the largest edges out of some nodes, none of those nodes themselves."""
    mine, sae = set(nodes.triples), np.array([bool(info.sae) for info in circuit.sites])
    source = np.array([triple in mine for triple in circuit.nodes.triples], dtype=bool)
    size = np.zeros(len(circuit.nodes))
    inside = (circuit.target != OUTPUT) & source[circuit.source] & ~source[circuit.target]
    np.maximum.at(size, circuit.target[inside], np.nan_to_num(np.abs(circuit.weight[inside])))
    size[~sae[circuit.nodes.site] | ~circuit.nodes.features] = 0
    order = np.argsort(-size, kind="stable")[:n]
    return circuit.nodes.take(np.sort(order[size[order] > 0]))


def _changed(circuit: Circuit, behind: Nodes, found: Intervened) -> list[Behind]:
    """Those that were watched, the largest change first."""
    numbers = (found.values.before, found.values.after, found.values.predicted)
    columns = [one.double().mean(0).tolist() for one in numbers]
    rows = [Behind(name_of(circuit.sites, *triple), *row)
            for triple, *row in zip(behind.triples, *columns, strict=True)]
    return sorted(rows, key=lambda row: -abs(row.after - row.before))


def open_circuit_model(circuit: Circuit, root: Path | None = None) -> CircuitModel:
    """The model of a circuit with its SAEs.

    Raises:
        SaescopeError: a circuit that names no runs, or runs that are missing or hold other SAEs by now.
    """
    wanted = {info.site: info for info in circuit.sites if info.sae}
    lost = [info.name for info in wanted.values() if info.run is None]
    if not wanted or lost:
        raise SaescopeError(
            f"The circuit {circuit.name} names no runs whose SAEs could be loaded here, so it can be looked at and no more."
        )
    runs = [str(Path(info.run) if root is None else root / info.run) for info in wanted.values() if info.run]
    trained = open_saes(runs)
    model = open_model(trained)
    spliced, infos = circuit_model(trained, model)
    changed = [info.name for info in infos if info.site not in wanted or info.sae != wanted[info.site].sae]
    if changed:
        raise SaescopeError(f"The SAE at {changed[0]} is not the one that the circuit {circuit.name} was found with.")
    return spliced


def prompt_tokens(circuit: Circuit, model: CircuitModel) -> Int64[Tensor, " n_ctx"]:
    """The tokens of the prompt that a circuit shows.

    Raises:
        SaescopeError: the circuit shows none.
    """
    if "tokens" in circuit.task:
        return torch.tensor(circuit.task["tokens"], dtype=torch.int64)
    text = "".join(circuit.prompt[1 if model.model.prepend_bos else 0 :])
    tokens = torch.tensor(encode(model.model, [text])[0]) if text else torch.zeros(0, dtype=torch.int64)
    if not text or len(tokens) != len(circuit.prompt):
        raise SaescopeError(f"The circuit {circuit.name} shows no prompt whose tokens are known; its task has several.")
    return tokens


def _examples(model: CircuitModel, tokens: Int64[Tensor, "1 n_ctx"]) -> Examples:
    """The prompt, whose right answer is what the model says."""
    plain = plain_examples(model, tokens)
    top = model.model.last_logits(tokens)[:, -1].argmax(-1, keepdim=True).cpu()
    return Examples(plain.clean, None, top, plain.wrong, plain.keep)


def _logit(logits: Float[Tensor, "n_examples d_vocab"], examples: Examples) -> Float[Tensor, " n_examples"]:
    return logits.gather(1, examples.right)[:, 0] - logits.mean(1)


def _of_model(circuit: Circuit, model: CircuitModel, nodes: Nodes) -> Nodes:
    """The same nodes, in the same order, by the model's own sites: both count them in causal order."""
    index = {i: model.index[info.site] for i, info in enumerate(circuit.sites) if info.site in model.index}
    others = [i for i in set(nodes.site.tolist()) if i not in index]
    if others:
        raise SaescopeError(
            f"Nodes of {circuit.sites[others[0]].name} are no features of an SAE, so nothing is done to them: unpin them."
        )
    found = [(index[site], position, feature) for site, position, feature in nodes.triples]
    assert found == sorted(found), "sites are in causal order"
    return Nodes.of(found)


def _top(logits: Float[Tensor, " d_vocab"], decode: Callable[[list[int]], str], n: int) -> list[Likely]:
    shares, centred = logits.double().softmax(0), logits.double() - logits.double().mean()
    top = shares.topk(n).indices.tolist()
    return [Likely(decode([token]), float(centred[token]), float(shares[token])) for token in top]
