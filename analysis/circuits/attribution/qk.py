"""QK attribution: an attention score as a sum over pairs of nodes, one at the query, one at the key.

    score(q, k) = s ⟨query, key⟩ = Σ_ij pairs[i, j]      query = Σ_i a_i + a₀,  key = Σ_j b_j + b₀      pairs = s ⟨a_i, b_j⟩

(2402.12201, §3). a_i is node i's direct effect on the head's query vector at q in the linear forward, after rotary
embeddings (and after query norms, with frozen scale); b_j likewise for the key at k. So a pair depends on the distance
q − k. a₀ and b₀ are biases, the last row and column. With grouped-query attention several heads share a key.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from analysis.circuits.attribution.linear import LinearPrompt
from sae.errors import SaescopeError

_CLOSE = 1e-4
"""Relative deviation of a score from s ⟨query, key⟩ that counts as rounding."""


@dataclass(frozen=True)
class ScorePairs:
    """A pre-softmax attention score, decomposed.

    Attributes:
        layer, head, query, key: head, and positions of query and key.
        score: the model's score.
        query_nodes, key_nodes: nodes that contribute to either side, as indices into `LinearPrompt.nodes`.
        pairs: part of the score by query node and key node; the last row and column are the constants.
    """

    layer: int
    head: int
    query: int
    key: int
    score: float
    query_nodes: tuple[int, ...]
    key_nodes: tuple[int, ...]
    pairs: Float64[np.ndarray, "n_query_and_1 n_key_and_1"]

    def largest(self, n: int = 10) -> list[tuple[int, int, float]]:
        """(query node, key node, part of the score), largest first; −1 is the constant."""
        order = np.argsort(-np.abs(self.pairs), axis=None, kind="stable")[:n]
        names = (*self.query_nodes, -1), (*self.key_nodes, -1)
        cells = [divmod(int(i), self.pairs.shape[1]) for i in order]
        return [(names[0][i], names[1][j], float(self.pairs[i, j])) for i, j in cells]

    @property
    def by_query(self) -> Float64[np.ndarray, " n_query_and_1"]:
        """Part of the score of each query node, summed over the key side."""
        return self.pairs.sum(1)

    @property
    def by_key(self) -> Float64[np.ndarray, " n_key_and_1"]:
        """Part of the score of each key node, summed over the query side."""
        return self.pairs.sum(0)


def score_pairs(linear: LinearPrompt, layer: int, head: int, query: int, key: int) -> ScorePairs:
    """Decompose an attention score into pairs of nodes.

    Costs d_head backward passes per side, `copies` at a time.

    Raises:
        SaescopeError: no such layer, head or position; a key after its query; a model without query and key hooks, or
            whose score isn't a multiple of their product (soft caps, ALiBi).
    """
    _check(linear, layer, head, query, key)
    q, k = _queries_and_keys(linear, layer)
    kv = head * k.shape[2] // q.shape[2]
    scale = _scale(linear, layer, head, q[0, :, head].detach(), k[0, :, kv].detach())
    sides = [_side(linear, vectors, at, which) for vectors, at, which in ((q, query, head), (k, key, kv))]
    (query_nodes, a), (key_nodes, b) = sides
    score = scale * float(q[0, query, head].detach().double() @ k[0, key, kv].detach().double())
    return ScorePairs(layer, head, query, key, score, query_nodes, key_nodes, scale * (a @ b.T))


def attention(linear: LinearPrompt, layer: int) -> Float64[np.ndarray, "n_heads n_ctx n_ctx"]:
    """Attention patterns of a layer.

    Raises:
        SaescopeError: the model has no hook on them.
    """
    hook = f"blocks.{layer}.attn.hook_pattern"
    if hook not in linear.run.watched:
        raise SaescopeError(f"{linear.circuit.model.name} has no {hook}.")
    return linear.run.watched[hook][0].detach().double().numpy()


def _side(
    linear: LinearPrompt, vectors: Tensor, position: int, head: int
) -> tuple[tuple[int, ...], Float64[np.ndarray, "n_and_1 d_head"]]:
    """Nodes that contribute to a query or key vector, their contributions, and (last row) the constant."""
    d_head = vectors.shape[-1]
    rows = []
    for start in range(0, d_head, linear.copies):
        some = range(start, min(start + linear.copies, d_head))
        total = torch.stack([vectors[copy, position, head, i] for copy, i in enumerate(some)]).sum()
        rows.append(linear.read(linear.gradients(total), len(some)))
    parts = np.concatenate(rows).T
    nodes = np.flatnonzero(parts.any(axis=1))
    whole = vectors[0, position, head].detach().double().numpy()
    return tuple(nodes.tolist()), np.concatenate([parts[nodes], (whole - parts.sum(0))[None]])


def _queries_and_keys(linear: LinearPrompt, layer: int) -> tuple[Tensor, Tensor]:
    """Queries and keys, each [copies, positions, heads, d_head], after rotary embeddings if there are any."""
    watched, names = linear.run.watched, [f"blocks.{layer}.attn.hook_{name}" for name in ("rot_q", "rot_k", "q", "k")]
    found = next((names[i : i + 2] for i in (0, 2) if set(names[i : i + 2]) <= set(watched)), None)
    if found is None:
        raise SaescopeError(f"{linear.circuit.model.name} has no hooks on queries and keys at blocks.{layer}.attn.")
    d_head = int(linear.circuit.model.bridge.cfg.d_head)
    q, k = (one if one.ndim == 4 else one.unflatten(-1, (-1, d_head)) for one in (watched[name] for name in found))
    assert q.shape[1] == k.shape[1] == len(linear.tokens), (q.shape, k.shape)
    return q, k


def _scale(linear: LinearPrompt, layer: int, head: int, q: Tensor, k: Tensor) -> float:
    """Scale of ⟨query, key⟩, fitted to the model's scores; all of them must agree."""
    hook = f"blocks.{layer}.attn.hook_attn_scores"
    if hook not in linear.run.watched:
        raise SaescopeError(f"{linear.circuit.model.name} has no {hook}.")
    scores = linear.run.watched[hook][0, head].detach().double()
    # masked scores (also outside a sliding window) are far below
    product, seen = q.double() @ k.double().T, torch.ones_like(scores, dtype=torch.bool).tril() & (scores > -1e30)
    found, product = scores[seen], product[seen]
    scale = float((found * product).sum() / product.square().sum().clamp_min(1e-300))
    if not float((found - scale * product).norm()) <= _CLOSE * float(found.norm()) + 1e-30:
        raise SaescopeError(
            f"Scores at {hook} of {linear.circuit.model.name} are not a multiple of queries times keys (soft cap, or ALiBi "
            "bias), so they can't be split into pairs."
        )
    return scale


def _check(linear: LinearPrompt, layer: int, head: int, query: int, key: int) -> None:
    n_layers, n_heads = linear.circuit.n_layers, int(linear.circuit.model.bridge.cfg.n_heads)
    if not (0 <= layer < n_layers and 0 <= head < n_heads):
        raise SaescopeError(
            f"{linear.circuit.model.name} has no head {head} in layer {layer}: it has {n_layers} layers of {n_heads} heads."
        )
    if not 0 <= key <= query < len(linear.tokens):
        raise SaescopeError(
            f"Position {query} can't attend to {key}: the prompt has {len(linear.tokens)} tokens, and a key can't come "
            "after its query."
        )


