"""stats.parquet: one row per feature, for sorting and filtering with DuckDB, pandas or any Parquet reader."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float64, Int32

from analysis.index.columns import Columns
from analysis.index.neighbours import Coactive, Decoder

Z = 1.959963984540054
"""Standard normal quantile for a 95 % interval."""


def wilson(n_active: np.ndarray, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Wilson 95 % interval of a proportion (Wilson 1927); 0 to 1 if there are no rows."""
    if n_rows == 0:
        return np.zeros(len(n_active)), np.ones(len(n_active))
    share, z2 = n_active / n_rows, Z * Z / n_rows
    middle = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * np.sqrt(share * (1 - share) / n_rows + z2 / (4 * n_rows))
    return np.where(n_active == 0, 0.0, middle - half), np.where(n_active == n_rows, 1.0, middle + half)


def write_stats(
    path: Path, columns: Columns, n_rows: int, decoder: Decoder, coactive: Coactive, place: Float64[np.ndarray, "d_sae 2"],
    norms: Float[np.ndarray, " d_sae"] | None, texts: Sequence[str] | None, promoted: Int32[np.ndarray, "d_sae n"] | None,
) -> None:
    """Write the table; unknown values are null.

    Args:
        path: the output file.
        columns: per-feature results.
        n_rows: number of encoded rows.
        decoder, coactive, place: neighbours and map coordinates of the features.
        norms: decoder norms before normalisation.
        texts: text of each token id.
        promoted: token ids, most promoted first.
    """
    from sae.kernels.columns.values import SUMMARY

    n_active = np.diff(columns.indptr)
    d_sae = len(n_active)
    of = {name: columns.summary[:, i] for i, name in enumerate(SUMMARY)}
    low, high = wilson(n_active, n_rows)
    # 0/0 gives NaN for features that are never active
    with np.errstate(invalid="ignore"):
        first_token_share = of["n_first"] / n_active
    whole = {name: of[name].astype(np.int64) for name in ("n_negative", "n_contexts")}
    single = {name: of[name].astype(np.float32) for name in ("max", "min")}
    data = {
        "feature": np.arange(d_sae, dtype=np.int32), "n_active": n_active, "density": n_active / max(1, n_rows),
        "density_low": low, "density_high": high, **whole, **single,
        **{name: of[name] for name in ("mean", "second_moment", "std", "skew", "kurtosis")},
        "decoder_norm": np.full(d_sae, np.nan) if norms is None else norms.astype(np.float64),
        "decoder_cos": _first(decoder.feature, decoder.cosine), "coact_jaccard": _first(coactive.feature, coactive.jaccard),
        "first_token_share": first_token_share, "entropy": columns.entropy,
        "map_x": place[:, 0], "map_y": place[:, 1],
    }
    arrays = {name: pa.array(array, from_pandas=True) for name, array in data.items()}  # NaN becomes null
    arrays["dead"] = pa.array(n_active == 0)
    arrays["top_token"] = _texts(columns.top_token, texts)
    arrays["promoted_token"] = _texts(np.full(d_sae, -1) if promoted is None else promoted[:, 0], texts)
    pq.write_table(pa.table(arrays), path, compression="zstd")


def _first(feature: Int32[np.ndarray, "d_sae n"], score: np.ndarray) -> Float64[np.ndarray, " d_sae"]:
    """The nearest neighbour's score; NaN if there is none."""
    return np.where(feature[:, 0] >= 0, score[:, 0].astype(np.float64), np.nan)


def _texts(ids: np.ndarray, texts: Sequence[str] | None) -> pa.Array:
    known = [texts[i] if texts is not None and 0 <= i < len(texts) else None for i in ids.tolist()]
    return pa.array(known, type=pa.string())
