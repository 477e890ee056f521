"""Our graphs under circuit-tracer's own models and Neuronpedia's schema, and theirs opened here. Exit code 1 if one fails.

    python -m tests.peers.circuit_tracer_check --circuit-tracer CHECKOUT [--neuronpedia-schema FILE] [--graph FILE] [DIR]

CHECKOUT is a work tree of decoderesearch/circuit-tracer (0.4.1); of it `circuit_tracer.frontend.graph_models`, which needs
pydantic alone, `utils/decode_url_features.py` and functions of `graph.py` (influence, pruning, scores) are run. FILE of the
schema is Neuronpedia's `apps/webapp/app/api/graph/graph-schema.json`. A DIR is a circuit of ours; without one a random
circuit is checked, with several sites in one block, errors and a skip path. A graph is made by their `Node` and `Model` and
opened here, and so is each `--graph`; what was opened is written again, validated again, and must have the same nodes and
links.
"""

import argparse
import importlib
import importlib.util
import json
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.circuits.formats.circuit_tracer.reading import read_graph
from analysis.circuits.formats.circuit_tracer.writing import write_graph
from analysis.circuits.formats.opening import open_circuit
from analysis.circuits.formats.store import read_circuit
from analysis.circuits.graph import Circuit
from tests.analysis.circuits.graphs import PROMPT, circuit
from tests.peers.circuit_tracer_influence import compare, graphs, their_functions

Json = dict[str, Any]
VERSION = "0.4.1"
KEPT = ("feature", "layer", "ctx_idx", "feature_type", "token_prob", "clerp", "influence", "activation")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def load_file(path: Path) -> Any:
    """A module of the checkout by its file, without the package around it, which imports transformers."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Checks:
    """Counts what is not as it should be."""

    def __init__(self, checkout: Path, schema: Path | None) -> None:
        sys.path.insert(0, str(checkout))
        self.models = importlib.import_module("circuit_tracer.frontend.graph_models")
        assert self.models.__file__ is not None and Path(self.models.__file__).is_relative_to(checkout)
        self.decode = load_file(checkout / "circuit_tracer" / "utils" / "decode_url_features.py").decode_url_features
        self.schema = None if schema is None else json.loads(schema.read_text())
        self.failed = 0

    def check(self, what: str, fine: bool) -> None:
        self.failed += not fine
        say(f"{'ok  ' if fine else 'FAIL'} {what}")

    def validate(self, name: str, path: Path) -> Json:
        """A file of ours under their models: nothing of it changes, every id is one of their kind and unique."""
        graph: Json = json.loads(path.read_text())
        model = self.models.Model.model_validate(graph)
        nodes = [node.model_dump(exclude_none=True) for node in model.nodes]
        same = all(found.items() <= written.items() for found, written in zip(nodes, graph["nodes"], strict=True))
        self.check(f"{name}: {len(nodes)} nodes, {len(model.links)} links under circuit_tracer.frontend.graph_models", same)
        links = [self.models.Link.model_validate(link) for link in model.links]
        ids = {node.node_id for node in model.nodes}
        ends = all(link.source in ids and link.target in ids for link in links)
        self.check(f"{name}: node ids are unique and links lead from node to node", len(ids) == len(nodes) and ends)
        pins = [node for node in model.nodes if node.feature_type not in ("embedding", "logit")]
        _, found = self.decode("http://x/?pinnedIds=" + ",".join(node.node_id for node in pins))
        places = [(int(node.layer), node.ctx_idx) for node in pins]
        self.check(f"{name}: their decoder of addresses finds layer and position in every id",
                   [(one.layer, one.pos) for one in found] == places)
        if self.schema is not None:
            from jsonschema import Draft7Validator

            faults = [f"{fault.json_path}: {fault.message}" for fault in Draft7Validator(self.schema).iter_errors(graph)]
            self.check(f"{name}: under Neuronpedia's schema {'; '.join(faults[:3])}", not faults)
        return graph

    def theirs(self) -> Json:
        """A graph built by circuit-tracer's own code."""
        m = self.models
        nodes = [
            m.Node.feature_node(0, 1, 70, influence=0.4, activation=21.5), m.Node.feature_node(3, 2, 9, influence=0.2),
            m.Node.error_node(3, 2, influence=0.9), m.Node.token_node(1, 235), m.Node.token_node(2, 236),
            m.Node.logit_node(2, 17, "3", 26, target_logit=True, token_prob=0.7), m.Node.logit_node(2, 12, "4", 26),
        ]
        a, b, error, token, _, one, two = (node.node_id for node in nodes)
        ends = [(token, a, 24.5), (a, b, -2.0), (b, one, 1.5), (error, two, 0.5)]
        text = ["<bos>", "1", "2"]
        meta = m.Metadata(slug="tiny", scan="gemma-2-2b", transcoder_list=[], prompt_tokens=text, prompt="".join(text))
        params = m.QParams(pinnedIds=[], supernodes=[], linkType="both", clickedId="", sg_pos="")
        links = [m.Link(source=s, target=t, weight=w).model_dump() for s, t, w in ends]
        graph: Json = json.loads(m.Model(metadata=meta, qParams=params, nodes=nodes, links=links).model_dump_json())
        return graph


