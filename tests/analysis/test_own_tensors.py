"""A run of one's own tensors is listed like any other; an index needs its rows on disk."""

from pathlib import Path

import numpy as np
import pytest

from analysis import runs
from analysis.index import build
from sae.errors import SaescopeError
from training import train_on


def test_it_is_listed_and_indexed_from_rows_in_a_folder(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(4096, 8)).astype(np.float32)
    result = train_on(
        rows, {"variant": "topk", "d_sae": 16, "k": 2}, name="own", runs=tmp_path / "runs", quiet=True,
        corpus={"n_ctx": 32}, data={"batch_rows": 256, "n_calib": 16},
        train={"budget": "20 steps", "device": "cpu", "kernels": "reference"},
    )
    (run,) = runs.find(tmp_path / "runs")
    assert (run.name, run.finished, run.problems) == ("own", True, ())
    assert run.config["model"] is None and run.config["corpus"]["sources"][0]["source"] == "tensors"
    assert run.latest("heldout/fve") == result.summary["heldout"]["fve"]
    assert result.folder is not None
    with pytest.raises(SaescopeError, match=r"from Python.*acts:FOLDER"):
        build(result.folder, quiet=True)
    (tmp_path / "acts").mkdir()
    np.save(tmp_path / "acts" / "0.npy", rows)
    index = build(result.folder, corpus=[f"corpus.sources=acts:{tmp_path / 'acts'}"], quiet=True)
    assert (index.n_seqs, index.n_ctx) == (128, 32)
