"""Every kernel compiles ahead of time, without a device, and fits: no spills, bounded registers and shared memory."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
PARTS = ("code", "select", "topk", "batch", "operand", "backward", "weight", "fused")
SOURCE = "".join((REPOSITORY / "sae/kernels/gpu" / f"{part}_kernels.py").read_text() for part in PARTS)
KERNELS = {
    "group_max_kernel", "select_rows_kernel", "count_above_kernel", "compact_above_kernel", "entry_dots_kernel",
    "decode_kernel", "row_sums_kernel", "sum_parts_kernel", "sum_stats_kernel", "sum_dots_kernel",
    "add_left_kernel", "grad_norm_kernel", "adam_kernel", "grad_stats_kernel", "hot_stats_kernel", "fused_adam_kernel",
    "select_grouped_kernel", "rescore_kernel", "score_entries_kernel", "coarse_histogram_kernel", "list_groups_kernel",
    "histogram_kernel", "cut_kernel", "operand_kernel", "segments_kernel", "count_selected_kernel", "store_selected_kernel",
}


@pytest.fixture(scope="module", params=[90, pytest.param(80, marks=pytest.mark.slow)])
def report(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each kernel needs, at every shape, on one target: sm_90, and sm_80 by `make gpu-kernels`."""
    pytest.importorskip("triton", minversion="3.3")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "sae.kernels.gpu.ahead_of_time", str(request.param)], cwd=REPOSITORY, env=environment,
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_compiles(report: list[dict[str, Any]]) -> None:
    assert {entry["kernel"] for entry in report} == KERNELS


def test_every_kernel_of_the_file_is_compiled() -> None:
    assert {line.split("(")[0][4:] for line in SOURCE.splitlines() if line.startswith("def ") and "_kernel(" in line} == (
        KERNELS
    )


def test_masked_loads_say_what_the_masked_lanes_hold() -> None:
    """The interpreter fills them with zeros; a device leaves them undefined."""
    tree = ast.parse(SOURCE)
    loads = [
        {keyword.arg for keyword in node.keywords} for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load"
    ]
    assert len(loads) > 30 and all("other" in names for names in loads if "mask" in names)


def test_floats_are_never_added_atomically() -> None:
    """Only counts are."""
    atomics = [line.strip() for line in SOURCE.splitlines() if "tl.atomic" in line]
    assert atomics == ['tl.atomic_add(histogram_ptr + place, 1, mask=counted, sem="relaxed")']


def test_hardly_anything_spills(report: list[dict[str, Any]]) -> None:
    """At most 16 bytes a thread: the compiler parks up to four numbers rather than lose a program per multiprocessor."""
    assert [entry for entry in report if entry["spill_bytes"] > 16] == []
    assert sum(entry["spill_bytes"] == 0 for entry in report) > 0.95 * len(report)


def test_a_streaming_multiprocessor_holds_several_programs(report: list[dict[str, Any]]) -> None:
    """65,536 registers each: at least 16 warps of every kernel, 8 of the selections, which hold many candidates."""
    for entry in report:
        warps = 65536 // (entry["registers"] * 32)
        selects = entry["kernel"] in ("select_rows_kernel", "select_grouped_kernel")
        assert warps >= (8 if selects else 16), entry
        assert warps >= entry["num_warps"], entry


def test_shared_memory_is_small(report: list[dict[str, Any]]) -> None:
    """163 KiB (sm_80) and 227 KiB (sm_90) are there; four programs at once fit into the smaller."""
    assert max(entry["shared_bytes"] for entry in report) <= 163 * 1024 // 4
