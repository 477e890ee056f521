"""Neighbours of features by decoder direction and co-activation, and the tokens they promote."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64
from torch import Tensor

from analysis.index.encode import Codes
from sae.base import SAE
from training.model.language_model import Model

N_NEIGHBOURS = 32
N_TOKENS = 20
MAX_PAIRS = 20_000_000_000
"""Up to this many pairs (Σ over rows of L0²) co-activation is counted over all contexts; above, over a sample."""
SEED = 0
LAYOUT_ROUNDS, LAYOUT_EDGES, LAYOUT_AWAY = 120, 12, 5


class Decoder(NamedTuple):
    """The nearest decoder directions of each feature, nearest first, padded with feature −1."""

    feature: Int32[np.ndarray, "d_sae n"]
    cosine: Float32[np.ndarray, "d_sae n"]


class Coactive(NamedTuple):
    """The features most often co-active with each feature, padded with feature −1."""

    feature: Int32[np.ndarray, "d_sae n"]
    jaccard: Float64[np.ndarray, "d_sae n"]
    pearson: Float64[np.ndarray, "d_sae n"]
    n_contexts: int
    """Number of contexts counted: all, or a seeded sample if all would exceed MAX_PAIRS."""
    n_rows: int
    """Kept rows in these contexts."""


def directions(sae: SAE) -> Float[Tensor, "d_sae d_out"]:
    """Decoder rows normalised to unit norm, fp32, on the CPU; zero rows stay zero."""
    rows = sae.W_dec.detach().float().cpu()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


def decoder_neighbours(rows: Float[Tensor, "d_sae d_out"], *, signed: bool, memory: int) -> Decoder:
    """Nearest directions by cosine, or by |cosine| for signed codes, where −d is the same feature."""
    d_sae = len(rows)
    n = min(N_NEIGHBOURS, d_sae - 1)
    feature = np.full((d_sae, N_NEIGHBOURS), -1, np.int32)
    cosine = np.zeros((d_sae, N_NEIGHBOURS), np.float32)
    step = max(1, min(1024, memory // (12 * d_sae)))
    for start in range(0, d_sae if n else 0, step):
        tile = rows[start : start + step] @ rows.t()
        ranked = tile.abs() if signed else tile
        ranked[torch.arange(len(tile)), torch.arange(start, start + len(tile))] = -np.inf
        best = ranked.topk(n, dim=1).indices
        values = tile.gather(1, best)
        feature[start : start + len(tile), :n] = best.numpy()
        cosine[start : start + len(tile), :n] = values.numpy()
    return Decoder(feature, cosine)


def coactivation(
    codes: Codes, position: Int32[np.ndarray, " nnz"], indptr: Int64[np.ndarray, " d_sae_plus_1"], n_ctx: int,
    advance: Callable[[int], None] = lambda _: None, *, max_pairs: int = MAX_PAIRS,
) -> Coactive:
    """Count co-activations exactly, over all contexts or a seeded sample if there are more than `max_pairs` pairs.

    Args:
        codes: row-wise codes, fp32.
        position, indptr: the active rows of each feature.
        n_ctx: rows per context.
        advance: called with the number of features done.
        max_pairs: maximum pairs for counting all contexts.
    """
    from sae.kernels.columns import pairs as column_pairs
    from sae.kernels.cpu import runtime

    d_sae = len(indptr) - 1
    taken, n_rows = sample_contexts(codes, n_ctx, max_pairs)
    count, total, squares = np.zeros(d_sae, np.int64), np.zeros(d_sae), np.zeros(d_sae)
    feature = np.full((d_sae, N_NEIGHBOURS), -1, np.int32)
    jaccard, pearson = np.zeros((d_sae, N_NEIGHBOURS)), np.full((d_sae, N_NEIGHBOURS), np.nan)
    by_row = (codes.indptr, np.asarray(codes.feature), np.asarray(codes.value), n_ctx, taken)
    bounds = [int(b) for b in np.unique(np.searchsorted(indptr, np.linspace(0, indptr[-1], 65)[1:-1]))]
    bounds = sorted({0, d_sae, *bounds})
    with runtime.LOCK:
        runtime.run(column_pairs.sampled_sums, bounds, indptr, position, *by_row, count, total, squares)
        step = 8
        for i in range(0, len(bounds) - 1, step):
            part = bounds[i : i + step + 1]
            runtime.run(
                column_pairs.coactive, part, indptr, position, *by_row, n_rows, count, total, squares,
                feature, jaccard, pearson,
            )
            advance(part[-1] - part[0])
    return Coactive(feature, jaccard, pearson, int(taken.sum()), n_rows)


def sample_contexts(codes: Codes, n_ctx: int, max_pairs: int) -> tuple[Bool[np.ndarray, " n_seqs"], int]:
    """The contexts to count (all, or the first of a seeded shuffle), and their number of kept rows."""
    pairs = (np.diff(codes.indptr).astype(np.float64) ** 2).reshape(-1, n_ctx).sum(1)
    kept = codes.kept.reshape(-1, n_ctx).sum(1)
    taken = np.ones(len(pairs), bool)
    if pairs.sum() > max_pairs:
        order = np.random.Generator(np.random.Philox(SEED)).permutation(len(pairs))
        affordable = int(np.searchsorted(np.cumsum(pairs[order]), max_pairs))
        taken[order[max(1, affordable) :]] = False
    return taken, int(kept[taken].sum())


def plane(decoder: Decoder, rows: Float[Tensor, "d_sae d_out"]) -> Float64[np.ndarray, "d_sae 2"]:
    """2D layout of the decoder directions that places neighbours by cosine near each other.

    Initialised at the first two principal components, then optimised with the LargeVis objective (1602.00370), seeded.
    Centred, with a root mean square distance of 1 from the centre.
    """
    from sae.kernels.columns import pairs as column_pairs
    from sae.kernels.cpu import runtime

    start = principal_plane(rows)
    near = decoder.feature[:, :LAYOUT_EDGES].astype(np.int64)
    strength = np.abs(decoder.cosine[:, :LAYOUT_EDGES].astype(np.float64))
    weight = np.clip(strength / np.maximum(strength.max(axis=1, keepdims=True), 1e-12), 0, 1) ** 2
    place = np.ascontiguousarray(start * 10)
    if len(place) > 2:
        with runtime.LOCK:
            column_pairs.spread_out(near, weight, place, LAYOUT_ROUNDS, LAYOUT_AWAY, SEED)
    place -= place.mean(axis=0)
    return place / max(float(np.sqrt((place**2).sum(1).mean())), 1e-12)


def principal_plane(rows: Float[Tensor, "d_sae d_out"]) -> Float64[np.ndarray, "d_sae 2"]:
    """Coordinates along the first two principal components, with RMS 1; the largest coordinate is made positive."""
    centred = (rows - rows.mean(0)).double()
    _, axes = torch.linalg.eigh(centred.t() @ centred)
    axes = axes[:, -2:].flip(1)
    if axes.shape[1] < 2:
        axes = torch.cat([axes, torch.zeros(len(axes), 1, dtype=axes.dtype)], dim=1)
    place = (centred @ axes).numpy()
    largest = np.abs(place).argmax(axis=0)
    place *= np.where(place[largest, [0, 1]] < 0, -1, 1)
    return place / max(float(np.sqrt((place**2).mean())), 1e-12)


def promoted_tokens(
    model: Model, rows: Float[Tensor, "d_sae d_out"], *, memory: int
) -> tuple[Int32[np.ndarray, "d_sae n"], Float32[np.ndarray, "d_sae n"]]:
    """Token ids and logits that each feature promotes and suppresses most.

    The first half of a row is promoted tokens, the second half suppressed ones, each strongest first. The logit is the
    direct effect of the direction through the final norm and the unembedding (`Model.direct_logits`).
    """
    n = N_TOKENS // 2
    ids = np.full((len(rows), N_TOKENS), -1, np.int32)
    logits = np.zeros((len(rows), N_TOKENS), np.float32)
    step = max(1, min(512, memory // (12 * model.d_vocab)))
    for start in range(0, len(rows), step):
        tile = model.direct_logits(rows[start : start + step])
        for half, sign in enumerate((1, -1)):
            best = (sign * tile).topk(min(n, tile.shape[1]), dim=1)
            place = (slice(start, start + len(tile)), slice(half * n, half * n + best.indices.shape[1]))
            ids[place] = best.indices.cpu().numpy()
            logits[place] = sign * best.values.cpu().numpy()
    return ids, logits


WRITES_TO_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "hook_attn_out")


def not_read_by_unembedding(hook: str, d_out: int, model: Model) -> str | None:
    """The reason why directions at this hook have no direct logits; None if they do."""
    if hook.endswith(WRITES_TO_STREAM) and d_out == model.d_hook(hook):
        return None
    return f"{hook} is not the residual stream nor adds to it, so the unembedding does not read it."
