"""What the GPU backend must do, as functions of the device they run on.

On a CUDA device pytest calls them directly; without one this module is run as a process whose triton interprets:

    TRITON_INTERPRET=1 python -m tests.sae.kernels.gpu_checks      JSON: name → "" or what went wrong
"""

import gc
import json
import math
import sys
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sae.code import SparseCode
from sae.errors import SaescopeError
from sae.kernels import Autoencoded, Revival, Select
from sae.kernels.gpu import backward as gpu_backward
from sae.kernels.gpu import batch as gpu_batch
from sae.kernels.gpu import operands as gpu_operands
from sae.kernels.gpu import select as gpu_select
from sae.kernels.gpu.autograd import Pass
from sae.kernels.gpu.backend import Gpu
from sae.kernels.reference import Reference

CHECKS: dict[str, Callable[[str], None]] = {}
REFERENCE = Reference()
MODES = {
    "topk": Select("topk", k=3),
    "topk_absolute": Select("topk", k=3, absolute=True),
    "batch_topk": Select("batch_topk", k=3),
    "batch_topk_absolute": Select("batch_topk", k=2, absolute=True),
    "relu": Select("threshold"),
    "threshold": Select("threshold", threshold=0.6),
    "threshold_absolute": Select("threshold", threshold=0.9, absolute=True),
    "jumprelu": Select("threshold", threshold=torch.linspace(-0.5, 1.5, 37)),
}


def check(function: Callable[[str], None]) -> Callable[[str], None]:
    CHECKS[function.__name__.removeprefix("check_")] = function
    return function


@dataclass
class Problem:
    """Random weights and rows; every tensor a leaf that wants a gradient."""

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_pre: Tensor

    @classmethod
    def random(cls, device: str, n_rows: int, d_in: int, d_out: int, d_sae: int, seed: int = 0) -> "Problem":
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw).to(device)

        return cls(
            normal(n_rows, d_in), (normal(d_sae, d_in) / d_in**0.5).t(), normal(d_sae) * 0.1,
            normal(d_sae, d_out) / d_out**0.5, normal(d_out) * 0.1, normal(d_in) * 0.1,
        ).leaves()

    def leaves(self, dtype: torch.dtype = torch.float32) -> "Problem":
        return Problem(*(t.detach().to(dtype).requires_grad_() for t in vars(self).values()))

    def autoencode(
        self, kernels: Reference | Gpu, select: Select, prefixes: tuple[int, ...] | None = None,
        auxk: Revival | None = None,
    ) -> Autoencoded:
        return kernels.autoencode(
            self.x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, select, b_pre=self.b_pre, prefixes=prefixes, auxk=auxk
        )

    def loss(
        self, kernels: Reference | Gpu, select: Select, prefixes: tuple[int, ...] | None = None,
        auxk: Revival | None = None,
    ) -> Tensor:
        """Uses every output: each prefix with its own weight, the values, and what the dead reconstruct."""
        code, x_hat, aux_hat = self.autoencode(kernels, select, prefixes, auxk)
        weights = torch.arange(1, x_hat.shape[0] + 1, device=x_hat.device)[:, None, None]
        target = torch.cos(torch.arange(x_hat[0].numel(), device=x_hat.device)).view_as(x_hat[0])
        aux = 0 if aux_hat is None else (aux_hat - 1).square().sum()
        return ((x_hat - target) ** 2 * weights).sum() + (code.value**2 * 0.3).sum() + code.value.sum() + aux

    def grads(self) -> dict[str, Tensor]:
        return {name: t.grad for name, t in vars(self).items() if t.grad is not None}


def on(select: Select, device: str, dtype: torch.dtype) -> Select:
    if isinstance(select.threshold, Tensor):
        return Select(select.mode, select.k, select.threshold.to(device, dtype), select.absolute)
    return select


