"""The table of which figures tell variants apart and from their controls, of results made by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from analysis.evals.common.intervals import plain, ratio
from analysis.evals.common.result import EvalResult, Found, Metric, Units
from analysis.reproduce.evaluations import separation

N = np.ones(20)


def figure(mean: float, seed: int, direction: str = "higher") -> Metric:
    noise = np.random.default_rng(seed).normal(0, 0.1, 20)
    return ratio(mean + noise, N, N, unit="share", direction=direction, formula="f")  # type: ignore[arg-type]


def result(own: float, seed: int, controls: dict[str, float], direction: str) -> EvalResult:
    units = {"rows": Units("document", np.arange(20), N)}
    extra = {"count": plain(3.0, unit="", direction="none", formula="n", n=1)}
    found = Found({"g": {"x": figure(own, seed, direction), **extra}}, units)
    others = {name: Found({"g": {"x": figure(mean, seed + 50, direction)}}, units) for name, mean in controls.items()}
    return EvalResult("core", "t", 1, "r", {}, {}, {}, found, others)


def seeds(own: float, controls: dict[str, float] | None, direction: str) -> Sequence[dict[str, EvalResult]]:
    return [{"core": result(own + 0.01 * seed, 7 * seed, controls or {}, direction)} for seed in range(3)]


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_better_worse_and_apart(direction: str) -> None:
    own = {"a": 1.0, "b": 1.0, "c": 3.0, "s": 3.0}
    first = {"random": 0.0, "pca": 2.0}
    found = {
        name: seeds(mean, first if name == "a" else {"random": 5.0} if name == "s" else None, direction)
        for name, mean in own.items()
    }
    (row,) = separation(found, {"a": False, "b": False, "c": False, "s": True})
    better, worse = ("better", "worse") if direction == "higher" else ("worse", "better")
    # a, b and c are above 0, and c alone is above 2; s is compared with the controls of signed codes, and is below 5
    assert (row[f"{better}_than_random"], row[f"{worse}_than_random"]) == (3, 1)
    assert (row[f"{better}_than_pca"], row[f"{worse}_than_pca"]) == (1, 2)
    assert row["better_than_random-model"] is None
    assert (row["variants"], row["pairs"], row["pairs_apart"]) == (4, 6, 4)
    assert row["best"] in (("c", "s") if direction == "higher" else ("a", "b"))
    assert row["figure"] == "core.g.x"
