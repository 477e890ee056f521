"""Description length in bits per row (2410.11179), quantised to keep either the FVE or the cross-entropy.

    at_fve       quantised to cost at most ε FVE: bits and their parts, as in `sae mdl`
    at_ce        quantised to cost at most ε nats per token of cross-entropy, with the coarsest of a ladder of steps
    hierarchy    bits saved by coding whether a feature is active conditionally on another feature, its parent:

        Σ_i H(s_i) − H(s_i | s_parent(i))        parent(i): the denser feature most informative about i; or none

Parents are chosen, and code frequencies estimated (½ added to every count), on half of the documents; bits are measured on
the other half, so that parents picked by chance among thousands save nothing. Parents are denser than their children, so
they form a forest and the code can be decoded.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from analysis.evals.common import intervals
from analysis.evals.common.context import Context, Rows
from analysis.evals.common.evaluation import Evaluation
from analysis.evals.common.result import Direction, Found, Metric
from analysis.mdl.description_length import EPSILON, DescriptionLength, Encoded, quantise, row_bits
from sae.code import SparseCode
from sae.coder import Coder
from sae.errors import SaescopeError

LEAST_ACTIVE = 10
"""Minimum active rows of a feature, and of a pair, for coding it under a parent."""


@dataclass(frozen=True)
class Settings:
    """Allowed losses, and what is measured for controls."""

    epsilon: float = EPSILON
    """FVE that quantisation may cost."""
    epsilon_ce: float = 0.01
    """Cross-entropy that quantisation may cost, in nats per token."""
    ladder: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5, 0.25)
    """Steps tried for `epsilon_ce`, from coarse to fine, as multiples of the step that keeps the FVE."""
    ce_of_controls: bool = False
    """Whether to measure `at_ce` for controls too; each needs several runs of the model."""


class Quantised:
    """A coder whose values are rounded to multiples of a step."""

    def __init__(self, coder: Coder, step: float) -> None:
        self.coder, self.step = coder, step

    @property
    def d_sae(self) -> int:
        """The coder's number of features."""
        return self.coder.d_sae

    @property
    def W_dec(self) -> torch.Tensor:
        """The coder's decoder."""
        return self.coder.W_dec

    def encode(self, x: Float[torch.Tensor, "n d_in"]) -> SparseCode:
        """Encode and quantise."""
        return quantise(self.coder.encode(x), self.step)

    def decode(self, code: SparseCode) -> Float[torch.Tensor, "n d_out"]:
        """Decode as the coder does."""
        return self.coder.decode(code)


def run(context: Context, coder: Coder, settings: Settings) -> Found:
    """Measure bits at both precisions, and the savings by a hierarchy."""
    rows, code = context.rows, context.code(coder)
    encoded = Encoded(coder, rows.x, rows.target, [code])
    if not encoded.fve - settings.epsilon < encoded.fve or not encoded.largest:
        raise SaescopeError("no feature is active in any held-out row, so there is nothing to encode.")
    own = encoded.within(encoded.fve - settings.epsilon)
    metrics: dict[str, Mapping[str, Metric]] = {
        "at_fve": at_fve(rows, code, own, settings.epsilon), "hierarchy": hierarchy(rows, code, context.seed),
    }
    notes: tuple[str, ...] = ()
    if settings.ce_of_controls or coder is context.sae:
        try:
            metrics["at_ce"] = at_ce(context, coder, own.step, settings)
        except SaescopeError as error:
            notes = (f"Bits at equal cross-entropy were not measured: {error}",)
    return Found(metrics, {"rows": rows.units}, (), {}, notes)


