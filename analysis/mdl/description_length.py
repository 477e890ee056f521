"""The description length of a trained SAE's codes, in bits per row (Ayonrinde, Pearce & Sharkey 2410.11179).

A code is sent with its values rounded to whole multiples q of a step Δ, one step for all features: decoder rows have
unit norm, so that the same step costs each the same error. What is rounded to 0 is not sent. With p_i the share of rows
in which feature i is sent:

    bound    L0 · (B + log2 d_sae)                              each feature by its number, its value in B flat bits
    bits     Σ_i [H_b(p_i) + p_i · H(q_i | q_i ≠ 0)]            the entropy code, features apart: Σ_i H(q_i)
    adaptive the same code without anybody telling the frequencies: they are counted while decoding, from one half
             each (Krichevsky & Trofimov 1981), a value's over all levels that occur in the whole code

Δ is the coarsest step that costs at most ε of the target's variance, or that keeps a given FVE: the equal distortion at
which SAEs are compared. Where the paper is silent: one Δ for all features, found by halving and then bisection of its
logarithm to 1 % (the error need not grow with every step, and a coarser one that happens to keep it is not looked for);
B = log2 of the number of levels between the least and the largest value; the number of features of a row is not charged
to the bound. Signs are part of q. Frequencies are those of the measured rows, so that `bits` is low by about
(levels − 1) / (2 n_rows ln 2) per feature; `adaptive` errs to the other side. The decoder is taken as given, as in the
paper; `decoder_bits` says what sending it would cost.
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
    """What the codes of some rows take to send; bits are per row."""

    bits: float
    """The entropy code: support + values."""
    support: float
    """Σ_i H_b(p_i): which features are active."""
    values: float
    """Σ_i p_i H(q_i | q_i ≠ 0): how long they are."""
    adaptive: float
    """The entropy code whose frequencies are counted while decoding."""
    bound: float
    """L0 · (value_bits + log2 d_sae)."""
    value_bits: float
    """B: log2 of the levels a value may have."""
    step: float
    """Δ, in the model's units; 0 if nothing needs to be sent."""
    l0: float
    """Features sent per row."""
    n_features: int
    """Features sent in some row."""
    fve: float
    """Of the target, with exact values."""
    fve_quantised: float
    """Of the target, with quantised values."""
    n_rows: int


@dataclass(frozen=True)
class Levels:
    """A quantised code: how often each feature has each level, over `n_rows` rows. Level 0 is not stored."""

    feature: Int64[Tensor, " n"]
    level: Int64[Tensor, " n"]
    count: Int64[Tensor, " n"]
    n_rows: int
    d_sae: int

    @property
    def sent(self) -> Float[Tensor, " d_sae"]:
        """In how many rows each feature is active."""
        return torch.zeros(self.d_sae, dtype=torch.float64).index_add_(0, self.feature, self.count.double())

    @property
    def n_levels(self) -> int:
        """Levels from the least to the largest of all, 0 left out."""
        if not len(self.level):
            return 0
        low, high = int(self.level.min()), int(self.level.max())
        return high - low + (0 if low < 0 < high else 1)


def quantise(code: SparseCode, step: float) -> SparseCode:
    """Values rounded to whole multiples of `step`, halves to the even one; zeros stay stored."""
    return replace(code, value=((code.value.double() / step).round() * step).to(code.value.dtype))


