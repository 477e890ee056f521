"""Losses of every variant against finite differences in fp64, and what the papers promise of each."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae import losses, store
from sae.base import SAE, Progress, Step, Transform
from sae.init import initialise
from sae.units import Duration
from sae.variants import VARIANTS
from sae.variants.jumprelu import LearntThreshold
from tests.sae.toy import Toy, train

D_IN, D_SAE, N = 6, 20, 9
EXTRA: dict[str, dict] = {
    "topk": {"k": 3}, "batchtopk": {"k": 3}, "relu": {"sparsity": {"coefficient": 0.7}},
    "abstopk": {"k": 3}, "absbatchtopk": {"k": 3}, "matryoshka": {"k": 3, "prefixes": (4, 11, 20)},
    "jumprelu": {"sparsity": {"coefficient": 0.7}, "threshold": 0.8, "bandwidth": 0.7},
    "gated": {"sparsity": {"coefficient": 0.7}},
    "mdl": {"sparsity": {"coefficient": 0.7}, "threshold": 0.8, "bandwidth": 0.7, "step": 0.3, "warmup": "0%"},
    "icfl": {"rounds": 1, "per_round": 3},
}
ALL = sorted(VARIANTS)
WITH_ENCODER = sorted(set(ALL) - {"icfl"})
SIGNED = ("abstopk", "absbatchtopk")
STRAIGHT_THROUGH = {"jumprelu": {"theta"}, "mdl": {"theta"}}
"""Parameters whose gradient is not the slope of the loss: tested in the variant's own file."""
NOT_BY_RECONSTRUCTION = {"gated": {"b_enc"}}
"""A step hides them from it."""


def make(variant: str, d_out: int | None = None, **fields: object) -> SAE:
    cls, config = VARIANTS[variant]
    sae = cls(config.model_validate({"d_sae": D_SAE, **EXTRA[variant], **fields}), D_IN, d_out)
    generator = torch.Generator().manual_seed(0)
    initialise(sae, torch.randn(50, sae.d_out, generator=generator))
    for p in sae.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    return sae.double()


def rows(d: int = D_IN) -> Float[Tensor, "n d"]:
    return torch.randn(N, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def no_dead(sae: SAE, **fields: object) -> Progress:
    return Progress(dead=torch.zeros(sae.d_sae, dtype=torch.bool), coefficient=0.7, **fields)  # type: ignore[arg-type]


class Loss(nn.Module):
    """One term of a variant's loss, as a module so that its parameters can be substituted."""

    def __init__(self, sae: SAE, term: str, progress: Progress) -> None:
        super().__init__()
        self.sae, self.term, self.progress = sae, term, progress

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.sae.losses(x, target, self.progress).terms[self.term]


def check_gradients(module: nn.Module, *inputs: Tensor, but: Iterable[str] = ()) -> None:
    parameters = {name: p for name, p in module.named_parameters() if name.removeprefix("sae.") not in but}
    names = list(parameters)
    values = [p.detach().clone().requires_grad_() for p in parameters.values()]

    def f(*parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), inputs)

    assert torch.autograd.gradcheck(f, tuple(values))


