"""Terms of a prompt: they add up, doubling a vector moves its targets by them, and graphs are made of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.circuits.attribution.attribute import Limits, attribute, cost
from analysis.circuits.attribution.gap import frozen_gap
from analysis.circuits.attribution.linear import LinearPrompt, Target
from analysis.circuits.formats.circuit_tracer.reading import read_graph
from analysis.circuits.formats.circuit_tracer.writing import write_graph
from analysis.circuits.formats.store import read_circuit, save_circuit
from analysis.circuits.graph import Circuit
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import ERROR, SKIP
from sae.errors import SaescopeError
from tests.analysis.circuits.attribution.cases import (
    native,
    plain_sae,
    prompt,
    random_model,
    taken_apart,
    with_saes,
    with_transcoders,
)
from training.model.frozen import HELD, FrozenModel
from training.model.language_model import Model
from training.model.splice import SplicedModel
from training.site import Site

ALL = Limits(max_features=10_000, logit_share=0.999, max_logits=4)


@pytest.fixture(scope="module")
def model() -> Model:
    return native()


@pytest.fixture(scope="module")
def linear(model: Model) -> LinearPrompt:
    return taken_apart(with_transcoders(model, skip=True))


def some_targets(linear: LinearPrompt, n: int = 12) -> list[Target]:
    features = np.flatnonzero((linear.nodes.site > 0) & (linear.nodes.feature >= 0))
    return [linear.logit(5), *(linear.target(int(i)) for i in features[:: max(1, len(features) // n)])]


@pytest.mark.parametrize("skips", ["linear", "node"])
@pytest.mark.parametrize("skip", [False, True])
def test_doubling_a_vector_moves_every_target_by_its_entry(model: Model, skip: bool, skips: Any) -> None:
    """circuit-tracer's check, of the graph's own entries; BOS is an error node here."""
    linear = taken_apart(with_transcoders(model, skip=skip), skips=skips)
    graph = attribute(linear, ALL)
    n = len(graph.names)
    assert graph.n_active == int(graph.kinds.features.sum()) and (SKIP in graph.nodes.feature) == (skip and skips == "node")
    targets = [Target(int(s), int(p), int(f)) for s, p, f in graph.nodes.triples]
    rows = [i for i in range(n) if graph.kinds.features[i] or graph.kinds.logits[i]][::3]
    wanted = [targets[i] for i in rows]
    one = {site: leaf[None] for site, leaf in linear.leaves.items()}
    with torch.no_grad():
        before = linear.values(linear.run_of(one), wanted, torch.zeros(len(wanted), dtype=torch.long))
    seen = 0
    for i, (site, position, _) in list(enumerate(graph.nodes.triples))[::17]:
        if graph.kinds.logits[i]:
            continue
        leaves = {s: leaf.clone() for s, leaf in one.items()}
        place = np.flatnonzero((linear.nodes.site == site) & (linear.nodes.position == position))
        which = place[[linear.nodes.feature[k] for k in place].index(graph.nodes.feature[i])]
        first = np.flatnonzero(linear.nodes.site == site)[0]
        leaves[linear.sites[site]][0, position] += linear._vectors[linear.sites[site]].vector[which - first]
        with torch.no_grad():
            after = linear.values(linear.run_of(leaves), wanted, torch.zeros(len(wanted), dtype=torch.long))
        np.testing.assert_allclose((after - before).numpy(), graph.adjacency[rows, i], rtol=1e-5, atol=2e-6)
        seen += 1
    assert seen > 8 and np.abs(graph.adjacency[rows]).max() > 0.1


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_terms_add_up_where_nothing_has_a_bias(name: str, tmp_path: Path) -> None:
    """RMSNorm, gated MLPs followed by their neurons, grouped queries, rotary positions; norms compute in fp32."""
    linear = taken_apart(with_saes(random_model(tmp_path, name)), prompt(bos=None))
    assert linear.mlps == "neurons"
    targets = some_targets(linear)
    edges, values = linear.edges(targets)
    assert np.abs(values).min() > 1e-3
    np.testing.assert_allclose(edges.sum(1), values, atol=1e-4 * np.abs(values).max())
    # features at MLP outputs have inputs although no transcoder says which
    site = next(i for i, site in enumerate(linear.sites) if site.output == "blocks.1.hook_mlp_out")
    mlp = [i for i, target in enumerate(targets) if target.site == site]
    assert mlp and (np.abs(edges[mlp]).sum(1) > 0.1).all()


def test_values_are_the_models_own(linear: LinearPrompt) -> None:
    targets = some_targets(linear, 30)
    _, values = linear.edges(targets)
    acts = {(t.site, t.position, t.column): v for t, v in zip(targets, values, strict=True)}
    for i, triple in enumerate(linear.nodes.triples):
        if triple in acts:
            assert acts[triple] == pytest.approx(linear.value[i], rel=1e-9)
    logits = linear.circuit.model.logits(linear.tokens[None])[0, -1]
    assert acts[len(linear.sites), 6, 5] == pytest.approx(float(logits[5] - logits.mean()), rel=1e-9)


def test_special_tokens_and_bare_mlps_are_errors(model: Model) -> None:
    circuit = with_transcoders(model)
    kept = {site: sae for site, sae in circuit.saes.items() if "blocks.1." not in site.output}
    linear = taken_apart(CircuitModel(model, kept))
    bare = next(i for i, site in enumerate(linear.sites) if site.output == "blocks.1.hook_mlp_out")
    assert linear.infos[bare].name == "mlp-1" and not linear.infos[bare].sae
    assert set(linear.nodes.at(bare).feature.tolist()) == {ERROR} and len(linear.nodes.at(bare)) == 7
    assert not ((linear.nodes.position == 0) & (linear.nodes.feature >= 0) & (linear.nodes.site > 0)).any()
    graph = attribute(linear, ALL)
    assert np.abs(graph.adjacency[:, (graph.nodes.site == bare) & (graph.nodes.position == 6)]).sum() > 0.1
    np.testing.assert_allclose(graph.adjacency.sum(1) + graph.constant, np.where(
        graph.kinds.features | graph.kinds.logits, graph.value, 0), atol=1e-5)


def test_an_sae_of_the_token_vectors_is_refused(model: Model) -> None:
    site = Site(input="hook_embed")
    with pytest.raises(SaescopeError, match="hook_embed"):
        LinearPrompt(CircuitModel(model, {site: plain_sae(model, "hook_embed")}), prompt())


def test_total_effects_are_gradients_through_all_features(linear: LinearPrompt) -> None:
    """Of the spliced model in the linear forward, where features answer and errors do not: autograd's sum over paths."""
    graph = attribute(linear, ALL)
    effect = graph.total_effects()
    spliced = SplicedModel(linear.circuit.model, linear.circuit.saes)
    forward = FrozenModel.at(linear.circuit.model, linear.tokens[None], HELD)
    run = spliced.run(linear.tokens[None], keep=linear.keep[None], freeze=forward, upstream="features")
    top = int(graph.nodes.feature[int(graph.probability.argmax())])
    last = run.logits[0, -1]
    codes = [run.at[site].code.value for site in linear.circuit.sites]
    grads = torch.autograd.grad(last[top] - last.mean(), codes)
    seen = 0
    for site, values, grad in zip(linear.circuit.sites, codes, grads, strict=True):
        code = run.at[site].code
        for row, feature, part in zip(code.rows().tolist(), code.feature.tolist(), (values * grad).tolist(), strict=True):
            triple = (linear.sites.index(site), int(run.positions[row, 1]), feature)
            assert effect[graph.nodes.triples.index(triple)] == pytest.approx(part, rel=1e-4, abs=1e-6)
            seen += 1
    assert seen == graph.n_active > 50


