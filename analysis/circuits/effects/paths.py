"""Direct paths: a run in which every site's target is detached, and which sites then reach which.

Each target becomes its own autograd leaf, so a site's input depends on earlier sites only along paths that meet no site in
between (the stop-gradients of Marks et al. 2403.19647, App. A.1). This needs no table of architectures: in parallel blocks
attention doesn't reach the MLP beside it, because autograd finds no path.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ANYWHERE, OUTPUT, Nodes
from analysis.circuits.tasks.examples import Examples
from training.model.frozen import FrozenModel, hooked
from training.model.splice import Forward, Reconstruct, at_sites
from training.site import Site, SiteRows


@dataclass(frozen=True)
class CutRun:
    """A run whose sites are cut.

    Attributes:
        leaves: site → the leaf that replaces its target, with a gradient.
        rows: site → x and target as they arrive, differentiable in the leaves of earlier sites.
        logits: logits of the run.
        watched: requested hook → its tensor in the autograd graph.
    """

    leaves: dict[Site, Float[Tensor, "n_rows _"]]
    rows: dict[Site, SiteRows]
    logits: Float[Tensor, "n_examples n_logits d_vocab"]
    watched: dict[str, Tensor] = field(default_factory=dict)


def cut_run(
    model: CircuitModel, tokens: Int[Tensor, "n_examples n_ctx"], keep: Bool[Tensor, "n_examples n_ctx"],
    targets: Mapping[Site, Float[Tensor, "n_rows _"]], forward: Forward | None = None, *, skips_pass: bool = False,
    watch: Sequence[str] = (),
) -> CutRun:
    """Run a model with every kept target replaced by a leaf.

    Args:
        model: the model with its SAEs.
        tokens: tokens of the run.
        keep: rows to cut; others pass.
        targets: site → value of its leaf. Sites without an SAE are allowed (`hook_embed`).
        forward: the model, or its `FrozenModel`.
        skips_pass: don't cut skip paths: the offset is computed from x, and leaves are targets without it.
        watch: hooks of the bridge to record, downstream of the cuts; needs a `FrozenModel`.
    """
    leaves: dict[Site, Tensor] = {}
    seen: dict[Site, SiteRows] = {}

    def cut(site: Site) -> Reconstruct:
        passes = skips_pass and site in model.saes and model.saes[site].has_offsets

        def put(rows: SiteRows, mask: Tensor) -> Tensor:  # noqa: ARG001
            seen[site], leaves[site] = rows, targets[site].detach().clone().requires_grad_()
            return leaves[site] + model.state(site, rows).offset if passes else leaves[site]

        return put

    at, watched = {site: cut(site) for site in targets}, dict[str, Tensor]()
    with torch.enable_grad(), ExitStack() as stack:
        if not watch:
            return CutRun(leaves, seen, model.run(tokens, keep, at, forward))
        assert isinstance(forward, FrozenModel), "hooks are watched in the linear forward"
        stack.enter_context(at_sites(forward, at, keep))
        for hook in watch:
            stack.enter_context(hooked(model.model.bridge, hook, partial(_see, watched, hook)))
        return CutRun(leaves, seen, forward.logits(tokens), watched)


def _see(watched: dict[str, Tensor], hook: str, acts: Tensor) -> Tensor:
    """Record and return the tensor, so that later computation depends on it: hooks may see a converted view."""
    watched[hook] = acts
    return acts


NONE, SAME, EARLIER = 0, 1, 2
"""How one site directly reaches another: not at all, only at the same position, or from earlier positions too."""


@dataclass(frozen=True)
class Reach:
    """Which sites directly reach which.

    Attributes:
        how: NONE, SAME or EARLIER, by upstream and downstream site; the last column is the metric.
        n_ctx: tokens per prompt; the metric reads the last.
    """

    how: Int64[np.ndarray, "n_sites n_sites_and_output"]
    n_ctx: int

    def upstream(self, site: int) -> list[int]:
        """Sites that directly reach a site, or OUTPUT."""
        return np.flatnonzero(self.how[:, site] != NONE).tolist()

    def separates(self, site: int) -> bool:
        """Whether every path from earlier to later sites, and to the metric, passes through this site."""
        return not self.how[:site, site + 1 :].any()

    def edges(self, nodes: Nodes) -> tuple[Int64[np.ndarray, " n_edges"], Int64[np.ndarray, " n_edges"]]:
        """All possible edges between nodes and into OUTPUT, as (source, target), ordered.

        A node with position ANYWHERE stands for every position.
        """
        down = np.append(nodes.position, self.n_ctx - 1)
        how, up = self.how[nodes.site][:, np.append(nodes.site, OUTPUT)], nodes.position[:, None]
        meet = np.where(how == SAME, up == down, up <= down) | (up == ANYWHERE) | (down == ANYWHERE)
        source, target = ((how != NONE) & meet).nonzero()
        target = np.where(target == len(nodes), OUTPUT, target)
        order = np.lexsort((target, source))
        return source[order], target[order]


@torch.enable_grad()
def reach(model: CircuitModel, examples: Examples) -> Reach:
    """Find which sites directly reach which, from gradients of random projections of each site's input.

    Uses a few of the examples. With parts of the model frozen, some of these paths may carry nothing.
    """
    few = _telling(examples)
    states, _ = model.states(few.clean, few.keep)
    run = cut_run(model, few.clean, few.keep, {site: states[site].target for site in model.sites})
    position = few.keep.nonzero()[:, 1]
    last = position == position.max()
    arriving = [[part[last] for part in run.rows[site]] for site in model.sites]
    how = np.zeros((len(model.sites), len(model.sites) + 1), dtype=np.int64)
    generator = torch.Generator().manual_seed(0)
    for d, parts in enumerate([*arriving, [run.logits[:, -1]]]):
        if d and any(part.requires_grad for part in parts):
            weights = [torch.randn(part.shape, generator=generator).to(part) for part in parts]
            total = torch.stack([(part * weight).sum() for part, weight in zip(parts, weights, strict=True)]).sum()
            leaves = [run.leaves[site] for site in model.sites[:d]]
            grads = torch.autograd.grad(total, leaves, retain_graph=True, materialize_grads=True)
            how[:d, d] = [_how(grad, last) for grad in grads]
    return Reach(how, few.n_ctx)


def _telling(examples: Examples) -> Examples:
    """The first two examples, and the first of each mask."""
    masks: dict[bytes, int] = {}
    for i, mask in enumerate(examples.keep.cpu().numpy()):
        masks.setdefault(mask.tobytes(), i)
    return examples.take(torch.tensor(sorted({*range(min(2, len(examples))), *masks.values()})))


def _how(grad: Float[Tensor, "n_rows _"], last: Bool[Tensor, " n_rows"]) -> int:
    if not bool(grad.any()):
        return NONE
    return EARLIER if bool(grad[~last].any()) else SAME
