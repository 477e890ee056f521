"""Runs with evaluations as `sae eval` writes them, made without a model."""

from pathlib import Path

import numpy as np

from analysis.evals.common import result
from analysis.evals.common.intervals import plain, ratio
from analysis.evals.common.result import EvalResult, Found, Metrics, Units
from tests.analysis.run_folders import write_run

N_DOCUMENTS = 40


def write_evaluated(
    root: Path, name: str, *, fve: float, l0: float, rows: str = "held out", seed: int = 0, k: int = 4
) -> Path:
    """A run with `core`, a random SAE and PCA beside it, and a control that is lacking."""
    folder = write_run(root, name, sae__seed=seed, sae__k=k)
    units = {"rows": Units("document", np.arange(N_DOCUMENTS), np.full(N_DOCUMENTS, 50.0))}
    noise = np.random.default_rng(1).random(N_DOCUMENTS)  # the documents are the same, whatever the run

    def of(fve: float, l0: float) -> Found:
        return Found(_metrics(fve, l0, noise), units, notes=("Cross-entropy was not measured: there is no model.",))

    inputs = {"id": f"{name} {fve}", "rows": {"split": rows}}
    controls = {"random": of(0.05, l0), "pca": of(0.4, l0)}
    result.write(EvalResult("core", "Reconstruction and sparsity", 1, name, inputs, {}, {}, of(fve, l0), controls,
                            ("frozen-decoder",)), folder)
    return folder


def _metrics(fve: float, l0: float, noise: np.ndarray) -> Metrics:
    n = np.full(N_DOCUMENTS, 50.0)
    return {
        "reconstruction": {"fve": ratio((fve + 0.02 * (noise - noise.mean())) * n, n, n, unit="share", direction="higher",
                                        formula="1 − Σ‖t − t̂‖² / Σ‖t − mean t‖²")},
        "sparsity": {"l0": ratio((l0 + noise - noise.mean()) * n, n, n, unit="features per row", direction="none",
                                 formula="mean number of features with a value ≠ 0"),
                     "dead": plain(0.1, unit="share", direction="lower", formula="share of features never active", n=64)},
    }
