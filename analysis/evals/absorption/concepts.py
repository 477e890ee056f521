"""Absorption of each concept from labelled rows: probes, main features, and each feature's part in the projection."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from analysis.evals.absorption.score import (
    DEFINITIONS,
    absorbed,
    below,
    f1_of,
    main_features,
    parts_of,
)
from analysis.evals.probes.logistic import fit
from analysis.evals.probes.sparse import matrix, mean_difference, sparse_probe
from sae.coder import Coder

HOLDS = 0.6
"""Minimum F1 of a probe on the activations for a concept to count as represented (SAEBench)."""
LEAST_ROWS = 5
"""Minimum number of rows where the probe correctly detects the concept."""


@dataclass(frozen=True)
class Labelled:
    """Rows with known concepts: one half for fitting probes, the other for measuring absorption.

    Attributes:
        x, target: activations.
        present: whether each row has each concept.
        fitted: mask of the rows for fitting probes.
        names: concept names.
    """

    x: Float[Tensor, "n d_in"]
    target: Float[Tensor, "n d_out"]
    present: Bool[np.ndarray, "n n_concepts"]
    fitted: Bool[np.ndarray, " n"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """A concept the activations represent: its probe's unit direction, and the test rows where the probe detects it."""

    name: str
    number: int
    f1: float
    direction: Float64[np.ndarray, " d_out"]
    rows: Int64[np.ndarray, " n_rows"]
    """Indices into `Labelled` of rows that have the concept and where its probe detects it."""


def held_concepts(labelled: Labelled) -> tuple[list[Held], dict[str, float]]:
    """Concepts that a probe on the activations finds, and the F1 of each concept's probe."""
    train, test = np.flatnonzero(labelled.fitted), np.flatnonzero(~labelled.fitted)
    y = labelled.present
    probes = fit(labelled.target[train].cpu(), torch.from_numpy(y[train]))
    said = (probes.logits(labelled.target[test].cpu()) > 0).numpy()
    f1 = {name: f1_of(said[:, c], y[test, c]) for c, name in enumerate(labelled.names)}
    found = []
    for c, name in enumerate(labelled.names):
        rows = test[said[:, c] & y[test, c]]
        if f1[name] >= HOLDS and len(rows) >= LEAST_ROWS:
            direction = probes.directions[c].numpy()
            found.append(Held(name, c, f1[name], direction / np.linalg.norm(direction), rows))
    return found, f1


@dataclass(frozen=True)
class Absorption:
    """Absorption of one concept in one dictionary.

    Attributes:
        concept: the concept.
        main: its main features.
        f1: F1 of the sparse probe on them, on the test rows.
        rows: absorption of each of the concept's rows, per definition.
    """

    concept: Held
    main: Int64[np.ndarray, " n_main"]
    f1: float
    rows: dict[str, Float64[np.ndarray, " n_rows"]]


def measure(labelled: Labelled, concepts: list[Held], coder: Coder) -> list[Absorption]:
    """Measure the absorption of each concept.

    ⟨x, p⟩ is relative to the decoding of a row without active features, so that the parts of all features and of the error
    sum to it. (SAEBench uses the activation itself, including its mean.)
    """
    code = coder.encode(labelled.x.to(coder.W_dec.device)).csr()
    codes = matrix(code)
    W = coder.W_dec.detach().double().cpu()
    W = (W / W.norm(dim=1, keepdim=True).clamp_min(1e-12)).numpy()
    base = coder.decode(code).double().cpu().numpy() - codes @ W
    x = labelled.target.double().cpu().numpy() - base
    train, test = labelled.fitted, ~labelled.fitted
    fitted, tested = codes[np.flatnonzero(train)], codes[np.flatnonzero(test)]
    differences = mean_difference(fitted, labelled.present[train], np.ones_like(labelled.present[train]))
    return [_absorption(one, labelled, differences[one.number], codes, fitted, tested, x, W) for one in concepts]


def _absorption(
    concept: Held, labelled: Labelled, difference: Float64[np.ndarray, " d_sae"], codes: Any, fitted: Any, tested: Any,
    x: Float64[np.ndarray, "n d"], W: Float64[np.ndarray, "d_sae d"],
) -> Absorption:
    present = labelled.present[:, concept.number]
    y_fit, y_test = present[labelled.fitted], present[~labelled.fitted]
    cosine = W @ concept.direction
    main = main_features(fitted, y_fit, difference, cosine)
    if not len(main):
        none = {name: np.zeros(len(concept.rows)) for name in DEFINITIONS}
        return Absorption(concept, main, 0.0, none)
    said = sparse_probe(fitted, y_fit, main).logits(tested).numpy() > 0
    special = below(codes, present, cosine)
    parts = parts_of(codes[concept.rows], x[concept.rows], concept.direction, W, main, special)
    return Absorption(concept, main, f1_of(said, y_test), absorbed(parts))
