"""Transpose codes from rows to per-feature columns, and compute each feature's statistics from its column, in fp32.

Columns are built in tiles of as many features as fit the memory. A feature's results depend only on its own column, so
tiling doesn't change them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from analysis.index.encode import Codes
from analysis.index.store import Writer, flush

SEED = 0
"""Seed for random examples."""
BYTES_PER_VALUE = 64
"""Memory of a tile per value: position, value, both again by context, and copies while rounding."""
CHUNK_VALUES = 4_194_304


class Columns(NamedTuple):
    """Column results needed by later steps."""

    indptr: Int64[np.ndarray, " d_sae_plus_1"]
    scale: Float32[np.ndarray, " d_sae"]
    summary: Float64[np.ndarray, "d_sae n_columns"]
    top_token: Int32[np.ndarray, " d_sae"]
    entropy: Float64[np.ndarray, " d_sae"]


@dataclass(frozen=True)
class Context:
    """The token positions that columns refer to."""

    n_seqs: int
    n_ctx: int
    n_sides: int
    tokens: Int32[np.ndarray, " n_rows"] | None
    kept: Bool[np.ndarray, " n_rows"]

    def first_kept(self) -> Int32[np.ndarray, " n_seqs"]:
        """The first kept row of each sequence; −1 if there is none."""
        kept = self.kept.reshape(self.n_seqs, self.n_ctx)
        first = np.arange(self.n_seqs) * self.n_ctx + kept.argmax(1)
        return np.where(kept.any(1), first, -1).astype(np.int32)

    def by_token(self) -> tuple[Int64[np.ndarray, " n"], Int32[np.ndarray, " m"]]:
        """The kept rows of each token, ascending: (indptr, rows)."""
        if self.tokens is None:
            return np.zeros(2, np.int64), np.zeros(0, np.int32)
        rows = np.flatnonzero(self.kept).astype(np.int32)
        ids = self.tokens[rows]
        indptr = np.zeros(int(self.tokens.max(initial=0)) + 2, np.int64)
        np.cumsum(np.bincount(ids, minlength=len(indptr) - 1), out=indptr[1:])
        return indptr, rows[np.argsort(ids, kind="stable")]


def write_columns(
    codes: Codes, context: Context, d_sae: int, writer: Writer, memory: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Columns:
    """Write all per-feature arrays, and the row-wise code in half precision.

    Args:
        codes: codes of all rows.
        context: tokens, sides and sizes.
        d_sae: number of features.
        writer: writes the index.
        memory: maximum bytes per tile; a single column may exceed it.
        advance: called with the number of features done.
    """
    from sae.kernels.columns.values import SUMMARY
    from sae.kernels.cpu import runtime

    counts, edges = _survey(codes, d_sae)
    indptr = np.zeros(d_sae + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    out = _Outputs(writer, indptr, edges, context.n_sides, len(SUMMARY))
    norms = np.zeros(context.n_seqs)
    first_kept, by_token = context.first_kept(), context.by_token()
    with runtime.LOCK:
        for lo, hi in _tiles(counts, memory // BYTES_PER_VALUE):
            tile = _column_tile(codes, indptr, lo, hi)
            out.tile(lo, hi, tile, context, edges, first_kept, by_token, norms)
            advance(hi - lo)
        out.finish(np.sqrt(norms))
        _write_rows(codes, out.scale, writer)
    return Columns(indptr, out.scale, out.summary, out.top_token, out.entropy)


def _survey(codes: Codes, d_sae: int) -> tuple[Int64[np.ndarray, " d_sae"], Float64[np.ndarray, " n_edges"]]:
    """Active count of each feature, and histogram edges that span all |values|."""
    counts, low, high = np.zeros(d_sae, np.int64), np.inf, 0.0
    for chunk in _chunks(len(codes.value)):
        counts += np.bincount(codes.feature[chunk], minlength=d_sae)
        size = np.abs(codes.value[chunk])
        low, high = min(low, float(size.min())), max(high, float(size.max()))
    if high == 0:
        low, high = 1.0, 1.0
    first, last = int(np.floor(4 * np.log2(low))) - 1, int(np.floor(4 * np.log2(high))) + 3
    edges = np.exp2(np.arange(first, last) / 4)
    # just the bins from the smallest to the largest value
    begin, end = np.searchsorted(edges, low, side="right") - 1, np.searchsorted(edges, high, side="right")
    return counts, edges[begin : end + 1]


def _chunks(n: int) -> Iterator[slice]:
    for start in range(0, n, CHUNK_VALUES):
        yield slice(start, min(start + CHUNK_VALUES, n))


def _tiles(counts: Int64[np.ndarray, " d_sae"], n_values: int) -> Iterator[tuple[int, int]]:
    """Ranges of features with at most `n_values` values, but at least one feature each."""
    lo, held = 0, 0
    for f, n in enumerate(counts.tolist()):
        if f > lo and held + n > n_values:
            yield lo, f
            lo, held = f, 0
        held += n
    yield lo, len(counts)


class _Tile(NamedTuple):
    """A range of columns in memory."""

    indptr: Int64[np.ndarray, " n_plus_1"]
    position: Int32[np.ndarray, " nnz"]
    value: Float32[np.ndarray, " nnz"]


def _column_tile(codes: Codes, indptr: Int64[np.ndarray, " d_sae_plus_1"], lo: int, hi: int) -> _Tile:
    """Build the columns of features lo to hi with a counting sort over all entries."""
    from sae.kernels.columns import values as columns
    from sae.kernels.cpu import runtime

    mine = indptr[lo : hi + 1] - indptr[lo]
    position, value = np.empty(int(mine[-1]), np.int32), np.empty(int(mine[-1]), np.float32)
    cursor = mine[:-1].copy()
    n_threads = max(1, torch.get_num_threads())
    step = max(1, int(CHUNK_VALUES * (len(codes.indptr) - 1) / max(1, len(codes.value))))
    for first in range(0, len(codes.indptr) - 1, step):
        bounds = codes.indptr[first : first + step + 1]
        entries = slice(int(bounds[0]), int(bounds[-1]))
        runtime.run(
            columns.scatter, _by_work(mine, n_threads), lo, first, bounds - bounds[0],
            np.asarray(codes.feature[entries]), np.asarray(codes.value[entries]), cursor, position, value,
        )
    return _Tile(mine, position, value)


def _by_work(indptr: Int64[np.ndarray, " n_plus_1"], n_ranges: int) -> list[int]:
    """Bounds of column ranges with about equal numbers of values."""
    inner = np.searchsorted(indptr, np.arange(1, n_ranges) * int(indptr[-1]) // n_ranges)
    return sorted({0, *(int(b) for b in inner if b < len(indptr) - 1), len(indptr) - 1})


class _Outputs:
    """The output arrays, filled tile by tile."""

    def __init__(
        self, writer: Writer, indptr: Int64[np.ndarray, " n"], edges: Float64[np.ndarray, " m"], n_sides: int,
        n_summary: int,
    ) -> None:
        d_sae, n_values = len(indptr) - 1, int(indptr[-1])
        self.writer = writer
        writer.save("feature_indptr", indptr)
        writer.save("histogram_edges", edges)
        self.position = writer.array("feature_position", (n_values,))
        self.value = writer.array("feature_value", (n_values,))
        self.histogram = writer.array("histogram", (d_sae, 2, len(edges) - 1))
        self.tenth_edges = writer.array("tenth_edges", (d_sae, n_sides, 11))
        self.population = writer.array("population", (d_sae, n_sides, 13))
        self.examples = writer.array("examples", (d_sae, n_sides, 13, 20))
        self.scale = np.ones(d_sae, np.float32)
        self.summary = np.zeros((d_sae, n_summary))
        self.top_token = np.full(d_sae, -1, np.int32)
        self.entropy = np.full(d_sae, np.nan)
        self.indptr = indptr
        self.contexts = [writer.growing(name) for name in ("context_seq", "context_offset", "context_value")]

    def tile(
        self, lo: int, hi: int, tile: _Tile, context: Context, edges: Float64[np.ndarray, " m"],
        first_kept: Int32[np.ndarray, " n_seqs"], by_token: tuple[np.ndarray, np.ndarray],
        norms: Float64[np.ndarray, " n_seqs"],
    ) -> None:
        """Fill the rows of features lo to hi."""
        from sae.kernels.columns import examples as columns_chosen
        from sae.kernels.columns import values as columns
        from sae.kernels.cpu import runtime

        ranges = _by_work(tile.indptr, 32)
        summary = np.zeros((hi - lo, self.summary.shape[1]))
        runtime.run(columns.summarise, ranges, *tile, context.n_ctx, first_kept, summary)
        self.summary[lo:hi] = summary
        counts = np.zeros((hi - lo, 2, len(edges) - 1), np.int64)
        runtime.run(columns.histogram, ranges, tile.indptr, tile.value, edges, counts)
        self.histogram[lo:hi] = counts
        n_sides = context.n_sides
        tenth_edges = np.zeros((hi - lo, n_sides, 11), np.float32)
        population = np.zeros((hi - lo, n_sides, 13), np.int64)
        examples = np.full((hi - lo, n_sides, 13, 20), -1, np.int32)
        tokens = np.zeros(1, np.int32) if context.tokens is None else context.tokens
        runtime.run(
            columns_chosen.choose, ranges, lo, *tile, context.n_ctx, n_sides, SEED, tokens, context.tokens is not None,
            *by_token, tenth_edges, population, examples, self.top_token[lo:hi], self.entropy[lo:hi],
        )
        self.tenth_edges[lo:hi], self.population[lo:hi], self.examples[lo:hi] = tenth_edges, population, examples
        self.scale[lo:hi] = _scales(np.maximum(np.abs(summary[:, 3]), np.abs(summary[:, 4])))
        self._halves(lo, hi, tile, ranges)
        self._pooled(lo, hi, tile, ranges, summary, context.n_ctx, norms)

    def _halves(self, lo: int, hi: int, tile: _Tile, ranges: list[int]) -> None:
        from sae.kernels.columns import values as columns
        from sae.kernels.cpu import runtime

        scaled = np.empty_like(tile.value)
        runtime.run(columns.divide_columns, ranges, tile.indptr, tile.value, self.scale[lo:hi], scaled)
        mine = slice(int(self.indptr[lo]), int(self.indptr[hi]))
        self.position[mine] = tile.position
        self.value[mine] = _half(scaled)

    def _pooled(
        self, lo: int, hi: int, tile: _Tile, ranges: list[int], summary: Float64[np.ndarray, "n m"], n_ctx: int,
        norms: Float64[np.ndarray, " n_seqs"],
    ) -> None:
        """Write each context's peak, and add the squares of the rounded peaks to `norms`."""
        from sae.kernels.columns import values as columns
        from sae.kernels.cpu import runtime

        n_contexts = summary[:, columns.SUMMARY.index("n_contexts")].astype(np.int64)
        indptr = np.zeros(hi - lo + 1, np.int64)
        np.cumsum(n_contexts, out=indptr[1:])
        seq, offset = np.empty(int(indptr[-1]), np.int32), np.empty(int(indptr[-1]), np.int32)
        peak = np.empty(int(indptr[-1]), np.float32)
        runtime.run(columns.pool, ranges, *tile, n_ctx, indptr, seq, offset, peak)
        scaled = np.empty_like(peak)
        runtime.run(columns.divide_columns, ranges, indptr, peak, self.scale[lo:hi], scaled)
        half = _half(scaled)
        rounded = half.astype(np.float64) * np.repeat(self.scale[lo:hi].astype(np.float64), n_contexts)
        # sequential additions in feature order, so that the sums don't depend on the tiles
        np.add.at(norms, seq, rounded * rounded)
        for file, array in zip(self.contexts, (seq, offset, half), strict=True):
            file.append(array)

    def finish(self, norms: Float64[np.ndarray, " n_seqs"]) -> None:
        """Write the arrays that need all tiles."""
        from sae.kernels.columns.values import SUMMARY

        n_contexts = self.summary[:, SUMMARY.index("n_contexts")].astype(np.int64)
        indptr = np.zeros(len(self.scale) + 1, np.int64)
        np.cumsum(n_contexts, out=indptr[1:])
        self.writer.save("context_indptr", indptr)
        for file in self.contexts:
            file.close()
        self.writer.save("context_norm", norms)
        self.writer.save("scale", self.scale)
        self.writer.save("summary", self.summary)
        for array in (self.position, self.value, self.histogram, self.tenth_edges, self.population, self.examples):
            flush(array)


def _scales(largest: Float64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """The power of two that scales each column's largest |value| to between 2^14 and 2^15; multiplying by it is exact."""
    exponent = np.where(largest > 0, np.frexp(largest)[1] - 15, 0)
    return np.exp2(np.maximum(exponent, -126)).astype(np.float32)


def _half(scaled: Float32[np.ndarray, " n"]) -> np.ndarray:
    return torch.from_numpy(scaled).half().numpy()


def _write_rows(codes: Codes, scale: Float32[np.ndarray, " d_sae"], writer: Writer) -> None:
    """Write the row-wise code with values in half precision."""
    from sae.kernels.columns import values as columns
    from sae.kernels.cpu import runtime

    writer.save("row_indptr", codes.indptr)
    feature = writer.array("row_feature", codes.feature.shape)
    value = writer.array("row_value", codes.value.shape)
    for chunk in _chunks(len(codes.value)):
        features, values = np.asarray(codes.feature[chunk]), np.asarray(codes.value[chunk])
        scaled = np.empty_like(values)
        runtime.run(columns.divide_entries, runtime.even(len(values)), features, values, scale, scaled)
        feature[chunk] = features
        value[chunk] = _half(scaled)
    flush(feature)
    flush(value)
