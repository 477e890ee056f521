"""RelP against backward passes written by hand, and the property that defines it: relevance is conserved."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from analysis.circuits.effects.gradients import clean_gradients
from analysis.circuits.effects.relp import RelevanceModel
from analysis.circuits.model import CircuitModel
from analysis.circuits.tasks.examples import Examples
from sae.errors import SaescopeError
from tests.analysis.circuits.effects.cases import difference, pairs
from tests.training.model.dense import random_sae
from tests.training.model.test_frozen import configs
from tests.training.model.test_models import save_random
from training.model.frozen import FrozenModel
from training.model.language_model import Model
from training.model.load import load_model
from training.site import Site

STREAM = {end: Site(input=f"blocks.2.hook_resid_{end}") for end in ("pre", "mid", "post")}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Gated MLPs, grouped queries, no biases."""
    directory = tmp_path_factory.mktemp("llama")
    save_random(directory, configs()["llama"])
    return load_model(f"local:{directory}", dtype="float64")


@pytest.fixture(scope="module")
def native() -> Model:
    return load_model("native:n_layers=3", dtype="float64")


def everywhere() -> Examples:
    examples = pairs()
    return Examples(examples.clean, examples.corrupt, examples.right, examples.wrong, torch.ones_like(examples.keep))


def relevance(model: Model, sites: list[Site]) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
    """Activations and gradients by site, `[n_examples, n_ctx, d]`."""
    circuit = CircuitModel(model, {site: random_sae(i) for i, site in enumerate(sites)})
    examples = everywhere()
    found = clean_gradients(circuit, examples, difference, RelevanceModel.at(model, examples.clean))
    states, _ = circuit.states(examples.clean, examples.keep)
    shape = (*examples.clean.shape, -1)
    return {s: states[s].target.view(shape) for s in sites}, {s: found[s].view(shape) for s in sites}


def held_scale(x: Tensor, eps: float, *, centred: bool = False) -> Tensor:
    x = x - x.mean(-1, keepdim=True) if centred else x
    return (x.square().mean(-1, keepdim=True) + eps).sqrt()


def readout(weight: Tensor) -> Tensor:
    """∂metric/∂(normalised last residual), `[n_examples, d]`."""
    examples = everywhere()
    return (weight[examples.right] - weight[examples.wrong]).squeeze(1)


def test_a_gated_block_by_hand(llama: Model) -> None:
    """Half to the gate, half to the up path; attention by its constant pattern, grouped heads summed."""
    x, g = relevance(llama, list(STREAM.values()))
    pre, mid, post = (x[site] for site in STREAM.values())
    w = {k.removeprefix("model.layers.2."): v for k, v in llama._network.state_dict().items()}
    eps = llama._network.config.rms_norm_eps
    expected = torch.zeros_like(post)
    expected[:, -1] = readout(w["lm_head.weight"]) * w["model.norm.weight"] / held_scale(post[:, -1], eps)
    torch.testing.assert_close(g[STREAM["post"]], expected, rtol=1e-5, atol=1e-9)

    scale = held_scale(mid, eps)
    normal = mid / scale * w["post_attention_layernorm.weight"]
    gate, up = normal @ w["mlp.gate_proj.weight"].t(), normal @ w["mlp.up_proj.weight"].t()
    down = expected @ w["mlp.down_proj.weight"]
    inner = (down * up * gate.sigmoid() / 2) @ w["mlp.gate_proj.weight"]
    inner = inner + (down * functional.silu(gate) / 2) @ w["mlp.up_proj.weight"]
    expected = expected + inner * w["post_attention_layernorm.weight"] / scale
    torch.testing.assert_close(g[STREAM["mid"]], expected, rtol=1e-5, atol=1e-9)

    with torch.no_grad():
        _, cache = llama.bridge.run_with_cache(everywhere().clean)
    pattern = cache["blocks.2.attn.hook_pattern"]
    heads = (expected @ w["self_attn.o_proj.weight"]).unflatten(-1, (4, 8))
    values = torch.einsum("bhqk,bqhd->bkhd", pattern, heads).unflatten(2, (2, 2)).sum(3).flatten(2)
    inner = values @ w["self_attn.v_proj.weight"] * w["input_layernorm.weight"] / held_scale(pre, eps)
    torch.testing.assert_close(g[STREAM["pre"]], expected + inner, rtol=1e-5, atol=1e-9)


