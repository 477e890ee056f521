"""SHIFT: planted texts, effects on a probe against ablation, judging, and a model whose spurious features are known."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from analysis.circuits.model import CircuitModel
from analysis.circuits.selftest.wiring import Wiring
from analysis.circuits.shift.effects import Candidate, by_site, largest, probe_effects
from analysis.circuits.shift.judge import FIELDS, activations, giveaway_shares, read_sheet, top_tokens, write_sheet
from analysis.circuits.shift.planted import planted
from analysis.circuits.shift.probe import accuracy, fit, means
from analysis.circuits.shift.shift import Sets, shift
from analysis.circuits.shift.texts import Labelled, Text, labelled
from sae.errors import SaescopeError
from tests.analysis.circuits.attribution.cases import native, plain_sae
from training.model.language_model import Model
from training.site import Site

HOOK = "blocks.1.hook_resid_post"
SITES = tuple(Site(input=hook) for hook in ("blocks.0.hook_resid_post", HOOK))


# -- texts -------------------------------------------------------------------------------------------------------------


def test_planted_texts() -> None:
    found = planted(80, 40, seed=3)
    assert planted(80, 40, seed=3) == found != planted(80, 40, seed=4)
    assert all(one.intended == one.spurious for one in found.biased)
    for some, n in ((found.balanced, 20), (found.test, 10)):
        groups = [(one.intended, one.spurious) for one in some]
        assert {groups.count((a, b)) for a in (False, True) for b in (False, True)} == {n}
    people = [{words(one)[0] for one in some if words(one)[0][0].isupper()} for some in (found.balanced, found.test)]
    assert len(people[0]) > 15 and not people[0] & people[1]
    excerpts = [{one.text.partition("\n")[2] for one in some} for some in (found.biased, found.test)]
    assert not excerpts[0] & excerpts[1]
    one = next(one for one in found.test if "she" in words(one))
    assert set(words(one)) & {"she", "her"} and one.spurious
    assert " she" not in one.without_giveaways().text.partition("\n")[0]


def words(one: Text) -> list[str]:
    return [one.text[first:end] for first, end in one.giveaways]


def test_tokens_of_texts_are_marked() -> None:
    model = native(1)
    found = labelled([Text("Mary did it, she did.", True, True, ((0, 4), (13, 16)))], model, 20)
    assert found.tokens[0, 0] == model.bos_id and not found.keep[0, 0] and bool(found.keep[0, 1:].all())
    assert model.tokenizer.decode(found.tokens[0][found.giveaway[0]]) == "Maryshe"
    with pytest.raises(SaescopeError, match=r"22 tokens.* 50 "):
        labelled([Text("Mary did it, she did.", True, True)], model, 50)


# -- effects -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return native(2)


@pytest.fixture(scope="module")
def circuit(model: Model) -> CircuitModel:
    return CircuitModel(model, {site: plain_sae(model, site.input, i) for i, site in enumerate(SITES)})


@pytest.fixture(scope="module")
def data(model: Model) -> Labelled:
    texts = planted(24, 4, seed=0).balanced
    return labelled(texts, model, 40)


def test_effects_are_those_of_ablation(circuit: CircuitModel, data: Labelled) -> None:
    """At the probe's own hook exactly; one site earlier nearly, and the more so the more steps."""
    rows = means(circuit.model, HOOK, data)
    probe = fit(HOOK, rows, data.intended)
    sign = torch.where(data.intended, 1.0, -1.0)

    def exact(one: Candidate) -> float:
        off = means(circuit.model, HOOK, data, (circuit, {one.site: [one.feature]}))
        return float(((probe.logits(off) - probe.logits(rows)) * sign).mean())

    effects = probe_effects(circuit, probe, data, data.intended, n_steps=8)
    for site, close in zip(SITES[::-1], (1e-9, 0.35), strict=True):
        some = largest({site: effects[site]}, 12)
        ablated = np.array([exact(one) for one in some])
        estimated = np.array([one.effect for one in some])
        assert np.abs(ablated - estimated).sum() <= close * np.abs(ablated).sum()
        assert np.corrcoef(ablated, estimated)[0, 1] > 0.9
    every = largest(effects, 10_000)
    assert [abs(one.effect) for one in every] == sorted((abs(one.effect) for one in every), reverse=True)
    assert {len(some) for some in by_site(every).values()} <= set(range(1, 49))
    flipped = probe_effects(circuit, probe, data, ~data.intended, n_steps=8)
    torch.testing.assert_close(flipped[SITES[1]], -effects[SITES[1]])


# -- judging -----------------------------------------------------------------------------------------------------------


def test_where_features_fire(circuit: CircuitModel, data: Labelled) -> None:
    candidates = [Candidate(SITES[0], 3, 0.1), Candidate(SITES[1], 5, -0.2), Candidate(SITES[0], 1, 0.3)]
    acts = activations(circuit, data, candidates, HOOK)
    states, _ = circuit.states(data.tokens, data.keep)
    for one, found in zip(candidates, acts, strict=True):
        dense = torch.zeros(data.keep.shape, dtype=torch.float64)
        dense[data.keep] = states[one.site].code.to_dense()[:, one.feature]
        torch.testing.assert_close(found, dense.abs().float())
    shares = giveaway_shares(acts, data.giveaway)
    assert float(shares[0]) == pytest.approx(float(acts[0][data.giveaway].sum() / acts[0].sum()))
    tokens = top_tokens(acts[0], data.tokens, circuit.model.tokenizer.decode, 3)
    assert len(tokens) == 3


