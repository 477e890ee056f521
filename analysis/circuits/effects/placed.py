"""Steps of nodes: what they add to their site's target, and from there to a metric. Maps `Nodes` to rows of sparse codes.

    step of a feature = (v_to − v_from) · W_f        of an error or a skip path = the difference of the vectors

The effect of a step under a gradient G of the target is an inner product per row; nothing of size d_sae is allocated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from analysis.circuits.model import CircuitModel, State
from analysis.circuits.nodes import ANYWHERE, ERROR, Nodes
from sae import products
from sae.base import SAE
from sae.code import SparseCode, from_pairs
from sae.errors import SaescopeError
from training.site import Site


@dataclass(frozen=True)
class Placed:
    """One site's nodes in the kept rows of some examples: one entry per row and node, sorted by row, then feature.

    Attributes:
        row: index among the kept rows.
        example: example of the row.
        node: index into `Nodes`.
        feature: the node's feature, or ERROR or SKIP.
    """

    row: Int64[Tensor, " n"]
    example: Int64[Tensor, " n"]
    node: Int64[Tensor, " n"]
    feature: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: Bool[Tensor, " n"]) -> "Placed":
        """Select entries."""
        return Placed(self.row[which], self.example[which], self.node[which], self.feature[which])

    @property
    def are_features(self) -> Bool[Tensor, " n"]:
        """Mask of entries that are features, not errors or skip paths."""
        return self.feature >= 0

    def code(self, value: Float[Tensor, " n"], n_rows: int, d_sae: int) -> SparseCode:
        """Feature entries as a CSR code with these values, including zeros."""
        return from_pairs(self.row, self.feature, value, n_rows, d_sae)

    def stored(self, code: SparseCode) -> Float[Tensor, " n"]:
        """Value of a CSR code at each entry, 0 where nothing is stored."""
        if code.feature.numel() == 0:
            return code.value.new_zeros(len(self))
        keys, wanted = code.rows() * code.d_sae + code.feature, self.row * code.d_sae + self.feature
        place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        return torch.where(keys[place] == wanted, code.value[place], 0)


def place(model: CircuitModel, nodes: Nodes, keep: Bool[Tensor, "n_examples n_ctx"]) -> dict[Site, Placed]:
    """Place each site's nodes in the kept rows of some examples; a node with position ANYWHERE is in all rows.

    Raises:
        SaescopeError: a node's position is beyond the prompts.
    """
    if len(nodes) and int(nodes.position.max()) >= keep.shape[1]:
        raise SaescopeError(
            f"There is a node at position {int(nodes.position.max())}, and these prompts have {keep.shape[1]} tokens: use "
            "examples of equal length, or sum over positions."
        )
    at = keep.nonzero()
    return {site: _place(nodes, i, at) for i, site in enumerate(model.sites)}


def _place(nodes: Nodes, site: int, at: Int64[Tensor, "n_rows 2"]) -> Placed:
    columns = torch.from_numpy(np.flatnonzero(nodes.site == site))
    position = torch.from_numpy(nodes.position)[columns]
    row, which = ((at[:, 1:] == position) | (position == ANYWHERE)).nonzero(as_tuple=True)
    node = columns[which]
    feature = torch.from_numpy(nodes.feature)[node]
    order = np.lexsort((feature.numpy(), row.numpy()))
    return Placed(row[order], at[row[order], 0], node[order], feature[order])


def along(sae: SAE, rows: Float[Tensor, "n_rows d_out"], entries: Placed) -> Float[Tensor, " n"]:
    """⟨row, unit decoder row⟩ of each feature entry."""
    norms = sae.W_dec[entries.feature].norm(dim=1).clamp_min(1e-12)
    code = entries.code(rows.new_zeros(len(entries)), len(rows), sae.d_sae)
    return products.read(rows.to(sae.W_dec), sae.W_dec, code) / norms


@dataclass(frozen=True)
class Steps:
    """What each entry of a site's nodes adds to the target when it goes from one state to another.

    Attributes:
        sae: the site's SAE.
        features: feature entries.
        change: v_to − v_from of each feature entry.
        vectors: entries of errors and skip paths.
        vector: vector difference of each such entry.
        n_rows: number of kept rows.
    """

    sae: SAE
    features: Placed
    change: Float[Tensor, " n_features"]
    vectors: Placed
    vector: Float[Tensor, "n_vectors d_out"]
    n_rows: int

    @classmethod
    def between(cls, sae: SAE, entries: Placed, start: State, end: State) -> "Steps":
        """Steps from one state of the rows to another."""
        features, vectors = entries.take(entries.are_features), entries.take(~entries.are_features)
        change = features.stored(end.code) - features.stored(start.code)
        error, offset = (end.error - start.error)[vectors.row], (end.offset - start.offset)[vectors.row]
        vector = torch.where(vectors.feature[:, None] == ERROR, error, offset)
        return cls(sae, features, change, vectors, vector, len(start.target))

    @property
    def node(self) -> Int64[Tensor, " n"]:
        """Node of each number returned by `read`."""
        return torch.cat([self.features.node, self.vectors.node])

    @property
    def example(self) -> Int64[Tensor, " n"]:
        """Example of each number returned by `read`."""
        return torch.cat([self.features.example, self.vectors.example])

    def read(self, grad: Float[Tensor, "n_rows d_out"]) -> Float[Tensor, " n"]:
        """First-order effect of each step on a scalar with this gradient: features, then vectors."""
        grad = grad.to(self.vector)
        whole = (grad[self.vectors.row] * self.vector).sum(1)
        return torch.cat([self.change * along(self.sae, grad, self.features), whole])

    def added(self, chosen: Bool[Tensor, " n_nodes"]) -> Float[Tensor, "n_rows d_out"]:
        """Sum of the chosen nodes' steps, as a change of the target."""
        code = self.features.code(self.change * chosen[self.features.node], self.n_rows, self.sae.d_sae)
        vectors = self.vector * chosen[self.vectors.node, None]
        return self.sae.decode_features(code).index_add(0, self.vectors.row, vectors)

    def updated(self, other: "Steps", chosen: Bool[Tensor, " n_nodes"]) -> "Steps":
        """These steps, with the chosen nodes' steps taken from `other` (which has the same entries)."""
        change = torch.where(chosen[self.features.node], other.change, self.change)
        return replace(self, change=change, vector=torch.where(chosen[self.vectors.node, None], other.vector, self.vector))


def by_node(
    steps: Mapping[Site, Steps], grads: Mapping[Site, Float[Tensor, "n_rows _"]], n_examples: int, n_nodes: int
) -> Float64[Tensor, "n_examples n_nodes"]:
    """First-order effect of each node's steps, summed over an example's rows, at the sites that have a gradient."""
    total = torch.zeros(n_examples * n_nodes, dtype=torch.float64)
    for site, grad in grads.items():
        at = steps[site].example * n_nodes + steps[site].node
        total.index_add_(0, at, steps[site].read(grad).double().cpu())
    return total.view(n_examples, n_nodes)
