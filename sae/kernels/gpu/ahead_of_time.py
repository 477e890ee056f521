"""Compile every kernel as it would be launched, without a GPU, and report its resource usage.

    python -m sae.kernels.gpu.ahead_of_time [capability ...]      JSON, one object per kernel, shape and target

Launches are recorded on meta tensors with realistic training shapes, so signatures, tiles and warps are the real ones.
Must run in a process without triton's interpreter; needs triton ≥ 3.3 (3.2 has another compile interface).
"""

import json
import re
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.code import SparseCode
from sae.kernels.gpu import backward, batch, operands, optimizer, products, select
from sae.kernels.gpu import fused as gpu_fused
from sae.kernels.gpu import launch as gpu_launch
from sae.kernels.gpu.caches import Copies
from sae.kernels.gpu.launch import Launch
from sae.kernels.interface import ParamState


@dataclass(frozen=True)
class Shape:
    """Sizes of an SAE."""

    d_in: int
    d_out: int
    d_sae: int
    k: int
    dtype: torch.dtype
    """Dtype of gathered rows."""


SHAPES = (
    Shape(768, 768, 16384, 32, torch.float32),
    Shape(2304, 2304, 65536, 64, torch.bfloat16),
    Shape(4096, 4096, 131072, 128, torch.bfloat16),
    Shape(4096, 4096, 131072, 128, torch.float32),
    Shape(576, 1600, 4609, 33, torch.bfloat16),
    Shape(9216, 9216, 1 << 20, 600, torch.bfloat16),
    Shape(13, 7, 50, 3, torch.float32),
)


@dataclass(frozen=True)
class Compiled:
    """Resource usage of a kernel on a target."""

    kernel: str
    capability: int
    constants: dict[str, Any]
    num_warps: int
    registers: int
    spill_bytes: int
    shared_bytes: int


def launches(shape: Shape) -> list[Launch]:
    """All launches of a training step and of inference at this shape (with few rows, as their number affects no kernel)."""
    with gpu_launch.recorded() as found, torch.device("meta"):
        _select(shape)
        _train(shape)
        _optimise(shape)
    return found


def _select(shape: Shape) -> None:
    scores, bias = torch.empty(48, shape.d_sae), torch.empty(shape.d_sae)
    for absolute in (False, True):
        select.select_topk(scores, bias, shape.k, absolute)
    n_listed = shape.k + 8 + shape.k // 8  # as many as bf16 nominates
    listed = torch.empty(48, n_listed, dtype=torch.int32)
    select.select_listed(listed, torch.empty(listed.shape), shape.k, False)
    rows, weights = torch.empty(48, shape.d_in), torch.empty(shape.d_sae, shape.d_in)
    out, rough = select.empty(48, shape.k, bias.device), torch.empty(listed.shape)
    select.select_rescored(listed, rough, rows, weights, bias, shape.k, False, out)
    half = scores.bfloat16()
    select.select_topk(half, bias, n_listed, False)
    batch.largest_scores(half, bias, 48 * (shape.k + 1), False)
    operands.prepared(rows, rows[0], True, True)
    operands.in_eight(weights.bfloat16())
    for bf16 in (False, True):
        operands.segments(torch.empty(3, 48, shape.d_out), True, bf16)
    found = batch.largest_scores(scores, bias, 48 * (shape.k + 1), False)
    batch.largest_entries(found, 48 * shape.k, False)
    select.score_entries(found.indptr, found.feature, rows, weights, bias)
    for threshold, margin, inclusive in (
        (torch.empty(1), None, False), (torch.empty(1), None, True), (bias, torch.empty(48), False),
    ):
        select.compact_above(scores, bias, threshold, False, margin=margin, inclusive=inclusive)


def _train(shape: Shape) -> None:
    n, nnz = 48, 48 * shape.k
    feature, value = torch.empty(nnz, dtype=torch.int32), torch.empty(nnz)
    indptr = torch.empty(n + 1, dtype=torch.int64)
    x, W_enc = torch.empty(n, shape.d_in), torch.empty(shape.d_sae, shape.d_in)
    W_dec = torch.empty(shape.d_sae, shape.d_out, dtype=shape.dtype)
    for row in (shape.k, torch.empty(nnz, dtype=torch.int64)):
        products.entry_dots(row, feature, x, W_enc, bias=torch.empty(shape.d_sae))
    for bounds in (shape.k, indptr, torch.empty(n, 6, dtype=torch.int64)):
        products.decode(feature, value, bounds, W_dec, torch.empty(shape.d_out))
    for n_segments, extra in ((1, None), (5, value)):
        dy = torch.empty(n_segments, n, shape.d_out, dtype=shape.dtype)
        ends = torch.empty(n_segments, dtype=torch.int64) if n_segments > 1 else None
        for code in (
            SparseCode(feature, value, n, shape.d_sae, k=shape.k), SparseCode(feature, value, n, shape.d_sae, indptr=indptr)
        ):
            plan = backward.plan_by_feature(code)
            work = backward.Work(plan, code, x.to(shape.dtype), dy, W_dec, extra, ends)
            grads = backward.code_grads(work)
            backward.Left(torch.empty(4, dtype=torch.int64), _rows(shape)).add_to(grads, W_dec)
            if work.fused:
                _fused(shape, work)


