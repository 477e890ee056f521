"""The kernel benchmark, at a size that takes a moment."""

import json
import sys
from pathlib import Path

from rich.console import Console

from training.bench_kernels import Setup, Shape, bench_kernels, show

TINY = Shape(32, 16, 128, 4)


def test_everyone_takes_the_same_steps_and_learns_alike() -> None:
    figures = bench_kernels([TINY], repeats=2, warmup=1, loss_steps=12, dead_shares=(0.0,), memory=False)
    json.dumps(figures)
    (result,) = figures["results"]
    rows = {row["name"]: row for row in result["contestants"]}
    assert all(row["loss_after_steps"] == 12 and row["ms"]["median"] > 0 for row in rows.values())
    dense, ours = rows["dense eager"]["loss"], rows["saescope topk fp32"]["loss"]
    assert abs(ours - dense) < 1e-3 * dense
    assert result["breakdown_ms"]["saescope topk fp32"]["encoder product"] > 0


def test_auxk_memory_and_an_environment_without_the_libraries() -> None:
    figures = bench_kernels(
        [TINY], repeats=2, warmup=1, variants=("topk",), precisions=("fp32",), dense=False, dead_shares=(0.1,),
        peers=Path(sys.executable),
    )
    (result,) = figures["results"]
    assert [missing.split(":")[0] for missing in result["missing"]] == ["SAELens", "dictionary_learning"]
    assert 20 < result["peak_mib"]["saescope topk fp32"] < 4000
    console = Console(record=True, width=200)
    show(figures, console.print)
    text = console.export_text()
    assert "not measured: SAELens" in text and "AuxK" in text


def test_the_data_is_the_same_for_the_same_seed() -> None:
    assert (Setup.make(TINY, seed=3).batches == Setup.make(TINY, seed=3).batches).all()
    assert (Setup.make(TINY, seed=3).batches != Setup.make(TINY, seed=4).batches).any()
