"""Split edges by attention head: which heads carry a source's effect to a target.

A path from a source either meets no attention, or one head reads the source's vector from the residual stream first. So
each edge is a sum:

    edge = Σ over layers and heads of ⟨G_head at the source's position, vector⟩ + rest

where G_head is the target's gradient through that head's output alone, with patterns frozen: OV by head (He et al.
2402.12201, §3). The rest reaches the target without attention, or goes through an MLP or a skip path first. If the source
is at an earlier position and neither MLPs nor skip paths are followed, the rest is 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from analysis.circuits.attribution.linear import LinearPrompt, Target
from analysis.circuits.attribution.sites import TOKENS
from analysis.circuits.graph import layer_of
from sae.errors import SaescopeError
from training.site import Site

_ADDED = ("hook_attn_out", "hook_mlp_out")
_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")


@dataclass(frozen=True)
class HeadLoadings:
    """Direct effect of every node on one target, through each head.

    Attributes:
        target: the explained target.
        loadings: effect by layer, head and node.
        edges: effect by node, over all paths.
    """

    target: Target
    loadings: Float64[np.ndarray, "n_layers n_heads n_nodes"]
    edges: Float64[np.ndarray, " n_nodes"]

    @property
    def rest(self) -> Float64[np.ndarray, " n_nodes"]:
        """The part of each edge that no head reads first."""
        return self.edges - self.loadings.sum((0, 1))

    def of_edge(self, node: int, n: int | None = None) -> list[tuple[int, int, float]]:
        """(layer, head, part) of an edge, largest first; n = None gives all that are not 0."""
        mine = self.loadings[:, :, node]
        order = np.argsort(-np.abs(mine), axis=None, kind="stable")[:n]
        cells = [(int(i // mine.shape[1]), int(i % mine.shape[1])) for i in order]
        return [(layer, head, float(mine[layer, head])) for layer, head in cells if mine[layer, head] != 0]


def head_loadings(linear: LinearPrompt, targets: Sequence[Target]) -> list[HeadLoadings]:
    """Split the edges into each target by head.

    Costs one backward pass, plus one through each attention head.

    Raises:
        SaescopeError: attention has no per-head hook (`hook_z`), or a source isn't added to the residual stream directly.
    """
    layers = range(linear.circuit.n_layers)
    readers = [_readers(linear, site) for site in linear.sites]
    found = []
    for part in linear.chunks(targets):
        copies = torch.arange(len(part))
        values = linear.values(linear.run, part, copies)
        edges = linear.read(linear.gradients(values.sum()), len(part))
        parts = [_through_layer(linear, layer, values.sum(), readers, len(part)) for layer in layers]
        stacked = np.stack(parts, axis=1)
        found += [HeadLoadings(target, stacked[i], edges[i]) for i, target in enumerate(part)]
    return found


def _through_layer(
    linear: LinearPrompt, layer: int, total: Tensor, readers: Sequence[frozenset[int]], n: int
) -> Float64[np.ndarray, "n n_heads n_nodes"]:
    """Effects through each head of a layer, of the nodes whose vectors it reads from the residual stream."""
    z, before = _watched(linear, layer, "attn.hook_z"), _watched(linear, layer, "hook_resid_pre")
    z, n_heads = _by_head(z, int(linear.circuit.model.bridge.cfg.n_heads))
    (by_z,) = torch.autograd.grad(total, z, retain_graph=True, materialize_grads=True)
    out = []
    for head in range(n_heads):
        alone = torch.zeros_like(by_z)
        alone[:, :, head] = by_z[:, :, head]
        if not (z.requires_grad and before.requires_grad and bool(alone.any())):
            out.append(np.zeros((n, len(linear.nodes))))
            continue
        (grad,) = torch.autograd.grad(z, before, alone, retain_graph=True, materialize_grads=True)
        none = torch.zeros_like(grad)
        by_site = {site: grad if layer in mine else none for site, mine in zip(linear.sites, readers, strict=True)}
        out.append(linear.read(by_site, n))
    return np.stack(out, axis=1)


def _by_head(z: Tensor, n_heads: int) -> tuple[Tensor, int]:
    if z.ndim != 4 or z.shape[2] != n_heads:
        raise SaescopeError(f"hook_z has shape {list(z.shape)}, not [copies, positions, {n_heads} heads, d_head].")
    return z, n_heads


def _watched(linear: LinearPrompt, layer: int, name: str) -> Tensor:
    hook = f"blocks.{layer}.{name}"
    if hook not in linear.run.watched:
        raise SaescopeError(f"{linear.circuit.model.name} has no {hook}, which is needed to split edges by head.")
    return linear.run.watched[hook]


def _readers(linear: LinearPrompt, site: Site) -> frozenset[int]:
    """Layers whose input residual stream contains what a site writes: up to the next site on the stream itself."""
    if not (site.update or site.output.endswith(_ADDED + _STREAM)):
        raise SaescopeError(
            f"{site.output} is not added to the residual stream directly, so its edges can't be split by head."
        )
    layer = layer_of(site)
    assert layer is not None
    first = layer if site == TOKENS or site.output.endswith("hook_resid_pre") else layer + 1
    later = linear.sites[linear.sites.index(site) + 1 :]
    cuts = [_cut_before(other) for other in later if not other.update and other.output.endswith(_STREAM)]
    return frozenset(range(first, min([linear.circuit.n_layers, *cuts])))


def _cut_before(site: Site) -> int:
    """First layer whose attention no longer sees what was written before a site on the residual stream."""
    layer = layer_of(site)
    assert layer is not None
    return layer if site.output.endswith("hook_resid_pre") else layer + 1
