"""What the GPU backend must do over steps of training; run as `tests.sae.kernels.gpu_checks` is."""

import contextlib
import math
import re
from dataclasses import replace
from functools import partial
from typing import ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae.base import Progress
from sae.init import initialise
from sae.kernels import ParamState, Revival, Select
from sae.kernels.gpu import backward as gpu_backward
from sae.kernels.gpu import operands as gpu_operands
from sae.kernels.gpu import optimizer as gpu_optimizer
from sae.kernels.gpu import products as gpu_products
from sae.kernels.gpu import select as gpu_select
from sae.kernels.gpu.backend import Gpu
from sae.kernels.reference import Reference
from sae.variants import VARIANTS
from tests.sae.kernels.gpu_checks import MODES, REFERENCE, Problem, check, close, on, raises

ADAM = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8}


@check
def check_auxk_beside_the_reconstruction(device: str) -> None:
    """Its gradients join those of all features, by gathers and by GEMMs, whichever losses are taken."""
    for kernels in (Gpu("fp32"), Gpu("fp32", dense_above=1.0)):
        problem = Problem.random(device, 7, 10, 8, 13)
        auxk = Revival(torch.arange(13, device=device) % 3 == 0, 4)
        for weights, absolute in (((1.0, 1.0), False), ((1.0, 1.0), True), ((0.0, 1.0), False), ((1.0, 0.0), False)):
            exact, problem = problem.leaves(torch.float64), problem.leaves()
            for backend, p in ((REFERENCE, exact), (kernels, problem)):
                out = p.autoencode(backend, MODES["topk_absolute" if absolute else "topk"], (6, 13), auxk)
                terms = (out.x_hat - 1).square().sum() + out.code.value.sum(), (out.aux_hat - 1).square().sum()
                loss = sum(w * term for w, term in zip(weights, terms, strict=True) if w)
                loss.backward()
            for name, gradient in exact.grads().items():
                close(f"{weights} {absolute} {name}", problem.grads()[name], gradient)


@check
def check_room_for_more_than_are_dead(device: str) -> None:
    """The dead among others that fill a fixed number of places: as if they had been counted; also where none is dead."""
    some, nobody = torch.arange(13, device=device) % 3 == 0, torch.zeros(13, dtype=torch.bool, device=device)
    sparse, usual, half = Gpu("fp32", dense_above=1.0), Gpu("fp32"), Gpu("bf16")
    for kernels, dead, k, room, absolute in (
        (usual, some, 3, 8, False), (usual, some, 9, 8, True), (usual, nobody, 4, 8, True),
        (sparse, some, 3, 8, False), (half, some, 3, 8, True),
    ):
        tolerance = 3e-2 if kernels is half else 2e-5
        problem = Problem.random(device, 4, 8, 6, 13)
        exact, problem = problem.leaves(torch.float64), problem.leaves()
        for backend, p, auxk in ((REFERENCE, exact, Revival(dead, k)), (kernels, problem, Revival(dead, k, room))):
            out = p.autoencode(backend, MODES["topk_absolute" if absolute else "topk"], None, auxk)
            ((out.x_hat - 1).square().sum() + (out.aux_hat - 1).square().sum()).backward()
            p.aux_hat = out.aux_hat.detach()
        close("aux_hat", problem.aux_hat, exact.aux_hat, tolerance)
        for name, gradient in exact.grads().items():
            close(f"{k} {room} {absolute} {name}", problem.grads()[name], gradient, tolerance)


