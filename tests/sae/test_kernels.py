"""The kernels: the reference against finite differences, the cpu backend against the reference in fp64."""

import contextlib
import copy
import gc
import itertools
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sae.base import Progress
from sae.code import SparseCode
from sae.errors import SaescopeError
from sae.kernels import Autoencoded, Backend, ParamState, Select, backend
from sae.kernels.cpu_checks import check_shapes
from sae.kernels.cpu_run import jit, run
from sae.variants import VARIANTS

MODES = list(itertools.product(("topk", "batch_topk", "threshold"), (False, True)))
SIZES = {  # n_rows, d_in, d_sae, d_out, k
    "sparse": (33, 24, 600, 24, 5),
    "one row": (1, 16, 64, 16, 1),
    "transcoder, k = d_sae": (33, 24, 72, 40, 72),
    "odd": (7, 19, 1001, 23, 3),
}


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small steps gain nothing from threads, and lose much where other processes run."""
    with threads(1):
        yield


@dataclass
class Weights:
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_pre: Tensor | None

    @classmethod
    def random(cls, d_in: int, d_sae: int, d_out: int) -> "Weights":
        draw = torch.Generator().manual_seed(0)
        return cls(
            (torch.randn(d_sae, d_in, generator=draw) / d_in**0.5).t(), torch.randn(d_sae, generator=draw) * 0.1,
            F.normalize(torch.randn(d_sae, d_out, generator=draw), dim=1), torch.randn(d_out, generator=draw) * 0.1,
            torch.randn(d_in, generator=draw) * 0.1,
        )

    def leaves(self, dtype: torch.dtype = torch.float32) -> "Weights":
        def leaf(tensor: Tensor) -> Tensor:
            # preserve_format keeps W_enc feature-major
            return tensor.detach().clone(memory_format=torch.preserve_format).to(dtype).requires_grad_()

        return Weights(*(None if w is None else leaf(w) for w in vars(self).values()))

    def named(self) -> dict[str, Tensor]:
        return {name: w for name, w in vars(self).items() if w is not None}


def rows(n_rows: int, d_in: int, seed: int = 1) -> Tensor:
    return torch.randn(n_rows, d_in, generator=torch.Generator().manual_seed(seed))


def autoencode(kernels: Backend, x: Tensor, w: Weights, select: Select, **options: object) -> Autoencoded:
    return kernels.autoencode(x, w.W_enc, w.b_enc, w.W_dec, w.b_dec, select, b_pre=w.b_pre, **options)


def losses_and_grads(
    kernels: Backend, x: Tensor, weights: Weights, select: Select, dtype: torch.dtype = torch.float32,
    prefixes: tuple[int, ...] | None = None, dead: Tensor | None = None, k_aux: int = 4,
) -> tuple[Autoencoded, dict[str, Tensor]]:
    """One step whose loss touches every output; the gradients of everything."""
    w, x = weights.leaves(dtype), x.detach().to(dtype).clone().requires_grad_()
    out = autoencode(kernels, x, w, select, prefixes=prefixes)
    loss = (out.x_hat - 0.5).square().sum() / x.shape[0] + (out.code.value**2).sum() * 0.1
    if dead is not None:
        aux = kernels.auxk(x, w.W_enc, w.b_enc, w.W_dec, dead, k_aux, b_pre=w.b_pre, absolute=select.absolute)
        loss = loss + (aux - 1).square().sum() / x.shape[0]
    loss.backward()
    return out, {name: leaf.grad for name, leaf in {"x": x, **w.named()}.items()}


def assert_agree(out: Autoencoded, grads: dict, expected: Autoencoded, expected_grads: dict) -> None:
    """Equal to fp32 rounding."""
    torch.testing.assert_close(out.x_hat.double(), expected.x_hat, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(out.code.to_dense().double(), expected.code.to_dense(), rtol=1e-5, atol=1e-5)
    for name, grad in expected_grads.items():
        scale = float(grad.abs().max()) + 1e-6
        torch.testing.assert_close(grads[name].double() / scale, grad / scale, rtol=0, atol=5e-6, msg=name)


REFERENCE = backend("cpu", "reference")


# -- the reference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "absolute"), MODES)
def test_the_reference_passes_gradcheck(mode: str, absolute: bool) -> None:
    w = Weights.random(6, 14, 5).leaves(torch.float64)
    x = rows(4, 6).double().requires_grad_()
    select = Select(mode, k=3, threshold=0.4, absolute=absolute)

    def outputs(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out = autoencode(REFERENCE, tensors[0], Weights(*tensors[1:]), select, prefixes=(4, 14))
        return out.code.to_dense(), out.x_hat

    assert torch.autograd.gradcheck(outputs, (x, *vars(w).values()))


def test_the_reference_auxk_passes_gradcheck() -> None:
    w = Weights.random(6, 14, 5).leaves(torch.float64)
    x, dead = rows(4, 6).double().requires_grad_(), torch.arange(14) % 3 == 0

    def output(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_pre: Tensor) -> Tensor:
        return REFERENCE.auxk(x, W_enc, b_enc, W_dec, dead, 2, b_pre=b_pre)

    assert torch.autograd.gradcheck(output, (x, w.W_enc, w.b_enc, w.W_dec, w.b_pre))


# -- the cpu backend against it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mode", "absolute"), MODES)
def test_values_and_gradients_are_the_references(precision: str, size: str, mode: str, absolute: bool) -> None:
    n_rows, d_in, d_sae, d_out, k = SIZES[size]
    w, x = Weights.random(d_in, d_sae, d_out), rows(n_rows, d_in)
    select = Select(mode, k=k, threshold=2.0 if size == "sparse" else 0.3, absolute=absolute)
    for prefixes, dead in (
        (None, None), ((10, d_sae // 2, d_sae), None), ((10, 50), None), (None, torch.arange(d_sae) % 7 == 0)
    ):
        kernels = backend("cpu", "cpu", precision)
        got = losses_and_grads(kernels, x, w, select, prefixes=prefixes, dead=dead)
        expected = losses_and_grads(REFERENCE, x, w, select, torch.float64, prefixes, dead)
        assert_agree(*got, *expected)
        code = kernels.encode(x - w.b_pre, w.W_enc, w.b_enc, select)
        assert torch.equal(code.value, got[0].code.value)
        decoded = kernels.decode(code, w.W_dec, w.b_dec)
        torch.testing.assert_close(decoded, (code.to_dense() @ w.W_dec) + w.b_dec, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dense", [False, True])
def test_a_threshold_of_each_feature(precision: str, dense: bool) -> None:
    w, x = Weights.random(24, 600, 24), rows(33, 24)
    select = Select("threshold", threshold=torch.linspace(-0.5, 0.5, 600) + (0 if dense else 2.2))
    kernels = backend("cpu", "cpu", precision)
    assert_agree(*losses_and_grads(kernels, x, w, select),
                 *losses_and_grads(REFERENCE, x, w, select, torch.float64))
    assert kernels.last_route == ("dense" if dense else "sparse")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fewer_positive_than_k_leaves_padding_without_gradient(precision: str) -> None:
    w, x = Weights.random(24, 600, 24), rows(33, 24)
    w.b_enc.sub_(2.5)
    select, kernels = Select("topk", k=20), backend("cpu", "cpu", precision)
    got = losses_and_grads(kernels, x, w, select)
    assert (~got[0].code.active).any() and got[0].code.active.any()
    assert_agree(*got, *losses_and_grads(REFERENCE, x, w, select, torch.float64))


@pytest.mark.parametrize("mode", ["topk", "batch_topk", "threshold"])
def test_no_active_feature(mode: str) -> None:
    w, x = Weights.random(24, 600, 24), rows(33, 24)
    w.b_enc.sub_(1000)
    out, grads = losses_and_grads(backend("cpu", "cpu", "fp32"), x, w, Select(mode, k=4))
    assert out.code.n_active == 0
    assert torch.equal(out.x_hat[0], w.b_dec.expand(33, -1))
    assert all(grads[name].abs().max() == 0 for name in ("W_enc", "W_dec", "b_enc", "x"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_feature_active_in_every_row(precision: str) -> None:
    w, x = Weights.random(24, 2000, 24), rows(300, 24)
    w.b_enc[7] += 30
    select, kernels = Select("topk", k=3), backend("cpu", "cpu", precision)
    got = losses_and_grads(kernels, x, w, select)
    assert got[0].code.counts()[7] == 300
    assert_agree(*got, *losses_and_grads(REFERENCE, x, w, select, torch.float64))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["topk", "batch_topk"])
def test_ties_go_to_the_lowest_feature(precision: str, mode: str) -> None:
    w = torch.ones(4, 500)
    code = backend("cpu", "cpu", precision).encode(torch.ones(3, 4), w, torch.zeros(500), Select(mode, k=5)).csr()
    rows_kept = code.rows().tolist()
    expected = [0] * 5 + [1] * 5 + [2] * 5 if mode == "topk" else [0] * 15
    assert rows_kept == expected
    assert code.feature.tolist() == (list(range(5)) * 3 if mode == "topk" else list(range(15)))


def test_the_empty_dead_set_and_no_rows() -> None:
    w, kernels = Weights.random(24, 600, 24), backend("cpu", "cpu", "fp32")
    aux = kernels.auxk(rows(5, 24), w.W_enc, w.b_enc, w.W_dec, torch.zeros(600, dtype=torch.bool), 4)
    assert aux.shape == (5, 24) and aux.abs().max() == 0
    for mode in ("topk", "batch_topk", "threshold"):
        assert kernels.encode(torch.empty(0, 24), w.W_enc, w.b_enc, Select(mode, k=2)).feature.numel() == 0


def test_auxk_alone_and_beside_another_pass_give_the_same_gradients() -> None:
    w, x, dead = Weights.random(24, 600, 24), rows(33, 24), torch.arange(600) % 5 == 0
    kernels = backend("cpu", "cpu", "fp32")
    alone, beside = w.leaves(), w.leaves()
    kernels.auxk(x, alone.W_enc, alone.b_enc, alone.W_dec, dead, 4, b_pre=alone.b_pre).square().sum().backward()
    out = autoencode(kernels, x, beside, Select("topk", k=3))
    kernels.auxk(x, beside.W_enc, beside.b_enc, beside.W_dec, dead, 4, b_pre=beside.b_pre).square().sum().backward()
    assert out.x_hat.requires_grad
    for name in ("W_enc", "b_enc", "W_dec", "b_pre"):
        torch.testing.assert_close(getattr(beside, name).grad, getattr(alone, name).grad)


def test_what_a_pass_holds_is_let_go_with_its_outputs() -> None:
    """Without the garbage collector: nothing refers to itself."""
    kernels, w = backend("cpu", "cpu", "fp32"), Weights.random(24, 600, 24).leaves()
    gc.collect()
    gc.disable()
    try:
        out = autoencode(kernels, rows(33, 24), w, Select("topk", k=3))
        value, done = weakref.ref(out.code.value), next(iter(kernels._open.values()))[-1]
        assert value() is not None and done() is not None
        out.x_hat.sum().backward()
        del out
        assert value() is None and done() is None
    finally:
        gc.enable()


def test_bf16_candidates_select_what_fp32_selects() -> None:
    """Structured rows: few atoms each, one direction with most of the variance, near-duplicate features."""
    draw = torch.Generator().manual_seed(0)
    atoms = F.normalize(torch.randn(3000, 64, generator=draw), dim=1)
    atoms[1::2] = F.normalize(atoms[::2] + 0.01 * torch.randn(1500, 64, generator=draw), dim=1)
    acts = torch.rand(1000, 3000, generator=draw) * (torch.rand(1000, 3000, generator=draw) < 0.01)
    x = acts @ atoms + 20 * torch.randn(1000, 1, generator=draw) * atoms[0]
    W_enc, b_enc = atoms.clone().t(), torch.zeros(3000)
    for select in (Select("topk", k=32), Select("batch_topk", k=32), Select("threshold", threshold=1.0)):
        half, full = (backend("cpu", "cpu", p).encode(x, W_enc, b_enc, select).csr() for p in ("bf16", "fp32"))
        same = (half.to_dense() != 0) == (full.to_dense() != 0)
        # fp32 itself does not order values that differ in their last bits: products are summed in another order
        assert same.all(1).float().mean() >= 0.998
        torch.testing.assert_close(half.to_dense() * same, full.to_dense() * same, rtol=0, atol=1e-4)
        swapped = [code.to_dense()[~same] for code in (half, full)]
        torch.testing.assert_close(swapped[0].sort().values, swapped[1].sort().values, rtol=0, atol=1e-4)


# -- bit for bit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("mode", "absolute"), MODES)
def test_bits_do_not_depend_on_the_number_of_threads_or_the_run(precision: str, mode: str, absolute: bool) -> None:
    w, x, dead = Weights.random(64, 2000, 64), rows(257, 64), torch.arange(2000) % 50 == 0
    assert_same_bits_on_any_threads(precision, w, x, Select(mode, k=8, threshold=2.5, absolute=absolute), dead)


@pytest.mark.parametrize("d", [24, 64])
def test_bits_of_dense_passes_do_not_either(d: int) -> None:
    """24 columns: so narrow that a math library would add in an order that depends on its threads."""
    dead = torch.arange(600) % 5 == 0
    assert_same_bits_on_any_threads("fp32", Weights.random(d, 600, d), rows(257, d), Select("threshold"), dead)


def assert_same_bits_on_any_threads(precision: str, w: Weights, x: Tensor, select: Select, dead: Tensor) -> None:
    """Values, gradients, and the parameters after a step."""
    d_sae, results = w.b_enc.numel(), []
    for n in (1, 2, 3, 4, 2):
        with threads(n):
            kernels = backend("cpu", "cpu", precision)
            out, grads = losses_and_grads(kernels, x, w, select, dead=dead, prefixes=(100, d_sae // 2, d_sae))
            stepped = w.leaves()
            for name, leaf in stepped.named().items():
                leaf.grad = grads[name].clone(memory_format=torch.preserve_format)
            norm = optimise(kernels, states(stepped))
        results.append((out.code.feature, out.code.value, out.x_hat, *grads.values(), norm, *stepped.named().values()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# -- the optimiser ----------------------------------------------------------------------------------------------------


def states(w: Weights) -> list[ParamState]:
    return [
        ParamState(p, torch.zeros_like(p), torch.zeros_like(p), unit_rows=name == "W_dec")
        for name, p in w.named().items()
    ]


def optimise(kernels: Backend, params: list[ParamState]) -> Tensor:
    """One step at settings of no consequence; the gradients' norm."""
    return kernels.optimizer_step(params, step=1, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, clip=1.0)


