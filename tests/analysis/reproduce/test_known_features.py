"""Short, fixed-seed forms of the experiments on synthetic data, and what they share."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.render.figures.png import heat_maps
from analysis.reproduce.jobs import reproduce
from analysis.reproduce.known_features import both_signs, ordered
from sae.code import from_dense
from tests.sae.toy import one_thread

CONFIGS = Path(__file__).parents[3] / "configs" / "reproduce"


def short(name: str, place: Path) -> dict[str, dict[str, Any]]:
    with one_thread():
        rows = reproduce(name, configs=CONFIGS, runs=place, short=True, quiet=True)
    return {row["setting"]: row for row in rows}


def test_matryoshka_tree(tmp_path: Path) -> None:
    rows = short("matryoshka-tree", tmp_path)
    assert rows["matryoshka"]["absorption"] < rows["batchtopk"]["absorption"]
    assert rows["matryoshka"]["f1"] > rows["batchtopk"]["f1"]
    assert (tmp_path / "matryoshka-tree-short" / "matryoshka-tree.png").read_bytes().startswith(b"\x89PNG")


def test_abstopk_bipolar(tmp_path: Path) -> None:
    rows = short("abstopk-bipolar", tmp_path)
    # of twice the width, TopK explains no more
    assert rows["abstopk-48"]["fve"] > rows["topk-48"]["fve"] + 0.05
    assert rows["abstopk-48"]["both_signs"] > 0.9
    assert rows["topk-96"]["both_signs"] == 0


def test_synthetic(tmp_path: Path) -> None:
    rows = short("synthetic", tmp_path)
    for row in rows.values():
        assert 0 < row["f1"] < 1 and row["mcc"] < 1 and 0 <= row["absorption"] <= 1 and row["bits"] > 0, row


def test_both_signs() -> None:
    values = torch.tensor([[1.0, -1, 2, 0], [1, 1, 2, 0], [1, -1, 3, 0], [-1, 2, 1, 0]] * 3)
    values[0, 0] = -1.0
    # a third, a half, none, never active
    assert both_signs(from_dense(values)).tolist() == [True, True, False, False]
    assert both_signs(from_dense(values), least=0.4).tolist() == [False, True, False, False]


def test_ordered() -> None:
    cosine = np.array([[0.1, -0.9, 0.2], [0.8, 0.0, 0.3]])
    assert ordered(cosine, np.array([1, 0])).tolist() == [[0.9, 0.1, 0.2], [0.0, 0.8, 0.3]]


def test_a_picture_is_what_its_numbers_say(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    heat_maps(tmp_path / "a.png", [np.array([[0.0, 1.0], [0.5, 1.0]]), np.ones((1, 1))])
    with image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (40, 60, 3)
    assert pixels[15, 15].tolist() == [255, 255, 255]
    assert pixels[15, 25].tolist() == pixels[15, 45 - 5].tolist() == [0, 64, 122]
    assert pixels[25, 15].tolist() == pytest.approx([128, 160, 188], abs=1)
    assert pixels[35, 15].tolist() == [225, 225, 225]