@check
def check_complete_codes(device: str) -> None:
    """A threshold's code with all features in each row: the code and the gradients of one without its padding."""
    for mode in ("relu", "threshold", "threshold_absolute", "jumprelu"):
        for kernels, tolerance in ((Gpu("fp32", dense_above=0.0), 2e-5), (Gpu("bf16", dense_above=0.0), 3e-2)):
            problem = Problem.random(device, 6, 8, 7, 37)
            exact, problem = problem.leaves(torch.float64), problem.leaves()
            exact.loss(REFERENCE, on(MODES[mode], device, torch.float64), (12, 37)).backward()
            select = replace(on(MODES[mode], device, torch.float32), fixed=True)
            problem.loss(kernels, select, (12, 37)).backward()
            code = problem.autoencode(kernels, select).code
            assert code.complete and code.feature.numel() == 6 * 37 and kernels.last_route == "dense"
            other = replace(code, complete=False)
            counts = code.counts()
            assert torch.equal(counts, other.counts()) and torch.equal(code.last(5, counts), other.last(5, counts))
            close("sums", code.sums(code.value), other.sums(code.value))
            close(mode, code.to_dense().detach(), problem.autoencode(REFERENCE, select).code.to_dense().detach())
            for name, gradient in exact.grads().items():
                close(f"{mode} {name}", problem.grads()[name], gradient, tolerance)
    problem.x.data[2, 3] = math.nan
    assert problem.autoencode(kernels, select).code.value.isnan().any(), "a row that is no number is seen"


class Training:
    """A problem in training: passes, an auxiliary loss, and steps."""

    AXES: ClassVar = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "b_dec": None}

    def __init__(self, kernels: Reference | Gpu, problem: Problem, sparse: bool, unit_rows: bool = True) -> None:
        self.kernels, self.problem = kernels, problem.leaves(torch.float64 if kernels is REFERENCE else torch.float32)
        if unit_rows:
            self.problem.W_dec.data /= self.problem.W_dec.data.norm(dim=1, keepdim=True)
        self.params = []
        for name, axis in self.AXES.items():
            p = getattr(self.problem, name)
            moments = torch.zeros_like(p), torch.zeros_like(p)
            unit = unit_rows and name == "W_dec"
            self.params.append(ParamState(p, *moments, unit_rows=unit, sparse_axis=axis if sparse else None))

    def loss(self, select: Select, prefixes: tuple[int, ...] | None, dead: Tensor | None) -> Tensor:
        return self.problem.loss(self.kernels, select, prefixes, None if dead is None else Revival(dead, 4))

    def optimise(self, step: int, clip: float | None) -> Tensor:
        # eps so large that a gradient of rounding errors alone is no step
        norm = self.kernels.optimizer_step(self.params, step=step, clip=clip, **(ADAM | {"eps": 1e-4}))
        for p in self.params:
            p.param.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        names = zip(self.AXES, self.params, strict=True)
        return {f"{name} {part}": getattr(p, part) for name, p in names for part in ("param", "exp_avg", "exp_avg_sq")}


@check
def check_fused_adam(device: str) -> None:
    """Weights, moments and norms of two steps without gradients of the weights, against fp64 with them."""
    dead = torch.arange(13, device=device) % 3 == 0
    for mode, prefixes, dead_ones, clip, sparse, chunk in (
        ("topk", None, None, 0.5, False, 256), ("topk", (6, 13), dead, 5.0, True, 2),
        ("batch_topk", None, dead, None, False, 3), ("threshold", (3, 9), None, 0.5, True, 256),
        ("topk_absolute", None, dead, None, True, 1),
    ):
        problem = Problem.random(device, 7, 10, 8, 13)
        fused = Gpu("fp32", dense_above=1.0, fused_adam=True)
        exact, ours = Training(REFERENCE, problem, sparse), Training(fused, problem, sparse)
        with mock.patch.object(gpu_backward, "plan_by_feature", partial(gpu_backward.plan_by_feature, chunk=chunk)):
            for step in (1, 2):
                for training in (exact, ours):
                    training.loss(MODES[mode], prefixes, dead_ones).backward()
                assert ours.problem.W_enc.grad is None and ours.problem.W_dec.grad is None
                close("x", ours.problem.x.grad, exact.problem.x.grad)
                close("norm", ours.optimise(step, clip), exact.optimise(step, clip))
                for name, tensor in exact.state().items():
                    close(f"{mode} {step} {name}", ours.state()[name], tensor)


