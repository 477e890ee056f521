"""The kernel benchmark, at a size that takes a moment."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sae.errors import SaescopeError
from training.bench.compared_steps import Dense, ours
from training.bench.kernels import bench_kernels
from training.bench.memory import peak_of
from training.bench.setup import Setup, Shape, Stopwatch, file_name, machine
from training.bench.tables import show
from training.bench.whole_steps import N_STEPS, CapturedDense, Trained

TINY = Shape(32, 16, 128, 4)


def test_everyone_takes_the_same_steps_and_learns_alike() -> None:
    figures = bench_kernels(
        [TINY], repeats=2, warmup=1, loss_steps=12, dead_shares=(0.0,), memory=False, compiled=False
    )
    json.dumps(figures)
    (result,) = figures["results"]
    rows = {row["name"]: row for row in result["contestants"]}
    assert all(row["loss_after_steps"] == 12 and row["ms"]["median"] > 0 for row in rows.values())
    dense, ours = rows["dense eager fp32"]["loss"], rows["saescope topk fp32"]["loss"]
    assert abs(ours - dense) < 1e-3 * dense
    assert result["breakdown_ms"]["saescope topk fp32"]["encoder product"] > 0
    for row in rows.values():
        assert list(row["parts_ms"]) == ["forward", "backward", "optimiser", "counts"]
        assert row["share_of_floor"] > 0 and 0 < row["product_ms"] < row["ms"]["median"]


def test_auxk_memory_and_an_environment_without_the_libraries() -> None:
    figures = bench_kernels(
        [TINY], repeats=2, warmup=1, variants=("topk",), precisions=("fp32",), dense=False, compiled=False,
        dead_shares=(0.1,), peers=Path(sys.executable),
    )
    (result,) = figures["results"]
    names = [missing.split(":")[0] for missing in result["missing"]]
    assert names == ["SAELens fp32", "dictionary_learning fp32", "sparsify fp32"]
    assert 20 < result["peak_mib"]["saescope topk fp32"] < 4000
    console = Console(record=True, width=200)
    show(figures, console.print)
    text = console.export_text()
    assert "not measured: SAELens" in text and "AuxK" in text


def test_the_data_is_the_same_for_the_same_seed() -> None:
    assert (Setup.make(TINY, seed=3).batches == Setup.make(TINY, seed=3).batches).all()
    assert (Setup.make(TINY, seed=3).batches != Setup.make(TINY, seed=4).batches).any()


def test_the_dense_step_in_bf16_learns_as_in_fp32() -> None:
    setup = Setup.make(TINY, dead_share=0.1)
    full, half = Dense(setup), Dense(setup, "bf16")
    for batch in range(8):
        losses = [contestant.step(batch).loss for contestant in (full, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("variant", ["topk", "matryoshka"])
def test_whole_training_steps_learn_as_the_kernels_alone(variant: str) -> None:
    setup = Setup.make(TINY)
    whole, alone = Trained(setup, variant, "fp32"), ours(setup, variant, "fp32")
    whole.step(0)
    for batch in range(N_STEPS):
        alone.step(batch % len(setup.batches))
    # both before the step that comes next, on its batch
    x, after = setup.batches[0], alone.step(0)
    assert float((x - whole.trainer.sae(x)).square().sum() / len(x)) == pytest.approx(after.loss, rel=1e-3)


def test_features_are_dead_in_whole_training_steps_where_some_are_to_be() -> None:
    setup = Setup.make(TINY, dead_share=0.1)
    whole = Trained(setup, "topk", "fp32")
    assert setup.dead is not None and bool(whole.trainer.dead()[setup.dead].all()) and whole.step(3).ms > 0


def test_the_dense_step_that_can_be_captured_is_the_dense_step() -> None:
    setup = Setup.make(TINY, dead_share=0.1)
    plain, fast = Dense(setup), CapturedDense(setup, "fp32")
    turn = fast.step(0)
    for batch in range(N_STEPS):
        loss = plain.step(batch % len(setup.batches)).loss
    assert turn.loss == pytest.approx(loss, rel=1e-5) and torch.equal(plain.fired, fast.fired)


def test_laps_are_times_between_marks() -> None:
    watch = Stopwatch(torch.device("cpu"))
    time.sleep(0.02)
    watch.lap("asleep")
    watch.lap("awake")
    laps = watch.laps()
    assert list(laps) == ["asleep", "awake"] and laps["asleep"] >= 19 > laps["awake"] >= 0


def test_a_file_of_figures_names_the_device() -> None:
    assert file_name("kernels", {"machine": {"gpu": "NVIDIA H100 80GB"}}) == "kernels-nvidia-h100-80gb.json"
    assert file_name("train", {"machine": machine()}).startswith("train-")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"device": "abacus"}, "abacus"), ({"device": "mps"}, "not for mps"), ({"variants": ("relu",)}, "relu")],
)
def test_what_cannot_be_measured_is_named(settings: dict, message: str) -> None:
    with pytest.raises(SaescopeError, match=message):
        bench_kernels([TINY], **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(SaescopeError, match="finds no CUDA device"):
        bench_kernels([TINY], device="cuda")


@pytest.mark.slow
def test_a_step_with_262144_features_fits_8_gib() -> None:
    """`make bench-memory` prints the figure."""
    mib = peak_of(Shape(4096, 768, 262_144, 32), "topk")
    sys.stdout.write(f"peak of a TopK step with d_sae 262,144, d_in 768, 4,096 rows: {mib / 1024:.2f} GiB\n")
    assert mib <= 8 * 1024


@pytest.mark.gpu
def test_on_a_device() -> None:
    figures = bench_kernels([Shape(256, 64, 2048, 16)], device="cuda", repeats=2, warmup=1, compiled=False)
    names = {row["name"] for result in figures["results"] for row in result["contestants"]}
    assert {"sae train topk bf16", "dense captured bf16"} <= names
    assert all(row["ms"]["median"] > 0 for result in figures["results"] for row in result["contestants"])
    assert all(mib > 0 for result in figures["results"] for mib in result["peak_mib"].values())