def at_fve(rows: Rows, code: SparseCode, own: DescriptionLength, epsilon: float) -> dict[str, Metric]:
    """Description length at an FVE, and its parts."""

    def plain(value: float, unit: str, direction: Direction, formula: str) -> Metric:
        return intervals.plain(value, unit=unit, direction=direction, formula=formula, n=own.n_rows)

    return {
        "bits": bits_metric(rows, code, own.step, f"entropy code of values that cost {epsilon:g} of the variance"),
        "support": plain(own.support, "bits per row", "lower", "Σ_i H_b(p_i)"),
        "values": plain(own.values, "bits per row", "lower", "Σ_i p_i H(q_i | q_i ≠ 0)"),
        "adaptive": plain(own.adaptive, "bits per row", "lower", "frequencies counted while decoding, from one half"),
        "bound": plain(own.bound, "bits per row", "lower", "L0 · (B + log2 d_sae)"),
        "value_bits": plain(own.value_bits, "bits", "none", "B: log2 of the levels from the least to the largest"),
        "l0": plain(own.l0, "features per row", "none", "features sent"),
        "fve": plain(own.fve_quantised, "share", "higher", "FVE with rounded values"),
    }


def bits_metric(rows: Rows, code: SparseCode, step: float, formula: str) -> Metric:
    """The entropy code's bits per row, with an interval over documents; frequencies are those of all rows."""
    n, bits = rows.units.n_rows, row_bits([code], step).numpy()
    return intervals.ratio(rows.sums(bits), n, n, unit="bits per row", direction="lower", formula=formula)


def at_ce(context: Context, coder: Coder, step: float, settings: Settings) -> dict[str, Metric]:
    """Bits at the coarsest step of the ladder that costs at most `epsilon_ce` nats per token.

    Raises:
        SaescopeError: there is no model, or every step costs more.
    """
    epsilon, steps = settings.epsilon_ce, [step * factor for factor in settings.ladder]
    exact = context.costs(coder).nats["spliced"].mean()
    found = context.costs_spliced([Quantised(coder, step) for step in steps])
    added = [float(one.nats["spliced"].mean() - exact) for one in found]
    # a step only counts if all finer steps keep the bound too
    good = [i for i in range(len(steps)) if all(cost <= epsilon for cost in added[i:])]
    if not good:
        raise SaescopeError(f"the finest step tried costs {added[-1]:.3f} nats per token, more than {epsilon:g}.")
    first, n_tokens = good[0], len(found[0].unit)
    ladder = ", ".join(f"{factor:.3g}" for factor in settings.ladder)
    told = f"entropy code of the coarsest of {ladder} times at_fve's step that adds at most {epsilon:g} nats"
    return {
        "bits": bits_metric(context.rows, context.code(coder), steps[first], told),
        "ce_added": intervals.plain(
            added[first], unit="nats per token", direction="lower", formula="CE rounded − CE exact", n=n_tokens),
        "step_ratio": intervals.plain(
            settings.ladder[first], unit="ratio", direction="none", formula="step / step that keeps the FVE", n=n_tokens),
    }


def hierarchy(rows: Rows, code: SparseCode, seed: int) -> dict[str, Metric]:
    """Bits of the support, and the bits saved by parents, on documents not used for choosing them."""
    from scipy.sparse import csr_array

    row, feature = code.rows().cpu().numpy(), code.feature.cpu().numpy()
    ones = np.ones(len(row), dtype=np.float64)
    active = csr_array((ones, (row, feature)), shape=(code.n_rows, code.d_sae))
    order = np.random.default_rng(seed).permutation(len(rows.units.id))
    learnt = np.isin(rows.unit, order[::2])
    parents, chances = fitted(active[learnt])
    told = ~learnt
    alone, under = support_of_rows(active[told], parents, chances)
    n = np.bincount(rows.unit[told], minlength=len(rows.units.id)).astype(np.float64)
    sums = [np.bincount(rows.unit[told], bits, len(n)) for bits in (alone, alone - under)]
    return {
        "support": intervals.ratio(sums[0], n, n, unit="bits per row", direction="lower",
                                   formula="support, features apart, by the frequencies of other documents"),
        "saved": intervals.ratio(sums[1], n, n, unit="bits per row", direction="none",
                                 formula="Σ_i H(s_i) − H(s_i | s_parent), parents and frequencies of other documents"),
        "saved_share": intervals.ratio(sums[1], sums[0], n, unit="share", direction="none",
                                       formula="bits saved by parents / bits of the support"),
        "children": intervals.plain(
            float((parents >= 0).sum()), unit="features", direction="none", formula="features coded under a parent",
            n=int(learnt.sum())),
    }