@check
def check_fused_adam_makes_gradients_that_it_cannot_step(device: str) -> None:
    """Several passes, with dead features too, other terms on a weight, GEMMs, rows too wide, weights left out."""
    dead = torch.arange(13, device=device) % 3 == 0

    def twice(t: Training) -> Tensor:
        return t.loss(MODES["topk"], None, None) + t.loss(Select("threshold", threshold=0.6), None, None)

    def with_norms(t: Training) -> Tensor:
        return t.loss(MODES["topk"], None, dead) + t.problem.W_dec.norm(dim=1).sum()

    def two_auxiliaries(t: Training) -> Tensor:
        return t.loss(MODES["topk"], None, dead) + t.loss(MODES["topk"], None, ~dead)

    problem = Problem.random(device, 7, 10, 8, 13)
    for loss, dense_above, unit_rows in (
        (twice, 1.0, True), (with_norms, 1.0, False), (two_auxiliaries, 1.0, True), (with_norms, -1.0, True),
    ):
        fused = Gpu("fp32", dense_above=dense_above, fused_adam=True)
        exact, ours = (Training(k, problem, False, unit_rows) for k in (REFERENCE, fused))
        for step in (1, 2):
            for training in (exact, ours):
                loss(training).backward()
            close("norm", ours.optimise(step, 0.5), exact.optimise(step, 0.5))
            for name, tensor in exact.state().items():
                close(f"{loss.__name__} {step} {name}", ours.state()[name], tensor)
    ours = Training(Gpu("fp32", dense_above=1.0, fused_adam=True), problem, False)
    exact = Training(REFERENCE, problem, False)
    for training in (exact, ours):
        training.loss(MODES["topk"], None, None).backward()
    ours.kernels.optimizer_step(ours.params[1:2], step=1, clip=None, **ADAM)
    for name in ("W_enc", "W_dec"):
        close(name, getattr(ours.problem, name).grad, getattr(exact.problem, name).grad)


