"""Held-out figures against known answers: a perfect SAE, one that says nothing, and a mask that keeps nothing."""

import argparse
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from sae.base import SAE
from sae.errors import SaescopeError
from sae.variants.relu import ReLU, ReLUConfig
from training.activations.cache import verify
from training.activations.calibration import KeepMask, calibrate, fit
from training.activations.harvest import Data, open_data, open_heldout
from training.config import reading as configs
from training.config.schema import Config, DataConfig, EvalConfig
from training.corpus.tokens import Tokens
from training.display import Display
from training.evaluate import HeldOut, Spliced
from training.site import Site

HOOK = "blocks.1.hook_resid_pre"
D = 32


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    fields: dict[str, Any] = {
        "name": "x", "model": {"name": "native:tiny", "dtype": "float32"},
        "corpus": {"sources": {"source": f"text:{argparse.__file__}", "split": "blank-line"}, "n_ctx": 32,
                   "n_tokens": 8000, "held_out": 0.3},
        "cache": {"dir": str(tmp_path_factory.mktemp("cache")), "dtype": "float32"},
        "site": HOOK, "sae": {"variant": "topk", "d_sae": 8, "k": 1}, "data": {"mask_hooks": (HOOK,)},
    }
    return configs.resolve(fields)[0]


@pytest.fixture(scope="module")
def data(config: Config) -> Data:
    return open_data(config, (HOOK,), Display(quiet=True))


@pytest.fixture
def mask(config: Config, data: Data) -> KeepMask:
    return KeepMask(data.source, data.tokens, config.data)


def perfect() -> SAE:
    """x = relu(x) − relu(−x): exact with twice as many features as dimensions."""
    sae = ReLU(ReLUConfig(d_sae=2 * D), D)
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    sae.W_enc.data.copy_(both.t())
    sae.W_dec.data.copy_(both)
    return sae


def silent(config: Config, mask: KeepMask) -> SAE:
    """Never active: reconstructs the training mean."""
    transform = calibrate(config.site, mask).input
    sae = ReLU(ReLUConfig(d_sae=2 * D), D, input=transform)
    sae.b_enc.data.fill_(-1.0)
    return sae


def test_rows_of_a_perfect_and_of_a_silent_sae(config: Config, data: Data, mask: KeepMask) -> None:
    heldout = HeldOut(data.source, data.tokens, mask, [HOOK], 2000)
    good, none = heldout.measure(perfect(), config.site), heldout.measure(silent(config, mask), config.site)
    assert good["fve"] == pytest.approx(1, abs=1e-6) and good["l0"] == pytest.approx(D)
    assert good["dense"] > 0.9 and good["silent"] == 0
    assert none["fve"] == pytest.approx(0, abs=0.2) and none["fve"] <= 0 and none["l0"] == 0 and none["silent"] == 1
    eligible = data.tokens.eligible[heldout.seqs]
    assert heldout.n_rows <= eligible.sum() and heldout.n_rows > 0.9 * eligible.sum()
    held = set(data.tokens.sequences(held_out=True).tolist())
    assert set(heldout.seqs.tolist()) <= held


@pytest.fixture(scope="module")
def mixed(config: Config, data: Data) -> Data:
    """Sequences of which most hold pieces of several documents."""
    held = open_heldout(config, data, Display(quiet=True), 1500)
    documents = held.tokens.documents()
    assert (documents != documents[:, :1]).any(1).mean() > 0.5
    return held


def half() -> SAE:
    """Half of every activation: right about some rows more than about others."""
    sae = perfect()
    sae.W_enc.data.mul_(0.5)
    return sae


