"""Patch-free tracing (He et al. 2402.12201): recursively decompose a logit, a feature or an attention score.

One forward pass. Each step splits a number into direct contributions of features, errors and tokens, keeps the largest,
and continues from the features among them:

    logit, feature   the terms of `LinearPrompt.edges`: the residual stream, OV of all heads, and MLPs by active neurons
    score            the pairs of `qk.score_pairs`; both features of a pair are followed

A step reports the share of Σ |term| that the kept parts make up, and the share of errors.
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
    """A pre-softmax attention score: head, and positions of query and key."""

    layer: int
    head: int
    query: int
    key: int


@dataclass(frozen=True)
class Part:
    """A term of a step: a node, or a pair of nodes, and its contribution.

    Attributes:
        names: the node's name; for a score, the names of the query's and the key's node.
        amount: contribution to the step's value.
        steps: steps that explain the features among `names`; empty at the end of the trace.
    """

    names: tuple[str, ...]
    amount: float
    steps: tuple["Step", ...] = ()


@dataclass(frozen=True)
class Step:
    """One decomposed number.

    Attributes:
        name: name of the explained number.
        value: the pre-activation, the logit minus the mean of all, or the score.
        constant: contribution of biases.
        parts: the largest terms.
        rest: sum of all other terms.
        explained: share of Σ |term| (without constants) made up by the parts.
        errors: share of Σ |term| from errors, kept or not; of pairs, those with an error on either side.
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
    """Trace a number recursively.

    Args:
        linear: the prompt; `mlps="neurons"` traces through MLPs without a dictionary.
        start: the number to explain.
        top: parts kept per step.
        depth: levels of steps; 1 is the first step alone.

    Raises:
        SaescopeError: as `score_pairs`; the feature isn't active there; `top` or `depth` is below 1.
    """
    if top < 1 or depth < 1:
        raise SaescopeError(f"A trace needs top and depth of at least 1; top is {top} and depth is {depth}.")
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
    """A step whose parts are node indices."""

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
                f"Token {start.column} at position {start.position} can't be traced: logits are explained at the last "
                f"position ({len(linear.tokens) - 1}), for token ids below {linear.circuit.model.d_vocab:,}."
            )
        return
    wanted = (start.site, start.position, start.column)
    if not 0 < start.site < len(linear.sites) or start.column < 0 or wanted not in set(linear.nodes.triples):
        raise SaescopeError(f"Feature {start.column} of site {start.site} is not active at position {start.position}.")
