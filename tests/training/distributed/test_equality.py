"""A training on several ranks is the training on one, whatever they share."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sae
from sae.base import SAE
from tests.training.distributed.configs import STEPS, VARIANTS, D, config, resolved
from tests.training.distributed.launched import metrics
from tests.training.distributed.ranks import results
from training.distributed.traffic import bytes_per_step
from training.run import train


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where variants are trained by one process, once."""
    return tmp_path_factory.mktemp("alone")


def work(runs: Path, shards: int, variants: list[str]) -> None:
    for variant in variants:
        train(config(variant, shards=shards), runs=runs, quiet=True)


@pytest.mark.parametrize(("n", "shards", "variants"), [
    (2, 1, ["jumprelu"]), (2, 2, ["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "whitened"]),
    *(pytest.param(n, shards, list(VARIANTS), marks=pytest.mark.slow) for n, shards in ((2, 1), (2, 2), (4, 2), (4, 4))),
])
def test_losses_supports_and_figures_are_those_of_one_process(
    alone: Path, tmp_path: Path, n: int, shards: int, variants: list[str]
) -> None:
    results(n, lambda: work(tmp_path / "runs", shards, variants), tmp_path / "ranks")
    for variant in variants:
        train(config(variant), runs=alone, resume=(alone / variant).exists(), quiet=True)
        there, here = metrics(alone / variant), metrics(tmp_path / "runs" / variant)
        assert len(there) == len(here) >= STEPS
        for expected, found in zip(there, here, strict=True):
            assert expected.keys() == found.keys()
            for key in expected.keys() - {"dense_steps"}:  # which products are faster is each rank's own choice
                assert close(expected[key], found[key]), (variant, found["step"], key, expected[key], found[key])
        same_sae(sae.load(alone / variant), sae.load(tmp_path / "runs" / variant))
        summaries = [json.loads((runs / variant / "summary.json").read_text()) for runs in (alone, tmp_path / "runs")]
        assert summaries[0]["dead"] == summaries[1]["dead"]
        assert close(summaries[0]["heldout"]["fve"], summaries[1]["heldout"]["fve"])
    if "topk" in variants:
        assert any(line.get("loss/auxk", 0) > 0 for line in metrics(tmp_path / "runs" / "topk")), "AuxK had nothing to do"


def close(a: Any, b: Any) -> bool:
    if isinstance(a, float):
        return bool(abs(a - b) <= 1e-5 * abs(a) + 1e-6)
    return isinstance(a, list) or a == b


def same_sae(a: SAE, b: SAE) -> None:
    rows = 3 * torch.randn(500, D, generator=torch.Generator().manual_seed(5)) + a.target.mean
    one, other = a.encode(rows).csr(), b.encode(rows).csr()
    assert one.feature.numel() > 500
    assert one.feature.numel() == other.feature.numel() and bool((one.feature == other.feature).float().mean() > 0.999)
    for (name, there), (_, here) in zip(a.tensors(), b.tensors(), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4, msg=f"{a.config.variant} {name}")


@pytest.mark.parametrize(("n", "shards"), [pytest.param(2, 1, marks=pytest.mark.slow), (2, 2)])
def test_bytes_on_the_wire_are_those_predicted(tmp_path: Path, n: int, shards: int) -> None:
    variants = ["abstopk", "batchtopk"] if shards == 2 else ["gated"]

    def work() -> None:
        for variant in variants:
            # nothing is dead before the window is over, so that AuxK sends nothing
            train(config(variant, shards=shards, dead_window="10000 tokens"), runs=tmp_path / "runs", quiet=True)

    results(n, work, tmp_path / "ranks")
    for variant in variants:
        sent = json.loads((tmp_path / "runs" / variant / "summary.json").read_text())["ranks"]["sent_bytes"]
        predicted = bytes_per_step(resolved(variant, shards=shards), D, D, n)
        found = {kind: sent.get(kind, 0) / STEPS for kind in predicted}
        assert found == predicted, variant
        assert sent["scalars"] < STEPS * 1000 + 10_000
