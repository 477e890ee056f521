"""A transformer and SAEs written out densely, and random SAEs to splice: what tests of spliced models share."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from sae.base import SAE, Transform
from sae.variants.jumprelu import JumpReLU, JumpReLUConfig
from sae.variants.topk import TopK, TopKConfig
from training.model.language_model import Model
from training.site import Site

D, N = 32, 96
PLAIN = Site(input="blocks.0.hook_resid_post")
UPDATE = Site(input="blocks.1.hook_resid_pre", target="blocks.1.hook_resid_post", update=True)
CODER = Site(input="blocks.2.mlp.hook_in", target="blocks.2.hook_mlp_out")
READ = {PLAIN: "resid_post.0", UPDATE: "resid_pre.1", CODER: "mlp_in.2"}
WRITTEN = {PLAIN: "resid_post.0", UPDATE: "resid_post.1", CODER: "mlp_out.2"}


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
