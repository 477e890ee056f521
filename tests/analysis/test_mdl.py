"""Selection by description length: runs on disk against measuring each SAE by itself on the rows of its own evaluation."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.heldout import heldout_rows
from analysis.mdl import least_description
from sae import store
from sae.description import description_length
from sae.errors import SaescopeError
from training.config import read
from training.run import train

D, N = 12, 6000


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three SAEs of one site, and one of another."""
    root = tmp_path_factory.mktemp("selection")
    g = torch.Generator().manual_seed(0)
    for site, seed in (("here", 1), ("there", 2)):
        directions = torch.randn(20, D, generator=torch.Generator().manual_seed(seed))
        acts = (torch.rand(N, 20, generator=g) < 0.15) * torch.rand(N, 20, generator=g) @ directions
        (root / "acts" / site).mkdir(parents=True)
        np.save(root / "acts" / site / "rows.npy", acts.numpy())
    fields: dict[str, Any] = {
        "model": None, "corpus": {"sources": f"acts:{root / 'acts'}", "n_ctx": 32, "held_out": 0.2},
        "data": {"batch_rows": 256, "n_calib": 32, "superblock_rows": 1024}, "optim": {"lr": 1e-2},
        "train": {"budget": "150 steps", "dead_window": "2000 tokens"},
        "eval": {"n_rows": 500, "n_tokens": 0}, "cache": {"dir": str(root / "cache")},
    }
    for name, site, sae in (
        ("topk-2", "here", {"variant": "topk", "k": 2}), ("topk-6", "here", {"variant": "topk", "k": 6}),
        ("mdl", "here", {"variant": "mdl", "start_l0": 6, "sparsity": {"coefficient": 30}}),
        ("elsewhere", "there", {"variant": "topk", "k": 2}),
    ):
        train(fields | {"name": name, "site": site, "sae": sae | {"d_sae": 32}}, runs=root / "runs", quiet=True)
    return root / "runs"


def test_runs_come_by_their_bits_at_one_distortion(runs: Path) -> None:
    folders = [runs / name for name in ("topk-2", "topk-6", "mdl")]
    level, found = least_description([*folders, folders[0]], epsilon=0.01, n_rows=400)
    assert {one.run for one in found} == set(folders) and len(found) == 3
    rows, target = heldout_rows(read(folders[0] / "config.yaml")[0], 400)
    assert len(rows) == 13 * 32, "400, in whole sequences"
    assert torch.equal(rows, target)
    assert level == min(one.fve for one in found) - 0.01
    for one in found:
        own = description_length(store.load(one.run), rows, fve=level)
        assert one.length == own and one.fve == own.fve and own.fve_quantised >= level
        assert (one.variant, one.d_sae) == (one.run.name.split("-")[0], 32)
    bits = [one.length.bits for one in found if one.length]
    assert len(bits) == 3 and bits == sorted(bits)


def test_a_run_that_falls_short_comes_last_without_bits(runs: Path) -> None:
    folders = [runs / "topk-2", runs / "topk-6"]
    own = {one.run.name: one.fve for one in least_description(folders)[1]}
    assert own["topk-2"] < own["topk-6"]
    between = (own["topk-2"] + own["topk-6"]) / 2
    level, found = least_description(folders, fve=between)
    assert level == between
    assert [(one.run.name, one.length is None) for one in found] == [("topk-6", False), ("topk-2", True)]


def test_what_cannot_be_compared_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(SaescopeError, match=r"no run to compare; give the folders"):
        least_description([])
    with pytest.raises(SaescopeError, match=r"nowhere: no run lies here \(it has no config\.yaml\)"):
        least_description([runs / "mdl", runs / "nowhere"])
    with pytest.raises(SaescopeError, match=r"elsewhere: its site is not that of .*topk-2, so bits per row do not compare"):
        least_description([runs / "topk-2", runs / "elsewhere"])
    with pytest.raises(SaescopeError, match=r"no SAE of the sweep reaches FVE 0\.9999"):
        least_description([runs / "topk-2"], fve=0.9999)
    (tmp_path / "begun").mkdir()
    shutil.copy(runs / "topk-2" / "config.yaml", tmp_path / "begun")
    with pytest.raises(SaescopeError, match=r"begun"):
        least_description([tmp_path / "begun"])
