"""Nested dictionaries: the loss by hand, prefixes fixed and drawn, gradients between groups."""

from collections import Counter

import pytest
import torch

from sae.base import Progress
from sae.variants.matryoshka import Matryoshka, MatryoshkaConfig, Sampled, draw_prefixes
from tests.sae.variants.test_variants import Loss, check_gradients, make, no_dead, rows

BASES = ("topk", "batchtopk", "abstopk", "absbatchtopk")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.5)])
def test_the_loss_is_the_weighted_sum_over_prefixes(base: str, weights: tuple[float, ...] | None) -> None:
    sae = make("matryoshka", base=base, weights=weights)
    x, target = rows(), rows().flip(0)
    step = sae.losses(x, target, no_dead(sae))
    acts = step.code.to_dense()
    if "batch" in base:
        assert step.code.n_active == 3 * len(x)
    by_prefix = [
        (target - acts[:, :end] @ sae.W_dec[:end] - sae.b_dec).square().sum(1).mean() for end in (4, 11, 20)
    ]
    w = weights or (1.0, 1.0, 1.0)
    torch.testing.assert_close(step.terms["reconstruction"], w[2] * by_prefix[2])
    torch.testing.assert_close(step.terms["prefixes"], w[0] * by_prefix[0] + w[1] * by_prefix[1])
    torch.testing.assert_close(step.x_hat, acts @ sae.W_dec + sae.b_dec)
    assert (acts < 0).any() == base.startswith("abs")


@pytest.mark.parametrize("base", BASES)
def test_gradients_of_the_shorter_prefixes(base: str) -> None:
    sae = make("matryoshka", base=base)
    check_gradients(Loss(sae, "prefixes", no_dead(sae)), rows(), rows())


@pytest.mark.parametrize("base", BASES)
def test_inference_is_that_of_the_base(base: str) -> None:
    nested, plain = make("matryoshka", base=base), make(base)
    for sae in (nested, plain):
        sae.observe(sae.losses(rows(), rows(), no_dead(sae)))
    torch.testing.assert_close(nested.encode(rows()).to_dense(), plain.encode(rows()).to_dense())


def test_the_papers_prefixes_are_the_default() -> None:
    assert MatryoshkaConfig(d_sae=65536, k=32).prefixes_at(7) == (2048, 6144, 14336, 30720, 65536)
    assert MatryoshkaConfig(d_sae=20, k=2).prefixes_at(0) == (1, 4, 9, 20)


def test_with_stopped_gradients_a_loss_trains_only_what_its_prefix_adds() -> None:
    stopped, free = make("matryoshka", stop_gradient=True), make("matryoshka")
    a, b = (sae.losses(rows(), rows(), no_dead(sae)) for sae in (stopped, free))
    torch.testing.assert_close(a.loss, b.loss)
    a.terms["reconstruction"].backward(retain_graph=True)
    for grad in (stopped.W_dec.grad, stopped.W_enc.grad.T, stopped.b_enc.grad[:, None]):  # type: ignore[union-attr, index]
        torch.testing.assert_close(grad[:11], torch.zeros_like(grad[:11]), atol=1e-12, rtol=0)
        assert grad[11:].abs().sum() > 0
    stopped.zero_grad()
    a.terms["prefixes"].backward()
    assert stopped.W_dec.grad is not None
    assert (stopped.W_dec.grad[:11].abs().sum(1) > 0).any() and (stopped.W_dec.grad[11:] == 0).all()


def test_drawn_prefixes_depend_on_seed_and_step_alone() -> None:
    sampled = Sampled(n=6, power=0.05)
    torch.manual_seed(0)
    first = [draw_prefixes(500, sampled, 3, step) for step in range(50)]
    torch.manual_seed(1)
    assert [draw_prefixes(500, sampled, 3, step) for step in range(50)] == first
    assert len(set(first)) > 45
    assert not set(first) & {draw_prefixes(500, sampled, seed, step) for seed in (2, 4, -1) for step in range(50)}
    for ends in first:
        assert len(ends) == 6 and ends[-1] == 500 and list(ends) == sorted(set(ends)) and ends[0] >= 1


def test_drawn_prefixes_follow_a_truncated_pareto_distribution() -> None:
    n = 4000
    drawn = Counter(draw_prefixes(64, Sampled(n=2, power=0.5), 0, step)[0] for step in range(n))
    for length in (2, 4, 16, 48):
        share = sum(count for end, count in drawn.items() if end < length) / n
        assert share == pytest.approx((1 - length**-0.5) / (1 - 64**-0.5), abs=0.03)


def test_a_loss_draws_by_the_step_it_is_given() -> None:
    sae = make("matryoshka", prefixes=None, sampled={"n": 4})
    assert isinstance(sae, Matryoshka)
    losses = [
        float(sae.losses(rows(), rows(), Progress(no_dead(sae).dead, step=step)).loss.detach())
        for step in (0, 1, 2, 0)
    ]
    assert losses[0] == losses[3] and len(set(losses)) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefixes": (4, 4, 20)}, "must be ascending and at least 1"),
        ({"prefixes": (0, 20)}, "must be ascending and at least 1"),
        ({"prefixes": ()}, "must be ascending and at least 1"),
        ({"prefixes": (4, 11)}, "prefixes end at 11, but the last must be d_sae = 20"),
        ({"prefixes": (4, 21)}, "prefixes end at 21"),
        ({"sampled": {"n": 4}}, "either prefixes or sampled"),
        ({"prefixes": None, "sampled": {"n": 21}}, "sampled.n = 21 exceeds d_sae = 20"),
        ({"weights": (1.0,)}, "1 weights for 3 prefixes"),
        ({"weights": (1.0, -1.0, 1.0)}, "must not be negative"),
        ({"base": "relu"}, "'topk', 'batchtopk', 'abstopk' or 'absbatchtopk'"),
    ],
)
def test_impossible_prefixes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("matryoshka", **fields)
