"""Results on disk: what is written comes back, equal results make equal bytes, anything else is refused in a sentence."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.evals.common import result
from analysis.evals.common.intervals import plain, ratio
from analysis.evals.common.result import EvalResult, Found, Units
from sae.errors import SaescopeError


def made() -> EvalResult:
    rng, n = np.random.default_rng(0), np.array([3.0, 0, *[2] * 10])
    share = ratio(rng.random(12), n + 1, n, unit="share", direction="higher", formula="a / b")
    metrics = {"group": {"share": share, "none": plain(None, unit="nats", direction="lower", formula="log", n=0)}}
    units = {"rows": Units("document", np.arange(12), n)}
    own = Found(metrics, units, ({"kind": "letter", "letter": "a"},), notes=("A note.",))
    return EvalResult(
        "core", "a title", 1, "sweep/a", {"id": "abc", "rows": {"site": "x"}}, {"bits": [1, 2]}, {"variant": "topk"}, own,
        {"pca": Found({"group": {"share": replace(share, value=0.1)}}, units)}, ("random-model",), {"probe": metrics},
    )


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = result.write(made(), tmp_path)
    assert path == tmp_path / "evals" / "core.json" and result.results(tmp_path) == [path]
    again = result.read(path)
    assert result.write(again, tmp_path / "other").read_bytes() == path.read_bytes()
    metric, old = again.metric("group", "share"), made().metric("group", "share")
    assert metric is not None and old is not None
    assert (metric.value, metric.low, metric.unit) == (old.value, old.low, "share")
    np.testing.assert_array_equal(metric.pseudo, old.pseudo)
    assert again.controls["pca"].metrics["group"]["share"].value == 0.1 and again.lacking == ("random-model",)
    assert again.metric("group", "nothing") is None


def test_order_survives(tmp_path: Path) -> None:
    """JSON is written with sorted keys, and figures are shown in the order in which they were found."""
    found = made()
    again = result.read(result.write(replace(found, controls={"z": found.found, "a": found.found}), tmp_path))
    assert list(again.controls) == ["z", "a"] and list(again.found.metrics["group"]) == ["share", "none"]


def test_the_names_are_those_of_saebench(tmp_path: Path) -> None:
    plain_ = json.loads(result.write(made(), tmp_path).read_text())
    assert plain_["eval_type_id"] == "core" and plain_["eval_result_metrics"]["group"]["none"] is None
    assert plain_["eval_result_metrics"]["group"]["share"] == plain_["metrics"][0]["value"]
    for name in ("eval_config", "eval_id", "datetime_epoch_millis", "eval_result_details", "sae_bench_commit_hash",
                 "sae_lens_id", "sae_lens_release_id", "sae_lens_version", "sae_cfg_dict"):
        assert name in plain_


@pytest.mark.parametrize("damage", [
    {"format": "other"}, {"format_version": 2}, {"metrics": [{"group": "group", "name": "share", "value": 1}]},
    {"units": None}, {"controls": [{"name": "pca"}]},
])
def test_what_is_not_a_result_is_refused(tmp_path: Path, damage: dict) -> None:
    path = result.write(made(), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(SaescopeError, match=r"core\.json"):
        result.read(path)
