"""Description length against hand-built codes, a count over every symbol, and a coder that decodes."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch

from analysis.mdl.description_length import (
    Encoded,
    Levels,
    adaptive_bits,
    coarsest,
    compare,
    count_levels,
    decoder_bits,
    description_length,
    support_bits,
    values_bits,
)
from sae.base import Transform
from sae.code import from_dense
from sae.errors import SaescopeError
from sae.variants import VARIANTS
from tests.sae.variants.test_variants import ALL, D_IN, make, no_dead, rows

STEP = 0.25


def levels_of(dense: list[list[int]]) -> Levels:
    return count_levels([from_dense(STEP * torch.tensor(dense, dtype=torch.float64))], STEP)


def random_levels(seed: int = 0, n: int = 40, d: int = 5) -> list[list[int]]:
    """Signed, with features of different density, the last never active."""
    g = torch.Generator().manual_seed(seed)
    active = torch.rand(n, d, generator=g) < torch.linspace(0.8, 0, d)
    return (active * torch.randint(-2, 4, (n, d), generator=g)).tolist()


def exact(sae_variant: str = "topk", n: int = 3000, d: int = 12, k: int = 4):
    """An SAE whose decoder is orthonormal, over rows that it reconstructs exactly."""
    cls, config = VARIANTS[sae_variant]
    sae = cls(config.model_validate({"d_sae": d, "k": k}), d).double()
    sae.W_dec.data.copy_(torch.eye(d))
    sae.W_enc.data.copy_(torch.eye(d))
    g = torch.Generator().manual_seed(0)
    kept = torch.rand(n, d, generator=g).argsort(1) < k
    values = -torch.rand(n, d, generator=g, dtype=torch.float64).log() + 0.1
    if "abs" in sae_variant:
        values *= 1 - 2 * (torch.rand(n, d, generator=g) < 0.5).double()
    return sae, kept * values


def test_codes_made_by_hand() -> None:
    # on in half of the rows with two values; always the same value; never
    levels = levels_of([[1, 3, 0], [0, 3, 0], [2, 3, 0], [0, 3, 0]])
    assert (support_bits(levels), values_bits(levels)) == (1.0, 0.5)
    assert levels.n_levels == 3
    # both signs of one length are two symbols
    signed = levels_of([[1], [-1], [1], [-1]])
    assert (support_bits(signed), values_bits(signed), signed.n_levels) == (0.0, 1.0, 2)
    nothing = levels_of([[0, 0], [0, 0]])
    assert (support_bits(nothing), values_bits(nothing), nothing.n_levels) == (0.0, 0.0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_the_entropy_code_is_the_information_of_every_symbol(seed: int) -> None:
    """−log2 of the frequency of each entry of the matrix, zeros included, one by one."""
    dense = random_levels(seed)
    columns = list(zip(*dense, strict=True))
    counts = [Counter(column) for column in columns]
    brute = -sum(math.log2(counts[f][q] / len(dense)) for row in dense for f, q in enumerate(row))
    levels = levels_of(dense)
    assert support_bits(levels) + values_bits(levels) == pytest.approx(brute / len(dense), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_an_arithmetic_coder_needs_that_many_bits_and_decodes(seed: int) -> None:
    """Exact rationals: an interval narrowed symbol by symbol, sent as the shortest binary fraction within."""
    dense = random_levels(seed)
    n, d = len(dense), len(dense[0])
    counts = [Counter(column) for column in zip(*dense, strict=True)]
    low, width = Fraction(0), Fraction(1)
    for row in dense:
        for f, q in enumerate(row):
            below = sum(c for symbol, c in counts[f].items() if symbol < q)
            low, width = low + width * Fraction(below, n), width * Fraction(counts[f][q], n)
    n_bits = 0
    while -(-low * 2**n_bits // 1) / Fraction(2**n_bits) >= low + width:
        n_bits += 1
    sent = -(-low * 2**n_bits // 1) / Fraction(2**n_bits)

    decoded, rest = [], sent
    for _ in range(n):
        row = []
        for f in range(d):
            below = 0
            for symbol in sorted(counts[f]):
                if rest < Fraction(below + counts[f][symbol], n):
                    rest = (rest - Fraction(below, n)) / Fraction(counts[f][symbol], n)
                    row.append(symbol)
                    break
                below += counts[f][symbol]
        decoded.append(row)
    assert decoded == dense
    levels = levels_of(dense)
    total = n * (support_bits(levels) + values_bits(levels))
    assert -1 <= n_bits - total <= 2


@pytest.mark.parametrize("seed", range(3))
def test_the_adaptive_code_is_that_of_a_coder_that_counts(seed: int) -> None:
    dense = random_levels(seed)
    levels = levels_of(dense)
    bits = 0.0
    for column in zip(*dense, strict=True):
        on, seen, n_seen = 0, Counter[int](), 0
        for r, q in enumerate(column):
            bits -= math.log2(((on if q else r - on) + 0.5) / (r + 1))
            if q:
                bits -= math.log2((seen[q] + 0.5) / (n_seen + levels.n_levels / 2))
                seen[q] += 1
                on, n_seen = on + 1, n_seen + 1
    assert adaptive_bits(levels) == pytest.approx(bits / len(dense), abs=1e-12)
    assert adaptive_bits(levels) > support_bits(levels) + values_bits(levels)


@pytest.mark.parametrize("variant", ["topk", "abstopk"])
def test_the_step_is_the_coarsest_that_keeps_the_loss(variant: str) -> None:
    sae, x = exact(variant)
    found = description_length(sae, x, epsilon=0.01)
    encoded = Encoded(sae, x)
    assert encoded.fve == pytest.approx(1)
    assert found.fve_quantised >= found.fve - 0.01 > encoded.fve_at(1.02 * found.step)
    # every coarser step on a fine grid fails
    grid = [found.step * 1.02 * 1.01**i for i in range(300)]
    assert not any(encoded.fve_at(step) >= found.fve - 0.01 for step in grid)


def test_fine_steps_follow_theory() -> None:
    """Error Δ²/12 per value; half the step costs one bit more per value, in all three codes."""
    sae, x = exact(n=40_000)
    encoded = Encoded(sae, x)
    step = 0.04
    fine, finer = encoded.at(step), encoded.at(step / 2)
    assert encoded._error(step) / len(x) == pytest.approx(4 * step**2 / 12, rel=0.02)
    assert fine.l0 == finer.l0 == 4
    assert finer.values - fine.values == pytest.approx(4, rel=0.02)
    assert finer.bound - fine.bound == pytest.approx(4, rel=0.02)
    assert fine.support == pytest.approx(12 * (math.log2(3) - 2 / 3), rel=1e-3)
    # the differential entropy of an exponential of mean 1 is log2 e bits
    coarse = encoded.at(0.1)
    assert coarse.values / 4 == pytest.approx(math.log2(math.e / 0.1), rel=0.02)
    assert coarse.bits == coarse.support + coarse.values < coarse.adaptive < coarse.bound


def test_values_rounded_to_zero_are_not_sent() -> None:
    sae, x = exact()
    found = Encoded(sae, x).at(1.0)
    assert found.l0 == pytest.approx(float((x > 0.5).sum()) / len(x))


@pytest.mark.parametrize("variant", ALL)
def test_any_variant_and_any_unit(variant: str) -> None:
    """The same SAE over rows in other units, or with longer decoder rows, has the same description length."""
    sae = make(variant)
    sae.observe(sae.losses(rows(), rows(), no_dead(sae)))
    x = torch.randn(300, D_IN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    target = sae(x)
    found = description_length(sae, x, target, epsilon=0.02)
    assert found.fve_quantised >= found.fve - 0.02
    assert 0 < found.bits < found.adaptive and found.n_rows == 300

    scaled = make(variant)
    scaled.load_state_dict(sae.state_dict())
    scaled.input, scaled.target = (Transform(torch.zeros(D_IN), torch.tensor(0.125)).double() for _ in range(2))
    other = description_length(scaled.normalised() if variant == "relu" else scaled, 8 * x, 8 * target, epsilon=0.02)
    assert other.bits == pytest.approx(found.bits) and other.step == pytest.approx(8 * found.step)


@pytest.mark.parametrize("variant", ALL)
def test_everything_against_its_definition_in_dense_fp64(variant: str) -> None:
    """Codes as a matrix, decoded by a product; entropies from the counts of every column's symbols."""
    sae = make(variant)
    sae.observe(sae.losses(rows(), rows(), no_dead(sae)))
    x = 1.5 * torch.randn(200, D_IN, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    codes = sae.encode(x).to_dense().numpy()
    directions = (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)).detach().numpy()
    for step in (0.02, 0.3):
        levels = np.rint(codes / step).astype(int)
        error = ((x.numpy() - sae.bias().detach().numpy() - step * levels @ directions) ** 2).sum()
        bits = support = 0.0
        for column in levels.T:
            _, counts = np.unique(column, return_counts=True)
            bits -= (counts / 200 * np.log2(counts / 200)).sum()
            off = (column == 0).mean()
            support -= sum(p * math.log2(p) for p in (off, 1 - off) if p)
        found, sent = Encoded(sae, x).at(step), levels[levels != 0]
        assert found.bits == pytest.approx(bits, abs=1e-9) and found.support == pytest.approx(support, abs=1e-9)
        assert found.fve_quantised == pytest.approx(1 - error / ((x - x.mean(0)) ** 2).sum().item(), abs=1e-9)
        assert found.l0 == len(sent) / 200 and found.n_features == int((levels != 0).any(0).sum())
        low, high = (sent.min(), sent.max()) if len(sent) else (0, 0)
        flat = math.log2(max(1, high - low + (0 if low < 0 < high else 1)))
        assert found.bound == pytest.approx(len(sent) / 200 * (flat + math.log2(codes.shape[1])))