def test_a_sheet_is_filled_in_and_read(tmp_path: Path) -> None:
    candidates = [Candidate(SITES[0], 3, 0.1), Candidate(SITES[1], 5, -0.2)]
    path = tmp_path / "sheet.csv"
    write_sheet(path, candidates, [["a", "b"], ["\n", '"']])
    text = path.read_text()
    assert text.splitlines()[0] == ",".join(FIELDS)
    with pytest.raises(SaescopeError, match="line 2"):
        read_sheet(path, candidates)
    path.write_text(f"site,feature,effect,tokens,spurious\n{SITES[0].output},3,,,no\n{SITES[1].output},5,,,Yes\n")
    assert read_sheet(path, candidates) == candidates[1:]
    path.write_text(f"site,feature,effect,tokens,spurious\n{SITES[0].output},3,,,no\n")
    with pytest.raises(SaescopeError, match="feature 5"):
        read_sheet(path, candidates)
    for bad in (b"\xff\xfe\x00", b"site,feature,spurious\nx,y,yes\n", b"site,feature,spurious\nx,3,maybe\n"):
        path.write_bytes(bad)
        with pytest.raises(SaescopeError):
            read_sheet(path, candidates)
    with pytest.raises(SaescopeError):
        read_sheet(tmp_path / "none.csv", candidates)


# -- the whole ---------------------------------------------------------------------------------------------------------


def wired() -> CircuitModel:
    """Letters a and b tell the intended label, x and y the spurious one; each has an axis and a feature."""
    wiring = Wiring(["a", "b", "x", "y", "."], n_layers=1)
    for name in wiring.names:
        wiring.token(name, **{name: 1})
    return CircuitModel(wiring.model("shift"), {Site(input="blocks.0.hook_resid_post"): wiring.dictionary()})


def texts(n: int, seed: int, *, biased: bool) -> list[Text]:
    """The spurious letter always three times, the intended one at random more often than the other."""
    rng = Random(seed)
    found = []
    for i in range(n):
        intended = bool(i % 2)
        spurious = intended if biased else bool(i // 2 % 2)
        right = rng.randint(2, 5)
        letters = ["ba"[intended]] * right + ["ab"[intended]] * rng.randint(0, right - 1)
        found.append(Text("yx"[spurious] * 3 + "".join(letters).ljust(9, "."), intended, spurious, ((0, 3),)))
    return found


def test_switching_the_spurious_features_off_mends_the_probe() -> None:
    circuit = wired()
    biased, balanced, test = texts(200, 0, biased=True), texts(200, 1, biased=False), texts(200, 2, biased=False)
    bare = [[one.without_giveaways() for one in some] for some in (biased, test)]
    read = {name: labelled(some, circuit.model, n) for name, some, n in (
        ("biased", biased, 13), ("balanced", balanced, 13), ("test", test, 13), ("a", bare[0], 10), ("b", bare[1], 10))}
    sets = Sets(read["biased"], read["balanced"], read["test"], (read["a"], read["b"]))

    def judge(candidates):
        acts = activations(circuit, sets.test, candidates, "blocks.0.hook_resid_post")
        shares = giveaway_shares(acts, sets.test.giveaway).tolist()
        return [one for one, share in zip(candidates, shares, strict=True) if share > 0.5]

    found = shift(circuit, "blocks.0.hook_resid_post", sets, judge, n_candidates=4, n_effect_texts=100, n_steps=1, c=0.05)
    assert {one.feature for one in found.candidates} == {0, 1, 2, 3} and {one.feature for one in found.judged} == {2, 3}
    rows = {row["method"]: row for row in found.rows}
    assert rows["original"]["worst_group"] < 0.3 and rows["original"]["spurious"] > 0.8
    for name in ("SHIFT, retrained", "feature skyline, retrained", "neuron skyline, retrained", "oracle"):
        assert rows[name]["worst_group"] > 0.9 and abs(rows[name]["spurious"] - 0.5) < 0.1, name
    assert rows["SHIFT"]["worst_group"] > 0.9
    assert rows["giveaways deleted, retrained"]["worst_group"] > 0.9
    assert rows["SHIFT"]["n_off"] == rows["feature skyline"]["n_off"] == rows["random features"]["n_off"] == 2


def test_accuracies_by_hand() -> None:
    circuit = wired()
    groups = [(True, True), (True, False), (False, True), (False, False)]
    four = [Text("aaa" if spurious else "bbb", intended, spurious) for intended, spurious in groups]
    data = labelled(four, circuit.model, 4)
    rows = means(circuit.model, "blocks.0.hook_resid_post", data)
    probe = fit("blocks.0.hook_resid_post", rows, data.spurious)
    found = accuracy(probe, rows, data)
    assert (found.intended, found.spurious, found.worst_group) == (0.5, 1.0, 0.0)
