"""Patch-free tracing (He et al. 2402.12201): from a logit, a feature or an attention score down to what makes it up.

One forward pass. Each step splits a number into what features, errors and tokens add to it directly, keeps the largest,
and goes on from the features among them:

    logit, feature   the terms of `LinearPrompt.edges`: the residual stream, OV of all heads, and MLPs by active neurons
    score            the pairs of `qk.score_pairs`; both features of a pair are followed

A step says which share of Σ |term| the parts have that are followed, and which errors have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float64, Int64

from analysis.circuits.attribution.linear import LinearPrompt, Target
from analysis.circuits.attribution.qk import ScorePairs, score_pairs
from sae.errors import SaescopeError


@dataclass(frozen=True)
class Score:
    """An attention score before the softmax."""

    layer: int
    head: int
    query: int
    key: int


@dataclass(frozen=True)
class Part:
    """A term of a step: a node, or a pair of them, and what it adds.

    Attributes:
        names: of the node; of a score's pair the query's and the key's.
        amount: what it adds to the step's value.
        steps: what the features among the names are made of; empty where nothing is followed.
    """

    names: tuple[str, ...]
    amount: float
    steps: tuple["Step", ...] = ()


@dataclass(frozen=True)
class Step:
    """A number taken apart.

    Attributes:
        name: of what is explained.
        value: the pre-activation, the logit less the mean of all, or the score.
        constant: what biases add.
        parts: the largest terms.
        rest: what all other terms add together.
        explained: the share of Σ |term| (constants apart) that the parts have.
        errors: the share that errors have, followed or not; of pairs, those in which one side is an error.
    """

    name: str
    value: float
    constant: float
    parts: tuple[Part, ...]
    rest: float
    explained: float
    errors: float

    def __str__(self) -> str:
        from analysis.render.trace_text import trace_lines

        return "\n".join(trace_lines(self))

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def trace(linear: LinearPrompt, start: Target | Score, *, top: int = 5, depth: int = 3) -> Step:
    """Trace a number down.

    Args:
        linear: the prompt; `mlps="neurons"` follows MLPs that have no dictionary.
        start: what is explained first.
        top: parts of a step that are followed.
        depth: steps below one another, 1 for the first alone.

    Raises:
        SaescopeError: as `score_pairs`; a feature that is not active there; less than one part or step.
    """
    if top < 1 or depth < 1:
        raise SaescopeError(f"A trace keeps at least one part of at least one step; top is {top} and depth {depth}.")
    if isinstance(start, Target):
        _check(linear, start)
    known: dict[int, _Flat] = {}
    first = _of_score(linear, start, top) if isinstance(start, Score) else _of_targets(linear, [start], top)[0]
    level = [first.nodes]
    for _ in range(depth - 1):
        nodes = sorted({node for group in level for node in group if _is_feature(linear, node)} - set(known))
        steps = _of_targets(linear, [linear.target(node) for node in nodes], top)
        known |= dict(zip(nodes, steps, strict=True))
        level = [step.nodes for step in steps]
    return _assembled(first, known, linear, depth - 1)


@dataclass(frozen=True)
class _Flat:
    """A step whose parts are nodes by number."""

    name: str
    value: float
    constant: float
    terms: tuple[tuple[tuple[int, ...], float], ...]
    rest: float
    explained: float
    errors: float

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(node for nodes, _ in self.terms for node in nodes if node >= 0)


def _of_targets(linear: LinearPrompt, targets: Sequence[Target], top: int) -> list[_Flat]:
    edges, values = linear.edges(targets)
    errors = linear.nodes.feature < 0
    found = []
    for target, row, value in zip(targets, edges, values.tolist(), strict=True):
        terms = tuple(((int(i),), float(row[i])) for i in _largest(row, top))
        constant, of_errors = value - float(row.sum()), float(np.abs(row[errors]).sum())
        found.append(_flat(linear.name(target), value, constant, terms, row, of_errors))
    return found


def _of_score(linear: LinearPrompt, score: Score, top: int) -> _Flat:
    pairs = score_pairs(linear, score.layer, score.head, score.query, score.key)
    name = f"score {score.layer}.{score.head} from {score.query} to {score.key}"
    numbers = pairs.pairs.copy()
    constant, numbers[-1, -1] = float(numbers[-1, -1]), 0
    flat = numbers.ravel()
    query, key = (*pairs.query_nodes, -1), (*pairs.key_nodes, -1)
    cells = [divmod(int(i), numbers.shape[1]) for i in _largest(flat, top)]
    terms = tuple(((query[i], key[j]), float(numbers[i, j])) for i, j in cells)
    return _flat(name, pairs.score, constant, terms, flat, _error_pairs(linear, pairs, numbers))


def _error_pairs(linear: LinearPrompt, pairs: ScorePairs, numbers: Float64[np.ndarray, "n_query n_key"]) -> float:
    rows, columns = (np.array([*(linear.nodes.feature[list(nodes)] < 0), False], dtype=bool)
                     for nodes in (pairs.query_nodes, pairs.key_nodes))
    return float(np.abs(numbers[rows[:, None] | columns]).sum())


def _flat(
    name: str, value: float, constant: float, terms: tuple[tuple[tuple[int, ...], float], ...],
    numbers: Float64[np.ndarray, " n"], errors: float,
) -> _Flat:
    total, kept = max(float(np.abs(numbers).sum()), 1e-300), [amount for _, amount in terms]
    explained = min(float(np.abs(kept).sum()) / total, 1.0) if kept else 0.0
    return _Flat(name, value, constant, terms, float(numbers.sum()) - sum(kept), explained, min(errors / total, 1.0))


def _largest(numbers: Float64[np.ndarray, " n"], top: int) -> Int64[np.ndarray, " m"]:
    order = np.argsort(-np.abs(numbers), kind="stable")[:top]
    return order[numbers[order] != 0]


def _is_feature(linear: LinearPrompt, node: int) -> bool:
    return bool(linear.nodes.site[node] > 0 and linear.nodes.feature[node] >= 0)


def _assembled(flat: _Flat, known: dict[int, _Flat], linear: LinearPrompt, depth: int) -> Step:
    parts = []
    for nodes, amount in flat.terms:
        names = tuple(linear.names[node] if node >= 0 else "constant" for node in nodes)
        below = [known[node] for node in dict.fromkeys(nodes) if depth and node in known]
        parts.append(Part(names, amount, tuple(_assembled(one, known, linear, depth - 1) for one in below)))
    return Step(flat.name, flat.value, flat.constant, tuple(parts), flat.rest, flat.explained, flat.errors)


def _check(linear: LinearPrompt, start: Target) -> None:
    if start.site == len(linear.sites):
        if not 0 <= start.column < linear.circuit.model.d_vocab or start.position != len(linear.tokens) - 1:
            raise SaescopeError(
                f"Logits of {linear.circuit.model.d_vocab:,} tokens are explained, behind the last token of the prompt "
                f"(position {len(linear.tokens) - 1}); asked for was token {start.column} at {start.position}."
            )
        return
    wanted = (start.site, start.position, start.column)
    if not 0 < start.site < len(linear.sites) or start.column < 0 or wanted not in set(linear.nodes.triples):
        raise SaescopeError(f"The feature {start.column} of site {start.site} is not active at position {start.position}.")
