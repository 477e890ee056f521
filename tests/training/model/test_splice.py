"""Spliced models against a transformer and SAEs written out densely, in fp64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sae.base import SAE
from sae.code import from_dense
from sae.errors import SaescopeError
from tests.training.model.dense import CODER, PLAIN, UPDATE, WRITTEN, D, Dense, N, forward, mask, metric, random_sae, tokens
from training.model.edits import Edit
from training.model.frozen import HELD, FrozenModel
from training.model.language_model import Model
from training.model.load import load_model
from training.model.splice import SplicedModel
from training.site import Site


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("native:n_layers=3", dtype="float64")


@pytest.fixture(scope="module")
def saes() -> dict[Site, SAE]:
    return {PLAIN: random_sae(0), UPDATE: random_sae(1, kind="jumprelu"), CODER: random_sae(2, kind="jumprelu", skip=True)}


@pytest.mark.parametrize("upstream", ["features", "model", "none"])
def test_gradients_are_those_of_a_dense_model(model: Model, saes: dict[Site, SAE], upstream: Any) -> None:
    """An SAE, an update SAE and a transcoder with a skip path at once; masked rows pass."""
    ids, keep = tokens(), mask()
    run = SplicedModel(model, saes).run(ids, keep=keep, upstream=upstream)
    dense = Dense(saes, keep, upstream)
    logits = forward(model, ids, dense)
    torch.testing.assert_close(run.logits, logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logits, model.logits(ids), rtol=1e-10, atol=1e-10)
    parts = [run.at[site] for site in saes]
    nodes = [node for part in parts for node in (part.code.value, part.error, part.x)]
    theirs = [node for site in saes for node in (dense.acts[site], dense.error[site], dense.x[site])]
    ours = torch.autograd.grad(metric(run.logits), nodes, allow_unused=True)
    expected = torch.autograd.grad(metric(logits), theirs, allow_unused=True)
    for i, (site, part) in enumerate(zip(saes, parts, strict=True)):
        value, error, x = ours[3 * i : 3 * i + 3]
        by_acts, by_error, by_x = (None if g is None else g[keep] for g in expected[3 * i : 3 * i + 3])
        assert 0 < len(value) < N * int(keep.sum()) and float(value.abs().max()) > 1e-4
        torch.testing.assert_close(value, by_acts[part.code.rows(), part.code.feature.long()], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(error, by_error, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(saes[site].feature_gradients(error), by_acts, rtol=1e-10, atol=1e-10)
        assert (x is None) == (by_x is None) == ((upstream != "features" and site != CODER) or upstream == "model")
        if x is not None:
            torch.testing.assert_close(x, by_x, rtol=1e-10, atol=1e-10)


def test_the_models_own_gradient_passes_where_asked(model: Model, saes: dict[Site, SAE]) -> None:
    """With upstream="model" an error's gradient is that of the activation in the model without any SAE."""
    ids = tokens()
    run = SplicedModel(model, saes).run(ids, upstream="model")
    plain: dict[str, Tensor] = {}

    def keep_node(point: str, activation: Tensor) -> Tensor:
        node = activation if activation.requires_grad else activation.requires_grad_()
        plain[point] = node
        return node

    logits = forward(model, ids, keep_node)
    for site in saes:
        (ours,) = torch.autograd.grad(metric(run.logits), run.at[site].error, retain_graph=True)
        (theirs,) = torch.autograd.grad(metric(logits), plain[WRITTEN[site]], retain_graph=True)
        torch.testing.assert_close(ours, theirs.flatten(0, 1), rtol=1e-10, atol=1e-10)


# -- edits -----------------------------------------------------------------------------------------------------------------

