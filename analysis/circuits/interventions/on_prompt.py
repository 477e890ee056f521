"""An intervention on the prompt that a saved circuit shows, with the model and the SAEs that it names."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analysis.circuits.graph import Circuit
from analysis.circuits.interventions.intervene import intervene, plain_examples
from analysis.circuits.interventions.moves import Intervention
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import Nodes
from analysis.circuits.sites import circuit_model, open_model, open_saes
from analysis.circuits.tasks.examples import Examples
from analysis.circuits.tasks.tokens import encode
from analysis.trained import LOCK
from sae.errors import SaescopeError


@dataclass(frozen=True)
class Steered:
    """What became of the next token.

    Attributes:
        baseline, steered: the most probable tokens as text, with their probabilities.
        logit: the token that was most probable, as text; the numbers are its logit less the mean of all logits.
        before, after, predicted: that number as it was, as it became, and as first order says it becomes.
    """

    baseline: list[tuple[str, float]]
    steered: list[tuple[str, float]]
    logit: str
    before: float
    after: float
    predicted: float


def steer_prompt(circuit: Circuit, nodes: Nodes, times: float, *, root: Path | None = None, n: int = 8) -> Steered:
    """Multiply features (errors, skip paths) of a circuit by a number at their positions.

    Args:
        circuit: one that was found here: its SAEs' runs have to be there as they were.
        nodes: of the circuit.
        times: 0 takes them away, 1 leaves them, 2 doubles them.
        root: folder that the runs' names are relative to; None is the current one.
        n: how many tokens are given.

    Raises:
        SaescopeError: a graph of another tool; runs that are missing or changed; tokens, logits or nodes summed over
            positions of prompts that are not known; as `intervene`.
    """
    with LOCK:
        model = open_circuit_model(circuit, root)
        tokens = prompt_tokens(circuit, model)[None]
        found = intervene(model, _examples(model, tokens), [Intervention(_of_model(circuit, model, nodes), "scale", times)],
                          _logit)
    assert found.metric is not None
    decode, top = model.model.tokenizer.decode, int(found.before[0].argmax())
    numbers = (found.metric.before, found.metric.after, found.metric.predicted)
    before, after, predicted = (float(one.mean()) for one in numbers)
    tops = [_top(logits[0], decode, n) for logits in (found.before, found.after)]
    return Steered(tops[0], tops[1], decode([top]), before, after, predicted)


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
    """The same nodes by the model's own sites."""
    index = {i: model.index[info.site] for i, info in enumerate(circuit.sites) if info.site in model.index}
    others = [i for i in set(nodes.site.tolist()) if i not in index]
    if others:
        raise SaescopeError(
            f"Nodes of {circuit.sites[others[0]].name} are no features of an SAE, so nothing is done to them: unpin them."
        )
    return Nodes.of([(index[site], position, feature) for site, position, feature in nodes.triples])


def _top(logits: Float[Tensor, " d_vocab"], decode: object, n: int) -> list[tuple[str, float]]:
    found = logits.double().softmax(0).topk(n)
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [(decode([token]), share) for token, share in pairs]  # type: ignore[operator]
