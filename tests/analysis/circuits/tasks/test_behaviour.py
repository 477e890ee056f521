"""Whether a model does a task: by hand on a model of known logits, and the packaged model on the built-in behaviours."""

import math
import string

import numpy as np
import pytest
import torch

from analysis.circuits.tasks.behaviour import check_behaviour, require_behaviour
from analysis.circuits.tasks.config import TEMPLATES, TaskConfig, make_task
from analysis.circuits.tasks.metrics import METRICS
from analysis.circuits.tasks.task import Pair, Task
from sae.errors import SaescopeError
from training.model.language_model import Model
from training.model.load import load_model

LETTERS = "abcdefghijkl"


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load_model("native:tiny", dtype="float64")


def last_logits(model: Model, text: str) -> torch.Tensor:
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    return model.logits(torch.tensor([[model.bos_id, *ids]]))[0, -1]


def told(model: Model, metric: str, n_right: int) -> tuple[Task, list[float]]:
    """12 pairs of which the model is right in `n_right`, and the logit difference of each."""
    (x,), (y,) = (model.tokenizer(c, add_special_tokens=False).input_ids for c in "xy")
    pairs, gaps = [], []
    for i, letter in enumerate(LETTERS):
        prompt = letter * (2 + i % 2)  # of two lengths
        gap = float(last_logits(model, prompt)[x] - last_logits(model, prompt)[y])
        right, wrong = ("x", "y") if (gap > 0) == (i < n_right) else ("y", "x")
        pairs.append(Pair(prompt, prompt[::-1], (right,), (wrong,)))
        gaps.append(gap if right == "x" else -gap)
    return Task("letters", pairs, pairs, METRICS[metric]), gaps


@pytest.mark.parametrize("metric", ["logit_difference", "kl"])
def test_logit_difference_by_hand(metric: str, tiny: Model) -> None:
    task, gaps = told(tiny, metric, n_right=9)
    found = check_behaviour(tiny, task, batch=5)
    assert (found.n, found.n_right, found.accuracy, found.metric, found.chance) == (12, 9, 0.75, "logit_difference", 0.0)
    half = 2.200985 * np.std(gaps, ddof=1) / math.sqrt(12)  # t(0.975, 11)
    assert (found.clean.value, found.clean.low) == (pytest.approx(np.mean(gaps)), pytest.approx(np.mean(gaps) - half, rel=1e-4))
    assert found.corrupt is not None and found.corrupt.value == pytest.approx(found.clean.value)  # the same prompts
    assert found.holds == (found.clean.low is not None and found.clean.low > 0)


def test_a_behaviour_that_the_model_has_not(tiny: Model) -> None:
    task, _ = told(tiny, "logit_difference", n_right=8)
    assert not check_behaviour(tiny, task).holds
    with pytest.raises(SaescopeError) as caught:
        require_behaviour(tiny, task)
    for fact in ("native:tiny does not do letters", "8 of 12", "50 %"):
        assert fact in str(caught.value)
    held, _ = told(tiny, "logit_difference", n_right=12)
    assert require_behaviour(tiny, held).figures()["accuracy"] == 1.0


def test_single_prompts_by_hand() -> None:
    bytes_only = load_model("native:d_vocab=259", dtype="float64")
    last = {letter: last_logits(bytes_only, letter) for letter in string.ascii_letters}
    said = {letter: bytes_only.tokenizer.decode([int(logits.argmax())]) for letter, logits in last.items()}
    a, b, c, d = [letter for letter, answer in said.items() if len(answer) == 1 and answer.isascii()][:4]
    pairs = [Pair(a, None, (said[a],)), Pair(b, None, (said[b],)), Pair(c, None, (said[c], "?")), Pair(d, None, ("~",))]
    assert said[d] != "~"
    found = check_behaviour(bytes_only, Task("letters", pairs[:1], pairs, METRICS["log_probability"]))
    tokens = [bytes_only.tokenizer("".join(pair.right), add_special_tokens=False).input_ids for pair in pairs]
    p = [float(last[one].softmax(0)[right].sum().log()) for one, right in zip((a, b, c, d), tokens, strict=True)]
    assert (found.n, found.n_right) == (4, 3) and found.clean.value == pytest.approx(np.mean(p))
    assert found.chance == pytest.approx(math.log(5 / 4 / 259)) and found.clean.low is None and found.corrupt is None
    assert found.holds == (np.mean(p) > found.chance)


def test_the_packaged_model_does_what_is_built_in() -> None:
    model = load_model("smollm2-135m")
    for name in TEMPLATES:
        found = check_behaviour(model, make_task(TaskConfig(builtin=name, n_train=2, n_held_out=40), model))  # type: ignore[arg-type]
        assert found.holds, str(found)
        assert found.corrupt is not None and found.corrupt.value < 0 < found.clean.value
