"""The short form of the digits' description lengths, and the measures of what features look like."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.render.figures.grid import Grid
from analysis.reproduce import mdl_digits
from analysis.reproduce.jobs import reproduce
from analysis.reproduce.mdl_digits_pictures import mean_map, telling
from sae.base import Transform
from sae.variants.topk import TopK, TopKConfig
from tests.sae.toy import one_thread

CONFIGS = Path(__file__).parents[3] / "configs" / "reproduce"


def test_mdl_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with one_thread():
        rows = reproduce("mdl-digits", configs=CONFIGS, runs=tmp_path, short=True, quiet=True)
    found = {row["setting"]: row for row in rows}
    assert set(found) == {"image", "pixel", "component", "d16-k1", "d16-k4", "d128-k1", "d128-k4"}
    assert found["pixel"]["fve"] == pytest.approx(1) and found["component"]["fve"] == pytest.approx(1)
    assert found["image"]["whole"] == pytest.approx(0.5, abs=0.01)
    # of one active feature each becomes an image's likeness, of four a part of it
    for width in ("d16", "d128"):
        assert found[f"{width}-k1"]["whole"] > 2 * found[f"{width}-k4"]["whole"]
    # bias included, 8 bits a weight, shared by the 1,422 training images
    n_sent = (found["d128-k4"]["total_at_0.4"] - found["d128-k4"]["train_at_0.4"]) * 1422 / (64 * 8) - 1
    assert n_sent == pytest.approx(round(n_sent)) and 16 < n_sent <= found["d128-k4"]["alive"]
    out = tmp_path / "mdl-digits-short"
    with (out / "mdl-digits-least.csv").open(newline="") as file:
        least = {line["setting"]: line for line in csv.DictReader(file)}
    grid = [row for name, row in found.items() if "k" in row and name.startswith("d")]
    for account in ("bits_at_0.4", "train_at_0.4", "total_at_0.4"):
        best = min(grid, key=lambda row: row[account])
        assert (int(least[account]["d_sae"]), int(least[account]["k"])) == (best["d_sae"], best["k"])
        assert float(least[account]["bits"]) == pytest.approx(best[account], rel=1e-5)
    assert (out / "mdl-digits-features.png").read_bytes().startswith(b"\x89PNG")
    assert "FVE 0.4" in (out / "mdl-digits.svg").read_text()


def test_a_dictionary_of_the_images_remembers_them_at_the_bits_of_their_number() -> None:
    """One feature for each of 64 images, one active: log2 64 bits, and the dictionary's 8 bits for each weight."""
    images = mdl_digits.digits()[:64]
    mean = images.mean(0)
    sae = TopK(TopKConfig(d_sae=64, k=1), 64, input=Transform(mean, torch.ones(())))
    shift = images - mean
    unit = shift / shift.norm(dim=1, keepdim=True)
    sae.W_dec.data.copy_(unit)
    sae.W_enc.data.copy_(unit.T)
    row = mdl_digits.measured(sae, images, mdl_digits.digits()[64:200], [0.99])
    assert row["fve_train"] == pytest.approx(1, abs=1e-6) and row["fve"] < 0.9
    assert (row["remembers"], row["whole"], row["images"], row["alive"]) == (1, 1, 1, 64)
    assert row["bits_at_0.99"] is None
    # each feature's value has a level of its own or none: nothing is left to say but the feature
    assert row["train_at_0.99"] == pytest.approx(-64 * (np.log2(1 / 64) / 64 + 63 / 64 * np.log2(63 / 64)), abs=1e-9)
    assert row["total_at_0.99"] - row["train_at_0.99"] == pytest.approx(65 * 64 * 8 / 64)


def test_looks() -> None:
    eye = torch.eye(4)
    spread = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    row = mdl_digits.looks(spread, eye, spread[:1], torch.tensor([3, 9]))
    # the held-out image is at 0.5 from its nearest, and so is the first direction; the second is nearer, at 0.71
    assert row["whole"] == 0.5 and row["remembers"] == 0.0
    assert row["pixels"] in (2.0, 4.0) and row["images"] in (3.0, 9.0)
    assert mdl_digits.nearness(spread, eye).tolist() == pytest.approx([0.5, 0.5**0.5])


def test_a_map_is_the_mean_over_seeds_that_all_have() -> None:
    def row(seed: int, d_sae: int, k: int, bits: float | None) -> dict:
        return {"seed": seed, "d_sae": d_sae, "k": k, "bits_at_0.8": bits}

    one = mean_map(
        [row(0, 8, 1, 2.0), row(1, 8, 1, 4.0), row(0, 16, 1, None), row(1, 16, 1, 1.0), row(0, 16, 2, 5.0)], "bits_at_0.8"
    )
    assert (one.rows, one.columns) == (["8", "16"], ["1", "2"])
    np.testing.assert_array_equal(one.values, [[3.0, np.nan], [np.nan, 5.0]])
    values = np.array([[9.0, 9, np.nan], [9, 1, 9], [9, 9, 9]])
    first, nothing = (Grid("a", ["2", "16", "32"], ["1", "2", "4"], v) for v in (values, np.full((3, 3), np.nan)))
    assert telling(first, nothing) == ["d2-k2", "d16-k2", "d32-k1"]
    assert telling(first, first) == ["d2-k2", "d16-k2", "d16-k2", "d32-k1"]
