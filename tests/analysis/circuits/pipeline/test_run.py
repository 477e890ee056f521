"""The whole way from a config to a tested circuit, on a tiny model with trained SAEs."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch

from analysis.circuits.attribution.attribute import Limits
from analysis.circuits.attribution.run import Progress, TraceOptions, trace_prompt, trace_steps
from analysis.circuits.attribution.steps import at_once
from analysis.circuits.checks.ablation import Ablation
from analysis.circuits.checks.faithfulness import faithfulness
from analysis.circuits.effects.nodes import node_effects
from analysis.circuits.effects.reference import mean_states
from analysis.circuits.formats.opening import open_circuit
from analysis.circuits.interventions.on_prompt import steer_prompt
from analysis.circuits.pipeline import run as pipeline
from analysis.circuits.pipeline.config import CircuitConfig, read_config
from analysis.circuits.pipeline.run import find_circuit
from analysis.circuits.pipeline.setup import open_setup
from sae.errors import SaescopeError
from tests.helpers import ROOT, quick_fields, run_sae, write_corpus
from training.config.reading import read as read_trainings
from training.model.load import load_model

HOOKS = {"resid-0": "blocks.0.hook_resid_post", "attn-1": "blocks.1.hook_attn_out", "mlp-1": "blocks.1.hook_mlp_out"}


def pairs() -> list[dict[str, str]]:
    """Pairs whose answers are what the model says of each prompt, so that it does the task."""
    model = load_model("native:tiny")
    letters = torch.tensor(model.tokenizer(ascii_lowercase, add_special_tokens=False).input_ids)
    found = []
    for start in ("the", "one", "two", "six", "ten", "all"):
        for end in (" is", " in", " on"):
            prompts = [f"{start} {word}{end}" for word in ("cat", "dog")]
            ids = torch.tensor([[model.bos_id, *model.tokenizer(p, add_special_tokens=False).input_ids] for p in prompts])
            clean = model.logits(ids[:1])[0, -1, letters]
            right, wrong = (ascii_lowercase[int(i)] for i in (clean.argmax(), clean.argmin()))
            found.append({"clean": prompts[0], "corrupt": prompts[1], "right": right, "wrong": wrong})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("circuits")
    write_corpus(folder / "corpus")
    sweep = [{"name": name, "site": hook} for name, hook in HOOKS.items()]
    (folder / "saes.yaml").write_text(json.dumps({**quick_fields(name="saes"), "sweep": sweep}))
    assert run_sae(folder, "train", "saes.yaml").code == 0
    (folder / "circuit.yaml").write_text(json.dumps(fields()))
    yield folder


def fields(**sections: Any) -> dict[str, Any]:
    return {
        "name": "small", "saes": "runs/saes/*", "task": {"pairs": pairs()},
        "effects": {"n_steps": 4, "n_exact": 6, "batch": 4}, "nodes": {"most": 12}, "edges": {"most": 40},
        "checks": {"bootstraps": 40, "n_random": 1, "n_points": 4}, **sections,
    }


def config(**sections: Any) -> CircuitConfig:
    return CircuitConfig.model_validate(fields(**sections))


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_the_command_finds_tests_and_saves_a_circuit(folder: Path) -> None:
    made = run_sae(folder, "circuit", "circuit.yaml")
    assert made.code == 0, made.err
    circuit = open_circuit(folder / "circuits" / "small")
    assert 0 < len(circuit.nodes) <= 12 and 0 < len(circuit.source) <= 40
    assert [info.name for info in circuit.sites] == list(HOOKS)
    scores = circuit.scores
    assert scores["behaviour"]["holds"] and scores["estimator"] == "ig-4"
    assert {line["hook"] for line in scores["agreement"]} == set(HOOKS.values())
    names = [curve["name"] for curve in scores["curves"]]
    assert {"circuit", "errors kept", "errors dropped", "completeness", "random features"} <= set(names)
    assert scores["mlp_activations"]["n_nodes"] and scores["circuit"]["n_nodes"] == len(circuit.nodes)
    for fact in ("small", f"{len(circuit.nodes)} nodes", "faithfulness", circuit.table()[0]["node"]):
        assert fact in made.out
    shown = run_sae(folder, "circuit", "show", "circuits/small", "--html", "graph.html")
    assert shown.code == 0 and circuit.table("edges")[0]["source"] in shown.out
    assert circuit.table()[0]["node"] in (folder / "graph.html").read_text()
    assert run_sae(folder, "circuit", "export", "circuits/small", "graph.json").code == 0
    assert json.loads((folder / "graph.json").read_text())["metadata"]["schema_version"] == 1


def test_a_prompt_is_traced_and_its_features_are_intervened_on(folder: Path) -> None:
    made = run_sae(folder, "circuit", "trace", "the cat is", "--saes", "runs/saes/*", "--name", "traced", "--max-features",
                   "60", "--gap", "4", "--html", "traced.html")
    assert made.code == 0, made.err
    circuit = open_circuit(folder / "circuits" / "traced")
    assert circuit.sites[0].variant == "embedding" and circuit.sites[-1].variant == "logit"
    assert circuit.scores["frozen_patterns"]["n_interventions"] == 4 and "replacement" in made.out
    assert (folder / "traced.html").is_file()
    features = [row["node"] for row in circuit.table() if row["kind"] == "feature" and "/f" in row["node"]
                and not row["node"].startswith(("embedding", "logit"))]
    one = steer_prompt(circuit, circuit.select(*features[:2]), 1.0)
    assert one.after == pytest.approx(one.before, abs=1e-4) and one.predicted == pytest.approx(one.before, abs=1e-4)
    off = steer_prompt(circuit, circuit.select(*features[:2]), 0.0)
    assert off.before == pytest.approx(one.before) and abs(off.after - off.before) > 1e-4
    assert off.baseline == one.baseline and sum(token.probability for token in off.steered) < 1
    assert off.baseline[0].token == off.logit and off.baseline[0].logit == pytest.approx(off.before, abs=1e-5)
    held = steer_prompt(circuit, circuit.select(*features[:2]), 0.5, maxima=[4.0, 4.0])
    assert abs(held.after - off.after) > 1e-4
    value = circuit.value[circuit.find(features[0])]
    as_is = steer_prompt(circuit, circuit.select(features[0]), 1.0, maxima=value.tolist())
    assert as_is.after == pytest.approx(one.before, abs=1e-4) and all(
        row.after == pytest.approx(row.before, abs=1e-4) for row in as_is.behind)
    for bad in (circuit.select(circuit.names[0]), circuit.nodes.take(circuit.nodes.site == len(circuit.sites) - 1)):
        with pytest.raises(SaescopeError, match="unpin"):
            steer_prompt(circuit, bad, 0.0)
    missing = replace(circuit, sites=tuple(replace(info, run=None) for info in circuit.sites))
    with pytest.raises(SaescopeError, match="names no runs"):
        steer_prompt(missing, circuit.select(features[0]), 0.0)
    assert run_sae(folder, "circuit", "trace", "", "--saes", "runs/saes/*").code == 2
    assert run_sae(folder, "circuit", "trace", "the", "--saes", "runs/saes/*", "--nodes", "7").code == 2


def test_what_runs_between_the_steps_of_a_trace_changes_nothing() -> None:
    options = TraceOptions(["runs/saes/*"], name="between", limits=Limits(20), n_gap=4)
    whole = trace_prompt("the dog is", options, quiet=True)
    feature = next(name for name in whole.names if name.startswith(tuple(f"{site}/f" for site in HOOKS)))
    alone, told = steer_prompt(whole, whole.select(feature), 0.0), list[Progress]()

    def between(now: Progress) -> None:
        told.append(now)
        assert steer_prompt(whole, whole.select(feature), 0.0) == alone

    again = at_once(trace_steps("the dog is", options), between)
    assert again.names == whole.names and (again.weight == whole.weight).all() and again.scores == whole.scores
    assert [now.done for now in told if now.doing == "patterns live"] == [4, 8, 12]
    ends = [now for now in told if now.doing == "attribution"]
    assert ends[0].done == 0 and ends[-1].done == ends[-1].total and "tokens" in ends[0].said


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "circuits").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_can_be_read(path: Path) -> None:
    if path.stem.endswith(("saes", "transcoders")):
        assert {member.site.output for member in read_trainings(path)}
    else:
        assert read_config(path).name == path.stem


def test_numbers_are_those_of_the_parts() -> None:
    circuit = find_circuit(config(name="parts"), quiet=True)
    setup = open_setup(config(name="parts"))
    effects = node_effects(setup.model, setup.train[0], setup.metric, n_steps=4, batch=4)
    mean = dict(zip(effects.nodes.triples, effects.mean, strict=True))
    assert [mean[triple] for triple in circuit.nodes.triples] == pytest.approx(circuit.effect)
    (tested,) = faithfulness(
        setup.model, setup.test, setup.metric, [Ablation(circuit.nodes)], means=mean_states(setup.model, setup.train)
    )
    assert circuit.scores["circuit"]["faithfulness"] == pytest.approx(tested.value)
    clean, _ = setup.model.states(setup.train[0].clean, setup.train[0].keep)
    state = clean[setup.model.sites[0]]
    dense = state.code.to_dense().view(len(setup.train[0]), -1, state.code.d_sae)
    for i, (site, position, feature) in enumerate(circuit.nodes.triples):
        if site == 0 and feature >= 0:
            # the first position, BOS, is no row
            assert circuit.value[i] == pytest.approx(float(dense[:, position - 1, feature].mean()), abs=1e-6)


def test_an_interrupted_circuit_goes_on_and_ends_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_circuit(config(name="whole"), quiet=True)
    shutil.copytree(folder / "circuits" / "whole", folder / "kept")
    shutil.rmtree(folder / "circuits")

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    for module, name in ((pipeline, "edge_effects"), (pipeline.scores, "edge_curve")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                find_circuit(config(name="whole"), quiet=True)
        assert not (folder / "circuits" / "whole").exists()
    with monkeypatch.context() as patch:
        for name in ("batch_effects", "edge_effects", "compare_estimators", "circuits_of_sizes"):
            patch.setattr(pipeline, name, interrupt)
        assert find_circuit(config(name="whole"), quiet=True).names == whole.names
    ours, theirs = folder / "circuits" / "whole", folder / "kept"
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == {p.name: p.read_bytes() for p in theirs.iterdir()}


def test_prompts_of_several_lengths_are_summed_over_positions() -> None:
    longer = [{**pair, "clean": "so " + pair["clean"], "corrupt": "so " + pair["corrupt"]} for pair in pairs()[::2]]
    mixed = {"pairs": [*pairs(), *longer]}
    with pytest.raises(SaescopeError, match=r"12 tokens.*15|15 tokens.*12|have equal length"):
        find_circuit(config(task=mixed), quiet=True)
    # the longer prompts ask for answers that the model may not give
    found = find_circuit(config(name="summed", task=mixed, nodes={"most": 8, "positions": False}), quiet=True)
    assert not found.positional and set(found.nodes.position) == {-1} and found.prompt == ()


def test_the_cheapest_estimator_that_agrees_is_taken() -> None:
    found = find_circuit(config(name="auto", effects={"method": "auto", "n_exact": 8, "agreement": 0.05}), quiet=True)
    assert found.scores["estimator"] == "attribution"
    assert {line["estimator"] for line in found.scores["agreement"]} == {"attribution", "relp", "ig-5", "ig-10"}


def test_what_does_not_fit_together_is_refused(folder: Path) -> None:
    swapped = [{**pair, "right": pair["wrong"], "wrong": pair["right"]} for pair in pairs()]
    stationary = {"task": {"pairs": pairs(), "metric": "kl"}, "effects": {"method": "attribution", "n_exact": 0}}
    other = load_model("native:d_model=32,n_layers=2,n_heads=4,d_vocab=512,n_ctx=128,seed=1")
    assert other.identity != load_model("native:tiny").identity
    for sections, facts in (
        ({"saes": "runs/none*"}, ["runs/none*"]),
        ({"saes": "runs/none"}, ["runs/none"]),
        ({"saes": ["runs/saes/attn-1", "runs/saes/attn-1/../attn-1"]}, ["attn-1", HOOKS["attn-1"]]),
        ({"model": other.name}, [other.name, "attn-1", "seed"]),
        ({"task": {"pairs": swapped}}, ["does not do"]),
        (stationary, ["gradient", "ig"]),
    ):
        with pytest.raises(SaescopeError) as error:
            find_circuit(config(name="refused", **sections), quiet=True)
        assert all(fact in str(error.value) for fact in facts), error.value
    assert not (folder / "circuits" / "refused").exists()
    misspelt = run_sae(folder, "circuit", "circuit.yaml", "nodes.mots=5")
    assert misspelt.code == 2 and "most" in misspelt.err