def test_a_transcoder_is_measured_on_its_target() -> None:
    sae, x = make("topk", d_out=4), rows()
    target = sae(x) + 0.1 * rows(4)
    found = description_length(sae, x, target, epsilon=0.05)
    assert found.fve > 0.9 and found.fve_quantised >= found.fve - 0.05
    with pytest.raises(SaescopeError, match=r"target have shape \[9, 6\], but the SAE needs \[n_rows, 4\]"):
        description_length(sae, x)


def test_the_least_at_equal_distortion() -> None:
    """Along its own directions a sum of four takes fewer bits than along others; of one feature there is not enough."""
    (lean, x), (turned, _), (blind, _) = exact(), exact("abstopk", k=12), exact(k=1)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(3)))[0].double()
    turned.W_dec.data.copy_(turn)
    turned.W_enc.data.copy_(turn.t())
    sae, seen = lean, x
    encoded = {name: Encoded(one, seen) for name, one in {"turned": turned, "lean": lean, "blind": blind}.items()}
    level, found = compare(encoded, fve=0.99)
    assert list(found) == ["lean", "turned", "blind"] and found["blind"] is None and level == 0.99
    lean_bits, turned_bits = (found[name].bits for name in ("lean", "turned"))  # type: ignore[union-attr]
    assert lean_bits < 0.7 * turned_bits
    assert compare(encoded, epsilon=0.01)[0] == pytest.approx(encoded["blind"].fve - 0.01)
    with pytest.raises(SaescopeError, match=r"no SAE of the sweep reaches FVE 1\.5000; the best has 1\.0000"):
        compare(encoded, fve=1.5)
    with pytest.raises(SaescopeError, match="different rows"):
        compare({**encoded, "other": Encoded(sae, seen[1:])})
    with pytest.raises(SaescopeError, match="no SAE to compare"):
        compare({})


