"""The kernels: the reference against finite differences, the cpu backend against the reference in fp64."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sae.kernels import Select, backend
from tests.sae.kernels.problem import MODES, REFERENCE, SIZES, Weights, assert_agree, autoencode, losses_and_grads, rows

pytestmark = pytest.mark.usefixtures("one_thread")


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