def test_the_most_influential_features_become_nodes(linear: LinearPrompt) -> None:
    whole = attribute(linear, ALL)
    told: list[int] = []
    part = attribute(linear, Limits(max_features=20, logit_share=0.999, max_logits=4), update_every=1, progress=told.append)
    assert int(part.kinds.features.sum()) == 20 and sum(told) == 24 and part.n_active == whole.n_active
    place = {triple: i for i, triple in enumerate(whole.nodes.triples)}
    mine = [place[triple] for triple in part.nodes.triples]
    np.testing.assert_allclose(part.adjacency, whole.adjacency[np.ix_(mine, mine)], rtol=1e-4, atol=1e-6)
    features = whole.kinds.features
    reached = whole.influence()
    chosen = [place[triple] for triple, yes in zip(part.nodes.triples, part.kinds.features, strict=True) if yes]
    best = np.sort(reached[features])[-20:].sum()
    assert reached[chosen].sum() > 0.8 * best
    assert 0 < cost(linear).seconds < 600 and cost(linear).n_bytes > 1e6


@pytest.mark.parametrize("several", [False, True])
def test_a_graph_is_a_circuit_and_a_file_of_circuit_tracer(
    linear: LinearPrompt, several: bool, model: Model, tmp_path: Path
) -> None:
    """Also with several sites in one block, some of them MLPs without a dictionary."""
    linear = taken_apart(with_saes(model), mlps="held") if several else linear
    graph = attribute(linear, ALL, name="tiny")
    circuit = graph.circuit(0.9, 0.95)
    assert 0 < circuit.scores["counts"]["n_nodes_pruned"] == len(circuit.nodes) < len(graph.nodes)
    assert 0 < circuit.scores["replacement_score"] < circuit.scores["completeness_score"] < 1
    place = {name: i for i, name in enumerate(graph.names)}
    for row in circuit.rows("edges"):
        if row["target"] != "output":
            assert row["weight"] == pytest.approx(float(graph.adjacency[place[row["target"]], place[row["source"]]]))
    save_circuit(circuit, tmp_path / "graph")
    same(read_circuit(tmp_path / "graph"), circuit)
    write_graph(circuit, tmp_path / "graph.json")
    same(read_graph(tmp_path / "graph.json"), circuit)
    assert circuit.figure().html.count("sx-node") > 10


