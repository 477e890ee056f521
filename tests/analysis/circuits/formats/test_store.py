"""A circuit's own folder: what is written comes back, equal circuits make equal bytes, and damage is found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from analysis.circuits.formats.store import read_circuit, read_effects, save_circuit
from analysis.circuits.graph import Circuit
from analysis.circuits.nodes import EdgeEffects, NodeEffects
from sae.errors import SaescopeError
from sae.io.files import read_json, write_json
from tests.analysis.circuits.graphs import circuit


def effects_of(some: Circuit, n_examples: int = 7) -> tuple[NodeEffects, EdgeEffects]:
    rng = np.random.default_rng(1)
    nodes, edges = (rng.normal(size=(n_examples, n)) * (rng.random((n_examples, n)) < 0.4)
                    for n in (len(some.nodes), len(some.source)))
    return (NodeEffects(some.nodes, sparse.csr_array(nodes)),
            EdgeEffects(some.nodes, some.source, some.target, sparse.csr_array(edges)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def facts(some: Circuit) -> tuple[Any, ...]:
    return (some.name, some.model, some.sites, some.task, some.settings, some.prompt, some.scores,
            some.rows("nodes"), some.rows("edges"))


@pytest.mark.parametrize("positional", [True, False])
def test_what_is_written_comes_back(tmp_path: Path, positional: bool) -> None:
    some = circuit(positional=positional, scores={"curve": [0.1, float("nan")], "k": 3})
    nodes, edges = effects_of(some)
    save_circuit(some, tmp_path / "circuits" / "keys", nodes, edges)
    back = read_circuit(tmp_path / "circuits" / "keys")
    assert back.scores == {"curve": [0.1, None], "k": 3}
    assert facts(back) == facts(circuit(positional=positional, scores=back.scores))
    assert np.isnan(back.edge_inclusion).all()
    for read, written in zip(read_effects(tmp_path / "circuits" / "keys"), (nodes, edges), strict=True):
        assert read is not None
        np.testing.assert_array_equal(read.values.toarray(), written.values.toarray())
    save_circuit(some, tmp_path / "plain")
    assert read_effects(tmp_path / "plain") == (None, None) and "effects.safetensors" not in contents(tmp_path / "plain")


def test_equal_circuits_make_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b", "b"):  # the last replaces
        some = circuit()
        save_circuit(some, tmp_path / name, *effects_of(some))
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and {p.name for p in tmp_path.iterdir()} == {"a", "b"}
    empty = circuit().take(np.zeros(len(circuit().nodes), dtype=bool))
    save_circuit(empty, tmp_path / "empty")
    assert facts(read_circuit(tmp_path / "empty")) == facts(empty)


def test_a_folder_that_is_no_circuit_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(SaescopeError, match="mine"):
        save_circuit(circuit(), tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"thesis.txt": b"years"}


def change(folder: Path, name: str, old: str, new: str) -> None:
    """Edit a file and its hash, as a program would that writes the format wrongly."""
    from hashlib import sha256

    path = folder / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    manifest = read_json(folder / "manifest.json")
    manifest["files"][name] = sha256(path.read_bytes()).hexdigest()
    write_json(folder / "manifest.json", manifest)


@pytest.mark.parametrize(("fault", "said"), [
    (lambda f: (f / "nodes.jsonl").unlink(), "nodes.jsonl"),
    (lambda f: (f / "edges.jsonl").write_text(""), "edges.jsonl"),
    (lambda f: (f / "effects.safetensors").write_bytes(b"xx"), "effects.safetensors"),
    (lambda f: write_json(f / "manifest.json", {**read_json(f / "manifest.json"), "format_version": 2}), "version 2"),
    (lambda f: write_json(f / "manifest.json", {"format": "saescope-index"}), "saescope-index"),
    (lambda f: write_json(f / "manifest.json", {**read_json(f / "manifest.json"), "files": {}}), "sha256"),
    (lambda f: (f / "manifest.json").unlink(), "manifest.json"),
    (lambda f: change(f, "nodes.jsonl", '"kind": "error"', '"kind": "mystery"'), "kind"),
    (lambda f: change(f, "nodes.jsonl", '"effect": ', '"effects": '), "effect"),
    (lambda f: change(f, "nodes.jsonl", '"site": "attn-0"', '"site": "attn-9"'), "attn-9"),
    (lambda f: change(f, "edges.jsonl", '"target": "output"', '"target": "outputs"'), "outputs"),
    (lambda f: change(f, "circuit.json", '"prompt"', '"text"'), "prompt"),
    (lambda f: change(f, "nodes.jsonl", '"position": ', '"position": -'), "position"),
    (lambda f: change(f, "nodes.jsonl", "/f", "/f1"), "nodes.jsonl"),
    (lambda f: change(f, "nodes.jsonl", text := (f / "nodes.jsonl").read_text().splitlines(keepends=True)[3], text * 2),
     "nodes.jsonl"),
])
def test_damage_is_said(tmp_path: Path, fault: Any, said: str) -> None:
    save_circuit(circuit(), tmp_path / "keys", *effects_of(circuit()))
    fault(tmp_path / "keys")
    with pytest.raises(SaescopeError, match=said):
        read_circuit(tmp_path / "keys")


def test_a_line_is_json_that_anyone_reads(tmp_path: Path) -> None:
    some = circuit()
    save_circuit(some, tmp_path / "keys")
    lines = [json.loads(line) for line in (tmp_path / "keys" / "nodes.jsonl").read_text().splitlines()]
    assert lines == some.rows("nodes")
