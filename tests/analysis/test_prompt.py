from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.prompt import PromptCode, encode_text
from analysis.trained import MAX_TOKENS
from sae.code import from_dense
from sae.errors import SaescopeError
from tests.analysis.model_runs import HOOK, write_live_run

TEXT = "def f(x):\n  return naïve"


def test_a_prompt_is_encoded_as_the_model_and_the_sae_say(tmp_path: Path) -> None:
    run, sae, model = write_live_run(tmp_path)
    prompt = encode_text(run, TEXT)
    ids = [model.bos_id, *model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]]
    assert prompt.tokens == ids
    acts = model.activations(torch.tensor([ids]), [HOOK])[HOOK][0]
    dense = sae.encode(acts[1:]).to_dense()
    assert torch.equal(prompt.code.to_dense()[1:], dense) and not prompt.code.to_dense()[0].any()
    assert prompt.kept.tolist() == [False] + [True] * (len(ids) - 1)
    assert "".join(prompt.pieces) == "<bos>" + TEXT and len(prompt.pieces) == len(ids)
    feature = int(dense.abs().sum(0).argmax())
    assert prompt.values(feature).tolist() == prompt.code.to_dense()[:, feature].tolist()


def test_the_strongest_features_come_first() -> None:
    dense = torch.tensor([[0.0, 2.0, 0.0, -5.0], [4.0, 3.0, 0.0, 0.0]])
    code = PromptCode("ab", [1, 2], ["a", "b"], from_dense(dense), np.array([True, True]))
    assert [(t.feature, t.value, t.position, t.n_active) for t in code.top()] == [
        (3, -5.0, 0, 1), (0, 4.0, 1, 1), (1, 3.0, 1, 2)]
    assert [t.feature for t in code.top(1)] == [3]
    assert [(t.feature, t.position) for t in code.top(positions=[0])] == [(3, 0), (1, 0)]


def test_features_are_ranked_by_their_own_maximum() -> None:
    dense = torch.tensor([[9.0, 2.0, 0.0, -5.0, 0.5], [8.0, 3.0, 0.0, 0.0, 0.0]])
    code = PromptCode("ab", [1, 2], ["a", "b"], from_dense(dense), np.array([True, True]))
    largest = np.array([90.0, 4.0, 1.0, 5.0, 0.0], np.float32)
    everyone = np.ones(5, bool)
    found = code.ranked(largest, everyone)
    assert [(t.feature, t.value, t.position, t.share) for t in found] == [
        (3, -5.0, 0, 1.0), (4, 0.5, 0, 1.0), (1, 3.0, 1, 0.75), (0, 9.0, 0, pytest.approx(0.1))]
    assert [t.feature for t in code.ranked(largest, everyone, 2)] == [3, 4]
    assert [t.feature for t in code.ranked(largest, np.array([1, 1, 1, 0, 1], bool))] == [4, 1, 0]
    assert [(t.feature, t.position) for t in code.ranked(largest, everyone, position=1)] == [(1, 1), (0, 1)]


def test_a_token_wins_three_rows_at_most() -> None:
    dense = torch.zeros(2, 12)
    dense[0, :8] = torch.arange(8, 0, -1)
    dense[1, 7:] = 0.5
    code = PromptCode("ab", [1, 2], ["a", "b"], from_dense(dense), np.array([True, True]))
    largest = np.full(12, 8.0, np.float32)
    found = code.ranked(largest, np.ones(12, bool))
    # feature 7 is strongest at token 0, which has three already
    assert [(t.feature, t.position) for t in found] == [(0, 0), (1, 0), (2, 0), (8, 1), (9, 1), (10, 1)]
    assert len(code.ranked(largest, np.ones(12, bool), position=0)) == 8


def test_text_that_spells_a_special_token_stays_text(tmp_path: Path) -> None:
    run, _, model = write_live_run(tmp_path)
    spelt = model.tokenizer("<eos>", split_special_tokens=True).input_ids
    assert encode_text(run, "<eos>").tokens == [model.bos_id, *spelt] and len(spelt) == 5


def test_too_little_and_too_much_text(tmp_path: Path) -> None:
    run, _, _ = write_live_run(tmp_path)
    with pytest.raises(SaescopeError, match="empty"):
        encode_text(run, "")
    with pytest.raises(SaescopeError, match=r"129 tokens.*128"):
        encode_text(run, "x" * 128)
    assert MAX_TOKENS == 512
    for text in ("\x00", "\ufeff", "\u202e", "🙂" * 10):
        assert "".join(encode_text(run, text).pieces) == "<bos>" + text
