"""Build an attribution graph backwards from the logits, most influential nodes first.

As in circuit-tracer (Ameisen et al. 2025; `attribute.py`): compute the adjacency rows of the logits, then those of the
features with the most influence through the rows known so far, up to the limit.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from analysis.circuits.attribution.graph import AttributionGraph
from analysis.circuits.attribution.influence import influence, normalised
from analysis.circuits.attribution.linear import LinearPrompt
from analysis.circuits.attribution.steps import at_once
from analysis.circuits.formats.circuit_tracer.writing import ATTRIBUTION
from analysis.circuits.nodes import Nodes


@dataclass(frozen=True)
class Limits:
    """Size limits of a graph.

    Attributes:
        max_features: maximum number of feature nodes, most influential first.
        logit_share: logits become nodes, most probable first, until their total probability reaches this share,
        max_logits: or until there are this many.
    """

    max_features: int = 2000
    logit_share: float = 0.95
    max_logits: int = 10


_LIMITS = Limits()


@dataclass(frozen=True)
class Cost:
    """Estimated time and memory of a graph, from one backward pass."""

    seconds: float
    n_bytes: int

    def __str__(self) -> str:
        time_ = f"{self.seconds:.0f} s" if self.seconds < 90 else f"{self.seconds / 60:.0f} min"
        return f"about {time_} and {self.n_bytes / 1e9:.1f} GB"


def attribute(
    linear: LinearPrompt, limits: Limits = _LIMITS, *, name: str = "graph", pieces: Sequence[str] | None = None,
    update_every: int = 4, progress: Callable[[int], None] | None = None,
) -> AttributionGraph:
    """Compute the attribution graph of a prompt.

    Costs one backward pass through the linear forward per `linear.copies` targets. Memory: those copies' activations, one
    number per target and active feature, error or token, and the square of the number of nodes.

    Args:
        linear: the prompt.
        limits: size limits of the graph.
        name: name of the graph.
        pieces: text of each token; None decodes the tokens one by one.
        update_every: re-rank features after this many backward passes.
        progress: called with the number of newly finished targets.

    Raises:
        SaescopeError: the prompt has no token whose logits could be explained.
    """
    return at_once(attribute_steps(linear, limits, name=name, pieces=pieces, update_every=update_every), progress)


def attribute_steps(
    linear: LinearPrompt, limits: Limits = _LIMITS, *, name: str = "graph", pieces: Sequence[str] | None = None,
    update_every: int = 4,
) -> Generator[int, None, AttributionGraph]:
    """`attribute`, one backward pass at a time; yields the number of newly finished targets."""
    rows = _Rows(linear, limits)
    chosen = yield from rows.follow(update_every)
    return _graph(linear, rows, chosen, name, pieces)


def cost(linear: LinearPrompt, limits: Limits = _LIMITS) -> Cost:
    """Time one backward pass from the last site and extrapolate; earlier sites take less, so this errs on the high side."""
    n_active = int((linear.nodes.site > 0).sum() - (linear.nodes.feature < 0).sum())
    n_targets = min(limits.max_features, n_active) + limits.max_logits
    top = linear.logit(int(linear.logits.argmax()))
    seconds = 0.0
    for _ in range(2):  # the first one also runs the forward pass
        began = time.perf_counter()
        linear.edges([top] * linear.copies)
        seconds = time.perf_counter() - began
    cfg = linear.circuit.model.bridge.cfg
    tokens = linear.copies * len(linear.tokens)
    kept = tokens * int(cfg.n_layers) * (14 * int(cfg.d_model) + 5 * int(cfg.d_mlp or 4 * cfg.d_model)) * 4
    weights = sum(p.numel() * p.element_size() for p in linear.circuit.model.bridge.parameters())
    saes = sum(p.numel() * p.element_size() for sae in linear.circuit.saes.values() for p in sae.parameters())
    vectors = len(linear.nodes) * int(cfg.d_model) * 4 * (1 + linear.copies / max(len(linear.sites), 1))
    matrix = n_targets * len(linear.nodes) * 12 + (n_targets + (len(linear.nodes) - n_active)) ** 2 * 28
    return Cost(seconds * -(-n_targets // linear.copies) / 2, int(kept + weights + saes + vectors + matrix + 0.6e9))


class _Rows:
    """Adjacency rows over all vectors of a prompt, filled in step by step."""

    def __init__(self, linear: LinearPrompt, limits: Limits) -> None:
        self.linear, self.limits = linear, limits
        self.tokens, self.probability = _salient(linear.logits, limits)
        self.features = np.flatnonzero((linear.nodes.site > 0) & (linear.nodes.feature >= 0))
        self.row = np.full(len(linear.nodes), -1, dtype=np.int64)
        edges, values = linear.edges([linear.logit(token) for token in self.tokens])
        self.logits, self.logit_values = edges, values
        self.known: list[Float64[np.ndarray, " n_nodes"]] = []
        self.pre: list[float] = []

    def follow(self, update_every: int) -> Generator[int, None, Int64[np.ndarray, " n"]]:
        """Compute rows of the most influential features, and return their indices, ascending."""
        n, step = min(self.limits.max_features, len(self.features)), update_every * self.linear.copies
        yield len(self.tokens)
        while len(self.known) < n:
            waiting = self.features[self.row[self.features] < 0]
            if n < len(self.features):
                waiting = waiting[np.argsort(-self._influence()[waiting], kind="stable")]
            # sorted by site: a backward pass starts at its latest target, so batch targets of similar depth
            batch = np.sort(waiting[: min(step, n - len(self.known))])
            for start in range(0, len(batch), self.linear.copies):
                part = batch[start : start + self.linear.copies]
                edges, values = self.linear.edges([self.linear.target(node) for node in part.tolist()])
                self.row[part] = np.arange(len(self.known), len(self.known) + len(part))
                self.known += list(edges)
                self.pre += values.tolist()
                yield len(part)
        return np.flatnonzero(self.row >= 0)

    def _influence(self) -> Float64[np.ndarray, " n_nodes"]:
        """Influence through the known rows: p (Ã + Ã² + …), with unknown rows zero."""
        there = np.flatnonzero(self.row >= 0)
        first = self.probability @ normalised(self.logits)
        if not len(there):
            return first
        shares = normalised(np.stack([self.known[self.row[i]] for i in there]))
        # influence of the known nodes, from the matrix among them; then what they pass on
        total = influence(shares[:, there], first[there]) + first[there]
        return first + total @ shares


def _salient(
    logits: Float[Tensor, " d_vocab"], limits: Limits
) -> tuple[list[int], Float64[np.ndarray, " n_logits"]]:
    """Tokens whose logits are explained, and their probabilities."""
    probability = logits.double().softmax(0)
    top = probability.topk(min(limits.max_logits, len(probability)))
    enough = int(torch.searchsorted(top.values.cumsum(0), limits.logit_share)) + 1
    return top.indices[:enough].tolist(), top.values[:enough].numpy()


def _graph(
    linear: LinearPrompt, rows: _Rows, chosen: Int64[np.ndarray, " n"], name: str, pieces: Sequence[str] | None
) -> AttributionGraph:
    keep = rows.row >= 0
    keep[(linear.nodes.site == 0) | (linear.nodes.feature < 0)] = True
    place, n_logits = np.cumsum(keep) - 1, len(rows.tokens)
    n = int(keep.sum()) + n_logits
    order = np.argsort(rows.tokens)
    adjacency, constant = np.zeros((n, n), dtype=np.float32), np.zeros(n)
    edges = np.stack([rows.known[rows.row[i]] for i in chosen]) if len(chosen) else np.zeros((0, len(keep)))
    adjacency[place[chosen], : n - n_logits] = edges[:, keep]
    adjacency[n - n_logits :, : n - n_logits] = rows.logits[order][:, keep]
    pre = np.array([rows.pre[rows.row[i]] for i in chosen])
    constant[place[chosen]] = pre - adjacency[place[chosen]].sum(axis=1)
    constant[n - n_logits :] = rows.logit_values[order] - adjacency[n - n_logits :].sum(axis=1)
    kept, last = linear.nodes.take(keep), len(linear.tokens) - 1
    nodes = Nodes(
        np.append(kept.site, np.full(n_logits, len(linear.sites))), np.append(kept.position, np.full(n_logits, last)),
        np.append(kept.feature, np.array(rows.tokens)[order]),
    )
    value = np.append(linear.value[keep], rows.logit_values[order])
    probability = np.append(np.zeros(n - n_logits), rows.probability[order])
    decode = linear.circuit.model.tokenizer.decode
    return AttributionGraph(
        name=name, model=_model_facts(linear), prompt=tuple(pieces or [decode([t]) for t in linear.tokens.tolist()]),
        tokens=tuple(linear.tokens.tolist()), sites=linear.infos, nodes=nodes, value=value, adjacency=adjacency,
        constant=constant, probability=probability, n_active=len(rows.features),
        settings=_settings(linear, rows, decode),
    )


def _settings(linear: LinearPrompt, rows: _Rows, decode: Callable[[list[int]], str]) -> dict[str, Any]:
    return {
        "kind": ATTRIBUTION, "mlps": linear.mlps, "skips": linear.skips, "max_features": rows.limits.max_features,
        "logit_share": rows.limits.logit_share, "logit_pieces": {str(token): decode([token]) for token in rows.tokens},
    }


def _model_facts(linear: LinearPrompt) -> dict[str, Any]:
    model = linear.circuit.model
    return {"name": model.name, "identity": model.identity, "n_layers": model.n_layers, "d_vocab": model.d_vocab}
