"""Models, examples and nodes that the tests of edges share."""

import numpy as np
import torch
from torch import Tensor

from analysis.circuits.effects.reference import Reference
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ERROR, SKIP, Nodes
from analysis.circuits.tasks.examples import Examples
from sae.base import SAE, Transform
from sae.variants.topk import AbsTopKConfig, TopK
from training.site import Site

D_SAE = 6
RESID, ATTN, CODER, UPDATE, LAST = (
    Site(input="blocks.0.hook_resid_post"), Site(input="blocks.1.hook_attn_out"),
    Site(input="blocks.1.mlp.hook_in", target="blocks.1.hook_mlp_out"),
    Site(input="blocks.2.hook_resid_pre", target="blocks.2.hook_resid_post", update=True),
    Site(input="blocks.2.hook_resid_post"),
)


def signed_sae(seed: int, *, skip: bool = False, d: int = 32) -> SAE:
    """Random weights; every feature is always active, with either sign, so that it is linear."""
    generator = torch.Generator().manual_seed(seed)
    target = Transform(torch.randn(d, generator=generator), torch.tensor(1.7)) if skip else None
    sae = TopK(AbsTopKConfig(d_sae=D_SAE, k=D_SAE, skip=skip), d, d, target=target)
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return sae.double()


def linear_saes(d: int = 32) -> dict[Site, SAE]:
    """Features that are always active at a residual site, an attention output and a transcoder with a skip path."""
    return {RESID: signed_sae(0, d=d), ATTN: signed_sae(1, d=d), CODER: signed_sae(2, skip=True, d=d)}


def pairs(n: int = 3, n_ctx: int = 5) -> Examples:
    """BOS is not spliced; prompts differ in their last tokens but one."""
    tokens = torch.randint(3, 259, (2, n, n_ctx), generator=torch.Generator().manual_seed(1))
    tokens[:, :, 0], tokens[1, :, -1] = 0, tokens[0, :, -1]
    keep = torch.ones(n, n_ctx, dtype=torch.bool)
    keep[:, 0] = False
    return Examples(tokens[0], tokens[1], torch.arange(n)[:, None], torch.zeros(n, 0, dtype=torch.long), keep)


def linear_metric(logits: Tensor, examples: Examples) -> Tensor:
    return logits[:, :7] @ torch.linspace(-1, 1, 7, dtype=logits.dtype)


def metric(logits: Tensor, examples: Examples) -> Tensor:
    """One that is not linear."""
    return linear_metric(logits.log_softmax(-1), examples)


def every_node(model: CircuitModel, examples: Examples, reference: Reference = "counterfactual") -> Nodes:
    """All features that are active in a clean or corrupt prompt, all errors and skip paths."""
    triples = []
    prompts = [examples.clean] if reference == "zero" else [examples.clean, examples.corrupt]
    position = examples.keep.nonzero()[:, 1]
    for tokens in prompts:
        for site, state in model.states(tokens, examples.keep)[0].items():
            i, at = model.index[site], position[state.code.rows()].tolist()
            triples += [(i, p, f) for p, f in zip(at, state.code.feature.tolist(), strict=True)]
            kinds = (ERROR, SKIP) if model.saes[site].has_offsets else (ERROR,)
            triples += [(i, p, kind) for p in position.unique().tolist() for kind in kinds]
    return Nodes.of(triples)


def sample(nodes: Nodes, n: int, seed: int = 0) -> Nodes:
    """Some of the nodes, errors and skip paths more often than features."""
    rng = np.random.default_rng(seed)
    weight = np.where(nodes.features, 1.0, 4.0)
    return nodes.take(np.sort(rng.choice(len(nodes), min(n, len(nodes)), replace=False, p=weight / weight.sum())))


def dense(effects) -> np.ndarray:
    """[n_examples, n_nodes, n_nodes + 1], the last column into the metric."""
    n = len(effects.nodes)
    out = np.zeros((effects.values.shape[0], n, n + 1))
    out[:, effects.source, effects.target] = effects.values.toarray()
    return out
