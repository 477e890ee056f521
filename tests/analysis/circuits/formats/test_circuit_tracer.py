"""Graph files of circuit-tracer and Neuronpedia: ours come back, theirs open, node ids are unique and what they expect."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.circuits.formats.circuit_tracer.reading import read_graph
from analysis.circuits.formats.circuit_tracer.schema import paired, unpaired
from analysis.circuits.formats.circuit_tracer.writing import cumulative, write_graph
from analysis.circuits.formats.opening import open_circuit
from analysis.circuits.formats.store import save_circuit
from analysis.circuits.nodes import ERROR, Nodes
from analysis.circuits.prune import without_orphans
from sae.errors import SaescopeError
from tests.analysis.circuits.formats.test_store import facts
from tests.analysis.circuits.graphs import PROMPT, circuit

Json = dict[str, Any]


def theirs() -> Json:
    """A graph as circuit-tracer writes it: features, errors, embeddings and logits on a prompt of three tokens."""
    def node(node_id: str, feature: int, layer: str, position: int, kind: str, **more: Any) -> Json:
        return {"node_id": node_id, "feature": feature, "layer": layer, "ctx_idx": position, "feature_type": kind,
                "token_prob": 0.0, "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0, "clerp": "",
                "influence": None, "activation": None, "jsNodeId": f"{node_id}-0", **more}

    return {
        "metadata": {"slug": "tiny", "scan": "gemma-2-2b", "transcoder_list": [], "prompt": "<bos>12",
                     "prompt_tokens": ["<bos>", "1", "2"], "node_threshold": 0.8, "schema_version": 1},
        "qParams": {"pinnedIds": ["3_9_2"], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [
            node("0_70_1", paired(0, 70), "0", 1, "cross layer transcoder", influence=0.2, activation=21.5, clerp="digits"),
            node("3_9_2", paired(3, 9), "3", 2, "cross layer transcoder", influence=0.5, activation=3.0),
            node("0_3_2", -1, "3", 2, "mlp reconstruction error", influence=0.7),
            node("E_235_1", 1, "E", 1, "embedding"),
            node("5_17_2", 17, "5", 2, "logit", token_prob=0.7, is_target_logit=True, clerp='Output "3" (p=0.700)'),
            node("5_12_2", 12, "5", 2, "logit", token_prob=0.2, clerp='Output "4" (p=0.200)'),
        ],
        "links": [
            {"source": "E_235_1", "target": "0_70_1", "weight": 24.5},
            {"source": "0_70_1", "target": "3_9_2", "weight": -2.0},
            {"source": "3_9_2", "target": "5_17_2", "weight": 1.5}, {"source": "0_3_2", "target": "5_12_2", "weight": 0.5},
            {"source": "pruned", "target": "5_12_2", "weight": 9.0},
        ],
    }


def write(path: Path, graph: Json) -> Path:
    path.write_text(json.dumps(graph))
    return path


def test_the_pairing_is_cantors() -> None:
    pairs = [(layer, feature) for layer in range(40) for feature in range(40)]
    assert sorted(paired(*pair) for pair in pairs if sum(pair) < 40) == list(range(40 * 41 // 2))
    assert [unpaired(paired(*pair)) for pair in pairs] == pairs
    assert paired(0, 6200) == 19229300 and unpaired(99962728) == (1, 14137)  # a graph of Neuronpedia's
    assert unpaired(paired(61, 1 << 22)) == (61, 1 << 22)


def test_a_circuit_comes_back(tmp_path: Path) -> None:
    some = circuit()
    write_graph(some, tmp_path / "a.json", tokens=range(len(PROMPT)))
    back = read_graph(tmp_path / "a.json")
    assert facts(back) == facts(some)
    write_graph(back, tmp_path / "b.json", tokens=range(len(PROMPT)))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_ids_are_unique_and_say_layer_feature_and_position(tmp_path: Path) -> None:
    # the same feature and position at all three sites of block 0, and their errors
    triples = [(site, 4, feature) for site in range(4) for feature in (ERROR, 0, 39)]
    numbers = {k: np.arange(12.0) for k in ("effect", "low", "high", "value", "reference", "inclusion")}
    write_graph(circuit(e=0, nodes=Nodes.of(triples), **numbers), tmp_path / "a.json")
    graph = json.loads((tmp_path / "a.json").read_text())
    nodes = [n for n in graph["nodes"] if n["feature_type"] != "logit"]
    assert max(Counter(n["node_id"] for n in nodes).values()) == 1
    for node in nodes:
        layer, number, position = map(int, node["node_id"].split("_"))
        assert (str(layer), position) == (node["layer"], node["ctx_idx"])
        assert node["feature"] == (paired(layer, number) if number >= 0 else number)
    first = {s["name"]: (s["layer"], s["first_feature"]) for s in graph["metadata"]["saescope"]["sites"]}
    assert first == {"attn-0": (0, 0), "mlp-0": (0, 400), "resid-0": (0, 800), "resid-2": (2, 0), "attn-5": (5, 0)}


def test_the_metric_is_the_one_target_and_links_are_the_edges(tmp_path: Path) -> None:
    some = circuit()
    write_graph(some, tmp_path / "a.json")
    graph = json.loads((tmp_path / "a.json").read_text())
    (target,) = (n for n in graph["nodes"] if n["feature_type"] == "logit")
    assert (target["node_id"], target["feature"], target["is_target_logit"]) == ("7_300_5", 300, True)
    assert sorted(x["weight"] for x in graph["links"]) == sorted(some.weight)
    into = sorted(x["weight"] for x in graph["links"] if x["target"] == target["node_id"])
    assert into == sorted(some.weight[some.target == -1])


def test_influence_is_cumulative() -> None:
    assert cumulative(np.array([1.0, -3.0, 0.0, np.nan])) == [1.0, 0.75, 1.0, None]


def test_summed_positions_and_unknown_models_are_refused(tmp_path: Path) -> None:
    for some, said in ((circuit(positional=False), "positions"), (circuit(model={"name": "x"}), "n_layers"),
                       (circuit(prompt=PROMPT[:3]), "position 5")):
        with pytest.raises(SaescopeError, match=said):
            write_graph(some, tmp_path / "a.json")
    with pytest.raises(SaescopeError, match="2 token ids"):
        write_graph(circuit(), tmp_path / "a.json", tokens=[1, 2])


def test_a_graph_of_theirs_opens(tmp_path: Path) -> None:
    found = open_circuit(write(tmp_path / "tiny.json", theirs()))
    assert found.names == ["embedding/f235@1", "transcoder-0/f70@1", "transcoder-3/error@2", "transcoder-3/f9@2",
                           "logit/f12@2", "logit/f17@2"]
    assert {info.sae for info in found.sites} == {""} and np.isnan(found.effect).all()
    assert found.value[1] == 21.5 and found.prompt == ("<bos>", "1", "2") and found.model["n_layers"] == 4
    edges = {(row["source"], row["target"]): row["weight"] for row in found.table("edges")}
    assert edges == {
        ("embedding/f235@1", "transcoder-0/f70@1"): 24.5, ("transcoder-0/f70@1", "transcoder-3/f9@2"): -2.0,
        ("transcoder-3/f9@2", "logit/f17@2"): 1.5, ("transcoder-3/error@2", "logit/f12@2"): 0.5,
        ("logit/f17@2", "output"): 0.7, ("logit/f12@2", "output"): 0.2,
    }
    assert found.settings["clerps"]["transcoder-0/f70@1"] == "digits"
    assert without_orphans(found) is found


def test_a_graph_of_theirs_goes_back(tmp_path: Path) -> None:
    found = read_graph(write(tmp_path / "tiny.json", theirs()))
    save_circuit(found, tmp_path / "tiny")
    write_graph(open_circuit(tmp_path / "tiny"), tmp_path / "back.json")
    before, after = theirs(), json.loads((tmp_path / "back.json").read_text())
    # the error has a name of its own now, which no feature of layer 0 can have, and links of nodes that are not there go
    before["nodes"][2]["node_id"] = before["links"][3]["source"] = "3_-1_2"
    del before["links"][4:]
    assert after["qParams"] == before["qParams"] and before["metadata"].items() <= after["metadata"].items()

    def ids(graph: Json) -> list[tuple[Any, ...]]:
        keys = ("node_id", "feature", "layer", "ctx_idx", "feature_type", "token_prob", "clerp", "influence", "activation")
        return sorted(tuple(str(node.get(key)) for key in keys) for node in graph["nodes"])

    assert ids(after) == ids(before)
    assert sorted(map(str, after["links"])) == sorted(map(str, before["links"]))


def _without(key: str) -> Json:
    graph = theirs()
    del graph["nodes"][0][key]
    return graph


def _changed(i: int, **fields: Any) -> Json:
    graph = theirs()
    graph["nodes"][i].update(fields)
    return graph


@pytest.mark.parametrize(("graph", "said"), [
    ({**theirs(), "metadata": {**theirs()["metadata"], "schema_version": 2}}, "schema_version 2"),
    ({**theirs(), "metadata": {k: v for k, v in theirs()["metadata"].items() if k != "schema_version"}}, "None"),
    ({"nodes": []}, "schema_version"),
    (_without("ctx_idx"), "ctx_idx"),
    (_changed(1, feature=paired(2, 9)), "3_9_2"),
    (_changed(1, layer="x"), "3_9_2"),
    (_changed(2, node_id="0_70_1"), "0_70_1"),
    (_changed(5, feature=17), "duplicate"),
    (_changed(3, node_id="E"), "E_TOKEN_POSITION"),
    ({**theirs(), "metadata": {**theirs()["metadata"], "saescope": {"sites": [1]}}}, "saescope"),
])
def test_what_is_no_such_graph_is_refused(tmp_path: Path, graph: Json, said: str) -> None:
    with pytest.raises(SaescopeError, match=said):
        read_graph(write(tmp_path / "bad.json", graph))


def test_pickles_and_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.pt").write_bytes(b"\x80\x04")
    with pytest.raises(SaescopeError, match="pickle"):
        open_circuit(tmp_path / "graph.pt")
    with pytest.raises(SaescopeError, match=r"nowhere\.json"):
        open_circuit(tmp_path / "nowhere.json")
    (tmp_path / "text.json").write_text("[")
    with pytest.raises(SaescopeError, match=r"text\.json"):
        open_circuit(tmp_path / "text.json")
