"""Held-out figures against known answers: a perfect SAE, one that says nothing, and a mask that keeps nothing."""

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae.base import SAE
from sae.variants.relu import ReLU, ReLUConfig
from training.activations.calibration import KeepMask, calibrate, fit
from training.activations.harvest import Data, open_data
from training.config import reading as configs
from training.config.schema import Config
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
