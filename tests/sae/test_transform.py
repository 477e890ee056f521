"""Whitening and rows of one length: what they are by definition, and SAEs over them in the model's units, folded or not."""

from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from sae import store
from sae.base import SAE
from sae.errors import SaescopeError
from sae.formats import saelens
from sae.init import initialise
from sae.kernels.reference import select_dense
from sae.transform import Transform, whitening
from sae.variants import VARIANTS
from sae.variants.gated import Gated
from tests.sae.variants.test_variants import ALL, D_IN, D_SAE, EXTRA, WITH_ENCODER, no_dead

MEAN = torch.linspace(-3, 5, D_IN).double()
COUNTS = ("topk", "abstopk", "batchtopk", "absbatchtopk", "matryoshka")
KINDS = {"white": {"whiten": True}, "unit": {"unit_rows": True}, "white-unit": {"whiten": True, "unit_rows": True}}


def raw(n: int = 300, seed: int = 2) -> Float[Tensor, "n d"]:
    """Rows whose axes differ a hundredfold in length and are not the coordinates."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(9), dtype=torch.float64))[0]
    lengths = torch.logspace(0, -2, D_IN, dtype=torch.float64)
    return torch.randn(n, D_IN, generator=generator, dtype=torch.float64) * lengths @ turn + MEAN


def transform(kind: str) -> Transform:
    fields = KINDS[kind]
    scale = (D_IN / (raw() - MEAN).square().sum(1).mean()).sqrt()
    whiten = whitening((raw() - MEAN) * scale, 1e-6) if "whiten" in fields else None
    return Transform(MEAN, scale, whiten=whiten, unit_rows="unit_rows" in fields).double()


def made(variant: str, kind: str, d_out: int | None = None, **fields: object) -> SAE:
    cls, config = VARIANTS[variant]
    plain = {"d_sae": D_SAE, **EXTRA[variant], "transform": KINDS[kind], **fields}
    if variant == "icfl":
        plain |= {"rounds": 2, "per_round": 2}
    sae = cls(config.model_validate(plain), D_IN, d_out, input=transform(kind)).double()
    generator = torch.Generator().manual_seed(0)
    initialise(sae, torch.randn(50, sae.d_out, generator=generator).double())
    for p in sae.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    if "threshold_sum" in dict(sae.named_buffers()):
        sae.get_buffer("threshold_sum").fill_(0.5)
        sae.get_buffer("threshold_weight").fill_(1)
    return sae


def test_whitened_calibration_rows_have_the_identity_as_covariance() -> None:
    found = transform("white")
    z = found.normalise(raw())
    torch.testing.assert_close(torch.cov(z.t(), correction=0), torch.eye(D_IN).double(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found.restore(z), raw())
    by_hand = torch.linalg.inv(found.whiten) if found.whiten is not None else None  # type: ignore[arg-type]
    torch.testing.assert_close(found.unwhitened(z), z @ by_hand)
    assert found.spread(raw()) is None


def test_axes_that_hardly_vary_are_whitened_to_the_floor() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1.0, 1.0, 1e-3, 0.0]).double()
    z = torch.randn(500, 4, generator=generator, dtype=torch.float64) * lengths
    whiten = whitening(z, 1e-2)
    floor = 1e-2 * float(torch.cov(z.t(), correction=0).trace()) / 4
    lows = whiten.square().sum(0)[2:]
    torch.testing.assert_close(lows, torch.full((2,), 1 / floor).double())
    variance = (z @ whiten).var(0, correction=0)
    assert torch.allclose(variance[:2], torch.ones(2).double()) and variance[2] < 1e-2 and variance[3] < 1e-20
    assert Transform(torch.zeros(4), torch.ones(()), whiten=whiten.float()).normalise(z.float()).isfinite().all()


@pytest.mark.parametrize("kind", ["unit", "white-unit"])
def test_rows_of_one_length(kind: str) -> None:
    found, x = transform(kind), raw(7)
    z, spread = found.normalise(x), found.spread(x)
    torch.testing.assert_close(z.norm(dim=1), torch.full((7,), D_IN**0.5).double())
    assert spread is not None
    torch.testing.assert_close(found.unwhitened(z * spread) / found.scale + MEAN, x)
    at_mean = found.normalise(MEAN[None])
    assert torch.equal(at_mean, torch.zeros_like(at_mean)), "a row at the mean has no direction"


def test_too_few_calibration_rows_are_refused() -> None:
    with pytest.raises(SaescopeError, match=r"6 calibration rows are too few for a 6 × 6 covariance"):
        whitening(raw(6), 1e-4)
    with pytest.raises(SaescopeError, match="all equal"):
        whitening(torch.ones(10, 3), 1e-4)


def by_hand(sae: SAE, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """What it reconstructs, from the weights it is trained with: normalised, encoded and decoded there, and undone."""
    t = sae.input
    z = (x - t.mean) * t.scale
    z = z if t.whiten is None else z @ t.whiten
    spread = z.norm(dim=1, keepdim=True) / D_IN**0.5 if t.unit_rows else torch.ones(len(x), 1).double()
    z = z / spread
    if sae.linear_encoder:
        W, b = sae.encoder()
        acts = select_dense((z - sae.b_dec) @ W + b, sae.select())
    else:
        acts = sae.losses(z, z, no_dead(sae)).code.to_dense()
    z_hat = (acts @ sae.W_dec + sae.b_dec) * spread
    z_hat = z_hat if t.whiten is None else z_hat @ torch.linalg.inv(t.whiten)
    return (z_hat / t.scale + t.mean).detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ALL)
def test_reconstructions_are_in_the_models_units_before_and_after_folding(tmp_path: Path, variant: str, kind: str) -> None:
    sae, x = made(variant, kind), raw(12, seed=5)
    expected = by_hand(sae, x)
    torch.testing.assert_close(sae(x), expected)
    code = sae.encode(x)
    store.save(sae, tmp_path / "final", provenance={})
    loaded = store.load(tmp_path / "final", kernels="reference")
    torch.testing.assert_close(loaded(x), expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(loaded.encode(x).to_dense(), code.to_dense(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(D_SAE).double())
    # W_dec are the model's directions: what a feature adds is its value times its row
    again = loaded.encode(x)
    torch.testing.assert_close(
        loaded.decode_features(again), again.to_dense() @ loaded.W_dec.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loaded.decode(again), sae.decode(code), rtol=1e-6, atol=1e-8)
    # whitening is gone where it folds, and saving again changes nothing
    assert (loaded.input.whiten is None) == (kind == "unit" or (kind == "white" and variant in WITH_ENCODER))
    assert (loaded.gain is not None) == ("white" in kind and variant in (*COUNTS, "icfl"))
    assert loaded.target.whiten is None and loaded.has_offsets == ("unit" in kind)
    store.save(loaded, tmp_path / "again", provenance={})
    for name in ("sae.safetensors", "sae.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "final" / name).read_bytes()


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["topk", "gated", "jumprelu", "icfl"])
def test_codes_and_offsets_are_differentiated_through_the_transform(variant: str, kind: str, folded: bool) -> None:
    sae = made(variant, kind)
    if folded:
        sae = sae.folded().normalised()
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, D_IN, generator=generator, dtype=torch.float64)
    x = raw(4, seed=6).requires_grad_()

    def f(x: Tensor) -> Tensor:
        return (sae.decode_traced(sae.encode_traced(x)) * weight).sum()

    assert torch.autograd.gradcheck(f, (x,), eps=1e-6, atol=1e-4)
    code = sae.encode_traced(x)
    torch.testing.assert_close(sae.decode_traced(code), sae(x.detach()))
    torch.testing.assert_close(sae.pre_activations(x, code), code.value)
    (by_value,) = torch.autograd.grad((sae.decode_traced(code) * weight).sum(), code.value)
    # of a feature's own value; offsets do not depend on it
    torch.testing.assert_close(by_value, sae.feature_gradients(weight)[code.rows(), code.feature.long()])


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoders_input_is_whitened_and_its_target_is_not(tmp_path: Path, skip: bool) -> None:
    target = Transform(torch.linspace(5, -1, 4), torch.tensor(1.7)).double()
    sae = made("jumprelu", "white", d_out=4, skip=skip, apply_b_dec_to_input=False)
    sae.target = target
    x = raw(12, seed=5)
    z = sae.input.normalise(x)
    acts = select_dense(z @ sae.W_enc + sae.b_enc, sae.select())
    expected = acts @ sae.W_dec + sae.b_dec + (z @ sae.W_skip.t() if skip else 0)
    expected = (expected / target.scale + target.mean).detach()
    torch.testing.assert_close(sae(x), expected)
    store.save(sae, tmp_path / "final", provenance={})
    loaded = store.load(tmp_path / "final", kernels="reference")
    assert loaded.input.whiten is None
    torch.testing.assert_close(loaded(x), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ALL)
def test_saelens_gets_what_its_weights_can_take_up(tmp_path: Path, variant: str, kind: str) -> None:
    sae, x = made(variant, kind).float(), raw(12, seed=5).float()
    reason = saelens.export(sae, tmp_path, metadata={"hook_name": "blocks.0.hook_resid_post"})
    if "unit" in kind or variant in ("icfl", "absbatchtopk"):
        assert reason is not None and not list(tmp_path.iterdir())
        assert ("sae.transform.unit_rows" in reason) == ("unit" in kind)
        return
    assert reason is None
    theirs = saelens.read(tmp_path)
    torch.testing.assert_close(theirs(x), sae(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(theirs.encode(x).to_dense(), sae.encode(x).to_dense(), rtol=1e-3, atol=1e-4)


def test_trainings_do_not_begin_from_or_under_a_transform_that_weights_do_not_fit(tmp_path: Path) -> None:
    store.save(made("topk", "white"), tmp_path / "topk", provenance={})
    store.save(made("relu", "white"), tmp_path / "relu", provenance={})
    cls, config = VARIANTS["relu"]

    def start(name: str, **fields: object) -> SAE:
        plain = {"d_sae": D_SAE, **EXTRA["relu"], "init": {"from": str(tmp_path / name)}, **fields}
        sae = cls(config.model_validate(plain), D_IN, input=Transform(MEAN + 1, torch.tensor(0.3))).double()
        initialise(sae, raw())
        return sae

    with pytest.raises(SaescopeError, match="whitened or per-row normalised"):
        start("topk")
    with pytest.raises(SaescopeError, match=r"sae\.transform"):
        start("relu", transform={"whiten": True})
    # a relu folds altogether, and is an SAE like any other
    torch.testing.assert_close(start("relu")(raw(9)), store.load(tmp_path / "relu", kernels="reference")(raw(9)))


def test_folding_reaches_the_second_encoder_of_gated() -> None:
    sae = made("gated", "white-unit")
    assert isinstance(sae, Gated)
    before = sae(raw(20, seed=8))
    torch.testing.assert_close(sae.folded().normalised()(raw(20, seed=8)), before)
