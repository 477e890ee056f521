"""The skip path of transcoders: gradients, what is reconstructed, saving, SAELens' form, starting from it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sae import store
from sae.base import SAE, Progress, Transform
from sae.code import SparseCode
from sae.errors import SaescopeError
from sae.formats import saelens
from sae.init import initialise
from sae.variants import VARIANTS
from tests.sae.variants.test_variants import (
    D_IN,
    D_SAE,
    EXTRA,
    STRAIGHT_THROUGH,
    WITH_ENCODER,
    N,
    check_gradients,
    make,
    no_dead,
    rows,
)

D_OUT = 4


def with_skip(variant: str, **fields: object) -> SAE:
    sae = make(variant, d_out=D_OUT, skip=True, **fields)
    assert sae.W_skip.abs().min() > 0, "the path does something"
    return sae


def placed(variant: str, **fields: object) -> SAE:
    """In the units of a model, with means and scales of its own on either side."""
    sae = with_skip(variant, **fields)
    sae.input = Transform(torch.linspace(-2, 3, D_IN), torch.tensor(0.4)).double()
    sae.target = Transform(torch.linspace(5, -1, D_OUT), torch.tensor(1.7)).double()
    sae.observe(sae.losses(rows(), rows(D_OUT), no_dead(sae)))
    return sae


class Whole(nn.Module):
    """One term of the loss of features and path together."""

    def __init__(self, sae: SAE, term: str = "reconstruction") -> None:
        super().__init__()
        self.sae, self.term = sae, term

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.sae.step(x, target, no_dead(self.sae)).terms[self.term]


@pytest.mark.parametrize("variant", WITH_ENCODER)
def test_gradients_reach_the_path_and_all_else(variant: str) -> None:
    sae, x, target = with_skip(variant), rows(), rows(D_OUT)
    check_gradients(Whole(sae), x, target, but=STRAIGHT_THROUGH.get(variant, ()))
    if variant == "matryoshka":
        return
    step = sae.step(x, target, no_dead(sae))
    step.terms["reconstruction"].backward()
    by_hand = -2 * (target - step.x_hat).detach().t() @ x / N
    torch.testing.assert_close(sae.W_skip.grad, by_hand)
    torch.testing.assert_close(step.terms["reconstruction"], (target - step.x_hat).square().sum(1).mean())


def test_thresholds_see_the_error_of_features_and_path_together() -> None:
    """JumpReLU's straight-through gradient rests on ∂loss/∂x̂, in which the path has its part."""
    sae, x, target = with_skip("jumprelu"), rows(), rows(D_OUT)
    sae.step(x, target, no_dead(sae)).loss.backward()
    got = sae.get_parameter("theta").grad
    plain = with_skip("jumprelu")
    plain.losses(x, target - x @ plain.W_skip.detach().t(), no_dead(plain)).loss.backward()
    torch.testing.assert_close(got, plain.get_parameter("theta").grad)
    assert got is not None and got.any()


def test_gateds_auxiliary_term_leaves_the_path_alone() -> None:
    sae = with_skip("gated")
    sae.step(rows(), rows(D_OUT), no_dead(sae)).terms["gate"].backward()
    assert sae.W_skip.grad is None or not sae.W_skip.grad.any()


def test_auxk_revives_for_what_features_and_path_leave() -> None:
    sae, dead, target = with_skip("topk", auxk={"coefficient": 1.0, "k": 20}), torch.arange(D_SAE) < 20, rows(D_OUT)
    step = sae.step(rows(), target, Progress(dead))
    pre = (rows() @ sae.W_enc + sae.b_enc).relu()
    expected = ((target - step.x_hat).detach() - pre @ sae.W_dec).square().sum(1).mean()
    torch.testing.assert_close(step.terms["auxk"], expected)


