"""The linear forward: what is held, what it shows, and that effects are gradients there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sae.base import SAE
from sae.errors import SaescopeError
from tests.training.model.dense import PLAIN, D, forward, metric, random_sae, smol_sae, tokens
from tests.training.model.test_models import save_random
from training.model.edits import Edit
from training.model.frozen import HELD, FrozenModel, attention_hooks
from training.model.language_model import Model
from training.model.load import load_model
from training.model.splice import SplicedModel
from training.site import Site


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("native:n_layers=3", dtype="float64")


@pytest.mark.parametrize("freeze", [None, (), HELD])
def test_the_middle_of_a_block_changes_mlp_and_skip(model: Model, freeze: Any) -> None:
    """Dropping the error at hook_resid_mid: what follows depends on the reconstruction alone."""
    site, ids = Site(input="blocks.1.hook_resid_mid"), tokens()
    sae = random_sae(3)

    def put(point: str, activation: Tensor) -> Tensor:
        return sae(activation.flatten(0, 1)).view_as(activation) if point == "resid_mid.1" else activation

    spliced = SplicedModel(model, {site: sae, Site(input="blocks.1.hook_resid_post"): random_sae(4)})
    run = spliced.run(ids, errors={site: torch.zeros(24, D)}, freeze=freeze)
    if freeze != HELD:
        torch.testing.assert_close(run.logits, forward(model, ids, put), rtol=1e-9, atol=1e-9)
    x_hat = sae(run.at[site].x)
    held = model.activations(ids, ["blocks.1.hook_mlp_out"])["blocks.1.hook_mlp_out"].flatten(0, 1)
    seen = run.at[Site(input="blocks.1.hook_resid_post")].x.detach()
    if freeze == HELD:
        torch.testing.assert_close(seen, x_hat + held, rtol=1e-10, atol=1e-10)
    assert float((seen - x_hat.detach()).abs().max()) > 1e-3


def everywhere(model: Model, width: int, **fields: Any) -> dict[Site, SAE]:
    """A transcoder with a skip path over the MLP of every block but the first."""
    return {
        Site(input=f"blocks.{i}.mlp.hook_in", target=f"blocks.{i}.hook_mlp_out"):
            random_sae(10 + i, skip=True, d_in=width, d_out=width, **fields)
        for i in range(1, model.n_layers)
    }


def doubled(
    spliced: SplicedModel, ids: Tensor, freeze: Any, source: Site, *, pick: int = 0
) -> tuple[dict[Site, tuple[Tensor, Tensor]], Tensor]:
    """By downstream site: how far pre-activations move when one feature is doubled, and the share its gradient predicts."""
    forward = freeze if freeze is None else FrozenModel.at(spliced.model, ids, freeze)
    with sdpa_kernel(SDPBackend.MATH):  # the only one that is differentiated twice
        clean = spliced.run(ids, freeze=forward, upstream="none")
    code = clean.at[source].code
    entry = int(code.value.abs().argsort(descending=True)[pick])
    row, feature = int(code.rows()[entry]), int(code.feature[entry])
    position = clean.positions[row]
    at = torch.zeros(ids.shape, dtype=torch.bool)
    at[position[0], position[1]] = True
    sites = list(spliced.saes)
    below = sites[sites.index(source) + 1 :]
    pres = [spliced.saes[s].frozen().pre_activations(clean.at[s].x, clean.at[s].code) for s in below]
    with torch.no_grad():
        moved = spliced.run(
            ids, freeze=forward, values=clean.codes, errors=clean.errors, edits=[Edit(source, [feature], 2.0, "scale", at)]
        )
        after = [spliced.saes[s].pre_activations(moved.at[s].x, clean.at[s].code) for s in below]
    out = {}
    for site, before, now in zip(below, pres, after, strict=True):
        # the derivative of ⟨weight, ∂⟨weight, pre⟩⟩: one column of the Jacobian in two backward passes
        weight = torch.zeros_like(before, requires_grad=True)
        (back,) = torch.autograd.grad((before * weight).sum(), code.value, create_graph=True)
        (column,) = torch.autograd.grad(back[entry], weight, retain_graph=True)
        out[site] = (now - before.detach(), column * code.value.detach()[entry])
    return out, moved.logits


def worst(moves: dict[Site, tuple[Tensor, Tensor]]) -> float:
    """The largest error relative to its predicted share (or to a millionth of the site's largest, where that is more)."""
    return max(
        float(((moved - share) / share.abs().clamp_min(1e-6 * float(share.abs().max()))).abs().max())
        for moved, share in moves.values()
    )


def test_doubling_a_feature_moves_each_pre_activation_by_its_share(model: Model) -> None:
    saes = everywhere(model, D)
    spliced, ids = SplicedModel(model, saes), tokens(1)
    source = next(iter(saes))
    moves, _ = doubled(spliced, ids, HELD, source)
    assert all(float(share.abs().max()) > 1e-4 for _, share in moves.values())
    assert worst(moves) < 1e-6
    # nothing held: the prediction fails, as does holding only a part
    for freeze in (None, (), ("attention",), ("norms",)):
        assert worst(doubled(spliced, ids, freeze, source)[0]) > 1e-3, freeze


def test_held_values_are_those_of_the_clean_run(model: Model) -> None:
    ids = tokens()
    frozen = FrozenModel.at(model, ids)
    assert set(attention_hooks(model)) == {f"blocks.{i}.attn.hook_pattern" for i in range(3)}
    assert sum(name.endswith("hook_scale") for name in frozen.held) == 7
    torch.testing.assert_close(frozen.logits(ids), model.logits(ids), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(ids)
    for name, value in frozen.held.items():
        torch.testing.assert_close(value, cache[name])
    # one clean sequence serves a batch of itself
    one = FrozenModel.at(model, ids[:1])
    torch.testing.assert_close(one.logits(ids[:1].repeat(3, 1)), model.logits(ids[:1]).repeat(3, 1, 1))
    with pytest.raises(SaescopeError, match=r"\[2, 12\].*\[2, 5\]"):
        frozen.logits(ids[:, :5])
    assert not any(point.fwd_hooks for point in model.bridge.hook_dict.values())


# -- architectures ---------------------------------------------------------------------------------------------------------

SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": 512, "intermediate_size": 64}
GROUPED = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}


def configs() -> dict[str, Any]:
    from transformers import Gemma2Config, Gemma3TextConfig, GPT2Config, GPTJConfig, GPTNeoXConfig, LlamaConfig, PhiConfig

    return {
        "llama": LlamaConfig(**GROUPED), "gemma2": Gemma2Config(**GROUPED, head_dim=8, sliding_window=8),
        "gemma3": Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=8),
        "neox": GPTNeoXConfig(**SIZES, use_parallel_residual=True), "phi": PhiConfig(**GROUPED),
        "gpt2": GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=512, n_positions=64),
        "gptj": GPTJConfig(n_embd=32, n_layer=3, n_head=4, vocab_size=512, n_positions=64, rotary_dim=4),
    }


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "neox", "phi", "gpt2", "gptj"])
def test_grouped_queries_post_norms_and_parallel_blocks(name: str, tmp_path: Path) -> None:
    """Both forwards with errors kept give the clean logits; held, a doubled feature moves all by its share."""
    save_random(tmp_path, configs()[name])
    model, ids = load_model(f"local:{tmp_path}", dtype="float64"), tokens(1)
    sites = everywhere(model, 32) | {Site(input="blocks.0.hook_resid_post"): random_sae(0)}
    saes = dict(sorted(sites.items(), key=lambda item: item[0].output))
    spliced, clean = SplicedModel(model, saes), model.logits(ids)
    for freeze in (None, (), HELD):
        run = spliced.run(ids, freeze=freeze)
        # transformers computes some norms and rotations in fp32 whatever the model's dtype
        torch.testing.assert_close(run.logits, clean, rtol=1e-4, atol=1e-5 * float(clean.abs().max()))
        grads = torch.autograd.grad(metric(run.logits), [part.code.value for part in run.at.values()])
        assert all(bool(g.isfinite().all()) and float(g.abs().max()) > 0 for g in grads)
    moves, _ = doubled(spliced, ids, HELD, Site(input="blocks.0.hook_resid_post"))
    assert worst(moves) < 1e-6
    assert worst(doubled(spliced, ids, None, Site(input="blocks.0.hook_resid_post"))[0]) > 1e-3


