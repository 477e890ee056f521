"""Sites that cannot be trained on, and rows from which no subspace can be taken: one sentence each, before any training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae.errors import SaescopeError
from training.run import train
from training.site import Site

ROWS = 4096
TOPK = {"variant": "topk", "d_sae": 64, "k": 4}


def config(folder: Path, site: Any, sae: dict[str, Any] = TOPK) -> dict[str, Any]:
    return {
        "name": "run", "model": None, "site": site, "corpus": {"sources": f"acts:{folder}", "n_ctx": 32, "held_out": 0.1},
        "data": {"batch_rows": 256, "n_calib": 32}, "sae": sae, "train": {"budget": "1 epochs"},
    }


def folder_of(tmp_path: Path, **hooks: np.ndarray) -> Path:
    for hook, rows in hooks.items():
        (tmp_path / "acts" / hook).mkdir(parents=True)
        np.save(tmp_path / "acts" / hook / "0.npy", rows.astype(np.float32))
    return tmp_path / "acts"


def noise(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SaescopeError, match=message):
        train(fields, runs=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs" / "run" / "config.yaml").exists(), "nothing was begun"


def test_input_and_target_of_different_lengths(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a=noise(ROWS, 8), b=noise(ROWS - 32, 8))
    refused(tmp_path, config(folder, {"input": "a", "target": "b"}), r"different numbers of rows \(a 4,096, b 4,064\)")


def test_the_difference_of_hooks_of_different_widths(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a=noise(ROWS, 8), b=noise(ROWS, 6))
    site = {"input": "a", "target": "b", "update": True}
    refused(tmp_path, config(folder, site), "b has rows of width 6, a of 8")


def test_a_subspace_larger_than_the_activations(tmp_path: Path) -> None:
    sae = TOPK | {"init": {"directions": "active_subspace", "subspace": 9}}
    folder = folder_of(tmp_path, a=noise(ROWS, 8))
    refused(tmp_path, config(folder, "a", sae), r"init\.subspace = 9 exceeds the width 8 of the activations; give at")


def test_a_constant_corpus(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a=np.ones((ROWS, 8)))
    for init in ({}, {"init": {"directions": "active_subspace"}}):
        refused(tmp_path, config(folder, "a", TOPK | init), "a: all .* calibration targets are the same")


@pytest.mark.parametrize(("update", "x", "target"), [(False, 1.0, 4.0), (True, 1.0, 3.0), ("both", 3.0, 3.0)])
def test_what_a_site_reads_and_reconstructs(update: bool | str, x: float, target: float) -> None:
    acts = {"a": torch.full((2, 3), 1.0), "b": torch.full((2, 3), 4.0)}
    rows = Site(input="a", target="b", update=update).rows(acts)
    assert torch.equal(rows.x, torch.full((2, 3), x))
    assert torch.equal(rows.target, torch.full((2, 3), target))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("update", [False, True, "both"])
@pytest.mark.parametrize("target", ["a", "b", None])
def test_a_perfect_reconstruction_gives_the_activation_back(
    target: str | None, update: bool | str, dtype: torch.dtype
) -> None:
    if update and target != "b":
        with pytest.raises(ValueError, match="target that differs from the input"):
            Site(input="a", target=target, update=update)
        return
    site = Site(input="a", target=target, update=update)
    acts = {name: torch.randn(2, 3, 5).to(dtype) for name in site.hooks}
    wide = torch.promote_types(dtype, torch.float32)
    back = site.activation(site.rows(acts).target.to(wide), acts)
    assert back.dtype == wide
    torch.testing.assert_close(back, acts[site.output].to(wide))


def test_one_tensor_where_what_is_read_is_reconstructed() -> None:
    acts = {"a": torch.randn(2, 3), "b": torch.randn(2, 3)}
    for site in (Site(input="a"), Site(input="a", target="b", update="both")):
        rows = site.rows(acts)
        assert rows.x is rows.target and not site.cross