def count_levels(codes: list[SparseCode], step: float) -> Levels:
    """The levels of some codes over the same features."""
    assert codes, "at least one code"
    feature = torch.cat([code.feature.long() for code in codes]).cpu()
    level = torch.cat([(code.value.double() / step).round().long() for code in codes]).cpu()
    feature, level = feature[level != 0], level[level != 0]
    low = int(level.min()) if len(level) else 0
    span = int(level.max()) - low + 1 if len(level) else 1
    keys, count = _counted(feature * span + (level - low), codes[0].d_sae * span)
    return Levels(keys // span, keys % span + low, count, sum(code.n_rows for code in codes), codes[0].d_sae)


def _counted(keys: Int64[Tensor, " n"], n_keys: int) -> tuple[Int64[Tensor, " n_found"], Int64[Tensor, " n_found"]]:
    """Which of the numbers below `n_keys` occur, ascending, and how often; no sorting where a table is small enough."""
    if n_keys > 1 << 24:
        found, count = torch.unique(keys, return_counts=True)
        return found, count
    table = torch.bincount(keys, minlength=n_keys)
    found = table.nonzero().squeeze(-1)
    return found, table[found]


def support_bits(levels: Levels) -> float:
    """Σ_i H_b(p_i), per row."""
    p = levels.sent / levels.n_rows
    return float(-(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum()) / math.log(2)


def values_bits(levels: Levels) -> float:
    """Σ_i p_i H(q_i | q_i ≠ 0), per row."""
    count = levels.count.double()
    return float((count * (levels.sent[levels.feature] / count).log2()).sum()) / levels.n_rows


def entropy(levels: Levels) -> float:
    """The entropy code: support and values, per row."""
    return support_bits(levels) + values_bits(levels)


def row_bits(codes: list[SparseCode], step: float) -> Float[Tensor, " n_rows"]:
    """What each row takes to send under the frequencies of all: their mean is the entropy code's `bits`."""
    levels = count_levels(codes, step)
    p = levels.sent / levels.n_rows
    silent = -torch.log2(1 - p).nan_to_num(neginf=0.0)  # a feature that is always sent is never told not to be
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
    """The code whose frequencies are counted while decoding, per row.

    Of each feature first whether it is active, row by row, then its level among `n_levels`: a symbol seen c times
    among n of an alphabet of A has probability (c + 1/2) / (n + A/2).
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
    """What the decoder of `n_features` features takes to send once, at `weight_bits` a weight, bias included."""
    return (n_features + 1) * d_out * weight_bits


class Encoded:
    """The codes of an SAE over some rows, ready to be quantised with any step."""

    def __init__(
        self, sae: Coder, rows: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_targets d_out"] | None = None,
        codes: list[SparseCode] | None = None,
    ) -> None:
        """`rows` and `target` raw; the target of an SAE is its input. `codes` are those of the rows, where they are known.

        Raises:
            SaescopeError: shapes do not fit, no rows, numbers that are not finite, or a constant target.
        """
        self.sae, self.target = sae, rows if target is None else target
        _check(sae, rows, self.target)
        centred = self.target.double() - self.target.double().mean(0)
        self.variance = float(centred.square().sum())
        if not self.variance > 0:
            raise SaescopeError(
                f"Description length: all {len(rows)} rows are the same, so no share of their variance can be "
                "explained; give more rows."
            )
        device = sae.W_dec.device
        self.codes = codes or [sae.encode(chunk.to(device)) for chunk in rows.split(CHUNK_ROWS)]
        self._errors: dict[float, float] = {}
        self.error = self._error(None)

    @property
    def fve(self) -> float:
        """With exact values."""
        return 1 - self.error / self.variance

    def fve_at(self, step: float) -> float:
        """With values quantised by `step`."""
        # one search after another asks for the same steps
        if step not in self._errors:
            self._errors[step] = self._error(step)
        return 1 - self._errors[step] / self.variance

    def within(self, fve: float) -> DescriptionLength:
        """At the coarsest step that keeps this FVE.

        Raises:
            SaescopeError: the SAE does not reach it with exact values, or no step does.
        """
        if not fve < self.fve:
            raise SaescopeError(
                f"Description length: an FVE of {fve:.4f} was asked for, and the SAE has {self.fve:.4f} with exact "
                "values; ask for less."
            )
        # four times the largest rounds everything away
        step = coarsest(lambda step: self.fve_at(step) >= fve, 4 * self.largest) if self.largest else 0.0
        return self.at(step)

    def within_bits(self, budget: float) -> float:
        """The finest step, to 1 %, whose entropy code takes `budget` bits a row at most; 0 where nothing is active."""
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
        """The largest |value|; 0 where nothing is active."""
        return max((float(code.value.abs().max()) for code in self.codes if code.value.numel()), default=0.0)

    def at(self, step: float) -> DescriptionLength:
        """With this step; 0 is for codes in which nothing is active."""
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
    """The description length of any trained SAE on held-out rows.

    Args:
        sae: any variant, signed ones included.
        rows: raw inputs, which the SAE should not have been trained on.
        target: what it reconstructs; None for an SAE, which reconstructs its input.
        epsilon: share of the target's variance that quantisation may cost.
        fve: the FVE that must be kept, instead of `epsilon`.

    Raises:
        SaescopeError: the rows do not fit, epsilon is not a positive share, or the FVE is out of reach.
    """
    if fve is None and not 0 < epsilon <= 1:
        raise SaescopeError(f"Description length: epsilon = {epsilon:g} is not a share of the variance; give 0 < ε ≤ 1.")
    encoded = Encoded(sae, rows, target)
    return encoded.within(encoded.fve - epsilon if fve is None else fve)


def compare(
    encoded: Mapping[str, Encoded], fve: float | None = None, epsilon: float = EPSILON
) -> tuple[float, dict[str, DescriptionLength | None]]:
    """The SAEs of a sweep at one distortion: that FVE, and each one's description length at it, the least first.

    Args:
        encoded: by name, all over the same rows.
        fve: the FVE that each must keep; None for what all can: the lowest of theirs less `epsilon`.
        epsilon: share of the variance that quantisation may cost the worst of them.

    Returns: the FVE and the description lengths; None, at the end, for an SAE that does not reach it.

    Raises:
        SaescopeError: there is none, their rows differ, or none reaches the FVE.
    """
    if not encoded:
        raise SaescopeError("Description length: there is no SAE to select from.")
    if len({(len(e.target), e.variance) for e in encoded.values()}) > 1:
        raise SaescopeError("Description length: the SAEs were measured on different rows, so their bits do not compare.")
    reached = {name: e.fve for name, e in encoded.items()}
    level = min(reached.values()) - epsilon if fve is None else fve
    if not any(level < one for one in reached.values()):
        raise SaescopeError(
            f"Description length: no SAE of the sweep reaches FVE {level:.4f}, the best has {max(reached.values()):.4f}; "
            "ask for less."
        )
    found = {name: e.within(level) if level < e.fve else None for name, e in encoded.items()}
    return level, dict(sorted(found.items(), key=lambda item: math.inf if item[1] is None else item[1].bits))


def coarsest(keeps: Callable[[float], bool], start: float) -> float:
    """The coarsest step that `keeps` what it must, to 1 %: halved from `start`, then bisected by its logarithm.

    Raises:
        SaescopeError: none does within 40 halvings.
    """
    good = start
    while not keeps(good):
        good /= 2
        if good < start / 2**_HALVINGS:
            raise SaescopeError(
                "Description length: no quantisation step keeps the distortion asked for; allow more than rounding costs."
            )
    if good == start:
        return start
    bad = 2 * good
    for _ in range(_BISECTIONS):
        middle = math.sqrt(good * bad)
        good, bad = (middle, bad) if keeps(middle) else (good, middle)
    return good


def _check(sae: Coder, rows: Tensor, target: Tensor) -> None:
    """Refuse what cannot be measured."""
    d_in = sae.d_in if isinstance(sae, SAE) else rows.shape[-1]
    for name, given, d in (("rows", rows, d_in), ("target", target, sae.W_dec.shape[1])):
        if given.ndim != 2 or given.shape[1] != d:
            raise SaescopeError(
                f"Description length: the {name} have shape {list(given.shape)} where the SAE asks for [n_rows, {d}]."
            )
        if not bool(given.isfinite().all()):
            raise SaescopeError(f"Description length: the {name} hold NaN or infinite values; leave those rows out.")
    if len(rows) != len(target) or len(rows) == 0:
        raise SaescopeError(
            f"Description length: {len(rows)} rows and {len(target)} targets; give as many of both, at least one."
        )