def _params(shape: Shape) -> list[ParamState]:
    enc, dec = torch.empty(shape.d_sae, shape.d_in).t(), torch.empty(shape.d_sae, shape.d_out)
    return [ParamState(p, torch.empty_like(p), torch.empty_like(p), unit_rows=p is dec) for p in (enc, dec)]


def _rows(shape: Shape) -> backward.CodeGrads:
    return backward.CodeGrads(torch.empty(4, shape.d_in), torch.empty(4, shape.d_out), torch.empty(4), torch.empty(4))


def _fused(shape: Shape, work: backward.Work) -> None:
    ids, rows = torch.empty(4, dtype=torch.int64), _rows(shape)
    for left in (None, backward.Left(ids, rows)):
        enc, dec = _params(shape)
        waiting: list[gpu_fused.Waiting] = []
        deferred = gpu_fused.Deferred(weakref.ref(enc.param), weakref.ref(dec.param), waiting)
        deferred.take(work, dec.param, left)
        optimizer.optimizer_step([enc, dec], waiting, None, Copies(), **_ADAM)


_ADAM: dict[str, Any] = {"step": 1, "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "clip": 1.0}


def _optimise(shape: Shape) -> None:
    for copied in (False, True):
        params, copies = _params(shape), Copies()
        for p in params:
            p.param.grad = torch.empty_like(p.param)
            if copied:
                copies.of(p.param)
        optimizer.optimizer_step(params, [], None, copies, **_ADAM)


_TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int8: "*i8", torch.int16: "*i16", torch.int32: "*i32",
    torch.int64: "*i64",
}


def signature(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """Types, constants and divisibility of the arguments, as specialised by triton's own launcher."""
    names = launch.kernel.arg_names
    types: dict[str, str] = {}
    constants, plain = dict(launch.constants), launch.kernel.do_not_specialize
    aligned: dict[tuple[int], list[list[Any]]] = {}
    for i, (name, arg) in enumerate(zip(names, launch.args, strict=False)):
        if isinstance(arg, Tensor):
            types[name] = _TYPES[arg.dtype]
        elif isinstance(arg, float):
            types[name] = "fp32"
        elif arg == 1 and name not in plain:
            types[name], constants[name] = "constexpr", 1
        else:
            types[name] = "i32" if -(2**31) <= arg < 2**31 else "i64"
        if isinstance(arg, Tensor) or (isinstance(arg, int) and arg != 1 and arg % 16 == 0 and name not in plain):
            aligned[(i,)] = [["tt.divisibility", 16]]
    return {name: types.get(name, "constexpr") for name in names}, constants, aligned


def compiled(launch: Launch, capability: int) -> Compiled:
    """Compile a launch and read its resource usage from the binary."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, aligned = signature(launch)
    source = ASTSource(fn=launch.kernel, signature=types, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    binary = triton.compile(source, target=target, options={"num_warps": launch.num_warps, "enable_fp_fusion": True})
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        usage = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    numbers = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Compiled(
        launch.kernel.__name__, capability, launch.constants, launch.num_warps, numbers["REG"],
        numbers["STACK"] + numbers["LOCAL"], binary.metadata.shared,
    )


def distinct(shapes: tuple[Shape, ...] = SHAPES) -> Iterator[Launch]:
    """Launches of all shapes, one per distinct compilation."""
    seen = set()
    for shape in shapes:
        for launch in launches(shape):
            key = repr((launch.kernel.__name__, signature(launch), launch.num_warps))
            if key not in seen:
                seen.add(key)
                yield launch


def main(capabilities: list[int]) -> None:
    """Compile all kernels and write the report to standard output."""
    work = [(launch, capability) for launch in distinct() for capability in capabilities]
    with ThreadPoolExecutor(2) as pool:
        report = [asdict(result) for result in pool.map(lambda pair: compiled(*pair), work)]
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [80, 90])