def close(name: str, got: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Largest error below the tolerance times the largest expected number."""
    assert got.shape == expected.shape, (name, got.shape, expected.shape)
    if got.numel():
        error = (got.double() - expected.double()).abs().max().item()
        scale = max(1.0, expected.abs().max().item())
        assert error <= tolerance * scale, f"{name}: error {error:g} at scale {scale:g}"


def same_as_reference(
    problem: Problem, select: Select, device: str, prefixes: tuple[int, ...] | None = None, chunk_bytes: int = 1 << 30
) -> None:
    """By gathers and by GEMMs."""
    for dense_above in (1.0, -1.0):
        kernels = Gpu("fp32", chunk_bytes, dense_above)
        compare(problem, kernels, select, device, prefixes)
        assert kernels.last_route == ("sparse" if dense_above > 0 else "dense")


def compare(
    problem: Problem, kernels: Gpu, select: Select, device: str, prefixes: tuple[int, ...] | None
) -> None:
    exact = problem.leaves(torch.float64)
    problem = problem.leaves()
    expected = exact.loss(REFERENCE, on(select, device, torch.float64), prefixes)
    got = problem.loss(kernels, on(select, device, torch.float32), prefixes)
    close("loss", got, expected)
    expected.backward()
    got.backward()
    for name, gradient in exact.grads().items():
        close(name, problem.grads()[name], gradient)
    assert problem.W_enc.grad.stride() == problem.W_enc.stride(), "gradients come in their parameter's layout"
    code = kernels.encode(problem.x, problem.W_enc, problem.b_enc, on(select, device, torch.float32))
    dense = REFERENCE.encode(exact.x, exact.W_enc, exact.b_enc, on(select, device, torch.float64)).to_dense()
    close("encode", code.to_dense(), dense)
    assert torch.equal(code.to_dense() != 0, dense != 0)
    close("decode", kernels.decode(code, problem.W_dec, problem.b_dec), dense @ exact.W_dec + exact.b_dec)


@check
def check_modes(device: str) -> None:
    for select in MODES.values():
        same_as_reference(Problem.random(device, 5, 24, 20, 37), select, device)


@check
def check_chunks(device: str) -> None:
    """Chunks of two rows, the last one short."""
    for mode in ("topk", "batch_topk", "batch_topk_absolute", "threshold"):
        same_as_reference(Problem.random(device, 5, 16, 16, 37, seed=1), MODES[mode], device, chunk_bytes=2 * 37 * 4)


@check
def check_sizes(device: str) -> None:
    for n_rows, d_in, d_out, d_sae, k in (
        (1, 7, 5, 11, 1), (33, 9, 9, 40, 2), (3, 17, 33, 19, 19), (4, 130, 67, 20, 3), (1, 1, 1, 1, 1),
    ):
        for mode in ("topk", "batch_topk", "threshold") if n_rows in (1, 33) else ("topk",):
            select = Select(mode, k=k, threshold=0.5 if mode == "threshold" else 0.0)
            same_as_reference(Problem.random(device, n_rows, d_in, d_out, d_sae), select, device)
    for d_sae, select in (
        (1100, Select("topk", k=2)), (2100, Select("threshold", threshold=2.0)), (1200, Select("batch_topk", k=2)),
        (1200, Select("batch_topk", k=2, absolute=True)),
    ):
        problem = Problem.random(device, 3, 5, 4, d_sae)
        code, expected = (
            kernels.encode(problem.x, problem.W_enc, problem.b_enc, select).to_dense()
            for kernels in (Gpu("fp32"), REFERENCE)
        )
        close("encode", code, expected)


@check
def check_prefixes(device: str) -> None:
    problem = Problem.random(device, 5, 12, 12, 37)
    for mode in ("topk", "topk_absolute", "batch_topk", "threshold"):
        same_as_reference(problem, MODES[mode], device, prefixes=(2, 9, 20, 37))
    same_as_reference(problem, MODES["topk"], device, prefixes=(5, 30))


@check
def check_wide_rows(device: str) -> None:
    """Rows of several tiles of columns, more of them on either side."""
    compare_code_grads(Problem.random(device, 4, 20, 520, 11), 3, device, chunk=3)
    compare_code_grads(Problem.random(device, 2, 600, 20, 11), 2, device, chunk=256)


@check
def check_hot_features(device: str) -> None:
    """Features with more entries than a chunk, exactly a chunk, and none."""
    for chunk in (1, 2, 3, 5, 8):
        compare_code_grads(Problem.random(device, 8, 6, 10, 9), 3, device, chunk=chunk, hot=True)


def compare_code_grads(
    problem: Problem, k: int, device: str, *, chunk: int, hot: bool = False
) -> None:
    d_sae = problem.b_enc.numel()
    x, W_dec = problem.x.detach(), problem.W_dec.detach()
    pre = x @ problem.W_enc.detach() - 1.2  # so that some rows have padding
    if hot:
        pre[:, 4] = pre.abs().amax(1) + 1  # in every row
        pre[:, 7] = -1.0  # in none
    value, feature = pre.topk(k, dim=1)
    value = value.relu()
    assert (value == 0).any()
    fixed = SparseCode(feature.reshape(-1).int(), value.reshape(-1), x.shape[0], d_sae, k=k)
    acts = fixed.to_dense()
    extra_by_feature = torch.cos(torch.arange(acts.numel(), device=device)).view_as(acts)
    dy = torch.sin(torch.arange(3 * x.shape[0] * W_dec.shape[1], device=device)).view(3, x.shape[0], -1)
    for code in (fixed, fixed.csr()):
        plan = gpu_backward.plan_by_feature(code, chunk=chunk)
        assert torch.equal(plan.counts, code.counts())
        place = code.rows(), code.feature.long()
        for limits in (None, (4, 9)):  # segments of the features; beyond the last end there is one more
            ends = None if limits is None else torch.tensor(limits, device=device)
            features = torch.arange(d_sae, device=device)
            segment = torch.bucketize(features, torch.tensor(limits or (d_sae,), device=device), right=True)
            extra = None if limits is None else extra_by_feature[place]
            work = gpu_backward.Work(plan, code, x, dy if limits else dy[:1], W_dec, extra, ends)
            grads = gpu_backward.code_grads(work)
            dacts = torch.einsum("fnd,fd->nf", dy[segment], W_dec) + (0 if limits is None else extra_by_feature)
            dpre = torch.where(acts != 0, dacts, 0)
            close("value", grads.value, dacts[place] * code.active)
            close("W_enc", grads.W_enc, dpre.t() @ x)
            close("W_dec", grads.W_dec, torch.einsum("nf,fnd->fd", acts, dy[segment]))
            close("b_enc", grads.b_enc, dpre.sum(0))
            assert_stats(grads, W_dec)
    assert torch.equal(plan.counts, (acts != 0).sum(0))


def assert_stats(grads: gpu_backward.CodeGrads, W_dec: Tensor) -> None:
    """What the optimiser would find in the gradients."""
    enc, dec, w = grads.W_enc.double(), grads.W_dec.double(), W_dec.double()
    radial = (dec * w).sum(1)
    close("enc", grads.stats.enc, enc.square().sum(1))
    close("radial", grads.stats.radial, radial)
    close("dec", grads.stats.dec(unit_rows=False), dec.square().sum(1))
    across = (dec - radial[:, None] * w).square().sum(1)
    close("across", grads.stats.dec(unit_rows=True), across)
    for unit_rows, squares in ((False, dec.square().sum()), (True, across.sum())):
        close("squares", grads.stats.squares(unit_rows).double().sum(), enc.square().sum() + squares)


def ranked(scores: Tensor, k: int, absolute: bool) -> Tensor:
    """The k best of each row by (score, lower index), ascending."""
    key = scores.abs() if absolute else scores.relu()
    return torch.sort(key, dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values


@check
def check_selection_is_exact(device: str) -> None:
    """Ties, few positives, groups and all lengths, against a stable sort."""
    draw = torch.Generator().manual_seed(0)
    for n_rows, d_sae, k in ((3, 1500, 4), (2, 3001, 7), (2, 1025, 1), (2, 40, 40), (2, 60, 17), (1, 9000, 3000)):
        bias = torch.randn(d_sae, generator=draw).to(device).round(decimals=0)
        for scores in (
            torch.randn(n_rows, d_sae, generator=draw),
            torch.randn(n_rows, d_sae, generator=draw).round(decimals=0),  # many ties
            torch.randn(n_rows, d_sae, generator=draw) - 7 + 8 * (torch.rand(d_sae, generator=draw) < 3 / d_sae),
            torch.zeros(n_rows, d_sae),
        ):
            scores = scores.to(device)
            for absolute in (False, True) if d_sae < 9000 else (True,):
                feature, value = gpu_select.select_topk(scores, bias, k, absolute)
                pre = scores + bias
                expected = ranked(pre, k, absolute)
                assert torch.equal(feature.long(), expected), (d_sae, k, absolute)
                values = pre.gather(1, expected)
                assert torch.equal(value, values if absolute else values.relu())


@check
def check_batch_selection_is_exact(device: str) -> None:
    """Ties, few positives, rows without any, all entries; against a stable sort of the batch. Then from the list found."""
    draw = torch.Generator().manual_seed(0)
    for n_rows, d_sae, n in ((3, 300, 20), (4, 70, 100), (2, 40, 80)):
        bias = (torch.randn(d_sae, generator=draw) * 0.1).to(device)
        normal = torch.randn(n_rows, d_sae, generator=draw)
        few = normal - 6
        few[1] += 8
        for scores in (normal, normal.round(), few, normal.bfloat16()) if d_sae > 40 else (normal,):
            for absolute in (False, True) if d_sae == 70 else (False,):
                pre = scores.to(device).float() + bias
                found = gpu_batch.largest_scores(scores.to(device), bias, n, absolute)
                assert_largest(found, pre, n, absolute)
                assert_largest(gpu_batch.largest_entries(found, n // 3, absolute), pre, n // 3, absolute)


def assert_largest(found: gpu_batch.Entries, pre: Tensor, n: int, absolute: bool) -> None:
    value = pre if absolute else pre.relu()
    kept = torch.sort(value.abs().view(-1), descending=True, stable=True).indices[:n].sort().values
    rows = torch.arange(pre.shape[0], device=pre.device).repeat_interleave(found.indptr.diff())
    assert torch.equal(rows, kept // pre.shape[1])
    assert torch.equal(found.feature.long(), kept % pre.shape[1])
    assert torch.equal(found.value, value.view(-1)[kept])


@check
def check_batch_ties(device: str) -> None:
    """Equal scores: the first in row-major order are kept, whatever the chunks."""
    x = torch.ones(6, 2, device=device)
    W, b = torch.ones(2, 70, device=device), torch.zeros(70, device=device)
    b[50:] = 1
    for chunk_bytes in (1 << 30, 2 * 70 * 4, 4):
        code = Gpu("fp32", chunk_bytes=chunk_bytes).encode(x, W.t().contiguous().t(), b, Select("batch_topk", k=25))
        assert code.indptr.diff().tolist() == [50, 20, 20, 20, 20, 20], code.indptr
        assert code.feature[:50].tolist() == [*range(30), *range(50, 70)]


@check
def check_bf16(device: str) -> None:
    """Values and selection are those of fp32; gradients differ by bf16's rounding of the gathered rows."""
    for mode, select in MODES.items():
        problem = Problem.random(device, 6, 24, 20, 37)
        args = (problem.x, problem.W_enc, problem.b_enc)
        routes = [Gpu("bf16", 4 * 37 * 4, dense_above) for dense_above in (1.0, 0.0)]
        code = routes[0].encode(*args, on(select, device, torch.float32)).csr()
        expected = REFERENCE.encode(*args, on(select, device, torch.float32)).csr()
        assert torch.equal(code.feature, expected.feature) and torch.equal(code.indptr, expected.indptr), mode
        close(mode, code.value, expected.value)
        exact = problem.leaves(torch.float64)
        exact.loss(REFERENCE, on(select, device, torch.float64)).backward()
        for kernels in routes:
            problem = problem.leaves()
            problem.loss(kernels, on(select, device, torch.float32)).backward()
            for name, gradient in exact.grads().items():
                close(f"{mode} {name}", problem.grads()[name], gradient, tolerance=0.02)
                assert problem.grads()[name].dtype == torch.float32


@check
def check_eight_bits(device: str) -> None:
    """Rows and weights in e4m3 are torch's, and candidates that come of them hold what fp32 selects, with fp32's values."""
    draw = torch.Generator().manual_seed(0)
    x = (torch.randn(5, 37, generator=draw) * torch.logspace(-4, 3, 5)[:, None]).to(device)
    b = torch.randn(37, generator=draw).to(device)
    rows = gpu_operands.prepared(x, b, True, True)
    assert torch.equal(rows.x, x - b) and torch.equal(rows.operand, (x - b).bfloat16())
    for eight, of in ((rows.eight, x - b), (gpu_operands.in_eight(rows.operand), (x - b).bfloat16().float())):
        expected = (of * (1 / eight.scale)).to(torch.float8_e4m3fn)
        assert torch.equal(eight.bits.view(torch.int8), expected.view(torch.int8))
        close("scale", eight.scale * 448, of.abs().amax(1, keepdim=True), 1e-6)
    for d_sae in (208, 37):  # 37 is no multiple of 16: by bf16
        problem = Problem.random(device, 6, 32, 16, d_sae)
        for mode in ("topk", "batch_topk_absolute") if d_sae == 208 else ("topk",):
            codes = [problem.autoencode(kernels, MODES[mode]).code.csr() for kernels in (Gpu("fp8"), REFERENCE)]
            assert torch.equal(codes[0].feature, codes[1].feature) and torch.equal(codes[0].indptr, codes[1].indptr)
            close(mode, codes[0].value, codes[1].value)


@check
def check_density_decides(device: str) -> None:
    """GEMMs from the break-even of each precision on; fp64 through the reference."""
    for precision, k, route in (("fp32", 9, "sparse"), ("fp32", 11, "dense"), ("bf16", 1, "sparse"), ("bf16", 2, "dense")):
        kernels, problem = Gpu(precision), Problem.random(device, 2, 5, 4, 200)
        problem.autoencode(kernels, Select("topk", k=k))
        assert kernels.last_route == route, (precision, k, kernels.last_route)
    problem.leaves(torch.float64).autoencode(kernels, Select("topk", k=k))
    assert kernels.last_route == "reference"


@check
def check_bf16_margin(device: str) -> None:
    """Among many nearly equal scores, bf16 misplaces some; what is selected is what fp32 selects all the same."""
    problem = Problem.random(device, 4, 64, 4, 3000)
    args = (problem.x, problem.W_enc, problem.b_enc)
    for select in (
        Select("topk", k=400), Select("topk", k=400, absolute=True), Select("batch_topk", k=400),
        Select("threshold", threshold=0.5), Select("threshold", threshold=0.5, absolute=True), Select("threshold"),
    ):
        code, expected = (kernels.encode(*args, select).csr() for kernels in (Gpu("bf16"), REFERENCE))
        assert torch.equal(code.feature, expected.feature) and torch.equal(code.indptr, expected.indptr), select
        close(str(select), code.value, expected.value)


@check
def check_same_bits(device: str) -> None:
    for mode, precision, dense_above in (
        ("topk", "bf16", 1.0), ("batch_topk", "fp32", 1.0), ("threshold", "bf16", 1.0), ("threshold", "bf16", 0.0),
    ):
        runs = []
        for _ in range(2):
            problem = Problem.random(device, 9, 12, 14, 37)
            problem.loss(Gpu(precision, dense_above=dense_above), MODES[mode], (10, 37)).backward()
            runs.append(problem.grads())
        for name, gradient in runs[0].items():
            assert torch.equal(gradient, runs[1][name]), (mode, name)


@check
def check_every_row_alike(device: str) -> None:
    """The same features active in every row."""
    problem = Problem.random(device, 1, 8, 8, 37)
    alike = Problem(problem.x.detach().repeat(33, 1), *list(vars(problem).values())[1:]).leaves()
    for mode in ("topk", "threshold"):
        same_as_reference(alike, MODES[mode], device)


@check
def check_nothing_active(device: str) -> None:
    problem = Problem.random(device, 3, 8, 6, 37)
    same_as_reference(problem, Select("threshold", threshold=math.inf), device)
    silent = problem.leaves()
    silent.b_enc.data.fill_(-100)
    for mode in ("topk", "batch_topk", "relu"):
        same_as_reference(silent, MODES[mode], device)
    silent.loss(Gpu("fp32"), MODES["topk"]).backward()
    assert silent.W_enc.grad.count_nonzero() == 0 and silent.W_dec.grad.count_nonzero() == 0


@check
def check_no_rows(device: str) -> None:
    problem = Problem.random(device, 0, 8, 6, 37)
    for select in MODES.values():
        for precision in ("fp32", "bf16"):
            kernels = Gpu(precision)
            code, x_hat, _ = problem.autoencode(kernels, on(select, device, torch.float32), (5, 37))
            assert code.feature.numel() == 0 and x_hat.shape == (2, 0, 6)
            x_hat.sum().backward()
            assert problem.W_dec.grad.count_nonzero() == 0


@check
def check_auxk(device: str) -> None:
    """By GEMMs, by gathers (1 of 190), with fewer dead features than asked for, and with none."""
    kernels = Gpu("fp32", chunk_bytes=2 * 190 * 4)
    for d_sae, n_dead, k_aux in ((37, 11, 3), (37, 4, 9), (200, 190, 1), (20, 0, 5)):
        problem = Problem.random(device, 5, 12, 10, d_sae)
        dead = torch.zeros(d_sae, dtype=torch.bool, device=device)
        dead[torch.randperm(d_sae, generator=torch.Generator().manual_seed(1))[:n_dead].to(device)] = True
        for absolute in (False, True):
            compare_auxk(problem, kernels, dead, k_aux, absolute)
        if n_dead in (11, 190):
            compare_auxk(problem, Gpu("bf16"), dead, k_aux, False, tolerance=0.02)


def compare_auxk(
    problem: Problem, kernels: Gpu, dead: Tensor, k_aux: int, absolute: bool, tolerance: float = 2e-5
) -> None:
    exact, problem = problem.leaves(torch.float64), problem.leaves()
    select, auxk = Select("topk", k=1, absolute=absolute), Revival(dead, k_aux)
    outs = [p.autoencode(each, select, auxk=auxk).aux_hat for each, p in ((REFERENCE, exact), (kernels, problem))]
    close("auxk", outs[1], outs[0], tolerance)
    if not dead.any():
        assert outs[1].count_nonzero() == 0
        return
    for out in outs:
        ((out - 1) ** 2).sum().backward()
    for name, gradient in exact.grads().items():
        close(f"auxk {name}", problem.grads()[name], gradient, tolerance)
    assert problem.W_dec.grad[~dead].count_nonzero() == 0


@check
def check_entries_that_others_leave_out(device: str) -> None:
    """Of the selected code and of that over the dead; by gathers and GEMMs, with prefixes and of codes in both layouts."""

    def odd(code: SparseCode) -> SparseCode:
        return replace(code, value=code.value * (code.feature % 2).bool())

    dead = torch.arange(37, device=device) % 3 == 0
    for mode in ("topk", "batch_topk"):
        select, auxk = Select(mode, k=6, agree=odd), Revival(dead, 5, agree=odd)
        for dense_above in (1.0, -1.0):
            problem = Problem.random(device, 5, 12, 10, 37)
            exact, problem = problem.leaves(torch.float64), problem.leaves()
            kernels = Gpu("fp32", dense_above=dense_above)
            outs = [p.autoencode(each, select, (4, 37), auxk) for each, p in ((REFERENCE, exact), (kernels, problem))]
            left = outs[0].code
            assert 0 < int(left.n_active) < 5 * 6 and bool((left.feature[left.active] % 2 == 1).all())
            close("code", outs[1].code.to_dense(), outs[0].code.to_dense())
            for out, p in zip(outs, (exact, problem), strict=True):
                ((out.x_hat - 1).square().sum() + (out.aux_hat - 1).square().sum() + out.code.value.sum()).backward()
                assert p.W_dec.grad is not None
            for name, gradient in exact.grads().items():
                close(f"agree {name}", problem.grads()[name], gradient)


@check
def check_what_a_pass_holds_is_let_go(device: str) -> None:
    """With its outputs, without the garbage collector: nothing refers to itself."""
    problem, kernels = Problem.random(device, 2, 4, 4, 9), Gpu("fp32")
    gc.collect()
    gc.disable()
    try:
        out = problem.autoencode(kernels, Select("topk", k=2), auxk=Revival(torch.arange(9, device=device) > 5, 2))
        value = weakref.ref(out.code.value)
        passes = [weakref.ref(each) for each in gc.get_objects() if type(each) is Pass]
        assert value() is not None and len(passes) == 2
        (out.x_hat.sum() + out.aux_hat.sum()).backward()
        del out
        assert value() is None and all(each() is None for each in passes)
    finally:
        gc.enable()


@check
def check_inputs_as_they_come(device: str) -> None:
    """bf16 rows, weights that lie the other way round, strided rows, fp64."""
    problem = Problem.random(device, 4, 8, 6, 37)
    x, W_enc, b_enc = problem.x.detach(), problem.W_enc.detach(), problem.b_enc.detach()
    kernels, select = Gpu("fp32"), MODES["topk"]
    expected = kernels.encode(x, W_enc, b_enc, select)
    assert torch.equal(kernels.encode(x, W_enc.contiguous(), b_enc, select).value, expected.value)
    assert torch.equal(kernels.encode(x.repeat(1, 2)[:, :8], W_enc, b_enc, select).value, expected.value)
    half = kernels.encode(x.bfloat16(), W_enc, b_enc, select)
    close("bf16 rows", half.to_dense(), REFERENCE.encode(x.bfloat16().float(), W_enc, b_enc, select).to_dense())
    double = problem.leaves(torch.float64)
    assert kernels.encode(double.x, double.W_enc, double.b_enc, select).value.dtype == torch.float64
    assert double.autoencode(kernels, select).x_hat.dtype == torch.float64


@check
def check_nan_is_seen(device: str) -> None:
    """A NaN in a row is in its code, and in no other row's."""
    problem = Problem.random(device, 4, 8, 6, 37)
    x = problem.x.detach().clone()
    x[2, 3] = math.nan
    for mode in ("topk", "topk_absolute", "relu"):
        for precision in ("fp32", "bf16"):
            dense = Gpu(precision).encode(x, problem.W_enc, problem.b_enc, MODES[mode]).to_dense()
            assert dense.isnan().any(1).tolist() == [False, False, True, False], (mode, precision)
    assert Gpu("fp32").encode(x, problem.W_enc, problem.b_enc, MODES["batch_topk"]).value.isnan().any()


@check
def check_errors(device: str) -> None:
    problem = Problem.random(device, 2, 4, 4, 6)
    kernels = Gpu("fp32")
    args = (problem.x, problem.W_enc, problem.b_enc)
    raises("k = 7", lambda: kernels.encode(*args, Select("topk", k=7)))
    raises("k = 0", lambda: kernels.encode(*args, Select("topk", k=0)))
    raises("fp64 cannot be mixed", lambda: kernels.encode(problem.x.double(), *args[1:], Select("topk", k=1)))
    for wrong in (6, -1):
        feature = torch.tensor([0, wrong], dtype=torch.int32, device=device)
        code = SparseCode(feature, problem.x[:, 0].detach(), 2, 6, k=1)
        raises("feature ids", lambda code=code: kernels.decode(code, problem.W_dec, problem.b_dec))
    code = SparseCode(feature[:1].abs(), problem.x[0, :1].detach(), 2, 6, indptr=torch.tensor([0, 2, 3], device=device))
    raises("indptr", lambda: kernels.decode(code, problem.W_dec, problem.b_dec))
    raises("no precision called", lambda: Gpu("fp4"))


def raises(text: str, call: Callable[[], object]) -> None:
    try:
        call()
    except SaescopeError as error:
        assert text in str(error), str(error)
    else:
        raise AssertionError(f"nothing was said of: {text}")


def patch_once() -> None:
    """Leave triton's language patched: its interpreter does that anew for each launch and each call of a kernel's
    functions, which takes half of its time. Other versions of triton are left as they are."""
    from triton.runtime import interpreter

    patch, scope = (getattr(interpreter, name, None) for name in ("_patch_lang", "_LangPatchScope"))
    if patch is None or scope is None:
        return
    patched: set[tuple[str, ...]] = set()

    def patch_new(function: Callable[..., None]) -> object:
        language = (interpreter.tl, interpreter.tl.core)
        names = tuple(sorted(name for name, value in function.__globals__.items() if any(value is one for one in language)))
        if names not in patched:
            patched.add(names)
            patch(function)
        return scope()  # nothing to restore

    interpreter._patch_lang = patch_new


def main() -> None:
    patch_once()
    report = {}
    for name, function in CHECKS.items():
        try:
            function("cpu")
            report[name] = ""
        except Exception:  # whatever it is, it is reported
            report[name] = traceback.format_exc()
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
