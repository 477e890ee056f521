"""SAEs that were trained on whitened rows and on rows of one length, and one without an encoder, in all that reads SAEs."""

from pathlib import Path

import numpy as np
import pytest
import torch

import sae
from analysis.circuits.attribution.run import TraceOptions, trace_prompt
from analysis.circuits.effects.edges import edge_effects
from analysis.circuits.effects.nodes import node_effects
from analysis.circuits.model import CircuitModel
from analysis.circuits.nodes import SKIP
from analysis.corpus_rows import open_rows
from analysis.index import build
from analysis.steering.generate import Edit, Editor, Settings, steer
from analysis.trained import open_trained
from sae.io.files import read_json
from tests.analysis.circuits.effects.edge_toys import linear_metric, pairs
from tests.helpers import HOOK, quick_fields, run_sae, write_corpus
from training.evaluate import HeldOut
from training.run import sweep

ABOVE = "blocks.1.hook_resid_post"
BOTH = {"whiten": True, "unit_rows": True}
RUNS = {
    "icfl": {"site": HOOK, "sae": {"variant": "icfl", "rounds": 2, "per_round": 2, "transform": BOTH}},
    "topk": {"site": ABOVE, "sae": {"variant": "topk", "k": 4, "transform": {"whiten": True}}},
    "jumprelu": {"site": ABOVE, "sae": {"variant": "jumprelu", "sparsity": {"target_l0": 4}, "transform": BOTH}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whitened")
    write_corpus(root / "corpus", 120)
    fields = quick_fields(
        name="all", corpus={"sources": f"text:{root / 'corpus'}/*.txt"}, cache={"dir": str(root / "cache")},
        eval={"n_rows": 100_000},
    )
    fields["sae"] = {"d_sae": 64}
    sweep(fields | {"sweep": [{"name": name, **parts} for name, parts in RUNS.items()]}, runs=root / "runs", quiet=True)
    return root / "runs" / "all"


@pytest.mark.parametrize("name", RUNS)
def test_an_index_explains_what_the_training_said(runs: Path, name: str) -> None:
    said = read_json(runs / name / "summary.json")
    index = build(runs / name, quiet=True)
    corpus = open_rows(open_trained(runs / name))
    held = HeldOut(corpus.data.source, corpus.data.tokens, corpus.mask, corpus.trained.site.hooks, 10**6)
    figures = held.measure(sae.load(runs / name), corpus.trained.site)
    assert index.manifest["fidelity"]["fve"] == pytest.approx(figures["fve"], abs=1e-5)
    # the SAE in training and the folded one are the same
    assert said["heldout"]["fve"] == pytest.approx(figures["fve"], abs=0.05)
    assert ("sae.transform.unit_rows" in said["saelens"]) == (name != "topk")


@pytest.mark.parametrize("name", RUNS)
def test_steering_adds_a_features_direction_in_the_models_units(runs: Path, name: str) -> None:
    loaded = open_trained(runs / name)
    tokens, hook = loaded.tokens("the quick brown"), loaded.site.output
    found: list[torch.Tensor] = []

    def capture(acts: torch.Tensor) -> torch.Tensor:
        found.append(acts[0].clone())
        return acts

    editor = Editor(loaded, [Edit(3, 2.5)], Settings(positions=[2]), tokens)
    with torch.no_grad():
        with loaded.model.splice(hook, capture):
            loaded.model.logits(tokens[None])
        with editor.spliced(len(tokens)), loaded.model.splice(hook, capture):
            loaded.model.logits(tokens[None])
    moved = found[1] - found[0]
    torch.testing.assert_close(moved[2], 2.5 * loaded.sae.W_dec.detach()[3], atol=1e-4, rtol=1e-4)
    assert not moved[:2].any() and float(loaded.sae.W_dec.detach()[3].norm()) == pytest.approx(1, abs=1e-5)
    assert steer(runs / name, "the quick", [Edit(3, 2.5)], Settings(max_tokens=2)).steered.tokens


def test_evaluations_run_beside_their_controls(runs: Path) -> None:
    outcome = run_sae(runs.parents[1], "eval", str(runs / "icfl"), "--only", "mdl", "--suite", "quick", "--quiet")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("above", ["topk", "jumprelu"])
def test_circuits_have_nodes_edges_and_graphs(runs: Path, above: str, tmp_path: Path) -> None:
    names = ("icfl", above)
    trained = [open_trained(runs / name) for name in names]
    model = CircuitModel(trained[0].model, {one.site: one.sae for one in trained})
    effects = node_effects(model, pairs(), linear_metric, n_steps=5)
    nodes = effects.nodes
    assert {0, 1} == set(nodes.site.tolist()) and np.isfinite(effects.values.tocoo().data).all()
    # what depends on the input beside the features is a node
    assert [(SKIP in nodes.feature[nodes.site == i]) for i in (0, 1)] == [True, above != "topk"]
    edges = edge_effects(model, pairs(), linear_metric, effects)
    assert len(edges) and np.isfinite(edges.values.data).all()
    options = TraceOptions([str(runs / name) for name in names], dir=str(tmp_path), n_gap=2)
    graph = trace_prompt("the quick brown", options, quiet=True)
    assert len(graph.nodes)
