"""The same numbers by brute force: dense matrices, Python loops, no code of the index."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import sae


@dataclass(frozen=True)
class Dense:
    """All rows of a corpus with the value of every feature in fp32; masked rows are zero."""

    acts: np.ndarray
    """[n_rows, d_sae]"""
    kept: np.ndarray
    tokens: np.ndarray
    """[n_seqs, n_ctx]"""

    @property
    def n_ctx(self) -> int:
        return self.tokens.shape[1]

    def column(self, f: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and values in which a feature is active."""
        rows = np.flatnonzero(self.acts[:, f])
        return rows, self.acts[rows, f]


def dense_of(folder: Path, name: str = "quick") -> Dense:
    """From the files of the run and of the cache it was trained on."""
    model = sae.load(folder / "runs" / name)
    (cache,) = [p.parent for p in (folder / "cache").glob("*/manifest.json")
                if json.loads(p.read_text())["made_from"] == model.provenance["made_from"]]
    tokens = np.load(cache / "tokens.npy")
    (hook,) = (cache / "acts").iterdir()
    rows = np.concatenate([np.load(p).reshape(-1, np.load(p).shape[-1]) for p in sorted(hook.glob("shard-*.npy"))])
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    eligible, held_out = np.load(cache / "eligible.npy"), np.load(cache / "split.npy")
    # the quick config's calibration: 8 training sequences at equal distances, outliers above 10 medians
    training = np.flatnonzero(~held_out)
    calib = training[[int((i + 0.5) * len(training) / 8) for i in range(8)]]
    some = norms.reshape(tokens.shape)[calib][eligible[calib]]
    kept = eligible.reshape(-1) & (norms <= 10 * np.quantile(some, 0.5, method="lower"))
    acts = np.zeros((len(rows), model.d_sae), np.float32)
    acts[kept] = model.encode(torch.from_numpy(rows[kept])).to_dense().numpy()
    return Dense(acts, kept, tokens)