@pytest.mark.parametrize("variant", ALL)
def test_gradients_of_the_reconstruction_reach_every_parameter(variant: str) -> None:
    sae = make(variant)
    check_gradients(
        Loss(sae, "reconstruction", no_dead(sae)), rows(), rows(), but=STRAIGHT_THROUGH.get(variant, ())
    )
    sae.losses(rows(), rows(), no_dead(sae)).terms["reconstruction"].backward()
    unreached = {name for name, p in sae.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    assert unreached == NOT_BY_RECONSTRUCTION.get(variant, set())


@pytest.mark.parametrize("variant", WITH_ENCODER)
def test_gradients_of_a_transcoder(variant: str) -> None:
    sae = make(variant, d_out=4)
    check_gradients(
        Loss(sae, "reconstruction", no_dead(sae)), rows(), rows(4), but=STRAIGHT_THROUGH.get(variant, ())
    )


def test_gradients_of_the_l1_term() -> None:
    sae = make("relu")
    check_gradients(Loss(sae, "l1", no_dead(sae)), rows(), rows())


@pytest.mark.parametrize("variant", sorted(set(WITH_ENCODER) - {"relu"}))
def test_auxk_trains_encoder_and_decoder_of_dead_features_only(variant: str) -> None:
    sae = make(variant, auxk={"coefficient": 0.5, "k": 2})
    dead = torch.arange(D_SAE) % 4 == 0
    x = rows()
    step = sae.losses(x, x, Progress(dead=dead))
    step.terms["auxk"].backward()
    signed = variant in SIGNED
    for grad, axis in ((sae.W_enc.grad, 0), (sae.W_dec.grad, 1)):
        assert grad is not None
        by_feature = grad.abs().sum(axis)
        assert (by_feature[dead] > 0).any(), "AuxK must reach the encoder as well as the decoder"
        assert (by_feature[~dead] == 0).all()
    assert sae.b_enc.grad is not None and (sae.b_enc.grad[dead] != 0).any()

    # by hand: the residual is a constant, and the top 2 dead pre-activations reconstruct it
    residual = (x - step.x_hat).detach()

    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sae = sae

        def forward(self, x: Tensor) -> Tensor:
            pre = ((x - self.sae.b_dec) @ self.sae.W_enc + self.sae.b_enc).masked_fill(~dead, 0)
            pre = pre if signed else pre.relu()
            kept = torch.zeros_like(pre).scatter(1, pre.abs().topk(2).indices, 1.0) * pre
            return 0.5 * (residual - kept @ self.sae.W_dec).square().sum(-1).mean()

    by_hand = ByHand()
    check_gradients(by_hand, x, but={"r_mag", "b_mag", "theta"})
    got = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    sae.zero_grad()
    by_hand(x).backward()
    for name, p in sae.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, atol=1e-12, rtol=1e-12)


def test_a_clipped_pre_activation_gets_no_gradient() -> None:
    """Fewer than k positive pre-activations: those the ReLU clips must stay untouched."""
    sae = make("topk", k=15)
    sae.b_enc.data.fill_(-0.8)
    step = sae.losses(rows(), rows(), no_dead(sae))
    assert (step.code.value == 0).any()
    step.loss.backward()
    silent = step.code.counts() == 0
    assert silent.any() and sae.W_enc.grad is not None
    assert (sae.W_enc.grad[:, silent] == 0).all()


@pytest.mark.parametrize("variant", ALL)
def test_losses_do_not_depend_on_the_batch_size(variant: str) -> None:
    sae = make(variant)
    x = rows()
    one = sae.losses(x, x, no_dead(sae)).loss
    two = sae.losses(torch.cat([x, x]), torch.cat([x, x]), no_dead(sae)).loss
    torch.testing.assert_close(one, two)


def test_topk_keeps_k_and_batchtopk_keeps_k_on_average() -> None:
    assert (make("topk").losses(rows(), rows(), no_dead(make("topk"))).code.l0() == 3).all()
    code = make("batchtopk").losses(rows(), rows(), no_dead(make("batchtopk"))).code
    assert code.n_active == 3 * N
    assert len(set(code.l0().tolist())) > 1


def test_k_annealing_falls_linearly() -> None:
    sae = make("topk", k_anneal={"start": 11, "over": "50%"})
    ks = []
    for share in (0.0, 0.25, 0.5, 1.0):
        progress = no_dead(sae, through=lambda _, share=share: share)
        ks.append(sae.config.k_at(progress))  # type: ignore[attr-defined]
    assert ks == [11, 9, 7, 3]


def test_l1_is_the_length_of_the_features_contribution() -> None:
    sae = make("relu")
    x = rows()
    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    by_hand = (pre * sae.W_dec.norm(dim=1)).sum(1).mean()
    torch.testing.assert_close(sae.losses(x, x, no_dead(sae)).terms["l1"], 0.7 * by_hand)


