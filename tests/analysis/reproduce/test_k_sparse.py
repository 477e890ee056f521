"""The short form of the k-sparse autoencoders, on scikit-learn's digits, and that the classifier is a fair judge."""

from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.reproduce import k_sparse
from analysis.reproduce.jobs import reproduce
from sae import store
from tests.sae.toy import one_thread

CONFIGS = Path(__file__).parents[3] / "configs" / "reproduce"


def test_k_sparse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with one_thread():
        rows = reproduce("k-sparse", configs=CONFIGS, runs=tmp_path, short=True, quiet=True)
    found = {row["setting"]: row for row in rows}
    assert set(found) == {"raw", "pca", "dae", "k-10", "k-25", "k-25-flat"}
    for row in rows:
        assert 0 < row["error"] < 0.5, "chance is 0.9"
    assert found["pca"]["components"] in (8, 16)
    for name in ("k-10", "k-25", "k-25-flat"):
        row = found[name]
        assert row["error"] == row[f"error_alpha_{row['alpha']:g}"] and 0 < row["fve"] < 1 and 0 <= row["silent"] < 1
    out = tmp_path / "k-sparse-short"
    assert (out / "k-sparse-features.png").read_bytes().startswith(b"\x89PNG")
    assert "denoising autoencoder" in (out / "k-sparse.svg").read_text()
    # the run that is left is a k-sparse autoencoder
    sae = store.load(out / "k-10-0")
    torch.testing.assert_close(sae.W_enc, sae.W_dec.t())
    x = k_sparse.images("digits")[0][:50]
    dense = k_sparse.code(sae, x, sae.config.k).double()  # type: ignore[attr-defined]
    torch.testing.assert_close(dense / sae.input.scale, sae.encode(x).to_dense().double(), atol=1e-5, rtol=1e-4)


def test_test_images_are_dealt_evenly_and_are_no_training_images() -> None:
    parts = k_sparse.split("digits", 300, 1)
    assert len(parts.test) == 300 and len(parts.train) == 1497
    counts = np.bincount(parts.test_digit)
    assert counts.min() >= 28 and counts.max() <= 32
    whole, digit = k_sparse.images("digits")
    assert torch.equal(whole[parts.chosen], parts.test) and np.array_equal(digit[parts.chosen], parts.test_digit)
    assert not np.array_equal(k_sparse.split("digits", 300, 2).chosen, parts.chosen)
