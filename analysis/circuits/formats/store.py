"""Read and write a circuit's folder; see docs/circuit-format.md.

    circuits/NAME/manifest.json         format, version, counts, sha256 of the files
                  circuit.json          model, sites with their SAEs' hashes, task, settings, prompt, scores
                  nodes.jsonl           one node per line, with its numbers
                  edges.jsonl           one edge per line
                  effects.safetensors   effects of nodes and edges per example (CSR); optional
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from scipy import sparse
from torch import Tensor

from analysis.circuits.graph import KINDS, OUTPUT_NAME, Circuit, SiteInfo
from analysis.circuits.nodes import ANYWHERE, OUTPUT, EdgeEffects, NodeEffects, Nodes
from sae.errors import SaescopeError, first_line
from sae.io import files
from sae.io.paths import user_path

FORMAT, FORMAT_VERSION = "saescope-circuit", 1
MANIFEST, CIRCUIT, NODES, EDGES, EFFECTS = (
    "manifest.json", "circuit.json", "nodes.jsonl", "edges.jsonl", "effects.safetensors"
)

T = TypeVar("T", bound=BaseModel)
E = TypeVar("E", NodeEffects | None, EdgeEffects | None)


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NodeRow(_Row):
    """A line of nodes.jsonl; null means not measured."""

    node: str
    site: str
    position: int | None = Field(ge=0, lt=2**31)
    kind: Literal["feature", "error", "skip"]
    feature: int | None = Field(ge=0, lt=2**31)
    effect: float | None
    low: float | None
    high: float | None
    value: float | None
    reference: float | None
    inclusion: float | None


class EdgeRow(_Row):
    """A line of edges.jsonl; the target is a node or `output`."""

    source: str
    target: str
    weight: float | None
    low: float | None
    high: float | None
    inclusion: float | None


class _Head(_Row):
    """Contents of circuit.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: dict[str, Any]
    sites: tuple[SiteInfo, ...]
    task: dict[str, Any]
    settings: dict[str, Any]
    prompt: tuple[str, ...]
    scores: dict[str, Any]


def save_circuit(
    circuit: Circuit, folder: Path | str, nodes: NodeEffects | None = None, edges: EdgeEffects | None = None
) -> None:
    """Write a circuit's folder atomically; equal circuits give equal bytes.

    Args:
        circuit: the circuit.
        folder: `circuits/NAME`; an existing circuit is replaced.
        nodes: effects per example, of exactly the circuit's nodes.
        edges: effects per example, of exactly the circuit's edges.

    Raises:
        SaescopeError: the folder holds something other than a circuit, or can't be written.
    """
    folder = user_path(folder)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / MANIFEST).exists())):
        raise SaescopeError(f"{folder} exists and is not a circuit, so it is not overwritten; choose another name.")
    with files.atomic_dir(folder) as partial:
        write_files(circuit, partial, nodes, edges)


def write_files(
    circuit: Circuit, folder: Path, nodes: NodeEffects | None = None, edges: EdgeEffects | None = None
) -> None:
    """Write a circuit's files into an existing folder, the manifest last; other files in it are left alone."""
    head = {name: getattr(circuit, name) for name in ("name", "model", "task", "settings", "prompt", "scores")}
    sites = [{**asdict(info), "site": info.site.model_dump()} for info in circuit.sites]
    files.write_json(folder / CIRCUIT, plain({**head, "sites": sites}))
    files.write_bytes(folder / NODES, _lines(circuit.rows("nodes")))
    files.write_bytes(folder / EDGES, _lines(circuit.rows("edges")))
    written = [CIRCUIT, NODES, EDGES]
    tensors = {**_tensors("nodes", _checked(circuit, nodes)), **_tensors("edges", _checked(circuit, edges))}
    if tensors:
        files.write_tensors(folder / EFFECTS, tensors)
        written.append(EFFECTS)
    n_examples = [len(tensors[name]) - 1 for name in tensors if name.endswith("indptr")]
    files.write_json(folder / MANIFEST, {
        "format": FORMAT, "format_version": FORMAT_VERSION, "code": files.code_version(),
        "counts": {"n_nodes": len(circuit.nodes), "n_edges": len(circuit.source), "n_examples": max(n_examples, default=0)},
        "files": {name: _sha256(folder / name) for name in written},
    })


def read_circuit(folder: Path | str) -> Circuit:
    """Read a circuit's folder.

    Raises:
        SaescopeError: not a circuit, an unsupported version, or missing or damaged files.
    """
    folder = user_path(folder)
    _manifest(folder)
    head = _parsed(folder / CIRCUIT, _Head, (folder / CIRCUIT).read_bytes())
    nodes = [_parsed(folder / NODES, NodeRow, line) for line in (folder / NODES).read_bytes().splitlines()]
    edges = [_parsed(folder / EDGES, EdgeRow, line) for line in (folder / EDGES).read_bytes().splitlines()]
    place = {OUTPUT_NAME: OUTPUT, **{row.node: i for i, row in enumerate(nodes)}}
    if lost := sorted({end for row in edges for end in (row.source, row.target)} - set(place)):
        raise SaescopeError(f"{folder / EDGES}: an edge refers to {lost[0]!r}, which is not in {NODES}.")
    found = Circuit(
        name=head.name, model=head.model, sites=head.sites, task=head.task, settings=head.settings, prompt=head.prompt,
        scores=head.scores, nodes=_nodes(folder, head.sites, nodes), effect=_numbers(nodes, "effect"),
        low=_numbers(nodes, "low"), high=_numbers(nodes, "high"), value=_numbers(nodes, "value"),
        reference=_numbers(nodes, "reference"), inclusion=_numbers(nodes, "inclusion"),
        source=np.array([place[row.source] for row in edges], dtype=np.int64),
        target=np.array([place[row.target] for row in edges], dtype=np.int64),
        weight=_numbers(edges, "weight"), weight_low=_numbers(edges, "low"), weight_high=_numbers(edges, "high"),
        edge_inclusion=_numbers(edges, "inclusion"),
    )
    if found.names != [row.node for row in nodes] or Nodes.of(found.nodes.triples).triples != found.nodes.triples:
        raise SaescopeError(f"{folder / NODES}: names don't match site, feature and position, or nodes are out of order.")
    return found


