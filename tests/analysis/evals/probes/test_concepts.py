"""What single features tell of labels, against scikit-learn on dense values."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import f1_score, roc_auc_score

from analysis.evals.probes.concepts import LEAST_FIRES, Labels, areas, concepts, f1_when_active


def codes(rng: np.random.Generator, n: int = 200, d_sae: int = 12, *, signed: bool = True) -> np.ndarray:
    """Rounded, so that many are equal; the last is never active."""
    dense = np.round(rng.standard_normal((n, d_sae)), 1) * (rng.random((n, d_sae)) < 0.3)
    dense[:, -1] = 0
    return dense if signed else np.abs(dense)


def test_areas_and_f1_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    dense, y = codes(rng), rng.random((200, 4)) < [0.5, 0.1, 0.9, 1.0]
    found = areas(csr_array(dense), y)
    for c in range(3):
        assert found[c] == pytest.approx([roc_auc_score(y[:, c], dense[:, f]) for f in range(12)])
    assert np.isnan(found[3]).all() and (found[:3, -1] == 0.5).all()
    expected = [[f1_score(y[:, c], dense[:, f] != 0) for f in range(12)] for c in range(4)]
    assert f1_when_active(csr_array(dense), y) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("signed", [False, True])
def test_a_feature_tells_what_it_was_made_to_tell(signed: bool) -> None:
    """Feature 0 is active on class a; 1 on class d of the second task; 2 is negative on class b, which signs alone tell."""
    rng = np.random.default_rng(1)
    tasks = []
    for classes in (("a", "b"), ("c", "d")):
        sides = []
        for _ in range(2):
            y = np.eye(2, dtype=bool)[rng.integers(0, 2, 300)]
            dense = codes(rng, 300, 5, signed=signed)
            dense[:, 0] = y[:, 0] * rng.random(300) if "a" in classes else 0
            dense[:, 1] = y[:, 1] * rng.random(300) * (rng.random(300) < 0.5) if "d" in classes else 0
            dense[:, 2] = -1.0 * y[:, 1] if "b" in classes and signed else 0
            dense[: LEAST_FIRES - 1, 4] = 1
            sides += [csr_array(dense), y]
        tasks.append(Labels(classes, *sides))
    found = concepts(tasks, "rows", "probe_")
    told, area, f1 = (found[f"probe_{name}"].values for name in ("concept", "auc", "f1"))
    assert told[:2] == ("a", "d") and area[0] == 1 and f1[0] == 1
    recall = float((tasks[1].tested[:, [1]].toarray()[:, 0] > 0)[tasks[1].y_test[:, 1]].mean())
    assert area[1] == pytest.approx(0.5 + recall / 2) and f1[1] == pytest.approx(2 * recall / (1 + recall))
    assert told[2] == ("b" if signed else None) and (area[2] == f1[2] == 1 if signed else np.isnan(area[2]))
    assert told[4] is None and np.isnan(area[4]) and np.isnan(f1[4])
    # the label was chosen on other examples, so that a feature that tells nothing is near chance
    assert abs(area[3] - 0.5) < 0.1
