"""The rows, codes and token costs that evaluations share, against the run's own summary."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.evals.common.context import Context, open_context
from sae.io.files import read_json
from sae.metrics import FVE, ratio, recovered
from tests.analysis.evals.runs import train_small


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory.mktemp("context"), "tiny")


@pytest.fixture(scope="module")
def context(run: Path) -> Iterator[Context]:
    yield open_context(run, "full")


def test_rows_are_those_of_the_summary(run: Path, context: Context) -> None:
    held = read_json(run / "summary.json")["heldout"]
    rows, sae = context.rows, context.trained.sae
    assert len(rows) == held["n_rows"] and len(rows.units.id) == held["n_units"]
    code = context.code(sae)
    assert context.code(sae) is code
    fve = FVE(len(rows.units.id), sae.target.mean)
    fve.add(torch.from_numpy(rows.unit), rows.target, sae.decode(code))
    assert fve.value() == pytest.approx(held["fve"], abs=1e-6)
    l0 = ratio(rows.sums(code.l0().numpy()), rows.units.n_rows, rows.units.n_rows)
    assert (l0.value, [l0.low, l0.high]) == (held["l0"], held["l0_interval"])


def test_rows_are_the_tokens_they_say(context: Context) -> None:
    rows, tokens = context.rows, context._heldout_data.tokens
    assert tokens.tokens is not None and rows.token is not None
    assert np.array_equal(tokens.tokens[rows.seq, rows.position], rows.token)
    assert tokens.eligible[rows.seq, rows.position].all()
    hook, seq = context.trained.site.input, int(rows.seq[0])
    acts = context.model.activations(torch.from_numpy(tokens.tokens[seq : seq + 1]).long(), [hook])[hook][0]
    mine = rows.seq == seq
    assert torch.allclose(rows.x[torch.from_numpy(mine)], acts[rows.position[mine]], atol=1e-5)


def test_training_rows_are_of_other_documents(context: Context) -> None:
    documents = context.corpus.data.tokens.documents()
    train = context.train_rows
    assert not context.corpus.data.tokens.held_out[train.seq].any()
    assert np.array_equal(documents[train.seq, train.position], train.document)


def test_token_costs_are_those_of_the_summary(run: Path, context: Context) -> None:
    held, costs = read_json(run / "summary.json")["heldout"], context.costs(context.trained.sae)
    sums = {name: costs.sums(name) for name in costs.nats}
    found = recovered(sums["clean"], sums["spliced"], sums["mean"], costs.units.n_rows)
    assert found.value == pytest.approx(held["ce_recovered_mean"], rel=1e-5)
    assert sums["kl"].sum() / costs.units.n_rows.sum() == pytest.approx(held["kl"], rel=1e-5)


def test_without_its_cache_a_run_is_read_through_its_model(run: Path, context: Context, tmp_path: Path) -> None:
    import shutil

    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    config = (alone / "config.yaml").read_text()
    old = str(run.parents[1] / "cache")
    assert old in config
    (alone / "config.yaml").write_text(config.replace(old, str(tmp_path / "cache")))
    other = open_context(alone, "full")
    assert torch.allclose(other.rows.x, context.rows.x, atol=1e-4) and len(other.train_rows) == len(context.train_rows)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
