"""The cpu backend over steps: the same bits on any number of threads, Adam, gradients and their memory."""


import pytest
import torch
from torch import Tensor

from sae.kernels import Backend, Revival, Select, backend
from tests.sae.kernels.problem import (
    MODES,
    REFERENCE,
    Weights,
    autoencode,
    losses_and_grads,
    optimise,
    rows,
    states,
    threads,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("mode", "absolute"), MODES)
def test_bits_do_not_depend_on_the_number_of_threads_or_the_run(precision: str, mode: str, absolute: bool) -> None:
    w, x, dead = Weights.random(64, 2000, 64), rows(257, 64), torch.arange(2000) % 50 == 0
    assert_same_bits_on_any_threads(precision, w, x, Select(mode, k=8, threshold=2.5, absolute=absolute), dead)


@pytest.mark.parametrize("d", [24, 64, 130])
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


def train(kernels: Backend, n_steps: int, *, clip: float | None = 1.0, aux: bool = True) -> tuple[list[float], Weights]:
    """Losses of a small TopK SAE on a mixture of atoms, with a fixed dead set, and its weights."""
    draw = torch.Generator().manual_seed(3)
    atoms, dead = torch.randn(500, 32, generator=draw), torch.arange(512) % 9 == 0
    w = Weights.random(32, 512, 32).leaves()
    params, losses = states(w), []
    for step in range(1, n_steps + 1):
        x = (torch.rand(64, 500, generator=draw) < 0.01).float() @ atoms
        out = autoencode(kernels, x, w, Select("topk", k=8), auxk=Revival(dead, 4) if aux else None)
        residual = x - out.x_hat[0]
        loss = residual.square().sum(1).mean()
        if out.aux_hat is not None:
            loss = loss + (residual.detach() - out.aux_hat).square().sum(1).mean() / 32
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
