"""A circuit: nodes, edges, what was measured of them, and everything needed to make it again."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from analysis.circuits.nodes import Nodes
from training.site import Site


@dataclass(frozen=True)
class SiteInfo:
    """A site of a circuit and the SAE that was spliced in there."""

    name: str
    """Short and unique in its circuit, such as `resid-9` or `attn-12`."""
    site: Site
    sae: str
    """Hash of the SAE's weights (`sae.store.weights_hash`)."""
    d_sae: int
    variant: str
    run: str | None = None
    """Folder of the run, as the config gave it."""
    skip: bool = False
    """Whether the SAE has a skip path, or other offsets that depend on its input."""


@dataclass(frozen=True)
class Circuit:
    """A graph of features with its measurements. Arrays are by node, or by edge.

    Attributes:
        name: of the artefact.
        model: name and identity of the language model (`Model.identity`).
        sites: in causal order; `nodes.site` counts them.
        task: the task's config as resolved, the metric, and how well the model does it.
        settings: estimator, reference, thresholds, numbers of examples, seeds.
        prompt: pieces of text by position, of one example, to show where a node is; empty where positions are summed.
        nodes: features, errors, skip paths.
        effect: mean over examples of what moving the node to its reference does to the metric.
        low, high: the interval of that mean over bootstraps of the examples.
        value, reference: mean value of a feature in clean and reference runs; of errors and skip paths their mean norm.
        inclusion: share of bootstraps in which the node is among as many chosen; NaN where it was not measured.
        source, target: edges, as indices into `nodes`; target OUTPUT is the metric.
        weight, weight_low, weight_high: mean effect of an edge and its interval.
        edge_inclusion: as `inclusion`.
        scores: faithfulness, completeness, baselines and so on, in JSON types.
    """

    name: str
    model: dict[str, Any]
    sites: tuple[SiteInfo, ...]
    task: dict[str, Any]
    settings: dict[str, Any]
    prompt: tuple[str, ...]
    nodes: Nodes
    effect: Float64[np.ndarray, " n_nodes"]
    low: Float64[np.ndarray, " n_nodes"]
    high: Float64[np.ndarray, " n_nodes"]
    value: Float64[np.ndarray, " n_nodes"]
    reference: Float64[np.ndarray, " n_nodes"]
    inclusion: Float64[np.ndarray, " n_nodes"]
    source: Int64[np.ndarray, " n_edges"]
    target: Int64[np.ndarray, " n_edges"]
    weight: Float64[np.ndarray, " n_edges"]
    weight_low: Float64[np.ndarray, " n_edges"]
    weight_high: Float64[np.ndarray, " n_edges"]
    edge_inclusion: Float64[np.ndarray, " n_edges"]
    scores: dict[str, Any] = field(default_factory=dict)