@pytest.mark.parametrize("longest", [0.99, 0.5])
def test_batchtopk_threshold_is_the_average_of_the_batch_minima_of_late(longest: float) -> None:
    """With a memory of a thirtieth of n steps the i-th minimum has the weight C(i + 28, 29); a shorter one forgets more."""
    sae = make("batchtopk", threshold_decay=longest)
    minima, expected, weight = [], 0.0, 0.0
    for seed in range(90):
        x = torch.randn(64, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        step: Step = sae.losses(x, x, no_dead(sae))
        sae.observe(step)
        minima.append(step.code.value[step.code.value > 0].min().item())
        decay = 0.0 if seed == 0 else min(longest, 1 - (29 / 30) / weight)
        expected, weight = expected * decay + minima[-1], weight * decay + 1
        if longest == 0.99:
            weights = [math.comb(i + 29, 29) for i in range(len(minima))]
            assert sae.threshold.item() == pytest.approx(np.average(minima, weights=weights))  # type: ignore[attr-defined]
    assert sae.threshold.item() == pytest.approx(expected / weight)  # type: ignore[attr-defined]
    assert weight == pytest.approx(1 + 89 / 30 if longest == 0.99 else 2)
    x = torch.randn(4096, D_IN, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    assert sae.encode(x).l0().double().mean().item() == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize("decay", [0.3, 0.0])
@pytest.mark.parametrize("variant", ["batchtopk", "absbatchtopk", "matryoshka"])
def test_after_a_short_training_the_threshold_keeps_k_features_of_training_rows(variant: str, decay: float) -> None:
    """Also where weights move to the end: an average over the last hundred batches leaves 2.0 to 2.7 of 3 features here."""
    toy = Toy()
    sae = train(toy, variant, n_steps=150, lr=1e-3, decay=decay, k=3)
    assert sae.encode(toy.rows(16_384)).l0().float().mean().item() == pytest.approx(3, rel=0.03)


@pytest.mark.parametrize("variant", ALL)
def test_folding_decoder_norms_changes_no_reconstruction(variant: str) -> None:
    sae = make(variant)
    sae.observe(sae.losses(rows(), rows(), no_dead(sae)))
    if variant not in ("relu", "jumprelu", "gated", "mdl"):
        sae.W_dec.data /= sae.W_dec.norm(dim=1, keepdim=True)
    before, codes = sae(rows()), sae.encode(rows())
    sae.normalised()
    torch.testing.assert_close(sae(rows()), before)
    torch.testing.assert_close(sae.encode(rows()).to_dense(), codes.to_dense())
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE, dtype=torch.float64))


@pytest.mark.parametrize("variant", ALL)
def test_values_are_lengths_in_the_models_units(variant: str) -> None:
    cls, config = VARIANTS[variant]
    transform = Transform(torch.randn(D_IN), torch.tensor(0.3))
    sae = cls(config.model_validate({"d_sae": D_SAE, **EXTRA[variant]}), D_IN, input=transform)
    initialise(sae, torch.randn(50, D_IN))
    x = 10 * torch.randn(N, D_IN)
    code = sae.encode(x)
    unit = sae.W_dec.detach() / sae.W_dec.detach().norm(dim=1, keepdim=True)
    offset = sae.b_dec.detach() / 0.3 + transform.mean
    torch.testing.assert_close(sae.decode(code), code.to_dense() @ unit + offset)


@pytest.mark.parametrize(("fields", "message"), [({"k": 21}, "k = 21 exceeds d_sae = 20"), ({"k": 0}, "greater than 0")])
def test_impossible_k_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("topk", **fields)


def test_auxk_loss_is_a_mean_over_rows_of_squared_error() -> None:
    e, e_hat = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    assert losses.auxk(e, e_hat) == (9 + 4) / 2
    assert Duration.parse("5%").value == 5


@pytest.mark.parametrize("variant", ["relu", "jumprelu", "gated", "mdl"])
def test_a_target_beyond_the_dictionary_is_refused(variant: str) -> None:
    with pytest.raises(ValueError, match=r"target_l0 = 21 exceeds d_sae = 20"):
        make(variant, sparsity={"target_l0": 21})


def saved(old: str, folder: Path, **fields: object) -> SAE:
    """An SAE with an input transform of its own and thresholds that differ, as saved in `folder`."""
    start = make(old, **fields)
    start.observe(start.losses(rows(), rows(), no_dead(start)))
    if isinstance(start, LearntThreshold):
        start.theta.data.mul_(torch.linspace(0.5, 1.5, D_SAE))
    start.input.mean.copy_(torch.linspace(-1, 1, D_IN))
    start.target.mean.copy_(start.input.mean)
    start.normalised()
    store.save(start, folder, provenance={})
    return start


