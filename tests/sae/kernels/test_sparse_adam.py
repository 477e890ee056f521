"""Sparse Adam against an Adam of its own for every feature, and against torch's."""

import math

import pytest
import torch
from torch import Tensor

from sae.kernels import ParamState, Select, backend

N, D_IN, D_OUT, STEPS = 11, 7, 5, 8
LR, BETAS, EPS, CLIP = 0.02, (0.8, 0.95), 1e-6, 0.6
AXES = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "b_dec": None}


def states(axes: dict[str, int | None] = AXES, *, unit: bool = True, dtype: torch.dtype = torch.float32) -> dict:
    draw = torch.Generator().manual_seed(0)
    values = {
        "W_enc": torch.randn(N, D_IN, generator=draw).t(), "b_enc": torch.randn(N, generator=draw),
        "W_dec": torch.randn(N, D_OUT, generator=draw), "b_dec": torch.randn(D_OUT, generator=draw),
    }
    values["W_dec"] /= values["W_dec"].norm(dim=1, keepdim=True)
    values = {name: value.to(dtype) for name, value in values.items()}
    return {
        name: ParamState(
            v.requires_grad_(), torch.zeros_like(v), torch.zeros_like(v), unit and name == "W_dec", sparse_axis=axes[name])
        for name, v in values.items()
    }


def gradients(step: int, touched: Tensor) -> dict[str, Tensor]:
    """Gradients of a step in which only some features took part."""
    draw = torch.Generator().manual_seed(100 + step)
    on = touched.float()
    return {
        "W_enc": (torch.randn(N, D_IN, generator=draw) * on[:, None]).t(), "b_enc": torch.randn(N, generator=draw) * on,
        "W_dec": torch.randn(N, D_OUT, generator=draw) * on[:, None], "b_dec": torch.randn(D_OUT, generator=draw),
    }


def touched_at(step: int) -> Tensor:
    """A changing half of the features; the last one never."""
    on = torch.rand(N, generator=torch.Generator().manual_seed(step)) < 0.5
    on[-1] = False
    return on


class OneFeature:
    """Adam over the plain numbers of one feature, written out; it is only called when the feature takes part."""

    def __init__(self, weights: list[float]) -> None:
        self.weights, self.first, self.second = weights, [0.0] * len(weights), [0.0] * len(weights)

    def step(self, grad: list[float], step: int, unit: bool) -> None:
        for i, g in enumerate(grad):
            self.first[i] = BETAS[0] * self.first[i] + (1 - BETAS[0]) * g
            self.second[i] = BETAS[1] * self.second[i] + (1 - BETAS[1]) * g * g
            first, second = self.first[i] / (1 - BETAS[0] ** step), self.second[i] / (1 - BETAS[1] ** step)
            self.weights[i] -= LR * first / (math.sqrt(second) + EPS)
        if unit:
            norm = math.sqrt(sum(w * w for w in self.weights))
            self.weights = [w / norm for w in self.weights]


