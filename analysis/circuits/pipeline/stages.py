"""Cached stages of a circuit, so that an interrupted run resumes: one file each, with a hash of its inputs."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from scipy import sparse
from torch import Tensor

from analysis.circuits.nodes import EdgeEffects, NodeEffects, Nodes
from sae.io import files

Tensors = Mapping[str, Tensor]


class Stages:
    """Results of stages in one folder. A stage is recomputed when its inputs have changed."""

    def __init__(self, folder: Path, inputs: Mapping[str, Any], *, again: bool = False) -> None:
        """Set up the cache; nothing is read or written yet.

        Args:
            folder: folder of all stages.
            inputs: everything that any stage depends on, in JSON types.
            again: ignore existing results.
        """
        self.folder, self.inputs, self.again = folder, inputs, again

    def given(self, **inputs: Any) -> "Stages":
        """The same cache with further inputs, in JSON types."""
        return Stages(self.folder, {**self.inputs, **inputs}, again=self.again)

    def has(self, name: str, *keys: str) -> bool:
        """Whether the tensors of a stage exist and were made from these inputs."""
        path = self.folder / f"{name}.safetensors"
        return not self.again and path.is_file() and _made_from(path) == self._digest(keys)

    def json(self, name: str, make: Callable[[], Any], *keys: str) -> Any:
        """Load or compute a stage whose result has JSON types; `keys` names the inputs it depends on."""
        path, digest = self.folder / f"{name}.json", self._digest(keys)
        if path.is_file() and not self.again:
            found = files.read_json(path)
            if found.get("made_from") == digest:
                return found["result"]
        result = make()
        files.write_json(path, {"made_from": digest, "result": result})
        return result

    def tensors(self, name: str, make: Callable[[], Tensors], *keys: str) -> dict[str, Tensor]:
        """Load or compute a stage whose result is tensors by name."""
        path, digest = self.folder / f"{name}.safetensors", self._digest(keys)
        made_from = torch.frombuffer(bytearray(digest.encode()), dtype=torch.uint8)
        if self.has(name, *keys):
            found = files.read_tensors(path)
            del found["made_from"]
            return found
        result = dict(make())
        files.write_tensors(path, {**result, "made_from": made_from})
        return result

    def _digest(self, keys: tuple[str, ...]) -> str:
        chosen = {key: self.inputs[key] for key in keys}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def _made_from(path: Path) -> str:
    return bytes(files.read_tensors(path)["made_from"].tolist()).decode()


def node_tensors(effects: NodeEffects) -> dict[str, Tensor]:
    """Node effects as tensors."""
    return {"nodes": _columns(effects.nodes), **_matrix(effects.values)}


def node_effects_of(tensors: Tensors) -> NodeEffects:
    """Inverse of `node_tensors`."""
    return NodeEffects(_nodes(tensors), _csr(tensors))


def edge_tensors(effects: EdgeEffects) -> dict[str, Tensor]:
    """Edge effects as tensors."""
    edges = torch.from_numpy(np.stack([effects.source, effects.target]))
    return {"nodes": _columns(effects.nodes), "edges": edges, **_matrix(effects.values)}


def edge_effects_of(tensors: Tensors) -> EdgeEffects:
    """Inverse of `edge_tensors`."""
    source, target = tensors["edges"].numpy()
    return EdgeEffects(_nodes(tensors), source, target, _csr(tensors))


def _columns(nodes: Nodes) -> Int64[Tensor, "3 n_nodes"]:
    return torch.from_numpy(np.stack([nodes.site, nodes.position, nodes.feature]))


def _nodes(tensors: Tensors) -> Nodes:
    return Nodes(*tensors["nodes"].numpy())


def _matrix(values: sparse.csr_array) -> dict[str, Tensor]:
    return {
        "data": torch.from_numpy(values.data), "indices": torch.from_numpy(values.indices.astype(np.int64)),
        "indptr": torch.from_numpy(values.indptr.astype(np.int64)), "shape": torch.tensor(values.shape),
    }


def _csr(tensors: Tensors) -> sparse.csr_array:
    parts = (tensors["data"].numpy(), tensors["indices"].numpy(), tensors["indptr"].numpy())
    return sparse.csr_array(parts, shape=tuple(tensors["shape"].tolist()))
