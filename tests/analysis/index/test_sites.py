"""An index at each kind of site, against rows put together by hand from the cache's files; and an index made before."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import sae
from analysis.corpus_rows import open_rows
from analysis.index import build, open_index
from analysis.prompt import encode_text
from analysis.trained import open_trained
from sae.errors import SaescopeError
from sae.io.files import read_json, write_json
from tests.helpers import HOOK, refusal, run_sae, train, write_config, write_corpus
from training.evaluate import HeldOut

BEFORE, MIDDLE, MLP = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"
SITES: dict[str, dict[str, Any]] = {
    "sae": {"site": HOOK},
    "transcoder": {"site": {"input": MIDDLE, "target": MLP}, "sae": {"skip": True}},
    "update": {"site": {"input": BEFORE, "target": HOOK, "update": True}},
    "both": {"site": {"input": BEFORE, "target": HOOK, "update": "both"}},
}


class ByHand(NamedTuple):
    """The rows of a run, from files alone."""

    x: torch.Tensor
    target: torch.Tensor
    kept: np.ndarray
    held_out: np.ndarray


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind; held-out figures are over every held-out row."""
    root = tmp_path_factory.mktemp("sites")
    write_corpus(root / "corpus", 120)  # enough held-out documents for an interval
    for kind, sections in SITES.items():
        write_config(root, name=kind, eval={"n_rows": 100_000, "n_tokens": 0}, **sections)
        assert train(root, "--quiet").code == 0
    return root


def by_hand(root: Path, kind: str) -> ByHand:
    (cache,) = (p.parent for p in (root / "cache").glob("*/manifest.json"))
    tokens, held_out, eligible = (np.load(cache / f"{name}.npy") for name in ("tokens", "split", "eligible"))
    site = SITES[kind]["site"]
    first, last = (site, site) if isinstance(site, str) else (site["input"], site["target"])
    acts = {hook: np.concatenate([np.load(p).reshape(-1, 32) for p in sorted((cache / "acts" / hook).glob("shard-*.npy"))])
            for hook in (first, last)}
    kept, training = eligible.reshape(-1).copy(), np.flatnonzero(~held_out)
    calib = [training[int((i + 0.5) * len(training) / 8)] for i in range(8)]
    for rows in acts.values():  # outliers above 10 medians of 8 training sequences at equal distances
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        kept &= norms <= 10 * np.quantile(norms.reshape(tokens.shape)[calib][eligible[calib]], 0.5, method="lower")
    change = acts[last] - acts[first]
    x = change if kind == "both" else acts[first]
    target = change if kind in ("update", "both") else acts[last]
    return ByHand(torch.from_numpy(x), torch.from_numpy(target), kept, np.repeat(held_out, tokens.shape[1]))


@pytest.mark.parametrize("kind", SITES)
def test_every_row_is_encoded_as_the_site_says_and_explains_what_the_training_said(place: Path, kind: str) -> None:
    run, rows = place / "runs" / kind, by_hand(place, kind)
    index, model = build(run, quiet=True), sae.load(run)
    dense = np.zeros((len(rows.kept), model.d_sae), np.float32)
    dense[rows.kept] = model.encode(rows.x[rows.kept]).to_dense().numpy()
    assert np.array_equal(index.arrays["kept"].reshape(-1), rows.kept)
    found = index.csc().toarray()
    right = (found != 0) == (dense != 0)
    assert right.all(), f"{right.all(1).mean():.1%} of rows"
    np.testing.assert_allclose(found, dense, rtol=2**-10)
    judged = rows.kept & rows.held_out
    target, x_hat = rows.target[judged].double(), model(rows.x[judged]).detach().double()
    fve = 1 - float((target - x_hat).square().sum() / (target - target.mean(0)).square().sum())
    said = index.manifest["fidelity"]
    assert said["held_out"] and said["n_rows"] == judged.sum()
    assert said["fve"] == pytest.approx(fve, abs=1e-6)
    corpus = open_rows(open_trained(run))
    heldout = HeldOut(corpus.data.source, corpus.data.tokens, corpus.mask, corpus.trained.site.hooks, 10**6)
    assert said["fve"] == pytest.approx(heldout.measure(model, corpus.trained.site)["fve"], abs=1e-6)
    # the training's own evaluation is over other held-out documents
    summary = read_json(run / "summary.json")["heldout"]
    low, high = summary["fve_interval"]
    assert abs(said["fve"] - summary["fve"]) < 2 * (high - low)


def test_rows_the_site_does_not_give_are_refused(place: Path) -> None:
    wide = sae.load(place / "runs/both")
    wide.d_in = 16
    trained = open_trained(place / "runs/both")
    with pytest.raises(SaescopeError, match=r"width 16 to width 32, .* gives 32 and 32"):
        open_rows(replace(trained, sae=wide))


def test_an_index_of_the_version_before_is_refused_with_the_command_that_makes_it_again(place: Path) -> None:
    run = place / "runs/both"
    made = build(run, quiet=True)
    limits = dict(open_trained(run).limits)
    assert set(limits) == {BEFORE, HOOK}
    # as that version wrote it: the SAE says no limits
    manifest = read_json(made.folder / "manifest.json")
    write_json(made.folder / "manifest.json", manifest | {"format_version": 1})
    final = read_json(run / "final/sae.json")
    del final["provenance"]["mask"]
    write_json(run / "final/sae.json", final)
    with pytest.raises(SaescopeError, match=rf"format version 1, this code reads 2; .*`sae index {run} --again`"):
        open_index(run)
    assert "--again" in refusal(run_sae(place, "show", "runs/both", "3"), "show")
    assert "--again" in refusal(run_sae(place, "label", "runs/both"), "label")
    assert open_trained(run).limits == limits and encode_text(run, "reads on").kept.sum() == 8
    outcome = run_sae(place, "index", "runs/both")
    assert outcome.code == 0 and "FVE" in outcome.out
    again = json.loads((made.folder / "manifest.json").read_text())
    assert again == manifest


def test_rows_of_which_none_is_held_out_are_explained_whole(place: Path) -> None:
    rows, run = by_hand(place, "sae"), place / "runs/sae"
    n_rows = int(rows.held_out.argmax())
    said = build(run, name="few", n_rows=n_rows, quiet=True).manifest
    assert n_rows > 0 and said["fidelity"]["n_rows"] == said["counts"]["n_rows"] == rows.kept[:n_rows].sum()
    judged = np.flatnonzero(rows.kept[:n_rows])
    target, x_hat = rows.target[judged].double(), sae.load(run)(rows.x[judged]).detach().double()
    fve = 1 - float((target - x_hat).square().sum() / (target - target.mean(0)).square().sum())
    assert not said["fidelity"]["held_out"] and said["fidelity"]["fve"] == pytest.approx(fve, abs=1e-6)
