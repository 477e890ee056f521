"""Absorption in a synthetic world, by dictionaries that are known to absorb and known not to."""

from pathlib import Path

import pytest
from torch import Tensor

import training
from analysis.evals.absorption.score import DEFINITIONS
from analysis.evals.common.context import Context, open_context
from analysis.evals.metrics.absorption import Settings, run
from sae.code import SparseCode, from_dense
from sae.errors import SaescopeError
from tests.analysis.indexed_runs import train_tiny
from tests.helpers import quick_fields

CHILD = 0.4
WORLD = {"d": 64, "roots": 3, "branching": [16], "density": 0.3, "child": CHILD, "spread": 0.0, "noise": 0.02,
         "orthogonal": True}


class Dictionary:
    """The world's own directions; with `absorbs`, children hold their parent's too, which is then silent."""

    def __init__(self, directions: Tensor, parents: list[int], *, absorbs: bool) -> None:
        self.directions, self.parents, self.absorbs = directions, parents, absorbs
        self.W_dec = directions.clone()
        if absorbs:
            for child, parent in enumerate(parents):
                if parent >= 0:
                    self.W_dec[child] = (directions[child] + directions[parent]) / 2**0.5
        self.d_sae = len(directions)

    def encode(self, x: Tensor) -> SparseCode:
        acts = x @ self.directions.t()
        acts = acts * (acts > 0.5)
        if self.absorbs:
            for child, parent in enumerate(self.parents):
                if parent >= 0:
                    acts[acts[:, child] > 0, parent] = 0
                    acts[:, child] *= 2**0.5
        return from_dense(acts)

    def decode(self, code: SparseCode) -> Tensor:
        return code.to_dense() @ self.W_dec


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Context:
    root = tmp_path_factory.mktemp("world")
    fields = quick_fields(name="world", model=None, site="acts", cache={"dir": str(root / "cache")},
                          corpus={"sources": "python-stdlib", "n_tokens": 8192, "synthetic": WORLD}, eval={"n_tokens": 0})
    del fields["corpus"]["sources"]
    training.train(fields, runs=root / "runs", quiet=True)
    return open_context(root / "runs" / "world")


@pytest.mark.parametrize("absorbs", [False, True])
def test_a_known_dictionary_has_its_known_absorption(synthetic: Context, absorbs: bool) -> None:
    world = synthetic.corpus.data.source
    dictionary = Dictionary(world.directions, world.parents, absorbs=absorbs)
    found = run(synthetic, dictionary, Settings(n_rows=8192))
    metrics = found.metrics["known hierarchy"]
    expected = CHILD if absorbs else 0.0
    for name in DEFINITIONS:
        assert metrics[name].value == pytest.approx(expected, abs=0.03), name
        assert metrics[name].direction == "lower"
    assert metrics["main_features"].value == 1
    assert [record["concept"] for record in found.details] == ["feature 0", "feature 17", "feature 34"]
    assert metrics["full"].low is not None and metrics["full"].low <= metrics["full"].value
    # what an absorbed feature stands for it misses: its F1 falls to 2 · 0.6 / 1.6
    assert metrics["main_f1"].value == pytest.approx(0.75 if absorbs else 1.0, abs=0.03)


def test_a_model_without_words_says_so(tmp_path: Path) -> None:
    context = open_context(train_tiny(tmp_path, "bytes"))
    with pytest.raises(SaescopeError, match="native:tiny"):
        run(context, context.sae, Settings())