def test_edits_are_those_of_a_dense_code(model: Model, saes: dict[Site, SAE]) -> None:
    ids, keep = tokens(), mask()
    spliced = SplicedModel(model, saes)
    clean = spliced.run(ids, keep=keep)
    other = spliced.run(ids.flip(1), keep=keep)
    features = clean.at[PLAIN].code.feature.unique()[:6].tolist()
    where = [3, 4, 5, 8]
    rows = torch.zeros_like(keep)
    rows[:, where] = True
    rows = rows[keep]
    a, b = clean.at[PLAIN].code.to_dense(), other.at[PLAIN].code.to_dense()
    a, b = a.detach(), b.detach()
    assert float(a[rows][:, features].abs().sum()) > 0 and float(b[rows][:, features].abs().sum()) > 0
    for mode, value, dense in (
        ("set", 0.0, lambda v: 0 * v), ("set", 2.5, lambda v: 0 * v + 2.5), ("scale", 2.0, lambda v: 2 * v),
        ("add", -0.75, lambda v: v - 0.75), ("set", other.codes[PLAIN], None),
    ):
        expected = a.clone()
        block = b[rows][:, features] if dense is None else dense(a[rows][:, features])
        expected[rows.nonzero(), torch.tensor(features)] = block
        edit = Edit(PLAIN, features, value, mode, where)
        for grad in (True, False):
            for errors in ("kept", "dropped", clean.errors):
                with torch.set_grad_enabled(grad):
                    run = spliced.run(ids, keep=keep, edits=[edit], errors=errors)
                torch.testing.assert_close(run.at[PLAIN].code.to_dense(), expected, rtol=1e-12, atol=1e-12)
                # the next block begins with features + bias + error
                error = clean.errors[PLAIN] if errors != "dropped" else 0
                new = expected @ directions(saes[PLAIN]) + saes[PLAIN].bias().detach() + error
                torch.testing.assert_close(run.at[UPDATE].x.detach(), new, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("grad", [True, False])
def test_with_every_feature_ablated_bias_and_skip_path_remain(model: Model, saes: dict[Site, SAE], grad: bool) -> None:
    sae, last = saes[CODER], Site(input="blocks.2.hook_resid_post")
    spliced = SplicedModel(model, {CODER: sae, last: random_sae(8)})
    with torch.set_grad_enabled(grad):
        run = spliced.run(tokens(), edits=[Edit(CODER, range(N))], errors={CODER: torch.zeros(24, D)})
    part = run.at[CODER]
    assert len(part.found.value) > 0 and len(part.code.value) == 0
    mid = model.activations(tokens(), ["blocks.2.hook_resid_mid"])["blocks.2.hook_resid_mid"].flatten(0, 1)
    expected = mid + (sae.bias() + sae.bypass(part.x)).detach()
    torch.testing.assert_close(run.at[last].x.detach(), expected, rtol=1e-10, atol=1e-10)


def directions(sae: SAE) -> Tensor:
    return (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)).detach()


def test_gradient_flows_to_a_clamps_value(model: Model, saes: dict[Site, SAE]) -> None:
    spliced = SplicedModel(model, saes)
    errors = spliced.run(tokens()).errors
    height = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def effect(value: Tensor) -> Tensor:
        edit = Edit(UPDATE, [3, 9], value, positions=[2, 7])
        return metric(spliced.run(tokens(), edits=[edit], errors=errors).logits)

    assert torch.autograd.gradcheck(effect, height)


def test_values_and_errors_given_reproduce_the_run_they_come_from(model: Model, saes: dict[Site, SAE]) -> None:
    """Other tokens with every value and error of a run at the last resid site give that run's logits from there on."""
    last = Site(input="blocks.2.hook_resid_post")
    spliced = SplicedModel(model, {last: random_sae(7)})
    clean = spliced.run(tokens())
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            run = spliced.run(tokens().flip(1), values=clean.codes, errors=clean.errors)
        torch.testing.assert_close(run.logits, clean.logits, rtol=1e-10, atol=1e-10)


