"""Encoding and decoding under autograd against dense computations written out, in fp64."""

import copy

import pytest
import torch
from torch import Tensor

from sae import products
from sae.base import SAE, Transform
from sae.code import from_dense
from sae.kernels import backend
from sae.kernels.reference import select_dense
from sae.variants import VARIANTS
from sae.variants.imported import Imported, ImportedConfig, row_statistics

D, N, ROWS = 10, 40, 7


def made(variant: str, *, d_out: int = D, skip: bool = False, **fields: object) -> SAE:
    """An fp64 SAE with random weights, row norms and transforms of its own, and few active features."""
    generator = torch.Generator().manual_seed(len(variant))
    transforms = [
        Transform(torch.randn(d, generator=generator), torch.rand((), generator=generator) + 0.5) for d in (D, d_out)
    ]
    sae_class, config = (Imported, ImportedConfig) if variant == "imported" else VARIANTS[variant]
    config = config.model_validate({"d_sae": N, "skip": skip, **fields})
    cross = skip or d_out != D
    sae = sae_class(config, D, d_out, input=transforms[0], target=transforms[1] if cross else None).double()
    with torch.no_grad():
        for name, p in sae.named_parameters():
            if name != "theta":
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        sae.b_enc.sub_(1)
        for name, value in (("threshold_sum", 0.8), ("threshold_weight", 1.0), ("threshold", 0.5)):
            if name in dict(sae.named_buffers()):
                sae.get_buffer(name).fill_(value)
    return sae


def dense(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Activations with their zeros, the reconstruction and pre-activations, in the model's units, by plain autograd."""
    spread = centre = None
    inner = x
    if isinstance(sae, Imported):
        inner, spread, centre = row_statistics(x, sae.config.row_norm)
    z = (inner - sae.input.mean) * sae.input.scale
    w_enc, b_enc = sae.encoder()
    pre = (z - sae.b_dec if sae.subtracts_b_dec else z) @ w_enc + b_enc
    norms = sae.W_dec.norm(dim=1)
    acts, pre = (z * norms / sae.target.scale for z in (select_dense(pre, sae.select()), pre))
    bias = sae.b_dec / sae.target.scale + sae.target.mean
    if spread is not None and sae.config.denormalise:
        acts, pre, bias = acts * spread, pre * spread, bias * spread + centre
    x_hat = acts @ (sae.W_dec / norms[:, None]) + bias
    if sae.config.skip:
        x_hat = x_hat + (x - sae.input.mean) * sae.input.scale @ sae.W_skip.t() / sae.target.scale
    return acts, x_hat, pre


CASES = [
    ("relu", {}), ("topk", {"k": 3}), ("abstopk", {"k": 3}), ("batchtopk", {"k": 3}), ("absbatchtopk", {"k": 3}),
    ("jumprelu", {"threshold": 0.4}), ("gated", {}), ("mdl", {"threshold": 0.4}), ("matryoshka", {"k": 3}),
    ("imported", {"architecture": "jumprelu", "row_norm": "layer_norm"}),
    ("imported", {"architecture": "abstopk", "row_norm": "constant_norm_rescale", "k": 3, "absolute": True}),
]


@pytest.mark.parametrize(("variant", "fields"), CASES, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip"])
def test_gradients_are_those_of_a_dense_computation(variant: str, fields: dict, kind: str) -> None:
    if variant == "imported" and kind != "sae":
        fields = {**fields, "denormalise": False}
    sae = made(variant, d_out=D if kind == "sae" else 6, skip=kind == "skip", **fields)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, D, generator=generator, dtype=torch.float64, requires_grad=True)
    code = sae.encode_traced(x)
    x_hat = sae.decode_traced(code)
    acts, expected, pre = dense(sae, x)
    assert 0 < len(code.value) < ROWS * N
    torch.testing.assert_close(code.to_dense(), acts, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x_hat, expected, rtol=1e-12, atol=1e-12)
    found = sae.encode(x)
    torch.testing.assert_close(found.to_dense(), acts.detach(), rtol=1e-12, atol=1e-12)
    assert not found.value.requires_grad and not sae.decode(found).requires_grad
    torch.testing.assert_close(sae.pre_activations(x, code), pre[code.rows(), code.feature.long()], rtol=1e-12, atol=1e-12)

    weight = torch.randn(x_hat.shape, generator=generator, dtype=torch.float64)
    wanted = [x, *sae.parameters()]
    ours = torch.autograd.grad((x_hat * weight).sum(), [code.value, *wanted], allow_unused=True)
    theirs = torch.autograd.grad((expected * weight).sum(), [acts, *wanted], allow_unused=True)
    torch.testing.assert_close(ours[0], theirs[0][code.rows(), code.feature.long()], rtol=1e-10, atol=1e-10)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(zero if mine is None else mine, zero if other is None else other, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sae.feature_gradients(weight), theirs[0], rtol=1e-10, atol=1e-10)


def test_products_differentiate_twice() -> None:
    generator = torch.Generator().manual_seed(0)
    code = from_dense(torch.randn(4, 6, generator=generator, dtype=torch.float64).relu())
    W = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    value = code.value.requires_grad_()
    for fn, arguments in (
        (lambda v, w: products.mix(type(code)(code.feature, v, 4, 6, indptr=code.indptr), w), (value, W)),
        (lambda rows, w: products.read(rows, w, code), (x, W)),
    ):
        assert torch.autograd.gradcheck(fn, arguments)
        assert torch.autograd.gradgradcheck(fn, arguments)


def test_a_frozen_sae_shares_memory_and_takes_no_gradient() -> None:
    sae = made("topk", k=3)
    twin = sae.frozen()
    assert twin.W_enc.data_ptr() == sae.W_enc.data_ptr() and sae.W_enc.requires_grad
    x = torch.randn(ROWS, D, dtype=torch.float64, requires_grad=True)
    twin.decode_traced(twin.encode_traced(x)).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in sae.parameters())
    untouched = copy.deepcopy(sae.state_dict())
    twin.encode(x)
    assert all(torch.equal(value, untouched[name]) for name, value in sae.state_dict().items())


def test_nothing_active_decodes_to_the_bias() -> None:
    sae = made("relu")
    sae.b_enc.data.fill_(-1e3)
    x = torch.randn(ROWS, D, dtype=torch.float64, requires_grad=True)
    code = sae.encode_traced(x)
    assert len(code.value) == 0
    x_hat = sae.decode_traced(code)
    torch.testing.assert_close(x_hat, sae.bias().expand(ROWS, -1))
    assert torch.autograd.grad(x_hat.sum(), x)[0].abs().max() == 0


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_either_backend_traces(kernels: str) -> None:
    sae = made("topk", k=3).float()
    sae.kernels = backend("cpu", kernels)
    x = torch.randn(ROWS, D, requires_grad=True)
    code = sae.encode_traced(x)
    torch.testing.assert_close(code.to_dense(), dense(sae, x)[0], rtol=1e-5, atol=1e-5)
    (ours,), (theirs,) = (torch.autograd.grad(total, x) for total in (code.value.sum(), dense(sae, x)[0].sum()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