@pytest.mark.parametrize("variant", WITH_ENCODER)
def test_raw_reconstruction_is_the_formula(variant: str) -> None:
    sae = placed(variant)
    x = 3 * rows() + 1
    code = sae.encode(x)
    inner = (x - sae.input.mean) * sae.input.scale
    acts = code.to_dense() / sae.lengths()
    by_hand = (acts @ sae.W_dec + sae.b_dec + inner @ sae.W_skip.t()) / sae.target.scale + sae.target.mean
    torch.testing.assert_close(sae.decode(code), by_hand.detach())
    torch.testing.assert_close(sae(x), by_hand.detach())
    bare = SparseCode(code.feature, code.value, code.n_rows, code.d_sae, indptr=code.indptr)
    with pytest.raises(SaescopeError, match=r"(?s)input-dependent offset.*pass the code that encode"):
        sae.decode(bare)


@pytest.mark.parametrize("variant", WITH_ENCODER)
def test_it_is_saved_and_loaded(tmp_path: Path, variant: str) -> None:
    sae = placed(variant).float().normalised()
    store.save(sae, tmp_path / "a", provenance={})
    loaded = store.load(tmp_path / "a", kernels="reference")
    torch.testing.assert_close(loaded(rows().float()), sae(rows().float()))
    store.save(loaded, tmp_path / "b", provenance={})
    assert (tmp_path / "a" / "sae.safetensors").read_bytes() == (tmp_path / "b" / "sae.safetensors").read_bytes()


ARCHITECTURES = {
    "relu": "skip_transcoder", "jumprelu": "jumprelu_skip_transcoder", "gated": "jumprelu_skip_transcoder",
    "mdl": "jumprelu_skip_transcoder", "batchtopk": "jumprelu_skip_transcoder", "matryoshka": "jumprelu_skip_transcoder",
}


@pytest.mark.parametrize("variant", WITH_ENCODER)
def test_saelens_has_its_form_or_the_reason_is_given(tmp_path: Path, variant: str) -> None:
    sae = placed(variant).float().normalised()
    reason = saelens.export(sae, tmp_path, metadata={"hook_name": "blocks.0.ln2", "hook_name_out": "blocks.0.hook_mlp_out"})
    if variant not in ARCHITECTURES:
        assert reason is not None and ("fixed number" in reason or "absolute" in reason)
        return
    assert reason is None
    theirs = saelens.read(tmp_path)
    assert theirs.provenance["cfg"]["architecture"] == ARCHITECTURES[variant]
    assert theirs.config.skip
    x = rows().float()
    torch.testing.assert_close(theirs(x), sae(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.encode(x).to_dense(), sae.encode(x).to_dense(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("skip", [False, True])
def test_an_update_is_written_as_the_blocks_output(tmp_path: Path, skip: bool) -> None:
    """SAELens' target is a hook: input + update, with the input along the skip path."""
    sae = make("relu", skip=skip, apply_b_dec_to_input=False).float()
    metadata = {"hook_name": "a", "hook_name_out": "b", "site": {"input": "a", "target": "b", "update": True}}
    assert saelens.export(sae, tmp_path, metadata=metadata) is None
    theirs, x = saelens.read(tmp_path), rows().float()
    assert theirs.provenance["cfg"]["architecture"] == "skip_transcoder"
    torch.testing.assert_close(theirs(x), x + sae(x), rtol=1e-4, atol=1e-4)
    both = metadata | {"site": metadata["site"] | {"update": "both"}}
    assert "difference of two hooks" in str(saelens.export(make("relu").float(), tmp_path, metadata=both))


def test_a_training_may_start_from_one(tmp_path: Path) -> None:
    old = placed("relu").normalised()
    store.save(old, tmp_path / "old", provenance={})
    cls, config = VARIANTS["jumprelu"]
    fields = {"d_sae": D_SAE, **EXTRA["jumprelu"], "init": {"from": str(tmp_path / "old")}}
    places = {
        "input": Transform(torch.full((D_IN,), 0.5), torch.tensor(0.25)),
        "target": Transform(torch.full((D_OUT,), -3.0), torch.tensor(0.8)),
    }
    sae = cls(config.model_validate(fields | {"skip": True}), D_IN, D_OUT, **places).double()
    initialise(sae, rows(D_OUT))
    torch.testing.assert_close(sae(2 * rows()), old(2 * rows()))
    without = cls(config.model_validate(fields), D_IN, D_OUT, **places).double()
    with pytest.raises(SaescopeError, match="has a skip path"):
        initialise(without, rows(D_OUT))
