"""Recovery of a world's features: the two dictionaries whose figures are known, and rows that are what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import training
from analysis.evals.common.context import Context, open_context
from analysis.evals.metrics import ground_truth
from analysis.evals.metrics.ground_truth import Settings
from analysis.evals.recovery import cosines
from sae.code import SparseCode, from_dense
from sae.errors import SaescopeError
from training.activations.synthetic import Synthetic
from training.config.synthetic import SyntheticConfig

WORLD = {"d": 24, "roots": 6, "branching": [2], "singles": 14, "density": 0.08, "zipf": 0.5, "rank": 3, "correlation": 0.2,
         "noise": 0.0}
FIELDS = {
    "name": "world", "model": None, "site": "acts", "eval": {"n_rows": 1024, "every": "100%"},
    "corpus": {"n_ctx": 32, "n_tokens": 8192, "held_out": 0.2, "synthetic": WORLD},
    "data": {"batch_rows": 256, "n_calib": 16}, "sae": {"variant": "topk", "d_sae": 20, "k": 3},
    "optim": {"lr": 3e-3}, "train": {"budget": "40 steps", "device": "cpu", "kernels": "reference"},
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    root = tmp_path_factory.mktemp("world")
    training.train(FIELDS, runs=root / "runs", quiet=True)
    return open_context(root / "runs" / "world")


def test_the_true_code_is_that_of_the_rows(context: Context) -> None:
    world, rows = ground_truth.world_of(context), context.rows
    truth = ground_truth.true_code(world, rows, context.corpus.n_ctx)
    # there is no noise in this world
    assert torch.allclose(truth.to_dense() @ world.directions, rows.x, atol=1e-5)


def test_known_dictionaries_land_and_a_trained_one_lies_between(context: Context) -> None:
    known = ground_truth.references(context, Settings())
    oracle, permuted = known["oracle"]["recovery"], known["permuted-decoder"]["recovery"]
    for name in ("f1", "matthews", "mmc", "mcc", "f1_of_features", "unique"):
        assert oracle[name].value == pytest.approx(1)
    assert oracle["absorption"].value == 0
    assert permuted["mcc"].value == pytest.approx(1) and (permuted["f1"].value or 0) < 0.3
    found = ground_truth.run(context, context.sae, Settings()).metrics["recovery"]
    assert 0 < (found["f1"].value or 0) < 1 and 0 < (found["mcc"].value or 0) < 1


def test_a_broken_measurement_is_no_result(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    world = ground_truth.world_of(context)
    truth = ground_truth.true_code(world, context.rows, context.corpus.n_ctx)
    ground_truth.check(world, truth)
    other = ground_truth.taken(truth, torch.arange(truth.n_rows).flip(0))
    monkeypatch.setattr(ground_truth, "true_code", lambda *_: other)
    # codes of other rows are consistent with themselves, so the check is of the measuring, not of them
    monkeypatch.setattr(ground_truth, "recovery", lambda *_: ground_truth_broken())
    fresh = open_context(context.trained.folder)
    with pytest.raises(AssertionError):
        ground_truth.run(fresh, fresh.sae, Settings())


def ground_truth_broken() -> object:
    from analysis.evals.recovery import Recovery

    return Recovery(0.9, 1.0, 1.0, 0.0)


def test_the_nearest_features_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    directions, dictionary = torch.randn(9, 6), torch.randn(7, 6)
    there, active = rng.random((200, 9)) < 0.2, rng.random((200, 7)) < 0.25
    active[:, 3] = False
    codes: list[SparseCode] = [from_dense(torch.from_numpy(one).float()) for one in (there, active)]
    cosine = cosines(dictionary, directions)
    nearest, f1 = ground_truth.nearest_f1(cosine, *codes)
    assert nearest.tolist() == np.abs(cosine).argmax(0).tolist()
    by_hand = [f1_score(there[:, nearest[i]], active[:, i]) for i in range(7) if active[:, i].any()]
    assert np.isnan(f1[3]) and np.delete(f1, 3) == pytest.approx(by_hand)


def test_taken_rows() -> None:
    code = from_dense(torch.randn(20, 5) * (torch.rand(20, 5) < 0.4))
    rows = torch.tensor([3, 3, 19, 0, 7])
    assert torch.equal(ground_truth.taken(code, rows).to_dense(), code.to_dense()[rows])


def test_nothing_stays_where_it_was() -> None:
    order = ground_truth.shuffled(50)
    assert sorted(order.tolist()) == list(range(50)) and not (order == np.arange(50)).any()


def test_other_runs_have_no_known_features(tmp_path: Path) -> None:
    fields = {**FIELDS, "name": "own", "corpus": {"sources": f"acts:{tmp_path}/acts", "n_ctx": 32, "held_out": 0.2}}
    (tmp_path / "acts").mkdir()
    np.save(tmp_path / "acts" / "rows.npy", np.random.default_rng(0).standard_normal((4096, 8)).astype(np.float32))
    training.train(fields, runs=tmp_path / "runs", quiet=True)
    context = open_context(tmp_path / "runs" / "own")
    with pytest.raises(SaescopeError, match="synthetic world"):
        ground_truth.run(context, context.sae, Settings())


def test_singles_and_low_rank_correlation() -> None:
    config = SyntheticConfig.model_validate({**WORLD, "density": 0.3, "zipf": 0.0, "rank": 1, "correlation": 0.9})
    assert config.n_features == 6 * 3 + 14 and config.parents().count(-1) == 20
    assert config.parents()[-14:] == [-1] * 14 and np.linalg.norm(config.loadings(), axis=0) == pytest.approx(1)
    present = (Synthetic(config).part(0, 8192)[1] != 0).double()
    free = torch.tensor(config.parents()) < 0
    assert present[:, free].mean(0).numpy() == pytest.approx(0.3, abs=0.03)
    # with one hidden variable all loadings are ±1: any two are strongly correlated, one way or the other
    together = np.corrcoef(present[:, free].numpy().T)
    signs = np.sign(config.loadings()[0])
    off = ~np.eye(20, dtype=bool)
    assert ((together * np.outer(signs, signs))[off] > 0.2).all()
