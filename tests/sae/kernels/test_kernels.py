"""The kernels: the reference against finite differences, the cpu backend against the reference in fp64."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sae.kernels import Revival, Select, backend
from sae.kernels.cpu.state import Pass
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


@pytest.mark.parametrize("absolute", [False, True])
def test_the_reference_auxk_passes_gradcheck(absolute: bool) -> None:
    w = Weights.random(6, 14, 5).leaves(torch.float64)
    x, dead = rows(4, 6).double().requires_grad_(), torch.arange(14) % 3 == 0

    def outputs(*tensors: Tensor) -> tuple[Tensor | None, Tensor]:
        select = Select("topk", k=3, absolute=absolute)
        out = autoencode(REFERENCE, tensors[0], Weights(*tensors[1:]), select, auxk=Revival(dead, 2))
        return out.aux_hat, out.x_hat

    assert torch.autograd.gradcheck(outputs, (x, *vars(w).values()))
    # the definition: the 2 strongest of features 0, 3, 6, 9, 12 in each row, without bias
    pre = ((x - w.b_pre) @ w.W_enc + w.b_enc).detach()
    pre = torch.where(dead, pre if absolute else pre.relu(), 0)
    by_hand = torch.zeros(4, 5, dtype=torch.float64)
    for row in range(4):
        for feature in pre[row].abs().argsort(descending=True)[:2]:
            by_hand[row] += pre[row, feature] * w.W_dec[feature].detach()
    torch.testing.assert_close(outputs(x, *vars(w).values())[0], by_hand)


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
    w, kernels, nobody = Weights.random(24, 600, 24), backend("cpu", "cpu", "fp32"), torch.zeros(600, dtype=torch.bool)
    for each in (kernels, REFERENCE):
        aux_hat = autoencode(each, rows(5, 24), w, Select("topk", k=3), auxk=Revival(nobody, 4)).aux_hat
        assert aux_hat.shape == (5, 24) and aux_hat.abs().max() == 0
    for mode in ("topk", "batch_topk", "threshold"):
        assert kernels.encode(torch.empty(0, 24), w.W_enc, w.b_enc, Select(mode, k=2)).feature.numel() == 0


@pytest.mark.parametrize("terms", [("x_hat",), ("aux_hat",), ("value",), ("value", "aux_hat")])
def test_gradients_of_some_outputs_alone(terms: tuple[str, ...]) -> None:
    """A loss of the auxiliary reconstruction alone reaches the dead alone; one without it does not notice it."""
    w, x, dead = Weights.random(24, 600, 24), rows(33, 24), torch.arange(600) % 5 == 0
    found = []
    for kernels, dtype in ((backend("cpu", "cpu", "fp32"), torch.float32), (REFERENCE, torch.float64)):
        leaves = w.leaves(dtype)
        out = autoencode(kernels, x.to(dtype), leaves, Select("topk", k=3), auxk=Revival(dead, 4))
        outputs = {"x_hat": out.x_hat, "aux_hat": out.aux_hat, "value": out.code.value}
        sum((outputs[term] - 0.5).square().sum() for term in terms).backward()
        grads = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.named().items()}
        found.append(grads)
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name].double(), expected, rtol=1e-4, atol=1e-5, msg=name)
    if terms == ("aux_hat",):
        assert (found[0]["W_dec"][~dead] == 0).all() and (found[0]["W_enc"][:, ~dead] == 0).all()


def test_what_a_pass_holds_is_let_go_with_its_outputs() -> None:
    """Without the garbage collector: nothing refers to itself."""
    kernels, w, dead = backend("cpu", "cpu", "fp32"), Weights.random(24, 600, 24).leaves(), torch.arange(600) % 5 == 0
    gc.collect()
    gc.disable()
    try:
        out = autoencode(kernels, rows(33, 24), w, Select("topk", k=3), auxk=Revival(dead, 4))
        value = weakref.ref(out.code.value)
        passes = [weakref.ref(each) for each in gc.get_objects() if type(each) is Pass]
        assert value() is not None and len(passes) == 2
        (out.x_hat.sum() + out.aux_hat.sum()).backward()
        del out
        assert value() is None and all(each() is None for each in passes)
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
