"""`random:NAME:SEED`: the architecture of a model with weights that a seed draws."""

import pytest
import torch

from sae.errors import SaescopeError
from training.model.load import load_model
from training.model.random_weights import base_and_seed


def test_a_native_model_gets_another_seed() -> None:
    one, same, other = (load_model(f"random:native:tiny:{seed}") for seed in (3, 3, 4))
    ids = torch.arange(20)[None] + 5
    assert torch.equal(one.logits(ids), same.logits(ids)) and not torch.equal(one.logits(ids), other.logits(ids))
    assert torch.equal(one.logits(ids), load_model("native:seed=4").logits(ids))
    assert not torch.equal(load_model("random:native:tiny:0").logits(ids), load_model("native:tiny").logits(ids))
    assert one.name == "random:native:tiny:3" and one.identity != other.identity


def test_a_pretrained_model_keeps_its_tokenizer_and_shape_and_forgets_everything() -> None:
    model = load_model("random:smollm2-135m:1", dtype="bfloat16")
    ids = model.tokenizer("The cat sat on the mat, and the dog sat on the log.", return_tensors="pt").input_ids
    logits = model.logits(ids)[0].float()
    cost = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    # as good as a guess among all tokens
    assert float(cost) > 9.5 and model.d_hook("blocks.9.hook_resid_post") == 576
    assert model.identity["name"] == "random" and model.identity["seed"] == 1
    assert model.identity["of"]["name"] == "smollm2-135m"


@pytest.mark.parametrize("rest", ["smollm2-135m", "a:x", ":3", "a:-1", "random:a:1:2", "a:99999999999"])
def test_what_is_not_understood_is_refused(rest: str) -> None:
    with pytest.raises(SaescopeError, match="random:NAME:SEED"):
        base_and_seed(f"random:{rest}", rest)


def test_an_unknown_model_is_refused_by_its_own_name() -> None:
    with pytest.raises(SaescopeError, match="smollm3"):
        load_model("random:smollm3:0")