def started(variant: str, folder: Path, calibration: Float[Tensor, "n d"], **fields: object) -> SAE:
    """A new SAE of the variant that begins from `folder`, under another input transform."""
    cls, config = VARIANTS[variant]
    fields = {"d_sae": D_SAE, **EXTRA[variant], "init": {"from": str(folder)}, **fields}
    transform = Transform(torch.full((D_IN,), 0.5), torch.tensor(0.25))
    sae = cls(config.model_validate(fields), D_IN, input=transform).double()
    initialise(sae, transform.normalise(calibration))
    return sae


THRESHOLDED = ("jumprelu", "mdl", "relu", "gated", "batchtopk", "matryoshka")


@pytest.mark.parametrize("old", ALL)
@pytest.mark.parametrize("variant", ALL)
def test_a_training_may_start_from_any_variant(tmp_path: Path, variant: str, old: str) -> None:
    """Under another input transform; what both can express is the same function, lengths and all."""
    start = saved(old, tmp_path / "old")
    sae, x = started(variant, tmp_path / "old", rows()), 2 * rows()
    thresholds = ("jumprelu", "gated", "mdl")
    same = dict.fromkeys(thresholds, THRESHOLDED)
    same |= dict.fromkeys(("batchtopk", "matryoshka"), ("batchtopk", "matryoshka"))
    if old in same.get(variant, (variant,)):
        torch.testing.assert_close(sae.encode(x).to_dense(), start.encode(x).to_dense(), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(sae(x), start(x), atol=1e-9, rtol=1e-9)
    elif old in THRESHOLDED and variant not in (*SIGNED, "topk", "icfl"):
        assert torch.equal(sae.encode(x).to_dense() != 0, start.encode(x).to_dense() != 0), "other features are active"
    elif old == "absbatchtopk" and variant in thresholds:
        torch.testing.assert_close(sae.encode(x).to_dense(), start.encode(x).to_dense().relu(), atol=1e-9, rtol=1e-9)


def test_relu_takes_the_thresholds_off_its_biases(tmp_path: Path) -> None:
    """Same support; each value is shorter by its feature's threshold."""
    start = saved("jumprelu", tmp_path / "old")
    x = 2 * rows()
    got, code = (sae.encode(x).to_dense() for sae in (started("relu", tmp_path / "old", rows()), start))
    assert isinstance(start, LearntThreshold) and 0 < (code != 0).sum() < 0.4 * code.numel()
    torch.testing.assert_close(got, (code - start.threshold.detach() * start.lengths()).relu() * (code != 0))


def test_topk_ranks_by_what_exceeds_the_thresholds(tmp_path: Path) -> None:
    start, x = saved("jumprelu", tmp_path / "old"), 2 * rows()
    code = start.encode(x).to_dense()
    excess = torch.where(code != 0, code - start.threshold.detach() * start.lengths(), -torch.inf)  # type: ignore[operator]
    few = started("topk", tmp_path / "old", rows()).encode(x).to_dense() != 0
    for row in range(N):
        if (code[row] != 0).sum() >= 3:
            assert set(few[row].nonzero()[:, 0].tolist()) == set(excess[row].topk(3).indices.tolist())


@pytest.mark.parametrize("old", ["topk", "abstopk"])
@pytest.mark.parametrize("variant", ["relu", "jumprelu", "gated", "mdl", "batchtopk"])
def test_a_count_becomes_the_threshold_that_keeps_it(tmp_path: Path, old: str, variant: str) -> None:
    """On the calibration rows, on average. Of a signed SAE, the positive part of it."""
    x = 3 * torch.randn(512, D_IN, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    start = saved(old, tmp_path / "old")
    kept = float((start.encode(x).to_dense() > 0).sum(1).double().mean())
    l0 = float(started(variant, tmp_path / "old", x).encode(x).l0().double().mean())
    assert l0 == pytest.approx(kept, rel=0.01 if old == "topk" else 0.1)
