"""The loop takes any batches and loads no language model; several ranks can reduce their gradients in a step."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sae.base import Transform
from sae.errors import SaescopeError
from sae.ranks import ALONE, Alone
from training.activations.calibration import Calibration
from training.config.reading import resolve
from training.config.schema import Config
from training.loop import Every, fit
from training.schedule import Clock
from training.trainer import Trainer, new_sae

D, ROWS = 8, 64


def config(**sections: Any) -> Config:
    fields = {
        "name": "x", "model": None, "corpus": "tensors", "site": "acts", "sae": {"variant": "topk", "d_sae": 16, "k": 3},
        "data": {"batch_rows": ROWS}, "train": {"budget": "20 steps", "kernels": "reference", "device": "cpu"},
    }
    return resolve(fields | sections)[0]


class OfTwo(Alone):
    """One of two ranks that share the rows, with a way of its own to reduce gradients."""

    n = 2

    def __init__(self, reduce: Callable[[list[Tensor]], None]) -> None:
        self.reduce = reduce

    def reduce_gradients(self, own: Sequence[Tensor], common: Sequence[Tensor]) -> None:
        self.reduce([*own, *common])


def trainer(reduce: Callable[[list[Tensor]], None] | None = None, **sections: Any) -> Trainer:
    chosen = config(**sections)
    rows = torch.randn(200, D, generator=torch.Generator().manual_seed(1))
    same = Transform.identity(D)
    clock = Clock.of(chosen.train.budget, batch_rows=ROWS, epoch_rows=0)
    ranks = ALONE if reduce is None else OfTwo(reduce)
    sae = new_sae(chosen, Calibration(same, Transform.identity(D), rows, rows), ranks)
    return Trainer(chosen, sae, clock, torch.device("cpu"))


def batches(n: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"acts": torch.randn(ROWS, D, generator=generator)} for _ in range(n)]


def test_a_fresh_process_that_imports_it_has_no_language_model() -> None:
    code = (
        "import sys, training.loop; heavy = {'transformer_lens', 'transformers', 'training.model', 'training.model.load'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_plain_batches_are_trained_on_and_the_rest_is_done_when_it_should_be() -> None:
    one, done = trainer(), {"log": [], "evaluate": [], "save": []}
    losses = []

    def log(n_steps: int) -> None:
        done["log"].append(n_steps)
        losses.append(one.metrics()["loss/reconstruction"])

    fit([one], batches(3) * 4, 10, log=Every(4, log), evaluate=Every(5, done["evaluate"].append),
        save=Every(3, done["save"].append))
    assert done == {"log": [4, 8, 10], "evaluate": [5], "save": [3, 6, 9, 10]}
    assert losses[-1] < losses[0] and one.n_steps == 10


def test_no_batch_is_asked_for_beyond_the_last_step() -> None:
    asked = []

    def given() -> Iterator[Mapping[str, Tensor]]:
        for batch in batches(5):
            asked.append(1)
            yield batch

    one, running = trainer(), given()
    fit([one], running, 2)
    fit([one], running, 2)
    assert (one.n_steps, len(asked)) == (2, 2), "it has taken its two steps already"
    with pytest.raises(SaescopeError, match="after step 5 of 9"):
        fit([one], running, 9)


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("grad_clip", [None, 0.1])
def test_two_halves_of_a_batch_whose_gradients_are_averaged_step_as_the_whole(
    kernels: str, grad_clip: float | None
) -> None:
    """Two ranks in one process: each is told the mean of both ranks' gradients."""
    fields = {
        "train": {"budget": "20 steps", "kernels": kernels, "device": "cpu", "precision": "fp32"},
        "sae": {"variant": "topk", "d_sae": 16, "k": 3, "grad_clip": grad_clip},
    }
    found: list[list[Tensor]] = []
    means: list[Tensor] = []

    def look(grads: list[Tensor]) -> None:
        found.append([g.clone() for g in grads])

    def average(grads: list[Tensor]) -> None:
        for grad, mean in zip(grads, means, strict=True):
            grad.copy_(mean)

    whole, rank = trainer(**fields), trainer(average, **fields)
    for i, batch in enumerate(batches(4)):
        halves = [{"acts": half} for half in batch["acts"].chunk(2)]
        found.clear()
        for half in halves:
            twin = trainer(look, **fields)
            twin.load(rank.tensors(), rank.numbers())
            twin.step(half)
        means[:] = [(a + b) / 2 for a, b in zip(*found, strict=True)]
        rank.step(halves[i % 2])
        whole.step(batch)
    for (name, there), (_, here) in zip(whole.sae.named_parameters(), rank.sae.named_parameters(), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-6, msg=name)
    start = dict(trainer(**fields).sae.named_parameters())
    assert all((p - start[name]).abs().max() > 1e-5 for name, p in rank.sae.named_parameters()), "all of them stepped"


def test_gradients_that_are_never_made_cannot_be_reduced() -> None:
    with pytest.raises(SaescopeError, match="fused_adam"):
        trainer(lambda grads: None, train={"budget": "20 steps", "device": "cpu", "fused_adam": True})


@pytest.mark.parametrize("kind", [{}, {"whiten": True}, {"unit_rows": True}, {"whiten": True, "unit_rows": True}])
def test_the_log_tells_fve_in_the_models_units(kind: dict[str, bool]) -> None:
    """Of the code of each step, as the SAE was before it."""
    one = trainer(sae={"variant": "topk", "d_sae": 16, "k": 3, "transform": kind}, optim={"lr": 1e-2})
    lengths = torch.logspace(0, -1, D)
    left = total = 0.0
    for batch in batches(5):
        x = batch["acts"] * lengths
        left += float((x - one.sae(x)).square().sum())
        total += float(x.square().sum())  # the transform's mean is zero
        one.step({"acts": x})
    assert one.metrics()["fve"] == pytest.approx(1 - left / total, rel=1e-4)


def test_a_transform_that_a_transcoder_cannot_have_is_refused() -> None:
    site = {"input": "a", "target": "b"}
    for sae, message in (
        ({"variant": "topk", "d_sae": 16, "k": 3, "transform": {"unit_rows": True}}, "unit_rows divides a row"),
        ({"variant": "icfl", "d_sae": 16, "rounds": 2, "per_round": 2}, "icfl encodes with the decoder's directions"),
    ):
        with pytest.raises(SaescopeError, match=message):
            config(site=site, sae=sae)


def test_too_few_calibration_rows_to_whiten_are_refused() -> None:
    with pytest.raises(SaescopeError, match=r"sae\.transform\.whiten: 8 calibration rows.* raise data\.n_calib"):
        new_sae(
            config(sae={"variant": "topk", "d_sae": 16, "k": 3, "transform": {"whiten": True}}),
            Calibration(Transform.identity(D), Transform.identity(D), torch.randn(8, D), torch.randn(8, D)),
        )
