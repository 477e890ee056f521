"""Recovery against answers that are known without it, and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score as sk_f1
from sklearn.metrics import matthews_corrcoef

from analysis.evals.recovery import cosines, match, recovery
from sae.code import from_dense
from training.activations.synthetic import Synthetic
from training.config.synthetic import SyntheticConfig


def world(**fields: object) -> tuple[Synthetic, torch.Tensor]:
    synthetic = Synthetic(SyntheticConfig.model_validate({"d": 20, "roots": 2, "branching": (3, 2), "density": 0.4,
                                                         "orthogonal": True, **fields}))
    return synthetic, synthetic.part(0, 4000)[1]


def test_the_truth_itself_permuted_turned_and_scaled_recovers_everything() -> None:
    synthetic, codes = world(bipolar=0.5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    found = recovery(-3 * synthetic.directions[order], from_dense(-codes[:, order]), synthetic.directions,
                     from_dense(codes), synthetic.parents)
    assert found.plain() == pytest.approx({"f1": 1, "mcc": 1, "mmc": 1, "absorption": 0})


def test_a_dictionary_that_absorbs_all_parents() -> None:
    synthetic, codes = world(branching=(3,), roots=4)
    parents = np.array(synthetic.parents)
    # a child's feature is parent + child, and the parent's is silent wherever a child is present
    directions = synthetic.directions.clone()
    acts = codes.clone()
    for child in np.flatnonzero(parents >= 0):
        directions[child] += synthetic.directions[parents[child]]
        acts[codes[:, child] != 0, parents[child]] = 0
    found = recovery(directions, from_dense(acts), synthetic.directions, from_dense(codes), synthetic.parents)
    assert found.absorption == 1.0
    # children are found exactly; of a parent's rows only those without a child are left
    alone = [float((acts[:, p] != 0).sum()) / float((codes[:, p] != 0).sum()) for p in np.flatnonzero(parents < 0)]
    assert found.f1 == pytest.approx((12 + sum(2 * a / (1 + a) for a in alone)) / 16)
    assert found.mmc == pytest.approx((4 + 12 * 0.5**0.5) / 16)


def test_a_silent_parent_is_not_absorbed_by_a_child_that_does_not_contain_it() -> None:
    synthetic, codes = world()
    acts = codes.clone()
    acts[:, np.array(synthetic.parents) < 0] = 0
    found = recovery(synthetic.directions, from_dense(acts), synthetic.directions, from_dense(codes), synthetic.parents)
    assert found.absorption == 0.0
    assert found.f1 == pytest.approx(18 / 20)


def test_f1_and_mcc_are_those_of_scikit_learn() -> None:
    synthetic, codes = world()
    generator = torch.Generator().manual_seed(0)
    acts = codes * (torch.rand(codes.shape, generator=generator) < 0.7) + (
        torch.rand(codes.shape, generator=generator) < 0.05)
    found = recovery(synthetic.directions, from_dense(acts), synthetic.directions, from_dense(codes), synthetic.parents)
    there, active = (codes != 0).numpy(), (acts != 0).numpy()
    assert found.f1 == pytest.approx(np.mean([sk_f1(there[:, f], active[:, f]) for f in range(20)]))
    assert found.mcc == pytest.approx(np.mean([matthews_corrcoef(there[:, f], active[:, f]) for f in range(20)]))


def test_the_matching_is_the_best_of_all() -> None:
    from itertools import permutations

    generator = torch.Generator().manual_seed(3)
    cosine = cosines(torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator))
    best = max(sum(abs(cosine[f, p[f]]) for f in range(5)) for p in permutations(range(5)))
    assert np.abs(cosine[np.arange(5), match(cosine)]).sum() == pytest.approx(best)


def test_too_narrow_a_dictionary() -> None:
    synthetic, codes = world()
    found = recovery(synthetic.directions[:5], from_dense(codes[:, :5].contiguous()), synthetic.directions,
                     from_dense(codes), synthetic.parents)
    assert found.f1 == found.mcc == pytest.approx(5 / 20)


def test_nothing_to_average() -> None:
    synthetic, codes = world(branching=())
    nothing = torch.zeros_like(codes)
    found = recovery(synthetic.directions, from_dense(codes), synthetic.directions, from_dense(nothing), synthetic.parents)
    assert found.plain() == {"f1": None, "mcc": None, "mmc": None, "absorption": None}
