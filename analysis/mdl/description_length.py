"""Description length of a trained SAE's codes, in bits per row (Ayonrinde, Pearce & Sharkey 2410.11179).

Values are quantised to whole multiples q of a step Δ, one step for all features: decoder rows have unit norm, so the same
step costs each feature the same error. Values rounded to 0 are not sent. With p_i the share of rows in which feature i is
sent:

    bound    L0 · (B + log2 d_sae)                              each feature by index, its value in B fixed-width bits
    bits     Σ_i [H_b(p_i) + p_i · H(q_i | q_i ≠ 0)]            entropy code with independent features: Σ_i H(q_i)
    adaptive the same code with frequencies estimated while decoding, counts starting at ½ (Krichevsky & Trofimov 1981);
             a value's counts are over all levels that occur in the whole code

Δ is the coarsest step that costs at most ε FVE, or that keeps a given FVE; SAEs are compared at equal FVE. Choices where
the paper is silent: one Δ for all features, found by halving and then bisecting its logarithm to 1 % (the error needn't be
monotonic in the step; coarser steps that happen to keep the FVE are not searched for); B = log2 of the number of levels
between the smallest and the largest value; the bound doesn't include sending the number of features per row. Signs are
part of q. Frequencies are those of the measured rows, so `bits` is biased low by about (levels − 1) / (2 n_rows ln 2) per
feature; `adaptive` is biased high. The decoder is assumed known, as in the paper; `decoder_bits` gives its cost.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae.base import SAE
from sae.code import SparseCode
from sae.coder import Coder
from sae.errors import SaescopeError

CHUNK_ROWS = 4096
EPSILON = 0.005
_HALVINGS, _BISECTIONS = 40, 7


@dataclass(frozen=True)
class DescriptionLength:
    """Description length of some rows' codes; bits are per row."""

    bits: float
    """The entropy code: support + values."""
    support: float
    """Σ_i H_b(p_i): which features are active."""
    values: float
    """Σ_i p_i H(q_i | q_i ≠ 0): their quantised values."""
    adaptive: float
    """The entropy code with frequencies estimated while decoding."""
    bound: float
    """L0 · (value_bits + log2 d_sae)."""
    value_bits: float
    """B: log2 of the number of levels of a value."""
    step: float
    """Δ, in the model's units; 0 if there is nothing to send."""
    l0: float
    """Features sent per row."""
    n_features: int
    """Features sent in at least one row."""
    fve: float
    """FVE without quantisation."""
    fve_quantised: float
    """FVE with quantised values."""
    n_rows: int


@dataclass(frozen=True)
class Levels:
    """Level counts of a quantised code, per feature, over `n_rows` rows. Level 0 is not stored."""

    feature: Int64[Tensor, " n"]
    level: Int64[Tensor, " n"]
    count: Int64[Tensor, " n"]
    n_rows: int
    d_sae: int

    @property
    def sent(self) -> Float[Tensor, " d_sae"]:
        """Number of rows in which each feature is sent."""
        return torch.zeros(self.d_sae, dtype=torch.float64).index_add_(0, self.feature, self.count.double())

    @property
    def n_levels(self) -> int:
        """Number of levels from the smallest to the largest, excluding 0."""
        if not len(self.level):
            return 0
        low, high = int(self.level.min()), int(self.level.max())
        return high - low + (0 if low < 0 < high else 1)


def quantise(code: SparseCode, step: float) -> SparseCode:
    """Round values to whole multiples of `step`, halves to even; zeros stay stored."""
    return replace(code, value=((code.value.double() / step).round() * step).to(code.value.dtype))