def same(one: Circuit, other: Circuit) -> None:
    assert one.rows("nodes") == other.rows("nodes") and one.rows("edges") == other.rows("edges")
    assert one.scores == other.scores and one.settings == other.settings


def test_the_gap_of_frozen_patterns(linear: LinearPrompt) -> None:
    graph = attribute(linear, ALL)
    gap = frozen_gap(linear, graph, 6, batch=4)
    summary = gap.summary()
    assert len(gap.rows()) == 6 and np.abs(gap.held).max() > 1e-3
    assert summary["pattern_gap"] > 1e-3 and summary["live_gap"] > 1e-3
    # as long as no feature begins or ceases to be active, the graph predicts what is held, and nothing else
    little = frozen_gap(linear, graph, 6, share=1e-5).summary()
    assert little["agreement_held"] > 0.999
    assert little["prediction_gap"] < 1e-3 < 0.01 < min(little["pattern_gap"], little["live_gap"])
    # one feature taken away by hand, patterns live
    site, position, feature = graph.nodes.triples[graph.names.index(gap.nodes[0])]
    assert np.argmax(np.abs(gap.predicted)) == 0
    spliced = SplicedModel(linear.circuit.model, linear.circuit.saes)
    clean = spliced.run(linear.tokens[None], keep=linear.keep[None], freeze=())
    code = clean.at[linear.sites[site]].code
    rows = {int(p): i for i, (_, p) in enumerate(clean.positions.tolist())}
    mine = (code.rows() == rows[position]) & (code.feature == feature)
    values = {s: c for s, c in clean.codes.items() if s == linear.sites[site]}
    new = values[linear.sites[site]]
    values[linear.sites[site]] = type(new)(
        new.feature, torch.where(mine, torch.zeros_like(new.value), new.value), new.n_rows, new.d_sae, new.indptr
    )
    with torch.no_grad():
        moved = spliced.run(linear.tokens[None], keep=linear.keep[None], values=values, errors=clean.errors)
    change = (moved.logits - clean.logits).detach()[0, -1]
    assert gap.live[0] == pytest.approx(float(change[gap.logit] - change.mean()), rel=1e-6)