def test_an_sae_in_which_nothing_is_active() -> None:
    sae, x = exact()
    sae.b_enc.data.fill_(-100)
    found = description_length(sae, x)
    assert (found.bits, found.bound, found.step, found.l0, found.n_features) == (0, 0, 0, 0, 0)


def test_what_sending_the_decoder_costs() -> None:
    assert decoder_bits(3, 10, weight_bits=16.0) == 4 * 10 * 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, "epsilon = 0 is not a share"),
        ({"epsilon": -1.0}, "epsilon = -1 is not a share"),
        ({"epsilon": 2.0}, "epsilon = 2 is not a share"),
        ({"fve": 0.9999}, r"an FVE of 0\.9999 was asked for, but the SAE has"),
        ({"rows": torch.zeros(5, D_IN).double()}, "all 5 rows are the same"),
        ({"rows": torch.zeros(0, D_IN).double()}, "0 rows and 0 targets"),
        ({"rows": torch.zeros(5, 3).double()}, r"rows have shape \[5, 3\], but the SAE needs \[n_rows, 6\]"),
        ({"target": rows()[1:]}, "9 rows and 8 targets"),
        ({"rows": rows().index_fill(0, torch.tensor([1]), math.nan)}, "rows contain NaN"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(change: dict, message: str) -> None:
    with pytest.raises(SaescopeError, match=message):
        description_length(make("topk"), **{"rows": rows(), **change})


def test_no_step_may_keep_it() -> None:
    with pytest.raises(SaescopeError, match="no quantisation step keeps the requested FVE"):
        coarsest(lambda step: False, 1.0)
    assert coarsest(lambda step: step <= 0.3, 10.0) == pytest.approx(0.3, rel=0.01)
    assert coarsest(lambda step: True, 10.0) == 10.0


def test_levels_are_counted_alike_with_a_table_and_by_sorting() -> None:
    code = from_dense(torch.randn(300, 7, generator=torch.Generator().manual_seed(0)) * 5)
    few, many = count_levels([code], 0.5), count_levels([code], 1e-6)
    level = (code.value.double() / 1e-6).round().long()
    want = Counter(zip(code.feature.tolist(), level.tolist(), strict=True))
    assert dict(zip(zip(many.feature.tolist(), many.level.tolist(), strict=True), many.count.tolist(), strict=True)) == want
    assert int(few.count.sum()) == int((code.value.double() / 0.5).round().count_nonzero())
    assert (many.feature.diff() >= 0).all() and (few.feature.diff() >= 0).all()
