"""Synthetic rows are what their config says, and a training takes them like any others."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sae.errors import SaescopeError
from training.activations.sources import Source
from training.activations.synthetic import DRAWN, Synthetic
from training.config import reading as configs
from training.config.synthetic import SyntheticConfig
from training.run import train

FIELDS = {
    "name": "known", "model": None, "site": "acts", "eval": {"n_rows": 512},
    "corpus": {"n_ctx": 32, "n_tokens": 4096, "held_out": 0.2, "synthetic": {"d": 16, "roots": 24, "density": 0.1}},
    "data": {"batch_rows": 128, "n_calib": 16}, "sae": {"variant": "topk", "d_sae": 24, "k": 3},
    "optim": {"lr": 3e-3}, "train": {"budget": "20 steps", "device": "cpu"},
}


def synthetic(**fields: object) -> Synthetic:
    return Synthetic(SyntheticConfig.model_validate(fields))


def codes(n: int = 40 * DRAWN, **fields: object) -> torch.Tensor:
    return synthetic(**fields).part(0, n)[1]


def test_a_row_does_not_depend_on_how_it_is_read() -> None:
    one = synthetic(seed=3, roots=10, d=8)
    x, code = one.part(0, 3 * DRAWN)
    for start, stop in ((0, 1), (DRAWN - 1, DRAWN + 1), (100, 2 * DRAWN + 5), (2500, 2500)):
        again = synthetic(seed=3, roots=10, d=8).part(start, stop)
        assert torch.equal(again[0], x[start:stop]) and torch.equal(again[1], code[start:stop])
    blocks = np.array([70, 3, 64])
    want = torch.cat([x[b * 32 : (b + 1) * 32] for b in blocks])
    assert torch.equal(one.rows("acts", blocks, 32), want)
    assert torch.equal(one.norms("acts", blocks, 32), want.norm(dim=1))
    assert torch.equal(one.codes(blocks, 32).to_dense(), torch.cat([code[b * 32 : (b + 1) * 32] for b in blocks]))
    assert isinstance(one, Source)
    assert not torch.equal(synthetic(seed=4, roots=10, d=8).part(0, 5)[0], x[:5])


def test_rows_are_the_sum_of_their_features_and_noise() -> None:
    one = synthetic(d=16, roots=24, density=0.1, noise=0.3)
    x, code = one.part(0, 8 * DRAWN)
    noise = x - code @ one.directions
    assert float(noise.square().sum(1).mean().sqrt()) == pytest.approx(0.3, rel=0.02)
    exact = synthetic(d=16, roots=24, density=0.1, noise=0.0)
    x, code = exact.part(0, DRAWN)
    assert torch.allclose(x, code @ exact.directions, atol=1e-6)


def test_densities_and_lengths() -> None:
    code = codes(roots=20, density=0.05, zipf=1.0, spread=0.4)
    want = 1 / np.arange(1, 21)
    assert (code != 0).float().mean(0).numpy() == pytest.approx(0.05 * want / want.mean(), abs=0.006)
    lengths = code[code != 0]
    assert 0.6 <= float(lengths.min()) < 0.62 and 1.38 < float(lengths.max()) <= 1.4


@pytest.mark.parametrize("exclusive", [True, False])
def test_hierarchy(exclusive: bool) -> None:
    fields = {"roots": 2, "branching": (3, 2), "density": 0.4, "child": 0.6, "exclusive": exclusive}
    one = synthetic(**fields)
    assert one.parents == [-1, 0, 1, 1, 0, 4, 4, 0, 7, 7, -1, 10, 11, 11, 10, 14, 14, 10, 17, 17]
    there = one.part(0, 40 * DRAWN)[1] != 0
    for child, parent in enumerate(one.parents):
        if parent >= 0:
            assert not (there[:, child] & ~there[:, parent]).any(), "a child without its parent"
            n = one.parents.count(parent)
            share = float(there[there[:, parent], child].float().mean())
            assert share == pytest.approx(0.6 / n, abs=0.03)
    siblings = there[:, [1, 4, 7]].sum(1)
    assert int(siblings.max()) == (1 if exclusive else 3)


def test_signs() -> None:
    code = codes(roots=16, bipolar=0.5, density=0.2)
    negative = (code < 0).sum(0) / (code != 0).sum(0)
    both = SyntheticConfig(roots=16, bipolar=0.5).is_bipolar()
    assert both.sum() == 8
    assert negative[~both].max() == 0
    assert negative[both].numpy() == pytest.approx(0.5, abs=0.05)


def test_correlation_within_groups_only() -> None:
    there = (codes(roots=6, group=3, correlation=0.8, density=0.2) != 0).double()
    r = np.corrcoef(there.numpy().T)
    assert there.mean(0).numpy() == pytest.approx(0.2, abs=0.02)
    assert min(r[0, 1], r[0, 2], r[4, 5]) > 0.4
    assert abs(r[0, 3]) < 0.03


def test_directions() -> None:
    assert torch.allclose(SyntheticConfig(roots=9, d=9, orthogonal=True).directions() @
                          SyntheticConfig(roots=9, d=9, orthogonal=True).directions().t(), torch.eye(9), atol=1e-5)
    assert torch.allclose(SyntheticConfig(roots=99, d=9).directions().norm(dim=1), torch.ones(99))


def test_a_training_takes_them_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    trained = train(FIELDS, runs=tmp_path, quiet=True)
    assert trained.summary["heldout"]["fve"] > 0.1
    again = train(FIELDS, runs=tmp_path / "again", quiet=True)
    assert again.summary["weights_sha256"] == trained.summary["weights_sha256"]


@pytest.mark.parametrize(("fields", "says"), [
    ({"roots": 20, "d": 10, "orthogonal": True}, "corpus.synthetic: 20 features cannot be orthogonal in d = 10"),
    ({"roots": 20, "density": 0.5, "zipf": 1.0}, "first root would be present with probability"),
    ({"roots": 20, "group": 3}, "group = 3 does not divide roots = 20"),
    ({"correlation": 0.5}, "correlation needs a group"),
    ({"density": 1.5}, "corpus.synthetic.density"),
    ({"branching": [0]}, "branching"),
    ({"rots": 3}, "rots"),
])
def test_bad_configs(fields: dict, says: str) -> None:
    with pytest.raises(SaescopeError, match=says):
        configs.resolve({**FIELDS, "corpus": {"synthetic": fields}})


@pytest.mark.parametrize(("over", "says"), [
    ({"model": "smollm2-135m"}, "set model: null"), ({"site": "blocks.0.hook_resid_post"}, "only has the hook acts"),
    ({"corpus": {"n_ctx": 32, "n_tokens": 32, "synthetic": {"d": 4}}}, "corpus.synthetic has 32 rows, 1 sequences"),
])
def test_bad_trainings(over: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(SaescopeError, match=says):
        train({**FIELDS, **over}, runs=tmp_path, quiet=True)


def test_rows_of_mostly_zeros_do_not_mask_the_others(tmp_path: Path) -> None:
    corpus = {"n_ctx": 32, "n_tokens": 4096, "held_out": 0.2,
              "synthetic": {"d": 16, "roots": 24, "density": 0.01, "noise": 0.0}}
    trained = train({**FIELDS, "corpus": corpus}, runs=tmp_path, quiet=True)
    assert trained.summary["mask"]["dropped_beyond_first"] == 0.0
    with pytest.raises(SaescopeError, match="every calibration row is zero"):
        corpus["synthetic"]["density"] = 1e-9
        train({**FIELDS, "corpus": corpus}, runs=tmp_path / "nothing", quiet=True)
