"""`sae demo`: each step in its place, a labelled feature at the end, nothing done twice; the server runs beside it."""

import re
from pathlib import Path

import numpy as np

from analysis.index import open_index
from analysis.labels.first_look import good_first
from analysis.labels.store import Label, Labels
from dashboard.demo import STEPS
from tests.analysis.index.small_indexes import make_index
from tests.helpers import ended, run_sae, start_sae, write_config


def test_from_nothing_to_a_labelled_feature(tmp_path: Path) -> None:
    write_config(tmp_path)
    first = run_sae(tmp_path, "demo", "quick.yaml", "--no-dashboard")
    assert first.code == 0, first.err
    places = [line[0] for line in first.err.splitlines() if re.match(r"\d of 6: ", line)]
    assert list(dict.fromkeys(places)) == list("123456")
    assert all(f"{i + 1} of 6: {step}" in first.err for i, step in enumerate(STEPS))
    run = tmp_path / "runs" / "quick"
    feature = good_first(open_index(run), Labels(run))
    assert f"sae show runs/quick {feature}\n" in first.out and Labels(run).get(feature) is not None
    before = [label.updated for label in Labels(run).all()]
    again = run_sae(tmp_path, "demo", "quick.yaml", "--no-dashboard")
    assert again.out == first.out and "already finished" in again.err
    assert [label.updated for label in Labels(run).all()] == before


def test_the_server_runs_beside_and_ends_with_it(tmp_path: Path) -> None:
    write_config(tmp_path)
    done = ended(start_sae(tmp_path, "demo", "quick.yaml", "--port", "0"))
    assert done.code == 0, done.err
    assert "terminal    sae show runs/quick" in done.out


def test_a_good_first_feature_has_a_label_that_holds(tmp_path: Path) -> None:
    # feature 0 fires nearly everywhere, 1 and 2 in forty contexts, 3 in one, 4 never
    acts = np.zeros((60, 100, 5))
    acts[:, :, 0] = 1
    acts[:40, 7, 1], acts[:40, 9, 2] = 2, np.linspace(1, 9, 40)
    acts[50, :30, 3] = 1
    acts[:, :, 0][(acts[:, :, 1:] > 0).any(2)] = 0
    index = make_index(tmp_path, acts, np.zeros((60, 100), np.int64))
    labels = Labels(tmp_path / "run")
    assert good_first(index, labels) in (1, 2)
    labels.put([Label(0, "all", "auto", score=1.0, baseline=0.5), Label(1, "a", "auto", score=0.7, baseline=0.5),
                Label(2, "b", "auto", score=0.9, baseline=0.8)])
    assert good_first(index, labels) == 1
    # a word is seen sooner than a space
    labels.put([Label(2, "token ` return`", "auto", score=0.6, baseline=0.5)])
    assert good_first(index, labels) == 2