@check
def check_fused_adam_of_every_variant(device: str) -> None:
    """A step of each variant as the trainer takes them, with some features dead; against steps with gradients."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, generator=draw)
    x = (x / x.norm(dim=1, keepdim=True) * 8**0.5).to(device)
    for variant, (kind, config) in VARIANTS.items():
        states = []
        for fused in (False, True):
            k = {"sparsity": {"coefficient": 0.1}} if "sparsity" in config.model_fields else {"k": 2}
            k = {"rounds": 1, "per_round": 2} if variant == "icfl" else k
            sae = kind(config.model_validate({"d_sae": 16, **k}), 8)
            initialise(sae, x.cpu())
            sae.to(device).kernels = Gpu("fp32", dense_above=1.0, fused_adam=fused)
            named = dict(sae.named_parameters())
            params = [
                ParamState(p, torch.zeros_like(p), torch.zeros_like(p), name == "W_dec" and sae.unit_norm_decoder)
                for name, p in named.items()
            ]
            progress = Progress(torch.arange(16, device=device) % 4 == 0, lambda _: 1.0, 0.1, 1)
            sae.step(x, x, progress).loss.backward()
            sae.kernels.optimizer_step(params, step=1, clip=1.0, **(ADAM | {"eps": 1e-4}))
            states.append({name: p.detach().clone() for name, p in named.items()})
        for name, tensor in states[0].items():
            close(f"{variant} {name}", states[1][name], tensor)


@check
def check_fused_adam_in_bf16(device: str) -> None:
    """The bits of the steps with gradients, so that it is a choice of memory alone; the same bits twice."""
    states = []
    for fused in (False, True, True):
        training = Training(Gpu("bf16", dense_above=1.0, fused_adam=fused), Problem.random(device, 7, 10, 8, 13), False)
        for step in (1, 2):
            training.loss(MODES["topk"], None, None).backward()
            training.optimise(step, 0.5)
        states.append(training.state())
    for name, tensor in states[1].items():
        assert torch.equal(tensor, states[2][name]), name
        close(name, tensor, states[0][name])


@check
def check_fused_adam_beside_other_number_formats(device: str) -> None:
    """A step that the reference takes, because some parameter is in fp64, finds the gradients made."""
    problem = Problem.random(device, 5, 8, 8, 12)
    exact, ours = (Training(k, problem, False) for k in (REFERENCE, Gpu("fp32", dense_above=1.0, fused_adam=True)))
    for training in (exact, ours):
        other = torch.ones(3, dtype=torch.float64, device=device)
        training.loss(Select("topk", k=2), None, None).backward()
        other.grad = torch.ones_like(other)
        others = [ParamState(other, torch.zeros_like(other), torch.zeros_like(other))]
        training.kernels.optimizer_step(training.params + others, step=1, clip=None, **(ADAM | {"eps": 1e-4}))
    for name, tensor in exact.state().items():
        close(name, ours.state()[name], tensor)


@check
def check_what_a_step_reads_may_not_change_before(device: str) -> None:
    """Rows that wait for a fused step, and values that wait for the backward pass."""
    problem = Problem.random(device, 5, 8, 8, 12)
    training = Training(Gpu("fp32", dense_above=1.0, fused_adam=True), problem, False)
    training.loss(Select("topk", k=2), None, None).backward()
    training.problem.W_dec.detach().mul_(0.5)
    raises("changed between", lambda: training.optimise(1, None))
    code, x_hat, _ = problem.leaves().autoencode(Gpu("fp32"), Select("topk", k=2))
    with torch.no_grad():
        code.value.mul_(2)
    try:
        x_hat.sum().backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error), error
    else:
        raise AssertionError("a changed value went unnoticed")


@check
def check_a_norm_that_is_no_number_is_seen(device: str) -> None:
    """With clipping it makes everything NaN, as in the reference, rather than a step without clipping."""
    for fused in (False, True):
        problem = Problem.random(device, 5, 8, 8, 12)
        training = Training(Gpu("fp32", dense_above=1.0, fused_adam=fused), problem, False)
        training.loss(Select("topk", k=2), None, None).backward()
        training.params[1].param.grad[3] = math.nan
        assert training.optimise(1, 1.0).isnan()
        assert all(p.param.isnan().all() for p in training.params if not p.unit_rows)


class Counting(TorchDispatchMode):
    """Counts what torch asks the device to do; tensors without a kernel of their own (views, memory) are none of it."""

    FREE = re.compile("empty|detach|alias|view|^t$|transpose|expand|slice|select$|squeeze|split|scalar_tensor")

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not self.FREE.search(name):
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


@check
def check_few_launches(device: str) -> None:
    """A TopK step is some forty launches, so that small sizes are not spent waiting for the host."""
    problem = Problem.random(device, 6, 32, 32, 3000)
    training, counting, launched = Training(Gpu("bf16"), problem, False), Counting(), []

    def launch(kernel, *_, **__) -> None:
        launched.append(kernel.__name__)  # what it would compute is not looked at

    users = (gpu_products, gpu_select, gpu_backward, gpu_optimizer, gpu_operands)
    for weight in (training.problem.W_enc, training.problem.W_dec):
        training.kernels.copies.of(weight)  # made once, later written by the optimiser
    with contextlib.ExitStack() as stack:
        for user in users:
            stack.enter_context(mock.patch.object(user, "launch", launch))
        stack.enter_context(counting)
        p = training.problem
        p.x.requires_grad_(False)
        _, x_hat = p.autoencode(training.kernels, Select("topk", k=3)).single()
        torch.nn.functional.mse_loss(x_hat, p.x, reduction="sum").div(6).backward()
        training.kernels.optimizer_step(training.params, step=1, clip=1.0, **ADAM)
    assert len(launched) == 17, launched
    # without a device, bf16 products are made by casting both operands first
    assert len(launched) + len(counting.asked) <= (42 if device == "cpu" else 37), (launched, counting.asked)


@check
def check_optimizer(device: str) -> None:
    """Against the reference in fp64, over steps: unit rows, feature-major, flat and narrow parameters, with clipping."""
    for clip in (None, 0.5, 1e6):
        exact, params = (adam_params(device, dtype) for dtype in (torch.float64, torch.float32))
        for step in (1, 2, 3):
            norms = []
            for kernels, group in ((REFERENCE, exact), (Gpu("fp32"), params)):
                for i, p in enumerate(group):
                    if i == 4:
                        continue
                    wave = torch.sin(torch.arange(p.param.numel(), device=device) * (step + i) + i)
                    # the third parameter's gradient lies the other way round than its parameter
                    p.param.grad = wave.view(p.param.shape).to(p.param.dtype)
                norms.append(
                    kernels.optimizer_step(group, step=step, clip=clip, **ADAM)
                )
            close("norm", norms[1], norms[0])
            for i, (a, b) in enumerate(zip(params, exact, strict=True)):
                for name in ("param", "exp_avg", "exp_avg_sq"):
                    close(f"{name} {i}", getattr(a, name), getattr(b, name))
        assert params[0].param._version > 0, "autograd has been told of the change"


@check
def check_rates_on_the_device(device: str) -> None:
    """Numbers of the host that a captured step would repeat are not looked at: the same bits from those of the device."""
    for fused in (False, True):
        states = []
        for on_device in (False, True):
            training = Training(Gpu("fp32", dense_above=1.0, fused_adam=fused), Problem.random(device, 5, 8, 8, 12), False)
            training.loss(Select("topk", k=2), None, None).backward()
            over = [0.01 / (1 - 0.9**3), 1 / (1 - 0.999**3)]
            rates = torch.tensor(over, device=device) if on_device else None
            numbers = {"step": 7, "lr": 99.0} if on_device else {"step": 3, "lr": 0.01}
            training.kernels.optimizer_step(
                training.params, betas=(0.9, 0.999), eps=1e-4, clip=0.5, rates=rates, **numbers
            )
            for p in training.params:
                p.param.grad = None
            states.append(training.state())
        for name, tensor in states[0].items():
            assert torch.equal(tensor, states[1][name]), (fused, name)
    exact, params = (adam_params(device, torch.float64) for _ in range(2))
    for p in (*exact, *params):
        p.param.grad = torch.sin(torch.arange(p.param.numel(), device=device)).view(p.param.shape).double()
    REFERENCE.optimizer_step(exact, step=3, clip=None, **ADAM)
    rates = torch.tensor([0.01 / (1 - 0.9**3), 1 / (1 - 0.999**3)], device=device)
    REFERENCE.optimizer_step(params, step=1, clip=None, rates=rates, **ADAM)
    for a, b in zip(params, exact, strict=True):
        close("reference", a.param, b.param)


@check
def check_copies_are_those_of_the_weights(device: str) -> None:
    """After steps, with and without unit rows, and after somebody else has changed a weight; in the same memory."""
    for unit_rows in (True, False):
        training = Training(Gpu("bf16", dense_above=1.0), Problem.random(device, 7, 10, 8, 13), False, unit_rows)
        weights, held = (training.problem.W_enc, training.problem.W_dec), []
        for step in range(1, 5):
            training.loss(MODES["topk"], None, None).backward()
            if step < 4:
                training.optimise(step, 0.5)
            copies = [training.kernels.copies.of(w) for w in weights]
            assert all(torch.equal(half, w.detach().bfloat16()) for half, w in zip(copies, weights, strict=True))
            held.append([half.data_ptr() for half in copies])
            if step == 3:
                with torch.no_grad():
                    weights[0].mul_(-1)
        assert all(each == held[0] for each in held)


@check
def check_norms_of_changed_gradients(device: str) -> None:
    """What the backward pass knows of its gradients is not believed of others."""
    problem = Problem.random(device, 7, 10, 8, 13)
    dead = torch.arange(13, device=device) % 3 == 0

    def scaled(t: Training) -> None:
        t.problem.W_enc.grad.mul_(0.5)

    def replaced(t: Training) -> None:
        t.problem.W_dec.grad = t.problem.W_dec.grad + 1

    def moved(t: Training) -> None:
        t.problem.W_dec.data.copy_(t.problem.W_dec.detach().roll(1, 0))
        torch.autograd.graph.increment_version([t.problem.W_dec])

    def twice(t: Training) -> None:
        t.loss(MODES["topk"], None, None).backward()

    for change in (None, scaled, replaced, moved, twice):
        exact, ours = (Training(k, problem, False) for k in (REFERENCE, Gpu("fp32", dense_above=1.0)))
        for training in (exact, ours):
            training.loss(MODES["topk"], None, dead).backward()
            if change is not None:
                change(training)
        close(f"norm, {change}", ours.optimise(1, 0.5), exact.optimise(1, 0.5))
        for name, tensor in exact.state().items():
            close(f"{change} {name}", ours.state()[name], tensor)


@check
def check_sparse_optimizer(device: str) -> None:
    """Features without a gradient keep value and moments; in the parameters of every layout."""
    sizes = {"W_dec": ((9, 21), 0), "W_enc": ((1100, 9), 1), "b_enc": ((9,), 0), "b_dec": ((21,), None)}
    groups = []
    for dtype in (torch.float64, torch.float32):
        draw = torch.Generator().manual_seed(3)
        group = []
        for name, (size, axis) in sizes.items():
            value = torch.randn(size, generator=draw).to(device, dtype)
            value = value / value.norm(dim=1, keepdim=True) if name == "W_dec" else value
            value = value.t().contiguous().t() if axis == 1 else value
            moments = torch.zeros_like(value), torch.zeros_like(value)
            group.append(ParamState(value, *moments, unit_rows=name == "W_dec", sparse_axis=axis))
        groups.append(group)
    for step in (1, 2, 3):
        still = torch.arange(9, device=device) % 3 == step - 1
        before = [p.param[still].clone() for p in groups[1] if p.sparse_axis == 0]
        for kernels, group in zip((REFERENCE, Gpu("fp32")), groups, strict=True):
            for i, p in enumerate(group):
                wave = torch.sin(torch.arange(p.param.numel(), device=device) * (step + i) + i).view(p.param.shape)
                if p.sparse_axis is not None:
                    wave = wave.index_fill(p.sparse_axis, still.nonzero().squeeze(-1), 0)
                p.param.grad = wave.to(p.param.dtype)
            kernels.optimizer_step(group, step=step, clip=0.5, **ADAM)
        for i, (a, b) in enumerate(zip(groups[1], groups[0], strict=True)):
            for name in ("param", "exp_avg", "exp_avg_sq"):
                close(f"{name} {i}", getattr(a, name), getattr(b, name))
        after = [p.param[still] for p in groups[1] if p.sparse_axis == 0]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "a still feature moved"


def adam_params(device: str, dtype: torch.dtype) -> list[ParamState]:
    draw = torch.Generator().manual_seed(3)
    values = [torch.randn(s, generator=draw).to(device, dtype) for s in ((9, 21), (5, 1100), (7, 13), (4500,), (6,))]
    for i in (0, 1):
        values[i] /= values[i].norm(dim=1, keepdim=True)
    values[2] = values[2].t().contiguous().t()
    return [
        ParamState(v, torch.zeros_like(v), torch.zeros_like(v), unit_rows=i < 2) for i, v in enumerate(values)
    ]


@check
def check_short_training(device: str) -> None:
    """Losses of sparse and dense steps from the same weights agree."""
    losses = []
    for kernels in (REFERENCE, Gpu("fp32")):
        problem = Problem.random(device, 8, 10, 10, 37)
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        states = {n: [torch.zeros_like(getattr(problem, n)) for _ in range(2)] for n in names}
        params = [ParamState(getattr(problem, n), *states[n], unit_rows=n == "W_dec") for n in names]
        problem.W_dec.data /= problem.W_dec.data.norm(dim=1, keepdim=True)
        for step in range(1, 9):
            x_hat = problem.autoencode(kernels, MODES["topk"]).x_hat[0]
            loss = ((x_hat - problem.x.detach()) ** 2).sum(1).mean()
            loss.backward()
            kernels.optimizer_step(params, step=step, clip=1.0, **ADAM)
            for p in params:
                p.param.grad = None
            losses.append(loss.item())
    dense, sparse = losses[:8], losses[8:]
    assert dense[-1] < 0.8 * dense[0], dense
    assert all(abs(a - b) <= 1e-4 * a for a, b in zip(dense, sparse, strict=True)), (dense, sparse)