@pytest.mark.parametrize(("name", "groups"), [("llama", 2), ("neox", 1)])
def test_the_linear_forward_shows_what_circuits_need(name: str, groups: int, tmp_path: Path) -> None:
    """Scores before the softmax, rotated queries and keys, patterns, scales and heads, as nodes of the graph."""
    save_random(tmp_path, configs()[name])
    model, ids = load_model(f"local:{tmp_path}", dtype="float64"), tokens(1)
    site = Site(input="blocks.0.hook_resid_post")
    attn = "blocks.1.attn.hook_"
    names = [f"{attn}{end}" for end in ("attn_scores", "rot_q", "rot_k", "pattern", "v", "z")] + ["blocks.1.ln1.hook_scale"]
    run = SplicedModel(model, {site: random_sae(0)}).run(ids, freeze=("attention", "norms"), watch=names)
    scores, q, k, pattern, v, z, scale = (run.watched[name] for name in names)
    assert scale.shape == (1, 12, 1) and q.shape == (1, 12, 4, 8) and k.shape == (1, 12, 4 // groups, 8)
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    causal = torch.ones(12, 12, dtype=torch.bool).tril()
    torch.testing.assert_close((q @ k.repeat_interleave(groups, 1).mT / 8**0.5)[:, :, causal], scores[:, :, causal])
    torch.testing.assert_close(scores.float().softmax(-1).double(), pattern)
    heads = (pattern @ v.reshape(1, 12, -1, 8).transpose(1, 2).repeat_interleave(groups, 1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(heads, z.flatten(2))
    value = run.at[site].code.value
    assert float(torch.autograd.grad(scores[0, 1, 7, 3], value, retain_graph=True)[0].abs().max()) > 0
    grads = torch.autograd.grad(metric(run.logits), [pattern, v, z])
    assert all(float(g.abs().max()) > 0 for g in grads)


def test_native_models_show_scores_and_take_them_back(model: Model) -> None:
    ids, name = tokens(1), "blocks.1.attn.hook_attn_scores"
    run = SplicedModel(model, {PLAIN: random_sae(0)}).run(ids, freeze=(), watch=[name, "blocks.1.attn.hook_pattern"])
    scores, pattern = run.watched.values()
    torch.testing.assert_close(scores.softmax(-1), pattern)
    assert bool((scores.triu(1)[..., 0, 1:] == -torch.inf).all()) and bool((scores[..., 1, 0] < 0).any())
    linear = FrozenModel.at(model, ids, ())
    with linear.splice(name, lambda acts: torch.where(acts.isinf(), acts, 0)):
        uniform = linear.logits(ids)
    mean = torch.ones(12, 12, dtype=torch.float64).tril() / torch.arange(1, 13)[:, None]
    with linear.splice("blocks.1.attn.hook_pattern", lambda acts: mean.expand(acts.shape)):
        torch.testing.assert_close(linear.logits(ids), uniform)


def test_attention_in_one_piece_shows_no_patterns(tmp_path: Path) -> None:
    save_random(tmp_path, configs()["gptj"])
    model = load_model(f"local:{tmp_path}")
    assert attention_hooks(model)[:2] == ["blocks.0.attn.hook_q", "blocks.0.attn.hook_k"]
    spliced = SplicedModel(model, {PLAIN: random_sae(0).float()})
    with pytest.raises(SaescopeError, match=r"hook_attn_scores .*not used"):
        spliced.run(tokens(), freeze=(), watch=["blocks.0.attn.hook_attn_scores"])
    watched = spliced.run(tokens(), freeze=HELD, watch=["blocks.1.attn.hook_z"]).watched
    assert watched["blocks.1.attn.hook_z"].shape == (2, 12, 32)


# -- a language model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smol() -> Model:
    return load_model("smollm2-135m")


def prompt(model: Model) -> Tensor:
    ids = model.tokenizer("When Mary and John went to the store, John gave a drink to", add_special_tokens=False).input_ids
    return torch.tensor([[model.bos_id, *ids]])


@pytest.mark.parametrize("freeze", [None, (), HELD])
def test_errors_kept_give_the_clean_logits_of_a_language_model(smol: Model, freeze: Any) -> None:
    sites = {
        Site(input="blocks.4.hook_resid_mid"): smol_sae(0),
        Site(input="blocks.14.mlp.hook_in", target="blocks.14.hook_mlp_out"): smol_sae(1, skip=True),
        Site(input="blocks.20.hook_resid_pre", target="blocks.20.hook_resid_post", update="both"): smol_sae(2),
        Site(input="blocks.25.attn.hook_z"): smol_sae(3),
    }
    ids = prompt(smol)
    clean = smol.logits(ids)
    run = SplicedModel(smol, sites).run(ids, freeze=freeze)
    assert all(len(part.code.value) > 20 and bool(part.error.any()) for part in run.at.values())
    # a logit is about 20, and thirty blocks of fp32 lie before it
    torch.testing.assert_close(run.logits, clean, rtol=0, atol=1e-5 * float(clean.abs().max()))
    dropped = SplicedModel(smol, sites).run(ids, freeze=freeze, errors="dropped")
    assert float((dropped.logits - clean).detach().abs().max()) > 1


def test_doubling_a_feature_of_a_language_model() -> None:
    """Transcoders in four blocks, all other MLPs held: every pre-activation moves by its share."""
    model = load_model("smollm2-135m", dtype="float64")
    saes = {
        Site(input=f"blocks.{i}.mlp.hook_in", target=f"blocks.{i}.hook_mlp_out"): smol_sae(i, skip=True).double()
        for i in (5, 9, 17, 26)
    }
    spliced, ids = SplicedModel(model, saes), prompt(model)[:, :8]
    source = next(iter(saes))
    moves, _ = doubled(spliced, ids, HELD, source)
    assert all(int((share != 0).sum()) > 20 and float(share.abs().max()) > 0.01 for _, share in moves.values())
    assert worst(moves) < 1e-3
    assert worst(doubled(spliced, ids, None, source)[0]) > 0.05
