"""Evaluations that need a model with words, on a small SAE of an early layer of SmolLM2."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import training
from analysis.evals.common.context import Context, open_context
from analysis.evals.metrics import absorption, bidirectional, interpretability, principled, probing
from sae.code import SparseCode, from_dense
from tests.analysis.evals.metrics.test_probing import write_modules
from tests.helpers import quick_fields

HOOK = "blocks.1.hook_resid_post"
FEW = principled.Settings((576,), n_train=32, n_test=3, n_place=1)


class Channels:
    """All coordinates, about nothing: an exact dictionary whose codes carry both signs."""

    d_sae = 576
    W_dec = torch.eye(576)

    def encode(self, x: Tensor) -> SparseCode:
        return from_dense(x)

    def decode(self, code: SparseCode) -> Tensor:
        return code.to_dense()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    root = tmp_path_factory.mktemp("words")
    write_modules(root / "code", 60)
    training.train(
        quick_fields(
            name="words", model={"name": "smollm2-135m"}, site=HOOK, cache={"dir": str(root / "cache")},
            corpus={"sources": f"text:{root / 'code'}/*.py", "n_ctx": 64, "n_tokens": 4096, "held_out": 0.3},
            sae={"variant": "topk", "d_sae": 256, "k": 16}, eval={"n_rows": 1024, "n_tokens": 0},
        ), runs=root / "runs", quiet=True)
    return open_context(root / "runs" / "words")


def values(metrics: dict) -> dict[str, float]:
    return {name: metric.value for name, metric in metrics.items()}


def test_all_coordinates_reconstruct_and_control_a_task_as_the_truth_does(context: Context) -> None:
    found = principled.run(context, Channels(), FEW)
    assert {"ioi", "ioi: receiver", "ioi: giver", "sva", "sva: number"} <= set(found.metrics)
    for task in ("ioi", "sva"):
        exact = values(found.metrics[task])
        assert exact["sufficiency"] == pytest.approx(1, abs=1e-3) and exact["variance"] == pytest.approx(1, abs=1e-5)
        assert exact["necessity"] == pytest.approx(1, abs=0.01)
    for edit in ("ioi: receiver", "ioi: giver", "sva: number"):
        by = values(found.metrics[edit])
        assert by["agreement_k576"] == 1 and by["effect_k576"] == pytest.approx(1, abs=1e-3)
        assert by["side_effects_k576"] == pytest.approx(0, abs=1e-4) and abs(by["effect_placebo"]) < 0.7


def test_supervised_dictionaries_are_the_skyline(context: Context) -> None:
    known = principled.references(context, FEW)
    for name in ("supervised", "difference in means"):
        assert values(known[name]["sva: number"])["effect_k576"] > 0.5
    assert values(known["no edit"]["sva: number"])["effect_k576"] == pytest.approx(0, abs=1e-4)


def test_bidirectionality_of_signed_and_unsigned_codes(context: Context) -> None:
    settings = bidirectional.Settings(n_pairs=8, n_features=1)
    unsigned, signed = (bidirectional.run(context, coder, settings).metrics for coder in (context.sae, Channels()))
    assert unsigned["signs"]["share_with_both"].value == 0 and signed["signs"]["share_with_both"].value > 0.3
    assert unsigned["opposites"]["one_feature"].value <= 0.75
    for metrics in (unsigned, signed):
        assert 0.4 < metrics["opposites"]["one_feature"].value <= 1
        assert -1.001 <= metrics["logits"]["cosine"].value <= 1
    mean = bidirectional.skyline(context, settings)["difference in means"]["opposites"]["pair"].value
    assert mean is not None and mean > 0.8
    steering = values(signed["steering"])
    assert set(steering) == {f"{a}_{b}" for a in ("effect", "two_sided") for b in ("one_feature", "pair", "random")}
    assert abs(steering["effect_random"]) < 0.5


def test_first_letters_are_looked_for_in_words(context: Context) -> None:
    found = absorption.run(context, context.sae, absorption.Settings(n_words=2016))
    metrics = values(found.metrics["first letter"])
    assert 0 <= metrics["hierarchical"] <= metrics["fraction_0.6"] <= 1 and metrics["main_features"] >= 1
    assert found.units["rows"].kind == "word" and len(found.units["rows"].id) == 2016
    letters, full = (found.features[name].values for name in ("absorbed_concept", "absorption"))
    main = {feature for record in found.details for feature in record["main_features"]}
    assert {feature for feature, letter in enumerate(letters) if letter} == set(np.flatnonzero(np.isfinite(full))) == main


def test_token_classes_and_labels(context: Context) -> None:
    found = probing.run(context, context.sae, probing.Settings(n_fit=1500, n_test=1500))
    assert found.metrics["tokens"]["accuracy_k5"].value > 0.6
    labels = interpretability.run(context, context.sae, interpretability.Settings(n_features=8))
    scores = values(labels.metrics["labels"])
    assert scores["detection"] > scores["detection_baseline"] - 0.05 and 0 < scores["share_judged"] <= 1
    assert 0 < labels.metrics["tokens"]["entropy_share"].value < 1.2
    entropy, detection = (labels.features[name].values for name in ("token_entropy", "detection"))
    assert entropy.shape == detection.shape == (256,) and np.isfinite(entropy).any()
    assert np.nanmean(detection) == pytest.approx(labels.metrics["labels"]["detection"].value)


def test_the_runs_folder_is_left_alone(context: Context) -> None:
    assert not (Path(context.trained.folder) / "evals").exists()