def read_effects(folder: Path | str) -> tuple[NodeEffects | None, EdgeEffects | None]:
    """Effects per example of a saved circuit's nodes and edges; None if they weren't saved.

    Raises:
        SaescopeError: as `read_circuit`.
    """
    folder = user_path(folder)
    circuit, manifest = read_circuit(folder), _manifest(folder)
    tensors = files.read_tensors(folder / EFFECTS) if EFFECTS in manifest["files"] else {}
    nodes = _matrix(tensors, "nodes", len(circuit.nodes))
    edges = _matrix(tensors, "edges", len(circuit.source))
    return (
        None if nodes is None else NodeEffects(circuit.nodes, nodes),
        None if edges is None else EdgeEffects(circuit.nodes, circuit.source, circuit.target, edges),
    )


def _manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest, and check the version and all hashes."""
    path = folder / MANIFEST
    manifest = files.read_json(path)
    if manifest.get("format") != FORMAT:
        raise SaescopeError(f"{path}: holds format {manifest.get('format')!r}, not {FORMAT!r}.")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise SaescopeError(
            f"{path}: has format version {manifest.get('format_version')!r}, and this code reads {FORMAT_VERSION}; open it "
            "with the version of Saescope that wrote it, or recompute the circuit."
        )
    if not isinstance(hashes := manifest.get("files"), dict) or not {CIRCUIT, NODES, EDGES} <= set(hashes):
        raise SaescopeError(f"{path}: lacks the sha256 of {CIRCUIT}, {NODES} or {EDGES}; restore it.")
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            raise SaescopeError(f"{folder / name} is missing; restore it, or recompute the circuit.")
        if _sha256(folder / name) != expected:
            raise SaescopeError(f"{folder / name} has changed since it was written (its sha256 differs); restore it.")
    return manifest


def _nodes(folder: Path, sites: Sequence[SiteInfo], rows: Sequence[NodeRow]) -> Nodes:
    number = {info.name: i for i, info in enumerate(sites)}
    special = {kind: feature for feature, kind in KINDS.items()}
    if lost := sorted({row.site for row in rows} - set(number)):
        raise SaescopeError(f"{folder / NODES}: refers to site {lost[0]!r}, which is not in {CIRCUIT}.")
    triples = [
        (number[row.site], ANYWHERE if row.position is None else row.position,
         special.get(row.kind, -3 if row.feature is None else row.feature)) for row in rows
    ]
    columns = np.array(triples, dtype=np.int64).reshape(-1, 3)
    return Nodes(columns[:, 0], columns[:, 1], columns[:, 2])


def _parsed(path: Path, kind: type[T], text: bytes) -> T:
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise SaescopeError(f"{path}: is not a valid circuit file ({_fault(error)}).") from error


def _fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    return f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" if fault["loc"] else first_line(error)


def _numbers(rows: Sequence[BaseModel], name: str) -> np.ndarray:
    return np.array([np.nan if getattr(row, name) is None else getattr(row, name) for row in rows], dtype=np.float64)


def _checked(circuit: Circuit, effects: E) -> E:
    if effects is not None:
        assert effects.nodes.triples == circuit.nodes.triples, "effects of the circuit's own nodes"
        if isinstance(effects, EdgeEffects):
            same = effects.source.tolist() == circuit.source.tolist() and effects.target.tolist() == circuit.target.tolist()
            assert same, "effects of the circuit's own edges"
    return effects


def _tensors(kind: str, effects: NodeEffects | EdgeEffects | None) -> dict[str, Tensor]:
    if effects is None:
        return {}
    values = effects.values.sorted_indices()
    return {
        f"{kind}.indptr": torch.from_numpy(values.indptr.astype(np.int64)),
        f"{kind}.indices": torch.from_numpy(values.indices.astype(np.int64)),
        f"{kind}.values": torch.from_numpy(values.data.astype(np.float64)),
    }


def _matrix(tensors: dict[str, Tensor], kind: str, n: int) -> sparse.csr_array | None:
    if f"{kind}.indptr" not in tensors:
        return None
    indptr, indices, values = (tensors[f"{kind}.{part}"].numpy() for part in ("indptr", "indices", "values"))
    return sparse.csr_array((values, indices, indptr), shape=(len(indptr) - 1, n))


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()


def plain(value: Any) -> Any:
    """Convert to JSON types, with null for NaN."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and value != value else value


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
