from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.trained import MAX_TOKENS, Prompt, PromptCode, live
from sae.code import from_dense
from sae.errors import SaescopeError
from sae.io.files import write_json
from tests.analysis.model_runs import HOOK, write_live_run
from training.model.load import load_model

TEXT = "def f(x):\n  return naïve"


def test_a_prompt_is_encoded_as_the_model_and_the_sae_say(tmp_path: Path) -> None:
    run, sae, model = write_live_run(tmp_path)
    prompt = Prompt(run).encode(TEXT)
    ids = [model.bos_id, *model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]]
    assert prompt.tokens == ids
    acts = model.activations(torch.tensor([ids]), [HOOK])[HOOK][0]
    dense = sae.encode(acts[1:]).to_dense()
    assert torch.equal(prompt.code.to_dense()[1:], dense) and not prompt.code.to_dense()[0].any()
    assert prompt.kept.tolist() == [False] + [True] * (len(ids) - 1)
    assert "".join(prompt.pieces) == "<bos>" + TEXT and len(prompt.pieces) == len(ids)
    feature = int(dense.abs().sum(0).argmax())
    assert prompt.values(feature).tolist() == prompt.code.to_dense()[:, feature].tolist()


def test_outliers_are_left_out_as_an_index_recorded(tmp_path: Path) -> None:
    run, _, model = write_live_run(tmp_path)
    tokens = Prompt(run).encode(TEXT).tokens
    norms = model.activations(torch.tensor([tokens]), [HOOK])[HOOK][0].norm(dim=1)
    limit = float(norms[1:].median())
    (run / "index" / "default").mkdir(parents=True)
    write_json(run / "index" / "default" / "manifest.json", {"made_from": {"rows": {"mask": {"limits": {HOOK: limit}}}}})
    prompt = Prompt(run)
    assert prompt.limit == limit
    kept = prompt.encode(TEXT).kept
    assert kept[1:].tolist() == (norms[1:] <= limit).tolist() and 0 < kept.sum() < len(kept) - 1


def test_the_strongest_features_come_first() -> None:
    dense = torch.tensor([[0.0, 2.0, 0.0, -5.0], [4.0, 3.0, 0.0, 0.0]])
    code = PromptCode("ab", [1, 2], ["a", "b"], from_dense(dense), np.array([True, True]))
    assert [(t.feature, t.value, t.position, t.n_active) for t in code.top()] == [
        (3, -5.0, 0, 1), (0, 4.0, 1, 1), (1, 3.0, 1, 2)]
    assert [t.feature for t in code.top(1)] == [3]
    assert [(t.feature, t.position) for t in code.top(positions=[0])] == [(3, 0), (1, 0)]


def test_text_that_spells_a_special_token_stays_text(tmp_path: Path) -> None:
    run, _, model = write_live_run(tmp_path)
    spelt = model.tokenizer("<eos>", split_special_tokens=True).input_ids
    assert Prompt(run).encode("<eos>").tokens == [model.bos_id, *spelt] and len(spelt) == 5


def test_too_little_and_too_much_text(tmp_path: Path) -> None:
    run, _, _ = write_live_run(tmp_path)
    with pytest.raises(SaescopeError, match="empty"):
        Prompt(run).encode("")
    with pytest.raises(SaescopeError, match=r"129 tokens; at most 128"):
        Prompt(run).encode("x" * 128)
    assert MAX_TOKENS == 512
    for text in ("\x00", "\ufeff", "\u202e", "🙂" * 10):
        assert "".join(Prompt(run).encode(text).pieces) == "<bos>" + text


def test_a_run_without_a_language_model_says_so(tmp_path: Path) -> None:
    run, _, _ = write_live_run(tmp_path, made_from={"acts": "x"})
    with pytest.raises(SaescopeError, match="without a language model"):
        Prompt(run).encode("a")


def test_a_model_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    run, _, _ = write_live_run(tmp_path, config={"model": {"name": f"local:{tmp_path}/none", "dtype": "float32"}})
    with pytest.raises(SaescopeError, match=r"not on this machine: There is no model in .*none"):
        Prompt(run).encode("a")


def test_another_model_is_refused(tmp_path: Path) -> None:
    other = load_model("native:seed=5").identity
    run, _, _ = write_live_run(tmp_path, made_from={"model": other})
    with pytest.raises(SaescopeError, match=r"not the model that live was trained on: its seed is 0, was 5"):
        live(run)


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(SaescopeError, match=r"sae\.json"):
        Prompt(tmp_path / "none").encode("a")


def test_a_run_trained_anew_is_read_anew(tmp_path: Path) -> None:
    run, sae, _ = write_live_run(tmp_path)
    first = live(run).sae
    assert live(run).sae is first
    from sae import store

    with torch.no_grad():
        sae.b_enc.add_(1)
    store.save(sae, run / "final", provenance=sae.provenance)
    assert not torch.equal(live(run).sae.b_enc, first.b_enc)