@dataclass(frozen=True)
class Chances:
    """Probabilities that a feature is active: overall, given an active parent, given an inactive parent."""

    alone: Float[np.ndarray, " d_sae"]
    on: Float[np.ndarray, " d_sae"]
    off: Float[np.ndarray, " d_sae"]


def fitted(active: Any) -> tuple[Int64[np.ndarray, " d_sae"], Chances]:
    """Each feature's parent (−1: none) and probabilities, from a sparse matrix of ones `[n_rows, d_sae]`."""
    n, d_sae = active.shape
    count = np.asarray(active.sum(0)).reshape(-1)
    both = (active.T @ active).tocoo()
    child, parent, pair = both.row, both.col, both.data
    denser = (count[parent] > count[child]) | ((count[parent] == count[child]) & (parent < child))
    told = denser & (pair >= LEAST_ACTIVE) & (count[child] >= LEAST_ACTIVE)
    child, parent, pair = child[told], parent[told], pair[told]
    gain = n * _entropy((count[child] + 0.5) / (n + 1)) - (
        count[parent] * _entropy((pair + 0.5) / (count[parent] + 1))
        + (n - count[parent]) * _entropy((count[child] - pair + 0.5) / (n - count[parent] + 1)))
    parents, found = np.full(d_sae, -1, dtype=np.int64), np.zeros(d_sae)
    order = np.argsort(gain, kind="stable")
    # the gain must exceed the cost of naming a parent and sending one more probability
    worth = math.log2(d_sae) + math.log2(max(n, 2)) / 2
    parents[child[order]] = np.where(gain[order] > worth, parent[order], -1)
    found[child[order]] = pair[order]
    alone = (count + 0.5) / (n + 1)
    has = parents >= 0
    above = np.where(has, count[parents], 0.0)
    on = np.where(has, (found + 0.5) / (above + 1), alone)
    off = np.where(has, (count - found + 0.5) / (n - above + 1), alone)
    return parents, Chances(alone, on, off)


def support_of_rows(
    active: Any, parents: Int64[np.ndarray, " d_sae"], chances: Chances
) -> tuple[Float[np.ndarray, " n_rows"], Float[np.ndarray, " n_rows"]]:
    """Bits of each row's support, coded independently and conditionally on parents.

    Args:
        active: a sparse matrix of ones `[n_rows, d_sae]`.
        parents, chances: from `fitted`.
    """
    from scipy.sparse import csr_array

    def cost(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return -np.log2(1 - p), np.log2(1 - p) - np.log2(p)

    silent, extra = cost(chances.alone)
    alone = silent.sum() + active @ extra
    silent_off, extra_off = cost(chances.off)
    silent_on, extra_on = cost(chances.on)
    # correct the cost of features whose parent is active
    has = np.flatnonzero(parents >= 0)
    by_parent = np.bincount(parents[has], silent_on[has] - silent_off[has], len(parents))
    children = csr_array((np.ones(len(has)), (has, parents[has])), shape=(len(parents), len(parents)))
    joint = active.multiply(active @ children.T)
    under = silent_off.sum() + active @ extra_off + active @ by_parent + joint @ (extra_on - extra_off)
    return np.asarray(alone), np.asarray(under)


def _entropy(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Binary entropy in bits."""
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


EVALUATION = Evaluation(
    "mdl", "bits per row", 1, Settings(),
    Settings(ladder=tuple(2.0 ** (i / 2) for i in range(4, -5, -1)), ce_of_controls=True), run, cost=(8.0, 40.0),
)