def train(kernels: Backend, n_steps: int, *, clip: float | None = 1.0, aux: bool = True) -> tuple[list[float], Weights]:
    """Losses of a small TopK SAE on a mixture of atoms, with a fixed dead set, and its weights."""
    draw = torch.Generator().manual_seed(3)
    atoms, dead = torch.randn(500, 32, generator=draw), torch.arange(512) % 9 == 0
    w = Weights.random(32, 512, 32).leaves()
    params, losses = states(w), []
    for step in range(1, n_steps + 1):
        x = (torch.rand(64, 500, generator=draw) < 0.01).float() @ atoms
        out = autoencode(kernels, x, w, Select("topk", k=8))
        residual = x - out.x_hat[0]
        loss = residual.square().sum(1).mean()
        if aux:
            aux_hat = kernels.auxk(x, w.W_enc, w.b_enc, w.W_dec, dead, 4, b_pre=w.b_pre)
            loss = loss + (residual.detach() - aux_hat).square().sum(1).mean() / 32
        loss.backward()
        kernels.optimizer_step(params, step=step, lr=3e-3, betas=(0.9, 0.999), eps=1e-8, clip=clip)
        for p in params:
            p.param.grad = None
        losses.append(float(loss.detach()))
    return losses, w


@pytest.fixture(scope="module")
def dense_losses() -> list[float]:
    with threads(1):
        return train(REFERENCE, 500)[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_500_steps_sparse_and_dense_learn_alike(precision: str, dense_losses: list[float]) -> None:
    expected = dense_losses
    losses, w = train(backend("cpu", "cpu", precision), 500)
    assert expected[-1] < 0.5 * expected[0]
    assert max(abs(a - b) / b for a, b in zip(losses, expected, strict=True)) < 1e-3
    torch.testing.assert_close(w.W_dec.norm(dim=1), torch.ones(512))


def test_the_step_is_that_of_torch_adam() -> None:
    w = Weights.random(24, 600, 24).leaves()
    other = [p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in w.named().values()]
    optimizer = torch.optim.Adam(other, lr=1e-2, betas=(0.8, 0.99), eps=1e-6)
    kernels, params = backend("cpu", "cpu", "fp32"), states(w)
    for p in params:
        p.unit_rows = False
    for step in range(1, 6):
        for p, q in zip(params, other, strict=True):
            grad = torch.randn(p.param.t().shape, generator=torch.Generator().manual_seed(step)).t()
            p.param.grad, q.grad = grad.clone(), grad.clone()
        expected = torch.nn.utils.clip_grad_norm_(other, 3.0)
        optimizer.step()
        norm = kernels.optimizer_step(params, step=step, lr=1e-2, betas=(0.8, 0.99), eps=1e-6, clip=3.0)
        torch.testing.assert_close(norm, expected)
        for p, q in zip(params, other, strict=True):
            torch.testing.assert_close(p.param, q, rtol=1e-5, atol=1e-6)


def test_gradients_have_the_layout_of_their_parameter_and_use_their_memory_again() -> None:
    w, x, kernels = Weights.random(24, 600, 24).leaves(), rows(33, 24), backend("cpu", "cpu", "fp32")
    addresses = set()
    for step in range(1, 4):
        autoencode(kernels, x, w, Select("topk", k=3)).x_hat.square().sum().backward()
        assert w.W_enc.grad.stride() == w.W_enc.stride()
        addresses.add(w.W_enc.grad.data_ptr())
        kernels.optimizer_step(states(w), step=step, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, clip=None)
        assert w.W_enc.grad is None
    assert len(addresses) <= 2


def test_gradients_accumulate_and_the_norm_sees_it() -> None:
    w, x, kernels = Weights.random(24, 600, 24).leaves(), rows(33, 24), backend("cpu", "cpu", "fp32")
    for _ in range(2):
        autoencode(kernels, x, w, Select("topk", k=3)).x_hat.square().sum().backward()
    once = w.leaves()
    autoencode(REFERENCE, x, once, Select("topk", k=3)).x_hat.square().sum().backward()
    torch.testing.assert_close(w.W_enc.grad, 2 * once.W_enc.grad, rtol=1e-4, atol=1e-5)
    settings = {"step": 1, "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "clip": None}
    norm = kernels.optimizer_step(states(w), **settings)
    torch.testing.assert_close(norm, 2 * REFERENCE.optimizer_step(states(once), **settings), rtol=1e-4, atol=0)


def test_changed_weights_are_never_encoded_from_an_old_bf16_copy() -> None:
    w, x, kernels = Weights.random(24, 600, 24), rows(33, 24), backend("cpu", "cpu", "bf16")
    W_enc = w.W_enc.clone(memory_format=torch.preserve_format).requires_grad_()
    select = Select("topk", k=3)
    kernels.encode(x, W_enc, w.b_enc, select)
    with torch.no_grad():
        W_enc[:, 300:] = -W_enc[:, 300:]
    expected = backend("cpu", "cpu", "fp32").encode(x, W_enc, w.b_enc, select)
    assert torch.equal(kernels.encode(x, W_enc, w.b_enc, select).csr().feature, expected.csr().feature)


# -- threads and processes --------------------------------------------------------------------------------------------


def test_two_threads_at_once_neither_crash_nor_differ() -> None:
    kernels, shared = backend("cpu", "cpu", "bf16"), Weights.random(64, 2000, 64)
    cases = [(rows(100, 64, seed), Select(mode, k=8, threshold=2.5)) for seed, mode in
             enumerate(("topk", "batch_topk", "threshold", "topk"))]
    dead = torch.arange(2000) % 50 == 0

    def everything(i: int) -> dict[str, Tensor]:
        """What each operation gives for case i."""
        x, select = cases[i]
        out, grads = losses_and_grads(kernels, x, shared, select, dead=dead, prefixes=(500, 2000) if i % 2 else None)
        code, stepped = kernels.encode(x, shared.W_enc, shared.b_enc, select), shared.leaves()
        for name, leaf in stepped.named().items():
            leaf.grad = grads[name].clone(memory_format=torch.preserve_format)
        norm, decoded = optimise(kernels, states(stepped)), kernels.decode(code, shared.W_dec, shared.b_dec)
        found = {"x_hat": out.x_hat, "value": code.value, "decoded": decoded, "norm": norm}
        return found | grads | {f"stepped {name}": leaf for name, leaf in stepped.named().items()}

    expected = [everything(i) for i in range(len(cases))]
    failures: list[str] = []

    def work(order: list[int]) -> None:
        for i in order * 3:
            failures.extend(f"{n} of {i}" for n, t in everything(i).items() if not torch.equal(t, expected[i][n]))

    workers = [threading.Thread(target=work, args=(order,)) for order in ([0, 1, 2, 3], [3, 2, 1, 0])]
    with threads(2):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not failures


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_no_threading_layer_of_numba_is_needed(layer: str) -> None:
    """Under `workqueue` two threads that ran numba's own parallel loops would abort the process."""
    program = "import tests.sae.test_kernels as t; t.test_two_threads_at_once_neither_crash_nor_differ()"
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def in_a_worker(connection: object) -> None:
    """Run by a spawned process."""
    w = Weights.random(24, 600, 24)
    out, _ = losses_and_grads(backend("cpu", "cpu", "fp32"), rows(33, 24), w, Select("topk", k=3))
    connection.send(out.x_hat.detach().numpy())


def test_a_spawned_worker_works_after_a_kernel_ran() -> None:
    w = Weights.random(24, 600, 24)
    here, _ = losses_and_grads(backend("cpu", "cpu", "fp32"), rows(33, 24), w, Select("topk", k=3))
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=in_a_worker, args=(theirs,))
    worker.start()
    try:
        assert ours.poll(120), "the worker gave no answer"
        assert torch.equal(torch.from_numpy(ours.recv()), here.x_hat.detach())
    finally:
        worker.join(10)
    assert worker.exitcode == 0


def test_copies_and_pickles_of_a_backend_work() -> None:
    w, x, kernels = Weights.random(24, 600, 24), rows(33, 24), backend("cpu", "cpu", "fp32")
    code = kernels.encode(x, w.W_enc, w.b_enc, Select("topk", k=3))
    for other in (copy.deepcopy(kernels), pickle.loads(pickle.dumps(kernels))):
        assert torch.equal(other.encode(x, w.W_enc, w.b_enc, Select("topk", k=3)).value, code.value)


def test_a_loop_without_a_place_for_its_machine_code_still_runs() -> None:
    names: dict = {}
    exec("def double(lo, hi, a):\n    return a[lo:hi].sum() * 2\n", names)  # no file, so no cache
    parts = run(jit(names["double"]), [0, 2, 4], torch.ones(4).numpy())
    assert parts == [4.0, 4.0]


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["topk", "batch_topk", "threshold"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(precision: str, mode: str, bad: float) -> None:
    w, x = Weights.random(24, 600, 24), rows(33, 24)
    x[5, 3] = bad
    with pytest.raises(SaescopeError, match=r"1 of 33 rows .* row 5"):
        backend("cpu", "cpu", precision).encode(x, w.W_enc, w.b_enc, Select(mode, k=3, threshold=0.5))


def test_bad_arguments_are_named() -> None:
    w, x, kernels = Weights.random(24, 600, 24), rows(33, 24), backend("cpu", "cpu", "fp32")
    with pytest.raises(SaescopeError, match="k = 601"):
        kernels.encode(x, w.W_enc, w.b_enc, Select("topk", k=601))
    with pytest.raises(SaescopeError, match="float32"):
        kernels.encode(x.half(), w.W_enc, w.b_enc, Select("topk", k=3))
    with pytest.raises(SaescopeError, match="meta"):
        kernels.encode(x.to("meta"), w.W_enc, w.b_enc, Select("topk", k=3))
    with pytest.raises(SaescopeError, match="prefixes"):
        autoencode(kernels, x, w, Select("topk", k=3), prefixes=(5, 5))
    for bounds in ([0, 2, 1], [1, 1, 2], [0, 1, 3]):
        code = SparseCode(torch.tensor([3, 5], dtype=torch.int32), torch.ones(2), 2, 600, indptr=torch.tensor(bounds))
        with pytest.raises(SaescopeError, match="bounds of the code's rows"):
            kernels.decode(code, w.W_dec, w.b_dec)
    for feature in (600, -1):
        code = SparseCode(torch.tensor([feature], dtype=torch.int32), torch.ones(1), 1, 600, k=1)
        with pytest.raises(SaescopeError, match="features"):
            kernels.decode(code, w.W_dec, w.b_dec)
    with pytest.raises(SaescopeError, match="no precision"):
        backend("cpu", "cpu", "fp8")
    with pytest.raises(SaescopeError, match="cannot run"):
        backend("cuda", "cpu")


def test_shapes_that_do_not_fit_are_named() -> None:
    """Asked of the check itself: in tests the types on the operations' signatures would speak first."""
    w, x = Weights.random(24, 600, 24), rows(33, 24)
    check_shapes(x=x, **w.named(), dead=torch.zeros(600, dtype=torch.bool))
    with pytest.raises(SaescopeError, match="d_sae is 600 in W_enc and 599 in W_dec"):
        check_shapes(x=x, W_enc=w.W_enc, b_enc=w.b_enc, W_dec=w.W_dec[:599])
    with pytest.raises(SaescopeError, match=r"x is \[n_rows, d_in\], and has the shape \[24\]"):
        check_shapes(x=x[0], W_enc=w.W_enc)


def test_tensors_in_any_layout_are_right() -> None:
    w, x, kernels = Weights.random(24, 600, 30), rows(33, 24), backend("cpu", "cpu", "fp32")
    odd = Weights(w.W_enc.contiguous(), w.b_enc.repeat_interleave(2)[::2], w.W_dec.t().contiguous().t(),
                  w.b_dec.repeat_interleave(2)[::2], w.b_pre)
    wide = torch.zeros(33, 48)
    wide[:, ::2] = x
    select = Select("topk", k=3)
    assert_agree(*losses_and_grads(kernels, wide[:, ::2], odd, select),
                 *losses_and_grads(REFERENCE, x, w, select, torch.float64))


def test_fp64_is_served_by_the_reference() -> None:
    w, x, kernels = Weights.random(24, 600, 24), rows(33, 24), backend("cpu", "cpu", "fp32")
    out, _ = losses_and_grads(kernels, x, w, Select("topk", k=3), torch.float64)
    assert out.x_hat.dtype == torch.float64 and kernels.last_route == "reference"


@pytest.mark.parametrize("variant", ["relu", "jumprelu", "gated"])
def test_variants_with_most_features_active_run_dense_and_agree(variant: str) -> None:
    """As early in training: then, with few active, sparse again."""
    start = {"threshold": 0.05, "bandwidth": 0.04} if variant == "jumprelu" else {}
    options = {"sparsity": {"coefficient": 1.0}, **start}
    steps, routes = {}, []
    for name in ("cpu", "reference"):
        kind, config = VARIANTS[variant]
        sae = kind(config(variant=variant, d_sae=600, **options), 24)
        w = Weights.random(24, 600, 24)
        with torch.no_grad():
            sae.W_enc.copy_(w.W_enc)
            sae.W_dec.copy_(w.W_dec)
        sae.kernels, x = backend("cpu", name, "fp32"), rows(33, 24)
        steps[name] = sae.losses(x, x, Progress(torch.zeros(600, dtype=torch.bool), coefficient=0.1))
        steps[name].loss.backward()
        steps[name] = (steps[name].loss.detach(), *(p.grad for p in sae.parameters()))
        routes.append(sae.kernels.last_route)
        if name == "cpu":
            with torch.no_grad():
                sae.b_enc.sub_(2.5)
            sae.losses(x, x, Progress(torch.zeros(600, dtype=torch.bool)))
            routes.append(sae.kernels.last_route)
    assert routes == ["dense", "sparse", "reference"]
    for got, expected in zip(steps["cpu"], steps["reference"], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
