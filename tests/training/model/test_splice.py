"""Spliced models against a transformer and SAEs written out densely, in fp64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from sae.base import SAE, Transform
from sae.code import from_dense
from sae.errors import SaescopeError
from sae.variants.jumprelu import JumpReLU, JumpReLUConfig
from sae.variants.topk import TopK, TopKConfig
from tests.training.model.test_models import save_random
from training.model.edits import Edit
from training.model.frozen import HELD, FrozenModel, attention_hooks
from training.model.language_model import Model
from training.model.load import load_model
from training.model.splice import SplicedModel
from training.site import Site

D, N = 32, 96
PLAIN = Site(input="blocks.0.hook_resid_post")
UPDATE = Site(input="blocks.1.hook_resid_pre", target="blocks.1.hook_resid_post", update=True)
CODER = Site(input="blocks.2.mlp.hook_in", target="blocks.2.hook_mlp_out")
READ = {PLAIN: "resid_post.0", UPDATE: "resid_pre.1", CODER: "mlp_in.2"}
WRITTEN = {PLAIN: "resid_post.0", UPDATE: "resid_post.1", CODER: "mlp_out.2"}


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("native:n_layers=3", dtype="float64")


def tokens(n_seqs: int = 2, n_ctx: int = 12) -> Tensor:
    return torch.randint(3, 259, (n_seqs, n_ctx), generator=torch.Generator().manual_seed(0))


def mask(n_seqs: int = 2, n_ctx: int = 12) -> Tensor:
    keep = torch.rand(n_seqs, n_ctx, generator=torch.Generator().manual_seed(5)) > 0.25
    keep[:, 0] = False
    return keep


def transform(d: int, generator: torch.Generator) -> Transform:
    return Transform(0.1 * torch.randn(d, generator=generator), torch.rand((), generator=generator) + 1)


def random_sae(seed: int, *, kind: str = "topk", skip: bool = False, d_in: int = D, d_out: int = D) -> SAE:
    """Random weights, decoder rows of different lengths; made in fp32, so that its fp64 form is the same SAE."""
    generator = torch.Generator().manual_seed(seed)
    both = {"input": transform(d_in, generator), "target": transform(d_out, generator) if skip else None}
    if kind == "topk":
        sae: SAE = TopK(TopKConfig(d_sae=N, k=5, skip=skip), d_in, d_out, **both)
    else:
        sae = JumpReLU(JumpReLUConfig(d_sae=N, skip=skip, threshold=1.0), d_in, d_out, **both)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            if name != "theta":
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return sae.double()


@pytest.fixture(scope="module")
def saes() -> dict[Site, SAE]:
    return {PLAIN: random_sae(0), UPDATE: random_sae(1, kind="jumprelu"), CODER: random_sae(2, kind="jumprelu", skip=True)}


# -- the same, written out -----------------------------------------------------------------------------------------------


def forward(model: Model, ids: Tensor, at: Callable[[str, Tensor], Tensor]) -> Tensor:
    """The native model's logits from its weights alone; `at(name, activation)` may replace what is at a point."""
    w, cfg = model._network.network.state_dict(), model.bridge.cfg
    n = ids.shape[1]
    stream = w["tok_embed.weight"][ids] + w["pos.weight"][:n]
    causal = torch.ones(n, n, dtype=torch.bool).tril()

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (D,), w[f"{name}.weight"], w[f"{name}.bias"], cfg.eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].t() + w[f"{name}.bias"]

    for i in range(cfg.n_layers):
        stream = at(f"resid_pre.{i}", stream)
        x = norm(stream, f"layers.{i}.ln1")
        q, k, v = (linear(x, f"layers.{i}.attn.{c}").unflatten(-1, (4, 8)).transpose(1, 2) for c in "qkv")
        scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~causal, -torch.inf)
        stream = stream + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"layers.{i}.attn.o")
        stream = at(f"resid_mid.{i}", stream)
        x = at(f"mlp_in.{i}", norm(stream, f"layers.{i}.ln2"))
        x = linear(functional.gelu(linear(x, f"layers.{i}.mlp.fc_in")), f"layers.{i}.mlp.fc_out")
        stream = at(f"resid_post.{i}", stream + at(f"mlp_out.{i}", x))
    return norm(stream, "ln_out") @ w["head.weight"].t()


