"""Moves: the difference of each node of a site from its reference, read against a gradient or added in an ablation.

A site's target is a sum over its nodes (`analysis.circuits.model`), so patching a node adds its step to the target:

    feature     (v_ref − v_clean) · unit W_dec row
    ERROR       error_ref − error_clean
    SKIP        offset_ref − offset_clean          only where offsets depend on the input (`SAE.has_offsets`)

The steps of a row's nodes sum to target_ref − target_clean. To first order a node's effect is ⟨G, step⟩ with
G = ∂metric/∂target. Estimators differ only in G.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy import sparse
from torch import Tensor

from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import ERROR, SKIP, NodeEffects, Nodes
from analysis.circuits.tasks.examples import Examples
from sae import products
from sae.base import SAE
from sae.code import SparseCode, from_pairs
from training.site import Site


@dataclass(frozen=True)
class Moves:
    """Differences of a site's nodes, by row: features active in either state, then ERROR, then SKIP.

    Attributes:
        sae: the site's SAE.
        features: CSR code with values v_ref − v_clean; 0 where a feature is equally active in both.
        vectors: differences of ERROR and, if there is one, SKIP, `[n_rows, d_out]` each.
    """

    sae: SAE
    features: SparseCode
    vectors: dict[int, Tensor]

    @cached_property
    def row(self) -> Int64[Tensor, " n_moves"]:
        """The row of each move."""
        rows = self.features.rows()
        return torch.cat([rows, torch.arange(self.features.n_rows, device=rows.device).repeat(len(self.vectors))])

    @cached_property
    def feature(self) -> Int64[Tensor, " n_moves"]:
        """The feature of each move, or ERROR or SKIP."""
        named = [torch.full((self.features.n_rows,), kind, device=self.features.feature.device) for kind in self.vectors]
        return torch.cat([self.features.feature.long(), *named])

    @cached_property
    def nonzero(self) -> Bool[Tensor, " n_moves"]:
        """Mask of moves that aren't zero."""
        return torch.cat([self.features.value != 0, *(vector.ne(0).any(1) for vector in self.vectors.values())])

    def effects(self, gradient: Float[Tensor, "n_rows d_out"]) -> Float[Tensor, " n_moves"]:
        """⟨gradient, step⟩ of every move."""
        gradient = gradient.to(self.sae.W_dec)
        along = products.read(gradient, self.sae.W_dec, self.features) / self._norms
        return torch.cat([along * self.features.value, *((gradient * vector).sum(1) for vector in self.vectors.values())])

    def steps(self, which: Int64[Tensor, " n"]) -> Float[Tensor, "n d_out"]:
        """Vectors that the selected moves add to their row's target."""
        n = len(self.features.value)
        steps = torch.empty(len(which), self.sae.d_out, dtype=self.sae.W_dec.dtype, device=which.device)
        mine = which < n
        chosen = which[mine]
        by = (self.features.value / self._norms)[chosen]
        steps[mine] = self.sae.W_dec[self.features.feature.long()[chosen]] * by[:, None]
        if not mine.all():
            steps[~mine] = torch.cat(list(self.vectors.values()))[which[~mine] - n]
        return steps

    @cached_property
    def _norms(self) -> Float[Tensor, " nnz"]:
        """Norm of the decoder row of each entry's feature."""
        used, which = self.features.feature.long().unique(return_inverse=True)
        return self.sae.W_dec[used].norm(dim=1).clamp_min(1e-12)[which]


def moves_of(model: CircuitModel, site: Site, clean: State, reference: State) -> Moves:
    """Moves of a site's nodes from the clean to the reference state."""
    sae = model.saes[site]
    vectors = {ERROR: reference.error - clean.error}
    if sae.has_offsets:
        vectors[SKIP] = reference.offset - clean.offset
    return Moves(sae, _difference(clean.code, reference.code), vectors)


def _difference(clean: SparseCode, reference: SparseCode) -> SparseCode:
    """reference − clean at every entry of either; equal values are stored as 0."""
    entry = torch.cat([code.rows() * code.d_sae + code.feature for code in (clean, reference)])
    found, which = entry.unique(return_inverse=True)
    by = torch.cat([-clean.value, reference.value.to(clean.value)])
    total = by.new_zeros(len(found)).index_add(0, which, by)
    return from_pairs(found // clean.d_sae, found % clean.d_sae, total, clean.n_rows, clean.d_sae)


@dataclass(frozen=True)
class Entries:
    """Effects of one site's nodes, one entry per example and node."""

    site: int
    example: Int64[np.ndarray, " n"]
    position: Int64[np.ndarray, " n"]
    feature: Int64[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]

    @classmethod
    def of(
        cls, site: int, examples: Examples, first: int, row: Int64[Tensor, " n"], feature: Int64[Tensor, " n"],
        value: Float[Tensor, " n"],
    ) -> "Entries":
        """Entries from rows of a batch; `first` is the index of its first example."""
        example, position = examples.keep.nonzero().to(row.device)[row].t()
        return cls(
            site, (example + first).cpu().numpy(), position.cpu().numpy(), feature.cpu().numpy(),
            value.detach().double().cpu().numpy(),
        )

    @property
    def key(self) -> Int64[np.ndarray, " n"]:
        """One integer per node, in the order of `Nodes`."""
        return node_keys(np.full(len(self.position), self.site), self.position, self.feature)


def node_keys(
    site: Int64[np.ndarray, " n"], position: Int64[np.ndarray, " n"], feature: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """One integer per node, in the order of `Nodes`; site, position and feature are below 2^15, 2^16 and 2^32."""
    return (site << 48) + (position << 32) + feature - SKIP


def node_effects_of(entries: Sequence[Entries], n_examples: int, nodes: Nodes | None = None) -> NodeEffects:
    """Entries, in any order, as effects; of these `nodes`, if given."""
    keys = np.concatenate([np.zeros(0, dtype=np.int64), *(part.key for part in entries)])
    if nodes is None:
        found, column = np.unique(keys, return_inverse=True)
        nodes = Nodes(found >> 48, (found >> 32) & 0xFFFF, (found & 0xFFFFFFFF) + SKIP)
    else:
        column = np.searchsorted(node_keys(nodes.site, nodes.position, nodes.feature), keys)
    example = np.concatenate([np.zeros(0, dtype=np.int64), *(part.example for part in entries)])
    value = np.concatenate([np.zeros(0), *(part.value for part in entries)])
    return NodeEffects(nodes, sparse.csr_array((value, (example, column)), shape=(n_examples, len(nodes))))