def by_feature(tensor: Tensor, name: str) -> list[list[float]]:
    """A parameter as one list of numbers per feature; b_dec as a single one."""
    tensor = tensor.detach().double()
    rows = {"W_enc": tensor.t(), "b_enc": tensor[:, None], "W_dec": tensor, "b_dec": tensor[None]}
    return rows[name].tolist()


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_every_feature_has_an_adam_of_its_own(kernels: str) -> None:
    params, operations = states(), backend("cpu", kernels, "fp32")
    alone = {name: [OneFeature(row) for row in by_feature(p.param, name)] for name, p in params.items()}
    for step in range(1, STEPS + 1):
        on = touched_at(step)
        grads = gradients(step, on)
        tangent = grads["W_dec"].double()
        rows = params["W_dec"].param.detach().double()
        tangent = tangent - (tangent * rows).sum(1, keepdim=True) * rows
        plain = {name: by_feature(tangent if name == "W_dec" else grad, name) for name, grad in grads.items()}
        norm = math.sqrt(sum(g * g for rows_ in plain.values() for row in rows_ for g in row))
        scale = min(1.0, CLIP / norm)
        for name, features in alone.items():
            for f, feature in enumerate(features):
                if name == "b_dec" or on[f]:
                    feature.step([scale * g for g in plain[name][f]], step, unit=name == "W_dec")
        before = {name: [t.clone() for t in (p.param, p.exp_avg, p.exp_avg_sq)] for name, p in params.items()}
        for name, p in params.items():
            p.param.grad = grads[name]
        found = operations.optimizer_step(list(params.values()), step=step, lr=LR, betas=BETAS, eps=EPS, clip=CLIP)
        assert float(found) == pytest.approx(norm, rel=1e-5)
        for name, p in params.items():
            for f, feature in enumerate(alone[name]):
                where = f"{name} of feature {f} at step {step}"
                expected = (feature.weights, feature.first, feature.second)
                for tensor, numbers in zip((p.param, p.exp_avg, p.exp_avg_sq), expected, strict=True):
                    assert by_feature(tensor, name)[f] == pytest.approx(numbers, rel=1e-4, abs=1e-6), where
            if (axis := AXES[name]) is not None:
                still = (~on).nonzero().squeeze(-1)
                for tensor, old in zip((p.param, p.exp_avg, p.exp_avg_sq), before[name], strict=True):
                    assert torch.equal(tensor.index_select(axis, still), old.index_select(axis, still)), "to the bit"


def test_it_is_torchs_sparse_adam() -> None:
    """Where rows are free; torch has it for sparse gradients of one layout, an embedding's."""
    params, operations = states(unit=False), backend("cpu", "cpu", "fp32")
    table = params["W_dec"].param.detach().clone().requires_grad_()
    optimizer = torch.optim.SparseAdam([table], lr=LR, betas=BETAS, eps=1e-12)
    for step in range(1, STEPS + 1):
        grads = gradients(step, touched_at(step))
        for name, p in params.items():
            p.param.grad = grads[name].clone()
        touched = touched_at(step).nonzero().squeeze(-1)
        table.grad = torch.sparse_coo_tensor(touched[None], grads["W_dec"][touched], (N, D_OUT), check_invariants=True)
        optimizer.step()
        # the two place eps differently, so it is next to nothing
        operations.optimizer_step(list(params.values()), step=step, lr=LR, betas=BETAS, eps=1e-12, clip=None)
    torch.testing.assert_close(params["W_dec"].param, table, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_with_all_features_it_is_adam(kernels: str) -> None:
    sparse, dense = states(), states(dict.fromkeys(AXES))
    operations = backend("cpu", kernels, "fp32")
    for step in range(1, STEPS + 1):
        for group in (sparse, dense):
            for name, p in group.items():
                p.param.grad = gradients(step, torch.ones(N))[name]
            operations.optimizer_step(list(group.values()), step=step, lr=LR, betas=BETAS, eps=EPS, clip=CLIP)
    for name, p in sparse.items():
        assert torch.equal(p.param, dense[name].param), name


def test_a_bf16_copy_follows_a_sparse_step() -> None:
    """The cpu backend keeps a bf16 copy of the encoder; also of the rows that stay."""
    params, operations = states(), backend("cpu", "cpu", "bf16")
    x = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(5))
    for step in range(1, 4):
        for name, p in params.items():
            p.param.grad = gradients(step, touched_at(step))[name]
        operations.optimizer_step(list(params.values()), step=step, lr=0.5, betas=BETAS, eps=EPS, clip=None)
        W_enc, b_enc = params["W_enc"].param, params["b_enc"].param.detach()
        code = operations.encode(x, W_enc, b_enc, Select("topk", k=3)).csr()
        expected = backend("cpu", "reference").encode(x, W_enc, b_enc, Select("topk", k=3)).csr()
        torch.testing.assert_close(code.to_dense(), expected.to_dense(), rtol=1e-5, atol=1e-5)