def told(graph: Json) -> tuple[list[str], list[str]]:
    """Nodes and links without the names of errors, which older versions call as features of layer 0."""
    called = {node["node_id"]: json.dumps({key: node.get(key) for key in KEPT}, sort_keys=True) for node in graph["nodes"]}
    links = [f"{called[x['source']]}→{called[x['target']]}: {x['weight']}" for x in graph["links"]
             if x["source"] in called and x["target"] in called]
    return sorted(called.values()), sorted(links)


def circuits(folders: list[Path]) -> Iterator[tuple[str, Circuit, list[int] | None]]:
    yield from ((folder.name, read_circuit(folder), None) for folder in folders)
    if not folders:
        yield "random circuit", circuit(n=80, e=200), list(range(len(PROMPT)))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--circuit-tracer", type=Path, required=True)
    parser.add_argument("--neuronpedia-schema", type=Path)
    parser.add_argument("--graph", type=Path, action="append", default=[])
    parser.add_argument("circuits", type=Path, nargs="*")
    options = parser.parse_args()
    if not (options.circuit_tracer / "circuit_tracer" / "frontend" / "graph_models.py").is_file():
        parser.error(f"{options.circuit_tracer} is no work tree of decoderesearch/circuit-tracer (CIRCUIT_TRACER=CHECKOUT)")
    with (options.circuit_tracer / "pyproject.toml").open("rb") as file:
        found = tomllib.load(file)["project"]["version"]
    say(f"circuit-tracer {found}" + ("" if found == VERSION else f" (made for {VERSION})"))
    checks = Checks(options.circuit_tracer.resolve(), options.neuronpedia_schema)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.json"
        for name, one, tokens in circuits(options.circuits):
            write_graph(one, path, tokens=tokens)
            checks.validate(name, path)
            back = read_graph(path)
            same = back.rows("nodes") == one.rows("nodes") and back.rows("edges") == one.rows("edges")
            checks.check(f"{name}: the file opens here as the circuit that was written", same)
        own = Path(folder) / "theirs.json"
        own.write_text(json.dumps(checks.theirs()))
        for theirs in [own, *options.graph]:
            before = json.loads(theirs.read_text())
            opened = open_circuit(theirs)
            write_graph(opened, path)
            after = checks.validate(f"{theirs.name}, opened here and written", path)
            checks.check(f"{theirs.name}: has the same nodes and links as before", told(after) == told(before))
    theirs_by_name = their_functions(options.circuit_tracer)
    for name, graph in graphs():
        for what, fine in compare(theirs_by_name, graph).items():
            checks.check(f"attribution graph ({name}): {what} as of circuit_tracer.graph", fine)
    return int(checks.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
