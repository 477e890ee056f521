"""The short, fixed-seed forms of the experiments on a language model: a tiny model of random weights, some seconds each."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from analysis.reproduce.jobs import reproduce
from analysis.reproduce.l0_targets import spread
from analysis.reproduce.mdl_lm import least_bits

FVES = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Of mdl-lm's short form."""
CONFIGS = Path(__file__).parents[3] / "configs" / "reproduce"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: their corpus is the same, and reading the library's sources takes longer than a training."""
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture
def short(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(place)

    def run(name: str) -> dict[str, dict[str, Any]]:
        rows = reproduce(name, configs=CONFIGS, runs=place / "runs", short=True, quiet=True)
        return {row["setting"]: row for row in rows}

    return run


def test_active_subspace(short: Any) -> None:
    rows = short("active-subspace")
    attn = rows["blocks.0.hook_attn_out"]
    assert 1 <= attn["dims_0.9"] <= attn["dims_0.99"] <= attn["d"] == 32
    assert 1 <= attn["effective_rank"] <= 32
    for name in ("random", "active", "active-sparse-adam"):
        assert rows[name]["fve"] > 0 and 0 <= rows[name]["dead"] <= 1


def test_l0_targets(short: Any) -> None:
    """The targets are reached in 200 steps, and what is told of them agrees."""
    rows = short("l0-targets")
    assert set(rows) == {"jumprelu-6", "relu-6"}
    for row in rows.values():
        assert row["l0"] == pytest.approx(6, rel=0.1)
        assert row["relative_error"] == pytest.approx(row["l0"] / 6 - 1)
        assert row["heldout_error"] == pytest.approx(row["heldout_l0"] / 6 - 1)
        assert row["reached"] == (abs(row["relative_error"]) <= 0.05)
        assert row["target"] == 6 and row["fve"] > 0
        assert row["spread"] == pytest.approx(0, abs=1e-9)  # each sample takes all of the few documents


def test_spread_is_that_of_means_of_draws_without_repetition() -> None:
    """Documents of one row each: s √(1/m − 1/n). Where a document has most rows, it weighs as much."""
    value = np.random.default_rng(0).normal(size=60)
    expected = value.std(ddof=1) * (1 / 12 - 1 / 60) ** 0.5
    assert spread(value, np.arange(60) * 7, 12, seed=1, draws=4000) == pytest.approx(expected, rel=0.05)
    assert spread(value, np.arange(60), 60, seed=1) == pytest.approx(0, abs=1e-12)
    long = spread(np.array([1.0] * 9 + [0.0]), np.array([3] * 9 + [5]), 1, seed=0, draws=4000)
    assert long == pytest.approx(0.5, rel=0.01), "means 1 and 0, each document as likely as the other"


def test_variants(short: Any) -> None:
    rows = short("variants")
    for row in rows.values():
        assert row["l0"] == pytest.approx(4, rel=0.4)
        assert row["fve"] > 0.1 and row["fve_equal"] < row["fve"] and row["cosine"] > 0.2
        assert 0 < row["bits_equal"] <= row["bits"] * 1.01 and row["ce_recovered"] is not None
        assert row["tokens_per_cpu_s"] > 0


def test_icfl(short: Any) -> None:
    rows, kinds = short("icfl"), ("plain", "white", "white-unit")
    names = [f"{name}-{kind}" for name in ("topk", "topk-no-auxk", "icfl", "icfl-frozen") for kind in kinds]
    assert set(rows) == {f"images {name}" for name in names}
    for kind in kinds:
        learnt, frozen = (rows[f"images {name}-{kind}"] for name in ("icfl", "icfl-frozen"))
        assert learnt["fve"] > frozen["fve"] and learnt["cosine_white"] > frozen["cosine_white"]
    # an axis counts as much as it varies in one space, and alike in the other
    plain, white = (rows[f"images icfl-{kind}"] for kind in ("plain", "white"))
    assert plain["fve"] > white["fve"] and plain["fve_white"] < white["fve_white"]


def test_evaluations(short: Any, place: Path) -> None:
    """Variants and their controls, of both kinds, and which figures tell them apart."""
    rows = short("evaluations")
    controls = {"random", "pca", "channels", "frozen-decoder", "frozen-encoder", "random-model"}
    assert set(rows) == {"topk", "abstopk", *controls, *(f"{name}-signed" for name in controls)}
    assert rows["topk"]["core.sparsity.l0"] == rows["random"]["core.sparsity.l0"] == 4
    assert rows["abstopk"]["core.sparsity.l0_negative"] > 0 == rows["topk"]["core.sparsity.l0_negative"]
    with (place / "runs" / "evaluations-short" / "evaluations-separation.csv").open() as file:
        table = {row["figure"]: row for row in csv.DictReader(file)}
    judged = table["core.reconstruction.fve"]
    assert judged["variants"] == "2" and judged["pairs"] == "1" and "core.sparsity.l0" not in table
    assert all(0 <= int(judged[f"better_than_{control}"]) <= 2 for control in controls)


def test_learning_rate(short: Any, place: Path) -> None:
    """A higher rate explains more in so few steps; weights are not kept."""
    rows = short("learning-rate")
    low, high = (rows[f"topk-2304-800k {name}"] for name in ("lr-1e-3", "lr-1e-2"))
    assert high["fve"] > low["fve"] + 0.1
    for row in (low, high):
        assert row["fve_low"] < row["fve"] < row["fve_high"] and 0 <= row["silent"] <= 1
        assert 0 < row["grad_norm_least"] <= row["grad_norm"]
    assert not (place / "runs" / "learning-rate-short" / "topk-2304-800k-0").exists()


def test_dead_window(short: Any) -> None:
    rows = short("dead-window")
    assert set(rows) == {"topk-1152-400k 10pc", "topk-1152-400k no-auxk"}
    assert all(0 <= row["dead"] <= 1 for row in rows.values())


def test_refine(short: Any) -> None:
    """Each further step explains more by no more features, and takes longer."""
    rows = short("refine")
    assert set(rows) == {f"{name} {n}" for name in ("topk-4", "abstopk-4") for n in (0, 1, 3, 10)}
    for name in ("topk-4", "abstopk-4"):
        found = [rows[f"{name} {n}"] for n in (0, 1, 3, 10)]
        fves, l0s = ([row[key] for row in found] for key in ("fve", "l0"))
        assert fves == sorted(fves) and fves[1] > fves[0] + 0.01
        assert all(l0 <= l0s[0] for l0 in l0s) and l0s[0] <= 4
        assert found[0]["times"] == found[0]["kept"] == 1 < found[3]["times"] and 0 < found[3]["kept"] < 1
        assert found[3]["us_per_row"] / found[0]["us_per_row"] == pytest.approx(found[3]["times"])


def test_masking(short: Any, place: Path) -> None:
    """In 200 steps already: less of the noise is reconstructed, more of what is behind it."""
    rows = short("masking")
    plain, hidden = (rows[f"noise-2 topk-8-128-{hide}"] for hide in ("0", "0.3"))
    assert hidden["fve"] < plain["fve"] and hidden["fve_clean"] > plain["fve_clean"] + 0.1
    assert hidden["mmc"] > 0.5 and 0 < hidden["l0"] <= 8 == plain["l0"]
    assert (place / "runs" / "masking-short" / "masking.svg").read_text().count("<circle") == 2


def test_mdl_lm(short: Any) -> None:
    """The least of each sweep at each FVE is its column's minimum, or a mixture's; whoever surpasses it has bits there."""
    rows, compared = short("mdl-lm"), 0
    for fve in FVES:
        column, least = f"bits_at_{fve:g}", {}
        for kind in ("topk", "mdl"):
            of_kind = [row for name, row in rows.items() if name.startswith(kind)]
            assert all(row[column] > 0 for row in of_kind if row["fve"] > fve + 0.01)
            least[kind] = rows[f"best-{kind}"][column]
            alone = min((row[column] for row in of_kind if row[column] is not None), default=None)
            assert least[kind] is None if alone is None else 0 < least[kind] <= alone
        if least["topk"] and least["mdl"]:
            assert rows["saved"][column] == pytest.approx(1 - least["mdl"] / least["topk"])
            compared += 1
    assert compared
    for name in ("topk-4", "topk-8", "mdl-10", "mdl-30"):
        assert rows[name]["bits"] > 0 and rows[name]["fve"] > 0
    drawn = sum(rows[f"best-{kind}"][f"bits_at_{fve:g}"] is not None for kind in ("topk", "mdl") for fve in FVES)
    assert Path("runs/mdl-lm-short/mdl-lm.svg").read_text().count("<circle") == drawn


def test_least_bits_is_the_optimum_over_shares_of_the_rows() -> None:
    """Against the linear programme: shares that add to 1 and keep the FVE, at least bits."""
    points = np.random.default_rng(0).uniform([0.5, 50], [0.9, 400], size=(12, 2))
    listed = [(float(fve), float(bits)) for fve, bits in points]
    for level in np.linspace(0.4, float(points[:, 0].max()), 20):
        best = linprog(points[:, 1], A_ub=-points[:, :1].T, b_ub=[-level], A_eq=np.ones((1, 12)), b_eq=[1])
        assert least_bits(listed, float(level)) == pytest.approx(best.fun)
    assert least_bits(listed, 0.95) is None and least_bits([], 0.5) is None