def test_a_plain_block_by_hand(native: Model) -> None:
    x, g = relevance(native, list(STREAM.values()))
    w, mid = native._network.network.state_dict(), x[STREAM["mid"]]
    scale = held_scale(mid, native.bridge.cfg.eps, centred=True)
    normal = (mid - mid.mean(-1, keepdim=True)) / scale * w["layers.2.ln2.weight"] + w["layers.2.ln2.bias"]
    z = normal @ w["layers.2.mlp.fc_in.weight"].t() + w["layers.2.mlp.fc_in.bias"]
    out = g[STREAM["post"]]
    inner = (out @ w["layers.2.mlp.fc_out.weight"] * functional.gelu(z) / z) @ w["layers.2.mlp.fc_in.weight"]
    inner = inner * w["layers.2.ln2.weight"]
    inner = (inner - inner.mean(-1, keepdim=True)) / scale
    torch.testing.assert_close(g[STREAM["mid"]], out + inner, rtol=1e-9, atol=1e-12)


def test_the_forward_pass_is_the_models(llama: Model, native: Model) -> None:
    for model, close in ((llama, 1e-6), (native, 1e-12)):
        ids = everywhere().clean
        torch.testing.assert_close(RelevanceModel.at(model, ids).logits(ids), model.logits(ids), rtol=close, atol=close)
        assert not any(point.fwd_hooks for point in model.bridge.hook_dict.values())


@pytest.mark.parametrize("name", ["llama", "gemma2", "neox", "gpt2"])
def test_relevance_is_conserved(name: str, tmp_path: Path) -> None:
    """Without biases (random ones are zero) Σ x · G is the metric at every layer; gradients alone do not do that."""
    save_random(tmp_path, configs()[name])
    model, examples = load_model(f"local:{tmp_path}", dtype="float64"), everywhere()
    sites = [Site(input="blocks.0.hook_resid_pre"), *(Site(input=f"blocks.{i}.hook_resid_post") for i in range(3))]
    x, g = relevance(model, sites)
    metric = difference(model.logits(examples.clean)[:, -1], examples)
    for site in sites:
        torch.testing.assert_close((x[site] * g[site]).sum((1, 2)), metric, rtol=1e-4, atol=1e-6)
    circuit = CircuitModel(model, {sites[0]: random_sae(0)})
    plain = clean_gradients(circuit, examples, difference, FrozenModel.at(model, examples.clean, ("norms", "attention")))
    gap = (x[sites[0]].flatten(0, 1) * plain[sites[0]]).sum(1).view(4, -1).sum(1) - metric
    assert float(gap.abs().max()) > 1e-4 * float(metric.abs().max())


def test_a_splice_behind_the_activation_function_has_the_last_word(native: Model) -> None:
    """Sites within the MLP: what is written behind the activation function passes, and gets the gradient it has there."""
    inside = Site(input="blocks.2.mlp.hook_post")
    model = CircuitModel(native, {inside: random_sae(0, d_in=128, d_out=128), STREAM["post"]: random_sae(1)})
    examples = everywhere()
    found = clean_gradients(model, examples, difference, RelevanceModel.at(native, examples.clean))
    out = native._network.network.state_dict()["layers.2.mlp.fc_out.weight"]
    torch.testing.assert_close(found[inside], found[STREAM["post"]] @ out, rtol=1e-9, atol=1e-12)


def test_models_that_do_not_show_their_mlps_are_refused(tmp_path: Path) -> None:
    from transformers import MixtralConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    save_random(tmp_path, MixtralConfig(**sizes, num_key_value_heads=4, vocab_size=512, num_local_experts=2))
    model = load_model(f"local:{tmp_path}")
    with pytest.raises(SaescopeError, match=r"blocks\.0\.mlp"):
        RelevanceModel.at(model, everywhere().clean)
