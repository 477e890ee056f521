"""From labelled rows to the absorption of each concept: probes, main features, and the parts that features have."""

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
"""F1 of the activations' own probe from which a concept counts as held by them (SAEBench)."""
LEAST_ROWS = 5
"""Rows with the concept that the probe must see, rightly."""


@dataclass(frozen=True)
class Labelled:
    """Rows whose concepts are known: one half to fit probes on, the other to measure absorption in.

    Attributes:
        x, target: activations.
        present: which row holds which concept.
        fitted: the rows that probes are fitted on.
        names: of the concepts.
    """

    x: Float[Tensor, "n d_in"]
    target: Float[Tensor, "n d_out"]
    present: Bool[np.ndarray, "n n_concepts"]
    fitted: Bool[np.ndarray, " n"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """A concept that the activations hold: the unit direction of its probe, and the test rows where the probe sees it."""

    name: str
    number: int
    f1: float
    direction: Float64[np.ndarray, " d_out"]
    rows: Int64[np.ndarray, " n_rows"]
    """Of `Labelled`, those that hold the concept and where its probe says so."""


def held_concepts(labelled: Labelled) -> tuple[list[Held], dict[str, float]]:
    """The concepts that a probe of the activations finds, and the F1 of each concept's probe."""
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
    """The absorption of one concept in one dictionary.

    Attributes:
        concept: which.
        main: its main features.
        f1: of the sparse probe on them, on the test rows.
        rows: absorption of each of the concept's rows, by definition.
    """

    concept: Held
    main: Int64[np.ndarray, " n_main"]
    f1: float
    rows: dict[str, Float64[np.ndarray, " n_rows"]]


def measure(labelled: Labelled, concepts: list[Held], coder: Coder) -> list[Absorption]:
    """The absorption of each concept.

    ⟨x, p⟩ is taken from where a row without any feature would be decoded, so that the parts of all features and of the
    error add up to it. (SAEBench takes the activation as it is, mean and all.)
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