class Dense:
    """SAEs spliced in with every feature written out, keeping the nodes that gradients are asked for."""

    def __init__(self, saes: dict[Site, SAE], keep: Tensor, upstream: str) -> None:
        self.saes, self.keep, self.upstream = saes, keep[..., None], upstream
        self.seen: dict[str, Tensor] = {}
        self.x: dict[Site, Tensor] = {}
        self.acts: dict[Site, Tensor] = {}
        self.error: dict[Site, Tensor] = {}

    def __call__(self, point: str, activation: Tensor) -> Tensor:
        for site, sae in self.saes.items():
            if WRITTEN[site] == point:
                before = self.seen.get(READ[site], activation)
                activation = torch.where(self.keep, self.put(site, sae, before, activation), activation)
        self.seen[point] = activation
        return activation

    def put(self, site: Site, sae: SAE, before: Tensor, after: Tensor) -> Tensor:
        target = after - before if site.update else after
        x = self.x[site] = (before if before.requires_grad else before.detach().requires_grad_()) * 1
        read = x if self.upstream == "features" else x.detach()
        z = (read - sae.input.mean) * sae.input.scale
        z = z - sae.b_dec.detach() if sae.subtracts_b_dec else z
        pre = z @ sae.W_enc.detach() + sae.b_enc.detach()
        select = sae.select()
        if select.mode == "topk":
            least = pre.topk(select.k).values[..., -1:]
            acts = torch.where((pre >= least) & (pre > 0), pre, 0)
        else:
            acts = torch.where(pre > select.threshold, pre, 0)
        norms = sae.W_dec.detach().norm(dim=1)
        acts = acts * norms / sae.target.scale
        acts = self.acts[site] = acts if acts.requires_grad else acts.detach().requires_grad_()
        x_hat = acts @ (sae.W_dec.detach() / norms[:, None]) + sae.b_dec.detach() / sae.target.scale + sae.target.mean
        if sae.config.skip:
            beside = x.detach() if self.upstream == "model" else x
            x_hat = x_hat + (beside - sae.input.mean) * sae.input.scale @ sae.W_skip.detach().t() / sae.target.scale
        error = self.error[site] = (target - x_hat).detach().requires_grad_()
        new = x_hat + error
        if self.upstream == "model":  # the model's own gradient passes, beside what values and errors give
            new = target + (new - target.detach())
        return new + before if site.update else new


def metric(logits: Tensor) -> Tensor:
    return (logits.log_softmax(-1)[..., :7] * torch.linspace(-1, 1, 7, dtype=logits.dtype)).sum()


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


# -- both forwards ---------------------------------------------------------------------------------------------------------


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
    with pytest.raises(SaescopeError, match="takes no part"):
        spliced.run(tokens(), freeze=(), watch=["blocks.0.attn.hook_attn_scores"])
    watched = spliced.run(tokens(), freeze=HELD, watch=["blocks.1.attn.hook_z"]).watched
    assert watched["blocks.1.attn.hook_z"].shape == (2, 12, 32)


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


# -- a language model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smol() -> Model:
    return load_model("smollm2-135m")


def smol_sae(seed: int, d: int = 576, *, skip: bool = False) -> SAE:
    """Random directions, the encoder along them, 32 of 1,024 features active."""
    generator = torch.Generator().manual_seed(seed)
    wide = TopK(TopKConfig(d_sae=1024, k=32, skip=skip), d, d)
    rows = torch.randn(1024, d, generator=generator)
    with torch.no_grad():
        wide.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        wide.W_enc.copy_(20 * wide.W_dec.t())  # effects well above the rounding of fp32; errors make up for it
        if skip:
            wide.W_skip.copy_(0.02 * torch.randn(d, d, generator=generator))
    return wide


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
    assert float((dropped.logits - clean).abs().max()) > 1


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
    with pytest.raises(SaescopeError, match=r"reads 32.*128 at"):
        SplicedModel(model, {Site(input="blocks.0.mlp.hook_post"): saes[PLAIN]})
    with pytest.raises(SaescopeError, match=r"blocks\.2\.hook_mlp_out"):
        SplicedModel(model, {CODER: saes[CODER], Site(input="blocks.2.hook_mlp_out"): saes[PLAIN]})
    backwards = Site(input="blocks.2.hook_resid_pre", target="blocks.1.hook_mlp_out")
    with pytest.raises(SaescopeError, match=r"reaches blocks\.1\.hook_mlp_out before blocks\.2"):
        SplicedModel(model, {backwards: saes[CODER]}).run(tokens())
    with pytest.raises(SaescopeError, match="native:tiny"):
        spliced.run(tokens(), freeze=FrozenModel.at(load_model("native:tiny"), tokens()))
    with pytest.raises(SaescopeError, match="'heads' cannot be held"):
        spliced.run(tokens(), freeze=("heads",))
    with pytest.raises(SaescopeError, match="hook_nothing"):
        spliced.run(tokens(), freeze=(), watch=["blocks.0.hook_nothing"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model._network.modules())


def test_given_values_are_nodes(model: Model, saes: dict[Site, SAE]) -> None:
    """Values on the way between two runs (integrated gradients) take gradient where they are given."""
    spliced = SplicedModel(model, {PLAIN: saes[PLAIN]})
    clean, other = spliced.run(tokens()), spliced.run(tokens().flip(1))
    between = from_dense((clean.codes[PLAIN].to_dense() + other.codes[PLAIN].to_dense()) / 2)
    run = spliced.run(tokens(), values={PLAIN: between}, errors=clean.errors)
    (grad,) = torch.autograd.grad(metric(run.logits), run.at[PLAIN].code.value)
    assert grad.shape == between.value.shape and float(grad.abs().max()) > 0
