"""The handle on a trained SAE against activations taken from the model and combined by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.trained import open_trained
from sae import store
from sae.errors import SaescopeError
from sae.io.files import write_json
from tests.analysis.model_runs import HOOK, write_live_run
from training.model.load import load_model

LATER = "blocks.1.hook_resid_post"
SITES: dict[str, dict[str, Any]] = {
    "SAE": {}, "transcoder": {"target": LATER}, "update": {"target": LATER, "update": True},
    "both": {"target": LATER, "update": "both"},
}
TEXT = "def f(x):\n  return naïve"


@pytest.mark.parametrize("kind", SITES)
def test_tokens_are_encoded_from_what_the_site_reads(tmp_path: Path, kind: str) -> None:
    """Every row; at `update: both` none was right before."""
    run, sae, model = write_live_run(tmp_path, site={"input": HOOK, **SITES[kind]})
    trained = open_trained(run)
    tokens = trained.tokens(TEXT)
    acts = {hook: rows[0] for hook, rows in model.activations(tokens[None], [HOOK, LATER]).items()}
    before, after = acts[HOOK].float(), acts[LATER].float()
    x = after - before if kind == "both" else before
    target = {"SAE": before, "transcoder": after}.get(kind, after - before)
    code, kept = trained.code_of_tokens(tokens)
    assert kept.tolist() == [False] + [True] * (len(tokens) - 1)
    dense = code.to_dense()
    assert torch.equal(dense[1:], sae.encode(x[1:]).to_dense()) and not dense[0].any()
    assert torch.equal(trained.encode(acts).to_dense(), sae.encode(x).to_dense())
    assert torch.equal(trained.rows(acts).x, x) and torch.equal(trained.rows(acts).target, target)


def norms_of(run: Path, *hooks: str) -> dict[str, torch.Tensor]:
    trained = open_trained(run)
    tokens = trained.tokens(TEXT)
    return {h: acts[0].norm(dim=1) for h, acts in trained.model.activations(tokens[None], list(hooks)).items()}


def test_a_norm_beyond_the_limit_of_any_mask_hook_is_dropped(tmp_path: Path) -> None:
    """Also where the site has two hooks, and at hooks that only another member of the sweep reads."""
    middle = "blocks.1.hook_resid_mid"
    run, sae, _ = write_live_run(tmp_path, site={"input": HOOK, "target": LATER})
    norms = norms_of(run, HOOK, LATER, middle)
    limits = {hook: float(n[1:].kthvalue(len(n) - 4).values) for hook, n in norms.items()}
    store.save(sae, run / "final", provenance=sae.provenance | {"mask": {"limits": limits}})
    trained = open_trained(run)
    code, kept = trained.code_of_tokens(trained.tokens(TEXT))
    within = {hook: (n <= limits[hook])[1:].tolist() for hook, n in norms.items()}
    expected = [all(those) for those in zip(*within.values(), strict=True)]
    assert kept.tolist() == [False, *expected]
    assert all(expected != one for one in within.values()), "each hook alone would keep more"
    assert (code.l0() > 0).tolist() == [False, *expected]


def test_older_runs_have_their_limits_from_their_own_index(tmp_path: Path) -> None:
    """A run that does not say its limits; an index over another text may have that text's."""
    run, sae, _ = write_live_run(tmp_path, site={"input": HOOK, "target": LATER})
    assert open_trained(run).limits == {}
    for name, source, limit in (("a", "other", 1.0), ("default", sae.provenance["made_from"], 2.0)):
        (run / "index" / name).mkdir(parents=True)
        rows = {"made_from": source, "mask": {"limits": {HOOK: limit, LATER: 10 * limit}}}
        write_json(run / "index" / name / "manifest.json", {"made_from": {"rows": rows}})
    assert open_trained(run).limits == {HOOK: 2.0, LATER: 20.0}


def test_a_run_without_a_language_model_says_so(tmp_path: Path) -> None:
    run, sae, _ = write_live_run(tmp_path, made_from={"acts": "x"})
    trained = open_trained(run)
    x = torch.randn(3, 32)
    assert torch.equal(trained.encode({HOOK: x}).to_dense(), sae.encode(x).to_dense())
    with pytest.raises(SaescopeError, match="without a language model"):
        trained.tokens("a")


def test_a_model_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    run, _, _ = write_live_run(tmp_path, config={"model": {"name": f"local:{tmp_path}/none", "dtype": "float32"}})
    with pytest.raises(SaescopeError, match=r"not on this machine: There is no model in .*none"):
        open_trained(run).tokens("a")


def test_another_model_is_refused(tmp_path: Path) -> None:
    other = load_model("native:seed=5").identity
    run, _, _ = write_live_run(tmp_path, made_from={"model": other})
    with pytest.raises(SaescopeError, match=r"not the model that live was trained on: its seed is 0, was 5"):
        _ = open_trained(run).model


def test_what_is_no_trained_run(tmp_path: Path) -> None:
    with pytest.raises(SaescopeError, match=r"none is not a run"):
        open_trained(tmp_path / "none")
    run, _, _ = write_live_run(tmp_path)
    manifest = json.loads((run / "final/sae.json").read_text())
    del manifest["provenance"]["site"]
    write_json(run / "final/sae.json", manifest)
    with pytest.raises(SaescopeError, match=r"live/final/sae\.json names no site"):
        open_trained(run)
    shutil.rmtree(run / "final")
    (run / "config.yaml").write_text("name: live")
    with pytest.raises(SaescopeError, match=r"live: this run has no final/ yet"):
        open_trained(run)


def test_a_process_keeps_one_model_and_reads_a_run_trained_anew(tmp_path: Path) -> None:
    run, sae, _ = write_live_run(tmp_path)
    first = open_trained(run)
    assert open_trained(run).sae is first.sae and open_trained(run).model is first.model
    with torch.no_grad():
        sae.b_enc.add_(1)
    store.save(sae, run / "final", provenance=sae.provenance)
    assert not torch.equal(open_trained(run).sae.b_enc, first.sae.b_enc)
