"""Models whose circuit is known do what they are said to, by programs of their own; and estimators find their circuits."""

import json
from collections.abc import Callable
from itertools import product
from random import Random

import numpy as np
import pytest
import torch

from analysis.circuits.effects.nodes import node_effects
from analysis.circuits.nodes import OUTPUT
from analysis.circuits.selftest import compiled, planted
from analysis.circuits.selftest.boolean import boolean_two_hops
from analysis.circuits.selftest.compiled import compiled_induction
from analysis.circuits.selftest.known import Known, moving_features
from analysis.circuits.selftest.lookup import copy_head, two_hop_lookup
from analysis.circuits.selftest.planted import planted_dictionary
from analysis.circuits.selftest.table import auroc, edge_rows, node_rows, passed, shown
from analysis.circuits.tasks.tokens import encode

EXACT = {"copy-head": copy_head, "two-hop-lookup": two_hop_lookup, "boolean-two-hops": boolean_two_hops,
         "compiled-induction": compiled_induction}


@pytest.fixture(scope="module", params=EXACT)
def known(request: pytest.FixtureRequest) -> Known:
    return EXACT[request.param](6)


def answers(known: Known, prompts: list[str], among: str) -> list[str]:
    model = known.circuit.model
    tokens = [ids[-1] for ids in encode(model, among)]
    best = model.logits(torch.tensor(encode(model, prompts)))[:, -1, tokens].argmax(1)
    return [among[i] for i in best.tolist()]


def test_copying() -> None:
    random = Random(1)
    prompts, copied = [], []
    for _ in range(50):
        letters = random.choices("abcd", k=4)
        at = random.randrange(4)
        copied.append(letters[at])
        prompts.append("".join(x.upper() if i == at else x for i, x in enumerate(letters)) + "=")
    assert answers(copy_head(2), prompts, "abcd") == copied


def test_looking_up() -> None:
    tables = list(product("wxyz", repeat=4))[::5]
    prompts, found = [], []
    for i, table in enumerate(tables):
        pointer = i % 4
        entries = "".join(chr(ord("A") + 4 * key + "wxyz".index(x)) for key, x in enumerate(table))
        prompts.append(f"{'.,'[i % 2]}{pointer}{entries}=")
        found.append(table[pointer])
    assert answers(two_hop_lookup(2), prompts, "wxyz") == found


def test_logic() -> None:
    said = answers(boolean_two_hops(2), [chr(ord("A") + n) for n in range(32)], "01")
    assert said == [str(int(n & 7 == 7)) for n in range(32)]


def test_induction() -> None:
    known = compiled_induction(2)
    recorded = json.loads(compiled.WEIGHTS.read_text())["answers"]  # by tracr itself
    assert answers(known, list(recorded), "abcd") == list(recorded.values())
    prompts = [f"{a}{b}{c}{d}{asks}" for a, b, c, d in product("abcd", repeat=4) for asks in "abcd"
               if (a + b + c + d).count(asks) == 1 and d != asks]
    assert answers(known, prompts, "abcd") == [p[p.index(p[-1]) + 1] for p in prompts]


def test_true_nodes_are_those_that_exact_ablation_finds(known: Known) -> None:
    effects = node_effects(known.circuit, known.examples, known.task.metric, method="exact")
    large = abs(effects.values.toarray()) > 0.1
    found = [{effects.nodes.triples[i] for i in np.flatnonzero(row)} for row in large]
    assert found == [set(nodes) for nodes in known.nodes] and all(found)


def test_edges_join_true_nodes_and_indirect_pairs_are_none(known: Known) -> None:
    nodes = frozenset().union(*known.nodes)
    assert known.edges is not None and known.indirect and not known.edges & known.indirect
    assert {node for edge in known.edges for node in edge} == {*nodes, OUTPUT}


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)
def test_estimators_find_the_nodes(make: Callable[[int], Known]) -> None:
    known = make(12)
    rows = {row["estimator"]: row for row in node_rows(known)}
    assert passed(list(rows.values()))
    assert rows["exact"]["auroc"] == 1 and rows["exact"]["largest_gap"] == 0 and rows["ig"]["auroc"] >= 0.95
    if known.linear:
        assert all(row["largest_gap"] < 1e-12 for row in rows.values())
    else:
        assert rows["ig"]["correlation"] > max(rows["attribution"]["correlation"], rows["relp"]["correlation"])


@pytest.mark.parametrize("make", [copy_head, boolean_two_hops])
def test_edges_are_found_and_indirect_paths_are_not(make: Callable[[int], Known]) -> None:
    known = make(4)
    estimated, exact = edge_rows(known)
    assert passed([estimated]) and estimated["auroc"] >= 0.95 and exact["auroc"] == 1
    assert estimated["indirect"] == exact["indirect"] == 0 and exact["n_true"] == len(known.edges or ())
    if known.linear:
        assert estimated["largest_gap"] < 1e-12


def test_the_planted_model_cannot_read_half_of_the_features() -> None:
    known = planted_dictionary(8)
    (sae, _), model = known.circuit.saes.values(), known.circuit.model
    network = dict(model.bridge.original_model.named_parameters())
    readers = [p for name, p in network.items() if p.ndim == 2 and name.split(".")[-3] in ("q", "k", "v", "fc_in", "head")]
    assert len(readers) == 9
    read, unread = sae.W_dec.detach().split(planted._D_SAE // 2)
    for weight in readers:
        assert (weight @ unread.t()).norm() < 1e-12 * weight.norm() < 10 * (weight @ read.t()).norm()
    assert torch.allclose(sae.W_dec @ sae.W_dec.t(), torch.eye(planted._D_SAE).double())
    rows = node_rows(known)
    assert passed(rows) and all(row["auroc"] > 0.9 for row in rows)
    moving = moving_features(known.circuit, known.examples).values.nnz
    assert {row["n_true"] + row["n_others"] for row in rows} == {moving}
    assert len(shown(rows).splitlines()) == 5


def test_auroc_by_hand() -> None:
    rng = np.random.default_rng(0)
    size, true = rng.integers(-5, 6, 40).astype(float), rng.random(40) < 0.4
    a, b = abs(size[true])[:, None], abs(size[~true])[None]
    assert auroc(size, true) == pytest.approx(((a > b) + (a == b) / 2).mean())
    assert auroc(np.array([1.0, 1e-12, 0.0, 1e-15]), np.array([True, True, False, False])) == 0.75


def test_what_is_asked_for() -> None:
    assert passed([{"passed": True}, {"auroc": 0.1}]) and not passed([{"passed": True}, {"passed": False}])