def count_levels(codes: list[SparseCode], step: float) -> Levels:
    """Count the levels of some codes over the same features."""
    assert codes, "at least one code"
    feature = torch.cat([code.feature.long() for code in codes]).cpu()
    level = torch.cat([(code.value.double() / step).round().long() for code in codes]).cpu()
    feature, level = feature[level != 0], level[level != 0]
    low = int(level.min()) if len(level) else 0
    span = int(level.max()) - low + 1 if len(level) else 1
    keys, count = _counted(feature * span + (level - low), codes[0].d_sae * span)
    return Levels(keys // span, keys % span + low, count, sum(code.n_rows for code in codes), codes[0].d_sae)


def _counted(keys: Int64[Tensor, " n"], n_keys: int) -> tuple[Int64[Tensor, " n_found"], Int64[Tensor, " n_found"]]:
    """Unique keys below `n_keys`, ascending, and their counts; uses a table instead of sorting if it is small enough."""
    if n_keys > 1 << 24:
        found, count = torch.unique(keys, return_counts=True)
        return found, count
    table = torch.bincount(keys, minlength=n_keys)
    found = table.nonzero().squeeze(-1)
    return found, table[found]


def support_bits(levels: Levels) -> float:
    """Bits of the support per row: Σ_i H_b(p_i)."""
    p = levels.sent / levels.n_rows
    return float(-(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum()) / math.log(2)


def values_bits(levels: Levels) -> float:
    """Bits of the values per row: Σ_i p_i H(q_i | q_i ≠ 0)."""
    count = levels.count.double()
    return float((count * (levels.sent[levels.feature] / count).log2()).sum()) / levels.n_rows


def entropy(levels: Levels) -> float:
    """Bits of the entropy code per row: support and values."""
    return support_bits(levels) + values_bits(levels)


def row_bits(codes: list[SparseCode], step: float) -> Float[Tensor, " n_rows"]:
    """Code length of each row under the frequencies of all rows; the mean is the entropy code's `bits`."""
    levels = count_levels(codes, step)
    p = levels.sent / levels.n_rows
    silent = -torch.log2(1 - p).nan_to_num(neginf=0.0)  # a feature that is always sent never pays for being silent
    cost = -(levels.count.double() / levels.n_rows).log2() - silent[levels.feature]
    low = int(levels.level.min()) if len(levels.level) else 0
    span = int(levels.level.max()) - low + 1 if len(levels.level) else 1
    keys = levels.feature * span + levels.level - low
    out = []
    for code in codes:
        level = (code.value.double() / step).round().long().cpu()
        sent = level != 0
        key = code.feature.long().cpu()[sent] * span + level[sent] - low
        bits = torch.full((code.n_rows,), float(silent.sum()), dtype=torch.float64)
        out.append(bits.index_add_(0, code.rows().cpu()[sent], cost[torch.searchsorted(keys, key)]))
    return torch.cat(out)


def adaptive_bits(levels: Levels) -> float:
    """Bits per row of the code with frequencies estimated while decoding.

    For each feature, first whether it is active, row by row, then its level among `n_levels`: a symbol seen c times
    among n, from an alphabet of A, has probability (c + 1/2) / (n + A/2).
    """
    sent, count, n = levels.sent, levels.count.double(), levels.n_rows
    half, a = torch.tensor(0.5).double(), levels.n_levels / 2

    def gamma(x: Tensor) -> Tensor:
        return torch.lgamma(x)

    nats = -(gamma(sent + half) + gamma(n - sent + half) - 2 * gamma(half) - gamma(torch.tensor(n + 1.0).double())).sum()
    if a:
        nats += (gamma(sent + a) - gamma(torch.tensor(a).double())).sum() - (gamma(count + half) - gamma(half)).sum()
    return float(nats) / math.log(2) / n


def decoder_bits(n_features: int, d_out: int, *, weight_bits: float = 8.0) -> float:
    """One-off cost of sending the decoder of `n_features` features, bias included, at `weight_bits` per weight."""
    return (n_features + 1) * d_out * weight_bits


class Encoded:
    """Codes of an SAE over some rows, to be quantised with any step."""

    def __init__(
        self, sae: Coder, rows: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_targets d_out"] | None = None,
        codes: list[SparseCode] | None = None,
    ) -> None:
        """Encode the rows. `rows` and `target` are raw; an SAE's target is its input. `codes`: the rows' codes, if known.

        Raises:
            SaescopeError: wrong shapes, no rows, non-finite values, or a constant target.
        """
        self.sae, self.target = sae, rows if target is None else target
        _check(sae, rows, self.target)
        centred = self.target.double() - self.target.double().mean(0)
        self.variance = float(centred.square().sum())
        if not self.variance > 0:
            raise SaescopeError(
                f"Description length: all {len(rows)} rows are the same, so they have no variance to explain; give more "
                "rows."
            )
        device = sae.W_dec.device
        self.codes = codes or [sae.encode(chunk.to(device)) for chunk in rows.split(CHUNK_ROWS)]
        self._errors: dict[float, float] = {}
        self.error = self._error(None)

    @property
    def fve(self) -> float:
        """FVE without quantisation."""
        return 1 - self.error / self.variance

    def fve_at(self, step: float) -> float:
        """FVE with values quantised by `step`."""
        # cached, since searches try the same steps
        if step not in self._errors:
            self._errors[step] = self._error(step)
        return 1 - self._errors[step] / self.variance

    def within(self, fve: float) -> DescriptionLength:
        """Description length at the coarsest step that keeps this FVE.

        Raises:
            SaescopeError: the SAE doesn't reach the FVE without quantisation, or no step keeps it.
        """
        if not fve < self.fve:
            raise SaescopeError(
                f"Description length: an FVE of {fve:.4f} was asked for, but the SAE has only {self.fve:.4f} without "
                "quantisation; give a lower FVE."
            )
        # a step of four times the largest value rounds everything to 0
        step = coarsest(lambda step: self.fve_at(step) >= fve, 4 * self.largest) if self.largest else 0.0
        return self.at(step)

    def within_bits(self, budget: float) -> float:
        """The finest step, to 1 %, whose entropy code takes at most `budget` bits per row; 0 if nothing is active."""
        if not self.largest:
            return 0.0
        fits = lambda step: entropy(count_levels(self.codes, step)) <= budget  # noqa: E731
        good = 4 * self.largest
        for _ in range(_HALVINGS):
            if not fits(good / 2):
                break
            good /= 2
        bad = good / 2
        for _ in range(_BISECTIONS):
            middle = math.sqrt(good * bad)
            good, bad = (middle, bad) if fits(middle) else (good, middle)
        return good

    @property
    def largest(self) -> float:
        """The largest |value|; 0 if nothing is active."""
        return max((float(code.value.abs().max()) for code in self.codes if code.value.numel()), default=0.0)

    def at(self, step: float) -> DescriptionLength:
        """Description length with this step; use 0 if nothing is active."""
        levels = count_levels(self.codes, step or 1.0)
        support, values, l0 = support_bits(levels), values_bits(levels), float(levels.sent.sum()) / levels.n_rows
        flat = math.log2(max(1, levels.n_levels))
        return DescriptionLength(
            bits=support + values, support=support, values=values, adaptive=adaptive_bits(levels),
            bound=l0 * (flat + math.log2(levels.d_sae)), value_bits=flat, step=step, l0=l0,
            n_features=int((levels.sent > 0).sum()), fve=self.fve, fve_quantised=self.fve_at(step) if step else self.fve,
            n_rows=levels.n_rows,
        )

    def _error(self, step: float | None) -> float:
        """Σ‖target − reconstruction‖²."""
        total = 0.0
        for code, target in zip(self.codes, self.target.split([code.n_rows for code in self.codes]), strict=True):
            x_hat = self.sae.decode(code if step is None else quantise(code, step)).cpu()
            total += float((target.cpu().double() - x_hat.double()).square().sum())
        return total


def description_length(
    sae: SAE, rows: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_targets d_out"] | None = None,
    epsilon: float = EPSILON, *, fve: float | None = None,
) -> DescriptionLength:
    """Description length of a trained SAE on held-out rows.

    Args:
        sae: an SAE of any variant, including signed ones.
        rows: raw inputs, preferably not training data.
        target: raw targets; None for an SAE, which reconstructs its input.
        epsilon: FVE that quantisation may cost.
        fve: FVE to keep, instead of `epsilon`.

    Raises:
        SaescopeError: the rows have the wrong shape, epsilon isn't in (0, 1], or the FVE is out of reach.
    """
    if fve is None and not 0 < epsilon <= 1:
        raise SaescopeError(f"Description length: epsilon = {epsilon:g} is not a share of the variance; give 0 < ε ≤ 1.")
    encoded = Encoded(sae, rows, target)
    return encoded.within(encoded.fve - epsilon if fve is None else fve)


def compare(
    encoded: Mapping[str, Encoded], fve: float | None = None, epsilon: float = EPSILON
) -> tuple[float, dict[str, DescriptionLength | None]]:
    """Compare the SAEs of a sweep at equal FVE: their description lengths at it, shortest first.

    Args:
        encoded: encoded rows by SAE name, all over the same rows.
        fve: FVE that each must keep; None picks one that all can: the lowest among them minus `epsilon`.
        epsilon: FVE that quantisation may cost the worst of them.

    Returns: the FVE, and the description lengths; None, at the end, for SAEs that don't reach it.

    Raises:
        SaescopeError: there are no SAEs, their rows differ, or none reaches the FVE.
    """
    if not encoded:
        raise SaescopeError("Description length: there is no SAE to compare.")
    if len({(len(e.target), e.variance) for e in encoded.values()}) > 1:
        raise SaescopeError("Description length: the SAEs have different rows, so their bits can't be compared.")
    reached = {name: e.fve for name, e in encoded.items()}
    level = min(reached.values()) - epsilon if fve is None else fve
    if not any(level < one for one in reached.values()):
        raise SaescopeError(
            f"Description length: no SAE of the sweep reaches FVE {level:.4f}; the best has {max(reached.values()):.4f}. "
            "Give a lower --fve."
        )
    found = {name: e.within(level) if level < e.fve else None for name, e in encoded.items()}
    return level, dict(sorted(found.items(), key=lambda item: math.inf if item[1] is None else item[1].bits))


def coarsest(keeps: Callable[[float], bool], start: float) -> float:
    """The coarsest step that satisfies `keeps`, to 1 %: halve from `start`, then bisect the logarithm.

    Raises:
        SaescopeError: no step does within 40 halvings.
    """
    good = start
    while not keeps(good):
        good /= 2
        if good < start / 2**_HALVINGS:
            raise SaescopeError(
                "Description length: no quantisation step keeps the requested FVE; allow a larger loss."
            )
    if good == start:
        return start
    bad = 2 * good
    for _ in range(_BISECTIONS):
        middle = math.sqrt(good * bad)
        good, bad = (middle, bad) if keeps(middle) else (good, middle)
    return good


def _check(sae: Coder, rows: Tensor, target: Tensor) -> None:
    """Check shapes and values.

    Raises:
        SaescopeError: wrong shapes, non-finite values, or no rows.
    """
    d_in = sae.d_in if isinstance(sae, SAE) else rows.shape[-1]
    for name, given, d in (("rows", rows, d_in), ("target", target, sae.W_dec.shape[1])):
        if given.ndim != 2 or given.shape[1] != d:
            raise SaescopeError(
                f"Description length: the {name} have shape {list(given.shape)}, but the SAE needs [n_rows, {d}]."
            )
        if not bool(given.isfinite().all()):
            raise SaescopeError(f"Description length: the {name} contain NaN or infinite values; leave those rows out.")
    if len(rows) != len(target) or len(rows) == 0:
        raise SaescopeError(
            f"Description length: {len(rows)} rows and {len(target)} targets; give the same number of both, at least one."
        )