def over_documents(sums: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Σ first / Σ second, and what leaving out each document says of it."""
    over, under = np.array(sums).T
    n, value = len(sums), over.sum() / under.sum()
    without = (over.sum() - over) / (under.sum() - under)
    kish = under.sum() ** 2 / np.square(under).sum()
    half = stats.t.ppf(0.975, kish - 1) * ((n - 1) * without.var()) ** 0.5
    return value, value - half, value + half


def test_rows_count_to_their_own_document_not_to_their_sequence(config: Config, mixed: Data, mask: KeepMask) -> None:
    data = mixed
    heldout = HeldOut(data.source, data.tokens, mask, [HOOK], 1500)
    mask = mask.over(data.source, data.tokens)
    sae = half()
    measured = heldout.measure(sae, config.site)
    document = data.tokens.documents()[heldout.seqs].reshape(-1)
    keep = mask.keep(heldout.seqs, 32)
    rows = data.source.rows(HOOK, heldout.seqs, 32)
    l0, cosine = [], []
    for number in np.unique(document[keep.numpy()]):
        mine = rows[keep & torch.from_numpy(document == number)]
        l0.append((float((sae.encode(mine).to_dense() != 0).sum()), len(mine)))
        cosine.append((float(torch.nn.functional.cosine_similarity(mine, sae(mine)).sum()), len(mine)))
    for name, sums in (("l0", l0), ("cosine", cosine)):
        assert (measured[name], *measured[f"{name}_interval"]) == pytest.approx(over_documents(sums), rel=1e-4)
    assert measured["n_units"] == measured["n_documents"] == len(l0) > measured["n_seqs"]
    assert measured["interval_unit"] == "document" and measured["n_rows"] == int(keep.sum())
    assert measured["fve_interval"][0] < measured["fve"] < measured["fve_interval"][1]


def test_predicted_tokens_count_to_their_own_document(config: Config, mixed: Data, mask: KeepMask) -> None:
    data = mixed
    assert data.model is not None and data.tokens.tokens is not None
    spliced = Spliced(data.model, data.source, data.tokens, mask, 1200)
    (measured,) = spliced.measure([(half(), config.site)])
    ids = torch.from_numpy(data.tokens.tokens[spliced.seqs]).long()
    document = data.tokens.documents()[spliced.seqs][:, 1:]
    clean = data.model.logits(ids)[:, :-1].log_softmax(-1)
    keep = mask.over(data.source, data.tokens).keep(spliced.seqs, 32).view(len(ids), 32, 1)
    with data.model.splice(HOOK, lambda acts: torch.where(keep, acts / 2, acts)):
        halved = data.model.logits(ids)[:, :-1].log_softmax(-1)
    with data.model.splice(HOOK, lambda acts: torch.where(keep, torch.zeros(()), acts)):
        zeroed = data.model.logits(ids)[:, :-1].log_softmax(-1)
    ce, ce_halved, ce_zeroed = (
        -logits.gather(-1, ids[:, 1:, None]).squeeze(-1).double().numpy() for logits in (clean, halved, zeroed)
    )
    kl = (clean.exp() * (clean - halved)).sum(-1).double().numpy()
    masks = [document == number for number in np.unique(document)]
    for name, values in (("ce_clean", ce), ("ce_spliced", ce_halved), ("kl", kl)):
        by_hand = over_documents([(values[mine].sum(), mine.sum()) for mine in masks])
        assert (measured[name], *measured[f"{name}_interval"]) == pytest.approx(by_hand, rel=1e-3)
    recovered = np.array([[(ce_zeroed - ce_halved)[mine].sum(), (ce_zeroed - ce)[mine].sum()] for mine in masks])
    value = recovered[:, 0].sum() / recovered[:, 1].sum()
    assert measured["ce_recovered_zero"] == pytest.approx(value, rel=1e-3, abs=1e-5)
    assert measured["ce_n_units"] == len(masks)


def test_what_is_evaluated_on_lies_beside_the_cache(config: Config, data: Data, mask: KeepMask) -> None:
    held = open_heldout(config, data, Display(quiet=True))
    assert mask.over(held.source, held.tokens).limits == mask.limits
    few = config.model_copy(update={"eval": EvalConfig(n_rows=64, n_tokens=0)})
    assert open_heldout(few, data, Display(quiet=True)).tokens.n_seqs == 2
    # as streamed, bit for bit
    assert data.model is not None and held.tokens.folder is not None
    stream = config.model_copy(update={"cache": config.cache.model_copy(update={"mode": "stream"})})
    streamed = open_heldout(stream, data, Display(quiet=True))
    seqs = held.tokens.sequences(held_out=True)
    assert len(seqs) == held.tokens.n_seqs
    assert torch.equal(held.source.rows(HOOK, seqs, 32), streamed.source.rows(HOOK, seqs, 32))
    # and the cache is whole with them
    assert data.tokens.folder is not None and verify(data.tokens.folder) == []
    (held.tokens.folder / "tokens.npy").write_bytes(b"")
    (problem,) = verify(data.tokens.folder)
    assert "tokens.npy" in problem
    shutil.rmtree(held.tokens.folder)


def test_splicing_a_perfect_sae_loses_nothing_and_a_silent_one_everything(
    config: Config, data: Data, mask: KeepMask
) -> None:
    assert data.model is not None
    spliced = Spliced(data.model, data.source, data.tokens, mask, 600)
    (good,), (none,) = (spliced.measure([(sae, config.site)]) for sae in (perfect(), silent(config, mask)))
    assert good["ce_spliced"] == pytest.approx(good["ce_clean"], abs=1e-5)
    assert good["kl"] == pytest.approx(0, abs=1e-5)
    assert none["ce_spliced"] == pytest.approx(none["ce_mean"], abs=1e-5)
    assert none["kl"] > 1e-4
    assert none["ce_recovered_mean"] == pytest.approx(0, abs=1e-3)
    assert good["ce_n_tokens"] >= 600
    # by hand, from the model itself
    assert data.tokens.tokens is not None
    ids = torch.from_numpy(data.tokens.tokens[spliced.seqs]).long()
    logits = data.model.logits(ids)[:, :-1]
    by_hand = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert good["ce_clean"] == pytest.approx(float(by_hand), rel=1e-5)


def test_masked_rows_pass_unchanged(config: Config, data: Data, mask: KeepMask) -> None:
    assert data.model is not None
    mask.limits[HOOK] = 0.0
    (none,) = Spliced(data.model, data.source, data.tokens, mask, 300).measure([(silent(config, mask_of(config, data)),
                                                                                 config.site)])
    assert none["ce_spliced"] == none["ce_clean"] == none["ce_zero"] == none["ce_mean"]
    assert none["kl"] == 0
    assert none["ce_recovered_mean"] is None, "nothing was lost, so there is nothing to recover"


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"])
def test_sequences_that_an_ablation_makes_equal_share_a_run(
    hook: str, config: Config, data: Data, mask: KeepMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.model is not None
    spliced = Spliced(data.model, data.source, data.tokens, mask, 1500)
    members, n_run = [(silent(config, mask), Site(input=hook))], []
    logits = data.model.logits
    with monkeypatch.context() as patch:
        patch.setattr(data.model, "logits", lambda ids: n_run.append(len(ids)) or logits(ids))
        (shared,) = spliced.measure(members)
    monkeypatch.setattr("training.evaluate.RESIDUAL", re.compile("no hook is called this"))
    (apart,) = spliced.measure(members)
    for name in ("ce_mean", "ce_zero", "ce_spliced", "ce_clean"):
        assert shared[name] == pytest.approx(apart[name], rel=1e-6)
    n_seqs = len(spliced.seqs)
    # clean and spliced in full; of the two ablations what differs
    assert 2 * n_seqs < sum(n_run) < 3 * n_seqs


def mask_of(config: Config, data: Data) -> KeepMask:
    return KeepMask(data.source, data.tokens, config.data)


@pytest.mark.parametrize("update", [True, "both"])
def test_an_update_site_adds_the_reconstruction_to_the_input(
    update: bool | str, config: Config, data: Data, tmp_path: Path
) -> None:
    """A silent update SAE with mean zero leaves the block's input in place of its output."""
    site = Site(input="blocks.1.hook_resid_pre", target="blocks.1.hook_resid_post", update=update)
    both = open_data(config, site.hooks, Display(quiet=True))
    data_config = config.data.model_copy(update={"mask_hooks": site.hooks})
    mask = KeepMask(both.source, both.tokens, data_config)
    sae = ReLU(ReLUConfig(d_sae=2 * D), D)
    sae.b_enc.data.fill_(-1.0)
    assert both.model is not None and both.tokens.tokens is not None
    spliced = Spliced(both.model, both.source, both.tokens, mask, 100)
    (measured,) = spliced.measure([(sae, site)])
    ids = torch.from_numpy(both.tokens.tokens[spliced.seqs]).long()
    keep = mask.keep(spliced.seqs, 32).view(len(spliced.seqs), 32)
    pre = both.model.activations(ids, [site.input])[site.input]

    def skip_block(acts: torch.Tensor) -> torch.Tensor:
        return torch.where(keep[..., None], pre, acts)

    with both.model.splice(str(site.target), skip_block):
        logits = both.model.logits(ids)[:, :-1]
    by_hand = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert measured["ce_spliced"] == pytest.approx(float(by_hand), rel=1e-5)


def test_transforms_centre_and_scale_to_mean_square_d() -> None:
    rows = torch.randn(500, 7) * torch.arange(1, 8) + 50
    normalised = fit(rows).normalise(rows)
    assert normalised.mean(0).abs().max() < 1e-4
    assert float(normalised.square().sum(1).mean()) == pytest.approx(7, rel=1e-5)
    torch.testing.assert_close(fit(rows).restore(normalised), rows)
    constant = torch.full((9, 3), 2.0)
    assert torch.equal(fit(constant).normalise(constant), torch.zeros(9, 3))


def test_the_mask_drops_special_tokens_and_outliers(data: Data, mask: KeepMask) -> None:
    seqs = np.arange(data.tokens.n_seqs)
    keep = mask.keep(seqs, 32).numpy()
    norms = data.source.norms(HOOK, seqs, 32).numpy()
    eligible = data.tokens.eligible.reshape(-1)
    calib = np.isin(np.repeat(seqs, 32), mask.calib)
    assert mask.limits[HOOK] == pytest.approx(10 * float(np.median(norms[eligible & calib])), rel=0.01)
    assert (keep == (eligible & (norms <= mask.limits[HOOK]))).all()
    assert not eligible.reshape(-1, 32)[:, 0].any(), "BOS opens every sequence of this model"
    assert not set(mask.calib) & set(data.tokens.sequences(held_out=True))


def test_calibration_is_spread_over_the_corpus(config: Config, data: Data) -> None:
    fewer = config.data.model_copy(update={"n_calib": 20})
    mask, training = KeepMask(data.source, data.tokens, fewer), data.tokens.sequences(held_out=False)
    assert len(mask.calib) == 20 and set(mask.calib) <= set(training)
    gaps = np.diff(np.searchsorted(training, mask.calib))
    assert gaps.max() - gaps.min() <= 1 and gaps.sum() > 0.9 * (len(training) - 20)
    documents = data.tokens.documents()
    assert len(np.unique(documents[mask.calib])) > len(np.unique(documents[training[:20]]))


def test_a_calibration_of_the_version_before_is_left_alone(config: Config, data: Data) -> None:
    """It was of the first sequences; its file keeps its name, and ours has another."""
    assert data.tokens.folder is not None
    folder = data.tokens.folder / "calibration"
    folder.mkdir(exist_ok=True)
    old = folder / f"{HOOK}-7-10.json"
    facts = {"format": "saescope-calibration", "format_version": 1, "code": "0.1", "hook": HOOK, "n_calib": 7,
             "outlier_multiple": 10.0, "median_norm": 1e-9, "mean": [0.0] * D, "scale": 1.0}
    old.write_text(json.dumps(facts))
    mask = KeepMask(data.source, data.tokens, config.data.model_copy(update={"n_calib": 7}))
    norms = data.source.norms(HOOK, mask.calib, 32)
    eligible = torch.from_numpy(data.tokens.eligible[mask.calib].reshape(-1))
    assert mask.limits[HOOK] == pytest.approx(10 * float(norms[eligible].median()))
    assert json.loads(old.read_text()) == facts
    # put under the new name it is refused, not believed
    (ours,) = folder.glob(f"{HOOK}-7-10-*.json")
    ours.write_text(old.read_text())
    with pytest.raises(SaescopeError, match=re.escape(str(ours))):
        KeepMask(data.source, data.tokens, config.data.model_copy(update={"n_calib": 7}))
    ours.unlink()


def with_few_eligible(tokens: Tokens, last: int) -> Tokens:
    """The tokens of which only the last sequences of either side may be kept."""
    eligible = np.zeros_like(tokens.eligible)
    for held_out in (True, False):
        seqs = tokens.sequences(held_out=held_out)[-last:]
        eligible[seqs] = tokens.eligible[seqs]
    return dataclasses.replace(tokens, eligible=eligible)


def test_sequences_without_rows_stand_for_nothing(config: Config, data: Data, tmp_path: Path) -> None:
    """Such as those of a chat in which only the other side speaks: few of them, spread over all, tell nothing."""
    assert data.model is not None
    held = open_heldout(config, data, Display(quiet=True), 1500)
    few, few_held = (
        dataclasses.replace(with_few_eligible(one.tokens, 3), folder=shutil.copytree(one.tokens.folder, tmp_path / name))
        for one, name in ((data, "few"), (held, "held"))
    )
    settings = config.data.model_copy(update={"n_calib": 4})
    mask = KeepMask(data.source, few, settings)
    assert len(mask.calib) == 3 and calibrate(config.site, mask).rows.isfinite().all()
    rows = HeldOut(held.source, few_held, mask, [HOOK], 64)
    measured = rows.measure(half(), config.site)
    (ce,) = Spliced(data.model, held.source, few_held, mask, 64).measure([(half(), config.site)])
    assert rows.n_rows > 0 and ce["ce_spliced"] != ce["ce_clean"]
    known = ("fve", "l0", "cosine"), ("ce_recovered_mean", "ce_recovered_zero", "kl")
    assert all(np.isfinite([of[key] for key in keys]).all() for of, keys in zip((measured, ce), known, strict=True))


def test_a_corpus_without_any_row_to_keep_is_refused(config: Config, data: Data, tmp_path: Path) -> None:
    none = dataclasses.replace(data.tokens, eligible=np.zeros_like(data.tokens.eligible), folder=tmp_path)
    with pytest.raises(SaescopeError, match="chat_roles"):
        KeepMask(data.source, none, config.data)


def test_an_infinite_outlier_multiple_drops_nothing(config: Config, data: Data) -> None:
    for given in (float("inf"), "inf", None):
        settings = DataConfig.model_validate(config.data.model_dump() | {"outlier_multiple": given})
        mask = KeepMask(data.source, data.tokens, settings)
        assert mask.limits == {} and mask.over(data.source, data.tokens).limits == {}
        seqs = np.arange(data.tokens.n_seqs)
        assert (mask.keep(seqs, 32).numpy() == data.tokens.eligible.reshape(-1)).all()
    rows = data.source.rows(HOOK, mask.calib, 32)[torch.from_numpy(data.tokens.eligible[mask.calib].reshape(-1))]
    torch.testing.assert_close(mask.frozen(HOOK).transform.mean, rows.double().mean(0).float())
    with pytest.raises(ValueError, match="outlier_multiple"):
        DataConfig(outlier_multiple=float("nan"))