def test_dropping_errors_is_the_reconstruction(model: Model, saes: dict[Site, SAE]) -> None:
    ids, keep = tokens(), mask()

    def put(point: str, activation: Tensor) -> Tensor:
        new = saes[PLAIN](activation.flatten(0, 1)).view_as(activation)
        return torch.where(keep[..., None], new, activation) if point == WRITTEN[PLAIN] else activation

    expected = forward(model, ids, put)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            run = SplicedModel(model, {PLAIN: saes[PLAIN]}).run(ids, keep=keep, errors="dropped")
        torch.testing.assert_close(run.logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("freeze", [None, HELD])
def test_bf16_models_splice(freeze: Any) -> None:
    low = load_model("native:n_layers=3", dtype="bfloat16")
    saes = {site: sae.float() for site, sae in {PLAIN: random_sae(0), CODER: random_sae(2, skip=True)}.items()}
    run = SplicedModel(low, saes).run(tokens(), freeze=freeze)
    clean = low.logits(tokens())
    assert run.logits.dtype == torch.bfloat16
    assert float((run.logits - clean).detach().abs().max()) < 0.05 * float(clean.abs().max())
    (grad,) = torch.autograd.grad(run.logits.float().logsumexp(-1).sum(), run.at[PLAIN].code.value)
    assert grad.dtype == torch.float32 and float(grad.abs().max()) > 0


def test_given_values_are_nodes(model: Model, saes: dict[Site, SAE]) -> None:
    """Values on the way between two runs (integrated gradients) take gradient where they are given."""
    spliced = SplicedModel(model, {PLAIN: saes[PLAIN]})
    clean, other = spliced.run(tokens()), spliced.run(tokens().flip(1))
    between = from_dense((clean.codes[PLAIN].to_dense() + other.codes[PLAIN].to_dense()) / 2)
    run = spliced.run(tokens(), values={PLAIN: between}, errors=clean.errors)
    (grad,) = torch.autograd.grad(metric(run.logits), run.at[PLAIN].code.value)
    assert grad.shape == between.value.shape and float(grad.abs().max()) > 0


# -- refusals --------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(model: Model, saes: dict[Site, SAE]) -> None:
    spliced = SplicedModel(model, saes)
    clean = spliced.run(tokens())
    elsewhere = Site(input="blocks.2.hook_resid_pre")
    with pytest.raises(SaescopeError, match=r"blocks\.2\.hook_resid_pre"):
        spliced.run(tokens(), edits=[Edit(elsewhere, [0])])
    with pytest.raises(SaescopeError, match=r"24 rows.*keeps 20"):
        spliced.run(tokens(2, 10), values=clean.codes)
    with pytest.raises(SaescopeError, match=r"24 rows.*keeps 20"):
        spliced.run(tokens(2, 10), errors=clean.errors)
    with pytest.raises(SaescopeError, match=r"\[2, 5\].*\[2, 12\]"), spliced.spliced(keep=mask(2, 5)):
        model.logits(tokens())
    with pytest.raises(SaescopeError, match=r"d_in = 32.*128 at"):
        SplicedModel(model, {Site(input="blocks.0.mlp.hook_post"): saes[PLAIN]})
    with pytest.raises(SaescopeError, match=r"blocks\.2\.hook_mlp_out"):
        SplicedModel(model, {CODER: saes[CODER], Site(input="blocks.2.hook_mlp_out"): saes[PLAIN]})
    backwards = Site(input="blocks.2.hook_resid_pre", target="blocks.1.hook_mlp_out")
    with pytest.raises(SaescopeError, match=r"reaches blocks\.1\.hook_mlp_out before blocks\.2"):
        SplicedModel(model, {backwards: saes[CODER]}).run(tokens())
    with pytest.raises(SaescopeError, match="native:tiny"):
        spliced.run(tokens(), freeze=FrozenModel.at(load_model("native:tiny"), tokens()))
    with pytest.raises(SaescopeError, match="'heads' cannot be frozen"):
        spliced.run(tokens(), freeze=("heads",))
    with pytest.raises(SaescopeError, match="hook_nothing"):
        spliced.run(tokens(), freeze=(), watch=["blocks.0.hook_nothing"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model._network.modules())
