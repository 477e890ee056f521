"""What the cpu backend does with numbers, shapes, layouts and densities it may not like."""


import pytest
import torch

from sae.base import Progress
from sae.code import SparseCode
from sae.errors import SaescopeError
from sae.kernels import Select, backend
from sae.kernels.cpu.checks import check_shapes
from sae.variants import VARIANTS
from tests.sae.kernels.problem import REFERENCE, Weights, assert_agree, autoencode, losses_and_grads, rows

pytestmark = pytest.mark.usefixtures("one_thread")


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
        with pytest.raises(SaescopeError, match="indptr"):
            kernels.decode(code, w.W_dec, w.b_dec)
    for feature in (600, -1):
        code = SparseCode(torch.tensor([feature], dtype=torch.int32), torch.ones(1), 1, 600, k=1)
        with pytest.raises(SaescopeError, match="feature ids"):
            kernels.decode(code, w.W_dec, w.b_dec)
    with pytest.raises(SaescopeError, match="no precision"):
        backend("cpu", "cpu", "fp8")
    with pytest.raises(SaescopeError, match="cannot run"):
        backend("cuda", "cpu")


def test_shapes_that_do_not_fit_are_named() -> None:
    """Asked of the check itself: in tests the types on the operations' signatures would speak first."""
    w, x = Weights.random(24, 600, 24), rows(33, 24)
    check_shapes(x=x, **w.named(), dead=torch.zeros(600, dtype=torch.bool))
    with pytest.raises(SaescopeError, match="d_sae is 600 in W_enc but 599 in W_dec"):
        check_shapes(x=x, W_enc=w.W_enc, b_enc=w.b_enc, W_dec=w.W_dec[:599])
    with pytest.raises(SaescopeError, match=r"x must be \[n_rows, d_in\], but has shape \[24\]"):
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
