"""Reference values that nodes are patched to: the counterfactual prompt, the mean, or zero.

    counterfactual   the state of the corrupt prompt at the same position
    mean             the mean over clean and corrupt prompts, per position if all prompts have the same length
    zero             no features and no error; the offset is the bias (Marks et al. 2403.19647, §3, for single prompts)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from analysis.circuits.model import CircuitModel, State
from analysis.circuits.tasks.examples import Examples
from sae.code import from_dense, from_pairs
from sae.errors import SaescopeError
from training.site import Site

Reference = Literal["counterfactual", "mean", "zero"]


@dataclass(frozen=True)
class Means:
    """Mean states of every site over examples: one row per position, or one for all positions."""

    by_site: dict[Site, State]
    positional: bool

    def of(self, examples: Examples) -> dict[Site, State]:
        """Mean state for each kept row of some examples."""
        rows = position_of_rows(examples)
        rows = rows if self.positional else torch.zeros_like(rows)
        return {site: state.take(rows) for site, state in self.by_site.items()}


def position_of_rows(examples: Examples) -> Int64[Tensor, " n_rows"]:
    """Position of each kept row."""
    return examples.keep.nonzero()[:, 1]


def mean_states(model: CircuitModel, groups: Iterable[Examples], *, batch: int = 32) -> Means:
    """Mean states over the clean and corrupt prompts of examples.

    Per position if all prompts have the same length, else over all rows.
    """
    groups = list(groups)
    positional = len({group.n_ctx for group in groups}) == 1
    n_rows = groups[0].n_ctx if positional else 1
    sums = {site: _Sum(n_rows, model, site) for site in model.sites}
    for group in groups:
        for part in group.batches(batch):
            for tokens in (part.clean, part.corrupt):
                if tokens is not None:
                    rows = position_of_rows(part) if positional else torch.zeros(int(part.keep.sum()), dtype=torch.long)
                    for site, state in model.states(tokens, part.keep)[0].items():
                        sums[site].add(state, rows)
    return Means({site: total.mean() for site, total in sums.items()}, positional)


class _Sum:
    """Sums of states by row, in fp64."""

    def __init__(self, n_rows: int, model: CircuitModel, site: Site) -> None:
        sae = model.saes[site]
        self.dtype = sae.W_dec.dtype
        self.count = torch.zeros(n_rows, dtype=torch.float64)
        self.code = torch.zeros(n_rows, sae.d_sae, dtype=torch.float64)
        self.dense = torch.zeros(3, n_rows, sae.d_out, dtype=torch.float64)

    def add(self, state: State, rows: Int64[Tensor, " n"]) -> None:
        """Add each row of a state to its sum."""
        self.count.index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))
        entry = rows[state.code.rows().cpu()] * self.code.shape[1] + state.code.feature.cpu()
        self.code.view(-1).index_add_(0, entry, state.code.value.double().cpu())
        for total, part in zip(self.dense, (state.target, state.offset, state.error), strict=True):
            total.index_add_(0, rows, part.double().cpu())

    def mean(self) -> State:
        """Mean of each row; rows without examples are zero."""
        n = self.count.clamp_min(1)[:, None]
        target, offset, error = (self.dense / n).to(self.dtype)
        return State(target, from_dense((self.code / n).to(self.dtype)), offset, error)


def zero_states(model: CircuitModel, n_rows: int) -> dict[Site, State]:
    """States without features, error or skip path: the bias alone."""
    return {site: _zero(model, site, n_rows) for site in model.sites}


def _zero(model: CircuitModel, site: Site, n_rows: int) -> State:
    sae = model.saes[site]
    bias = sae.bias().detach().expand(n_rows, -1)
    none = torch.zeros(0, dtype=torch.long)
    return State(bias, from_pairs(none, none, bias.new_zeros(0), n_rows, sae.d_sae), bias, torch.zeros_like(bias))


def reference_states(
    model: CircuitModel, examples: Examples, kind: Reference, means: Means | None = None
) -> dict[Site, State]:
    """Reference state of each kept row of some examples.

    Args:
        means: mean states; needed for `mean` only.

    Raises:
        SaescopeError: the examples are single prompts, without a counterfactual.
    """
    if kind == "zero":
        return zero_states(model, int(examples.keep.sum()))
    if kind == "mean":
        assert means is not None, "mean needs means"
        return means.of(examples)
    if examples.corrupt is None:
        raise SaescopeError("This task has single prompts, so there is no counterfactual: use mean or zero.")
    return model.states(examples.corrupt, examples.keep)[0]
